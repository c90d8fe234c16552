"""Ziegler-Biersack-Littmark repulsion of two nuclei, so that no trained potential lets atoms fall into each other."""

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
