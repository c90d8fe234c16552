"""Adjoints kept from growing: biased estimates of the gradient of a chaotic trajectory, each a stated thing.

The adjoint is what the reverse pass carries from step to step, the derivative of the loss by the state there. In a chaotic
system it grows as exp(lambda t) backwards in time. What keeps it bounded leaves out what happened long before, and so
gives the gradient of something else: the response within a time, not that of the average.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def decayed(moving: dict[str, Any], decay) -> dict[str, Any]:
    """The same numbers, through which derivatives pass ``decay`` times as large: n steps back they count decay^n."""
    return _decayed(moving, decay)


@jax.custom_jvp
def _decayed(moving, decay):
    del decay
    return moving


@_decayed.defjvp
def _decayed_along(primals, tangents):
    moving, decay = primals
    return moving, jax.tree.map(lambda t: t if _is_none(t) else t * jnp.asarray(decay, t.dtype), tangents[0])


@jax.custom_vjp
def clipped(moving: dict[str, Any], most) -> dict[str, Any]:
    """The same numbers, with the adjoint of each replica shrunk until that of its positions is no longer than ``most``.

    moving: with a leading axis of replicas. most: 1/Å, of the root of the sum of squares over all positions.
    """
    del most
    return moving


def _there(moving, most):
    return moving, most


def _back(most, adjoint):
    squared = (adjoint["positions"] ** 2).sum((1, 2))
    # Of zero the root has no derivative, should this be differentiated again.
    norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    factor = jnp.where(squared > most**2, most / norm, 1.0)

    def shrunk(x):
        return x if _is_none(x) else x * factor.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

    return jax.tree.map(shrunk, adjoint), jnp.zeros_like(most)


clipped.defvjp(_there, _back)


def _is_none(derivative) -> bool:
    """Whether it is that of whole numbers or random keys."""
    return derivative.dtype == jax.dtypes.float0


def cut(moving: dict[str, Any], here) -> dict[str, Any]:
    """The same numbers; no derivative passes where ``here``."""
    return jax.tree.map(lambda x: jnp.where(here, jax.lax.stop_gradient(x), x), moving)
