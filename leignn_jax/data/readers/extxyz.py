"""Extended XYZ, also compressed, read strictly: what contradicts itself is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers
from ase.io.extxyz import per_config_properties

from leignn_jax.data.readers.text import read_lines
from leignn_jax.errors import FileFormatError

# ASE's names of columns that are called otherwise in files.
_NAMES = {"species": "symbols", "pos": "positions", "Z": "numbers", "charge": "charges"}
_BARE = "species:S:1:pos:R:3"
_BOOLEANS = {"T": True, "F": False, "true": True, "false": False, "True": True, "False": False}
_BOOLEANS |= {"TRUE": True, "FALSE": False}
# Keys that make a structure another one where they are overlooked.
_KEYS = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
_MATRICES = ("Lattice", "virial", "stress")
_MOST_ATOMS = 10_000_000
_MOST_COLUMNS = 1000


class Column(NamedTuple):
    """Some columns of the atoms' lines: ASE's name, type (R, I, S, L), how many, and the first."""

    name: str
    kind: str
    width: int
    start: int


def read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    """Frames of an extended or plain XYZ file.

    Raises:
        FileFormatError: names the frame, and the atom where one can be told.
    """
    lines = read_lines(path)
    number, after = 0, ""
    while True:
        try:
            block, after = _next_block(lines, after)
            if not block:
                return
            atoms = _atoms(block)
        except Exception as error:
            if isinstance(error, FileFormatError) and str(error).startswith(str(path)):
                raise FileFormatError(str(error).replace(str(path), f"{path}: frame {number}", 1)) from error
            kind = "" if isinstance(error, FileFormatError) else f"{type(error).__name__}: "
            reason = f"{kind}{error}".splitlines()[0]
            raise FileFormatError(f"{path}: frame {number} can't be read ({reason}).") from error
        yield atoms
        number += 1


def _next_block(lines: Iterator[str], first: str) -> tuple[list[str], str]:
    """The lines of the next frame, none at the end, and the line after them; ``first`` is that of the frame before."""
    first = first or next(lines, "")
    if not first.strip():
        rest = next((line for line in lines if line.strip()), None)
        if rest is not None:
            raise FileFormatError(f"a blank line before {rest.strip()[:40]!r}")
        return [], ""
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*", first, re.ASCII):
        raise FileFormatError(f"{first.strip()[:40]!r} where the number of atoms should stand")
    count = int(first)
    if count > _MOST_ATOMS:
        raise FileFormatError(f"claims {count} atoms; more than {_MOST_ATOMS} are not read")
    block = [first, *islice(lines, count + 1)]
    if len(block) < count + 2:
        raise FileFormatError(f"{max(len(block) - 2, 0)} of {count} atoms are there; is the file cut short?")
    after = next(lines, "")
    while after.lstrip().startswith("VEC"):
        block.append(after)
        after = next(lines, "")
    return block, after


def _atoms(block: Sequence[str]) -> ase.Atoms:
    count = int(block[0])
    comment, rows, vectors = block[1].strip(), block[2 : count + 2], block[count + 2 :]
    info = {"comment": comment} if vectors else parse_comment(comment)
    cell, pbc = _cell_of_vectors(vectors) if vectors else _cell(info)
    said = info.pop("Properties", None)
    columns = parse_properties(_BARE if said is None else said)
    fields = _fields(rows, columns, strict=said is not None or "Lattice" in comment)
    plain = _is_plain("".join(rows))
    arrays = {column.name: _array(fields, column, plain) for column in columns} if count else {}
    if not block[-1].endswith("\n") and not vectors and count:
        _check_end(fields, columns[-1])
    atoms = ase.Atoms(
        numbers=_numbers(arrays, count),
        positions=arrays.pop("positions", None),
        charges=arrays.pop("initial_charges", None),
        cell=cell,
        pbc=pbc,
        info=info,
    )
    if "move_mask" in arrays:
        atoms.set_constraint(_constraints(arrays.pop("move_mask").astype(bool)))
    results = {name: arrays.pop(name) for name in list(arrays) if name in all_properties}
    results |= {name: info.pop(name) for name in list(info) if name in per_config_properties}
    atoms.info = info
    for name, array in arrays.items():
        atoms.set_array(name, array)
    if results:
        atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results |= results
    return atoms


# ----------------------------------------------------------------------------------------------------------- the comment

# A run of characters without blank or "=", but within quotes or brackets, and "\" before any.
_PIECE = (
    r"""(?:\\.|"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|\{(?:\\.|[^}\\])*\}?|\[(?:\\.|[^\]\\])*\]?|[^\s="'{\[\\]|\\$)"""
)
# Blanks may stand around "=", but what follows them is no value where it is the next key.
_PAIR = re.compile(rf"\s*(=*{_PIECE}+)(\s*=(?:\s+(?!(?>{_PIECE}+)\s*=))?((?:{_PIECE}|=)*))?")
_PIECES = re.compile(rf"{_PIECE}|=")
_QUOTES = {'"': '"', "'": "'", "{": "}", "[": "]"}
_SPECIAL = frozenset("\\\"'{}[]")


