"""What can be looked at along a rollout and differentiated: functions ``(system, state) -> array``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from leignn_jax.analysis.soft_rdf import pair_distances, smooth_rdf
from leignn_jax.errors import ConfigError
from leignn_jax.simulation import dynamics
from leignn_jax.simulation.dynamics import GIGAPASCAL, State, System


def potential_energy(system: System, state: State) -> Float[Array, "replicas"]:
    """eV, without reference energies."""
    return state.energy


def kinetic_energy(system: System, state: State) -> Float[Array, "replicas"]:
    """eV."""
    return dynamics.kinetic_energy(system, state.velocities)


def total_energy(system: System, state: State) -> Float[Array, "replicas"]:
    """eV, potential and kinetic."""
    return state.energy + kinetic_energy(system, state)


def temperature(system: System, state: State) -> Float[Array, "replicas"]:
    """K."""
    return dynamics.temperature(system, state.velocities)


def pressure(system: System, state: State) -> Float[Array, "replicas"]:
    """GPa, kinetic part minus a third of the stress's trace; of systems periodic in all directions."""
    tensor = dynamics.pressure_tensor(system, state, jnp.zeros_like(state.energy))
    return jnp.trace(tensor, axis1=1, axis2=2) / 3 * GIGAPASCAL


def positions(system: System, state: State) -> Float[Array, "replicas atoms 3"]:
    """Å, not wrapped, from where :func:`leignn_jax.differentiable.start` put the atoms."""
    return dynamics.unwrapped(state)


def velocities(system: System, state: State) -> Float[Array, "replicas atoms 3"]:
    """Å/fs."""
    return state.velocities


def squared_displacement(start: State) -> Callable[[System, State], Float[Array, "replicas"]]:
    """The mean squared displacement in Å^2 of all atoms since ``start``."""

    def observe(system: System, state: State):
        real = (system.numbers > 0).astype(state.energy.dtype)
        moved = (dynamics.displacement(start, state) ** 2).sum(-1)
        return (moved * real).sum(-1) / real.sum(-1)

    return observe


def rdf(
    edges: Any, width: float, kind: tuple[int, int] | None = None, *, reach: float
) -> Callable[[System, State], Float[Array, "replicas bins"]]:
    """The radial distribution function with smooth bins, see :mod:`leignn_jax.analysis.soft_rdf`.

    Args:
        edges: ``[bins + 1]`` Å. width: Å, of each pair's Gaussian.
        kind: two atomic numbers; None is the total.
        reach: Å, up to which the lists are complete: the model's cutoff.

    Raises:
        ConfigError: the last edge and three widths lie beyond ``reach``.
    """
    edges = jnp.asarray(edges)
    needed = float(edges[-1]) + 3 * width
    if needed > reach:
        raise ConfigError(
            f"An RDF up to {float(edges[-1]):g} Å with width {width:g} Å needs pairs up to {needed:g} Å; the lists reach "
            f"{reach:g} Å. Shorten it, or start with a larger skin and say so in reach."
        )

    def observe(system: System, state: State):
        # All replicas in one graph, then pairs back to their own replica.
        graph = dynamics.joined_graph(system, state.neighbors, state.positions, state.cell)
        replicas, pairs = state.neighbors.pair_mask.shape
        distances = pair_distances(graph.vectors(), graph.pair_mask).reshape(replicas, pairs)
        numbers = graph.numbers
        first = numbers[graph.lists.receivers].reshape(replicas, pairs)
        second = numbers[graph.lists.senders].reshape(replicas, pairs)
        weights = _weights(first, second, state.neighbors.pair_mask, kind).astype(distances.dtype)
        volumes = dynamics.volume(state.cell)
        curves = []
        for r in range(replicas):
            if kind is None:
                a = b = (system.numbers[r] > 0).sum()
            else:
                a, b = ((system.numbers[r] == z).sum() for z in kind)
            curves.append(smooth_rdf(distances[r], weights[r], edges.astype(distances.dtype), width, volumes[r], a, b))
        return jnp.stack(curves)

    return observe


def _weights(first, second, mask, kind):
    """Ordered pairs that each undirected pair stands for."""
    if kind is None:
        return 2 * mask
    a, b = kind
    return (((first == a) & (second == b)).astype(int) + ((first == b) & (second == a)).astype(int)) * mask
