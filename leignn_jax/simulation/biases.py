"""Biases: energies of a collective variable, added to a model as any other; and a sum of hills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ase
import jax
import jax.numpy as jnp
from flax import struct

from leignn_jax.cells import transformed
from leignn_jax.graph import Graph
from leignn_jax.potential import Prediction
from leignn_jax.simulation.collective_variables import as_variable, check_variable, difference
from leignn_jax.simulation.dynamics import volume
from leignn_jax.simulation.model_sums import Adds


def pushed(energy: Callable[[Any], Any], variable: Any, positions, cell, pbc):
    """Energy [replicas] eV, forces [replicas, atoms, 3] eV/Å and stress [replicas, 3, 3] eV/Å^3 of a bias on a variable.

    Args:
        energy: from the variable's values ``[replicas]`` to eV.
        variable: of :mod:`leignn_jax.simulation.collective_variables`.
        positions: ``[replicas, atoms, 3]`` Å. cell: ``[replicas, 3, 3]`` Å. pbc: ``[replicas, 3]``.
    """

    def total(positions, strain):
        strain = 0.5 * (strain + jnp.swapaxes(strain, 1, 2))
        each = energy(jax.vmap(variable)(_strained(positions, strain), _strained(cell, strain), pbc))
        return each.sum(), each

    (slope, strain), each = jax.grad(total, (0, 1), has_aux=True)(positions, jnp.zeros_like(cell))
    periodic = pbc.all(-1)[:, None, None]
    box = jnp.where(periodic, volume(cell)[:, None, None], 1.0)
    return each, -slope, jnp.where(periodic, strain / box, jnp.nan)


def _strained(rows, strain):
    return rows + transformed(rows, strain)


class Bias(Adds):
    """A model that is a function of a variable; its class has ``energy(values)``."""

    variable: Any

    def __post_init__(self):
        object.__setattr__(self, "variable", as_variable(self.variable))

    @property
    def conserves_momentum(self) -> bool:
        """Whether the variable says that it depends on distances alone."""
        return getattr(self.variable, "conserves_momentum", False)

    def energy(self, values) -> Any:
        """``[replicas]`` eV."""
        raise NotImplementedError

    def compute(self, graph: Graph) -> Prediction:
        """Energy, forces and stress; structures of a graph must be as many rows each, as those of a simulation are."""
        positions = graph.all_positions
        shape = (graph.num_graphs, -1, 3)
        energy, forces, stress = pushed(self.energy, self.variable, positions.reshape(shape), graph.cell, graph.pbc)
        return Prediction(energy, forces.reshape(positions.shape), stress, None, None)

    def check(self, atoms: ase.Atoms) -> None:
        """ConfigError where the variable is none of this structure."""
        check_variable(self.variable, atoms)


@struct.dataclass
class Umbrella(Bias):
    """A spring on a variable, ``stiffness (s - center)^2 / 2``, the shorter way round for a dihedral. A pytree.

    variable: of :mod:`leignn_jax.simulation.collective_variables`, or a function ``(positions, cell, pbc) -> scalar``.
    center: in the variable's unit. stiffness: eV per that unit squared. Both are one number or one per replica: a ladder of
    windows is one simulation of replicas.
    cutoff: Å, of lists that nothing is taken from.

    Added to a model it biases simulations, rollouts, samples and minima: ``potential + Umbrella(Distance(0, 1), 3.0, 2.0)``.
    """

    variable: Any
    center: Any
    stiffness: Any
    cutoff: float = struct.field(pytree_node=False, default=1.0)

    def energy(self, values) -> Any:
        """``[replicas]`` eV of values of the variable."""
        away = difference(self.variable, values, jnp.asarray(self.center, values.dtype))
        return 0.5 * jnp.asarray(self.stiffness, values.dtype) * away**2


@struct.dataclass
class Hills(Bias):
    """Gaussians on a variable, ``sum_k heights_k exp(-(s - centers_k)^2 / (2 width^2))``, as metadynamics leaves them.

    variable: as of :class:`Umbrella`. centers: ``[replicas, hills]`` in the variable's unit. heights: ``[replicas, hills]``
    eV, 0 where there is no hill. width: one number or one per replica. cutoff: Å, of lists that nothing is taken from.
    """

    variable: Any
    centers: Any
    heights: Any
    width: Any
    cutoff: float = struct.field(pytree_node=False, default=1.0)

    def energy(self, values) -> Any:
        """``[replicas]`` eV of values of the variable."""
        width = jnp.broadcast_to(jnp.asarray(self.width, values.dtype), values.shape)[:, None]
        away = difference(self.variable, values[:, None], self.centers) / width
        return (self.heights * jnp.exp(-0.5 * away**2)).sum(-1)
