"""Vibrational density of states from velocities; :mod:`leignn_jax.analysis.soft_spectra` is the same for gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from leignn_jax.analysis.correlation import autocorrelation
from leignn_jax.analysis.trajectory import as_frames, as_masses, as_numbers, check_timestep
from leignn_jax.arguments import check_choice, check_number, check_whole
from leignn_jax.errors import ConfigError, DataError

THZ_PER_INVERSE_FS = 1000.0
WAVENUMBER_PER_INVERSE_FS = 1 / 2.99792458e-5  # cm^-1; the speed of light in cm/fs

MOST_PADDING = 10_000
# Halves of windows: 1 at x = 0, the first lag, and 0 (or nearly) at x = 1, the last.
_WINDOWS = {
    "hann": lambda x: 0.5 + 0.5 * np.cos(np.pi * x),
    "blackman": lambda x: 0.42 + 0.5 * np.cos(np.pi * x) + 0.08 * np.cos(2 * np.pi * x),
    "none": np.ones_like,
}


class DensityOfStates(NamedTuple):
    """A vibrational density of states.

    wavenumber: ``[frequencies]`` cm^-1, from 0 to the Nyquist frequency.
    frequency: ``[frequencies]`` THz, the same.
    total: ``[frequencies]`` states per cm^-1; its integral over wavenumber is 3 N, or what was asked for.
    elements: ``[kinds]`` chemical symbols, in the order of atomic numbers.
    per_element: ``[kinds, frequencies]``; they add up to the total.
    """

    wavenumber: np.ndarray
    frequency: np.ndarray
    total: np.ndarray
    elements: tuple[str, ...]
    per_element: np.ndarray


def vibrational_density_of_states(
    velocities: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    *,
    masses: ArrayLike | None = None,
    window: str = "hann",
    max_lag: float | None = None,
    padding: int = 4,
    integral: float | None = None,
) -> DensityOfStates:
    """The cosine transform of the mass-weighted velocity autocorrelation ``sum_i m_i <v_i(0) . v_i(t)>``.

    By equipartition each mode has the same weight, so the integral counts modes: 3 N with translations and rotations,
    which stand at zero frequency in a solid. A sharp mode becomes a peak 1/max_lag wide with the hann window;
    frequencies above half of 1/timestep appear at wrong places. Noise of the correlation can leave slightly negative
    values between peaks.

    Args:
        velocities: ``[frames, atoms, 3]`` Å/fs.
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        masses: ``[atoms]`` amu; None is the elements' standard masses.
        window: "hann", "blackman" or "none", laid over the lags from 1 at lag 0 to 0 at max_lag.
        max_lag: fs, of the autocorrelation; None is half of the trajectory.
        padding: how many times more points than lags; interpolates the curve, does not sharpen it.
        integral: of the total over wavenumber; None is 3 N, 1 gives a normalised spectrum.

    Raises:
        ConfigError: an unknown window, or max_lag or padding out of range.
        DataError: shapes that don't fit, or velocities that are all zero.
    """
    velocities = as_frames(velocities, "velocities")
    frames, atoms = velocities.shape[:2]
    numbers = as_numbers(numbers, atoms)
    masses = as_masses(masses, atoms, numbers)
    check_choice("window", window, _WINDOWS)
    timestep = check_timestep(timestep)
    padding = check_whole("padding", padding, 1, MOST_PADDING)
    integral = 3 * atoms if integral is None else check_number("integral", integral, positive=True)
    if max_lag is not None:
        check_number("max_lag", max_lag, least=0.0)
    lags = frames // 2 if max_lag is None else int(np.floor(max_lag / timestep * (1 + 1e-9))) + 1
    if not 2 <= lags <= frames:
        if max_lag is None:
            raise ConfigError(f"A trajectory of {frames} frames is too short: at least 4 are needed.")
        raise ConfigError(
            f"max_lag = {max_lag} fs leaves {lags} lags of a trajectory of {frames} frames: at least 2 are needed, and "
            f"{timestep * (frames - 1):g} fs are there."
        )
    weighted = velocities * np.sqrt(masses)[:, None]
    elements = np.unique(numbers)
    correlation = np.stack([autocorrelation(weighted[:, numbers == z], lags) for z in elements])
    if not correlation[:, 0].sum() > 0:
        raise DataError("The velocities are all zero: does the trajectory hold them?")
    spectrum = cosine_transform(correlation * lag_window(window, lags), padding, np)
    wavenumber = wavenumbers(lags, timestep, padding)
    spectrum *= integral / np.trapezoid(spectrum.sum(axis=0), wavenumber)
    return DensityOfStates(
        wavenumber=wavenumber,
        frequency=wavenumber * (THZ_PER_INVERSE_FS / WAVENUMBER_PER_INVERSE_FS),
        total=spectrum.sum(axis=0),
        elements=tuple(chemical_symbols[z] for z in elements),
        per_element=spectrum,
    )


def lag_window(window: str, lags: int) -> np.ndarray:
    """What the correlation is multiplied by, ``[lags]``, by name."""
    return _WINDOWS[check_choice("window", window, _WINDOWS)](np.arange(lags) / lags)


def wavenumbers(lags: int, timestep: float, padding: int) -> np.ndarray:
    """cm^-1 of what :func:`cosine_transform` gives, ``[padding * lags + 1]``."""
    points = padding * lags
    return np.arange(points + 1) / (2 * points * timestep) * WAVENUMBER_PER_INVERSE_FS


def cosine_transform(correlation: Any, padding: int, xp: Any) -> Any:
    """``[..., lags]`` to ``[..., padding * lags + 1]``; ``xp`` is numpy, or jax.numpy for gradients.

    An even function on 2 n points has a real transform, which is the cosine transform.
    """
    *rest, lags = correlation.shape
    zeros = xp.zeros((*rest, 2 * padding * lags - 2 * lags + 1), correlation.dtype)
    even = xp.concatenate([correlation, zeros, correlation[..., :0:-1]], axis=-1)
    return xp.fft.rfft(even, axis=-1).real
