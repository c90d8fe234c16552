"""What a target compares: the measured numbers, and how a simulation or a minimum gives the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.analysis.soft_rdf import rdf_from_histogram, soft_histogram
from leignn_jax.analysis.soft_spectra import smooth_density_of_states
from leignn_jax.analysis.spectra import wavenumbers
from leignn_jax.differentiable import observables
from leignn_jax.differentiable.minima import relaxed
from leignn_jax.errors import ConfigError
from leignn_jax.fitting.config import (
    Density,
    DensityOfStates,
    Diffusivity,
    ElasticConstant,
    PhononFrequency,
    Pressure,
    Rdf,
    pair_numbers,
)
from leignn_jax.fitting.curves import check_range, read_curve
from leignn_jax.graph import Graph
from leignn_jax.properties.elasticity import elastic_tensor
from leignn_jax.properties.second_derivatives import INVERSE_CM, TERAHERTZ, second_derivatives, signed_root
from leignn_jax.simulation.dynamics import EnergyModel, State, System

# Wavenumbers in 1/cm of one unit of a file.
_PER_CM = {"1/cm": 1.0, "eV": 1.0 / ase.units.invcm, "THz": INVERSE_CM}
# Finer points than a curve is compared at, for its mean over a bin.
_FINE = 20
# 1e-5 cm^2/s of 1 Å^2/fs.
_DIFFUSIVITY = 1e4
_UNITS = {
    "pressure": "pressure (GPa)",
    "density": "density (g/cm³)",
    "diffusivity": "diffusivity (10⁻⁵ cm²/s)",
    "lattice_constant": "lattice constant (Å)",
    "elastic_constant": "elastic constant (GPa)",
    "phonon_frequency": "phonon frequency (THz)",
}


class Goal(NamedTuple):
    """Measured numbers.

    values, uncertainties: ``[points]``. x: ``[points]`` where, None of a number alone. of_x, of_values: what, with units.
    """

    values: np.ndarray
    uncertainties: np.ndarray
    x: np.ndarray | None
    of_x: str
    of_values: str


def goal_of(target: Any) -> Goal:
    """What was measured; raises FileFormatError where a curve's file does not fit."""
    if isinstance(target, Rdf):
        edges = _edges(target)
        x, curve, error = read_curve(target.file, target.columns, 10.0 if target.unit == "nm" else 1.0)
        check_range(target.file, x, target.start, target.end, "Å")
        values = _as_measured_in_bins(x, curve, edges, target.width)
        middle = 0.5 * (edges[1:] + edges[:-1])
        error = np.maximum(np.interp(middle, x, error), target.uncertainty)
        return Goal(values, error, middle, "distance (Å)", "g(r)")
    if isinstance(target, DensityOfStates):
        x, curve, error = read_curve(target.file, target.columns, _PER_CM[target.unit])
        check_range(target.file, x, target.start, target.end, "1/cm")
        at = _wavenumbers(target)
        values = np.interp(at, x, curve)
        area = values.sum() * target.spacing
        error = np.maximum(np.interp(at, x, error) / area, target.uncertainty)
        return Goal(values / area, error, at, "wavenumber (1/cm)", "density of states (cm)")
    return Goal(np.array([target.value]), np.array([target.uncertainty]), None, "", _UNITS[target.observable])


def of_states(target: Any, reach: float) -> Callable[[System, State], jax.Array]:
    """An observable of one state, ``[replicas, points]``, whose average is meant; lists are complete up to ``reach`` Å."""
    if isinstance(target, Rdf):
        kind = pair_numbers(target.pair)
        return observables.rdf(_edges(target), target.width, kind, reach=reach)
    if not isinstance(target, Pressure | Density):
        raise ConfigError(f"{target.name}: {target.observable} is no average over states; use estimator trajectory.")
    observe = observables.pressure if isinstance(target, Pressure) else observables.density
    return lambda system, state: observe(system, state)[:, None]


