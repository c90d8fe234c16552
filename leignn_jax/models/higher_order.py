r"""The model to compare with: features of higher order and their tensor products, built with e3nn-jax.

After NequIP (Batzner et al., arXiv:2101.03164), with LEIGNN's radial filters, so that what differs between the two is the
order of the features. An atom has F features of each degree l = 0 ... L; a message is the tensor product of a neighbour's
features with the spherical harmonics of the direction to it:

    m_i^{l3} = sum_j f_ij^{l1 l2 l3} C^{l1 l2 l3} (x_j^{l1}, Y^{l2}(u_ij)),    x_i <- gate(A m_i + B x_i)

with C the Clebsch-Gordan coefficients and f one radial filter for each path l1 l2 l3. Products with Y are small matrices
``[pairs, 2 l3 + 1, 2 l1 + 1]`` and the sum is :func:`leignn_jax.pair_ops.pair_sum`, as LEIGNN's is: no array is wider than
``[pairs, F]`` and no derivative needs a scatter. Degrees up to 1 take 4 such sums a layer, up to 2 take 11.
"""

from __future__ import annotations

import math
from typing import Any, cast

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
from e3nn_jax.flax import Linear
from flax import linen as nn
from jaxtyping import Array, Float

from leignn_jax.graph import Graph
from leignn_jax.models.config import HigherOrderConfig
from leignn_jax.models.layers import activation, embedding_init, filter_init, linear, rows
from leignn_jax.models.leignn import Output, pair_geometry, species_index
from leignn_jax.models.radial import radial_functions
from leignn_jax.pair_ops import pair_sum


class HigherOrder(nn.Module):
    """Equivariant network of spherical tensors up to ``config.degree``."""

    config: HigherOrderConfig

    @nn.compact
    def __call__(self, graph: Graph, vectors: Float[Array, "pairs 3"] | None = None) -> Output:
        """Run the network on ``graph``; ``vectors`` [Å] replace the pair vectors of its positions, to differentiate by."""
        config = self.config
        with jax.default_matmul_precision(config.matmul_precision):
            distances, directions = pair_geometry(graph, graph.vectors() if vectors is None else vectors)
            radial = radial_functions(config, distances, graph.pair_mask)
            spherical = e3nn.spherical_harmonics(irreps(1, config.degree), directions, False, "component")
            harmonics = [y[..., 0] for y in by_degree(spherical)]
            embedding = self.param("embedding", embedding_init, (len(config.elements), config.features), jnp.float32)
            scalars = rows(jnp.asarray(embedding, distances.dtype), species_index(config, graph.own(graph.numbers)))
            x = e3nn.IrrepsArray(irreps(config.features, 0), scalars)
            for layer in range(config.layers):
                before, last = x, layer == config.layers - 1
                # The energy is read from scalars alone: the last layer makes no others.
                exchange = Layer(config, 0 if last else config.degree, name=f"layer_{layer}")
                x = exchange(graph, radial, harmonics, x)
            hidden = activation(linear(config.features // 2, "energy_hidden", bias=True)(x.array))
            energies = linear(1, "energy", bias=True)(hidden)[:, 0]
        energies = jnp.where(graph.own(graph.atom_mask), energies, 0.0)
        return Output(energies, None, (*by_degree(x), *by_degree(before)[1:]))


class Layer(nn.Module):
    """One exchange with the neighbours, of which features up to ``degree`` come, and the gate after it."""

    config: HigherOrderConfig
    degree: int

    @nn.compact
    def __call__(
        self, graph: Graph, radial: Float[Array, "pairs radial"], harmonics: list[Array], x: e3nn.IrrepsArray
    ) -> e3nn.IrrepsArray:
        """New features of every own atom, from its own and those of its neighbours."""
        features, degree = self.config.features, self.degree
        sent = [graph.around(h) for h in by_degree(Linear(x.irreps, name="sent")(x))]
        received: list[list[Array]] = [[] for _ in range(degree + 1)]
        for l1, l2, l3 in paths(len(sent) - 1, len(harmonics) - 1, degree):
            name = f"filter_{l1}{l2}{l3}"
            kernel = self.param(name, filter_init(self.config), (radial.shape[1], features), jnp.float32)
            filters = jnp.dot(radial, jnp.asarray(kernel, radial.dtype))
            # Times Y of degree 0, which is 1, features stay as they are.
            coefficients = None if l2 == 0 else coupling(l1, l2, l3, harmonics[l2])
            sums = pair_sum(graph.lists, filters, sent[l1], coefficients, odd=l2 % 2 == 1)
            received[l3].append(jnp.swapaxes(graph.own(sums), 1, 2))
        messages = e3nn.from_chunks(
            e3nn.Irreps([(len(sums) * features, ir.ir) for sums, ir in zip(received, irreps(1, degree), strict=True)]),
            [jnp.concatenate(sums, axis=1) for sums in received],
            x.shape[:-1],
            x.dtype,
        )
        # One gate for each feature of higher degree.
        wide = (irreps(features * degree, 0) + irreps(features, degree)).regroup()
        mixed = Linear(wide, biases=True, name="received")(messages)
        mixed += Linear(wide, force_irreps_out=True, name="own")(x)
        functions: Any = {"even_act": activation, "even_gate_act": jax.nn.sigmoid}
        return e3nn.gate(mixed, normalize_act=False, **functions)


def irreps(features: int, degree: int) -> e3nn.Irreps:
    """So many features of each degree up to ``degree``, of the parity of spherical harmonics."""
    return e3nn.Irreps([(features, (order, (-1) ** order)) for order in range(degree + 1)])


def paths(sent: int, harmonics: int, received: int) -> list[tuple[int, int, int]]:
    """Degrees l1, l2, l3 up to these that couple: a triangle, of a parity that is kept."""
    return [
        (l1, l2, l3)
        for l1 in range(sent + 1)
        for l2 in range(harmonics + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, received) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]


def coupling(l1: int, l2: int, l3: int, harmonics: Float[Array, "pairs order"]) -> Float[Array, "pairs received sent"]:
    """The product with these spherical harmonics of degree l2 as a matrix from features of degree l1 to those of l3."""
    table = math.sqrt(2 * l3 + 1) * e3nn.clebsch_gordan(l1, l2, l3)
    return jnp.einsum("pb,abc->pca", harmonics, jnp.asarray(table, harmonics.dtype), precision="highest")


def by_degree(x: e3nn.IrrepsArray) -> list[Float[Array, "atoms order features"]]:
    """Features of each degree l from 0 on as ``[atoms, 2 l + 1, F]``."""
    return [jnp.swapaxes(cast("Array", chunk), 1, 2) for chunk in x.chunks]
