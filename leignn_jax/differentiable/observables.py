"""What can be looked at along a rollout and differentiated: functions ``(system, state) -> array``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from leignn_jax.analysis.scattering import scattering_intensity
from leignn_jax.analysis.soft_angles import neighbor_vectors, smooth_angle_distribution, triple_mask
from leignn_jax.analysis.soft_rdf import pair_distances, pair_weights, smooth_rdf
from leignn_jax.analysis.thermodynamics import GRAM_PER_CM3
from leignn_jax.arguments import check_array, check_number, check_sequence, check_whole
from leignn_jax.errors import ConfigError
from leignn_jax.simulation import dynamics
from leignn_jax.simulation.dynamics import State, System


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
    """GPa, kinetic part minus a third of the stress's trace, as a simulation's log has it; of systems periodic in all
    directions."""
    _check_periodic(system, "pressure")
    return dynamics.pressure(system, state)


def volume(system: System, state: State) -> Float[Array, "replicas"]:
    """Å^3, of systems periodic in all directions."""
    _check_periodic(system, "volume")
    return dynamics.volume(state.cell)


def density(system: System, state: State) -> Float[Array, "replicas"]:
    """g/cm^3, of systems periodic in all directions."""
    _check_periodic(system, "density")
    mass = jnp.where(system.numbers > 0, system.masses, 0.0).sum(-1)
    return GRAM_PER_CM3 * mass / dynamics.volume(state.cell)


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
        ConfigError: the last edge and three widths lie beyond ``reach``, edges that don't grow, or, where it is called, an
            element that is not there.
    """
    edges = _edges(edges)
    needed = float(edges[-1]) + 3 * check_number("width", width, positive=True)
    _check_kind(kind, 2)
    if needed > check_number("reach", reach, positive=True):
        raise ConfigError(
            f"An RDF up to {float(edges[-1]):g} Å with width {width:g} Å needs pairs up to {needed:g} Å; the lists reach "
            f"{reach:g} Å. Shorten it, or start with a larger skin and say so in reach."
        )

    def observe(system: System, state: State):
        _check_present(system, kind)
        # All replicas in one graph, then pairs back to their own replica.
        graph = dynamics.joined_graph(system, state.neighbors, state.positions, state.cell)
        replicas, pairs = state.neighbors.pair_mask.shape
        distances = pair_distances(graph.vectors(), graph.pair_mask).reshape(replicas, pairs)
        numbers = graph.numbers
        first = numbers[graph.lists.receivers].reshape(replicas, pairs)
        second = numbers[graph.lists.senders].reshape(replicas, pairs)
        weights = pair_weights(first, second, state.neighbors.pair_mask, kind).astype(distances.dtype)
        volumes = dynamics.volume(state.cell)
        bins = jnp.asarray(edges, distances.dtype)
        curves = []
        for r in range(replicas):
            if kind is None:
                a = b = (system.numbers[r] > 0).sum()
            else:
                a, b = ((system.numbers[r] == z).sum() for z in kind)
            curves.append(smooth_rdf(distances[r], weights[r], bins, width, volumes[r], a, b))
        return jnp.stack(curves)

    return observe


def structure_factor(indices: Any, weights: Any = None) -> Callable[[System, State], Float[Array, "replicas vectors"]]:
    """S at each vector of the cell, see :mod:`leignn_jax.analysis.scattering`; of systems periodic in all directions.

    Args:
        indices: ``[vectors, 3]`` whole numbers (h, k, l), such as those of
            :func:`leignn_jax.analysis.scattering.scattering_vectors`.
        weights: ``[atoms]``; None is 1 for all.
    """
    indices = check_array("indices", indices, (None, 3), "iu")

    def observe(system: System, state: State):
        _check_periodic(system, "structure factor")
        each = jnp.ones(system.numbers.shape[1]) if weights is None else jnp.asarray(weights)
        each = jnp.where(system.numbers > 0, each, 0.0).astype(state.positions.dtype)
        return jax.vmap(lambda r, c, w: scattering_intensity(r, indices, c, w))(state.positions, state.cell, each)

    return observe


def angle_distribution(
    edges: Any,
    width: float,
    kind: tuple[int, int, int] | None = None,
    *,
    r_max: float,
    fade: float = 0.1,
    reach: float,
) -> Callable[[System, State], Float[Array, "replicas bins"]]:
    """The distribution of bond angles with smooth bins and bonds, see :mod:`leignn_jax.analysis.soft_angles`.

    Args:
        edges: ``[bins + 1]`` degrees. width: degrees, of each angle's Gaussian.
        kind: atomic numbers (end, center, end); None is all.
        r_max: Å, length of a bond. fade: Å, over which it ends.
        reach: Å, up to which the lists are complete: the model's cutoff.

    Raises:
        ConfigError: bonds and three times their fade are longer than ``reach``.
    """
    edges = _edges(edges)
    check_number("width", width, positive=True)
    _check_kind(kind, 3)
    longest = check_number("r_max", r_max, positive=True) + 3 * check_number("fade", fade, positive=True)
    if longest > check_number("reach", reach, positive=True):
        raise ConfigError(
            f"Bonds up to {r_max:g} Å that fade over {fade:g} Å need pairs up to {longest:g} Å; the lists reach "
            f"{reach:g} Å. Shorten them, or start with a larger skin and say so in reach."
        )

    def observe(system: System, state: State):
        _check_present(system, kind)
        graph = dynamics.joined_graph(system, state.neighbors, state.positions, state.cell)
        vectors, mask = neighbor_vectors(graph.lists, graph.vectors())
        triples = triple_mask(graph.numbers, graph.numbers[graph.lists.neighbors], mask, kind)
        replicas = system.numbers.shape[0]
        bins = jnp.asarray(edges, vectors.dtype)

        def of_replica(parts):
            return smooth_angle_distribution(parts[0], parts[1], bins, width, r_max=r_max, fade=fade)

        each = (vectors, triples)
        return jax.lax.map(of_replica, tuple(x.reshape(replicas, -1, *x.shape[1:]) for x in each))

    return observe


def _edges(edges: Any) -> np.ndarray:
    """On the host: numbers that are compared, also where a compiled program is being made."""
    edges = check_array("edges", edges, (None,))
    if len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any() or edges[0] < 0:
        raise ConfigError("edges must be two numbers or more that grow, from 0 on.")
    return edges


def _check_kind(kind: Any, count: int) -> None:
    if kind is not None:
        numbers = [check_whole("kind, an atomic number", one, 1) for one in check_sequence("kind", kind)]
        if len(numbers) != count:
            raise ConfigError(f"kind must be {count} atomic numbers, or None for all, not {len(numbers)}.")


def _check_present(system: System, kind: Any) -> None:
    """ConfigError where a structure lacks an element that is asked for; of a system that is traced it can't be known."""
    if kind is None or isinstance(system.numbers, jax.core.Tracer):
        return
    for structure, numbers in enumerate(np.asarray(system.numbers)):
        missing = [number for number in kind if number not in numbers]
        if missing:
            raise ConfigError(f"kind: structure {structure} has no atom of atomic number {missing[0]}.")


def _check_periodic(system: System, what: str) -> None:
    """ConfigError where there is no cell; of a system that is traced it can't be known, and NaN or 0 comes out."""
    if isinstance(system.pbc, jax.core.Tracer):
        return
    open_ones = np.flatnonzero(~np.asarray(system.pbc).all(-1))
    if len(open_ones):
        raise ConfigError(
            f"Structure {open_ones[0]} is not periodic in all directions, so it has no {what}: give it a cell "
            "(atoms.set_cell, atoms.pbc = True), or look at something else."
        )
