"""Graph: atoms, cells and pairs of one structure or of a batch, as arrays of static shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import DTypeLike

from leignn_jax.arguments import check_atoms
from leignn_jax.cells import transformed
from leignn_jax.domains import DEVICES, Domain
from leignn_jax.errors import StructureError
from leignn_jax.neighbors import Pairs, find_pairs, near_origin
from leignn_jax.pair_ops import PairLists, pair_difference, pair_divergence

if TYPE_CHECKING:
    import ase


@struct.dataclass
class Graph:
    """One structure, or several side by side, with all pairs within a cutoff. A pytree; padding has atomic number 0.

    positions: ``[atoms, 3]`` float, Å.
    numbers: ``[atoms]`` int32, atomic numbers, 0 for padding.
    graph_index: ``[atoms]`` int32, the structure that an atom belongs to.
    cell: ``[graphs, 3, 3]`` float, Å, rows are lattice vectors, zeros for molecules.
    pbc: ``[graphs, 3]`` bool.
    graph_mask: ``[graphs]`` bool, False for padding.
    shifts: ``[pairs, 3]`` float, whole lattice vectors added to the pair's sender.
    pair_mask: ``[pairs]`` bool, False for padding.
    lists: which atoms form which pairs, see :class:`leignn_jax.pair_ops.PairLists`.
    domain: of a structure that is divided among devices, what this one has: its own atoms and then those around them. None
        where the graph has them all, as everywhere but in a simulation of one system on several devices.

    A model that reaches beyond an atom's neighbours by :meth:`around`, :meth:`sum_atoms`, :meth:`sum_pairs` and
    :attr:`all_positions` alone works on divided structures too.
    """

    positions: Any
    numbers: Any
    graph_index: Any
    cell: Any
    pbc: Any
    graph_mask: Any
    shifts: Any
    pair_mask: Any
    lists: PairLists
    domain: Domain | None = None

    @staticmethod
    def from_ase(atoms: ase.Atoms, cutoff: float, dtype: DTypeLike = np.float32) -> Graph:
        """The graph of one structure, unpadded, with NumPy arrays; raises as :func:`leignn_jax.neighbors.find_pairs`.

        Positions are those of ``atoms``, or where these are far from the origin those of
        :func:`leignn_jax.neighbors.near_origin`: the same structure, of which float32 rounds nothing away.

        Args:
            atoms: any cell and periodicity; its arrays are read, never changed.
            cutoff: Å; all images closer than this count.
            dtype: of positions and cell.
        """
        numbers = np.asarray(check_atoms(atoms).numbers, np.int32)
        cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc, bool)
        positions = near_origin(atoms.positions, cell, pbc).positions
        pairs = find_pairs(positions, cell, pbc, cutoff)
        return Graph.from_pairs(positions, numbers, cell, pbc, pairs, dtype)

    @staticmethod
    def from_pairs(positions, numbers, cell, pbc, pairs: Pairs, dtype: DTypeLike = np.float32) -> Graph:
        """The graph of one structure from pairs found before; arguments as in :func:`find_pairs`."""
        has_pairs = len(pairs.receivers) > 0
        none = np.zeros(1, np.int32)
        lists = pair_lists(pairs.receivers, pairs.senders, len(numbers))
        return Graph(
            positions=np.asarray(positions, dtype),
            numbers=np.asarray(numbers, np.int32),
            graph_index=np.zeros(len(numbers), np.int32),
            cell=np.asarray(cell, dtype)[None],
            pbc=np.asarray(pbc, bool)[None],
            graph_mask=np.ones(1, bool),
            shifts=np.asarray(pairs.shifts, dtype) if has_pairs else np.zeros((1, 3), dtype),
            pair_mask=np.full(len(pairs.receivers) or 1, has_pairs),
            lists=lists if has_pairs else lists.replace(receivers=none, senders=none),
        )

    @staticmethod
    def batch(graphs: Sequence[Graph]) -> Graph:
        """Several graphs side by side in one, on the host."""
        if not isinstance(graphs, list | tuple) or not all(isinstance(one, Graph) for one in graphs):
            raise StructureError("A batch is made of a list of graphs; Graph.from_ase makes them.")
        if not graphs:
            raise StructureError("A batch needs at least one graph.")
        atoms = np.cumsum([0, *(g.positions.shape[0] for g in graphs)])
        pairs = np.cumsum([0, *(g.shifts.shape[0] for g in graphs)])
        count = np.cumsum([0, *(g.num_graphs for g in graphs)])
        width = max(g.lists.neighbors.shape[1] for g in graphs)

        def join(get, offsets=None):
            parts = [np.asarray(get(g)) for g in graphs]
            if offsets is not None:
                parts = [p + np.asarray(o, p.dtype) for p, o in zip(parts, offsets, strict=False)]
            return np.concatenate(parts)

        def table(get, offsets):
            return join(lambda g: _widen(np.asarray(get(g)), width), offsets)

        lists = PairLists(
            receivers=join(lambda g: g.lists.receivers, atoms),
            senders=join(lambda g: g.lists.senders, atoms),
            neighbors=table(lambda g: g.lists.neighbors, atoms),
            neighbor_pairs=table(lambda g: g.lists.neighbor_pairs, pairs),
            neighbor_signs=table(lambda g: g.lists.neighbor_signs, None),
        )
        return Graph(
            positions=join(lambda g: g.positions),
            numbers=join(lambda g: g.numbers),
            graph_index=join(lambda g: g.graph_index, count),
            cell=join(lambda g: g.cell),
            pbc=join(lambda g: g.pbc),
            graph_mask=join(lambda g: g.graph_mask),
            shifts=join(lambda g: g.shifts),
            pair_mask=join(lambda g: g.pair_mask),
            lists=lists,
        )

    def pad(
        self,
        atoms: int | None = None,
        pairs: int | None = None,
        neighbors: int | None = None,
        graphs: int | None = None,
    ) -> Graph:
        """The same graph with arrays of these sizes, filled up with masked entries; None keeps a size. On the host.

        Raises:
            StructureError: a size is smaller than what the graph holds.
        """
        shape = self.shape
        wanted = [w if w is not None else s for w, s in zip((atoms, pairs, neighbors, graphs), shape, strict=True)]
        for name, want, have in zip(("atoms", "pairs", "neighbors", "graphs"), wanted, shape, strict=True):
            if want < have:
                raise StructureError(f"Can't pad to {want} {name}: the graph has {have}.")
        atoms, pairs, neighbors, graphs = wanted
        lists = self.lists

        def table(x):
            return _lengthen(_widen(np.asarray(x), neighbors), atoms)

        return Graph(
            positions=_lengthen(self.positions, atoms),
            numbers=_lengthen(self.numbers, atoms),
            graph_index=_lengthen(self.graph_index, atoms),
            cell=_lengthen(self.cell, graphs),
            pbc=_lengthen(self.pbc, graphs),
            graph_mask=_lengthen(self.graph_mask, graphs),
            shifts=_lengthen(self.shifts, pairs),
            pair_mask=_lengthen(self.pair_mask, pairs),
            lists=PairLists(
                receivers=_lengthen(lists.receivers, pairs),
                senders=_lengthen(lists.senders, pairs),
                neighbors=table(lists.neighbors),
                neighbor_pairs=table(lists.neighbor_pairs),
                neighbor_signs=table(lists.neighbor_signs),
            ),
        )

    def pad_to_bucket(self) -> Graph:
        """The same graph padded to the next bucket sizes, so that similar structures share one compiled program."""
        atoms, pairs, neighbors, graphs = self.shape
        return self.pad(bucket(atoms, 4), bucket(pairs, 16), bucket(neighbors, 4), graphs)

    def unbatch(self) -> list[Graph]:
        """The structures of a batch one by one, without padding, on the host."""
        host = {k: np.asarray(getattr(self, k)) for k in ("positions", "numbers", "graph_index", "shifts", "pair_mask")}
        receivers, senders = np.asarray(self.lists.receivers), np.asarray(self.lists.senders)
        real = host["numbers"] > 0
        out = []
        for g in np.flatnonzero(np.asarray(self.graph_mask)):
            mine = np.flatnonzero(real & (host["graph_index"] == g))
            place = np.full(len(real), -1, np.int32)
            place[mine] = np.arange(len(mine))
            keep = host["pair_mask"] & (place[receivers] >= 0)
            pairs = Pairs(
                place[receivers[keep]],
                place[senders[keep]],
                host["shifts"][keep].astype(np.int32),
                np.zeros(keep.sum()),
            )
            out.append(
                Graph.from_pairs(
                    host["positions"][mine],
                    host["numbers"][mine],
                    np.asarray(self.cell)[g],
                    np.asarray(self.pbc)[g],
                    pairs,
                    host["positions"].dtype,
                )
            )
        return out

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Array sizes: atoms, pairs, neighbours per atom, graphs; padding included."""
        return (*self.positions.shape[:1], *self.shifts.shape[:1], self.lists.neighbors.shape[1], self.cell.shape[0])

    @property
    def num_graphs(self) -> int:
        """Number of structures, padding included."""
        return self.cell.shape[0]

    @property
    def atom_mask(self):
        """``[atoms]`` bool, False for padding."""
        return self.numbers > 0

    def vectors(self):
        """``[pairs, 3]`` Å, from each pair's receiver to its sender; differentiable in positions and cell."""
        if self.num_graphs == 1:
            offsets = transformed(self.shifts, self.cell[0])
        else:
            cells = self.cell[self.graph_index[self.lists.receivers]]
            offsets = transformed(self.shifts[:, None], cells)[:, 0]
        return pair_difference(self.lists, self.positions) + offsets

    def sum_atoms(self, values):
        """Sum over the atoms of each structure, ``[atoms, ...]`` to ``[graphs, ...]``, padding left out.

        A product with a 0/1 matrix, so that neither it nor its derivative needs a scatter.
        """
        values = self.own(values)
        return self._total(jnp.einsum("ga,a...->g...", self._membership(values.dtype), values, precision="highest"))

    def sum_pairs(self, values):
        """Sum over the pairs of each structure, ``[pairs, ...]`` to ``[graphs, ...]``; padding counts."""
        if self.num_graphs == 1:
            return self._total(values.sum(0)[None])
        of_graph = self.graph_index[self.lists.receivers] == jnp.arange(self.num_graphs)[:, None]
        return self._total(jnp.einsum("gp,p...->g...", of_graph.astype(values.dtype), values, precision="highest"))

    def spread(self, values):
        """Give each atom its structure's value, ``[graphs, ...]`` to ``[atoms, ...]``, zero for padding."""
        return jnp.einsum("ga,g...->a...", self._membership(values.dtype), values, precision="highest")

    @property
    def all_positions(self):
        """``[atoms, 3]`` Å of all atoms, of a divided structure also those of other devices."""
        return self.positions if self.domain is None else self.domain.positions

    def own(self, values):
        """Of values of atoms, those that are to be computed here: all of them, but of a divided structure the first ones."""
        return values if self.domain is None else values[: self.domain.own]

    def around(self, values):
        """Of own atoms' values, ``[own, ...]``, those of all atoms ``[atoms, ...]``, of which some are on other devices."""
        return values if self.domain is None else self.domain.around(values)

    def forces(self, gradient):
        """Forces ``[atoms, 3]`` eV/Å from the energy's ``gradient`` [pairs, 3] eV/Å by the pair vectors; of a divided
        structure on the atoms of all devices."""
        forces = -pair_divergence(self.lists, gradient)
        return forces if self.domain is None else self.domain.joined(forces)

    def _total(self, values):
        return values if self.domain is None else jax.lax.psum(values, DEVICES)

    def _membership(self, dtype):
        graphs = jnp.arange(self.num_graphs, dtype=jnp.int32)[:, None]
        return ((self.own(self.graph_index) == graphs) & self.own(self.atom_mask)).astype(dtype)


