"""MSD and VACF against loops and closed forms; diffusivities of Brownian and Langevin particles within their errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.analysis import (
    diffusivity,
    green_kubo_diffusivity,
    mean_squared_displacement,
    running_diffusivity,
    velocity_autocorrelation,
)
from leignn_jax.errors import ConfigError, DataError, ElementError

NUMBERS = np.array([1, 8, 1, 3])


def brownian(rng, diffusion, frames, atoms, timestep):
    """Positions in Å with D in Å^2/ps and the timestep in fs."""
    steps = rng.normal(size=(frames, atoms, 3)) * np.sqrt(2 * diffusion * timestep / 1000)
    return np.cumsum(steps, axis=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 25), offset=st.sampled_from([0.0, 1e4]))
def test_msd_is_the_double_loop(seed, frames, offset):
    rng = np.random.default_rng(seed)
    positions = np.cumsum(rng.normal(size=(frames, 4, 3)), axis=0) + offset
    msd = mean_squared_displacement(positions, NUMBERS, 2.0)
    for k in range(frames):
        squares = ((positions[k:] - positions[: frames - k]) ** 2).sum(-1)
        assert msd.total[k] == pytest.approx(squares.mean(), abs=1e-9)
        assert msd.of("H")[k] == pytest.approx(squares[:, NUMBERS == 1].mean(), abs=1e-9)
    assert msd.elements == ("H", "Li", "O")
    np.testing.assert_array_equal(msd.time, 2.0 * np.arange(frames))


def test_ballistic_motion_and_drift():
    rng = np.random.default_rng(0)
    velocities = rng.normal(size=(4, 3)) * 0.01
    masses = np.array([1.0, 16.0, 1.0, 7.0])
    time = 0.5 * np.arange(50)
    positions = velocities * time[:, None, None]
    msd = mean_squared_displacement(positions, NUMBERS, 0.5, max_lag=10.0)
    assert msd.time[-1] == 10.0
    np.testing.assert_allclose(msd.of("O"), np.sum(velocities[1] ** 2) * msd.time**2, atol=1e-12)
    relative = velocities - masses @ velocities / masses.sum()
    still = mean_squared_displacement(positions, NUMBERS, 0.5, remove_drift=True, masses=masses)
    np.testing.assert_allclose(still.total, np.mean(np.sum(relative**2, axis=1)) * still.time**2, atol=1e-12)
    vacf = velocity_autocorrelation(np.tile(velocities, (20, 1, 1)), NUMBERS, 0.5, remove_drift=True, masses=masses)
    np.testing.assert_allclose(vacf.total, np.mean(np.sum(relative**2, axis=1)))
    # The whole system is the reference, also where one element is asked for.
    one = diffusivity(positions, NUMBERS, 0.5, window=(1, 4), element="Li", blocks=1, remove_drift=True, masses=masses)
    other = diffusivity(
        positions - (masses @ velocities / masses.sum()) * time[:, None, None],
        NUMBERS,
        0.5,
        window=(1, 4),
        element="Li",
        blocks=1,
    )
    assert one.value == pytest.approx(other.value)
    assert np.isnan(one.error)


def test_brownian_motion_has_the_diffusivity_put_in():
    rng = np.random.default_rng(3)
    true, timestep = 0.23, 20.0
    positions = brownian(rng, true, 4000, 30, timestep)
    found = diffusivity(positions, np.full(30, 3), timestep, window=(40, 800), blocks=8)
    assert abs(found.value - true) < 3.5 * found.error
    assert 0.002 < found.error < 0.02
    assert found.value_cm2_per_s == pytest.approx(found.value * 1e-4)
    assert found.error_cm2_per_s == pytest.approx(found.error * 1e-4)
    assert found.window == (40.0, 800.0)
    assert found.blocks.shape == (8,)


def test_errors_of_diffusivities_cover_the_truth():
    rng = np.random.default_rng(4)
    trials = []
    for _ in range(60):
        found = diffusivity(brownian(rng, 1.0, 600, 4, 10.0), [1] * 4, 10.0, window=(10, 100), blocks=6)
        trials.append((found.value - 1.0) / found.error)
    # Student's t with 5 degrees of freedom: 63.7 % within one error, 97.4 % within 3.16; 60 trials scatter by 6 %.
    assert 0.637 - 0.2 < np.mean(np.abs(trials) < 1) < 0.637 + 0.2
    assert np.mean(np.abs(trials) < 3.16) > 0.88


def test_elements_diffuse_on_their_own_and_in_a_plane():
    rng = np.random.default_rng(5)
    slow, fast = brownian(rng, 0.1, 1500, 8, 10.0), brownian(rng, 1.0, 1500, 8, 10.0)
    positions = np.concatenate([slow, fast], axis=1)
    numbers = [16] * 8 + [3] * 8
    for symbol, true in (("S", 0.1), ("Li", 1.0)):
        found = diffusivity(positions, numbers, 10.0, window=(10, 200), element=symbol)
        assert abs(found.value - true) < 5 * found.error
    flat = fast * [1, 1, 0]
    plane = diffusivity(flat, [3] * 8, 10.0, window=(10, 200), dimensions=2)
    assert abs(plane.value - 1.0) < 5 * plane.error


def test_green_kubo_of_langevin_particles():
    # Ornstein-Uhlenbeck velocities: <v v> = v2 exp(-t / tau) per direction, D = v2 tau.
    rng = np.random.default_rng(6)
    v2, tau, timestep = 1e-5, 50.0, 5.0
    decay = np.exp(-timestep / tau)
    velocities = np.empty((6000, 20, 3))
    velocities[0] = rng.normal(size=(20, 3)) * np.sqrt(v2)
    for t in range(1, 6000):
        velocities[t] = decay * velocities[t - 1] + np.sqrt(v2 * (1 - decay**2)) * rng.normal(size=(20, 3))
    numbers, true = np.full(20, 18), v2 * tau * 1000
    found = green_kubo_diffusivity(velocities, numbers, timestep, cutoff=6 * tau)
    assert abs(found.value - true) < 4 * found.error
    assert found.error < 0.1 * true
    vacf = velocity_autocorrelation(velocities, numbers, timestep, max_lag=300.0)
    np.testing.assert_allclose(vacf.total[:10], 3 * v2 * np.exp(-vacf.time[:10] / tau), rtol=0.1)
    assert running_diffusivity(vacf)[-1] == pytest.approx(found.value)
    assert running_diffusivity(vacf, "Ar")[0] == 0
    unit = velocity_autocorrelation(velocities, numbers, timestep, normalised=True)
    assert unit.total[0] == 1
    np.testing.assert_allclose(unit.of("Ar")[:61] * vacf.total[0], vacf.total)


def test_what_is_refused():
    positions = np.zeros((10, 2, 3))
    with pytest.raises(ConfigError, match=r"each of 5 blocks is 1 fs long"):
        diffusivity(positions, [1, 1], 1.0, window=(1, 5))
    with pytest.raises(ConfigError, match="fewer than two lags"):
        diffusivity(positions, [1, 1], 1.0, window=(3, 3), blocks=1)
    with pytest.raises(ConfigError, match="blocks must be a whole number of at least 1"):
        diffusivity(positions, [1, 1], 1.0, window=(1, 3), blocks=0)
    with pytest.raises(ElementError, match="no 'Li'"):
        diffusivity(positions, [1, 1], 1.0, window=(1, 3), element="Li", blocks=1)
    with pytest.raises(ConfigError, match="max_lag = 20"):
        mean_squared_displacement(positions, [1, 1], 1.0, max_lag=20.0)
    with pytest.raises(ConfigError, match="time between frames"):
        mean_squared_displacement(positions, [1, 1], 0.0)
    with pytest.raises(ConfigError, match="no 'O': there are H"):
        mean_squared_displacement(positions, [1, 1], 1.0).of("O")
    with pytest.raises(DataError, match="all zero"):
        velocity_autocorrelation(positions, [1, 1], 1.0, normalised=True)
