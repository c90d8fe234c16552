r"""Sums over neighbours as multilinear primitives whose derivatives are each other.

A filter depends on the distance alone, so the two directed edges of a pair share it. Every array that is wide in
features is therefore kept per *pair* ``[pairs, features]``, half the size of a directed edge list, and every sum over
neighbours runs through the dense table ``neighbor_pairs [atoms, neighbors]``. Three operations are closed under
differentiation:

======================  =========================================================================================
``pair_sum``            out_i[m]   = sum_k s_ik sum_q c_p[m, q] w_p y_j[q]                    pairs -> atoms
``pair_weight``         out_p      = sum_mq c_p[m, q] (g_a[m] y_b[q] + s g_b[m] y_a[q])       atoms -> pairs
``pair_coefficient``    out_p[m,q] = sum_f  w_p (g_a[m] y_b[q] + s g_b[m] y_a[q])             atoms -> pairs
======================  =========================================================================================

with p the pair of atom i and its k-th neighbour j, a = receivers[p], b = senders[p]. For ``odd`` coefficients (vectors,
which change sign with the direction of the edge) s_ik is +1 where i = a and -1 where i = b, and s = -1; else both are 1.
Each is linear in each of its array arguments and the transpose of one is another of the three, at every order, so that
neither forces nor the gradient of a force loss nor a Hessian needs a scatter: all sums run in a fixed order and a
result is the same bits at every run. Weights and features may be bfloat16: products and sums are float32 at least.

Under ``vmap`` over graphs their tables are joined: a batch of graphs is one larger graph. Under ``vmap`` over what shares a
graph, the members of a population or the columns of a Hessian, rows become wider: weights ``[pairs, B, F]``, features
``[atoms, Q, B, F]``, coefficients ``[pairs, M, Q, B]``, without B where members share them. On GPU and TPU an entry of the
tables is then read once for all members, and what they share is not copied for each; on CPU, where one member's rows stay in
the cache and those of many do not, members are graphs of a batch.

What bounds them is memory traffic: ``pair_sum`` reads one row of ``w`` and Q rows of ``y`` per directed edge. On CPU it
goes through the neighbour table column by column, which XLA turns into one fused loop of gather, multiply and add;
elsewhere XLA fuses the whole expression into one kernel, on a GPU once it is told which axis lies innermost; on a TPU
products are written out, so they are summed by blocks of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.core import ShapedArray
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Arrays of a graph are NumPy's on the host and JAX's on the device.
AnyArray = jax.Array | np.ndarray

# Bytes of the running sums of one block of atoms: so that they stay in the cache. Measured in experiments/layout.
_BLOCK_BYTES = 1 << 21
# On a TPU of the products of one block of atoms, which are written out before they are summed, in lanes of 128. Without
# blocks they take three times the memory; smaller ones cost cycles (experiments/accelerators).
_TPU_BLOCK_BYTES, _LANES = 1 << 24, 128


@struct.dataclass
class PairLists:
    """Which atoms form which pairs, from both sides. Padding entries have sign 0 and point at row 0.

    receivers, senders: ``[pairs]`` int32, the two atoms a and b of every pair.
    neighbors: ``[atoms, neighbors]`` int32, the atom at the other end.
    neighbor_pairs: ``[atoms, neighbors]`` int32, the pair.
    neighbor_signs: ``[atoms, neighbors]`` int8, +1 where the atom is the pair's receiver, -1 sender, 0 padding.
    """

    receivers: Any
    senders: Any
    neighbors: Any
    neighbor_pairs: Any
    neighbor_signs: Any


def pair_sum(lists: PairLists, weights, features, coefficients=None, *, odd: bool = False):
    """Sum over each atom's neighbours of weight times feature, out_i[m] = sum_k s_ik sum_q c_p[m, q] w_p y_j[q].

    Args:
        lists: the pairs.
        weights: ``[pairs, F]``, one value per pair and feature.
        features: ``[atoms, Q, F]``.
        coefficients: ``[pairs, M, Q]``; None is the identity, M = Q.
        odd: the coefficients change sign with the direction of the edge, as vectors do.

    Returns:
        ``[atoms, M, F]``.
    """
    if coefficients is None:
        return _sum.bind(weights, features, *_tables(lists))
    return _coupled_sum.bind(weights, coefficients, features, *_tables(lists), odd=odd)


def pair_difference(lists: PairLists, features):
    """Sender minus receiver of every pair: ``[atoms, Q]`` to ``[pairs, Q]``."""
    return _difference.bind(features, *_tables(lists))


def pair_divergence(lists: PairLists, flow):
    """Transpose of :func:`pair_difference`, ``[pairs, Q]`` to ``[atoms, Q]``: a sender gains, a receiver loses."""
    return _divergence.bind(flow, *_tables(lists))


def _tables(lists: PairLists):
    return lists.receivers, lists.senders, lists.neighbors, lists.neighbor_pairs, lists.neighbor_signs


# ---------------------------------------------------------------------------------------------------------------------
# What each operation computes. ``rows`` are the entries of the pair lists of one block of atoms or pairs. Members are one
# more axis of all arrays, or of none.


def _take(array, index):
    return array.at[index].get(mode="promise_in_bounds")


def _signs(signs, odd, dtype):
    return (signs if odd else jnp.abs(signs)).astype(dtype)


def _products(receivers, senders, left, right, odd):
    """Features of both ends multiplied, forward plus (odd: minus) backward, for every m and q."""
    forward = _take(left, receivers) * _take(right, senders)
    backward = _take(left, senders) * _take(right, receivers)
    return forward - backward if odd else forward + backward


def _sum_rule(arrays, tables, platform):
    weights, features = arrays
    _, _, neighbors, pairs, signs = tables

    dtype = _sum_dtype(weights, features)

    def slot(neighbors, pairs, signs):
        w = _take(weights, pairs).astype(dtype) * _like(_signs(signs, False, dtype), weights)
        return jnp.expand_dims(w, signs.ndim) * _take(features, neighbors)

    shape = (features.shape[1], *np.broadcast_shapes(weights.shape[1:], features.shape[2:]))
    return _sum_slots(slot, (neighbors, pairs, signs), shape, dtype, platform)


def _coupled_sum_rule(arrays, tables, platform, odd):
    weights, coefficients, features = arrays
    _, _, neighbors, pairs, signs = tables
    rows, columns = coefficients.shape[1:3]

    def slot(neighbors, pairs, signs):
        axis = signs.ndim
        c = _take(coefficients, pairs) * _like(_signs(signs, odd, coefficients.dtype), coefficients)
        w, y, c = _take(weights, pairs).astype(c.dtype), _take(features, neighbors), c[..., None]
        if platform == "cpu" and rows < columns:
            # Written out as below, the sum over columns takes XLA:CPU seven times as long.
            return jnp.expand_dims(w, axis) * (c * jnp.expand_dims(y, axis)).sum(axis + 1)
        column = partial(lax.index_in_dim, keepdims=False)
        terms = ((column(c, q, axis + 1), w * column(y, q, axis)) for q in range(columns))
        return sum(c * jnp.expand_dims(wy, axis) for c, wy in terms)

    shape = (rows, *np.broadcast_shapes(weights.shape[1:], features.shape[2:], (*coefficients.shape[3:], 1)))
    return _sum_slots(slot, (neighbors, pairs, signs), shape, _sum_dtype(weights, coefficients, features), platform)


def _weight_rule(arrays, tables, platform):
    receivers, senders, *_ = tables
    left, right = (x.astype(_sum_dtype(x)) for x in arrays)
    return sum(_products(receivers, senders, left[:, q], right[:, q], False) for q in range(left.shape[1]))


def _coupled_weight_rule(arrays, tables, platform, odd):
    coefficients, left, right = (x.astype(_sum_dtype(x)) for x in arrays)
    receivers, senders, *_ = tables
    return sum(
        coefficients[:, m, q, ..., None] * _products(receivers, senders, left[:, m], right[:, q], odd)
        for m in range(left.shape[1])
        for q in range(right.shape[1])
    )


def _coefficient_rule(arrays, tables, platform, odd):
    weights, left, right = (x.astype(_sum_dtype(x)) for x in arrays)

    def block(rows):
        receivers, senders, w = rows
        products = _products(receivers, senders, left[:, :, None], right[:, None], odd) * w[:, None, None]
        if platform not in ("cpu", "tpu"):
            return products.sum(-1)
        # XLA sums a contiguous axis on CPU one number after another; as a matrix product it is vectorised.
        return jnp.dot(products, jnp.ones(products.shape[-1], products.dtype), precision="highest")

    rows = (*tables[:2], weights)
    row_bytes = 2 * _row_bytes(left, right)
    return _in_blocks(block, rows, row_bytes, _BLOCK_BYTES) if platform == "cpu" else block(rows)


def _difference_rule(arrays, tables, platform):
    (features,), (receivers, senders, *_) = arrays, tables
    return _take(features, senders) - _take(features, receivers)


def _divergence_rule(arrays, tables, platform):
    (flow,), (_, _, _, pairs, signs) = arrays, tables

    def slot(pairs, signs):
        return -_take(flow, pairs) * _like(_signs(signs, True, flow.dtype), flow)

    return _sum_slots(slot, (pairs, signs), flow.shape[1:], flow.dtype, platform)


def _like(signs, array):
    """Signs of entries, to be multiplied with their rows of an array."""
    return jnp.expand_dims(signs, tuple(range(signs.ndim, signs.ndim + array.ndim - 1)))


def _row_bytes(*arrays) -> int:
    return sum(a.size // max(a.shape[0], 1) * a.dtype.itemsize for a in arrays)


def _sum_dtype(*arrays):
    """What sums and products are computed in: at least float32, whatever is gathered."""
    return jnp.result_type(jnp.float32, *arrays)


def _sum_slots(slot, table, shape, dtype, platform):
    """Sum ``slot`` over the columns of the neighbour table, for every atom.

    On CPU one column after another for a block of atoms: the running sums stay in the cache and the innermost loop runs
    along the features. As one expression XLA would run along the neighbours and read one number per cache line.
    """
    if platform == "tpu":
        lanes = -(-shape[-1] // _LANES) * _LANES
        row_bytes = table[0].shape[1] * math.prod(shape[:-1]) * lanes * jnp.dtype(dtype).itemsize
        return _in_blocks(lambda rows: slot(*rows).sum(1), table, row_bytes, _TPU_BLOCK_BYTES)
    if platform != "cpu":
        products = slot(*table)
        if platform == "gpu":
            # Left to itself XLA:GPU makes the summed axis the innermost one: gathers become transposes, and what is summed
            # is written and read again. On a TPU the same hint doubles the cycles.
            products = with_layout_constraint(products, Layout(tuple(range(products.ndim))))
        return products.sum(1)

    def block(rows):
        def add(total, column):
            return total + slot(*column), None

        zero = jnp.zeros((rows[0].shape[0], *shape), dtype)
        return lax.scan(add, zero, tuple(x.T for x in rows), unroll=2)[0]

    return _in_blocks(block, table, math.prod(shape) * jnp.dtype(dtype).itemsize, _BLOCK_BYTES)


def _in_blocks(function, rows, row_bytes: int, block_bytes: int):
    """``function(rows)`` by blocks of the leading axis, of about ``block_bytes`` each at ``row_bytes`` a row."""
    total = rows[0].shape[0]
    blocks = -(-total * row_bytes // block_bytes)
    if blocks <= 1:
        return function(tuple(rows))
    size = -(-total // blocks)
    blocks = -(-total // size)
    pad = blocks * size - total

    def split(x):
        x = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
        return x.reshape(blocks, size, *x.shape[1:])

    out = lax.map(function, tuple(split(x) for x in rows))
    return out.reshape(blocks * size, *out.shape[2:])[:total]


# ---------------------------------------------------------------------------------------------------------------------
# The primitives: one rule each for JIT, forward mode and vmap, and the table of transposes at the end.


class Kind(NamedTuple):
    """Of an array: how many axes it has where members share it, and the place of their axis, from the end, where not."""

    axes: int
    members: int

    @property
    def rows(self) -> bool:
        """Whether features follow the members."""
        return self.members == -2

    def has_members(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > self.axes

    def count(self, shape: tuple[int, ...]) -> int:
        return shape[self.members] if self.has_members(shape) else 1

    def with_members(self, x):
        return x if self.has_members(x.shape) else jnp.expand_dims(x, x.ndim + 1 + self.members)


_WEIGHTS, _FEATURES, _COEFFICIENTS, _VALUES = Kind(2, -2), Kind(3, -2), Kind(3, -1), Kind(2, -1)
# Of every primitive, the kinds of the operands that it is linear in, and what it computes on a platform.
_kinds: dict[Primitive, tuple[Kind, ...]] = {}
_forms: dict[Primitive, Callable[..., jax.Array]] = {}


def _primitive(name: str, rule, kinds: tuple[Kind, ...], out_kind: Kind) -> Primitive:
    """A primitive linear in each of its first operands, of these kinds, which the five pair tables follow."""
    primitive = Primitive(name)
    arrays = len(kinds)
    _kinds[primitive] = kinds

    def implementation(*operands, platform=None, **params):
        given, tables = operands[:arrays], operands[arrays:]
        each = list(zip(kinds, given, strict=True))
        if not any(kind.has_members(x.shape) for kind, x in each):
            return rule(given, tables, platform, **params)
        members = max(kind.count(x.shape) for kind, x in each)
        if platform == "cpu":
            # One member after another: its rows stay in the cache.
            axes = [kind.members + x.ndim if kind.has_members(x.shape) else None for kind, x in each]
            joined = one_graph(members, operands, [*axes, *[None] * len(tables)])
            out = rule(joined[:arrays], joined[arrays:], platform, **params)
            return jnp.moveaxis(out.reshape(members, -1, *out.shape[1:]), 0, out_kind.members)
        if out_kind.rows and all(kind.has_members(x.shape) == kind.rows for kind, x in each):
            # Members and features are one axis: full lanes.
            rows = [x.reshape(*x.shape[:-2], -1) if kind.rows else x for kind, x in each]
            out = rule(rows, tables, platform, **params)
            return out.reshape(*out.shape[:-1], members, -1)
        return rule([kind.with_members(x) for kind, x in each], tables, platform, **params)

    def abstract(*operands, **params):
        out = jax.eval_shape(
            partial(implementation, **params), *(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands)
        )
        return ShapedArray(out.shape, out.dtype)

    def jvp(primals, tangents, **params):
        out = primitive.bind(*primals, **params)
        terms = [
            primitive.bind(*primals[:k], ad.instantiate_zeros(t), *primals[k + 1 :], **params)
            for k, t in enumerate(tangents[:arrays])
            if type(t) is not ad.Zero
        ]
        return out, sum(terms[1:], terms[0])

    def batch(operands, axes, **params):
        (size,) = {o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None}
        if all(axis is None for axis in axes[arrays:]):
            return side_by_side(size, operands, axes, params)
        out = primitive.bind(*one_graph(size, operands, axes), **params)
        return out.reshape(size, -1, *out.shape[1:]), 0

    def one_graph(size, operands, axes):
        # A batch of graphs is one larger graph: fold the new axis into atoms and pairs and shift the indices.
        operands = [
            jnp.broadcast_to(o, (size, *o.shape)) if a is None else jnp.moveaxis(o, a, 0)
            for o, a in zip(operands, axes, strict=True)
        ]
        receivers, senders, neighbors, pairs, signs = operands[arrays:]
        copy = jnp.arange(size, dtype=receivers.dtype)
        atoms_before, pairs_before = copy * neighbors.shape[1], copy * receivers.shape[1]
        tables = (
            receivers + atoms_before[:, None],
            senders + atoms_before[:, None],
            neighbors + atoms_before[:, None, None],
            pairs + pairs_before[:, None, None],
            signs,
        )
        return [x.reshape(-1, *x.shape[2:]) for x in (*operands[:arrays], *tables)]

    def side_by_side(size, operands, axes, params):
        # What shares the graph: the new axis is that of members. What is the same for all is not repeated.
        given = [o if a is None else jnp.moveaxis(o, a, 0) for o, a in zip(operands, axes, strict=True)][:arrays]
        shapes = [x.shape if a is None else x.shape[1:] for x, a in zip(given, axes, strict=False)]
        nested = any(kind.has_members(shape) for kind, shape in zip(kinds, shapes, strict=True))
        count = max(kind.count(shape) for kind, shape in zip(kinds, shapes, strict=True))

        def widened(x, axis, kind, shape):
            members = kind.has_members(shape)
            if axis is None and not members:
                return x
            if not nested:
                return jnp.moveaxis(x, 0, kind.members)
            # Members of members.
            x = x if members else jnp.expand_dims(x, x.ndim + 1 + kind.members)
            whole = [size, *(x.shape if axis is None else x.shape[1:])]
            whole[kind.members] = count
            x = jnp.moveaxis(jnp.broadcast_to(x, whole), 0, kind.members - 1)
            k = x.ndim + kind.members - 1
            return x.reshape(*x.shape[:k], size * count, *x.shape[k + 2 :])

        wide = [widened(*one) for one in zip(given, axes, kinds, shapes, strict=False)]
        out = primitive.bind(*wide, *operands[arrays:], **params)
        k = out.ndim + out_kind.members
        return (out.reshape(*out.shape[:k], size, count, *out.shape[k + 1 :]) if nested else out), k

    @cache
    def compiled(**params):
        # Kept: a function that JAX has not met is compiled anew, at each call outside of jit.
        return jax.jit(partial(primitive.bind, **params))

    primitive.def_impl(lambda *operands, **params: compiled(**params)(*operands))
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    _forms[primitive] = implementation
    lower = partial(mlir.lower_fun, multiple_results=False)
    mlir.register_lowering(primitive, lower(implementation))
    for name, kind in (("cpu", "cpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")):
        mlir.register_lowering(primitive, lower(partial(implementation, platform=kind)), platform=name)
    return primitive


_sum = _primitive("pair_sum", _sum_rule, (_WEIGHTS, _FEATURES), _FEATURES)
_weight = _primitive("pair_weight", _weight_rule, (_FEATURES, _FEATURES), _WEIGHTS)
_coupled_sum = _primitive("pair_coupled_sum", _coupled_sum_rule, (_WEIGHTS, _COEFFICIENTS, _FEATURES), _FEATURES)
_coupled_weight = _primitive(
    "pair_coupled_weight", _coupled_weight_rule, (_COEFFICIENTS, _FEATURES, _FEATURES), _WEIGHTS
)
_coefficient = _primitive("pair_coefficient", _coefficient_rule, (_WEIGHTS, _FEATURES, _FEATURES), _COEFFICIENTS)
_difference = _primitive("pair_difference", _difference_rule, (_VALUES,), _VALUES)
_divergence = _primitive("pair_divergence", _divergence_rule, (_VALUES,), _VALUES)


def _transposes(primitive: Primitive, *rules) -> None:
    """Register, for each array operand k, ``rules[k](cotangent, arrays, tables, **params)``."""

    def transpose(cotangent, *operands, **params):
        arrays, tables = operands[: len(rules)], operands[len(rules) :]
        out: list[Any] = [None] * len(operands)
        for k, operand in enumerate(arrays):
            if ad.is_undefined_primal(operand):
                if type(cotangent) is ad.Zero:
                    out[k] = ad.Zero(operand.aval)
                else:
                    found = rules[k](cotangent, arrays, tables, **params)
                    # Where members share the operand, their parts are added.
                    shared = found.ndim > operand.aval.ndim
                    total = found.sum(_kinds[primitive][k].members) if shared else found
                    out[k] = total.astype(operand.aval.dtype)
        return out

    ad.primitive_transposes[primitive] = transpose


def _swap(c):
    return jnp.swapaxes(c, 1, 2)


def _parity(odd: bool) -> int:
    return -1 if odd else 1


_transposes(
    _sum,
    lambda g, a, t: _weight.bind(g, a[1], *t),
    lambda g, a, t: _sum.bind(a[0], g, *t),
)
_transposes(
    _weight,
    lambda w, a, t: _sum.bind(w, a[1], *t),
    lambda w, a, t: _sum.bind(w, a[0], *t),
)
_transposes(
    _coupled_sum,
    lambda g, a, t, odd: _coupled_weight.bind(a[1], g, a[2], *t, odd=odd),
    lambda g, a, t, odd: _coefficient.bind(a[0], g, a[2], *t, odd=odd),
    lambda g, a, t, odd: _parity(odd) * _coupled_sum.bind(a[0], _swap(a[1]), g, *t, odd=odd),
)
_transposes(
    _coupled_weight,
    lambda w, a, t, odd: _coefficient.bind(w, a[1], a[2], *t, odd=odd),
    lambda w, a, t, odd: _coupled_sum.bind(w, a[0], a[2], *t, odd=odd),
    lambda w, a, t, odd: _parity(odd) * _coupled_sum.bind(w, _swap(a[0]), a[1], *t, odd=odd),
)
_transposes(
    _coefficient,
    lambda c, a, t, odd: _coupled_weight.bind(c, a[1], a[2], *t, odd=odd),
    lambda c, a, t, odd: _coupled_sum.bind(a[0], c, a[2], *t, odd=odd),
    lambda c, a, t, odd: _parity(odd) * _coupled_sum.bind(a[0], _swap(c), a[1], *t, odd=odd),
)
_transposes(_difference, lambda w, a, t: _divergence.bind(w, *t))
_transposes(_divergence, lambda f, a, t: _difference.bind(f, *t))
