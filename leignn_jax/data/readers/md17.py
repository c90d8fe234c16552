"""MD17, rMD17 and sGDML: .npz with energies and forces of one molecule, or of one crystal."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from leignn_jax.data.labels import Keys, places_of
from leignn_jax.data.readers.arrays import as_numbers, check_array, only
from leignn_jax.data.readers.frames import frame
from leignn_jax.data.readers.text import check_ratio
from leignn_jax.data.readers.units import units_said
from leignn_jax.errors import FileFormatError

_NAMES = {
    "numbers": ("nuclear_charges", "z", "atomic_numbers"),
    "positions": ("coords", "R", "coordinates"),
    "energy": ("energies", "E"),
    "forces": ("forces", "F"),
}


def read_md17(path: Path, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """Frames of raw MD17, rMD17 or sGDML, in the file's units; ``keys`` names other arrays of energies and forces."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        check_ratio(path, sum(part.file_size for part in parts), sum(part.compress_size for part in parts))
        if len({part.filename for part in parts}) < len(parts):
            raise FileFormatError(f"{path}: an array stands there twice.")
    named: dict[str, tuple[str, ...]] = {
        label: places_of(label, keys) for label in ("energy", "forces") if label in (keys or {})
    }
    found = {}
    with np.load(path, allow_pickle=False) as file:
        for what, usual in _NAMES.items():
            places: tuple[str, ...] = named.get(what) or usual
            # Nothing else is read: rMD17 holds MD17's own labels too, as much again.
            name = only(places, file, path)
            if name is not None:
                found[what] = file[name]
            elif what != "energy" or what in named:
                raise FileFormatError(f"{path}: has no array {' or '.join(places)}; it has {', '.join(file.files)}.")
        # sGDML's, whose columns are the vectors.
        cell = file["lattice"].T if "lattice" in file else None
    numbers = as_numbers(found["numbers"], f"{path}: {_NAMES['numbers'][0]}")
    positions, forces = found["positions"], found["forces"]
    check_array(positions, f"{path}: positions", (-1, len(numbers), 3))
    check_array(forces, f"{path}: forces", positions.shape)
    if cell is not None:
        check_array(cell, f"{path}: lattice", (3, 3))
    energies = [None] * len(positions)
    if "energy" in found:
        check_array(found["energy"], f"{path}: energies", (len(positions),), (len(positions), 1))
        energies = [float(energy) for energy in found["energy"].reshape(-1)]
    for r, e, f in zip(positions, energies, forces, strict=True):
        labels = {"energy": e, "forces": np.asarray(f, np.float64)}
        # Those that the user names stand where they are looked for.
        info = {places[0]: labels.pop(label) for label, places in named.items()}
        yield frame(numbers, r, cell=cell, info=info, **labels)


def units_of_md17(path: Path) -> str:
    """The key of ``UNITS`` that sGDML's ``e_unit`` and ``r_unit`` name; kcal/mol and Å where they are not there.

    Raises:
        FileFormatError: no .npz; otherwise as :func:`leignn_jax.data.readers.units.units_said`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            said = {name: str(file[name]) for name in ("e_unit", "r_unit") if name in file}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path}: can't be read ({error}). Is it truncated or of another format?") from error
    return units_said(path, {"e_unit": "kcal/mol", **said})
