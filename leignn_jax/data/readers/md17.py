"""MD17 and rMD17: .npz with energies and forces of one molecule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from leignn_jax.data.readers.frames import frame
from leignn_jax.errors import FileFormatError


def read_md17(path: Path) -> Iterator[ase.Atoms]:
    names = {
        "numbers": ("nuclear_charges", "z", "atomic_numbers"),
        "positions": ("coords", "R", "coordinates"),
        "energy": ("energies", "E"),
        "forces": ("forces", "F"),
    }
    found = {}
    with np.load(path, allow_pickle=False) as file:
        for what, places in names.items():
            match = [place for place in places if place in file.files]
            if not match:
                raise FileFormatError(f"{path}: has no array {' or '.join(places)}; it has {', '.join(file.files)}.")
            # Nothing else is read: rMD17 holds MD17's own labels too, as much again.
            found[what] = file[match[0]]
    energies = np.asarray(found["energy"], np.float64).reshape(-1)
    positions, forces = found["positions"], found["forces"]
    if positions.shape != forces.shape or len(positions) != len(energies):
        raise FileFormatError(
            f"{path}: {len(energies)} energies, positions {positions.shape} and forces {forces.shape} do not fit together."
        )
    for r, e, f in zip(positions, energies, forces, strict=True):
        yield frame(found["numbers"], r, energy=e, forces=np.asarray(f, np.float64))
