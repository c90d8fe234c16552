r"""Traceless symmetric tensors of rank 2, five numbers each, in the basis E_m that makes their product a dot product and
whose order and signs are those of e3nn's ``2e``.

What a sum of directions u over neighbours is to dipoles, a sum of u u^T - 1/3 is to quadrupoles: with it an atom tells a
square from a tetrahedron around it, which scalars and vectors of one layer can't; and it passes that on.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# E_m [5, 3, 3]: tr(E_m E_n) = 1 where m = n, else 0.
_S = math.sqrt(0.5)
BASIS = np.zeros((5, 3, 3))
BASIS[0, 0, 2] = BASIS[0, 2, 0] = BASIS[1, 0, 1] = BASIS[1, 1, 0] = BASIS[3, 1, 2] = BASIS[3, 2, 1] = _S
BASIS[2] = np.diag([-1.0, 2.0, -1.0]) / math.sqrt(6)
BASIS[4] = np.diag([-_S, 0.0, _S])


def quadrupoles(directions: Float[Array, "pairs 3"]) -> Float[Array, "pairs 5"]:
    """sqrt(3/2) u^T E_m u of unit vectors u: five numbers of length 1."""
    x, y, z = (directions[:, i] for i in range(3))
    c = math.sqrt(3)
    return jnp.stack(
        [c * x * z, c * x * y, y * y - 0.5 * (x * x + z * z), c * y * z, 0.5 * c * (z * z - x * x)], axis=1
    )


def contracted(
    tensors: Float[Array, "atoms 5 features"], vectors: Float[Array, "atoms 3 features"]
) -> Float[Array, "atoms 3 features"]:
    """The product of a tensor with a vector, feature by feature."""
    a, b, c, d, e = (tensors[:, m] for m in range(5))
    x, y, z = (vectors[:, i] for i in range(3))
    c = c / math.sqrt(3)
    rows = (b * y + a * z - (c + e) * x, b * x + 2 * c * y + d * z, a * x + d * y + (e - c) * z)
    return _S * jnp.stack(rows, axis=1)


def outer(a: Float[Array, "atoms 3 features"], b: Float[Array, "atoms 3 features"]) -> Float[Array, "atoms 5 features"]:
    """The traceless symmetric part of a b^T, feature by feature."""
    x, y, z = (a[:, i] for i in range(3))
    p, q, r = (b[:, i] for i in range(3))
    return jnp.stack(
        [
            _S * (x * r + z * p),
            _S * (x * q + y * p),
            (2 * y * q - x * p - z * r) / math.sqrt(6),
            _S * (y * r + z * q),
            _S * (z * r - x * p),
        ],
        axis=1,
    )
