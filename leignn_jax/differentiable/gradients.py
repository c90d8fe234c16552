"""Three ways to the same gradient of a rollout: one argument chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from leignn_jax.differentiable.rollout import rollout
from leignn_jax.errors import ConfigError
from leignn_jax.models.config import did_you_mean

Mode = Literal["reverse", "remat", "forward"]

MODES = {
    "reverse": "plain reverse mode: fastest, memory grows with the number of steps",
    "remat": "reverse mode with rematerialised segments: memory grows with its square root, a third more time",
    "forward": "forward mode: memory of one step, time grows with the number of inputs",
}


def value_and_grad(
    loss: Callable[..., Any],
    mode: Mode = "reverse",
    *,
    segment: int | Literal["sqrt"] = "sqrt",
    inputs_at_once: int = 8,
    has_aux: bool = False,
) -> Callable[[Any], tuple[Any, Any]]:
    """A function from a pytree to the loss and its gradient, compiled.

    Args:
        loss: ``(argument, rollout) -> scalar`` (and aux): differentiated by all floats of the argument. It calls the
            ``rollout`` that it is given, :func:`leignn_jax.differentiable.rollout` in the chosen mode.
        mode: one of ``MODES``.
        segment: of mode "remat", see :func:`rollout`.
        inputs_at_once: of mode "forward", how many directions go through the rollout side by side.
        has_aux: the loss returns ``(scalar, aux)``; the function returns ``((scalar, aux), gradient)``.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode: {mode!r} is not known{did_you_mean(str(mode), MODES)} One of {list(MODES)}.")
    run = partial(rollout, segment=segment) if mode == "remat" else rollout
    if mode == "forward":
        return jax.jit(partial(_forward, loss=loss, run=run, at_once=inputs_at_once, has_aux=has_aux))
    return jax.jit(_allow_integers(lambda argument: loss(argument, run), has_aux))


def _allow_integers(function, has_aux: bool):
    """Gradient by the floats of a pytree; leaves of other kinds get None-like zeros of their own kind."""

    def value_and_gradient(argument):
        leaves, tree = jax.tree.flatten(argument)
        floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]

        def of_floats(values):
            filled = list(leaves)
            for i, value in zip(floats, values, strict=True):
                filled[i] = value
            return function(jax.tree.unflatten(tree, filled))

        start = [jnp.asarray(leaves[i]) for i in floats]
        value, gradients = jax.value_and_grad(of_floats, has_aux=has_aux)(start)
        return value, _filled(leaves, tree, floats, gradients)

    return value_and_gradient


def _forward(argument, *, loss, run, at_once: int, has_aux: bool):
    leaves, tree = jax.tree.flatten(argument)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)]
    flat, restore = ravel_pytree([jnp.asarray(leaves[i]) for i in floats])

    def of_flat(flat):
        filled = list(leaves)
        for i, value in zip(floats, restore(flat), strict=True):
            filled[i] = value
        out = loss(jax.tree.unflatten(tree, filled), run)
        return out if has_aux else (out, None)

    def along(index):
        direction = jnp.zeros_like(flat).at[index].set(1.0)
        _, slope, _ = jax.jvp(of_flat, (flat,), (direction,), has_aux=True)
        return slope

    value, aux = of_flat(flat)
    slopes = jax.lax.map(along, jnp.arange(flat.shape[0]), batch_size=min(at_once, flat.shape[0]))
    gradient = _filled(leaves, tree, floats, restore(slopes.astype(flat.dtype)))
    return ((value, aux) if has_aux else value), gradient


def _filled(leaves, tree, floats, gradients):
    """The gradient as a pytree like the argument, zeros where a leaf is no float."""
    out = [jnp.zeros_like(jnp.asarray(x)) if not _is_key(x) else x for x in leaves]
    for i, gradient in zip(floats, gradients, strict=True):
        out[i] = gradient
    return jax.tree.unflatten(tree, out)


def _is_key(x) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)
