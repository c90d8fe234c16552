"""Neighbour lists on the host: every pair of atoms and images within the cutoff, once, for any cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from leignn_jax.arguments import check_array
from leignn_jax.errors import ConfigError, StructureError

# Closer than this is two atoms written at the same place, not chemistry.
OVERLAP = 0.01
# More neighbours than this are a wrong unit or a wrong cutoff: solids have about a thousand within 13 Å.
MOST_NEIGHBORS = 10_000
# Where there are more cells, vesin makes them larger, and where one direction has none left it divides by zero.
_MOST_CELLS = 1e5
# Å: farther out float64 rounds by more than 1e-4 Å.
FARTHEST = 5e11
# Å: the cube of a longer one is no number.
_LONGEST = 1e90
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
    have to the bit, unless ``keep`` is False: then all atoms are put into the cell.

    Args:
        positions, cell, pbc: as :func:`find_pairs`.
        keep: what is near already.

    Raises:
        StructureError: as :func:`check_structure`.
    """
    positions, cell, pbc = _checked(positions, cell, pbc)
    check_structure(positions, cell, pbc)
    if len(positions) == 0:
        return Near(positions, np.zeros((0, 3), np.int64), np.zeros(3))
    lattice = completed_lattice(cell, pbc)
    along = positions @ np.linalg.inv(lattice)
    whole, low, high = np.floor(along), along.min(0), along.max(0)
    middle, width = 0.5 * (low + high), np.maximum(high - low, _NEAR)
    images = np.where(pbc & (np.abs(whole) > (1 if keep else 0)), whole, 0.0).astype(np.int64)
    center = np.where(~pbc & (np.abs(middle) > width), middle, 0.0) @ lattice
    taken = Near(positions, images, center)
    return taken._replace(positions=positions - taken.offsets(cell))


def _checked(positions, cell, pbc) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [atoms, 3] and [3, 3], bool [3], contiguous; StructureError where they are no such arrays."""
    checked = []
    for name, value, shape, kinds, dtype in (
        ("positions", positions, (None, 3), "iuf", np.float64),
        ("cell", cell, (3, 3), "iuf", np.float64),
        ("pbc", pbc, (3,), "biu", bool),
    ):
        try:
            checked.append(np.ascontiguousarray(check_array(name, value, shape, kinds), dtype))
        except ConfigError as error:
            raise StructureError(str(error)) from None
    return tuple(checked)


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
        StructureError: as :func:`check_structure`; two atoms overlap, the cutoff is not positive, or there would be more
            than ``MOST_NEIGHBORS`` neighbours per atom.
    """
    from vesin import NeighborList

    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float | np.number) or not 0 < cutoff <= _LONGEST:
        raise StructureError(f"The cutoff must be a positive number of Å, not {cutoff!r:.60}.")
    # vesin wants atoms near the cell: the whole vectors taken off for the search are counted into the shifts.
    near, pbc = near_origin(positions, cell, pbc, keep=False), np.asarray(pbc, bool)
    if len(near.positions) == 0:
        empty = np.zeros(0, np.int32)
        return Pairs(empty, empty, np.zeros((0, 3), np.int32), np.zeros(0))
    lattice = completed_lattice(np.asarray(cell, np.float64), pbc)
    wrapped, box, radius = _searchable(near.positions, lattice, pbc, float(cutoff))
    search = NeighborList(cutoff=radius, full_list=False)
    i, j, shifts, distances = search.compute(wrapped, box, pbc, quantities="ijSd")
    if radius > cutoff:
        i, j, shifts, distances = (x[distances < cutoff] for x in (i, j, shifts, distances))
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


def _searchable(positions, lattice, pbc, cutoff: float):
    """Positions, lattice and radius with which vesin finds the same pairs, in a bounded number of cells.

    Raises:
        StructureError: more than ``MOST_NEIGHBORS`` neighbours per atom, estimated from the density.
    """
    radius = cutoff
    widths = _widths(positions, lattice, pbc)
    if _cells(widths, radius).prod() > _MOST_CELLS:
        positions, lattice = _compacted(positions, lattice, pbc, cutoff)
        widths = _widths(positions, lattice, pbc)
    _refuse_crowd(positions, lattice, widths, pbc, cutoff)
    cells = _cells(widths, radius)
    if cells.min() * np.cbrt(_MOST_CELLS / cells.prod()) < 2:
        # Flat or drawn out: vesin's own enlargement would leave no cell across.
        while _cells(widths, radius).prod() > 0.9 * _MOST_CELLS:
            radius *= 1.1
    return positions, lattice, radius


def _widths(positions, lattice, pbc) -> np.ndarray:
    """Å between the faces of the cell, in open directions between the outermost atoms."""
    inverse = np.linalg.inv(lattice)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    return np.where(pbc, heights, np.ptp(positions @ inverse, axis=0) * heights)


def _cells(widths, radius: float) -> np.ndarray:
    return np.maximum(1.0, np.floor(widths / radius))


def _compacted(positions, lattice, pbc, cutoff: float):
    """Atoms and lattice less the empty space that no pair reaches across: layers wider than two cutoffs become so wide."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    places = positions @ np.linalg.inv(lattice) * heights
    shorter = lattice.copy()
    for d in range(3):
        order = np.argsort(places[:, d])
        along = places[order, d]
        firsts = np.flatnonzero(np.diff(along, prepend=-np.inf) > 2 * cutoff)
        lengths = along[np.append(firsts[1:], len(along)) - 1] - along[firsts]
        begins = np.cumsum(lengths + 2 * cutoff) - lengths - 2 * cutoff
        group = np.searchsorted(firsts, np.arange(len(along)), side="right") - 1
        places[order, d] = along - along[firsts][group] + begins[group]
        if pbc[d]:
            around = min(heights[d] - along[-1] + along[0], 2 * cutoff)
            shorter[d] *= (begins[-1] + lengths[-1] + around) / heights[d]
    return places @ (lattice / heights[:, None]), shorter


def _refuse_crowd(positions, lattice, widths, pbc, cutoff: float) -> None:
    # Atoms in a sphere of the cutoff; open directions, whose vectors have length one, at least as wide as that.
    volume = abs(np.linalg.det(lattice)) * np.where(pbc, 1.0, np.maximum(widths, 2 * cutoff)).prod()
    expected = np.pi / 6 * len(positions) * (2 * cutoff) ** 3 / volume
    if len(positions) > MOST_NEIGHBORS:
        # Atoms of one cube are all within the cutoff of each other.
        cubes = np.floor((positions - positions.min(0)) / (cutoff / np.sqrt(3))).astype(np.int64)
        _, filled = np.unique(cubes, axis=0, return_counts=True)
        expected = max(expected, float((filled.astype(float) ** 2).sum()) / len(positions))
    if expected > MOST_NEIGHBORS:
        raise StructureError(
            f"An atom would have about {expected:.2g} neighbours within {cutoff:g} Å, more than {MOST_NEIGHBORS:,}. Check "
            "the units of positions and cell (Å), or take a shorter cutoff."
        )


def check_structure(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise StructureError where positions or cell are not finite or too large, or a periodic cell is singular."""
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
    if np.abs(cell).max() > FARTHEST:
        raise StructureError(f"The cell holds a number beyond {FARTHEST:.0e} Å: {cell.tolist()}. Check its units (Å).")
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
