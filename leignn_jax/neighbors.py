"""Neighbour lists on the host: every pair of atoms and images within the cutoff, once, for any cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from leignn_jax.errors import StructureError

# Closer than this is two atoms written at the same place, not chemistry.
OVERLAP = 0.01
# Å: farther out float64 rounds by more than 1e-4 Å.
FARTHEST = 5e11
# Å from the origin, up to which float32 rounds by less than 1e-6 Å.
_NEAR = 10.0


class Near(NamedTuple):
    """Positions near the origin, and what was taken off the given ones: positions + images @ cell + center.

    positions: ``[atoms, 3]`` float64, Å.
    images: ``[atoms, 3]`` int64, whole lattice vectors, zero along open directions.
    center: ``[3]`` float64, Å, zero along periodic directions.
    """

    positions: Float[np.ndarray, "atoms 3"]
    images: Int[np.ndarray, "atoms 3"]
    center: Float[np.ndarray, "3"]

    def offsets(self, cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "atoms 3"]:
        """What was taken off each atom, Å, in a ``cell`` [Å] that may have changed since."""
        return self.images @ np.asarray(cell, np.float64) + self.center


def near_origin(
    positions: Float[np.ndarray, "atoms 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, "3"],
    *,
    keep: bool = True,
) -> Near:
    """Positions of the same structure as float32 can hold them, whose rounding grows with the distance from the origin.

    An atom more than one cell outside of the cell comes back into it by whole lattice vectors, along periodic directions;
    along open ones a structure farther away than it is wide loses its center. All others keep the positions that they
    have to the bit, unless ``keep`` is False: then all atoms are put into the cell, and the center at the origin.

    Args:
        positions, cell, pbc: as :func:`find_pairs`.
        keep: what is near already.

    Raises:
        StructureError: as :func:`check_structure`.
    """
    positions, cell = np.ascontiguousarray(positions, np.float64), np.ascontiguousarray(cell, np.float64)
    check_structure(positions, cell, pbc)
    if len(positions) == 0:
        return Near(positions, np.zeros((0, 3), np.int64), np.zeros(3))
    lattice = completed_lattice(cell, pbc)
    along = positions @ np.linalg.inv(lattice)
    whole, low, high = np.floor(along), along.min(0), along.max(0)
    middle, width = 0.5 * (low + high), np.maximum(high - low, _NEAR)
    cells, widths = (1, width) if keep else (0, 0.0)
    images = np.where(pbc & (np.abs(whole) > cells), whole, 0.0).astype(np.int64)
    center = np.where(~pbc & (np.abs(middle) > widths), middle, 0.0) @ lattice
    taken = Near(positions, images, center)
    return taken._replace(positions=positions - taken.offsets(cell))


class Pairs(NamedTuple):
    """Undirected pairs; the vector of pair p is positions[senders] + shifts @ cell - positions[receivers].

    receivers, senders: ``[pairs]`` int32, receivers <= senders, sorted.
    shifts: ``[pairs, 3]`` int32, whole lattice vectors added to the sender; int64 where atoms are 2^31 cells apart.
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
        StructureError: as :func:`check_structure`; two atoms overlap, or the cutoff is not positive.
    """
    from vesin import NeighborList

    if not (np.isfinite(cutoff) and cutoff > 0):
        raise StructureError(f"The cutoff must be a positive number of Å, not {cutoff}.")
    # vesin wants atoms near the cell: the whole vectors taken off for the search are counted into the shifts.
    near = near_origin(positions, cell, pbc, keep=False)
    if len(near.positions) == 0:
        empty = np.zeros(0, np.int32)
        return Pairs(empty, empty, np.zeros((0, 3), np.int32), np.zeros(0))
    lattice = completed_lattice(np.asarray(cell, np.float64), pbc)
    search = NeighborList(cutoff=float(cutoff), full_list=False)
    i, j, shifts, distances = search.compute(near.positions, lattice, pbc, quantities="ijSd")
    i, j = i.astype(np.int64), j.astype(np.int64)
    shifts = shifts.astype(np.int64) + near.images[i] - near.images[j]
    if np.abs(shifts).max(initial=0) < 2**31:
        shifts = shifts.astype(np.int32)

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
    """Raise StructureError where positions or cell are not finite, too far away, or a periodic cell is singular."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise StructureError(
            f"Atom {bad[0]} has the position {positions[bad[0]]}: not a number. {len(bad)} of {len(positions)} atoms "
            "are so; check the file, or the step that made the structure (an exploded simulation?)."
        )
    far = np.flatnonzero((np.abs(positions) > FARTHEST).any(axis=1))
    if len(far):
        raise StructureError(
            f"Atom {far[0]} is at {positions[far[0]].tolist()} Å: so far from the origin numbers are rounded by more than "
            "1e-4 Å. Check the file and its units (Å), or the step that made the structure (an exploded simulation?)."
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
