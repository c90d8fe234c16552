"""OC20 S2EF: extended XYZ with a text file of reference energies beside each."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

import ase

from leignn_jax.data.readers.extxyz import read_extxyz
from leignn_jax.errors import FileFormatError


def read_s2ef(path: Path) -> Iterator[ase.Atoms]:
    """OC20 S2EF: the .txt beside each file names system, frame and reference energy, which is subtracted."""
    for file in sorted([*path.glob("*.extxyz.xz"), *path.glob("*.extxyz")]):
        table = file.with_name(file.name.split(".extxyz")[0] + ".txt")
        if not table.exists() and table.with_name(f"{table.name}.xz").exists():
            table = table.with_name(f"{table.name}.xz")
        if not table.exists():
            raise FileFormatError(f"{file}: its {table.name} is missing; without it there are no reference energies.")
        with open(table) if table.suffix == ".txt" else lzma.open(table, "rt") as text:
            lines = [line.split(",") for line in text.read().split()]
        count = 0
        for atoms in read_extxyz(file):
            count += 1
            if count > len(lines):
                continue
            system, number, reference = lines[count - 1]
            atoms.info |= {"system": system, "frame": number}
            if atoms.calc is not None and "energy" in atoms.calc.results:
                atoms.calc.results["energy"] -= float(reference)
            yield atoms
        if count != len(lines):
            raise FileFormatError(f"{table}: {len(lines)} lines for the {count} frames of {file.name}.")
