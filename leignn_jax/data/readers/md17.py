"""MD17 and rMD17: .npz with energies and forces of one molecule."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from leignn_jax.data.readers.arrays import as_numbers, check_array, only
from leignn_jax.data.readers.frames import frame
from leignn_jax.data.readers.text import check_ratio
from leignn_jax.errors import FileFormatError

_NAMES = {
    "numbers": ("nuclear_charges", "z", "atomic_numbers"),
    "positions": ("coords", "R", "coordinates"),
    "energy": ("energies", "E"),
    "forces": ("forces", "F"),
}


def read_md17(path: Path) -> Iterator[ase.Atoms]:
    """Frames of raw MD17 or rMD17, in the file's units."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        check_ratio(path, sum(part.file_size for part in parts), sum(part.compress_size for part in parts))
        if len({part.filename for part in parts}) < len(parts):
            raise FileFormatError(f"{path}: an array stands there twice.")
    found = {}
    with np.load(path, allow_pickle=False) as file:
        for what, places in _NAMES.items():
            # Nothing else is read: rMD17 holds MD17's own labels too, as much again.
            name = only(places, file, path)
            if name is None:
                raise FileFormatError(f"{path}: has no array {' or '.join(places)}; it has {', '.join(file.files)}.")
            found[what] = file[name]
    numbers = as_numbers(found["numbers"], f"{path}: {_NAMES['numbers'][0]}")
    positions, energies, forces = found["positions"], found["energy"], found["forces"]
    check_array(positions, f"{path}: positions", (-1, len(numbers), 3))
    check_array(forces, f"{path}: forces", positions.shape)
    check_array(energies, f"{path}: energies", (len(positions),), (len(positions), 1))
    for r, e, f in zip(positions, energies.reshape(-1), forces, strict=True):
        yield frame(numbers, r, energy=float(e), forces=np.asarray(f, np.float64))
