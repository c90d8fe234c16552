"""Four layouts of the sum over neighbours, under one network.

A layout is a pytree with three parts that the network uses:

- ``mask``: which edges exist, ``[edges]``, ``[atoms, neighbors]`` or ``[pairs]``; all that belongs to an edge has
  these leading axes, written E below;
- ``vectors(positions)``: E + ``[3]`` Å, from an atom to its neighbour;
- ``message_sum(filters, messages, directions)``: each atom's sum over its neighbours j of m_s,j f_s, ``[atoms, F]``,
  and of m_d,j f_d u + m_v,j f_v, ``[atoms, 3, F]``.

``filters`` are three arrays E + ``[F]``, zero where there is no edge; ``messages`` are three arrays of the atoms,
``[atoms, F]`` twice and ``[atoms, 3, F]``. The last of both is None in the first layer, whose vectors are zero.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax import Graph, LEIGNNConfig
from leignn_jax.models.layers import LocalUpdate, activation, rows
from leignn_jax.models.radial import radial_functions
from leignn_jax.pair_ops import PairLists, pair_difference, pair_sum


def take(array, index):
    return array.at[index].get(mode="promise_in_bounds")


class Directed:
    """Layouts with an entry for each directed edge; they differ in ``gather`` and ``collect``."""

    def message_sum(self, filters, messages, directions):
        (f_scalar, f_directional, f_vector), (scalar, directional, vector) = filters, messages
        to_vectors = (self.gather(directional) * f_directional)[..., None, :] * directions[..., None]
        if vector is not None:
            to_vectors += self.gather(vector) * f_vector[..., None, :]
        return self.collect(self.gather(scalar) * f_scalar), self.collect(to_vectors)


@struct.dataclass
class Sparse(Directed):
    """Edge list sorted by the receiving atom; derivatives of its gathers are scatters."""

    centers: Any
    neighbors: Any
    offsets: Any
    mask: Any
    atoms: int = struct.field(pytree_node=False)

    def vectors(self, positions):
        return take(positions, self.neighbors) - take(positions, self.centers) + self.offsets

    def gather(self, nodes):
        return take(nodes, self.neighbors)

    def collect(self, edges):
        return jax.ops.segment_sum(edges, self.centers, self.atoms, indices_are_sorted=True)


@struct.dataclass
class Dense(Directed):
    """Table of neighbours; derivatives of its gathers are scatters."""

    neighbors: Any
    offsets: Any
    mask: Any

    def vectors(self, positions):
        return self.gather(positions) - positions[:, None] + self.offsets

    def gather(self, nodes):
        return take(nodes, self.neighbors)

    def collect(self, edges):
        return edges.sum(1)


@struct.dataclass
class DenseTwin(Dense):
    """Table of neighbours that knows where each edge's reverse stands: ``twins``, indices into the flat table."""

    twins: Any

    def gather(self, nodes):
        return twin_gather(nodes, (self.neighbors, self.twins, self.mask))


@jax.custom_vjp
def twin_gather(nodes, tables):
    """Row of each edge's neighbour."""
    neighbors, _, mask = tables
    out = take(nodes, neighbors)
    return out * _like(mask, out)


@jax.custom_vjp
def twin_collect(edges, tables):
    """Transpose of ``twin_gather``: an atom's row was read by the edges towards it, the reverses of its own."""
    _, twins, mask = tables
    out = take(edges.reshape(-1, *edges.shape[2:]), twins)
    return (out * _like(mask, out)).sum(1)


twin_gather.defvjp(lambda nodes, t: (twin_gather(nodes, t), t), lambda t, g: (twin_collect(g, t), None))
twin_collect.defvjp(lambda edges, t: (twin_collect(edges, t), t), lambda t, g: (twin_gather(g, t), None))


def _like(mask, array):
    return mask.astype(array.dtype).reshape(*mask.shape, *(1,) * (array.ndim - mask.ndim))


