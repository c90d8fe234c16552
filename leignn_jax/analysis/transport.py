"""Motion of atoms: mean squared displacement, velocity autocorrelation, self-diffusion.

Diffusivities are in Å^2/ps first and in cm^2/s beside it: 1 Å^2/ps = 1e-4 cm^2/s = 1e-8 m^2/s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from leignn_jax.analysis.correlation import autocorrelation
from leignn_jax.analysis.statistics import split_blocks
from leignn_jax.analysis.trajectory import as_frames, as_masses, as_numbers, check_timestep, element, without_drift
from leignn_jax.arguments import check_number, check_whole, shown
from leignn_jax.errors import ConfigError, DataError

FS_PER_PS = 1000.0
CM2_PER_S = 1e-4  # of one Å^2/ps


class TimeCurve(NamedTuple):
    """A function of the lag time, averaged over atoms and time origins.

    time: ``[lags]`` fs, from 0.
    total: ``[lags]``, over all atoms; Å^2 for a displacement, Å^2/fs^2 for velocities, no unit where normalised.
    elements: ``[kinds]`` chemical symbols, in the order of atomic numbers.
    per_element: ``[kinds, lags]``, the same over the atoms of one element.
    """

    time: np.ndarray
    total: np.ndarray
    elements: tuple[str, ...]
    per_element: np.ndarray

    def of(self, symbol: str) -> np.ndarray:
        """The curve of one element, ``[lags]``."""
        if symbol not in self.elements:
            raise ConfigError(f"There is no {symbol!r}: there are {', '.join(self.elements)}.")
        return self.per_element[self.elements.index(symbol)]


class Diffusivity(NamedTuple):
    """A self-diffusion coefficient.

    value, error: Å^2/ps; the error is the standard error (1 sigma) from blocks, NaN where there was one block only.
    value_cm2_per_s, error_cm2_per_s: the same in cm^2/s.
    blocks: ``[blocks]`` Å^2/ps, the value from each block alone.
    window: fs, lags of the fit (Einstein) or of the integral (Green-Kubo).
    dimensions: d, in which the motion was counted.
    intercept: Å^2, of the line 2 d D t + intercept that was fitted; 0 for Green-Kubo.
    """

    value: float
    error: float
    value_cm2_per_s: float
    error_cm2_per_s: float
    blocks: np.ndarray
    window: tuple[float, float]
    dimensions: int
    intercept: float


def mean_squared_displacement(
    positions: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    *,
    remove_drift: bool = False,
    masses: ArrayLike | None = None,
    max_lag: float | None = None,
) -> TimeCurve:
    """``<|r(t + lag) - r(t)|^2>`` over all atoms and origins t, total and per element, in Å^2; by FFT.

    Args:
        positions: ``[frames, atoms, 3]`` Å, unwrapped (:func:`leignn_jax.analysis.unwrap`).
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        remove_drift: take off the motion of the centre of mass of the whole system.
        masses: ``[atoms]`` amu for the centre of mass; None is the elements' standard masses.
        max_lag: fs; None is all lags, of which the long ones have few origins.

    Source: G. R. Kneller et al., Comput. Phys. Commun. 91, 191 (1995), for the FFT.
    """
    positions, numbers, lags = _prepared(positions, numbers, timestep, max_lag, masses, "positions")
    if remove_drift:
        positions = without_drift(positions, as_masses(masses, len(numbers), numbers))
    return _curve(positions, numbers, timestep, lags, _displacement)


def velocity_autocorrelation(
    velocities: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    *,
    normalised: bool = False,
    remove_drift: bool = False,
    masses: ArrayLike | None = None,
    max_lag: float | None = None,
) -> TimeCurve:
    """``<v(t + lag) . v(t)>`` over all atoms and origins t, total and per element, in Å^2/fs^2; by FFT.

    Args:
        velocities: ``[frames, atoms, 3]`` Å/fs.
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        normalised: divide each curve by its value at lag 0; no unit then.
        remove_drift: take off the velocity of the centre of mass of the whole system.
        masses: ``[atoms]`` amu for the centre of mass; None is the elements' standard masses.
        max_lag: fs; None is all lags.
    """
    velocities, numbers, lags = _prepared(velocities, numbers, timestep, max_lag, masses, "velocities")
    if remove_drift:
        velocities = without_drift(velocities, as_masses(masses, len(numbers), numbers))
    curve = _curve(velocities, numbers, timestep, lags, _correlation)
    if not normalised:
        return curve
    if not (curve.per_element[:, 0] > 0).all():
        raise DataError("The velocities of an element are all zero: there is nothing to normalise by.")
    return curve._replace(total=curve.total / curve.total[0], per_element=curve.per_element / curve.per_element[:, :1])


def diffusivity(
    positions: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    *,
    window: tuple[float, float],
    element: str | None = None,
    blocks: int = 5,
    remove_drift: bool = False,
    masses: ArrayLike | None = None,
    dimensions: int = 3,
) -> Diffusivity:
    """Einstein: the slope of the MSD over ``window`` is 2 d D, by least squares with an intercept.

    The value is from the whole trajectory; its error is the scatter of the same fit in ``blocks`` equal parts of it,
    over sqrt(blocks). Choose a window after the ballistic and caged regime, and blocks some windows long.

    Args:
        positions: ``[frames, atoms, 3]`` Å, unwrapped.
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        window: (first, last) lag of the fit, fs.
        element: chemical symbol whose atoms count; None is all.
        blocks: 2 or more, or 1 for no error.
        remove_drift, masses: as for :func:`mean_squared_displacement`.
        dimensions: d, 2 for motion in a plane.

    Raises:
        ConfigError: the window holds fewer than two lags or is longer than a block.
    """
    positions, numbers, _ = _prepared(positions, numbers, timestep, None, masses, "positions")
    if remove_drift:
        positions = without_drift(positions, as_masses(masses, len(numbers), numbers))
    positions = _selected(positions, numbers, element)
    dimensions, blocks = check_whole("dimensions", dimensions, 1, 3), check_whole("blocks", blocks, 1)
    first, last = _window(window, timestep, len(positions) // blocks, blocks)
    time = timestep * np.arange(first, last + 1)

    def fit(part):
        slope, intercept = np.polyfit(time, _displacement(part, last + 1)[first:] / part.shape[1], 1)
        return slope * FS_PER_PS / (2 * dimensions), intercept

    value, intercept = fit(positions)
    values = np.array([fit(p)[0] for p in split_blocks(positions, blocks)] if blocks > 1 else [value])
    return _diffusivity(value, values, (first * timestep, last * timestep), dimensions, intercept)


def green_kubo_diffusivity(
    velocities: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    *,
    cutoff: float,
    element: str | None = None,
    blocks: int = 5,
    remove_drift: bool = False,
    masses: ArrayLike | None = None,
    dimensions: int = 3,
) -> Diffusivity:
    """Green-Kubo: D = 1/d times the integral of the VACF from 0 to ``cutoff`` by the trapezoidal rule.

    Frames must be close enough to follow the VACF (some fs), and the cutoff where :func:`running_diffusivity` is flat.
    The error is from blocks as for :func:`diffusivity`.

    Args:
        velocities: ``[frames, atoms, 3]`` Å/fs.
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        cutoff: last lag of the integral, fs.
        element, blocks, dimensions: as for :func:`diffusivity`.
        remove_drift, masses: as for :func:`velocity_autocorrelation`.
    """
    velocities, numbers, _ = _prepared(velocities, numbers, timestep, None, masses, "velocities")
    if remove_drift:
        velocities = without_drift(velocities, as_masses(masses, len(numbers), numbers))
    velocities = _selected(velocities, numbers, element)
    dimensions, blocks = check_whole("dimensions", dimensions, 1, 3), check_whole("blocks", blocks, 1)
    window = (0.0, check_number("cutoff", cutoff, positive=True))
    _, last = _window(window, timestep, len(velocities) // blocks, blocks)

    def integral(part):
        vacf = _correlation(part, last + 1) / part.shape[1]
        return np.trapezoid(vacf, dx=timestep) * FS_PER_PS / dimensions

    value = integral(velocities)
    values = np.array([integral(p) for p in split_blocks(velocities, blocks)] if blocks > 1 else [value])
    return _diffusivity(value, values, (0.0, last * timestep), dimensions, 0.0)


def running_diffusivity(vacf: TimeCurve, element: str | None = None, *, dimensions: int = 3) -> np.ndarray:
    """The Green-Kubo integral up to each lag, ``[lags]`` Å^2/ps, of a VACF that is not normalised."""
    curve = vacf.total if element is None else vacf.of(element)
    steps = 0.5 * (curve[1:] + curve[:-1]) * np.diff(vacf.time)
    return np.concatenate([[0.0], np.cumsum(steps)]) * FS_PER_PS / dimensions


def _displacement(positions: np.ndarray, lags: int) -> np.ndarray:
    """Squared displacements summed over atoms: S1(k) - 2 S2(k), S2 the autocorrelation of the positions."""
    frames = len(positions)
    # Only differences count: near zero the two large terms cancel without loss.
    positions = positions - positions.mean(axis=0)
    squares = np.concatenate([[0.0], np.cumsum(np.einsum("tai,tai->t", positions, positions))])
    lag = np.arange(lags)
    ends = (squares[frames - lag] + squares[-1] - squares[lag]) / (frames - lag)
    summed = np.maximum(ends - 2 * autocorrelation(positions, lags), 0.0)
    summed[0] = 0.0
    return summed


def _correlation(velocities: np.ndarray, lags: int) -> np.ndarray:
    return autocorrelation(velocities, lags)


def _curve(series, numbers, timestep, lags, function) -> TimeCurve:
    """A function of the series of each element, as means over atoms."""
    elements = np.unique(numbers)
    sums = np.stack([function(series[:, numbers == z], lags) for z in elements])
    sizes = np.array([np.sum(numbers == z) for z in elements])
    symbols = tuple(chemical_symbols[z] for z in elements)
    return TimeCurve(timestep * np.arange(lags), sums.sum(axis=0) / sizes.sum(), symbols, sums / sizes[:, None])


def _prepared(series, numbers, timestep, max_lag, masses, name) -> tuple[np.ndarray, np.ndarray, int]:
    series = as_frames(series, name)
    numbers = as_numbers(numbers, series.shape[1])
    check_timestep(timestep)
    as_masses(masses, series.shape[1], numbers)
    if max_lag is None:
        return series, numbers, len(series)
    if not check_number("max_lag", max_lag, least=0.0) <= timestep * (len(series) - 1) * (1 + 1e-9):
        raise ConfigError(
            f"max_lag = {max_lag} fs is not within the trajectory, which is {timestep * (len(series) - 1):g} fs long."
        )
    return series, numbers, int(np.floor(max_lag / timestep * (1 + 1e-9))) + 1


def _selected(series: np.ndarray, numbers: np.ndarray, symbol: str | None) -> np.ndarray:
    return series if symbol is None else series[:, numbers == element(symbol, numbers)]


def _window(window, timestep, frames, blocks) -> tuple[int, int]:
    """First and last lag in frames."""
    if not isinstance(window, tuple | list | np.ndarray) or len(window) != 2:
        raise ConfigError(
            f"window must be the first and the last lag in fs, such as (1000, 5000), not {shown(window)}."
        )
    first, last = (round(check_number("a lag of the window, in fs,", t) / timestep) for t in window)
    if not 0 <= first < last:
        raise ConfigError(
            f"The window {window[0]:g} to {window[1]:g} fs holds fewer than two lags of {timestep:g} fs: widen it."
        )
    if last >= frames:
        raise ConfigError(
            f"The window ends at {window[1]:g} fs, but each of {blocks} blocks is {timestep * (frames - 1):g} fs long: "
            "end the window earlier, take fewer blocks, or simulate longer."
        )
    return first, last


def _diffusivity(value, values, window, dimensions, intercept) -> Diffusivity:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    value = float(value)
    return Diffusivity(value, error, value * CM2_PER_S, error * CM2_PER_S, values, window, dimensions, float(intercept))
