"""Repulsion of two atoms where there are no data, so that no trained potential lets them fall into each other.

Nuclei repel by Ziegler, Biersack and Littmark's universal potential, which ends where bonds begin. Between that and the
shortest distance of the training data a network is free to invent a minimum; there stands a wall, and a tenth beyond it the
network sees no further.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Float, Int

from leignn_jax.models.radial import polynomial_envelope
from leignn_jax.pair_ops import AnyArray

# e^2 / (4 pi epsilon_0) in eV Å and the Bohr radius in Å (CODATA 2018).
COULOMB = 14.399645478
BOHR = 0.529177210903

# A wall rises to 1 eV within a tenth of the distance at which it begins: touching it costs meV, a bond that the network
# made up some 10 eV.
WALL_HEIGHT = 1.0  # eV
WALL_DEPTH = 0.1

# Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids (1985): the universal screening function.
_SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))


def zbl_energy(
    distances: Float[Array, "pairs"], receivers: Int[AnyArray, "pairs"], senders: Int[AnyArray, "pairs"]
) -> Float[Array, "pairs"]:
    """Energy of each pair in eV, smoothly zero from the sum of the covalent radii on.

    Args:
        distances: Å, positive.
        receivers, senders: atomic numbers of the two atoms; 0 gives 0.
    """
    radii = jnp.asarray(np.where(np.arange(len(covalent_radii)) > 0, covalent_radii, 0.0), distances.dtype)
    reach = jnp.maximum(radii[receivers] + radii[senders], 1e-3)
    z1, z2 = jnp.asarray(receivers, distances.dtype), jnp.asarray(senders, distances.dtype)
    length = 0.8854 * BOHR / jnp.maximum(z1**0.23 + z2**0.23, 1e-3)
    screening = jnp.zeros_like(distances)
    for amplitude, decay in _SCREENING:
        screening += amplitude * jnp.exp(-decay * distances / length)
    return screening * (COULOMB * z1 * z2 / distances) * polynomial_envelope(distances / reach, 6)


def seen_share(distances: Float[Array, "pairs"], begins: Float[Array, "pairs"]) -> Float[Array, "pairs"]:
    """What a network sees of each distance, as a share of it: 1 down to ``begins``, and below it what keeps the distance
    that is seen above 0.9 ``begins``, which it nears smoothly.

    Sums of products of messages grow as high powers: whatever they come to where no data say so outgrows any wall.

    Args:
        distances: Å, positive.
        begins: Å, where the wall of this pair begins; 0 is none.
    """
    reach = WALL_DEPTH * jnp.where(begins > 0, begins, 1.0)
    depth = jnp.maximum(begins - distances, 0.0) / reach
    seen = begins - reach * depth * (1 + depth**3) ** (-1 / 3)
    return jnp.where(depth > 0, seen / distances, 1.0)


def wall_energy(distances: Float[Array, "pairs"], begins: Float[Array, "pairs"]) -> Float[Array, "pairs"]:
    """Energy of each pair in eV, ``((1 - distance / begins) / 0.1)^3`` below ``begins``, zero from there on.

    Args:
        distances: Å.
        begins: Å, where the wall of this pair begins; 0 is no wall.
    """
    there = begins > 0
    depth = jnp.where(there, jnp.maximum(1 - distances / jnp.where(there, begins, 1.0), 0.0), 0.0)
    return WALL_HEIGHT * (depth / WALL_DEPTH) ** 3
