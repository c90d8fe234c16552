"""Distributions of force magnitudes with known moments and distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.analysis import force_distance, force_distribution
from leignn_jax.errors import ConfigError, DataError


def along_x(values):
    forces = np.zeros((len(values), 3))
    forces[:, 0] = values
    return forces


def test_maxwell_distribution():
    rng = np.random.default_rng(0)
    d = force_distribution(rng.normal(size=(100, 400, 3)), bins=40)
    assert d.mean == pytest.approx(np.sqrt(8 / np.pi), rel=0.01)
    assert d.rms == pytest.approx(np.sqrt(3), rel=0.01)
    maxwell = np.sqrt(2 / np.pi) * d.magnitude**2 * np.exp(-(d.magnitude**2) / 2)
    np.testing.assert_allclose(d.density, maxwell, atol=0.03)
    assert np.sum(d.density * np.diff(d.edges)) == pytest.approx(1)


def test_forces_beyond_the_edges_are_missed():
    d = force_distribution(along_x([0.1, -0.2, 5.0, 0.3]), f_max=1.0, bins=10)
    assert np.sum(d.density * np.diff(d.edges)) == pytest.approx(0.75)
    assert d.largest == 5.0
    assert force_distribution(np.zeros((2, 3))).density[0] > 0


def test_distances_that_are_known():
    first = along_x([1.0, 2.0, 3.0])
    found = force_distance(first, along_x([-1.25, 2.25, 3.25]), bins=12)
    assert found.wasserstein == pytest.approx(0.25)
    assert force_distance(first, first) == (0.0, 0.0)
    assert force_distance(along_x([1.0]), along_x([3.0, 3.0, 3.0])) == pytest.approx((2.0, 2.0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 5.0))
def test_distances_are_metrics(seed, scale):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(20, 3)), rng.normal(size=(35, 3))
    d = force_distance(first, second)
    assert d == pytest.approx(force_distance(second, first))
    assert 0 <= d.histogram <= 2 + 1e-9
    lengths = [np.linalg.norm(x, axis=1).mean() for x in (first, second)]
    assert d.wasserstein >= abs(lengths[0] - lengths[1]) - 1e-12
    assert force_distance(scale * first, scale * second).wasserstein == pytest.approx(scale * d.wasserstein)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert force_distance(first, first @ rotation).wasserstein == pytest.approx(0, abs=1e-12)


def test_what_is_refused():
    with pytest.raises(DataError, match=r"must be \[..., 3\]"):
        force_distribution(np.zeros(3))
    with pytest.raises(DataError, match="1 of 2 forces are not finite"):
        force_distribution([[np.nan, 0, 0], [1, 0, 0]])
    with pytest.raises(ConfigError, match="f_max must be"):
        force_distribution(np.ones((2, 3)), f_max=0.0)
