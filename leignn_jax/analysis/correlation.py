"""Time correlation by FFT, averaged over all time origins."""

from __future__ import annotations

from typing import Any

import numpy as np

# Numbers in one FFT: columns are taken in blocks of about this size, so that memory does not grow with the atoms.
_BLOCK = 2**22


def autocorrelation(series: np.ndarray, lags: int | None = None) -> np.ndarray:
    """``c[k] = mean over t of series[t] . series[t + k]``, summed over all but the first axis; nothing is subtracted.

    Every origin t that has a frame at t + k counts once (no bias, but few origins at long lags). By FFT with zero
    padding: O(frames log frames) instead of O(frames^2).

    Args:
        series: ``[frames, ...]`` float.
        lags: how many, from lag 0; all where None.

    Returns:
        ``[lags]`` float64.
    """
    frames = len(series)
    lags = frames if lags is None else min(lags, frames)
    columns = np.reshape(np.asarray(series, np.float64), (frames, -1))
    step = max(1, _BLOCK // _padded(frames, lags))
    return np.sum([by_fft(columns[:, i : i + step], lags, np) for i in range(0, columns.shape[1], step)], axis=0)


def by_fft(columns: Any, lags: int, xp: Any) -> Any:
    """:func:`autocorrelation` of ``[frames, columns]`` at once; ``xp`` is numpy, or jax.numpy for gradients."""
    frames = len(columns)
    size = _padded(frames, lags)
    spectrum = xp.fft.rfft(columns, size, axis=0)
    power = (spectrum.real**2 + spectrum.imag**2).sum(axis=1)
    return xp.fft.irfft(power, size)[:lags] / (frames - np.arange(lags))


def _padded(frames: int, lags: int) -> int:
    """Frames and zeros behind them, so that no lag goes around the end."""
    return 1 << (frames + lags - 1).bit_length()
