r"""The four steps of a layer, each a small Flax module of pure functions.

Symbols of the paper (arXiv:2311.02869) and of the published code:

=============================  =======================================================
x ``[atoms, F]``               ``scalars``
V ``[atoms, 3, F]``            ``vectors``
g ``[graphs, F]``              ``global_scalars``, the scalar of the global node
W ``[graphs, 3, F]``           ``global_vectors``, its vector
sigma                          ``activation``, silu / 0.6
f ``[pairs, F]`` (three)       ``filters``, the distance's weight on a message
u ``[pairs, 3]``               ``directions``, from neighbour to centre
=============================  =======================================================

A linear map of a concatenation is written as the sum of two maps, so that the part that is the same for all atoms of a
structure is computed once per structure; a map with several outputs as one map per output, so that one nobody reads is
never computed and none is cut out of a wider array.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from leignn_jax.graph import Graph
from leignn_jax.models.config import LEIGNNConfig, ModelConfig
from leignn_jax.models.radial import smooth_filters
from leignn_jax.models.tensors import contracted, outer, quadrupoles
from leignn_jax.pair_ops import AnyArray, pair_sum


def activation(x: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """silu(x) / 0.6, which about keeps the variance of a standard normal input."""
    return jax.nn.silu(x) / 0.6


# Scale of kernels at the end of a residual branch: what is added at the start is small beside what it is added to, so
# that neither values nor gradients grow with the number of layers.
BRANCH = 0.3
# Where an atom has more than so many neighbours for each element, the first layer sums by element.
_NEIGHBORS_PER_ELEMENT = 4


def linear(features: int, name: str, scale: float = 1.0, bias: bool = False, precision: str | None = None) -> nn.Dense:
    """A linear map whose kernel starts with variance scale^2 / fan_in; biases start at zero."""
    return nn.Dense(
        features,
        use_bias=bias,
        name=name,
        precision=precision,
        kernel_init=nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal"),
    )


def filter_init(config: ModelConfig):
    """The start of filters ``[radial functions and bias, F]``: smooth functions of the distance, without a bias."""

    def initializer(key, shape, dtype):
        modes = smooth_filters(config)
        kernel = modes.T @ jax.random.normal(key, (modes.shape[0], shape[1]), dtype)
        return jnp.append(kernel, jnp.zeros((1, shape[1]), dtype), axis=0)

    return initializer


def embedding_init(key, shape, dtype):
    """The start of an embedding of elements: uniform, of variance 1."""
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


class GlobalToLocal(nn.Module):
    """Global message distributing: x <- x + sigma(A2 sigma(A1 [x, g])), V <- V + B (V + W)."""

    precision: str | None = None

    @nn.compact
    def __call__(
        self,
        scalars: Float[Array, "nodes features"],
        vectors: Float[Array, "nodes 3 features"] | None,
        global_scalars: Float[Array, "graphs features"],
        global_vectors: Float[Array, "graphs 3 features"] | None,
        spread: Callable[[Array], Array],
    ):
        """``spread`` copies a structure's value to its nodes; vectors of None are zero."""
        features, precision = scalars.shape[-1], self.precision
        local = linear(features, "scalars_local", math.sqrt(0.5), bias=True, precision=precision)(scalars)
        from_global = linear(features, "scalars_global", math.sqrt(0.5), precision=precision)(global_scalars)
        hidden = activation(local + spread(from_global))
        scalars = scalars + activation(linear(features, "scalars_out", BRANCH, bias=True, precision=precision)(hidden))
        if vectors is not None:
            mix = linear(features, "vectors", BRANCH, precision=precision)
            vectors = vectors + mix(vectors) + spread(mix(global_vectors))
        return scalars, vectors


