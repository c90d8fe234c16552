"""Models with known answers, to check a simulation or to learn with: Lennard-Jones, harmonic wells, the ideal gas."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from leignn_jax.cells import inverse, transformed
from leignn_jax.device_neighbors import lattice_vectors
from leignn_jax.graph import Graph
from leignn_jax.models.leignn import pair_geometry
from leignn_jax.models.radial import polynomial_envelope
from leignn_jax.pair_ops import pair_sum
from leignn_jax.potential import Prediction, stress_of
from leignn_jax.simulation.model_sums import Adds


@struct.dataclass
class LennardJones(Adds):
    """Pairs of 4 epsilon ((sigma / r)^12 - (sigma / r)^6), taken smoothly to zero at the cutoff. A pytree.

    epsilon: eV. sigma: Å. cutoff: Å. The defaults are argon's.
    """

    epsilon: Any = 0.0104
    sigma: Any = 3.40
    cutoff: float = struct.field(pytree_node=False, default=8.5)

    def compute(self, graph: Graph) -> Prediction:
        """Energy, forces and stress of every structure; half of a pair's energy belongs to each of its atoms."""
        vectors = graph.vectors()

        def total(vectors):
            distances, _ = pair_geometry(graph, vectors)
            power = (self.sigma / distances) ** 6
            pairs = 4 * self.epsilon * (power**2 - power) * polynomial_envelope(distances / self.cutoff, 6)
            pairs = jnp.where(graph.pair_mask, pairs, 0.0)
            half = jnp.full((graph.positions.shape[0], 1, 1), 0.5, pairs.dtype)
            each = graph.own(pair_sum(graph.lists, pairs[:, None], half)[:, 0, 0])
            return each.sum(), each

        gradient, each = jax.grad(total, has_aux=True)(vectors)
        return Prediction(
            energy=graph.sum_atoms(each),
            forces=graph.forces(gradient),
            stress=stress_of(graph, vectors, gradient),
            atomic_energies=each,
            direct_forces=None,
        )


@struct.dataclass
class HarmonicWells(Adds):
    """Every atom in a well of its own, ``stiffness |r - center|^2 / 2``: frequencies and averages are known exactly.

    stiffness: eV/Å^2. centers: ``[atoms, 3]`` Å, the same for every replica; along periodic directions a well is there
    in every cell, and an atom in the nearest. cutoff: Å, of lists that nothing is taken from. Wells do not move with the
    atoms: the total momentum is not conserved.
    """

    stiffness: Any
    centers: Any
    cutoff: float = struct.field(pytree_node=False, default=1.0)
    conserves_momentum: ClassVar[bool] = False

    def compute(self, graph: Graph) -> Prediction:
        """Energy and forces; there is no stress."""
        centers = jnp.asarray(self.centers, graph.positions.dtype)
        centers = jnp.tile(centers, (graph.positions.shape[0] // centers.shape[0], 1))
        away = graph.positions - centers
        # In units of the lattice, which nothing is taken off along open directions.
        lattice = jnp.where(graph.pbc[:, :, None], graph.cell, jnp.eye(3, dtype=away.dtype))
        units = transformed(away[:, None], inverse(lattice)[graph.graph_index])[:, 0]
        whole = jnp.where(graph.pbc[graph.graph_index], jnp.round(jax.lax.stop_gradient(units)), 0.0)
        away = away - lattice_vectors(whole[:, None], lattice[graph.graph_index])[:, 0]
        away = jnp.where(graph.atom_mask[:, None], away, 0.0)
        each = 0.5 * self.stiffness * (away**2).sum(-1)
        return Prediction(
            energy=graph.sum_atoms(each),
            forces=-self.stiffness * away,
            stress=jnp.zeros((graph.num_graphs, 3, 3), away.dtype),
            atomic_energies=each,
            direct_forces=None,
        )


@struct.dataclass
class IdealGas(Adds):
    """Nothing acts on anything. cutoff: Å, of lists that nothing is taken from."""

    cutoff: float = struct.field(pytree_node=False, default=1.0)

    def compute(self, graph: Graph) -> Prediction:
        """Zeros."""
        dtype = graph.positions.dtype
        return Prediction(
            energy=jnp.zeros(graph.num_graphs, dtype),
            forces=jnp.zeros_like(graph.positions),
            stress=jnp.zeros((graph.num_graphs, 3, 3), dtype),
            atomic_energies=jnp.zeros(graph.positions.shape[0], dtype),
            direct_forces=None,
        )
