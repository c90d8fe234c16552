"""Analysis of MD trajectories: structure, transport, vibrations, stability, thermodynamics, and plots of them.

A trajectory is arrays: positions ``[frames, atoms, 3]`` in Å, velocities ``[frames, atoms, 3]`` in Å/fs, numbers
``[atoms]``, cell ``[3, 3]`` or ``[frames, 3, 3]``, pbc ``[3]``, and the time between frames in fs. ``from_ase`` makes
them of a list of ``ase.Atoms``.

>>> t = from_ase(leignn.read_frames("water.extxyz"))
>>> g = radial_distribution(t.positions, t.numbers, t.cell, t.pbc)
>>> g.of("O", "O"), plot_rdf({"AIMD": g})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leignn_jax.analysis.angles import angle_distribution as angle_distribution
    from leignn_jax.analysis.conductivity import green_kubo_conductivity as green_kubo_conductivity
    from leignn_jax.analysis.fluctuations import heat_capacity as heat_capacity
    from leignn_jax.analysis.fluctuations import thermal_expansion as thermal_expansion
    from leignn_jax.analysis.forces import force_distance as force_distance
    from leignn_jax.analysis.forces import force_distribution as force_distribution
    from leignn_jax.analysis.heat_current import heat_flux as heat_flux
    from leignn_jax.analysis.plots import plot_distances as plot_distances
    from leignn_jax.analysis.plots import plot_forces as plot_forces
    from leignn_jax.analysis.plots import plot_msd as plot_msd
    from leignn_jax.analysis.plots import plot_rdf as plot_rdf
    from leignn_jax.analysis.plots import plot_thermo as plot_thermo
    from leignn_jax.analysis.plots import plot_vdos as plot_vdos
    from leignn_jax.analysis.rdf import distance_distribution as distance_distribution
    from leignn_jax.analysis.rdf import radial_distribution as radial_distribution
    from leignn_jax.analysis.rdf import rdf_mae as rdf_mae
    from leignn_jax.analysis.scattering import scattering_intensity as scattering_intensity
    from leignn_jax.analysis.scattering import structure_factor as structure_factor
    from leignn_jax.analysis.soft_angles import smooth_angle_distribution as smooth_angle_distribution
    from leignn_jax.analysis.soft_rdf import pair_distances as pair_distances
    from leignn_jax.analysis.soft_rdf import pair_weights as pair_weights
    from leignn_jax.analysis.soft_rdf import rdf_from_histogram as rdf_from_histogram
    from leignn_jax.analysis.soft_rdf import smooth_rdf as smooth_rdf
    from leignn_jax.analysis.soft_rdf import soft_histogram as soft_histogram
    from leignn_jax.analysis.soft_spectra import smooth_density_of_states as smooth_density_of_states
    from leignn_jax.analysis.spectra import vibrational_density_of_states as vibrational_density_of_states
    from leignn_jax.analysis.stability import bond_instability as bond_instability
    from leignn_jax.analysis.stability import distance_instability as distance_instability
    from leignn_jax.analysis.stability import rdf_instability as rdf_instability
    from leignn_jax.analysis.statistics import block_average as block_average
    from leignn_jax.analysis.statistics import mean_with_error as mean_with_error
    from leignn_jax.analysis.statistics import over_replicas as over_replicas
    from leignn_jax.analysis.statistics import statistical_inefficiency as statistical_inefficiency
    from leignn_jax.analysis.thermodynamics import density as density
    from leignn_jax.analysis.thermodynamics import energy_drift as energy_drift
    from leignn_jax.analysis.thermodynamics import kinetic_energy as kinetic_energy
    from leignn_jax.analysis.thermodynamics import pressure as pressure
    from leignn_jax.analysis.thermodynamics import temperature as temperature
    from leignn_jax.analysis.thermodynamics import thermo_log as thermo_log
    from leignn_jax.analysis.trajectory import Trajectory as Trajectory
    from leignn_jax.analysis.trajectory import from_ase as from_ase
    from leignn_jax.analysis.trajectory import unwrap as unwrap
    from leignn_jax.analysis.transport import diffusivity as diffusivity
    from leignn_jax.analysis.transport import green_kubo_diffusivity as green_kubo_diffusivity
    from leignn_jax.analysis.transport import mean_squared_displacement as mean_squared_displacement
    from leignn_jax.analysis.transport import running_diffusivity as running_diffusivity
    from leignn_jax.analysis.transport import velocity_autocorrelation as velocity_autocorrelation
    from leignn_jax.analysis.viewer import view as view

# Imported when first asked for: looking at numbers on the host does not wait for JAX or matplotlib.
_HOME = {
    "Trajectory": "trajectory",
    "angle_distribution": "angles",
    "block_average": "statistics",
    "bond_instability": "stability",
    "density": "thermodynamics",
    "diffusivity": "transport",
    "distance_distribution": "rdf",
    "distance_instability": "stability",
    "energy_drift": "thermodynamics",
    "force_distance": "forces",
    "force_distribution": "forces",
    "from_ase": "trajectory",
    "green_kubo_conductivity": "conductivity",
    "green_kubo_diffusivity": "transport",
    "heat_capacity": "fluctuations",
    "heat_flux": "heat_current",
    "kinetic_energy": "thermodynamics",
    "mean_squared_displacement": "transport",
    "mean_with_error": "statistics",
    "over_replicas": "statistics",
    "pair_distances": "soft_rdf",
    "pair_weights": "soft_rdf",
    "plot_distances": "plots",
    "plot_forces": "plots",
    "plot_msd": "plots",
    "plot_rdf": "plots",
    "plot_thermo": "plots",
    "plot_vdos": "plots",
    "pressure": "thermodynamics",
    "radial_distribution": "rdf",
    "rdf_from_histogram": "soft_rdf",
    "rdf_instability": "stability",
    "rdf_mae": "rdf",
    "running_diffusivity": "transport",
    "scattering_intensity": "scattering",
    "smooth_angle_distribution": "soft_angles",
    "smooth_density_of_states": "soft_spectra",
    "smooth_rdf": "soft_rdf",
    "soft_histogram": "soft_rdf",
    "statistical_inefficiency": "statistics",
    "structure_factor": "scattering",
    "temperature": "thermodynamics",
    "thermal_expansion": "fluctuations",
    "thermo_log": "thermodynamics",
    "unwrap": "trajectory",
    "velocity_autocorrelation": "transport",
    "vibrational_density_of_states": "spectra",
    "view": "viewer",
}

# Rooms that are used by their own names, as in analysis.soft_rdf.smooth_rdf.
_ROOMS = (
    "angles",
    "conductivity",
    "correlation",
    "fluctuations",
    "forces",
    "heat_current",
    "plots",
    "rdf",
    "scattering",
    "soft_angles",
    "soft_rdf",
    "soft_spectra",
    "spectra",
    "stability",
    "statistics",
    "thermodynamics",
    "trajectory",
    "transport",
    "viewer",
)

__all__ = [*_HOME, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
