"""Means of correlated series with honest errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from leignn_jax.analysis.correlation import autocorrelation
from leignn_jax.arguments import check_whole, numbers_of
from leignn_jax.errors import ConfigError, DataError


class Average(NamedTuple):
    """A mean of a correlated series, in the unit of the series.

    value: the mean.
    error: its standard error (1 sigma).
    inefficiency: how many frames are worth one independent sample (at least 1 from the autocorrelation time).
    samples: frames over inefficiency.
    """

    value: float
    error: float
    inefficiency: float
    samples: float


def statistical_inefficiency(series: ArrayLike) -> float:
    """``g = 1 + 2 sum_k (1 - k/N) rho(k)``: so many frames are worth one independent sample.

    The sum ends where the normalised autocorrelation rho first falls to zero, as noise follows. For AR(1) noise with
    coefficient a it is (1 + a)/(1 - a). A constant series gives 1.

    Source: J. D. Chodera et al., J. Chem. Theory Comput. 3, 26 (2007), eq. 13.
    """
    series = as_series(series)
    fluctuation = series - series.mean()
    variance = np.mean(fluctuation**2)
    # A constant whose mean is rounded is still a constant.
    if variance <= (1e-14 * np.abs(series).max()) ** 2:
        return 1.0
    rho = autocorrelation(fluctuation) / variance
    ends = np.flatnonzero(rho <= 0)
    end = ends[0] if len(ends) else len(rho)
    lags = np.arange(1, end)
    return max(1.0, float(1 + 2 * np.sum((1 - lags / len(series)) * rho[1:end])))


def mean_with_error(series: ArrayLike) -> Average:
    """Mean of ``[frames]`` with the error sqrt(g s^2 / N), g the statistical inefficiency and s^2 the variance."""
    series = as_series(series)
    inefficiency = statistical_inefficiency(series)
    error = np.sqrt(series.var(ddof=1) * inefficiency / len(series))
    return Average(float(series.mean()), float(error), inefficiency, len(series) / inefficiency)


def block_average(series: ArrayLike, blocks: int = 10) -> Average:
    """Mean of ``[frames]`` with the error from the scatter of the means of ``blocks`` equal parts.

    Right where a part is many correlation times long; the error itself is then uncertain by 1/sqrt(2 (blocks - 1)).
    Frames that don't fill the parts are left off at the start.
    """
    series = as_series(series)
    means = split_blocks(series, blocks).mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(blocks)
    variance = series.var(ddof=1)
    inefficiency = len(series) * error**2 / variance if variance > 0 else 1.0
    return Average(float(means.mean()), float(error), float(inefficiency), len(series) / max(inefficiency, 1e-300))


def split_blocks(series: np.ndarray, blocks: int) -> np.ndarray:
    """``[frames, ...]`` as ``[blocks, frames // blocks, ...]``; what does not fill them is left off at the start."""
    if check_whole("blocks", blocks) < 2 or blocks > len(series):
        raise ConfigError(f"{len(series)} frames can't be split into {blocks} blocks: give from 2 to {len(series)}.")
    length = len(series) // blocks
    return series[len(series) - blocks * length :].reshape(blocks, length, *series.shape[1:])


def as_series(series: ArrayLike, name: str = "series", least: int = 2) -> np.ndarray:
    """float64 ``[frames]``; DataError for another shape, fewer than ``least`` frames, or a NaN."""
    series = numbers_of(series, f"The {name}")
    if series.ndim != 1 or len(series) < least:
        raise DataError(f"The {name} must be [frames] with {least} frames or more, not {list(series.shape)}.")
    if not np.isfinite(series).all():
        raise DataError(f"Frame {np.flatnonzero(~np.isfinite(series))[0]} of the {name} is not finite.")
    return series
