"""Neighbour lists on the host: every pair of atoms and images within the cutoff, once, for any cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from leignn_jax.errors import StructureError

# Closer than this is two atoms written at the same place, not chemistry.
OVERLAP = 0.01


class Pairs(NamedTuple):
    """Undirected pairs; the vector of pair p is positions[senders] + shifts @ cell - positions[receivers].

    receivers, senders: ``[pairs]`` int32, receivers <= senders, sorted.
    shifts: ``[pairs, 3]`` int32, whole lattice vectors added to the sender.
    distances: ``[pairs]`` float64, Å.
    """

    receivers: Int[np.ndarray, "pairs"]
    senders: Int[np.ndarray, "pairs"]
    shifts: Int[np.ndarray, "pairs 3"]
    distances: Float[np.ndarray, "pairs"]


def find_pairs(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    cutoff: float,
) -> Pairs:
    """All pairs closer than ``cutoff`` Å, images of an atom with itself included, by vesin.

    Positions [Å] may lie outside the cell, the cell [Å, rows] may be triclinic, smaller than the cutoff, periodic in
    some directions or all zero where none is.

    Raises:
        StructureError: a position is not finite, a periodic cell can't be inverted, two atoms overlap, or the cutoff
            is not positive.
    """
    from vesin import NeighborList

    positions = np.ascontiguousarray(positions, np.float64)
    cell = np.ascontiguousarray(cell, np.float64)
    check_structure(positions, cell, pbc)
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise StructureError(f"The cutoff must be a positive number of Å, not {cutoff}.")
    if len(positions) == 0:
        empty = np.zeros(0, np.int32)
        return Pairs(empty, empty, np.zeros((0, 3), np.int32), np.zeros(0))
    lattice = completed_lattice(cell, pbc)
    # vesin wants atoms near the cell: wrap for the search, then count the whole vectors taken off into the shifts.
    moved = np.where(pbc, np.floor(positions @ np.linalg.inv(lattice)), 0.0)
    search = NeighborList(cutoff=float(cutoff), full_list=False)
    i, j, shifts, distances = search.compute(positions - moved @ lattice, lattice, pbc, quantities="ijSd")
    i, j = i.astype(np.int64), j.astype(np.int64)
    shifts = np.rint(shifts + moved[i] - moved[j]).astype(np.int32)

    flip = i > j
    i, j = np.where(flip, j, i), np.where(flip, i, j)
    shifts = np.where(flip[:, None], -shifts, shifts)
    order = np.lexsort((*shifts.T[::-1], j, i))
    i, j, shifts, distances = i[order], j[order], shifts[order], distances[order]

    close = np.flatnonzero(distances < OVERLAP)
    if len(close):
        p = close[0]
        image = "" if not shifts[p].any() else f" (image {tuple(int(s) for s in shifts[p])})"
        raise StructureError(
            f"Atoms {i[p]} and {j[p]}{image} are {distances[p]:.2g} Å apart: they overlap. Remove one of them, or check "
            "the cell and the units of the positions (Å)."
        )
    return Pairs(i.astype(np.int32), j.astype(np.int32), shifts, distances)


def check_structure(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise StructureError where positions or cell are not finite or a periodic cell is singular."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise StructureError(
            f"Atom {bad[0]} has the position {positions[bad[0]]}: not a number. {len(bad)} of {len(positions)} atoms "
            "are so; check the file, or the step that made the structure (an exploded simulation?)."
        )
    if not np.isfinite(cell).all():
        raise StructureError(f"The cell holds a number that is not finite: {cell.tolist()}.")
    if pbc.any():
        lengths = np.linalg.norm(cell, axis=1)
        flat = np.flatnonzero(pbc & (lengths < 1e-6))
        if len(flat):
            raise StructureError(
                f"The structure is periodic along cell vector {flat[0]}, but that vector is zero. Give the cell, or set "
                "atoms.pbc to False in that direction."
            )
        lattice = completed_lattice(cell, pbc)
        if abs(np.linalg.det(lattice / np.linalg.norm(lattice, axis=1, keepdims=True))) < 1e-6:
            raise StructureError(
                f"The cell can't be inverted, its vectors lie in one plane: {cell.tolist()}. Check the lattice vectors "
                "(rows, Å)."
            )


def completed_lattice(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with vectors along non-periodic directions replaced by unit vectors across the periodic ones."""
    periodic = cell[np.asarray(pbc)]
    if len(periodic) == 3:
        return cell
    across = np.linalg.svd(periodic, full_matrices=True)[2][len(periodic) :] if len(periodic) else np.eye(3)
    lattice = cell.copy()
    lattice[~np.asarray(pbc)] = across
    return lattice
