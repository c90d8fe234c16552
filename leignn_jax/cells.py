"""Cells and other matrices ``[3, 3]`` in closed form.

A product of positions with a cell, left to a device's matrix unit, is made in fewer digits: TF32 on a GPU, bfloat16 on a
TPU, which moves an atom of the next cell by 0.003 Å or 0.02 Å. Inverses and solutions by a library are several calls on a
GPU and a slow loop on a TPU. Written out both are exact to the dtype and part of the kernel that needs them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def transformed(rows: Float[Any, "... n 3"], matrix: Float[Any, "... 3 3"]) -> Float[Any, "... n 3"]:
    """``rows @ matrix``, such as positions by a strain or images by a cell, to the dtype's precision on every device."""
    parts = [rows[..., :, d, None] * matrix[..., None, d, :] for d in range(3)]
    return parts[0] + parts[1] + parts[2]


def inverse(matrix: Float[Any, "... 3 3"]) -> Float[Array, "... 3 3"]:
    """The inverse: cross products of the rows over the volume; infinite or NaN where the rows lie in one plane."""
    a, b, c = matrix[..., 0, :], matrix[..., 1, :], matrix[..., 2, :]
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], -1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None]