def parse_comment(comment: str) -> dict[str, Any]:
    """Keys and values of an extended XYZ comment line: numbers, truth values, text, arrays of them, JSON.

    Raises:
        FileFormatError: a key that stands twice with different values, a quote without an end, no 3x3 matrix where one
            must be.
    """
    found: dict[str, tuple[str, Any]] = {}
    extended = re.search(r"\b(Properties|Lattice)\s*=", comment) is not None
    if not extended:
        # An apostrophe in plain English begins no text in quotes.
        comment = re.sub(r"(?<=\w)'(?=\w)", "", comment)
    for match in _PAIR.finditer(comment):
        key, closed = _unquote(match[1])
        text, ended = ("T", True) if match[2] is None else _unquote(match[3])
        if not extended and match[2] is None:
            # A word of a comment in plain English is no label.
            if key not in per_config_properties:
                found.setdefault(key, ("T", True))
            continue
        if extended and not (closed and ended):
            raise FileFormatError(f"a quote or bracket of {key!r} in the comment line has no end")
        if key.lower() in _KEYS and key != _KEYS[key.lower()]:
            raise FileFormatError(f"the comment line says {key!r}; write {_KEYS[key.lower()]!r}")
        if key in found and found[key][0] != text:
            raise FileFormatError(f"{key} stands twice in the comment line, as {found[key][0]!r} and {text!r}")
        found[key] = text, _value(key, text)
    return {key: value for key, (_, value) in found.items()}


def _unquote(text: str) -> tuple[str, bool]:
    """The text less quotes and escapes, and whether every quote has its end."""
    if _SPECIAL.isdisjoint(text):
        return text, True
    if text[0] == text[-1] == '"' and len(text) > 1 and _SPECIAL.isdisjoint(text[1:-1]):
        return text[1:-1], True
    parts, closed = [], True
    for piece in _PIECES.findall(text):
        end = _QUOTES.get(piece[0])
        if end is not None:
            ended = len(piece) > 1 and piece.endswith(end)
            closed &= ended
            piece = piece[1:-1] if ended else piece[1:]
        parts.append(re.sub(r"\\(.)", r"\1", piece))
    return "".join(parts), closed


def _value(key: str, text: str) -> Any:
    if key in ("Properties", "uid"):
        return text
    words = re.findall(r"[^\s,]+", text)
    value = _numbers_in(words) if words and _is_plain(text) else None
    if key in _MATRICES:
        sizes = (9,) if key == "Lattice" else (9, 6)
        if value is None or value.size not in sizes:
            raise FileFormatError(f"{key} is {text[:60]!r}; {' or '.join(map(str, sizes))} numbers are needed")
        # Fortran's order; six are in ASE's: xx, yy, zz, yz, xz, xy.
        return value.reshape(3, 3, order="F") if value.size == 9 else value
    if value is not None:
        return value[0] if len(value) == 1 else value
    if words and all(word in _BOOLEANS for word in words):
        truths = [_BOOLEANS[word] for word in words]
        return truths[0] if len(truths) == 1 else truths
    if text.startswith("_JSON "):
        content = json.loads(text.removeprefix("_JSON "))
        array = np.array(content) if isinstance(content, list) else None
        return array if array is not None and array.dtype.kind in "ifb" else content
    return text


