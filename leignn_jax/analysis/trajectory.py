"""A trajectory as arrays: what every analysis takes, made from ``ase.Atoms`` or handed over as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike

from leignn_jax.arguments import check_number, check_structures, numbers_of, shown
from leignn_jax.errors import ConfigError, DataError, ElementError


class Trajectory(NamedTuple):
    """Frames of one system, float64 on the host.

    positions: ``[frames, atoms, 3]`` Å, as they came; see :func:`unwrap`.
    numbers: ``[atoms]`` int, atomic numbers.
    cell: ``[frames, 3, 3]`` Å, rows are lattice vectors.
    pbc: ``[3]`` bool.
    masses: ``[atoms]`` amu.
    velocities: ``[frames, atoms, 3]`` Å/fs; zero where the frames have none.
    """

    positions: np.ndarray
    numbers: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    masses: np.ndarray
    velocities: np.ndarray


def from_ase(frames: Atoms | Sequence[Atoms]) -> Trajectory:
    """One frame or a list of them as arrays.

    Raises:
        DataError: there is no frame, or frames differ in their elements, their order or their periodicity.
    """
    if not isinstance(frames, Atoms) and hasattr(frames, "__len__") and len(frames) == 0:
        raise DataError("There is no frame to analyse.")
    frames = check_structures(frames, "frames")
    first = frames[0]
    for i, atoms in enumerate(frames):
        if not np.array_equal(atoms.numbers, first.numbers):
            raise DataError(
                f"Frame {i} ({atoms.get_chemical_formula()}) has other atoms, or another order of them, than frame 0 "
                f"({first.get_chemical_formula()}): analyse each system on its own."
            )
        if (atoms.pbc != first.pbc).any():
            raise DataError(f"Frame {i} has pbc {atoms.pbc.tolist()}, frame 0 has {first.pbc.tolist()}.")
    return Trajectory(
        positions=np.stack([a.positions for a in frames]),
        numbers=first.numbers.copy(),
        cell=np.stack([a.cell.array for a in frames]),
        pbc=first.pbc.copy(),
        masses=first.get_masses(),
        # ASE's unit of time is Å sqrt(amu/eV).
        velocities=np.stack([a.get_velocities() for a in frames]) * units.fs,
    )


def unwrap(positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> np.ndarray:
    """Positions ``[frames, atoms, 3]`` without the jumps of atoms put back into the cell, Å.

    Each atom is taken to move by less than half a cell vector from one frame to the next. The first frame stays.

    Args:
        positions: ``[frames, atoms, 3]`` Å.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å.
        pbc: ``[3]`` bool.
    """
    positions = as_frames(positions, "positions")
    cell = as_cells(cell, len(positions))
    pbc = as_pbc(pbc)
    if not pbc.any():
        return positions.copy()
    lattice = np.stack([_lattice(c, pbc) for c in cell])
    fractional = np.einsum("tai,tij->taj", positions, np.linalg.inv(lattice))
    jumps = np.where(pbc, np.rint(np.diff(fractional, axis=0)), 0.0)
    fractional[1:] -= np.cumsum(jumps, axis=0)
    return np.einsum("tai,tij->taj", fractional, lattice)


def without_drift(series: ArrayLike, masses: ArrayLike) -> np.ndarray:
    """Positions or velocities ``[frames, atoms, 3]`` relative to the centre of mass of the whole system.

    Args:
        series: ``[frames, atoms, 3]`` unwrapped positions in Å or velocities in Å/fs.
        masses: ``[atoms]`` amu.
    """
    series = as_frames(series, "series")
    masses = as_masses(masses, series.shape[1])
    return series - np.einsum("tai,a->ti", series, masses / masses.sum())[:, None]


def as_frames(series: ArrayLike, name: str, *, finite: bool = True) -> np.ndarray:
    """float64 ``[frames, atoms, 3]``; DataError for another shape, no frame, no atom, or, if asked, a NaN."""
    series = numbers_of(series, f"The {name}")
    if series.ndim != 3 or series.shape[2] != 3 or 0 in series.shape:
        raise DataError(f"The {name} must be [frames, atoms, 3], not {list(series.shape)}.")
    bad = np.argwhere(~np.isfinite(series).all(axis=2))
    if finite and len(bad):
        raise DataError(
            f"The {name} of frame {bad[0][0]}, atom {bad[0][1]} are not finite: did the simulation explode? Analyse the "
            "frames before that one."
        )
    return series


def as_cells(cell: ArrayLike, frames: int) -> np.ndarray:
    """float64 ``[frames, 3, 3]`` from one cell for all frames or from one for each."""
    cell = numbers_of(cell, "The cell")
    if cell.shape not in ((3, 3), (frames, 3, 3)):
        raise DataError(f"The cell must be [3, 3] or [frames, 3, 3] with {frames} frames, not {list(cell.shape)}.")
    return np.broadcast_to(cell, (frames, 3, 3))


def as_numbers(numbers: ArrayLike, atoms: int) -> np.ndarray:
    """int ``[atoms]``, one atomic number for each atom."""
    numbers = numbers_of(numbers, "The atomic numbers")
    if numbers.shape != (atoms,):
        raise DataError(f"The atomic numbers must be [{atoms}], one for each atom, not {list(numbers.shape)}.")
    known = (numbers == np.rint(numbers)) & (numbers >= 1) & (numbers < len(chemical_symbols))
    if not known.all():
        index = int(np.argmin(known))
        raise DataError(
            f"Atom {index} has the atomic number {numbers[index]:g}: give 1 to {len(chemical_symbols) - 1}."
        )
    return numbers.astype(np.int64)


def as_masses(masses: ArrayLike | None, atoms: int, numbers: np.ndarray | None = None) -> np.ndarray:
    """float64 ``[atoms]`` amu; where there are none, the standard masses of these atomic ``numbers``."""
    if masses is None and numbers is not None:
        return atomic_masses[numbers]
    masses = numbers_of(masses, "The mass of the atoms")
    if masses.shape != (atoms,):
        raise DataError(f"The masses must be [{atoms}], one for each atom, not {list(masses.shape)}.")
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(bad):
        raise DataError(f"Atom {bad[0]} has the mass {masses[bad[0]]:g}: give a positive number of amu.")
    return masses


def as_pbc(pbc: ArrayLike) -> np.ndarray:
    """bool ``[3]`` from one for each direction or one for all."""
    try:
        array = np.asarray(pbc)
    except (ValueError, TypeError):
        array = np.asarray(None)
    if array.shape not in ((), (3,)) or array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
        raise DataError(f"pbc must be three of True and False, or one for all, not {shown(pbc)}.")
    return np.broadcast_to(array.astype(bool), 3).copy()


def check_timestep(timestep: float) -> float:
    """fs between frames."""
    return check_number("timestep, the time between frames in fs,", timestep, positive=True)


def element(symbol: str | int, numbers: np.ndarray) -> int:
    """The atomic number of a symbol (or of a number) that is among ``numbers``; ElementError otherwise."""
    if not isinstance(symbol, str | int | np.integer) or isinstance(symbol, bool):
        raise ConfigError(f"An element is a symbol, not {shown(symbol)}.")
    number = atomic_numbers.get(symbol, -1) if isinstance(symbol, str) else int(symbol)
    if number not in numbers:
        there = ", ".join(chemical_symbols[z] for z in np.unique(numbers))
        raise ElementError(f"There is no {symbol!r} among the atoms: they are {there}.")
    return number


def _lattice(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with vectors across the others where a direction that is not periodic has none; one that it has counts, since
    atoms may move along it. DataError where it can't be inverted."""
    missing = ~pbc & (np.linalg.norm(cell, axis=1) < 1e-9)
    lattice = cell.copy()
    if not np.isfinite(cell).all():
        raise DataError(f"The cell holds a number that is not finite: {cell.tolist()}.")
    lattice[missing] = np.linalg.svd(cell[~missing], full_matrices=True)[2][3 - missing.sum() :]
    if abs(np.linalg.det(lattice)) < 1e-9:
        raise DataError(f"The cell can't be inverted: {cell.tolist()}. Give the lattice vectors as rows, in Å.")
    return lattice
