r"""Response functions from fluctuations in equilibrium: heat capacity and thermal expansion.

    C_V = <dE^2> / (k_B T^2),    C_p = <dH^2> / (k_B T^2),    alpha = <dV dH> / (k_B T^2 <V>),

E the total energy at constant volume, H = E + P V at the constant pressure P of the barostat (Allen and Tildesley, Computer
Simulation of Liquids, 2017, sec. 2.5). With the potential energy alone, the same formulas give what the potential energy
contributes; the classical kinetic part of C is k_B / 2 for each degree of freedom, that of alpha nothing.

All need a thermostat that samples its ensemble (Nose-Hoover, Langevin, CSVR): at constant energy nothing fluctuates. The
errors are those of means of correlated frames; :func:`leignn_jax.analysis.over_replicas` takes them from replicas.
"""

from __future__ import annotations

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from leignn_jax.analysis.statistics import Average, as_series, mean_with_error, statistical_inefficiency
from leignn_jax.analysis.thermodynamics import GPA
from leignn_jax.arguments import check_number
from leignn_jax.errors import ConfigError, DataError


def heat_capacity(
    energy: ArrayLike,
    temperature: float,
    *,
    volume: ArrayLike | None = None,
    pressure: float | None = None,
) -> Average:
    """C in eV/K of the whole system; over ``ase.units.kB`` in k_B.

    At constant volume give the energy alone; at constant pressure the volume and the barostat's pressure as well.

    Args:
        energy: ``[frames]`` eV, total energy (potential and kinetic).
        temperature: K, of the thermostat.
        volume: ``[frames]`` Å^3, with ``pressure``.
        pressure: GPa, of the barostat, not what fluctuates.

    Returns:
        Value and standard error; ``samples`` says how many independent fluctuations there were.

    Raises:
        DataError: fewer than two frames, unequal lengths, or numbers that are not finite.
        ConfigError: one of volume and pressure without the other.
    """
    if (volume is None) != (pressure is None):
        raise ConfigError("C_p needs both volume and pressure; C_V neither: one of them is missing.")
    energy = as_series(energy, "energy")
    if volume is not None and pressure is not None:
        energy = energy + _work(volume, pressure, len(energy))
    kT2 = _kT2(temperature)
    return _mean(energy, energy, kT2)


def thermal_expansion(volume: ArrayLike, energy: ArrayLike, temperature: float, pressure: float) -> Average:
    """The volumetric coefficient (1/V) (dV/dT)_P in 1/K; a third of it is the linear one of a cubic crystal.

    Args:
        volume: ``[frames]`` Å^3, of a simulation at constant pressure.
        energy: ``[frames]`` eV, total or potential energy: the kinetic part only adds noise.
        temperature: K, of the thermostat.
        pressure: GPa, of the barostat.

    Raises:
        DataError: fewer than two frames, unequal lengths, volumes that are not positive, or numbers that are not finite.
    """
    energy = as_series(energy, "energy")
    enthalpy = energy + _work(volume, pressure, len(energy))
    volume = as_series(volume, "volume")
    return _mean(volume, enthalpy, _kT2(temperature) * volume.mean())


def _mean(first: np.ndarray, second: np.ndarray, scale: float) -> Average:
    """Mean of the product of two fluctuations over ``scale``, as if both means were known.

    They are those of the same frames, which takes off one of the independent samples: as many frames as are worth one.
    """
    products = (first - first.mean()) * (second - second.mean()) / scale
    average = mean_with_error(products)
    worth = np.sqrt(statistical_inefficiency(first) * statistical_inefficiency(second))
    # Of few frames, or few independent ones, it is itself not known.
    missing = 1 / (1 - max(1.0, min(worth, len(first) / 10)) / len(first))
    return average._replace(value=average.value * missing, error=average.error * missing)


def _kT2(temperature: float) -> float:
    return units.kB * check_number("temperature, in K,", temperature, positive=True) ** 2


def _work(volume: ArrayLike, pressure: float, frames: int) -> np.ndarray:
    """P V in eV, ``[frames]``."""
    volume = as_series(volume, "volume")
    if len(volume) != frames:
        raise DataError(f"There are {frames} energies, but {len(volume)} volumes: give both of each frame.")
    if not (volume > 0).all():
        raise DataError(
            f"The volume of frame {np.flatnonzero(volume <= 0)[0]} is not positive: a structure without a cell has none, "
            "and neither C_p nor thermal expansion."
        )
    return check_number("pressure, in GPa,", pressure) / GPA * volume