@struct.dataclass
class Pairs:
    """The package's own: filters of undirected pairs, sums by the primitives of ``leignn_jax.pair_ops``."""

    lists: PairLists
    offsets: Any
    mask: Any

    def vectors(self, positions):
        return pair_difference(self.lists, positions) + self.offsets

    def message_sum(self, filters, messages, directions):
        (f_scalar, f_directional, f_vector), (scalar, directional, vector) = filters, messages
        to_scalars = pair_sum(self.lists, f_scalar, scalar[:, None])[:, 0]
        to_vectors = pair_sum(self.lists, f_directional, directional[:, None], directions[..., None], odd=True)
        if vector is not None:
            to_vectors += pair_sum(self.lists, f_vector, vector)
        return to_scalars, to_vectors


LAYOUTS = ("sparse", "dense", "dense_twin", "pairs")


def build(name: str, graph: Graph):
    """The layout of that name of a graph, on the host."""
    lists, signs = graph.lists, graph.lists.neighbor_signs
    cells = graph.cell[graph.graph_index[lists.receivers]]
    pair_offsets = np.einsum("pi,pij->pj", graph.shifts, cells)
    if name == "pairs":
        return Pairs(lists, pair_offsets, graph.pair_mask)
    offsets = signs[..., None] * pair_offsets[lists.neighbor_pairs]
    mask = signs != 0
    if name == "sparse":
        centers = np.nonzero(mask)[0].astype(np.int32)
        return Sparse(centers, lists.neighbors[mask], offsets[mask], np.ones(len(centers), bool), len(mask))
    if name == "dense":
        return Dense(lists.neighbors, offsets, mask)
    side = (signs[mask] > 0).astype(np.int32)
    place = np.zeros((len(graph.pair_mask), 2), np.int32)
    place[lists.neighbor_pairs[mask], side] = np.flatnonzero(mask)
    twins = np.zeros_like(lists.neighbors)
    twins[mask] = place[lists.neighbor_pairs[mask], 1 - side]
    return DenseTwin(lists.neighbors, offsets, mask, twins)


def energy(config: LEIGNNConfig, params, layout, positions, species):
    """Total energy by the parameters of ``leignn_jax.LEIGNN`` without global nodes; ``species`` count its elements."""

    def dot(left, right):
        return jnp.dot(left, right, precision=config.matmul_precision)

    def linear(p, x):
        return dot(x, p["kernel"]) + p["bias"]

    vectors = layout.vectors(positions)
    mask = layout.mask
    distances = jnp.sqrt(jnp.where(mask, (vectors**2).sum(-1), 1.0))
    directions = jnp.where(mask[..., None], -vectors / distances[..., None], 0.0)
    radial = radial_functions(config, distances.ravel(), mask.ravel()).reshape(*mask.shape, -1)

    x, v = rows(params["embedding"], species), None
    for layer in range(config.layers):
        p = params[f"messages_{layer}"]
        names = ("scalar", "directional", "vector")[: 2 if v is None else 3]
        hidden = activation(linear(p["hidden"], x))
        filters = [dot(radial, p[f"filter_{n}"]) for n in names]
        messages = [linear(p[n], hidden) / math.sqrt(3) for n in names]
        if v is None:
            filters, messages = [*filters, None], [*messages, None]
        else:
            messages[2] = messages[2][:, None] * v
        dx, dv = layout.message_sum(filters, messages, directions)
        x, dv = (x + dx) / math.sqrt(2), dv / math.sqrt(config.features)
        v = dv if v is None else v + dv
        update = LocalUpdate(config.update, config.matmul_precision)
        x, v, _ = update.apply({"params": params[f"update_{layer}"]}, x, v, None, layer == config.layers - 1)
    return linear(params["energy"], activation(linear(params["energy_hidden"], x))).sum()


def energy_and_forces(config: LEIGNNConfig, params, layout, positions, species):
    """Total energy and minus its gradient."""
    value, gradient = jax.value_and_grad(energy, argnums=3)(config, params, layout, positions, species)
    return value, -gradient
