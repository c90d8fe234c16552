"""Reference energies: what one atom of each element contributes, taken off before training."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.data.table import FrameTable
from leignn_jax.errors import DataError


def fit_reference_energies(table: FrameTable) -> dict[str, float]:
    """Reference energies in eV by least squares of the energy per atom, in float64; none where no frame has an energy.

    Frames of one composition are one row, their mean weighted by their number: the same normal equations as a row for
    each frame, and a matrix that does not grow with the frames. Where compositions do not tell elements apart (one
    molecule, one crystal) the solution of least norm is taken: their sum over a frame is right, the single numbers mean
    nothing.
    """
    table = table.take(np.flatnonzero(np.isfinite(table.energy)))
    if not len(table.kind):
        return {}
    per_atom = table.energy / table.atoms
    # The mean first and the rest by least squares: total energies of thousands of eV leave no digits else.
    mean = float(per_atom.mean())
    kinds, row = np.unique(table.kind, return_inverse=True)
    frames = np.bincount(row)
    rest = np.bincount(row, per_atom - mean) / frames
    elements = table.present()
    counts = table.counts[kinds][:, [table.elements.index(e) for e in elements]].astype(np.float64)
    shares = counts / counts.sum(1, keepdims=True)
    weights = np.sqrt(frames)
    solution = np.linalg.lstsq(weights[:, None] * shares, weights * rest, rcond=1e-8)[0]
    return {e: float(mean + x) for e, x in zip(elements, solution, strict=True)}


def residual_energies(table: FrameTable, references: dict[str, float]) -> np.ndarray:
    """``[frames]`` eV/atom, the energies less their references; NaN where there is no energy."""
    values = np.array([references.get(e, 0.0) for e in table.elements])
    return (table.energy - (table.counts @ values)[table.kind]) / table.atoms


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


def reference_energy(numbers: np.ndarray, references: dict[str, float]) -> float:
    """Sum of the reference energies of a structure's atoms in eV, float64; ``numbers`` [atoms] are atomic numbers."""
    return float(sum(references[chemical_symbols[z]] for z in numbers))
