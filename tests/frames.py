"""Labelled frames that are quick to make: copper by ASE's EMT."""

from __future__ import annotations

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


def copper(count: int = 8, seed: int = 0, sizes=((1, 1, 1),), stress: bool = True) -> list[ase.Atoms]:
    """Rattled copper cells of 4 atoms times ``sizes``, with energy, forces and stress."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        atoms = bulk("Cu", cubic=True).repeat(sizes[i % len(sizes)])
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if stress:
            results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def silicon_with_oxygen():
    """Four atoms of two elements off their sites, in a cell smaller than a cutoff."""
    atoms = bulk("Si") * (2, 1, 1)
    atoms.symbols[1] = "O"
    atoms.rattle(0.1, seed=0)
    return atoms
