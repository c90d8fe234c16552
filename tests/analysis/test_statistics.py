"""Errors of means on noise whose correlation is known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from leignn_jax.analysis import block_average, mean_with_error, statistical_inefficiency
from leignn_jax.analysis.correlation import autocorrelation
from leignn_jax.errors import ConfigError, DataError


def ar1(rng, coefficient, shape):
    """Stationary AR(1) noise of variance 1 along the last axis."""
    noise = rng.normal(size=shape) * np.sqrt(1 - coefficient**2)
    noise[..., 0] = rng.normal(size=shape[:-1])
    return lfilter([1.0], [1.0, -coefficient], noise, axis=-1)


@pytest.mark.parametrize("lags", [None, 1, 7])
def test_autocorrelation_is_the_double_loop(lags):
    rng = np.random.default_rng(0)
    series = rng.normal(size=(23, 3, 2)) + 1.0
    found = autocorrelation(series, lags)
    expected = [np.mean([np.sum(series[t] * series[t + k]) for t in range(23 - k)]) for k in range(lags or 23)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_autocorrelation_in_blocks_of_columns(monkeypatch):
    series = np.random.default_rng(0).normal(size=(40, 50))
    whole = autocorrelation(series)
    monkeypatch.setattr("leignn_jax.analysis.correlation._BLOCK", 1000)
    np.testing.assert_allclose(autocorrelation(series), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
def test_inefficiency_of_ar1_noise(coefficient):
    series = ar1(np.random.default_rng(1), coefficient, (200_000,))
    exact = (1 + coefficient) / (1 - coefficient)
    assert statistical_inefficiency(series) == pytest.approx(exact, rel=0.15)
    average = mean_with_error(series)
    assert average.error == pytest.approx(np.sqrt(exact / 200_000), rel=0.1)
    assert average.samples == pytest.approx(200_000 / average.inefficiency)
    blocks = block_average(series, 100)
    # The error from 100 blocks is itself uncertain by 7 %.
    assert blocks.error == pytest.approx(np.sqrt(exact / 200_000), rel=0.25)
    assert blocks.value == pytest.approx(average.value, abs=1e-12)


def test_errors_cover_the_true_mean():
    series = 3.0 + ar1(np.random.default_rng(2), 0.8, (300, 3000))
    for estimate in (mean_with_error, lambda x: block_average(x, 20)):
        averages = [estimate(x) for x in series]
        off = np.array([(a.value - 3.0) / a.error for a in averages])
        # 68.3 % within one error; 300 trials scatter by 2.7 %.
        assert 0.683 - 4 * 0.027 < np.mean(np.abs(off) < 1) < 0.683 + 4 * 0.027
        assert np.mean(np.abs(off) < 2) > 0.89


def test_constants_and_short_series():
    assert mean_with_error([2.5] * 9) == (2.5, 0.0, 1.0, 9.0)
    assert statistical_inefficiency(np.full(1000, 0.1)) == 1.0
    assert block_average([2.5] * 9, 3).error == 0
    assert block_average(np.arange(7.0), 3).value == np.mean(np.arange(1, 7))
    with pytest.raises(DataError, match="2 frames or more"):
        mean_with_error([1.0])
    with pytest.raises(DataError, match="Frame 2 of the series is not finite"):
        mean_with_error([1.0, 2.0, np.nan])
    with pytest.raises(ConfigError, match="can't be split into 10 blocks"):
        block_average(np.arange(7.0), 10)
