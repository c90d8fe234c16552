"""The floats of a pytree, which a gradient passes through, apart from all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split_floats(tree: Any) -> tuple[list[Any], list[Any], Callable[[list[Any], list[Any]], Any]]:
    """Leaves that are floats, the others, and the function that makes of both a pytree like this one again."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) for x in leaves]

    def join(floats: list[Any], others: list[Any]) -> Any:
        from_floats, from_others = iter(floats), iter(others)
        return jax.tree.unflatten(structure, [next(from_floats if one else from_others) for one in is_float])

    floats = [jnp.asarray(x) for x, one in zip(leaves, is_float, strict=True) if one]
    return floats, [x for x, one in zip(leaves, is_float, strict=True) if not one], join


def zero_of(leaf: Any) -> Any:
    """What stands in a gradient for a leaf that is no float: zeros, a random key as it is."""
    array = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jnp.zeros_like(array)