def _numbers_in(words: Sequence[str]) -> np.ndarray | None:
    """int64 or float64, None where a word is no number."""
    for kind in (int, float):
        try:
            return np.array([kind(word) for word in words], dtype=kind)
        except (ValueError, OverflowError):
            continue
    return None


def _cell(info: dict[str, Any]) -> tuple[np.ndarray | None, Any]:
    lattice = info.pop("Lattice", None)
    pbc = np.ravel(info.pop("pbc", lattice is not None))
    if pbc.size not in (1, 3) or not all(one in (0, 1) for one in pbc.tolist()):
        raise FileFormatError(f"pbc is {pbc.tolist()}; one or three of T and F are needed")
    return None if lattice is None else lattice.T, pbc.astype(bool) if pbc.size == 3 else bool(pbc[0])


def _cell_of_vectors(lines: Sequence[str]) -> tuple[np.ndarray, list[bool]]:
    """The cell of VEC1 to VEC3 after the atoms, an older form."""
    cell = np.zeros((3, 3))
    for i, line in enumerate(lines):
        name, *words = line.split()
        values = _numbers_in(words) if _is_plain(line) else None
        if i > 2 or name != f"VEC{i + 1}" or values is None or values.size != 3:
            raise FileFormatError(f"{line.strip()[:60]!r} where VEC{min(i + 1, 3)} and three numbers should stand")
        cell[i] = values
    return cell, [i < len(lines) for i in range(3)]


# ------------------------------------------------------------------------------------------------------------- the atoms


