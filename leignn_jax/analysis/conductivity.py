r"""Thermal conductivity from the fluctuations of the heat flux.

kappa = 1 / (3 V k_B T^2) * integral from 0 to infinity of <J(0) . J(t)> dt, J the flux of the whole system in equilibrium
(Green 1954; Kubo 1957). The mean flux is zero in equilibrium and is not taken off.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import units
from numpy.typing import ArrayLike

from leignn_jax.analysis.correlation import autocorrelation
from leignn_jax.analysis.statistics import split_blocks
from leignn_jax.analysis.trajectory import check_timestep
from leignn_jax.arguments import check_number, check_whole, numbers_of
from leignn_jax.errors import ConfigError, DataError

WATT_PER_METRE_KELVIN = 1e25 / units.J  # of one eV/(fs Å K): e J/eV over 1e-15 s and 1e-10 m


class Conductivity(NamedTuple):
    """A thermal conductivity in W/(m K).

    value, error: mean and standard error (1 sigma) over replicas, or over blocks of one trajectory.
    each: ``[replicas]`` or ``[blocks]``.
    cutoff: fs, where the integral ends.
    time: ``[lags]`` fs.
    running: ``[lags]`` the integral up to each lag; it must be flat around the cutoff.
    running_error: ``[lags]`` its standard error.
    correlation: ``[lags]`` <J(0) . J(t)> / 3 over that of lag 0; no unit.
    """

    value: float
    error: float
    each: np.ndarray
    cutoff: float
    time: np.ndarray
    running: np.ndarray
    running_error: np.ndarray
    correlation: np.ndarray


def green_kubo_conductivity(
    flux: ArrayLike,
    volume: float,
    temperature: float,
    timestep: float,
    *,
    cutoff: float,
    blocks: int = 5,
) -> Conductivity:
    """Green-Kubo: the mean of the three directions, by the trapezoidal rule up to ``cutoff``.

    Frames must be close enough to follow the flux (a tenth of the shortest period), the trajectory many cutoffs long, and
    the cutoff where ``running`` has become flat: later it only gathers noise.

    Args:
        flux: ``[frames, 3]`` of one trajectory or ``[replicas, frames, 3]`` eV Å/fs, of the whole system, such as
            ``heat_flux(...).total``; for a solid ``.potential`` gives the same with less noise.
        volume: Å^3.
        temperature: K.
        timestep: fs between frames.
        cutoff: fs, last lag of the integral.
        blocks: equal parts of a single trajectory that the error comes from, 2 or more; replicas are their own parts.

    Raises:
        DataError: another shape, one replica or frame only, or numbers that are not finite.
        ConfigError: the cutoff is longer than a replica or block.
    """
    flux = numbers_of(flux, "The flux")
    if flux.ndim not in (2, 3) or flux.shape[-1] != 3 or 0 in flux.shape:
        raise DataError(f"The flux must be [frames, 3] or [replicas, frames, 3], not {list(flux.shape)}.")
    if not np.isfinite(flux).all():
        raise DataError(f"The flux is not finite at {np.argwhere(~np.isfinite(flux))[0][:-1].tolist()}.")
    if flux.ndim == 3 and len(flux) < 2:
        raise DataError(
            "There is 1 replica: its error needs two or more. Give [frames, 3] for an error by blocks of it."
        )
    parts = flux if flux.ndim == 3 else split_blocks(flux, check_whole("blocks", blocks))
    what = "replica" if flux.ndim == 3 else "block"
    volume = check_number("volume, in Å^3,", volume, positive=True)
    temperature = check_number("temperature, in K,", temperature, positive=True)
    timestep, cutoff = check_timestep(timestep), check_number("cutoff, in fs,", cutoff, positive=True)
    last = round(cutoff / timestep)
    if not 1 <= last < parts.shape[1]:
        raise ConfigError(
            f"The cutoff of {cutoff:g} fs is not between one step of {timestep:g} fs and the length of each {what}, "
            f"{timestep * (parts.shape[1] - 1):g} fs: choose another, or simulate longer."
        )
    curves = np.stack([autocorrelation(part, last + 1) for part in parts]) / 3
    if not curves[:, 0].sum() > 0:
        raise DataError("The flux is zero: do the atoms move?")
    steps = 0.5 * (curves[:, 1:] + curves[:, :-1]) * timestep
    integrals = np.concatenate([np.zeros((len(curves), 1)), np.cumsum(steps, axis=1)], axis=1)
    running = integrals * WATT_PER_METRE_KELVIN / (volume * units.kB * temperature**2)
    mean, error = running.mean(0), running.std(0, ddof=1) / np.sqrt(len(running))
    return Conductivity(
        value=float(mean[-1]),
        error=float(error[-1]),
        each=running[:, -1],
        cutoff=last * timestep,
        time=timestep * np.arange(last + 1),
        running=mean,
        running_error=error,
        correlation=curves.mean(0) / curves[:, 0].mean(),
    )
