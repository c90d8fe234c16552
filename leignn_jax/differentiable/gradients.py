"""Four ways to the same gradient of a rollout: one argument chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from leignn_jax.arguments import MOST_STEPS, check_choice, check_flag, check_whole
from leignn_jax.differentiable.floats import split_floats, zero_of
from leignn_jax.differentiable.rollout import Segment, rollout
from leignn_jax.errors import ConfigError
from leignn_jax.mapping import map_in_batches

Mode = Literal["reverse", "remat", "reversible", "forward"]

MODES = {
    "reverse": "plain reverse mode: fastest, memory grows with the number of steps",
    "remat": "reverse mode with rematerialised segments: memory of ten steps and few numbers more, a fourth more time",
    "reversible": "reverse mode that undoes the steps, kept in whole numbers: memory of one step; NVE, nvt, Langevin",
    "forward": "forward mode: memory of one step, time grows with the number of inputs",
}


def value_and_grad(
    loss: Callable[..., Any],
    mode: Mode = "reverse",
    *,
    segment: Segment = "recursive",
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
        ConfigError: an unknown mode; in mode "remat", a loss that does not call the rollout that it is given, and so would
            not be rematerialised; a loss that is no scalar.
    """
    check_choice("mode", mode, MODES)
    if not callable(loss):
        raise ConfigError(f"loss must be a function of an argument and a rollout, not {type(loss).__name__}.")
    check_whole("inputs_at_once", inputs_at_once, 1, MOST_STEPS)
    check_flag("has_aux", has_aux)
    in_mode: dict[str, Any] = {"remat": {"segment": segment}, "reversible": {"reversible": True}}.get(mode, {})

    def of_argument(argument):
        called = []

        def run(*args, **kwargs):
            called.append(True)
            given = [name for name in ("clip", "reversible") if kwargs.get(name)]
            if mode == "forward" and given:
                raise ConfigError(
                    f"{given[0]} is of the reverse pass, and mode 'forward' has none: leave one of them out."
                )
            return rollout(*args, **{**in_mode, **kwargs})

        out = loss(argument, run)
        if in_mode and not called:
            raise ConfigError(
                f"The loss has not called the rollout that it was given: one from elsewhere is not in mode {mode!r}. Write "
                "`def loss(argument, rollout)` and call that `rollout`, or use mode 'reverse'."
            )
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise ConfigError("With has_aux=True the loss must return (scalar, aux).")
        value, aux = out if has_aux else (out, None)
        kind = getattr(value, "dtype", np.result_type(type(value)) if isinstance(value, float) else None)
        if np.shape(value) != () or kind is None or not jnp.issubdtype(kind, jnp.floating):
            raise ConfigError(f"The loss must return one number, not {value!r:.100}.")
        return value, aux

    differentiate = partial(_forward, at_once=inputs_at_once) if mode == "forward" else _reverse

    @jax.jit
    def value_and_gradient(argument):
        values, others, join = split_floats(argument)
        (value, aux), gradients = differentiate(lambda values: of_argument(join(values, others)), values)
        return ((value, aux) if has_aux else value), join(gradients, [zero_of(x) for x in others])

    return value_and_gradient


def _reverse(function, values):
    return jax.value_and_grad(function, has_aux=True)(values)


def _forward(function, values, *, at_once: int):
    flat, restore = ravel_pytree(values)

    def along(index):
        direction = jnp.zeros_like(flat).at[index].set(1.0)
        return jax.jvp(lambda x: function(restore(x)), (flat,), (direction,), has_aux=True)[1]

    slopes = map_in_batches(along, jnp.arange(flat.shape[0]), at_once)
    return function(values), restore(slopes.astype(flat.dtype))
