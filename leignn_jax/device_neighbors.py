"""Neighbour lists on the device: pairs found and renewed inside a compiled simulation, for any cell.

Atoms are sorted into bins of the wrapped cell, and every atom looks through the bins around its own. Where a direction
is long enough for several bins of the search radius, the bins around are the nearest ones; where it is not, there is one
bin, and "around" means its images, as many as the radius reaches. One search therefore serves large systems in linear
time and cells smaller than the cutoff, in any mixture of periodic and open directions; a minimum-image list is never
made. Sizes of bins and lists are static; a list that does not fit says so in ``overflow`` and must not be used.

The rows of the neighbour table are sorted by atom and image, so that sums over neighbours have one order whatever the
sizes of the arrays, and both sides of a pair find each other by binary search. No gradient passes through a list.
What bounds a renewal is reading candidates: atoms x bins around x atoms per bin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from leignn_jax.cells import inverse, transformed
from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph
from leignn_jax.neighbors import check_structure, completed_lattice, find_pairs
from leignn_jax.pair_ops import PairLists

# Room for fluctuations in planned sizes: bins are cheap; every row of padding among pairs and neighbours is computed.
_SLACK_BIN, _SLACK_NEIGHBORS, _SLACK_PAIRS = 1.5, 1.15, 1.06
# Of dense matter a bin holds several atoms.
_BINS_PER_ATOM = 8
# Candidates looked at together: few enough to stay in the cache (measured, 2^16 to 2^22).
_BLOCK_ENTRIES = 1 << 18


OVERFLOW_BIN, OVERFLOW_NEIGHBORS, OVERFLOW_PAIRS, OVERFLOW_GRID = 1, 2, 4, 8


class ListSizes(NamedTuple):
    """Static sizes of a list.

    bins: along each direction.
    reach: bins to look at to either side.
    bin_atoms: atoms that a bin can hold.
    neighbors: that an atom can have.
    pairs: in all.
    """

    bins: tuple[int, int, int]
    reach: tuple[int, int, int]
    bin_atoms: int
    neighbors: int
    pairs: int


@struct.dataclass
class NeighborList:
    """All pairs within ``radius`` of the positions that it was made from. A pytree.

    lists, shifts, pair_mask: as in :class:`leignn_jax.graph.Graph`.
    positions, cell: ``[atoms, 3]`` and ``[3, 3]`` Å, where the list was made.
    numbers: ``[atoms]`` int32, 0 for padding. pbc: ``[3]`` bool.
    box: ``[4, 3]`` Å, rows of a box around the open directions, and its corner.
    cutoff, skin: Å; the list holds pairs up to their sum.
    overflow: int32, 0, or bits of what did not fit: ``OVERFLOW_BIN``, ``_NEIGHBORS``, ``_PAIRS``, ``_GRID``; see
        :func:`grown`.
    renewals: int32, how often it was made anew.
    sizes: see :class:`ListSizes` (static).
    """

    lists: PairLists
    shifts: Any
    pair_mask: Any
    positions: Any
    cell: Any
    numbers: Any
    pbc: Any
    box: Any
    cutoff: Any
    skin: Any
    overflow: Any
    renewals: Any
    sizes: ListSizes = struct.field(pytree_node=False)

    def graph(self, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"] | None = None) -> Graph:
        """The graph of these positions [Å] with this list's pairs; ``cell`` [Å] None is the list's own."""
        return Graph(
            positions=positions,
            numbers=self.numbers,
            graph_index=jnp.zeros(self.numbers.shape, jnp.int32),
            cell=(self.cell if cell is None else cell)[None],
            pbc=self.pbc[None],
            graph_mask=jnp.ones(1, bool),
            shifts=self.shifts,
            pair_mask=self.pair_mask,
            lists=self.lists,
        )


def plan_sizes(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float) -> ListSizes:
    """Sizes of a list for this structure and others like it; on the host.

    Args:
        positions: ``[atoms, 3]`` Å.
        cell: ``[3, 3]`` Å, rows; zeros in open directions.
        pbc: ``[3]``.
        radius: Å, cutoff and skin.

    Raises:
        StructureError: as :func:`leignn_jax.neighbors.find_pairs`; a structure too large for 32-bit indices.
    """
    positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
    pairs = find_pairs(positions, cell, pbc, radius)
    degree = np.bincount(np.concatenate([pairs.receivers, pairs.senders]), minlength=len(positions))
    lattice, corner = _lattice_and_corner(positions, cell, pbc)
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
    place = _bins_of(np, _fractional(np, positions, np.linalg.inv(lattice), corner, pbc)[0], bins)
    filled = np.bincount(np.ravel_multi_index(tuple(place.T), tuple(bins)), minlength=1)
    alone = int(bins.prod()) == 1
    return ListSizes(
        _triple(bins),
        _triple(reach),
        len(positions) if alone else _with_slack(int(filled.max()), _SLACK_BIN, 4),
        _with_slack(int(degree.max(initial=1)), _SLACK_NEIGHBORS, 4),
        _with_slack(len(pairs.receivers), _SLACK_PAIRS, 16),
    )


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


def allocate(
    positions,
    cell,
    pbc,
    numbers,
    cutoff: float,
    skin: float = 0.5,
    *,
    sizes: ListSizes | None = None,
    dtype: Any = np.float32,
) -> NeighborList:
    """A new list; on the host.

    Args:
        positions, cell, pbc: as :func:`plan_sizes`.
        numbers: ``[atoms]`` atomic numbers, 0 for padding.
        cutoff: Å, of the potential. skin: Å, by which the list reaches farther, so that it lasts for several steps.
        sizes: of the list, None to plan them.
        dtype: of positions and cell.

    Raises:
        StructureError: as :func:`plan_sizes`.
    """
    positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
    numbers = np.asarray(numbers, np.int32)
    real = numbers > 0
    check_structure(positions[real], cell, pbc)
    lattice, corner = _lattice_and_corner(positions[real], cell, pbc)
    sizes = sizes or plan_sizes(positions[real], cell, pbc, cutoff + skin)
    empty = NeighborList(
        lists=None,  # pyright: ignore[reportArgumentType]
        shifts=None,
        pair_mask=None,
        positions=jnp.asarray(positions, dtype),
        cell=jnp.asarray(cell, dtype),
        numbers=jnp.asarray(numbers),
        pbc=jnp.asarray(pbc),
        box=jnp.asarray(np.concatenate([lattice, corner[None]]), dtype),
        cutoff=jnp.asarray(cutoff, dtype),
        skin=jnp.asarray(skin, dtype),
        overflow=jnp.zeros((), jnp.int32),
        renewals=jnp.zeros((), jnp.int32),
        sizes=sizes,
    )
    return _renewed_jit(empty, empty.positions, empty.cell)


def update(
    neighbors: NeighborList,
    positions: Float[Array, "atoms 3"],
    cell: Float[Array, "3 3"] | None = None,
    axis: str | None = None,
) -> NeighborList:
    """The same list while it holds all pairs within the cutoff, else a new one; under jit.

    With F the deformation of the cell since the list was made and u an atom's displacement beyond it, a pair that is now
    within the cutoff was then within ``|F^-1| (cutoff + 2 |u|)``: the list holds while that is at most cutoff + skin.

    Args:
        neighbors: to go on with; once ``overflow`` is set it stays so.
        positions: Å. cell: Å, None for the list's own.
        axis: name of a vmapped axis whose members are renewed together, so that none is where none needs it.
    """
    neighbors, positions, cell, need = _due(neighbors, positions, cell, axis)
    return _when_due(need, lambda old: _renewed_jit(old, positions, cell), neighbors)


def update_near(
    neighbors: NeighborList,
    positions: Float[Array, "atoms 3"],
    cell: Float[Array, "3 3"] | None = None,
    axis: str | None = None,
) -> tuple[NeighborList, Int[Array, "atoms 3"]]:
    """As :func:`update`; a new list is that of atoms taken back into the cell if they were more than one cell outside.

    Also returns the whole lattice vectors that its positions are less than those given, int32, zero where the list holds
    on: so positions stay near the origin, where float32 rounds little, and the caller counts what was taken off.
    """
    neighbors, positions, cell, need = _due(neighbors, positions, cell, axis)

    def anew(before):
        old, _ = before
        lattice = _lattice(old, cell)
        _, whole = _fractional(jnp, positions, inverse(lattice), old.box[3], old.pbc)
        # What is no number, or would fill the counter, is of an exploded structure: it stays where it is.
        far = (jnp.abs(whole) > 1) & (jnp.abs(whole) < 2**30)
        images = jnp.where(far, whole, 0).astype(jnp.int32)
        return _renewed_jit(old, positions - lattice_vectors(images, cell), cell), images

    return _when_due(need, anew, (neighbors, jnp.zeros(positions.shape, jnp.int32)))


def lattice_vectors(images: Int[Array, "... atoms 3"], cell: Float[Array, "... 3 3"]) -> Float[Array, "... atoms 3"]:
    """``images @ cell`` Å."""
    return transformed(images.astype(cell.dtype), cell)


def within_cutoff(
    neighbors: NeighborList, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"]
) -> NeighborList:
    """The list's pairs within the cutoff alone, first in their arrays: the same bits from every list that holds them.

    Which pairs beyond the cutoff a list has depends on where it was made, and with their places in the arrays the order of
    sums. This one depends on nothing but the positions [Å] and the cell [Å].
    """
    lists = neighbors.lists
    ends = positions[lists.senders] - positions[lists.receivers] + lattice_vectors(neighbors.shifts, cell)
    inside = neighbors.pair_mask & ((ends**2).sum(-1) < neighbors.cutoff**2)
    places = jnp.cumsum(inside) - 1
    order = jnp.argsort(~inside, stable=True)
    kept = inside[order]

    here = (lists.neighbor_signs != 0) & inside[lists.neighbor_pairs]
    columns = jnp.argsort(~here, axis=1, stable=True)
    filled = jnp.take_along_axis(here, columns, 1)

    def packed(table):
        return jnp.where(filled, jnp.take_along_axis(table, columns, 1), 0)

    return neighbors.replace(
        lists=PairLists(
            receivers=jnp.where(kept, lists.receivers[order], 0),
            senders=jnp.where(kept, lists.senders[order], 0),
            neighbors=packed(lists.neighbors),
            neighbor_pairs=jnp.where(filled, places[packed(lists.neighbor_pairs)], 0),
            neighbor_signs=packed(lists.neighbor_signs),
        ),
        shifts=jnp.where(kept[:, None], neighbors.shifts[order], 0.0),
        pair_mask=kept,
    )


def _due(neighbors: NeighborList, positions, cell, axis: str | None):
    """List, positions and cell, through which no gradient passes, and whether the list must be made anew for them."""
    neighbors, positions, cell = jax.lax.stop_gradient((neighbors, positions, cell))
    now: Array = neighbors.cell if cell is None else cell
    need = ~_holds(neighbors, positions, now)
    if axis is not None:
        need = jax.lax.pmax(need.astype(jnp.int32), axis) > 0
    return neighbors, positions, now, need


def _when_due(need, renew, before):
    """``renew(before)`` where there is need, else ``before``.

    A loop of one turn or none: what stays as it is stays where it is. A condition copies every array of a list in each of
    its branches, 0.1 GB a step for 100,000 atoms; of several systems side by side it takes both branches at every step.
    """

    def turn(both):
        return jnp.zeros_like(both[0]), renew(both[1])

    return jax.lax.while_loop(lambda both: both[0], turn, (need, before))[1]


def _holds(neighbors: NeighborList, positions, cell):
    old = _lattice(neighbors, neighbors.cell)
    backward = transformed(inverse(_lattice(neighbors, cell)), old)  # rows: x_old = x_new @ backward
    stretch = 1.0 + jnp.sqrt(((backward - jnp.eye(3, dtype=backward.dtype)) ** 2).sum())
    # Where the cell is as it was, no rounding of the inverse may tear the list.
    same = (cell == neighbors.cell).all()
    stretch, backward = jnp.where(same, 1.0, stretch), jnp.where(same, jnp.eye(3, dtype=backward.dtype), backward)
    moved = transformed(positions, backward) - neighbors.positions
    moved = jnp.where((neighbors.numbers > 0)[:, None], moved, 0.0)
    # NaN compares false: a list of such positions is renewed, to no end, and the energy is NaN too.
    return stretch * neighbors.cutoff + 2 * jnp.sqrt((moved**2).sum(-1).max()) <= neighbors.cutoff + neighbors.skin


def renewed(neighbors: NeighborList, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"]) -> NeighborList:
    """The list made anew for these positions and cell [Å]; under jit."""
    sizes, pbc, atoms = neighbors.sizes, neighbors.pbc, neighbors.numbers.shape[0]
    real = neighbors.numbers > 0
    radius = neighbors.cutoff + neighbors.skin
    lattice, corner = _lattice(neighbors, cell), neighbors.box[3]
    backward = inverse(lattice)
    inside, whole = _fractional(jnp, positions, backward, corner, pbc)
    wrapped = positions - transformed(whole, lattice)
    bins, reach = jnp.array(sizes.bins), jnp.array(sizes.reach)

    # A grid too coarse or too fine for the cell that it has become would miss pairs.
    heights = 1.0 / jnp.linalg.norm(backward, axis=0)
    covered = jnp.where(pbc, reach * heights / bins, jnp.where(bins > 1, heights / bins, jnp.inf))
    overflow = OVERFLOW_GRID * (covered < radius).any()

    # Bins: atoms sorted by bin, each row of the table the atoms of one.
    place = _bins_of(jnp, inside, bins)
    strides = jnp.array([sizes.bins[1] * sizes.bins[2], sizes.bins[2], 1])
    count = math.prod(sizes.bins)
    bin_of = jnp.where(real, (place * strides).sum(-1), count)
    order = jnp.argsort(bin_of)
    filled = jnp.zeros(count + 1, jnp.int32).at[bin_of].add(1)[:count]
    starts = jnp.cumsum(filled) - filled
    slot = jnp.arange(sizes.bin_atoms)
    table = order[jnp.minimum(starts[:, None] + slot, atoms - 1)]
    table = jnp.where(slot < filled[:, None], table, -1)
    overflow |= OVERFLOW_BIN * (filled.max() > sizes.bin_atoms)

    # Candidates of every atom, those within the radius as keys (atom, image), sorted.
    offsets = jnp.array(list(itertools.product(*(range(-m, m + 1) for m in sizes.reach))))
    span = 2 * reach + 1
    codes = math.prod(2 * m + 1 for m in sizes.reach)
    none = jnp.iinfo(jnp.int32).max

    def row(i):
        around = place[i] + offsets
        image = jnp.where(pbc, around // bins, 0)
        exists = (pbc | ((around >= 0) & (around < bins))).all(-1)
        index = ((around % bins) * strides).sum(-1)
        others = table[index]
        image_code = (((image[:, 0] + reach[0]) * span[1]) + image[:, 1] + reach[1]) * span[2] + image[:, 2] + reach[2]
        vectors = wrapped[others] + lattice_vectors(image, lattice)[:, None] - wrapped[i]
        close = (vectors**2).sum(-1) < radius**2
        close &= (others >= 0) & exists[:, None] & real[i]
        close &= (others != i) | (image != 0).any(-1)[:, None]
        keys = jnp.where(close, others * codes + image_code[:, None], none).ravel()
        found = jnp.cumsum(close.ravel())
        first = jnp.searchsorted(found, jnp.arange(1, sizes.neighbors + 1), side="left")
        chosen = jnp.where(first < keys.shape[0], keys[jnp.minimum(first, keys.shape[0] - 1)], none)
        return jnp.sort(chosen), found[-1]

    block = max(1, min(atoms, _BLOCK_ENTRIES // (offsets.shape[0] * sizes.bin_atoms)))
    keys, degree = jax.lax.map(row, jnp.arange(atoms), batch_size=block)
    overflow |= OVERFLOW_NEIGHBORS * (degree.max() > sizes.neighbors)

    # The entry that goes back stands in the other atom's row under this atom and the opposite image.
    valid = keys < none
    here = jnp.arange(atoms)[:, None]
    other, code = jnp.where(valid, keys // codes, 0), jnp.where(valid, keys % codes, 0)
    wanted = here * codes + (codes - 1 - code)
    low, high = jnp.zeros_like(keys), jnp.full_like(keys, sizes.neighbors)
    for _ in range(sizes.neighbors.bit_length()):
        middle = (low + high) // 2
        before = keys[other, middle] < wanted
        low, high = jnp.where(before, middle + 1, low), jnp.where(before, high, middle)
    back = jnp.minimum(low, sizes.neighbors - 1)
    # A distance that is the radius to rounding may be within it from one end only: such a pair is none.
    valid &= keys[other, back] == wanted

    # A pair's number is its place among the entries that go forward: to a later atom, or a later image of itself.
    forward = valid & ((other > here) | ((other == here) & (code > codes // 2)))
    running = jnp.cumsum(forward.ravel())
    overflow |= OVERFLOW_PAIRS * (running[-1] > sizes.pairs)
    entry = jnp.searchsorted(running, jnp.arange(1, sizes.pairs + 1), side="left")
    pair_mask = entry < running.shape[0]
    entry = jnp.where(pair_mask, entry, 0)
    receivers = jnp.where(pair_mask, entry // sizes.neighbors, 0)
    senders = jnp.where(pair_mask, other.ravel()[entry], 0)
    image = _image_of(code.ravel()[entry], span, reach)
    shifts = image + whole[receivers] - whole[senders]
    numbered = running.reshape(keys.shape) - 1
    pair = jnp.where(forward, numbered, numbered[other, back])
    sign = jnp.where(forward, 1, -1) * valid
    usable = valid & (pair < sizes.pairs)

    dtype = positions.dtype
    return neighbors.replace(
        lists=PairLists(
            receivers=receivers.astype(jnp.int32),
            senders=senders.astype(jnp.int32),
            neighbors=jnp.where(usable, other, 0).astype(jnp.int32),
            neighbor_pairs=jnp.where(usable, pair, 0).astype(jnp.int32),
            neighbor_signs=jnp.where(usable, sign, 0).astype(jnp.int8),
        ),
        shifts=jnp.where(pair_mask[:, None], shifts, 0).astype(dtype),
        pair_mask=pair_mask,
        positions=positions,
        cell=cell,
        overflow=neighbors.overflow | overflow.astype(jnp.int32),
        renewals=neighbors.renewals + 1,
    )


_renewed_jit = jax.jit(renewed)


def without_pairs(neighbors: NeighborList) -> NeighborList:
    """What a list was made from, a twentieth of it: :func:`with_pairs` finds the same pairs again."""
    return neighbors.replace(lists=None, shifts=None, pair_mask=None)


def with_pairs(neighbors: NeighborList) -> NeighborList:
    """A list that was kept :func:`without_pairs`; under jit."""
    again = renewed(neighbors, neighbors.positions, neighbors.cell)
    return again.replace(overflow=neighbors.overflow, renewals=neighbors.renewals)


def _image_of(code, span, reach):
    z = code % span[2]
    y = (code // span[2]) % span[1]
    x = code // (span[1] * span[2])
    return jnp.stack([x, y, z], -1) - reach


def _lattice_and_corner(positions: np.ndarray, cell: np.ndarray, pbc: Bool[np.ndarray, "3"]):
    """Rows of the cell, along open directions of a box around the atoms, and that box's corner."""
    lattice = completed_lattice(cell, pbc)
    corner = np.zeros(3)
    along = positions @ np.linalg.inv(lattice)
    low, high = along.min(0), along.max(0)
    for d in np.flatnonzero(~pbc):
        corner += low[d] * lattice[d]
        lattice[d] = lattice[d] * max(high[d] - low[d], 1e-3)
    return lattice, corner


def _lattice(neighbors: NeighborList, cell):
    return jnp.where(neighbors.pbc[:, None], cell, neighbors.box[:3])


def _fractional(xp, positions, backward, corner, pbc):
    """Coordinates in units of the lattice, wrapped into [0, 1) where periodic, and the whole vectors taken off."""
    along = transformed(positions - corner, backward)
    whole = xp.where(pbc, xp.floor(along), 0.0)
    return along - whole, whole


def _bins_of(xp, inside, bins):
    """The bin of each atom; atoms outside the box of an open direction count to the bin at its edge."""
    return xp.clip(xp.floor(inside * bins), 0, bins - 1).astype(xp.int32)
