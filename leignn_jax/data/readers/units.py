"""Units of labelled files, and frames in eV and Å."""

from __future__ import annotations

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.arguments import numbers_of, shown
from leignn_jax.data.labels import DEFAULT_KEYS, Keys, is_virial, places_of
from leignn_jax.errors import ConfigError

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


def unit_factors(units: str | None) -> tuple[float, float]:
    """The energy in eV and the length in Å of a key of ``UNITS``, eV and Å where there is none; ConfigError for another."""
    if units is not None and (not isinstance(units, str) or units not in UNITS):
        raise ConfigError(f"units: {shown(units)} is not known. One of {list(UNITS)}.")
    return UNITS[units] if units is not None else (1.0, 1.0)


def convert(atoms: ase.Atoms, energy: float, length: float, keys: Keys | None = None) -> ase.Atoms:
    """A frame whose energies and lengths are in units of ``energy`` eV and ``length`` Å, in eV and Å.

    Labels are converted under every name under which :func:`leignn_jax.data.read_labels` finds them.
    """
    factors = {"energy": energy, "forces": energy / length, "stress": energy / length**3}
    named = {
        name: energy if label == "stress" and is_virial(name) else factors[label]
        for label in DEFAULT_KEYS
        for name in {*DEFAULT_KEYS[label], *places_of(label, keys)}
    }
    converted = atoms.copy()
    converted.set_cell(np.asarray(atoms.cell) * length)
    converted.positions *= length
    for store in (converted.info, converted.arrays):
        store |= {name: numbers_of(store[name], name) * factor for name, factor in named.items() if name in store}
    results = {} if atoms.calc is None else atoms.calc.results
    if results:
        converted.calc = SinglePointCalculator(
            converted, **{name: np.asarray(value) * named.get(name, 1.0) for name, value in results.items()}
        )
    return converted
