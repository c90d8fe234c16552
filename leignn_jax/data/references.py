"""Reference energies: what one atom of each element contributes, taken off before training."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.errors import DataError


def elements_of(frames: Sequence[ase.Atoms]) -> tuple[str, ...]:
    """Symbols of all elements in ``frames``, by atomic number."""
    numbers = sorted({int(z) for atoms in frames for z in np.unique(atoms.numbers)})
    return tuple(chemical_symbols[z] for z in numbers)


def fit_reference_energies(frames: Sequence[ase.Atoms], energies: Sequence[float]) -> dict[str, float]:
    """Reference energies in eV by least squares of the energy per atom, in float64.

    Where compositions do not tell elements apart (one molecule, one crystal) the solution of least norm is taken: their
    sum over a frame is right, the single numbers mean nothing.

    Args:
        frames: structures.
        energies: eV, of each whole frame.
    """
    elements = elements_of(frames)
    numbers = np.array([chemical_symbols.index(e) for e in elements])
    counts = np.array([(atoms.numbers[:, None] == numbers).sum(0) for atoms in frames], np.float64)
    atoms = counts.sum(1)
    # The mean first and the rest by least squares: total energies of thousands of eV leave no digits else.
    mean = float(np.mean(np.asarray(energies, np.float64) / atoms))
    rest = np.asarray(energies, np.float64) / atoms - mean
    solution = np.linalg.lstsq(counts / atoms[:, None], rest, rcond=1e-8)[0]
    return {e: float(mean + x) for e, x in zip(elements, solution, strict=True)}


def isolated_atom_energies(frames: Sequence[ase.Atoms], energies: Sequence[float]) -> dict[str, float]:
    """Reference energies in eV from frames that hold a single atom each.

    Raises:
        DataError: two frames of one element with different energies, or a frame of more than one atom.
    """
    found: dict[str, float] = {}
    for index, (atoms, energy) in enumerate(zip(frames, energies, strict=True)):
        if len(atoms) != 1:
            raise DataError(f"Frame {index} has {len(atoms)} atoms; frames of isolated atoms have one.")
        symbol = atoms.get_chemical_symbols()[0]
        if abs(found.setdefault(symbol, float(energy)) - energy) > 1e-6:
            raise DataError(f"Two isolated atoms of {symbol} with energies {found[symbol]} and {energy} eV.")
    return found


def reference_energy(atoms: ase.Atoms, references: dict[str, float]) -> float:
    """Sum of the reference energies of a structure's atoms in eV, float64."""
    return float(sum(references[symbol] for symbol in atoms.get_chemical_symbols()))
