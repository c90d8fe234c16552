"""Several matrix products in one: of one array with many matrices, and the sum of many arrays' products.

Each is the other's transpose. As single products the backward pass of the first is as many products and additions of their
results, each a kernel of its own that a GPU has to be told of; joined, it is one product of arrays side by side. On a CPU
and a TPU, where that copies what single products need not, they stay single (experiments/accelerators).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from leignn_jax.pair_ops import AnyArray


def fan_out(x: AnyArray, matrices: Sequence[AnyArray], precision: str | None = None) -> list[jax.Array]:
    """``[x @ w for w in matrices]``: ``[..., K]`` times ``[K, N]`` each, ``[..., N]``; all of one dtype."""
    return _fan_out.bind(x, *matrices, transposed=False, precision=precision)


def fan_in(xs: Sequence[AnyArray], matrices: Sequence[AnyArray], precision: str | None = None) -> jax.Array:
    """``sum(x @ w)``: ``[..., K]`` times ``[K, N]`` each, all of the same leading axes, N and dtype."""
    return _fan_in.bind(*xs, *matrices, transposed=False, precision=precision)


def _dot(x, w, transposed, precision):
    """``x @ w``, or ``x @ w.T``."""
    return lax.dot_general(x, w, (((x.ndim - 1,), (1 if transposed else 0,)), ((), ())), precision=precision)


def _outer(x, g, transposed, precision):
    """The cotangent of ``w`` where that of ``_dot(x, w)`` is ``g``."""
    rows = tuple(range(x.ndim - 1))
    left, right = (g, x) if transposed else (x, g)
    return lax.dot_general(left, right, ((rows, rows), ((), ())), precision=precision)


def _fan_out_alone(x, *matrices, transposed, precision):
    return [_dot(x, w, transposed, precision) for w in matrices]


def _fan_out_joined(x, *matrices, transposed, precision):
    if len(matrices) == 1:
        return _fan_out_alone(x, *matrices, transposed=transposed, precision=precision)
    axis = 0 if transposed else 1
    ends = [w.shape[axis] for w in matrices]
    out = _dot(x, jnp.concatenate(matrices, axis), transposed, precision)
    starts = [sum(ends[:k]) for k in range(len(ends))]
    return [lax.slice_in_dim(out, start, start + n, axis=out.ndim - 1) for start, n in zip(starts, ends, strict=True)]


def _fan_in_alone(*operands, transposed, precision):
    many = len(operands) // 2
    terms = [_dot(x, w, transposed, precision) for x, w in zip(operands[:many], operands[many:], strict=True)]
    return sum(terms[1:], terms[0])


def _fan_in_joined(*operands, transposed, precision):
    many = len(operands) // 2
    if many == 1:
        return _fan_in_alone(*operands, transposed=transposed, precision=precision)
    x = jnp.concatenate(operands[:many], axis=-1)
    return _dot(x, jnp.concatenate(operands[many:], axis=1 if transposed else 0), transposed, precision)


_fan_out = Primitive("fan_out")
_fan_out.multiple_results = True
_fan_in = Primitive("fan_in")


def _register(primitive: Primitive, alone, joined) -> None:
    """Shapes, evaluation, and one form for each platform."""

    def abstract(*operands, **params):
        shapes = (jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands)
        out = jax.eval_shape(partial(alone, **params), *shapes)
        found = [ShapedArray(one.shape, one.dtype) for one in (out if primitive.multiple_results else [out])]
        return found if primitive.multiple_results else found[0]

    def batch(operands, axes, **params):
        shared = operands[1:] if primitive is _fan_out else operands[len(operands) // 2 :]
        if any(axis is not None for axis in axes[len(axes) - len(shared) :]):
            # Matrices of many models: each has products of its own. Of rows that the models share they come out side by side
            # as one product's, and stay there.
            rows = operands[: -len(shared)]
            k = rows[0].ndim - 1 if all(axis is None for axis in axes[: len(rows)]) else 0
            out = jax.vmap(partial(alone, **params), in_axes=tuple(axes), out_axes=k)(*operands)
            return (out, [k] * len(out)) if primitive.multiple_results else (out, k)
        # One more leading axis of rows.
        (size,) = {o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None}
        rows = [
            jnp.broadcast_to(o, (size, *o.shape)) if a is None else jnp.moveaxis(o, a, 0)
            for o, a in zip(operands[: -len(shared)], axes, strict=False)
        ]
        out = primitive.bind(*rows, *shared, **params)
        return (out, [0] * len(out)) if primitive.multiple_results else (out, 0)

    primitive.def_impl(alone)
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    lower = partial(mlir.lower_fun, multiple_results=primitive.multiple_results)
    mlir.register_lowering(primitive, lower(alone))
    for platform in ("cuda", "rocm"):
        mlir.register_lowering(primitive, lower(joined), platform=platform)


_register(_fan_out, _fan_out_alone, _fan_out_joined)
_register(_fan_in, _fan_in_alone, _fan_in_joined)


def _there(tangents) -> list[int]:
    return [k for k, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]


def _fan_out_jvp(primals, tangents, **params):
    (x, *matrices), (dx, *changes) = primals, tangents
    out = _fan_out.bind(*primals, **params)
    found: list[Any] = [ad.Zero(ShapedArray(one.shape, one.dtype)) for one in out]
    if type(dx) is not ad.Zero:
        found = _fan_out.bind(dx, *matrices, **params)
    changed = _there(changes)
    terms = _fan_out.bind(x, *(changes[k] for k in changed), **params) if changed else []
    for k, term in zip(changed, terms, strict=True):
        found[k] = ad.add_tangents(found[k], term)
    return out, found


def _fan_in_jvp(primals, tangents, **params):
    many = len(primals) // 2
    xs, matrices = primals[:many], primals[many:]
    terms = []
    if moved := _there(tangents[:many]):
        terms.append(_fan_in.bind(*(tangents[k] for k in moved), *(matrices[k] for k in moved), **params))
    if changed := _there(tangents[many:]):
        terms.append(_fan_in.bind(*(xs[k] for k in changed), *(tangents[many + k] for k in changed), **params))
    return _fan_in.bind(*primals, **params), sum(terms[1:], terms[0])


def _fan_out_transpose(cotangents, x, *matrices, transposed, precision):
    there = _there(cotangents)
    if ad.is_undefined_primal(x):
        if not there:
            return [ad.Zero(x.aval), *(None for _ in matrices)]
        operands = (*(cotangents[k] for k in there), *(matrices[k] for k in there))
        return [_fan_in.bind(*operands, transposed=not transposed, precision=precision), *(None for _ in matrices)]
    found = [
        ad.Zero(w.aval) if type(g) is ad.Zero else _outer(x, g, transposed, precision)
        for g, w in zip(cotangents, matrices, strict=True)
    ]
    return [None, *found]


def _fan_in_transpose(cotangent, *operands, transposed, precision):
    many = len(operands) // 2
    xs, matrices = operands[:many], operands[many:]
    if type(cotangent) is ad.Zero:
        return [ad.Zero(o.aval) if ad.is_undefined_primal(o) else None for o in operands]
    if ad.is_undefined_primal(xs[0]):
        found = _fan_out.bind(cotangent, *matrices, transposed=not transposed, precision=precision)
        return [*found, *(None for _ in matrices)]
    return [*(None for _ in xs), *(_outer(x, cotangent, transposed, precision) for x in xs)]


ad.primitive_jvps[_fan_out] = _fan_out_jvp
ad.primitive_jvps[_fan_in] = _fan_in_jvp
ad.primitive_transposes[_fan_out] = _fan_out_transpose
ad.primitive_transposes[_fan_in] = _fan_in_transpose