def pair_lists(receivers: np.ndarray, senders: np.ndarray, atoms: int) -> PairLists:
    """The neighbour table of undirected pairs, as wide as the atom with most neighbours (one column at least)."""
    count = len(receivers)
    center = np.concatenate([receivers, senders])
    other = np.concatenate([senders, receivers])
    pair = np.tile(np.arange(count, dtype=np.int32), 2)
    sign = np.repeat(np.array([1, -1], np.int8), count)
    order = np.lexsort((pair, other, center))
    center, other, pair, sign = center[order], other[order], pair[order], sign[order]
    degree = np.bincount(center, minlength=atoms)
    slot = np.arange(len(center)) - np.repeat(np.cumsum(degree) - degree, degree)
    shape = (atoms, max(int(degree.max(initial=0)), 1))
    neighbors, pairs, signs = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int8)
    neighbors[center, slot], pairs[center, slot], signs[center, slot] = other, pair, sign
    return PairLists(receivers.astype(np.int32), senders.astype(np.int32), neighbors, pairs, signs)


def bucket(size: int, smallest: int) -> int:
    """The next of the sizes that are at most one eighth apart, multiples of ``smallest``."""
    step = max(smallest, 1 << max(size.bit_length() - 4, 0))
    return -(-size // step) * step


def _lengthen(x, length: int) -> np.ndarray:
    x = np.asarray(x)
    return np.concatenate([x, np.zeros((length - x.shape[0], *x.shape[1:]), x.dtype)])


def _widen(x: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((x.shape[0], width - x.shape[1]), x.dtype)], axis=1)