def of_trajectory(
    target: Any, reach: float, begin: State
) -> tuple[Callable[[System, State], Any], Callable[[System, Any], jax.Array]]:
    """What to look at along a trajectory from ``begin``, and what all of that gives: ``[replicas, points]``."""
    sampling = target.sampling
    first = sampling.discard // sampling.every
    frames = (sampling.steps - sampling.discard) // sampling.every
    if isinstance(target, DensityOfStates):
        step = sampling.timestep * sampling.every
        lags = frames // 2 if target.lags is None else target.lags
        at = wavenumbers(lags, step, 4)

        def spectrum(system: System, seen):
            def of_replica(velocities, masses):
                curve = smooth_density_of_states(velocities, masses, step, lags=lags)
                curve = jnp.interp(_wavenumbers(target), at, curve)
                return curve / (curve.sum() * target.spacing)

            return jax.vmap(of_replica, (1, 0))(seen[first:], system.masses)

        return observables.velocities, spectrum
    if isinstance(target, Diffusivity):
        times = sampling.timestep * sampling.every * jnp.arange(1, frames + 1)
        late = jnp.arange(frames) >= frames // 2
        centered = jnp.where(late, times - times[frames // 2 :].mean(), 0.0)

        def slope(system: System, seen):
            grown = seen[first:] - seen[first : first + 1]
            return (_DIFFUSIVITY / 6 * jnp.dot(centered, grown, precision="highest") / (centered**2).sum())[:, None]

        return observables.squared_displacement(begin), slope
    return of_states(target, reach), lambda system, seen: seen[first:].mean(0)


def at_minimum(targets: Sequence[Any], model: EnergyModel, atoms: ase.Atoms) -> list[jax.Array]:
    """The numbers ``[1]`` that the relaxed structure has, of targets that are relaxed alike."""
    found = relaxed(model, atoms, cell=targets[0].cell, pressure=targets[0].pressure)
    # Once for all: these are what takes long to compile.
    asked = {type(target) for target in targets}
    elastic = elastic_tensor(model, found.graph) if ElasticConstant in asked else None
    frequencies = _frequencies(model, found.graph, atoms.get_masses()) if PhononFrequency in asked else None

    def number(target):
        if elastic is not None and isinstance(target, ElasticConstant):
            i, j = target.component
            return elastic[i - 1, j - 1]
        if frequencies is not None and isinstance(target, PhononFrequency):
            return frequencies[np.array(target.modes)].mean()
        return jnp.linalg.norm(found.cell[target.axis])

    return [number(target)[None] for target in targets]


def _frequencies(model: EnergyModel, graph: Graph, masses: np.ndarray) -> jax.Array:
    """THz ``[3 atoms]``, ascending."""
    size, root = len(masses), jnp.sqrt(jnp.repeat(jnp.asarray(masses), 3))
    hessian = second_derivatives(model, graph, np.arange(size)).reshape(3 * size, 3 * size) / root / root[:, None]
    return TERAHERTZ * signed_root(jnp.linalg.eigvalsh(0.5 * (hessian + hessian.T)))


def check_target(target: Any, atoms: ase.Atoms) -> None:
    """ConfigError where a structure can't have what is asked of it."""
    symbols = set(atoms.get_chemical_symbols())
    if not isinstance(target, Diffusivity | DensityOfStates) and not atoms.pbc.all():
        raise ConfigError(
            f"{target.name}: {target.structure} is not periodic in all directions, so it has no {target.observable}. Give a "
            "structure with a cell."
        )
    if isinstance(target, ElasticConstant | PhononFrequency) and atoms.constraints:
        raise ConfigError(
            f"{target.name}: {target.structure} holds atoms, and {target.observable} is of atoms that are all free. Take "
            "its constraints off."
        )
    if isinstance(target, Rdf):
        missing = sorted(set(target.pair or ()) - symbols)
        if missing:
            raise ConfigError(f"{target.name}: pair names {missing[0]}, and {target.structure} holds none.")
    if isinstance(target, Diffusivity):
        sampling = target.sampling
        if sampling.steps - sampling.discard < 3 * sampling.every:
            raise ConfigError(
                f"{target.name}: a diffusivity is a slope of the later half of the frames; three frames are needed, better "
                "many. Make sampling.steps larger or sampling.every smaller."
            )
    if isinstance(target, Density) and not target.sampling.ensemble.lower().startswith("npt"):
        raise ConfigError(f"{target.name}: a density is constant in {target.sampling.ensemble}; choose ensemble npt.")
    if isinstance(target, PhononFrequency) and max(target.modes) >= 3 * len(atoms):
        raise ConfigError(
            f"{target.name}: mode {max(target.modes)}, but {len(atoms)} atoms have 0 to {3 * len(atoms) - 1}."
        )
    if isinstance(target, DensityOfStates):
        sampling = target.sampling
        between = sampling.timestep * sampling.every
        highest = wavenumbers(1, between, 1)[-1]
        if target.end > highest:
            raise ConfigError(
                f"{target.name}: frames {between:g} fs apart show wavenumbers up to {highest:.0f} 1/cm, and end is "
                f"{target.end:g}. Make sampling.every smaller."
            )


def _edges(target: Rdf) -> np.ndarray:
    return target.start + target.spacing * np.arange(round((target.end - target.start) / target.spacing) + 1)


def _wavenumbers(target: DensityOfStates) -> np.ndarray:
    return target.start + target.spacing * (np.arange(round((target.end - target.start) / target.spacing)) + 0.5)


def _as_measured_in_bins(x, curve, edges, width: float) -> np.ndarray:
    """A g(r) as the smooth bins of a simulation see it."""
    fine = np.linspace(0.0, edges[-1] + 6 * width, _FINE * len(edges) + 1)
    # Pairs of one atom at a density of 1 per Å^3.
    pairs = 4 * np.pi * fine**2 * np.interp(fine, x, curve) * (fine[1] - fine[0])
    with jax.ensure_compile_time_eval():
        counts = soft_histogram(jnp.asarray(fine), jnp.asarray(pairs), jnp.asarray(edges), width)
        return np.asarray(rdf_from_histogram(counts, jnp.asarray(edges), 1.0, 1, 1))
