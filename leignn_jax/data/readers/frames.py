"""frame: one labelled structure from numbers."""

from __future__ import annotations

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator


def frame(numbers, positions, *, cell=None, pbc=None, energy=None, forces=None, stress=None, info=None) -> ase.Atoms:
    """One labelled structure; arguments in Å, eV, eV/Å, eV/Å^3, None where there is no such label."""
    atoms = ase.Atoms(
        numbers=np.asarray(numbers, int),
        positions=np.asarray(positions, np.float64),
        cell=None if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        pbc=cell is not None if pbc is None else np.broadcast_to(pbc, 3),
        info=info,
    )
    labels = {"energy": energy, "forces": forces, "stress": stress}
    labels = {name: value for name, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms
