"""Sizes of neighbour lists on the device: planned from a structure on the host, enlarged where they were too small."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from leignn_jax.cells import transformed
from leignn_jax.errors import StructureError
from leignn_jax.neighbors import Pairs, completed_lattice, find_pairs

# Room for fluctuations in planned sizes: bins are cheap; every row of padding among pairs and neighbours is computed.
_SLACK_BIN, _SLACK_NEIGHBORS, _SLACK_PAIRS, _SLACK_HALO = 1.5, 1.15, 1.06, 1.15
# Of dense matter a bin holds several atoms.
_BINS_PER_ATOM = 8

OVERFLOW_BIN, OVERFLOW_NEIGHBORS, OVERFLOW_PAIRS, OVERFLOW_GRID, OVERFLOW_HALO = 1, 2, 4, 8, 16


class ListSizes(NamedTuple):
    """Static sizes of a list.

    bins: along each direction.
    reach: bins to look at to either side.
    bin_atoms: atoms that a bin can hold.
    neighbors: that an atom can have.
    pairs: in all; of one device, where the structure is divided among several.
    domains: devices among which it is divided, see :mod:`leignn_jax.domains`.
    halo: atoms needed from the device 1, 2, ... places further on.
    axis: of the cell, along which it is cut.
    """

    bins: tuple[int, int, int]
    reach: tuple[int, int, int]
    bin_atoms: int
    neighbors: int
    pairs: int
    domains: int = 1
    halo: tuple[int, ...] = ()
    axis: int = 0


def plan_sizes(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float, domains: int = 1) -> ListSizes:
    """Sizes of a list for this structure and others like it; on the host.

    Args:
        positions: ``[atoms, 3]`` Å.
        cell: ``[3, 3]`` Å, rows; zeros in open directions.
        pbc: ``[3]``.
        radius: Å, cutoff and skin.
        domains: devices among which the structure is divided.

    Raises:
        StructureError: as :func:`leignn_jax.neighbors.find_pairs`; a structure too large for 32-bit indices.
    """
    positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
    pairs = find_pairs(positions, cell, pbc, radius)
    degree = np.bincount(np.concatenate([pairs.receivers, pairs.senders]), minlength=len(positions))
    lattice, corner = lattice_and_corner(positions, cell, pbc)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    # Bins a little wider than the radius, so that a cell may shrink before the grid must change.
    bins = np.maximum(1, np.floor(heights / (1.05 * radius)).astype(int))
    # In empty space they are wider still, so that their number does not grow with the distance of a few atoms.
    while bins.prod(dtype=float) > max(_BINS_PER_ATOM * len(positions), 27):
        bins[bins.argmax()] = -(-bins.max() // 2)
    # Fewer bins than three along a periodic direction look at each bin more than once: one bin and its images instead.
    bins = np.where(pbc & (bins < 3), 1, bins)
    reach = np.where(pbc & (bins == 1), np.ceil(1.05 * radius / heights).astype(int), (bins > 1).astype(int))
    images = math.prod(2 * int(m) + 1 for m in reach)
    if len(positions) * images >= 2**31:
        raise StructureError(f"{len(positions)} atoms with {images} images are too many for 32-bit indices.")
    along = fractional(positions, np.linalg.inv(lattice), corner)
    inside = along - whole_vectors(np, along, pbc)
    place = bins_of(np, inside, bins)
    filled = np.bincount(np.ravel_multi_index(tuple(place.T), tuple(bins)), minlength=1)
    alone = int(bins.prod()) == 1
    axis = int(heights.argmax())
    count, halo = len(pairs.receivers), ()
    if domains > 1:
        count, halo = _domain_sizes(inside[:, axis], pairs, domains)
    return ListSizes(
        _triple(bins),
        _triple(reach),
        len(positions) if alone else _with_slack(int(filled.max()), _SLACK_BIN, 4),
        _with_slack(int(degree.max(initial=1)), _SLACK_NEIGHBORS, 4),
        _with_slack(count, _SLACK_PAIRS, 16),
        domains,
        halo,
        axis,
    )


def _domain_sizes(along: Float[np.ndarray, "atoms"], pairs: Pairs, domains: int) -> tuple[int, tuple[int, ...]]:
    """Of the fullest device: its pairs, and atoms needed from those further on; ``along`` orders the atoms."""
    owner = np.empty(len(along), int)
    owner[np.argsort(along, kind="stable")] = np.arange(len(along)) // -(-len(along) // domains)
    ends = np.concatenate([pairs.receivers, pairs.senders]), np.concatenate([pairs.senders, pairs.receivers])
    across = owner[ends[0]] != owner[ends[1]]
    needing, needed = owner[ends[0][across]], ends[1][across]
    within = np.bincount(owner[pairs.receivers[~across[: len(pairs.receivers)]]], minlength=domains)
    count = int((within + np.bincount(needing, minlength=domains)).max())
    needing, needed = np.divmod(np.unique(needing * len(along) + needed), len(along))
    halo = np.zeros((domains, domains), int)
    np.add.at(halo, ((owner[needed] - needing) % domains, needing), 1)
    return count, tuple(_with_slack(int(most), _SLACK_HALO, 16) if most else 0 for most in halo[1:].max(1))


def grown(sizes: ListSizes, overflow: int, atoms: int) -> ListSizes:
    """Sizes with more room where ``overflow`` says that there was too little; ``atoms`` is how many there are."""
    room = sizes._asdict()
    if overflow & OVERFLOW_GRID:
        # The cell has shrunk: fewer bins, or where there is one, more images.
        bins = _triple(n - 1 if n > 3 else 1 for n in sizes.bins)
        reach = _triple(m + 1 if n == 1 else m for n, m in zip(sizes.bins, sizes.reach, strict=True))
        share = math.prod(sizes.bins) / math.prod(bins)
        room |= {"bins": bins, "reach": reach, "bin_atoms": min(math.ceil(sizes.bin_atoms * share), atoms)}
        if math.prod(bins) == 1:
            room["bin_atoms"] = atoms
    if overflow & OVERFLOW_BIN:
        room["bin_atoms"] = min(_with_slack(sizes.bin_atoms, 1.5, 4), atoms)
    if overflow & OVERFLOW_NEIGHBORS:
        room["neighbors"] = _with_slack(sizes.neighbors, 1.25, 4)
    if overflow & OVERFLOW_PAIRS:
        room["pairs"] = _with_slack(sizes.pairs, 1.25, 16)
    if overflow & OVERFLOW_HALO:
        room["halo"] = tuple(_with_slack(size, 1.25, 16) for size in sizes.halo)
    return ListSizes(**room)


def largest(several: list[ListSizes], atoms: int) -> ListSizes:
    """Sizes that serve several structures of at most ``atoms`` atoms each."""
    each = {name: max(getattr(s, name) for s in several) for name in ("bin_atoms", "neighbors", "pairs")}
    if len({(s.bins, s.reach) for s in several}) == 1:
        return several[0]._replace(**each)
    # No common grid: one bin, and as many images as any of them needs.
    reach = tuple(max(s.reach[d] for s in several) for d in range(3))
    return ListSizes((1, 1, 1), reach, **{**each, "bin_atoms": atoms})  # pyright: ignore[reportArgumentType]


def _triple(numbers: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = (int(n) for n in numbers)
    return x, y, z


def _with_slack(size: int, slack: float, step: int) -> int:
    return -(-math.ceil(max(size, 1) * slack) // step) * step


def lattice_and_corner(positions: np.ndarray, cell: np.ndarray, pbc: Bool[np.ndarray, "3"]):
    """Rows of the cell, along open directions of a box around the atoms, and that box's corner."""
    lattice = completed_lattice(cell, pbc)
    corner = np.zeros(3)
    along = positions @ np.linalg.inv(lattice)
    low, high = along.min(0), along.max(0)
    for d in np.flatnonzero(~pbc):
        corner += low[d] * lattice[d]
        lattice[d] = lattice[d] * max(high[d] - low[d], 1e-3)
    return lattice, corner


def fractional(positions, backward, corner):
    """Coordinates ``[atoms, 3]`` in units of the lattice, of positions ``[atoms, 3]`` Å by its inverse ``[3, 3]`` 1/Å."""
    return transformed(positions - corner, backward)


def whole_vectors(xp, along, pbc):
    """The whole lattice vectors ``[atoms, 3]`` that leave of fractional coordinates what is in [0, 1), where periodic."""
    return xp.where(pbc, xp.floor(along), 0.0)


def bins_of(xp, inside, bins):
    """The bin of each atom; atoms outside the box of an open direction count to the bin at its edge."""
    return xp.clip(xp.floor(inside * bins), 0, bins - 1).astype(xp.int32)
