"""Radial distribution functions that gradients pass through: each distance is a Gaussian spread over the bins.

All functions are pure jax on fixed shapes, for a padded list of pairs inside ``lax.scan``: they work under jit, vmap
and grad. For width -> 0 the soft histogram is the hard one of :mod:`leignn_jax.analysis.rdf`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pair_distances(vectors: jax.Array, mask: jax.Array) -> jax.Array:
    """Lengths ``[pairs]`` of ``[pairs, 3]`` Å; padded pairs get length 0 and gradient 0, never NaN.

    Args:
        vectors: ``[pairs, 3]`` Å; anything where ``mask`` is False.
        mask: ``[pairs]`` bool.
    """
    safe = jnp.where(mask[:, None], vectors, 1.0)
    return jnp.where(mask, jnp.sqrt(jnp.sum(safe**2, axis=-1)), 0.0)


def pair_weights(
    first: jax.Array, second: jax.Array, mask: jax.Array, kind: tuple[int, int] | None = None
) -> jax.Array:
    """How often each pair of a list with every pair once counts in g_ab, ``[pairs]`` float: 2 for a = b, else 1.

    For a list with both directions of each pair, take half.

    Args:
        first, second: ``[pairs]`` atomic numbers of the two atoms.
        mask: ``[pairs]`` bool, False for padding.
        kind: atomic numbers (a, b); None counts all pairs twice, for the total.
    """
    if kind is None:
        return jnp.where(mask, 2.0, 0.0)
    a, b = kind
    there = (first == a) & (second == b)
    back = (first == b) & (second == a)
    return jnp.where(mask, there.astype(float) + back.astype(float), 0.0)


def soft_histogram(distances: jax.Array, weights: jax.Array, edges: jax.Array, width) -> jax.Array:
    """How much of each pair's Gaussian lies in each bin, summed: ``[bins]``.

    count_k = sum_p weights_p [Phi((edges_{k+1} - d_p) / width) - Phi((edges_k - d_p) / width)], Phi the normal
    distribution function. A pair far from the ends counts exactly its weight, at any width.

    Args:
        distances: ``[pairs]`` Å. The list must reach some widths beyond the last edge, or the last bins lack pairs.
        weights: ``[pairs]``, 0 for padding; where it is 0 the distance may be anything, NaN included.
        edges: ``[bins + 1]`` Å, rising.
        width: Å, standard deviation of the Gaussian, above 0; an array or a number.
    """
    counted = weights != 0
    distances = jnp.where(counted, distances, 0.0)
    below = jax.scipy.special.ndtr((edges[None, :] - distances[:, None]) / width)
    # No matrix product: accelerators would round its factors to fewer bits.
    return jnp.sum(weights[:, None] * (below[:, 1:] - below[:, :-1]), axis=0)


def rdf_from_histogram(counts: jax.Array, edges: jax.Array, volume, first, second) -> jax.Array:
    """g(r) ``[..., bins]`` from counts of ordered pairs: counts V / (N_a N_b shell volume).

    Args:
        counts: ``[..., bins]`` ordered pairs, see :func:`pair_weights`.
        edges: ``[bins + 1]`` Å.
        volume: Å^3, an array or a number; a gradient passes through it.
        first, second: N_a and N_b; the number of atoms twice for the total.
    """
    shells = 4 / 3 * jnp.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    # One after the other: as whole numbers of 32 bits the product of many atoms overflows.
    return counts * volume / shells / first / second


def smooth_rdf(distances: jax.Array, weights: jax.Array, edges: jax.Array, width, volume, first, second) -> jax.Array:
    """g(r) ``[bins]`` of one frame, differentiable by distances and volume: the histogram and its norm in one call.

    Arguments as for :func:`soft_histogram` and :func:`rdf_from_histogram`.
    """
    return rdf_from_histogram(soft_histogram(distances, weights, edges, width), edges, volume, first, second)
