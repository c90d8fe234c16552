"""A training set that stays on the device, where batches are put together from frame numbers.

Putting a batch together on the host costs a copy of everything in it for every step, and the host's time; here a step is
given as many whole numbers as it has frames. All frames' atoms lie one after another in one array of each kind, and so do
their pairs: an entry of a batch is one of these, found by counting. The arrays are those of
:func:`leignn_jax.data.batches.collate` to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.data.batches import Batch, Shape
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.pair_ops import PairLists


@struct.dataclass
class ResidentFrames:
    """Frames end to end. A pytree.

    frames: their :class:`leignn_jax.data.batches.Batch`, as if they were one; indices of atoms and pairs count from each
        frame's first. No padding.
    first_atom, first_pair: ``[frames]`` int32, where each begins. atoms, pairs, neighbors: ``[frames]`` int32, its sizes.
    """

    frames: Batch
    first_atom: Any
    first_pair: Any
    atoms: Any
    pairs: Any
    neighbors: Any


def resident_bytes(sizes: np.ndarray) -> int:
    """Memory of frames of ``sizes`` [frames, 3] (atoms, pairs, neighbours)."""
    atoms, pairs = (int(x) for x in sizes[:, :2].sum(0))
    width = int(sizes[:, 2].max())
    return atoms * (12 + 4 + 4 + 12 + 4 + width * (4 + 4 + 1)) + pairs * (12 + 1 + 4 + 4) + len(sizes) * 120


def join_frames(examples: Sequence[Batch]) -> ResidentFrames:
    """All examples, each of one frame, end to end; on the host."""
    # Those of a store are read when they are asked for: once.
    examples = list(examples)
    sizes = np.array([e.graph.shape[:3] for e in examples], np.int32)
    atoms, pairs = sizes[:, :2].sum(0, dtype=np.int64)
    if max(atoms, pairs) >= 2**31:
        raise ConfigError(
            f"data.on_device: frames of {atoms:,} atoms and {pairs:,} pairs are more than a device can count; leave it out."
        )
    width = int(sizes[:, 2].max())
    examples = [e.replace(graph=e.graph.pad(neighbors=width)) for e in examples]
    frames = jax.tree.map(lambda *parts: np.concatenate(parts), *examples)
    before = np.cumsum(sizes, 0, dtype=np.int32) - sizes
    return ResidentFrames(frames, before[:, 0], before[:, 1], *sizes.T)


def take_batch(resident: ResidentFrames, chosen, shape: Shape) -> Batch:
    """The batch of frames ``chosen`` [graphs] int32, padded to ``shape``, which must hold them; pure, for use under jit."""
    frames, graph = resident.frames, resident.frames.graph
    atom, of_atom, real_atom, atom_offset = _entries(resident.first_atom, resident.atoms, chosen, shape.atoms)
    pair, of_pair, real_pair, pair_offset = _entries(resident.first_pair, resident.pairs, chosen, shape.pairs)

    def rows(values, where, real):
        return jnp.where(real.reshape(-1, *[1] * (values.ndim - 1)), values[where], jnp.zeros((), values.dtype))

    # As wide as the frame with the most neighbours, within which entries that stand for nothing count from its first too.
    inside = real_atom[:, None] & (jnp.arange(shape.neighbors) < resident.neighbors[chosen].max())

    def table(values, offset=None):
        width = min(shape.neighbors, values.shape[1])
        found = jnp.pad(values[atom, :width], ((0, 0), (0, shape.neighbors - width)))
        found = found if offset is None else found + offset[of_atom][:, None]
        return jnp.where(inside, found, jnp.zeros((), values.dtype))

    lists = graph.lists
    return Batch(
        graph=Graph(
            positions=rows(graph.positions, atom, real_atom),
            numbers=rows(graph.numbers, atom, real_atom),
            graph_index=jnp.where(real_atom, of_atom, 0),
            cell=graph.cell[chosen],
            pbc=graph.pbc[chosen],
            graph_mask=graph.graph_mask[chosen],
            shifts=rows(graph.shifts, pair, real_pair),
            pair_mask=rows(graph.pair_mask, pair, real_pair),
            lists=PairLists(
                receivers=jnp.where(real_pair, lists.receivers[pair] + atom_offset[of_pair], 0),
                senders=jnp.where(real_pair, lists.senders[pair] + atom_offset[of_pair], 0),
                neighbors=table(lists.neighbors, atom_offset),
                neighbor_pairs=table(lists.neighbor_pairs, pair_offset),
                neighbor_signs=table(lists.neighbor_signs),
            ),
        ),
        energy=frames.energy[chosen],
        forces=rows(frames.forces, atom, real_atom),
        stress=frames.stress[chosen],
        energy_weight=frames.energy_weight[chosen],
        forces_weight=rows(frames.forces_weight, atom, real_atom),
        stress_weight=frames.stress_weight[chosen],
    )


def _entries(first, count, chosen, size: int):
    """For each entry of a batch: where it lies among all, its graph, whether it is one, and each graph's first entry."""
    counts = count[chosen]
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    entry = jnp.arange(size, dtype=jnp.int32)
    graph = jnp.minimum((entry[:, None] >= ends).sum(-1, dtype=jnp.int32), len(chosen) - 1)
    offset = ends - counts
    real = entry < ends[-1]
    return jnp.where(real, first[chosen][graph] + entry - offset[graph], 0), graph, real, offset