class LocalMessages(nn.Module):
    r"""Local message passing: from the neighbours' x and V to the change of an atom's.

    h = C2 sigma(C1 x), f = D phi, (m1, m2, m3)_ij = h_j f_ij / sqrt(3);
    dx_i = sum_j m3, dV_i = sum_j (m1 V_j + m2 u_ij) / sqrt(features).

    With ``tensor_features`` two more messages give dT_i = sum_j (m4 (u_ij u_ij - 1/3) + m5 T_j), T_j as the vectors from
    the second layer on.
    """

    config: LEIGNNConfig
    precision: str | None = None

    @nn.compact
    def __call__(
        self,
        graph: Graph,
        radial: Float[Array, "pairs radial"],
        directions: Float[Array, "pairs 3"],
        scalars: Float[Array, "nodes features"],
        vectors: Float[Array, "nodes 3 features"] | None,
        tensors: Float[Array, "nodes 5 size"] | None = None,
        species: Int[Array, "atoms"] | None = None,
    ):
        """Changes of scalars ``[atoms, F]``, vectors ``[atoms, 3, F]``, and tensors ``[atoms, 5, size]`` or None.

        ``species`` says that nodes are elements and not atoms, as in the first layer, and which element each atom is.
        """
        features, elements = scalars.shape[-1], scalars.shape[0]
        hidden = activation(linear(features // 2, "hidden", bias=True, precision=self.precision)(scalars))
        few_elements = species is not None and _NEIGHBORS_PER_ELEMENT * elements < graph.lists.neighbors.shape[1]

        def stored(x):
            return x.astype(jnp.bfloat16) if self.config.message_dtype == "bfloat16" else x

        def parts(name, size):
            """What a message of this name is made of: from the sender's scalars, and the kernel of its filter."""
            message = linear(size, name, bias=True, precision=self.precision)(hidden) / math.sqrt(3)
            return message, self.param(f"filter_{name}", filter_init(self.config), (radial.shape[1], size), jnp.float32)

        def summed(message, kernel, coefficients=None, odd=False):
            if few_elements:
                sums = _element_sums(graph, radial, species, elements, coefficients, odd)
                return (self._dot(sums, kernel) * message).sum(2)
            sent = message if species is None else rows(message, species)
            filters = stored(self._dot(radial, kernel))
            return pair_sum(graph.lists, filters, stored(sent)[:, None], coefficients, odd=odd)

        def carried(name, values):
            message, kernel = parts(name, values.shape[-1])
            return pair_sum(graph.lists, stored(self._dot(radial, kernel)), stored(message[:, None] * values))

        d_vectors = summed(*parts("directional", features), directions[..., None], odd=True)
        d_scalars = summed(*parts("scalar", features))[:, 0]
        if vectors is not None:
            d_vectors += carried("vector", vectors)
        d_tensors = None
        if size := self.config.tensor_features:
            d_tensors = summed(*parts("tensor", size), quadrupoles(directions)[..., None])
            if tensors is not None:
                d_tensors += carried("tensor_carried", BRANCH * tensors)
        return d_scalars, d_vectors / math.sqrt(features), d_tensors

    def _dot(self, x, kernel):
        return jnp.dot(x, kernel.astype(x.dtype), precision=self.precision)


def _element_sums(graph: Graph, radial, species, elements: int, coefficients, odd: bool):
    """Sums of radial functions times coefficients over each atom's neighbours of each element.

    Where all neighbours of one element send the same message, it can be taken out of the sum: what is left has as many
    columns as there are radial functions instead of features. ``[atoms, M, elements, radial]``, M of the coefficients.
    """
    is_element = (species[:, None] == jnp.arange(elements)).astype(radial.dtype)
    shape = (*is_element.shape, radial.shape[1])
    if coefficients is None:
        return pair_sum(graph.lists, radial, jnp.broadcast_to(is_element[..., None], shape))[:, None]
    sums = [
        pair_sum(
            graph.lists,
            radial,
            jnp.broadcast_to(is_element[:, e, None, None], (shape[0], 1, shape[2])),
            coefficients,
            odd=odd,
        )
        for e in range(elements)
    ]
    return jnp.stack(sums, axis=2)


def rows(table, index):
    """``table[index]`` as a product with a 0/1 matrix: its transpose is a product too and not a scatter."""
    one_hot = (index[:, None] == jnp.arange(table.shape[0])).astype(table.dtype)
    return jnp.dot(one_hot, table, precision="highest")


class LocalUpdate(nn.Module):
    r"""Local message updating: scalars and vectors of one atom act on each other.

    (V1, V2) = P V, ``n = sqrt(|V2|^2 + floor)``, (a1, a2, a3) = Q2 sigma(Q1 [x, n]);

    - gated (LEIGNN): dx = a2 / sqrt(2) + x tanh(a3), dV = a1 V1;
    - painn: dx = (a1 + a2 (V1 . V2) / sqrt(features)) / sqrt(2), dV = a3 V1.

    With tensors T, of which T1, T2 and T3 are mixtures, and V3 and V4 two of V of their width, Q1 reads ``|T1|`` and
    ``V3 . T2 V3`` too, dV gains a4 C T2 V3, and dT = a5 T3 + a6 (V3 V4 - V3 . V4 / 3).
    """

    kind: str
    precision: str | None = None
    floor: float = 1e-8

    @nn.compact
    def __call__(
        self,
        scalars: Float[Array, "atoms features"],
        vectors: Float[Array, "atoms 3 features"],
        tensors: Float[Array, "atoms 5 size"] | None,
        last: bool,
        direct: bool = False,
    ):
        """The new scalars, vectors and tensors; after the ``last`` layer the tensors are None, and the vectors where no
        ``direct`` forces are read from them."""
        features, precision = scalars.shape[-1], self.precision
        right = linear(features, "vectors_right", precision=precision)(vectors)
        norm = jnp.sqrt((right**2).sum(1) + self.floor)
        # V starts smaller than x by sqrt(features): its norm's kernel starts larger by as much.
        hidden = linear(features, "hidden_scalars", math.sqrt(0.5), bias=True, precision=precision)(scalars)
        hidden += linear(features, "hidden_norm", math.sqrt(0.5 * features), precision=precision)(norm)
        turned = None
        if tensors is not None:
            size = tensors.shape[2]
            mixed = linear(size, "tensors_right", precision=precision)(tensors)
            tensor_norm = jnp.sqrt((mixed**2).sum(1) + self.floor)
            hidden += linear(features, "hidden_tensor", math.sqrt(0.5), precision=precision)(tensor_norm)
            few = linear(size, "vectors_tensor", math.sqrt(features), precision=precision)(vectors)
            turned = contracted(linear(size, "tensors_left", precision=precision)(tensors), few)
            hidden += linear(features, "hidden_inner", math.sqrt(0.5), precision=precision)((turned * few).sum(1))
        hidden = activation(hidden)

        def head(name, width=features):
            return linear(width, name, BRANCH, bias=True, precision=precision)(hidden)

        if last and not direct and self.kind == "gated":
            left = vectors  # not read
        else:
            left = linear(features, "vectors_left", precision=precision)(vectors)
        if self.kind == "gated":
            change = head("add") / math.sqrt(2) + scalars * jnp.tanh(head("gate"))
        else:
            inner = (left * right).sum(1) / math.sqrt(features)
            change = (head("add") + head("inner") * inner) / math.sqrt(2)
        scalars = scalars + change
        if last and not direct:
            return scalars, None, None
        if last:
            tensors = None
        elif tensors is not None:
            other = linear(size, "vectors_outer", math.sqrt(features), precision=precision)(vectors)
            kept = linear(size, "tensors_kept", precision=precision)(tensors)
            made = head("outer_gate", size)[:, None] * outer(few, other)
            tensors = tensors + head("tensors_gate", size)[:, None] * kept + made
        vectors = vectors + head("vectors_gate")[:, None] * left
        if turned is not None:
            back = linear(features, "vectors_turned", 1 / math.sqrt(features), precision=precision)(turned)
            vectors = vectors + head("turned_gate")[:, None] * back
        return scalars, vectors, tensors


class LocalToGlobal(nn.Module):
    """Global message aggregating: g <- g + sigma(F2 sigma(F1 [mean x, g])), W <- W + G (mean V + W)."""

    precision: str | None = None

    @nn.compact
    def __call__(
        self,
        mean_scalars: Float[Array, "graphs features"],
        mean_vectors: Float[Array, "graphs 3 features"],
        global_scalars: Float[Array, "graphs features"],
        global_vectors: Float[Array, "graphs 3 features"],
    ):
        """The new global scalars and vectors."""
        features, precision = global_scalars.shape[-1], self.precision
        hidden = linear(features, "scalars_mean", math.sqrt(0.5), bias=True, precision=precision)(mean_scalars)
        hidden += linear(features, "scalars_global", math.sqrt(0.5), precision=precision)(global_scalars)
        change = linear(features, "scalars_out", BRANCH, bias=True, precision=precision)(activation(hidden))
        mix = linear(features, "vectors", BRANCH, precision=precision)
        return global_scalars + activation(change), global_vectors + mix(mean_vectors + global_vectors)
