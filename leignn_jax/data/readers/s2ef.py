"""OC20 S2EF: extended XYZ with a text file of reference energies beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from leignn_jax.data.readers.extxyz import read_extxyz
from leignn_jax.data.readers.text import read_lines
from leignn_jax.errors import FileFormatError


def read_s2ef(path: Path) -> Iterator[ase.Atoms]:
    """OC20 S2EF: the .txt beside each file names system, frame and reference energy, which is subtracted."""
    for file, table in _parts(path):
        text = "".join(read_lines(table))
        if text and not text.endswith("\n"):
            raise FileFormatError(
                f"{table}: its last line has no end; is it cut short? Where it is whole, end the line."
            )
        lines = [line.split(",") for line in text.split()]
        for i, words in enumerate(lines):
            if len(words) != 3 or _reference(words[2]) is None:
                raise FileFormatError(f"{table}: line {i + 1} is not of the form system,frame,energy.")
        count = 0
        for atoms in read_extxyz(file):
            count += 1
            if count > len(lines):
                continue
            system, number, reference = lines[count - 1]
            atoms.info |= {"system": system, "frame": number}
            results = {} if atoms.calc is None else atoms.calc.results
            for name in results.keys() & {"energy", "free_energy"}:
                results[name] = results[name] - _reference(reference)
            yield atoms
        if count != len(lines):
            raise FileFormatError(f"{table}: {len(lines)} lines for the {count} frames of {file.name}.")


def _parts(path: Path) -> list[tuple[Path, Path]]:
    """Each file of frames with its table, none missing."""
    frames = _by_name(path, ".extxyz")
    tables = _by_name(path, ".txt")
    for name, file in frames.items():
        if name not in tables:
            raise FileFormatError(f"{file}: its {name}.txt is missing; without it there are no reference energies.")
    numbered = {name for name in tables if name.isdigit()}
    for name in sorted(numbered - frames.keys()):
        raise FileFormatError(f"{tables[name]}: its {name}.extxyz.xz is missing; a part of the set is not there.")
    numbers = sorted(int(name) for name in frames if name.isdigit())
    gaps = sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if numbers else []
    if gaps:
        raise FileFormatError(f"{path}: part {gaps[0]} is missing between {numbers[0]} and {numbers[-1]}.")
    return [(file, tables[name]) for name, file in frames.items()]


def _by_name(path: Path, suffix: str) -> dict[str, Path]:
    """Files of a kind, plain or packed, by their names without it."""
    found: dict[str, Path] = {}
    for file in sorted([*path.glob(f"*{suffix}"), *path.glob(f"*{suffix}.xz")]):
        name = file.name.removesuffix(".xz").removesuffix(suffix)
        if name in found:
            raise FileFormatError(f"{path}: {found[name].name} and {file.name} are the same part. Take one away.")
        found[name] = file
    return found


def _reference(word: str) -> float | None:
    """eV, None where it is no finite number."""
    try:
        value = float(word) if word.isascii() and "_" not in word else np.nan
    except ValueError:
        return None
    return value if np.isfinite(value) else None
