"""LEIGNN: the energy of every atom of a graph, and direct forces where the model has that head."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from leignn_jax.graph import Graph
from leignn_jax.models.config import LEIGNNConfig, ModelConfig
from leignn_jax.models.layers import (
    GlobalToLocal,
    LocalMessages,
    LocalToGlobal,
    LocalUpdate,
    activation,
    embedding_init,
    linear,
    rows,
)
from leignn_jax.models.radial import radial_functions
from leignn_jax.pair_ops import AnyArray


class Output(NamedTuple):
    """What a network gives, of a divided structure for own atoms; no units yet.

    atomic_energies: ``[atoms]``.
    direct_forces: ``[atoms, 3]`` or None.
    features: what the energy is read from, by its degree l = 0, 1 ...: ``[atoms, 2 l + 1, F]`` each, the parity that of
        spherical harmonics and the order that of e3nn; empty where a model has none to give.
    """

    atomic_energies: Float[Array, "atoms"]
    direct_forces: Float[Array, "atoms 3"] | None
    features: tuple[Float[Array, "atoms order features"], ...] = ()


class LEIGNN(nn.Module):
    """Lightweight equivariant interaction graph neural network. Yang et al., arXiv:2311.02869 (later E2GNN)."""

    config: LEIGNNConfig

    @nn.compact
    def __call__(self, graph: Graph, vectors: Float[Array, "pairs 3"] | None = None) -> Output:
        """Run the network on ``graph``; ``vectors`` [Å] replace the pair vectors of its positions, to differentiate by."""
        config = self.config
        precision = None if config.matmul_precision == "default" else config.matmul_precision
        distances, directions = pair_geometry(graph, graph.vectors() if vectors is None else vectors)
        radial = radial_functions(config, distances, graph.pair_mask)
        species = species_index(config, graph.numbers)

        # Before the first message passing an atom is its element and nothing more, and all global nodes are one: what
        # they become is computed once per element. Vectors and tensors are zero, which None says.
        scalars = self.param("embedding", embedding_init, (len(config.elements), config.features), jnp.float32)
        scalars = jnp.asarray(scalars, distances.dtype)
        per_element = len(config.elements) <= graph.numbers.shape[0]
        if not per_element:
            scalars = rows(scalars, graph.own(species))
        vectors = tensors = global_scalars = global_vectors = None
        received: tuple[Array, ...] = ()
        if config.global_nodes:
            global_scalars = self.param("global_embedding", nn.initializers.normal(1.0), (1, config.features))
            global_scalars = jnp.asarray(global_scalars, distances.dtype)

        messages = nn.remat(LocalMessages) if config.remat else LocalMessages
        for layer in range(config.layers):
            first, last = layer == 0, layer == config.layers - 1
            if config.global_nodes:
                distribute = GlobalToLocal(precision, name=f"global_to_local_{layer}")
                spread = (lambda x: x) if first else graph.spread
                scalars, vectors = distribute(scalars, vectors, global_scalars, global_vectors, spread)

            message = messages(config, precision, name=f"messages_{layer}")
            elements = species if first and per_element else None
            sent = scalars if elements is not None else graph.around(scalars)
            near_vectors, near_tensors = (None if x is None else graph.around(x) for x in (vectors, tensors))
            changes = message(graph, radial, directions, sent, near_vectors, near_tensors, elements)
            d_scalars, d_vectors = map(graph.own, changes[:2])
            if elements is not None:
                scalars = rows(scalars, graph.own(species))
            scalars = (scalars + d_scalars) / math.sqrt(2)
            vectors = d_vectors if vectors is None else vectors + d_vectors
            if changes[2] is not None:
                d_tensors = graph.own(changes[2])
                tensors = d_tensors if tensors is None else tensors + d_tensors

            update = LocalUpdate(config.update, precision, config.norm_floor, name=f"update_{layer}")
            received = tuple(x for x in (vectors, tensors) if x is not None)
            scalars, vectors, tensors = update(scalars, vectors, tensors, last, config.direct_forces)
            # After the last layer there are vectors where direct forces are read from them.
            if vectors is not None:
                received = (vectors, *received[1:])

            if config.global_nodes and not last:
                atoms = jnp.maximum(graph.sum_atoms(graph.atom_mask.astype(distances.dtype)), 1)
                means = graph.sum_atoms(scalars) / atoms[:, None], graph.sum_atoms(vectors) / atoms[:, None, None]
                if global_scalars is not None and first:
                    global_scalars = jnp.broadcast_to(global_scalars, means[0].shape)
                    global_vectors = jnp.zeros_like(means[1])
                aggregate = LocalToGlobal(precision, name=f"local_to_global_{layer}")
                global_scalars, global_vectors = aggregate(*means, global_scalars, global_vectors)

        hidden = activation(linear(config.features // 2, "energy_hidden", bias=True, precision=precision)(scalars))
        energies = linear(1, "energy", bias=True, precision=precision)(hidden)[:, 0]
        real = graph.own(graph.atom_mask)
        energies = jnp.where(real, energies, 0.0)
        features = (scalars[:, None], *received)
        if not config.direct_forces:
            return Output(energies, None, features)
        forces = linear(1, "direct_forces", precision=precision)(vectors)[..., 0]
        return Output(energies, jnp.where(real[:, None], forces, 0.0), features)


def pair_geometry(graph: Graph, vectors: Float[Array, "pairs 3"]):
    """Distances ``[pairs]`` in Å and unit vectors ``[pairs, 3]`` from sender to receiver; padding gets 1 and 0, atoms in one
    place a millionth of an Å and no direction."""
    squared = (vectors**2).sum(-1)
    exists = graph.pair_mask & (squared > 0)
    distances = jnp.sqrt(jnp.where(exists, squared, jnp.where(graph.pair_mask, 1e-12, 1.0)))
    return distances, jnp.where(exists[:, None], -vectors / distances[:, None], 0.0)


def species_index(config: ModelConfig, numbers: Int[AnyArray, "atoms"]) -> Int[Array, "atoms"]:
    """Row of each atom's element in the embedding; padding and unknown elements get the number of elements."""
    table = np.full(120, len(config.elements), np.int32)
    table[list(config.numbers)] = np.arange(len(config.elements))
    return jnp.asarray(table)[numbers]
