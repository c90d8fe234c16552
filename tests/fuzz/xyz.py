"""A second, strict reader of extended XYZ: what a file says, or that it is none. Nothing of the package or of ASE is used,
so that both can be judged by it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ase.data import atomic_numbers

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d+", re.ASCII)
_ITEM = re.compile(r"\s*(?:\"([^\"]*)\"|([^\s=\"]+))(?:=(?:\"([^\"]*)\"|([^\s\"=]*))(?=\s|$))?", re.ASCII)
_LARGEST = 1e6


class NotExtendedXYZ(Exception):
    """The text is not what it should be."""


def read_strictly(content: bytes) -> list[dict[str, Any]]:
    """Frames of a file that this module's writer, or ASE's, could have written; NotExtendedXYZ otherwise."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotExtendedXYZ("not UTF-8") from error
    if any(ord(c) < 32 and c != "\n" for c in text):
        raise NotExtendedXYZ("control characters")
    if text and not text.endswith("\n"):
        # Whole where all but the end of the line is there: the last number has as many digits as that above it.
        ends = [line.split(" ")[-1].partition(".")[2] for line in text.split("\n")[-2:]]
        if len(ends) < 2 or len(ends[0]) != len(ends[1]):
            raise NotExtendedXYZ("cut short")
        text += "\n"
    lines = text.split("\n")[:-1]
    frames, at = [], 0
    while at < len(lines):
        if not any(line.strip() for line in lines[at:]):
            break
        if not _WHOLE.fullmatch(lines[at].strip()):
            raise NotExtendedXYZ(f"line {at}: not a count")
        count = int(lines[at])
        if not 0 < count <= len(lines) - at - 2:
            raise NotExtendedXYZ(f"line {at}: count of {count}")
        frames.append(_frame(lines[at + 1], lines[at + 2 : at + 2 + count]))
        at += 2 + count
    if not frames:
        raise NotExtendedXYZ("no frames")
    return frames


def _frame(comment: str, rows: list[str]) -> dict[str, Any]:
    items = _items(comment)
    columns = _columns(items.get("Properties", "species:S:1:pos:R:3"))
    width = sum(size for _, _, size in columns)
    cells = [row.split(" ") for row in rows]
    cells = [[cell for cell in row if cell] for row in cells]
    if any(len(row) != width for row in cells):
        raise NotExtendedXYZ("columns")
    found: dict[str, Any] = {}
    first = 0
    for name, kind, size in columns:
        part = [row[first : first + size] for row in cells]
        found[name] = (
            np.array([[_number(x, 1e10 if name == "pos" else _LARGEST) for x in row] for row in part])
            if kind == "R"
            else part
        )
        first += size
    if "species" not in found or "pos" not in found:
        raise NotExtendedXYZ("no species or positions")
    try:
        numbers = [atomic_numbers[row[0]] for row in found["species"]]
    except KeyError as error:
        raise NotExtendedXYZ("no element") from error
    if 0 in numbers:
        raise NotExtendedXYZ("no element")
    cell = _numbers(items["Lattice"], 9).reshape(3, 3) if "Lattice" in items else np.zeros((3, 3))
    pbc = _truths(items["pbc"]) if "pbc" in items else ["Lattice" in items] * 3
    if any(pbc) and "Lattice" not in items:
        raise NotExtendedXYZ("periodic without a lattice")
    return {
        "numbers": np.array(numbers),
        "positions": found["pos"],
        "cell": cell,
        "pbc": np.array(pbc),
        "energy": float(_numbers(items["energy"], 1, 1e8)[0]) if "energy" in items else None,
        "forces": found.get("forces"),
        "stress": _stress(items["stress"]) if "stress" in items else None,
    }


def _items(comment: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    comment = comment.rstrip(" ")
    while at < len(comment):
        match = _ITEM.match(comment, at)
        if match is None or match.end() == at:
            raise NotExtendedXYZ("comment")
        key = match[1] if match[1] is not None else match[2]
        value = match[3] if match[3] is not None else match[4]
        if key in found:
            raise NotExtendedXYZ(f"{key} twice")
        found[key] = "T" if value is None else value
        at = match.end()
    return found


def _columns(text: str) -> list[tuple[str, str, int]]:
    parts = text.split(":")
    if len(parts) % 3:
        raise NotExtendedXYZ("Properties")
    columns = []
    needed = {"species": ("S", "1"), "pos": ("R", "3"), "forces": ("R", "3")}
    for name, kind, size in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if kind not in ("S", "R") or size not in ("1", "2", "3") or needed.get(name, (kind, size)) != (kind, size):
            raise NotExtendedXYZ("Properties")
        columns.append((name, kind, int(size)))
    if len({name for name, _, _ in columns}) < len(columns):
        raise NotExtendedXYZ("Properties")
    return columns


def _stress(text: str) -> np.ndarray:
    """Nine numbers, or six in ASE's order."""
    if len(text.split()) == 6:
        xx, yy, zz, yz, xz, xy = _numbers(text, 6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return _numbers(text, 9).reshape(3, 3).T


def _number(text: str, largest: float = _LARGEST) -> float:
    if not _NUMBER.fullmatch(text) or not abs(float(text)) < largest:
        raise NotExtendedXYZ(f"no number: {text!r}")
    return float(text)


def _numbers(text: str, count: int, largest: float = _LARGEST) -> np.ndarray:
    found = [_number(part, largest) for part in text.split(" ") if part]
    if len(found) != count:
        raise NotExtendedXYZ("numbers")
    return np.array(found)


def _truths(text: str) -> list[bool]:
    if not re.fullmatch("[TF] [TF] [TF]", text):
        raise NotExtendedXYZ("pbc")
    return [part == "T" for part in text.split(" ")]