@lru_cache(maxsize=16)
def parse_properties(text: Any) -> tuple[Column, ...]:
    """The columns that ``Properties`` names, such as species:S:1:pos:R:3.

    Raises:
        FileFormatError: not of this form, a column of two names or twice, too many.
    """
    parts = str(text).split(":")
    columns, start = [], 0
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if kind not in ("R", "I", "S", "L") or not re.fullmatch("[0-9]{1,18}", width, re.ASCII) or int(width) < 1:
            raise FileFormatError(
                f"Properties says {name}:{kind}:{width}; a name, one of R, I, S, L, and a count are needed"
            )
        columns.append(Column(_NAMES.get(name, name), kind, int(width), start))
        start += int(width)
    if len(parts) % 3 or not columns:
        raise FileFormatError(f"Properties says {str(text)[:60]!r}; names, types and counts of columns are needed")
    if start > _MOST_COLUMNS:
        raise FileFormatError(f"Properties claims {start} columns; more than {_MOST_COLUMNS} are not read")
    names = [column.name for column in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FileFormatError(f"Properties names {twice} twice")
    for name, kinds, width in (("symbols", "S", 1), ("numbers", "I", 1), ("positions", "RI", 3), ("forces", "RI", 3)):
        wrong = [c for c in columns if c.name == name and (c.kind not in kinds or c.width != width)]
        if wrong:
            raise FileFormatError(f"Properties says that {name} are {wrong[0].width} columns of type {wrong[0].kind}")
    if not {"symbols", "numbers"} & set(names) or "positions" not in names:
        raise FileFormatError("Properties names no pos, or neither species nor Z")
    return tuple(columns)


def _fields(rows: Sequence[str], columns: Sequence[Column], strict: bool) -> list[tuple[str, ...]]:
    """The columns of text; without Properties, what stands behind the positions is passed over."""
    width = sum(column.width for column in columns)
    split = [row.split() for row in rows]
    for atom, words in enumerate(split):
        if len(words) != width and (strict or len(words) < width):
            raise FileFormatError(f"atom {atom} has {len(words)} columns, not the {width} of Properties")
    return list(zip(*(words[:width] for words in split), strict=True))


def _array(fields: Sequence[tuple[str, ...]], column: Column, plain: bool) -> np.ndarray:
    """``[atoms]``, or ``[atoms, width]``; ``plain`` where every character of the atoms is one of numbers in ASCII."""
    kind, convert = _KINDS[column.kind]
    words = fields[column.start : column.start + column.width]
    try:
        if column.kind in "RI" and not plain and not all(map(_is_plain, chain(*words))):
            raise ValueError
        values = np.array([list(map(convert, one)) for one in words], dtype=kind)
    except (ValueError, KeyError, OverflowError):
        # The first column with a fault, and its first atom.
        wrong = next(one for one in words if not all(_converts(word, column.kind) for word in one))
        atom = next(i for i, word in enumerate(wrong) if not _converts(word, column.kind))
        what = {"R": "a number", "I": "a whole number", "L": "T or F"}[column.kind]
        raise FileFormatError(f"{column.name} of atom {atom}: {wrong[atom][:40]!r} is not {what}") from None
    return values[0] if column.width == 1 else np.ascontiguousarray(values.T)


def _is_plain(text: str) -> bool:
    """Whether no digits of other scripts and no underscores, which Python reads in numbers, are in it."""
    return text.isascii() and "_" not in text


_KINDS: dict[str, tuple[Any, Callable]] = {
    "R": (float, float),
    "I": (np.int32, int),
    "S": (object, str),
    "L": (bool, _BOOLEANS.__getitem__),
}


def _converts(word: str, kind: str) -> bool:
    if kind in "RI" and not _is_plain(word):
        return False
    try:
        np.array(_KINDS[kind][1](word), dtype=_KINDS[kind][0])
    except (ValueError, KeyError, OverflowError):
        return False
    return True


def _numbers(arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Atomic numbers, by symbol or number; both must say the same."""
    symbols, numbers = arrays.pop("symbols", None), arrays.pop("numbers", None)
    if symbols is None:
        return np.zeros(count, int) if numbers is None else numbers
    known = {symbol: atomic_numbers.get(symbol.capitalize()) for symbol in set(symbols)}
    for atom, symbol in enumerate(symbols if None in known.values() else []):
        if known[symbol] is None:
            hint = "; write H, and its mass as masses:R:1" if symbol in ("D", "T") else ""
            raise FileFormatError(f"species of atom {atom}: {symbol[:20]!r} is not an element's symbol{hint}")
    found = np.array([known[symbol] for symbol in symbols], int)
    if numbers is not None and (found != numbers).any():
        atom = int(np.argmax(found != numbers))
        raise FileFormatError(f"atom {atom} is {symbols[atom]} by species and {numbers[atom]} by Z")
    return found


def _constraints(free: np.ndarray) -> Any:
    """What ``move_mask`` says, ``[atoms]`` or ``[atoms, 3]``, true where an atom is free."""
    if free.ndim == 1:
        return FixAtoms(mask=~free)
    if free.shape[1] != 3:
        raise FileFormatError(f"move_mask has {free.shape[1]} columns, not 1 or 3")
    return [FixCartesian(atom, mask=~mask) for atom, mask in enumerate(free)]


_DIGITS = re.compile(r"[-+]?\d*\.?(\d*)([eE][-+]?\d+)?", re.ASCII)


def _check_end(fields: Sequence[tuple[str, ...]], column: Column) -> None:
    """Refuse a last number, without an end of its line, of fewer digits than all others of its kind."""
    if column.kind != "R":
        return
    words = [word for words in fields[column.start : column.start + column.width] for word in words]
    found = [_DIGITS.fullmatch(word) for word in words]
    sizes = [(len(m[1]), len(m[2] or "")) for m in found if m is not None]
    if len(sizes) < len(words) or len(words) < 3:
        return
    *others, last = sizes
    fewest = min(decimals for decimals, _ in others)
    if (fewest > 2 and last[0] < fewest) or last[1] < min(exponent for _, exponent in others):
        raise FileFormatError(
            f"the file has no end of line, and its last number, {words[-1]}, has fewer digits than the others: is it cut "
            "short? Where it is whole, end the line"
        )
