"""Neighbour lists on the device: pairs found and renewed inside a compiled simulation, for any cell.

Atoms are sorted into bins of the wrapped cell, and every atom looks through the bins around its own. Where a direction
is long enough for several bins of the search radius, the bins around are the nearest ones; where it is not, there is one
bin, and "around" means its images, as many as the radius reaches. One search therefore serves large systems in linear
time and cells smaller than the cutoff, in any mixture of periodic and open directions; a minimum-image list is never
made. Sizes of bins and lists are static; a list that does not fit says so in ``overflow`` and must not be used.

The rows of the neighbour table are sorted by atom and image, so that sums over neighbours have one order, whatever the
sizes of the arrays (bits may differ all the same: a model may compute otherwise where a table is wide), and both sides of a
pair find each other by binary search. No gradient passes through a list.
What bounds a renewal is reading candidates: atoms x bins around x atoms per bin.

A structure that is divided among devices has one list on each, of the pairs with that device's atoms (``domain``); which
these are is settled anew by every renewal.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from leignn_jax.cells import inverse, transformed
from leignn_jax.domains import DEVICES, Domain, from_device
from leignn_jax.graph import Graph
from leignn_jax.list_sizes import (
    OVERFLOW_BIN,
    OVERFLOW_GRID,
    OVERFLOW_HALO,
    OVERFLOW_NEIGHBORS,
    OVERFLOW_PAIRS,
    ListSizes,
    bins_of,
    fractional,
    lattice_and_corner,
    plan_sizes,
    whole_vectors,
)
from leignn_jax.mapping import map_in_batches
from leignn_jax.neighbors import check_structure
from leignn_jax.pair_ops import PairLists

# Candidates looked at together: few enough to stay in the cache (measured, 2^16 to 2^22).
_BLOCK_ENTRIES = 1 << 18
# In the place of a neighbour that there is not: after all others.
_NONE = np.iinfo(np.int32).max
# Cells that no atom crosses from one list to the next.
_FARTHEST = 16


@struct.dataclass
class NeighborList:
    """All pairs within ``radius`` of the positions that it was made from. A pytree.

    lists, shifts, pair_mask: as in :class:`leignn_jax.graph.Graph`.
    positions, cell: ``[atoms, 3]`` and ``[3, 3]`` Å, where the list was made.
    numbers: ``[atoms]`` int32, 0 for padding. pbc: ``[3]`` bool.
    box: ``[4, 3]`` Å, rows of a box around the open directions, and its corner.
    cutoff, skin: Å; the list holds pairs up to their sum.
    overflow: int32, 0, or bits of what did not fit: ``OVERFLOW_BIN``, ``_NEIGHBORS``, ``_PAIRS``, ``_GRID``, ``_HALO``;
        see :func:`leignn_jax.list_sizes.grown`.
    renewals: int32, how often it was made anew.
    sizes: see :class:`leignn_jax.list_sizes.ListSizes` (static).
    domain: the atoms that this device's pairs are of, or None where all are.
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
    domain: Domain | None = None

    def graph(self, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"] | None = None) -> Graph:
        """The graph of these positions [Å] with this list's pairs; ``cell`` [Å] None is the list's own."""
        numbers, domain = self.numbers, self.domain
        if domain is not None:
            domain = domain.replace(positions=positions)
            positions, numbers = domain.chosen(positions), domain.chosen(numbers)
        return Graph(
            positions=positions,
            numbers=numbers,
            graph_index=jnp.zeros(numbers.shape, jnp.int32),
            cell=(self.cell if cell is None else cell)[None],
            pbc=self.pbc[None],
            graph_mask=jnp.ones(1, bool),
            shifts=self.shifts,
            pair_mask=self.pair_mask,
            lists=self.lists,
            domain=domain,
        )


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
        positions, cell, pbc: as :func:`leignn_jax.list_sizes.plan_sizes`.
        numbers: ``[atoms]`` atomic numbers, 0 for padding.
        cutoff: Å, of the potential. skin: Å, by which the list reaches farther, so that it lasts for several steps.
        sizes: of the list, None to plan them.
        dtype: of positions and cell.

    Raises:
        StructureError: as :func:`leignn_jax.list_sizes.plan_sizes`.
    """
    before = blank_list(positions, cell, pbc, numbers, cutoff, skin, sizes=sizes, dtype=dtype)
    return _renewed_jit(before, before.positions, before.cell)


@jax.jit
def renewed_each(several: NeighborList) -> NeighborList:
    """The pairs of several lists, the first axis of all arrays, each found at its own positions; one after the other."""
    return jax.lax.map(lambda one: renewed(one, one.positions, one.cell), several)


def blank_list(
    positions, cell, pbc, numbers, cutoff: float, skin: float, *, sizes: ListSizes | None, dtype: Any
) -> NeighborList:
    """A list whose pairs :func:`renewed` is to find, on the host; arguments and errors as :func:`allocate`."""
    positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
    numbers = np.asarray(numbers, np.int32)
    real = numbers > 0
    check_structure(positions[real], cell, pbc)
    lattice, corner = lattice_and_corner(positions[real], cell, pbc)
    return NeighborList(
        lists=None,  # pyright: ignore[reportArgumentType]
        shifts=None,
        pair_mask=None,
        positions=np.asarray(positions, dtype),
        cell=np.asarray(cell, dtype),
        numbers=numbers,
        pbc=pbc,
        box=np.concatenate([lattice, corner[None]]).astype(dtype),
        cutoff=np.asarray(cutoff, dtype),
        skin=np.asarray(skin, dtype),
        overflow=np.zeros((), np.int32),
        renewals=np.zeros((), np.int32),
        sizes=sizes or plan_sizes(positions[real], cell, pbc, cutoff + skin),
    )


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
        lattice = lattice_of(old, cell)
        whole = whole_vectors(jnp, _fractional_once(old, positions, inverse(lattice)), old.pbc)
        # What is no number, or went that far since the last list, is of an exploded structure: it stays where it is, so
        # that what was there before it exploded is not moved by what float32 can't undo.
        far = (jnp.abs(whole) > 1) & (jnp.abs(whole) < _FARTHEST)
        images = jnp.where(far, whole, 0).astype(jnp.int32)
        return _renewed_jit(old, positions - lattice_vectors(images, cell), cell), images

    return _when_due(need, anew, (neighbors, jnp.zeros(positions.shape, jnp.int32)))


def lattice_vectors(images: Int[Array, "... atoms 3"], cell: Float[Array, "... 3 3"]) -> Float[Array, "... atoms 3"]:
    """``images @ cell`` Å."""
    return transformed(images.astype(cell.dtype), cell)


def within_cutoff(
    neighbors: NeighborList, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"]
) -> NeighborList:
    """The list's pairs within the cutoff alone, first in their arrays: the same bits from every list of these sizes that has
    them.

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
    # What is on several devices they renew together.
    for name in (axis, DEVICES if neighbors.domain is not None else None):
        if name is not None:
            need = jax.lax.pmax(need.astype(jnp.int32), name) > 0
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
    old = lattice_of(neighbors, neighbors.cell)
    backward = transformed(inverse(lattice_of(neighbors, cell)), old)  # rows: x_old = x_new @ backward
    stretch = 1.0 + jnp.sqrt(((backward - jnp.eye(3, dtype=backward.dtype)) ** 2).sum())
    # Where the cell is as it was, no rounding of the inverse may tear the list.
    same = (cell == neighbors.cell).all()
    stretch, backward = jnp.where(same, 1.0, stretch), jnp.where(same, jnp.eye(3, dtype=backward.dtype), backward)
    moved = transformed(positions, backward) - neighbors.positions
    moved = jnp.where((neighbors.numbers > 0)[:, None], moved, 0.0)
    # NaN compares false: a list of such positions is renewed, to no end, and the energy is NaN too.
    return stretch * neighbors.cutoff + 2 * jnp.sqrt((moved**2).sum(-1).max()) <= neighbors.cutoff + neighbors.skin


class _Bins(NamedTuple):
    """The atoms of a structure, ready to be searched.

    wrapped: ``[atoms, 3]`` Å, in the cell. inside: the same in units of the cell. whole: ``[atoms, 3]``, what was taken off.
    place: ``[atoms, 3]`` int32, the bin that an atom is in. table: ``[bins, bin_atoms]`` int32, the atoms of a bin, or -1.
    """

    wrapped: Any
    inside: Any
    whole: Any
    place: Any
    table: Any


def renewed(neighbors: NeighborList, positions: Float[Array, "atoms 3"], cell: Float[Array, "3 3"]) -> NeighborList:
    """The list made anew for these positions and cell [Å]; under jit."""
    bins, overflow = _binned(neighbors, positions, cell)
    if neighbors.sizes.domains == 1:
        domain, whole = None, bins.whole
        keys, degree = _keys(neighbors, bins, cell, jnp.arange(positions.shape[0]))
    else:
        domain, keys, degree, missing = _of_domain(neighbors, bins, cell)
        whole = bins.whole[domain.atoms]
        overflow |= OVERFLOW_HALO * missing
    overflow |= OVERFLOW_NEIGHBORS * (degree.max() > neighbors.sizes.neighbors)
    lists, shifts, pair_mask, too_many = _paired(keys, whole, neighbors.sizes)
    overflow |= OVERFLOW_PAIRS * too_many
    return neighbors.replace(
        lists=lists,
        shifts=shifts.astype(positions.dtype),
        pair_mask=pair_mask,
        positions=positions,
        cell=cell,
        overflow=neighbors.overflow | overflow.astype(jnp.int32),
        renewals=neighbors.renewals + 1,
        domain=domain,
    )


def _binned(neighbors: NeighborList, positions, cell) -> tuple[_Bins, Any]:
    """The atoms by bins, and the bits of what overflowed."""
    sizes, pbc, atoms = neighbors.sizes, neighbors.pbc, neighbors.numbers.shape[0]
    lattice = lattice_of(neighbors, cell)
    backward = inverse(lattice)
    along = _fractional_once(neighbors, positions, backward)
    whole = whole_vectors(jnp, along, pbc)
    inside = along - whole
    bins, reach = jnp.array(sizes.bins), jnp.array(sizes.reach)

    # A grid too coarse or too fine for the cell that it has become would miss pairs.
    heights = 1.0 / jnp.linalg.norm(backward, axis=0)
    covered = jnp.where(pbc, reach * heights / bins, jnp.where(bins > 1, heights / bins, jnp.inf))
    # Nor does it hold anything where vectors of another cell lie in one plane with the box of the open directions.
    flat = (lattice[0] * jnp.cross(lattice[1], lattice[2])).sum() == 0
    overflow = OVERFLOW_GRID * ((covered < neighbors.cutoff + neighbors.skin).any() | flat)

    # Atoms sorted by bin, each row of the table the atoms of one.
    place = bins_of(jnp, inside, bins)
    count = math.prod(sizes.bins)
    bin_of = jnp.where(neighbors.numbers > 0, (place * _strides(sizes)).sum(-1), count)
    order = jnp.argsort(bin_of)
    filled = jnp.zeros(count + 1, jnp.int32).at[bin_of].add(1)[:count]
    starts = jnp.cumsum(filled) - filled
    slot = jnp.arange(sizes.bin_atoms)
    table = order[jnp.minimum(starts[:, None] + slot, atoms - 1)]
    table = jnp.where(slot < filled[:, None], table, -1)
    overflow |= OVERFLOW_BIN * (filled.max() > sizes.bin_atoms)
    return _Bins(positions - transformed(whole, lattice), inside, whole, place, table), overflow


def _fractional_once(neighbors: NeighborList, positions, backward):
    """Coordinates in units of the lattice, computed once: by a loop whose only turn no compiler can foresee.

    Left to itself XLA computes them anew in each kernel that needs them, with roundings of its own; an atom at a face of
    the cell is then inside for one kernel and a cell farther for another, and its pairs are lost.
    """

    def turn(_):
        return jnp.zeros((), bool), fractional(positions, backward, neighbors.box[3])

    return jax.lax.while_loop(lambda both: both[0], turn, (neighbors.cutoff >= 0, jnp.zeros_like(positions)))[1]


def _keys(neighbors: NeighborList, bins: _Bins, cell, rows, among=None):
    """Neighbours of the atoms ``rows`` as sorted keys ``[rows, neighbors]`` of atom and image, and how many each has.

    among: ``[atoms]`` bool, which atoms count as neighbours; None for all.
    """
    sizes, pbc, real = neighbors.sizes, neighbors.pbc, neighbors.numbers > 0
    radius, lattice = neighbors.cutoff + neighbors.skin, lattice_of(neighbors, cell)
    grid, reach = jnp.array(sizes.bins), jnp.array(sizes.reach)
    offsets = jnp.array(list(itertools.product(*(range(-m, m + 1) for m in sizes.reach))))
    span, codes = 2 * reach + 1, _codes(sizes)

    def row(i):
        around = bins.place[i] + offsets
        image = jnp.where(pbc, around // grid, 0)
        exists = (pbc | ((around >= 0) & (around < grid))).all(-1)
        index = ((around % grid) * _strides(sizes)).sum(-1)
        others = bins.table[index]
        image_code = (((image[:, 0] + reach[0]) * span[1]) + image[:, 1] + reach[1]) * span[2] + image[:, 2] + reach[2]
        vectors = bins.wrapped[others] + lattice_vectors(image, lattice)[:, None] - bins.wrapped[i]
        close = (vectors**2).sum(-1) < radius**2
        close &= (others >= 0) & exists[:, None] & real[i] & (i < real.shape[0])
        close &= (others != i) | (image != 0).any(-1)[:, None]
        if among is not None:
            close &= among[others]
        keys = jnp.where(close, others * codes + image_code[:, None], _NONE).ravel()
        found = jnp.cumsum(close.ravel())
        first = jnp.searchsorted(found, jnp.arange(1, sizes.neighbors + 1), side="left")
        chosen = jnp.where(first < keys.shape[0], keys[jnp.minimum(first, keys.shape[0] - 1)], _NONE)
        return jnp.sort(chosen), found[-1]

    return map_in_batches(row, rows, max(1, _BLOCK_ENTRIES // (offsets.shape[0] * sizes.bin_atoms)))


def _of_domain(neighbors: NeighborList, bins: _Bins, cell):
    """The atoms of this device and their halo; keys and degrees as of :func:`_keys`, but of these atoms among themselves,
    halo atoms having own ones as neighbours alone; and whether the halo has no room for all.

    Beyond the last atom stands what is no atom.
    """
    sizes, atoms = neighbors.sizes, neighbors.numbers.shape[0]
    own = -(-atoms // sizes.domains)
    device = jax.lax.axis_index(DEVICES)
    along = jnp.where(neighbors.numbers > 0, bins.inside[:, sizes.axis], jnp.inf)
    order = jnp.argsort(along).astype(jnp.int32)
    slabs = jnp.pad(order, (0, own * sizes.domains - atoms), constant_values=atoms).reshape(sizes.domains, own)
    mine = slabs[device]

    keys, degree = _keys(neighbors, bins, cell, mine)
    codes = _codes(sizes)
    touched = jnp.zeros(atoms + 1, bool).at[jnp.where(keys < _NONE, keys // codes, atoms)].set(True)
    owned = jnp.zeros(atoms + 1, bool).at[mine].set(True)

    halo, sends, offsets, missing = [], [], [], jnp.zeros((), bool)
    for offset, size in enumerate(sizes.halo, 1):
        theirs = slabs[(device + offset) % sizes.domains]
        wanted = touched[theirs] & (theirs < atoms)
        count = wanted.sum()
        missing |= count > size
        if size:
            places = jnp.nonzero(wanted, size=size, fill_value=0)[0].astype(jnp.int32)
            slot = jnp.arange(size, dtype=jnp.int32)
            # Sorted and each there once, padding too, which lies beyond their atoms.
            places = jnp.where(slot < count, places, own + slot)
            halo.append(theirs.at[places].get(mode="fill", fill_value=atoms))
            sends.append(from_device(places, -offset, sizes.domains))
            offsets.append(offset)

    here = jnp.concatenate([mine, *halo])
    place_of = jnp.full(atoms + 1, -1, jnp.int32).at[here].set(jnp.arange(here.shape[0], dtype=jnp.int32))
    if halo:
        further = _keys(neighbors, bins, cell, here[own:], among=owned[:atoms])
        keys, degree = (jnp.concatenate(both) for both in zip((keys, degree), further, strict=True))
    place = place_of[jnp.where(keys < _NONE, keys // codes, atoms)]
    keys = jnp.where((keys < _NONE) & (place >= 0), place * codes + keys % codes, _NONE)
    domain = Domain(here, tuple(sends), own, tuple(offsets), sizes.domains, atoms)
    return domain, jnp.sort(keys, axis=1), degree, missing


def _paired(keys, whole, sizes: ListSizes):
    """Pairs of keys, each of which has its opposite in the other atom's row: lists, shifts, mask, and whether they are too
    many. ``whole`` [rows, 3] are the lattice vectors taken off the atoms."""
    codes, rows = _codes(sizes), keys.shape[0]
    # The entry that goes back stands in the other atom's row under this atom and the opposite image.
    valid = keys < _NONE
    here = jnp.arange(rows)[:, None]
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
    too_many = running[-1] > sizes.pairs
    entry = jnp.searchsorted(running, jnp.arange(1, sizes.pairs + 1), side="left")
    pair_mask = entry < running.shape[0]
    entry = jnp.where(pair_mask, entry, 0)
    receivers = jnp.where(pair_mask, entry // sizes.neighbors, 0)
    senders = jnp.where(pair_mask, other.ravel()[entry], 0)
    shifts = _image_of(code.ravel()[entry], sizes) + whole[receivers] - whole[senders]
    numbered = running.reshape(keys.shape) - 1
    pair = jnp.where(forward, numbered, numbered[other, back])
    sign = jnp.where(forward, 1, -1) * valid
    usable = valid & (pair < sizes.pairs)
    lists = PairLists(
        receivers=receivers.astype(jnp.int32),
        senders=senders.astype(jnp.int32),
        neighbors=jnp.where(usable, other, 0).astype(jnp.int32),
        neighbor_pairs=jnp.where(usable, pair, 0).astype(jnp.int32),
        neighbor_signs=jnp.where(usable, sign, 0).astype(jnp.int8),
    )
    return lists, jnp.where(pair_mask[:, None], shifts, 0), pair_mask, too_many


_renewed_jit = jax.jit(renewed)


def without_pairs(neighbors: NeighborList) -> NeighborList:
    """What a list was made from, a twentieth of it: :func:`with_pairs` finds the same pairs again."""
    return neighbors.replace(lists=None, shifts=None, pair_mask=None)


def with_pairs(neighbors: NeighborList) -> NeighborList:
    """A list that was kept :func:`without_pairs`; under jit."""
    again = renewed(neighbors, neighbors.positions, neighbors.cell)
    return again.replace(overflow=neighbors.overflow, renewals=neighbors.renewals)


def _strides(sizes: ListSizes):
    return jnp.array([sizes.bins[1] * sizes.bins[2], sizes.bins[2], 1])


def _codes(sizes: ListSizes) -> int:
    """How many images an atom may be seen in."""
    return math.prod(2 * m + 1 for m in sizes.reach)


def _image_of(code, sizes: ListSizes):
    reach = jnp.array(sizes.reach)
    _, rows, columns = 2 * reach + 1
    return jnp.stack([code // (rows * columns), (code // columns) % rows, code % columns], -1) - reach


def lattice_of(neighbors: NeighborList, cell) -> Float[Array, "3 3"]:
    """``[3, 3]`` Å, the cell with what a list completed it by along open directions."""
    return jnp.where(neighbors.pbc[:, None], cell, neighbors.box[:3])
