"""Labels: energy, forces and stress of one frame, wherever its file put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from leignn_jax.errors import DataError

if TYPE_CHECKING:
    import ase

# Where a label may stand, first come first served: names of the calculator's results, of atoms.info or of atoms.arrays.
DEFAULT_KEYS: dict[str, tuple[str, ...]] = {
    "energy": ("energy",),
    "forces": ("forces",),
    "stress": ("stress",),
}


class Labels(NamedTuple):
    """What DFT says of one frame, None where the file says nothing.

    energy: eV, of the whole frame.
    forces: ``[atoms, 3]`` float64, eV/Å.
    stress: ``[3, 3]`` float64, eV/Å^3, ASE's sign.
    """

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def read_labels(atoms: ase.Atoms, name: str = "frame", keys: Mapping[str, str | Sequence[str]] | None = None) -> Labels:
    """The labels of one frame, checked.

    Args:
        atoms: as ASE read it.
        name: what to call the frame in errors, its file and number.
        keys: other places of "energy", "forces" or "stress", such as ``{"energy": "dft_energy"}``; a key names an entry
            of the calculator's results, of ``atoms.info`` or of ``atoms.arrays``.

    Raises:
        DataError: no atoms, a shape that does not fit, a number that is not finite, a key that the frame lacks.
    """
    if len(atoms) == 0:
        raise DataError(f"{name}: no atoms. Take the frame out of the file.")
    found = {}
    for label, default in DEFAULT_KEYS.items():
        wanted = (keys or {}).get(label)
        places = default if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
        found[label] = _find(atoms, places)
        if wanted is not None and found[label] is None:
            known = sorted({*_results(atoms), *atoms.info, *atoms.arrays})
            raise DataError(f"{name}: has no {label} named {' or '.join(places)}; it has {', '.join(known)}.")
    energy, forces, stress = found["energy"], found["forces"], found["stress"]
    if energy is not None:
        energy = np.asarray(energy, np.float64)
        if energy.size != 1:
            raise DataError(f"{name}: the energy has shape {energy.shape}; one number for the frame is needed.")
        energy = float(energy.reshape(()))
        _finite(name, "energy", np.asarray(energy))
    if forces is not None:
        forces = np.asarray(forces, np.float64)
        if forces.shape != (len(atoms), 3):
            raise DataError(f"{name}: forces of shape {forces.shape} for {len(atoms)} atoms.")
        bad = np.flatnonzero(~np.isfinite(forces).all(axis=1))
        if len(bad):
            raise DataError(f"{name}: the force on atom {bad[0]} is {forces[bad[0]]}. Take the frame out of the file.")
    if stress is not None:
        stress = _square(np.asarray(stress, np.float64), name)
        _finite(name, "stress", stress)
    return Labels(energy, forces, stress)


def _results(atoms) -> dict:
    return atoms.calc.results if atoms.calc is not None else {}


def _find(atoms, places):
    for place in places:
        for store in (_results(atoms), atoms.info, atoms.arrays):
            if store.get(place) is not None:
                return store[place]
    return None


def _square(stress: np.ndarray, name: str) -> np.ndarray:
    if stress.size == 9:
        return stress.reshape(3, 3)
    if stress.size == 6:
        xx, yy, zz, yz, xz, xy = stress.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    raise DataError(f"{name}: a stress of shape {stress.shape}; 6 numbers (ASE's Voigt order) or 9 are needed.")


def _finite(name: str, what: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        raise DataError(f"{name}: the {what} is {value}. Take the frame out of the file.")
