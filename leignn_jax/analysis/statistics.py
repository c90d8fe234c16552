"""Means of correlated series with honest errors, and of replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    """Mean of ``[frames]`` with the error sqrt(g s^2 / N), g the statistical inefficiency and s^2 the variance.

    Too small where fast swings hide a slow change, such as a crystal's temperature that follows a thermostat: its
    autocorrelation falls to zero within one swing. Then take :func:`block_average`, with blocks longer than what is slow.
    """
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


class OverReplicas(NamedTuple):
    """An observable of several replicas; each field is what the observable gives, or its parts where it gives a tuple.

    value: the mean over replicas.
    error: standard error (1 sigma) of the mean, by the scatter of the replicas.
    each: with a leading axis of replicas.
    """

    value: Any
    error: Any
    each: Any


def over_replicas(observable: Callable[..., Any], *series: Any) -> OverReplicas:
    """Any observable of one trajectory as mean and standard error over independent ones.

    >>> over_replicas(lambda p: radial_distribution(p, numbers, cell).total, positions)
    >>> over_replicas(lambda e: heat_capacity(e, 300.0), energies).error.value

    Words and None in what it gives (elements, pairs) stay as they are, and must be the same of all.

    Args:
        observable: a function of one replica's part of each series, which gives a number, an array, or a (named) tuple or
            dict of these.
        series: arrays ``[replicas, ...]`` or lists with one entry for each replica.

    Raises:
        DataError: one replica only, series of unequal numbers of replicas, or results that don't fit each other.
    """
    if not callable(observable):
        raise ConfigError(f"observable must be a function of one replica, not {type(observable).__name__}.")
    if not series or not all(hasattr(one, "__len__") and not isinstance(one, str | bytes) for one in series):
        raise ConfigError("over_replicas takes, after the function, arrays or lists with one entry for each replica.")
    counts = [len(one) for one in series]
    if len(set(counts)) > 1:
        raise DataError(f"The series have {counts} replicas: give as many of each.")
    if counts[0] < 2:
        raise DataError(
            f"There is {counts[0]} replica: an error by replicas needs two or more. Of one trajectory block_average and "
            "mean_with_error tell the error."
        )
    return OverReplicas(*_joined([observable(*parts) for parts in zip(*series, strict=True)]))


def _joined(results: list[Any]) -> tuple[Any, Any, Any]:
    """Mean, standard error and all of results of one structure."""
    first = results[0]
    if first is None or isinstance(first, str):
        if any(type(one) is not type(first) or one != first for one in results):
            raise DataError(
                f"One replica gives {first!r} where another gives something else: they must be of one system."
            )
        return first, first, first
    if isinstance(first, tuple | list | dict):
        keys = list(first) if isinstance(first, dict) else list(range(len(first)))
        if any(type(one) is not type(first) or len(one) != len(keys) for one in results):
            raise DataError("The replicas give results of different kinds or lengths: they must be of one system.")
        if isinstance(first, dict) and any(one.keys() != first.keys() for one in results):
            raise DataError(f"The replicas give different keys than {keys}: they must be of one system.")
        parts = [_joined([one[key] for one in results]) for key in keys]
        value, error, each = (_like(first, keys, [part[k] for part in parts]) for k in range(3))
        return value, error, each
    arrays = [numbers_of(one, "What the observable gives") for one in results]
    if len({a.shape for a in arrays}) > 1:
        shapes = sorted({str(list(a.shape)) for a in arrays})
        raise DataError(
            f"The replicas give arrays of different shapes, {', '.join(shapes)}: take the same bins and lags."
        )
    every = np.stack(arrays)
    mean, error = every.mean(0), every.std(0, ddof=1) / np.sqrt(len(every))
    return (float(mean), float(error), every) if every.ndim == 1 else (mean, error, every)


def _like(first: Any, keys: list[Any], column: Any) -> Any:
    if isinstance(first, dict):
        return dict(zip(keys, column, strict=True))
    return type(first)(*column) if hasattr(first, "_fields") else type(first)(column)


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
