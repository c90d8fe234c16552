"""A function of many rows, and its derivatives in many directions, some of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_in_batches(function: Callable[[Any], Any], values: Any, most: int) -> Any:
    """``function`` of every row of ``values`` (a pytree of ``[rows, ...]``), at most ``most`` rows at a time; pure.

    As ``jax.lax.map`` with a ``batch_size``, which compiles the function a second time for the rows left of whole batches:
    here batches are all of one size, about equal to ``most``, the last one filled up with the first row.
    """
    count = jax.tree.leaves(values)[0].shape[0]
    batches = max(1, -(-count // most))
    if batches == 1:
        return jax.vmap(function)(values)
    size = -(-count // batches)

    def split(x):
        filled = jnp.concatenate([x, jnp.broadcast_to(x[:1], (batches * size - count, *x.shape[1:]))])
        return filled.reshape(batches, size, *x.shape[1:])

    out = jax.lax.map(jax.vmap(function), jax.tree.map(split, values))
    return jax.tree.map(lambda x: x.reshape(batches * size, *x.shape[2:])[:count], out)


def derivatives_by(function: Callable[[Any], Any], x: Any, places: Any, most: int) -> Any:
    """Derivatives ``[chosen, *result]`` of ``function`` by the elements of the array ``x`` at ``places``, ``[chosen]``
    numbers into it flattened; forward mode, at most ``most`` side by side; pure."""
    x = jnp.asarray(x)

    def along(place):
        direction = (jnp.arange(x.size) == place).astype(x.dtype).reshape(x.shape)
        return jax.jvp(function, (x,), (direction,))[1]

    return map_in_batches(along, jnp.asarray(places), most)
