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
never computed; :mod:`leignn_jax.models.products` joins those that are read where that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from leignn_jax.graph import Graph
from leignn_jax.models.config import LEIGNNConfig, ModelConfig
from leignn_jax.models.products import fan_in, fan_out
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


def kernel_init(scale: float) -> Callable[..., Array]:
    """The start of a linear map's kernel: variance scale^2 / fan_in."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def linear(features: int, name: str, scale: float = 1.0, bias: bool = False, precision: str | None = None) -> nn.Dense:
    """A linear map whose kernel starts with variance scale^2 / fan_in; biases start at zero."""
    return nn.Dense(
        features,
        use_bias=bias,
        name=name,
        precision=precision,
        kernel_init=kernel_init(scale),
    )


class Map(nn.Module):
    """Kernel ``[inputs, features]`` and bias ``[features]`` (None without) of a linear map, started and named as those of
    :func:`linear`; for maps that are computed together, by :func:`maps_of` and :func:`sum_of_maps`."""

    features: int
    scale: float = 1.0
    bias: bool = False

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[AnyArray, "inputs features"], Float[AnyArray, "features"] | None]:
        kernel = self.param("kernel", kernel_init(self.scale), (inputs, self.features), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None


def maps_of(
    x: Float[Array, "... inputs"], maps: Sequence[Map], precision: str | None
) -> dict[str, Float[Array, "... outputs"]]:
    """Linear maps of one array, by their names."""
    found = {str(one.name): one(x.shape[-1]) for one in maps}
    products = fan_out(x, [kernel.astype(x.dtype) for kernel, _ in found.values()], precision)
    return {
        name: y if bias is None else y + bias.astype(y.dtype)
        for y, (name, (_, bias)) in zip(products, found.items(), strict=True)
    }


def sum_of_maps(pairs: Sequence[tuple[Float[Array, "..."], Map]], precision: str | None) -> Float[Array, "..."]:
    """The sum of linear maps of several arrays."""
    arrays = [x for x, _ in pairs]
    found = [one(x.shape[-1]) for x, one in pairs]
    total = fan_in(arrays, [kernel.astype(x.dtype) for x, (kernel, _) in zip(arrays, found, strict=True)], precision)
    for _, bias in found:
        total = total if bias is None else total + bias.astype(total.dtype)
    return total


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


def bounded(vectors: Float[Array, "atoms 3 features"]) -> Float[Array, "atoms 3 features"]:
    """``V / sqrt(1 + |V|^2)``, feature by feature: vectors shorter than 1, nearly themselves where they are short."""
    return vectors / jnp.sqrt(1 + (vectors**2).sum(1, keepdims=True))


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
        size = self.config.tensor_features
        widths = {"directional": features, "scalar": features}
        widths |= {"vector": features} if vectors is not None else {}
        widths |= {"tensor": size} if size else {}
        widths |= {"tensor_carried": size} if tensors is not None else {}
        maps = [Map(width, bias=True, name=name) for name, width in widths.items()]
        messages = {name: x / math.sqrt(3) for name, x in maps_of(hidden, maps, self.precision).items()}
        kernels = {}
        for name, width in widths.items():
            shape = (radial.shape[1], width)
            kernel = self.param(f"filter_{name}", filter_init(self.config), shape, jnp.float32)
            kernels[name] = kernel.astype(radial.dtype)

        def stored(x):
            return x.astype(jnp.bfloat16) if self.config.message_dtype == "bfloat16" else x

        few_elements = species is not None and _NEIGHBORS_PER_ELEMENT * elements < graph.lists.neighbors.shape[1]
        # By the width of the table, which is no matter of the structure alone: where both ways give the same digits.
        few_elements &= self.config.message_dtype == "float32"
        filters = {}
        if not few_elements:
            with jax.named_scope("filters"):
                products = fan_out(radial, list(kernels.values()), self.precision)
            filters = {name: stored(x) for name, x in zip(kernels, products, strict=True)}

        def summed(name, coefficients=None, odd=False):
            if few_elements:
                sums = _element_sums(graph, radial, species, elements, coefficients, odd)
                with jax.named_scope("filters"):
                    filtered = jnp.dot(sums, kernels[name], precision=self.precision)
                return (filtered * messages[name]).sum(2)
            sent = messages[name] if species is None else rows(messages[name], species)
            return pair_sum(graph.lists, filters[name], stored(sent)[:, None], coefficients, odd=odd)

        def carried(name, values):
            return pair_sum(graph.lists, filters[name], stored(messages[name][:, None] * values))

        d_vectors = summed("directional", directions[..., None], odd=True)
        d_scalars = summed("scalar")[:, 0]
        if vectors is not None:
            d_vectors += carried("vector", vectors)
        d_tensors = None
        if size:
            d_tensors = summed("tensor", quadrupoles(directions)[..., None])
            if tensors is not None:
                d_tensors += carried("tensor_carried", BRANCH * tensors)
        return d_scalars, d_vectors / math.sqrt(features), d_tensors


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

    With tensors T, of which T1, T2 and T3 are mixtures, and V3 and V4 two of V of their width, :func:`bounded`, Q1 reads
    ``|T1|`` and ``V3 . T2 V3`` too, dV gains a4 C T2 V3, and dT = a5 T3 + a6 (V3 V4 - V3 . V4 / 3).

    Without the bound a layer's products are of the fifth degree in what it is given, and the energy of two layers of about
    the twentieth: where no data are it runs away (experiments/extrapolation).
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
        size = 0 if tensors is None else tensors.shape[2]
        maps = [Map(features, name="vectors_right")]
        if not last or direct or self.kind == "painn":
            maps.append(Map(features, name="vectors_left"))
        if size:
            maps.append(Map(size, math.sqrt(features), name="vectors_inner"))
        if size and not last:
            maps.append(Map(size, math.sqrt(features), name="vectors_outer"))
        mixed = maps_of(vectors, maps, precision)
        norm = jnp.sqrt((mixed["vectors_right"] ** 2).sum(1) + self.floor)
        # V starts smaller than x by sqrt(features): its norm's kernel starts larger by as much.
        inputs = [
            (scalars, Map(features, math.sqrt(0.5), True, name="hidden_scalars")),
            (norm, Map(features, math.sqrt(0.5 * features), name="hidden_norm")),
        ]
        turned = None
        if tensors is not None:
            names = ["tensors_right", "tensors_left"] + ([] if last else ["tensors_kept"])
            mixed |= maps_of(tensors, [Map(size, name=name) for name in names], precision)
            tensor_norm = jnp.sqrt((mixed["tensors_right"] ** 2).sum(1) + self.floor)
            near = bounded(mixed["vectors_inner"])
            turned = contracted(mixed["tensors_left"], near)
            inner = (turned * near).sum(1)
            inputs.append((tensor_norm, Map(features, math.sqrt(0.5), name="hidden_tensor")))
            inputs.append((inner, Map(features, math.sqrt(0.5), name="hidden_inner")))
        hidden = activation(sum_of_maps(inputs, precision))

        widths = {"add": features, ("gate" if self.kind == "gated" else "inner"): features}
        if not last or direct:
            widths["vectors_gate"] = features
            widths |= {"turned_gate": features} if size else {}
        widths |= {"tensors_gate": size, "outer_gate": size} if size and not last else {}
        head = maps_of(hidden, [Map(width, BRANCH, True, name=name) for name, width in widths.items()], precision)

        if self.kind == "gated":
            change = head["add"] / math.sqrt(2) + scalars * jnp.tanh(head["gate"])
        else:
            products = (mixed["vectors_left"] * mixed["vectors_right"]).sum(1) / math.sqrt(features)
            change = (head["add"] + head["inner"] * products) / math.sqrt(2)
        scalars = scalars + change
        if last and not direct:
            return scalars, None, None
        vectors = vectors + head["vectors_gate"][:, None] * mixed["vectors_left"]
        if turned is not None:
            back = linear(features, "vectors_turned", 1 / math.sqrt(features), precision=precision)(turned)
            vectors = vectors + head["turned_gate"][:, None] * back
        if last or tensors is None:
            return scalars, vectors, None
        made = head["outer_gate"][:, None] * outer(near, bounded(mixed["vectors_outer"]))
        return scalars, vectors, tensors + head["tensors_gate"][:, None] * mixed["tensors_kept"] + made


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
