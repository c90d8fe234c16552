"""Units of labelled files, and frames in eV and Å."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.arguments import numbers_of, shown
from leignn_jax.data.labels import Keys, is_virial, label_of_names
from leignn_jax.errors import ConfigError, FileFormatError

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
# Words of units in files, as eV and Å.
_ENERGIES = {"ev": 1.0, "electronvolt": 1.0, "electronvolts": 1.0, "kcal": KCAL_PER_MOL, "kj": KCAL_PER_MOL / 4.184}
_ENERGIES |= dict.fromkeys(("hartree", "hartrees", "ha", "eh"), HARTREE)
_LENGTHS = dict.fromkeys(("angstrom", "angstroms", "ang", "a", "å", "\u212b"), 1.0)
_LENGTHS |= dict.fromkeys(("bohr", "bohrs"), BOHR)


def units_said(path: Path, said: Mapping[str, str]) -> str:
    """The key of ``UNITS`` that a file names, in words of units by where they stand; eV and Å where it names none.

    Raises:
        FileFormatError: units that are not known, or that contradict each other.
    """
    energies, lengths = {}, {}
    for where, text in said.items():
        for word in re.findall(r"[^\W\d_]+", text.lower()):
            if word in _ENERGIES:
                energies[_ENERGIES[word]] = where
            elif word in _LENGTHS:
                lengths[_LENGTHS[word]] = where
            elif word not in ("mol", "dimensionless", "none"):
                raise FileFormatError(
                    f"{path}: the units {text!r} of {where} are not known. Say them by units= or data.units."
                )
    wanted = tuple(next(iter(found), 1.0) for found in (energies, lengths))
    known = [name for name, factors in UNITS.items() if factors == wanted]
    if len(energies) > 1 or len(lengths) > 1 or not known:
        raise FileFormatError(
            f"{path}: the units {dict(said)} do not fit together, or are none of {list(UNITS)}. Convert the file to one of "
            "these; units= or data.units says which, whatever the file has."
        )
    return known[0]


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
        for name, label in label_of_names(keys).items()
    }
    converted = atoms.copy()
    converted.set_cell(np.asarray(atoms.cell) * length)
    converted.positions *= length
    for store in (converted.info, converted.arrays):
        store |= {name: numbers_of(store[name], name) * factor for name, factor in named.items() if name in store}
    results = {} if atoms.calc is None else atoms.calc.results
    if results:
        converted.calc = SinglePointCalculator(converted)
        converted.calc.results = {
            name: value if value is None or name not in named else numbers_of(value, name) * named[name]
            for name, value in results.items()
        }
    return converted
