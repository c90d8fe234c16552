"""Distributions of bond angles that gradients pass through: smooth in each angle and in who is a neighbour.

All functions are pure jax on fixed shapes. For width and fade -> 0 they are :mod:`leignn_jax.analysis.angles`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from leignn_jax.analysis.soft_rdf import pair_distances, soft_histogram
from leignn_jax.mapping import map_in_batches
from leignn_jax.pair_ops import AnyArray, PairLists

# Atoms whose angles are spread over the bins at a time: memory is this times neighbours^2 times bins.
_ATOMS = 4


def neighbor_vectors(
    lists: PairLists, vectors: Float[AnyArray, "pairs 3"]
) -> tuple[Float[Array, "atoms neighbors 3"], Bool[Array, "atoms neighbors"]]:
    """Vectors in Å from each atom to its neighbours, from those of pairs, and which of them are there."""
    signs = jnp.asarray(lists.neighbor_signs)
    return jnp.asarray(vectors)[lists.neighbor_pairs] * signs[..., None].astype(vectors.dtype), signs != 0


def triple_mask(
    centers: Int[AnyArray, "atoms"],
    neighbors: Int[AnyArray, "atoms neighbors"],
    mask: Bool[AnyArray, "atoms neighbors"],
    kind: tuple[int, int, int] | None = None,
) -> Bool[Array, "atoms neighbors neighbors"]:
    """Which angles count, each once.

    Args:
        centers, neighbors: atomic numbers.
        mask: False for padding.
        kind: atomic numbers (end, center, end); None is all.
    """
    mask, neighbors = jnp.asarray(mask), jnp.asarray(neighbors)
    once = jnp.triu(jnp.ones((neighbors.shape[1],) * 2, bool), 1)
    there = mask[:, :, None] & mask[:, None, :] & once
    if kind is None:
        return there
    one, center, other = kind
    a, b = neighbors[:, :, None], neighbors[:, None, :]
    ends = ((a == one) & (b == other)) | ((a == other) & (b == one))
    return there & ends & jnp.asarray(centers == center)[:, None, None]


def smooth_angle_distribution(
    vectors: Float[AnyArray, "atoms neighbors 3"],
    mask: Bool[AnyArray, "atoms neighbors neighbors"],
    edges: Float[AnyArray, "edges"],
    width,
    *,
    r_max,
    fade,
) -> Float[Array, "bins"]:
    """P(angle) ``[bins]`` in 1/degree: each angle a Gaussian, with the weight that both its ends have as neighbours.

    A neighbour at r counts Phi((r_max - r) / fade), Phi the normal distribution function. The sum over all angles, whether
    they fall into a bin or not, is 1. Zero where nobody has two neighbours.

    Args:
        vectors: Å, from :func:`neighbor_vectors`; the lists reach some fades beyond r_max.
        mask: which angles count, from :func:`triple_mask`.
        edges: degrees, rising. width: degrees.
        r_max, fade: Å.
    """

    edges = jnp.asarray(edges)

    def of_atom(parts):
        vectors, mask = parts
        near = jax.scipy.special.ndtr((r_max - pair_distances(vectors, mask.any(0) | mask.any(1))) / fade)
        weights = jnp.where(mask, near[:, None] * near[None], 0.0)
        angles = _angles(vectors, mask)
        return soft_histogram(angles.reshape(-1), weights.reshape(-1), edges, width), weights.sum()

    counts, total = map_in_batches(jax.checkpoint(of_atom), (vectors, mask), _ATOMS)
    counts, total = counts.sum(0), total.sum()
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), 0.0) / (edges[1:] - edges[:-1])


def _angles(vectors, mask):
    """Degrees ``[neighbors, neighbors]``; 0 where masked; of straight ones the gradient is 0."""
    dots = (vectors[:, None] * vectors[None]).sum(-1)
    areas = (jnp.cross(vectors[:, None], vectors[None]) ** 2).sum(-1)
    bent = mask & (areas > 0)
    area = jnp.where(bent, jnp.sqrt(jnp.where(bent, areas, 1.0)), 0.0)
    return jnp.rad2deg(jnp.arctan2(area, jnp.where(mask, dots, 1.0)))
