"""Energies, temperature and pressure of a trajectory, and how well a simulation conserves its energy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from leignn_jax.analysis.statistics import as_series, statistical_inefficiency
from leignn_jax.analysis.trajectory import as_cells, as_frames, as_masses, check_timestep
from leignn_jax.arguments import check_whole, numbers_of
from leignn_jax.errors import ConfigError, DataError

GPA = 1 / units.GPa  # GPa of one eV/Å^3
GRAM_PER_CM3 = 1e24 * units._amu * 1e3  # g/cm^3 of one amu/Å^3
_FS_PER_NS = 1e6


class ThermoLog(NamedTuple):
    """Scalars over time, each ``[frames]``.

    time: fs.
    potential_energy, kinetic_energy, total_energy: eV.
    temperature: K.
    pressure: eV/Å^3 (times ``GPA`` for GPa), or None where there was no stress.
    """

    time: np.ndarray
    potential_energy: np.ndarray
    kinetic_energy: np.ndarray
    total_energy: np.ndarray
    temperature: np.ndarray
    pressure: np.ndarray | None


class EnergyDrift(NamedTuple):
    """The straight line through the energy per atom.

    drift, error: eV/atom/ns, error is the standard error (1 sigma) with correlated residuals taken into account.
    fluctuation: eV/atom, root mean square of what is left.
    """

    drift: float
    error: float
    fluctuation: float


def kinetic_energy(velocities: ArrayLike, masses: ArrayLike) -> np.ndarray:
    """``[frames]`` eV from velocities ``[frames, atoms, 3]`` in Å/fs and masses ``[atoms]`` in amu."""
    velocities = as_frames(velocities, "velocities")
    masses = as_masses(masses, velocities.shape[1])
    # amu (Å/fs)^2 in eV: ASE's unit of time makes amu Å^2 / time^2 one eV.
    return 0.5 * np.einsum("tai,tai,a->t", velocities, velocities, masses) / units.fs**2


def temperature(velocities: ArrayLike, masses: ArrayLike, *, removed: int = 0) -> np.ndarray:
    """Instantaneous temperature ``2 K / ((3 N - removed) k_B)``, ``[frames]`` K.

    Args:
        velocities: ``[frames, atoms, 3]`` Å/fs.
        masses: ``[atoms]`` amu.
        removed: degrees of freedom that don't move: 3 where the centre of mass rests (NVE, Nosé-Hoover from zero
            momentum), 6 for a molecule that does not turn either, 0 under Langevin dynamics; constraints on top.

    Raises:
        ConfigError: nothing is left to move.
    """
    energy = kinetic_energy(velocities, masses)
    atoms = len(np.asarray(masses))
    freedom = 3 * atoms - check_whole("removed", removed)
    if freedom <= 0:
        raise ConfigError(
            f"{removed} degrees of freedom can't be taken from the {3 * atoms} of {atoms} atoms: leave one or more."
        )
    return 2 * energy / (freedom * units.kB)


def pressure(stress: ArrayLike, velocities: ArrayLike, masses: ArrayLike, volume: ArrayLike) -> np.ndarray:
    """Instantaneous pressure ``2 K / (3 V) - tr(stress) / 3``, ``[frames]`` eV/Å^3; times ``GPA`` for GPa.

    Args:
        stress: ``[frames, 3, 3]`` or ``[frames, 6]`` (xx, yy, zz, yz, xz, xy) eV/Å^3 of the potential energy alone, in
            ASE's sign (tension is positive).
        velocities: ``[frames, atoms, 3]`` Å/fs.
        masses: ``[atoms]`` amu.
        volume: one number or ``[frames]``, Å^3.
    """
    stress = numbers_of(stress, "The stress")
    if stress.ndim == 3 and stress.shape[1:] == (3, 3):
        trace = np.trace(stress, axis1=1, axis2=2)
    elif stress.ndim == 2 and stress.shape[1] == 6:
        trace = stress[:, :3].sum(axis=1)
    else:
        raise DataError(f"The stress must be [frames, 3, 3] or [frames, 6], not {list(stress.shape)}.")
    kinetic, volume = kinetic_energy(velocities, masses), numbers_of(volume, "The volume")
    if len(kinetic) != len(trace) or volume.shape not in ((), kinetic.shape):
        raise DataError(
            f"{len(kinetic)} frames of velocities, but {len(trace)} of stress and volumes {list(volume.shape)}: the volume "
            "is one number or one for each frame."
        )
    if not (np.isfinite(volume) & (volume > 0)).all():
        raise DataError("The volume must be positive numbers of Å^3.")
    bad = np.flatnonzero(~np.isfinite(stress.reshape(len(stress), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"The stress of frame {bad[0]} is not finite.")
    return 2 * kinetic / (3 * volume) - trace / 3


def density(cell: ArrayLike, masses: ArrayLike) -> np.ndarray:
    """Mass over volume, ``[frames]`` g/cm^3.

    Args:
        cell: ``[frames, 3, 3]`` or, for one frame, ``[3, 3]`` Å.
        masses: ``[atoms]`` amu.

    Raises:
        DataError: a cell without a volume, with its frame.
    """
    cell = numbers_of(cell, "The cell")
    cells = as_cells(cell, len(cell) if cell.ndim == 3 else 1)
    masses = as_masses(masses, np.size(masses))
    return GRAM_PER_CM3 * masses.sum() / volumes(cells, "density")


def volumes(cells: np.ndarray, what: str) -> np.ndarray:
    """``[frames]`` Å^3 of ``[frames, 3, 3]``; DataError, which says what it is for, where there is none."""
    found = np.abs(np.linalg.det(cells))
    bad = np.flatnonzero(~(found > 1e-9))
    if len(bad):
        raise DataError(
            f"The cell of frame {bad[0]} has no volume, so there is no {what}: give a structure with a cell, periodic in "
            "all directions."
        )
    return found


def thermo_log(
    velocities: ArrayLike,
    masses: ArrayLike,
    potential_energy: ArrayLike,
    timestep: float,
    *,
    stress: ArrayLike | None = None,
    volume: ArrayLike | None = None,
    removed: int = 0,
) -> ThermoLog:
    """Energies, temperature and, with stress and volume, pressure over time.

    Args:
        velocities: ``[frames, atoms, 3]`` Å/fs.
        masses: ``[atoms]`` amu.
        potential_energy: ``[frames]`` eV.
        timestep: fs between frames.
        stress, volume: as for :func:`pressure`; both or neither.
        removed: as for :func:`temperature`.
    """
    if (stress is None) != (volume is None):
        raise ConfigError("The pressure needs both stress and volume: one of them is missing.")
    kinetic = kinetic_energy(velocities, masses)
    potential = numbers_of(potential_energy, "The potential energy")
    if potential.shape != kinetic.shape:
        raise DataError(f"{len(kinetic)} frames of velocities, but potential energies {list(potential.shape)}.")
    if not np.isfinite(potential).all():
        raise DataError(f"The potential energy of frame {np.flatnonzero(~np.isfinite(potential))[0]} is not finite.")
    return ThermoLog(
        time=check_timestep(timestep) * np.arange(len(kinetic)),
        potential_energy=potential,
        kinetic_energy=kinetic,
        total_energy=potential + kinetic,
        temperature=temperature(velocities, masses, removed=removed),
        pressure=None if stress is None or volume is None else pressure(stress, velocities, masses, volume),
    )


def energy_drift(energy: ArrayLike, atoms: int, timestep: float) -> EnergyDrift:
    """Slope of the conserved energy by least squares, in eV/atom/ns.

    The error is that of least squares times sqrt(g), g the statistical inefficiency of the residuals: right where the
    trajectory is many correlation times long.

    Args:
        energy: ``[frames]`` eV of the whole system: total energy in NVE, the thermostat's conserved quantity else.
        atoms: how many.
        timestep: fs between frames.
    """
    energy, timestep = as_series(energy, "energy", least=3), check_timestep(timestep)
    atoms = check_whole("atoms", atoms, 1)
    time = timestep * (np.arange(len(energy)) - (len(energy) - 1) / 2) / _FS_PER_NS
    centred = (energy - energy.mean()) / atoms
    spread = np.sum(time**2)
    slope = np.sum(time * centred) / spread
    residual = centred - slope * time
    variance = np.sum(residual**2) / (len(energy) - 2)
    # A line that is straight to rounding has no correlated residuals to speak of.
    straight = np.sqrt(variance) <= 1e-12 * np.abs(energy).max() / atoms
    inefficiency = 1.0 if straight else statistical_inefficiency(residual)
    return EnergyDrift(
        drift=float(slope),
        error=float(np.sqrt(variance * inefficiency / spread)),
        fluctuation=float(np.sqrt(np.mean(residual**2))),
    )
