r"""Radial functions of a pair's distance and the envelope that takes them to zero at the cutoff.

All are functions of the scaled distance t = d / cutoff in (0, 1) and act on any shape.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from leignn_jax.models.config import ModelConfig
from leignn_jax.pair_ops import AnyArray


def polynomial_envelope(t: Float[AnyArray, "*pairs"], exponent: int = 5) -> Float[Array, "*pairs"]:
    r"""1 - (p+1)(p+2)/2 t^p + p(p+2) t^(p+1) - p(p+1)/2 t^(p+2) below t = 1, else 0.

    Value, slope and curvature vanish at t = 1. Gasteiger et al., arXiv:2003.03123, eq. 8. Computed as
    (1 - t)^3 sum_{k<p} (k+1)(k+2)/2 t^k, whose terms are all positive: nothing cancels near the cutoff.
    """
    inside = t < 1
    t = jnp.where(inside, t, 1.0)
    series = 0.0
    for k in reversed(range(exponent)):
        series = series * t + (k + 1) * (k + 2) / 2
    return jnp.where(inside, (1 - t) ** 3 * series, 0.0)


def exponential_envelope(t: Float[AnyArray, "*pairs"]) -> Float[Array, "*pairs"]:
    r"""exp(-t^2 / ((1 - t)(1 + t))) below t = 1, else 0; every derivative vanishes at t = 1.

    Unke et al., arXiv:2105.00304, eq. 16.
    """
    inside = t < 1
    t = jnp.where(inside, t, 0.0)
    return jnp.where(inside, jnp.exp(-(t**2) / ((1 - t) * (1 + t))), 0.0)


def envelope(t: Float[AnyArray, "*pairs"], name: str, exponent: int = 5) -> Float[Array, "*pairs"]:
    """The envelope of that name, 1 at t = 0 and 0 from t = 1 on."""
    return polynomial_envelope(t, exponent) if name == "polynomial" else exponential_envelope(t)


def gaussian_basis(t: Float[AnyArray, "*pairs"], size: int) -> Float[Array, "*pairs {size}"]:
    """exp(-((t - c_k)(size - 1))^2 / 2), centres c_k = k / (size - 1): as wide as they are apart (LEIGNN, E2GNN)."""
    centers = jnp.arange(size, dtype=t.dtype) / (size - 1)
    return jnp.exp(-0.5 * ((t[..., None] - centers) * (size - 1)) ** 2)


def bessel_basis(t: Float[AnyArray, "*pairs"], size: int) -> Float[Array, "*pairs {size}"]:
    """sqrt(2) sin(n pi t) / t, n = 1 ... size. Gasteiger et al., arXiv:2003.03123, eq. 7.

    The same as ``e3nn_jax.bessel``, which takes three seconds to import.
    """
    n = jnp.arange(1, size + 1, dtype=t.dtype)
    return math.sqrt(2) * jnp.sin(n * math.pi * t[..., None]) / t[..., None]


def bernstein_basis(t: Float[AnyArray, "*pairs"], size: int) -> Float[Array, "*pairs {size}"]:
    """Bernstein polynomials binomial(n, k) s^k (1 - s)^(n - k) of s = exp(-4 t), n = size - 1.

    Unke et al., arXiv:2105.00304, eq. 14, with the decay fixed so that they are spread over bond lengths.
    """
    n = size - 1
    k = jnp.arange(size, dtype=t.dtype)
    log_binomial = jnp.asarray(
        [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(size)], t.dtype
    )
    log_s = -4 * t[..., None]
    return jnp.exp(log_binomial + k * log_s + (n - k) * jnp.log(-jnp.expm1(log_s)))


def radial_basis(t: Float[AnyArray, "*pairs"], name: str, size: int) -> Float[Array, "*pairs {size}"]:
    """The ``size`` radial functions of that name at scaled distances t > 0, before any envelope."""
    return {"gaussian": gaussian_basis, "bessel": bessel_basis, "bernstein": bernstein_basis}[name](t, size)


def radial_functions(
    config: ModelConfig, distances: Float[Array, "pairs"], pair_mask: Bool[AnyArray, "pairs"]
) -> Float[Array, "pairs radial"]:
    """The radial functions times the envelope and, last, the function that multiplies the filter's bias.

    That last one is the envelope too where the cutoff is smooth, and 1 inside the cutoff in the published formula.
    Padding and pairs from the cutoff on get zero throughout.
    """
    t = distances / config.cutoff
    inside = pair_mask & (t < 1)
    t = jnp.where(inside, t, 0.5)
    decay = envelope(t, config.envelope, config.envelope_exponent)
    values = decay[:, None] * radial_basis(t, config.radial_basis, config.num_radial)
    last = decay if config.smooth_cutoff else jnp.ones_like(decay)
    return jnp.where(inside[:, None], jnp.concatenate([values, last[:, None]], axis=1), 0.0)


@partial(jax.jit, static_argnums=0)
def _functions_at(config: ModelConfig, distances):
    """Radial functions and envelope in one program: one by one their operations would each be compiled."""
    decay = envelope(distances / config.cutoff, config.envelope, config.envelope_exponent)
    return radial_functions(config, distances, jnp.ones(distances.shape, bool)), decay


def smooth_filters(config: ModelConfig, modes: int = 8) -> Float[Array, "{modes} radial"]:
    r"""Weights of the radial functions that give cos(m pi t) / (1 + m) times the envelope, m = 0, 1 ..., least squares.

    Random sums of these rows are what filters start as: independent random weights of narrow Gaussians would be noise
    from one hundredth of an Å to the next, whose forces drown all else. They are normalised so that a sum over the
    neighbours of an atom about keeps a message's variance, the messages of different neighbours being alike by a fifth:
    over atoms of a typical density, 0.08 per Å^3, none closer than 1 Å, the integral of a random filter's square plus
    0.2 times the square of its integral is 1.
    """
    r = np.linspace(min(1.0, 0.2 * config.cutoff), config.cutoff, 513)[:-1]
    with jax.ensure_compile_time_eval():
        values, decay = map(np.asarray, _functions_at(config, r.astype(np.float32)))
    m = np.arange(modes)[:, None]
    target = decay * np.cos(m * np.pi * r / config.cutoff) / (1 + m)
    weights = np.linalg.lstsq(values[:, :-1], target.T, rcond=1e-3)[0].T
    shell = 4 * np.pi * r**2 * 0.08
    functions = weights @ values[:, :-1].T
    variance = np.trapezoid(shell * functions**2, r).sum() + 0.2 * (np.trapezoid(shell * functions, r) ** 2).sum()
    return jnp.asarray(weights / np.sqrt(variance), jnp.float32)
