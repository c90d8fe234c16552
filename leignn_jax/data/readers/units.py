"""Units of labelled files, and frames in eV and Å."""

from __future__ import annotations

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

KCAL_PER_MOL = 0.04336411531  # eV
HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å

# (eV per unit of energy, Å per unit of length)
UNITS: dict[str, tuple[float, float]] = {
    "eV/angstrom": (1.0, 1.0),
    "kcal/mol/angstrom": (KCAL_PER_MOL, 1.0),
    "kJ/mol/angstrom": (KCAL_PER_MOL / 4.184, 1.0),
    "hartree/angstrom": (HARTREE, 1.0),
    "hartree/bohr": (HARTREE, BOHR),
}


def convert(atoms: ase.Atoms, energy: float, length: float) -> ase.Atoms:
    """A frame whose energies and lengths are in units of ``energy`` eV and ``length`` Å, in eV and Å."""
    factors = {"energy": energy, "free_energy": energy, "forces": energy / length, "stress": energy / length**3}
    results = {} if atoms.calc is None else atoms.calc.results
    converted = atoms.copy()
    converted.set_cell(np.asarray(atoms.cell) * length)
    converted.positions *= length
    if results:
        converted.calc = SinglePointCalculator(
            converted, **{name: np.asarray(value) * factors.get(name, 1.0) for name, value in results.items()}
        )
    return converted
