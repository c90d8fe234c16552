"""Heat capacity and thermal expansion where they are known, density, and averages over replicas."""

import ase.build
import numpy as np
import pytest
from ase import units
from scipy import signal, stats

from leignn_jax.analysis import (
    density,
    heat_capacity,
    mean_with_error,
    over_replicas,
    pressure,
    radial_distribution,
    thermal_expansion,
)
from leignn_jax.analysis.thermodynamics import GPA
from leignn_jax.errors import ConfigError, DataError

KELVIN = 300.0
kT = units.kB * KELVIN


def quantiles(distribution, count, seed):
    """Draws that are spread evenly over the distribution, in random order."""
    places = (np.arange(count) + 0.5) / count
    return np.random.default_rng(seed).permutation(distribution.ppf(places))


def test_heat_capacity_of_harmonic_wells():
    # Potential energy of 5 wells in 3 directions: 15 squares, kT / 2 each: a gamma distribution, C = 15/2 k_B.
    draws = stats.gamma(7.5, scale=kT)
    energy = quantiles(draws, 20_000, 0)
    found = heat_capacity(energy, KELVIN)
    assert found.value / units.kB == pytest.approx(3 * 5 / 2, rel=2e-3)
    # With the kinetic energy twice as much: 3 N k.
    both = heat_capacity(energy + quantiles(draws, 20_000, 1), KELVIN)
    assert both.value / units.kB == pytest.approx(3 * 5, abs=3 * both.error / units.kB)
    # Errors of independent samples scatter as they say.
    many = [heat_capacity(e, KELVIN) for e in draws.rvs((300, 400), random_state=2)]
    off = np.array([(one.value / units.kB - 7.5) / (one.error / units.kB) for one in many])
    assert 0.55 < np.mean(np.abs(off) < 1) < 0.8
    # The mean is that of the same frames: no bias by 1/frames.
    few = [heat_capacity(e, KELVIN).value / units.kB for e in draws.rvs((4000, 3), random_state=3)]
    assert np.mean(few) == pytest.approx(7.5, abs=4 * np.std(few) / np.sqrt(4000))


def test_an_ideal_gas_at_constant_pressure():
    # V^N exp(-P V / kT): a gamma distribution. alpha = 1/T, C_p of PV alone (N + 1) k, of all with 3 N k / 2.
    atoms, gigapascal = 20, 0.1
    bar = gigapascal / GPA
    volume = quantiles(stats.gamma(atoms + 1, scale=kT / bar), 20_000, 4)
    kinetic = quantiles(stats.gamma(1.5 * atoms, scale=kT), 20_000, 5)
    found = thermal_expansion(volume, kinetic, KELVIN, gigapascal)
    assert found.value == pytest.approx(1 / KELVIN, abs=3 * found.error)
    assert found.error < 0.02 / KELVIN
    quiet = thermal_expansion(volume, np.zeros(20_000), KELVIN, gigapascal)
    assert quiet.value == pytest.approx(1 / KELVIN, rel=2e-3)
    assert quiet.error < found.error
    c_p = heat_capacity(kinetic, KELVIN, volume=volume, pressure=gigapascal)
    assert c_p.value / units.kB == pytest.approx(2.5 * atoms + 1, abs=3 * c_p.error / units.kB)


def test_density_of_water_and_silicon():
    silicon = ase.build.bulk("Si", a=5.431, cubic=True)
    cells = np.stack([silicon.cell.array, 2 * silicon.cell.array])
    np.testing.assert_allclose(density(cells, silicon.get_masses()), [2.329, 2.329 / 8], rtol=2e-3)
    # 33.37 molecules in 1000 Å^3 are water at 0.9983 g/cm^3.
    assert density(np.eye(3) * 10 / 33.37 ** (1 / 3), [15.999, 1.008, 1.008])[0] == pytest.approx(0.9983, rel=1e-3)


def test_over_replicas():
    rng = np.random.default_rng(6)
    energies = rng.normal(size=(8, 500)) + np.arange(8)[:, None]
    found = over_replicas(mean_with_error, energies)
    assert type(found.value).__name__ == "Average"
    means = energies.mean(1)
    assert found.value.value == pytest.approx(means.mean())
    assert found.error.value == pytest.approx(means.std(ddof=1) / np.sqrt(8))
    np.testing.assert_allclose(found.each.value, means)
    # Named tuples with words in them; two series.
    silicon = ase.build.bulk("Si", cubic=True)
    positions = silicon.positions + rng.normal(size=(3, 2, 8, 3)) * 0.05
    g = over_replicas(lambda p: radial_distribution(p, silicon.numbers, silicon.cell.array, bins=20), positions)
    assert g.value.pairs == (("Si", "Si"),)
    assert g.each.total.shape == (3, 20)
    np.testing.assert_allclose(g.value.of("Si", "Si"), g.each.total.mean(0))
    both = over_replicas(lambda a, b: {"sum": a + b, "none": None}, [1.0, 2.0], [3.0, 6.0])
    assert both.value == {"sum": 6.0, "none": None}
    assert both.error["sum"] == 2.0


def test_words():
    series = np.arange(5.0)
    with pytest.raises(DataError, match="2 frames or more, not"):
        heat_capacity(series[:1], KELVIN)
    with pytest.raises(DataError, match="5 energies, but 4 volumes"):
        thermal_expansion(series[1:], series, KELVIN, 0.1)
    with pytest.raises(DataError, match="volume of frame 0 is not positive: a structure without a cell"):
        thermal_expansion(series, series, KELVIN, 0.1)
    with pytest.raises(ConfigError, match="needs both volume and pressure"):
        heat_capacity(series, KELVIN, volume=series + 1)
    with pytest.raises(ConfigError, match="temperature, in K, must be a positive number"):
        heat_capacity(series, 0.0)
    with pytest.raises(DataError, match="cell of frame 1 has no volume, so there is no density: give a structure"):
        density(np.stack([np.eye(3), np.zeros((3, 3))]), [1.0])
    with pytest.raises(DataError, match="volume must be positive"):
        pressure(np.zeros((1, 3, 3)), np.zeros((1, 2, 3)), [1.0, 1.0], 0.0)
    with pytest.raises(DataError, match="There is 1 replica: an error by replicas needs two"):
        over_replicas(mean_with_error, series[None])
    with pytest.raises(DataError, match=r"have \[5, 4\] replicas: give as many of each"):
        over_replicas(lambda a, b: a + b, series, series[1:])
    with pytest.raises(DataError, match=r"different shapes, \[1\], \[2\]"):
        over_replicas(np.asarray, [[1.0], [1.0, 2.0]])


def test_frames_that_follow_each_other_are_worth_fewer():
    # AR(1) noise of unit variance: the mean of N frames takes off g / N of the variance, g = (1 + a) / (1 - a).
    a, frames, series = 0.9, 400, 1500
    rng = np.random.default_rng(0)
    noise = signal.lfilter([np.sqrt(1 - a * a)], [1, -a], rng.normal(size=(series, 500 + frames)))[:, 500:]
    found = np.array([heat_capacity(one * kT, KELVIN).value / units.kB for one in noise])
    plain = noise.var(axis=1).mean()
    assert plain == pytest.approx(1 - (1 + a) / (1 - a) / frames, abs=0.015)
    assert found.mean() == pytest.approx(1, abs=0.02)
