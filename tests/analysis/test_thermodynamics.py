"""Temperature and pressure against ASE and the ideal gas; drift with the error that it should have."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from scipy.signal import lfilter

from leignn_jax.analysis import energy_drift, from_ase, kinetic_energy, pressure, temperature, thermo_log
from leignn_jax.analysis.thermodynamics import GPA
from leignn_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def copper():
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    atoms.calc = EMT()
    return atoms


def test_as_ase(copper):
    t = from_ase([copper, copper])
    assert kinetic_energy(t.velocities, t.masses) == pytest.approx([copper.get_kinetic_energy()] * 2)
    assert temperature(t.velocities, t.masses) == pytest.approx([copper.get_temperature()] * 2)
    ratio = temperature(t.velocities, t.masses, removed=3) / temperature(t.velocities, t.masses)
    np.testing.assert_allclose(ratio, 24 / 21)
    expected = -np.trace(copper.get_stress(voigt=False, include_ideal_gas=True)) / 3
    for voigt in (True, False):
        stress = np.stack([copper.get_stress(voigt=voigt)] * 2)
        assert pressure(stress, t.velocities, t.masses, copper.get_volume()) == pytest.approx([expected] * 2)


def test_pressure_of_an_ideal_gas():
    rng = np.random.default_rng(1)
    masses, kelvin, volume = np.full(2000, 40.0), 300.0, 8e4
    velocities = rng.normal(size=(4, 2000, 3)) * np.sqrt(units.kB * kelvin / 40.0) * units.fs
    found = pressure(np.zeros((4, 6)), velocities, masses, volume)
    # p V = N k T in SI: 2000 * 1.380649e-23 * 300 / 8e-26 Pa. The mean of 24000 squares is known to 0.9 %.
    assert found.mean() * GPA == pytest.approx(2000 * 1.380649e-23 * 300 / 8e-26 / 1e9, rel=0.03)
    assert temperature(velocities, masses).mean() == pytest.approx(kelvin, rel=0.03)


def test_log(copper):
    t = from_ase([copper] * 3)
    energies = np.array([1.0, 2.0, 3.0])
    log = thermo_log(t.velocities, t.masses, energies, 2.0)
    assert log.pressure is None
    np.testing.assert_array_equal(log.time, [0, 2, 4])
    np.testing.assert_allclose(log.total_energy, energies + copper.get_kinetic_energy())
    stress = np.zeros((3, 3, 3))
    log = thermo_log(t.velocities, t.masses, energies, 2.0, stress=stress, volume=copper.get_volume(), removed=3)
    np.testing.assert_allclose(log.pressure, 2 * copper.get_kinetic_energy() / (3 * copper.get_volume()))
    with pytest.raises(ConfigError, match="both stress and volume"):
        thermo_log(t.velocities, t.masses, energies, 2.0, stress=stress)
    with pytest.raises(DataError, match="3 frames of velocities"):
        thermo_log(t.velocities, t.masses, energies[:2], 2.0)
    with pytest.raises(DataError, match="stress must be"):
        pressure(stress[:, :2], t.velocities, t.masses, 1.0)
    with pytest.raises(ConfigError, match="24 degrees of freedom can't be taken"):
        temperature(t.velocities, t.masses, removed=24)


def test_drift_of_a_line_is_exact():
    energy = -1000.0 + 50 * 0.003 * np.arange(101) * 2.0 / 1e6
    found = energy_drift(energy, 50, 2.0)
    assert found.drift == pytest.approx(0.003, rel=1e-6)
    assert found.error < 1e-6
    flat = energy_drift(np.full(10, 7.1), 5, 1.0)
    assert (flat.drift, flat.fluctuation) == pytest.approx((0.0, 0.0), abs=1e-9)
    with pytest.raises(DataError, match="3 frames or more"):
        energy_drift([1.0, 2.0], 1, 1.0)
    with pytest.raises(DataError, match="Frame 1 of the energy is not finite"):
        energy_drift([1.0, np.inf, 2.0], 1, 1.0)


@pytest.mark.parametrize("coefficient", [0.0, 0.9])
def test_errors_of_drifts_cover_the_truth(coefficient):
    rng = np.random.default_rng(7)
    atoms, timestep, true = 10, 1.0, 0.4
    noise = lfilter([1.0], [1.0, -coefficient], rng.normal(size=(250, 4500)), axis=1)[:, 500:] * 1e-3
    line = true * atoms * timestep / 1e6 * np.arange(4000)
    found = [energy_drift(-50 + line + x, atoms, timestep) for x in noise]
    off = np.array([(d.drift - true) / d.error for d in found])
    # 68.3 % within one error; 250 trials scatter by 2.9 %.
    assert 0.683 - 4 * 0.029 < np.mean(np.abs(off) < 1) < 0.683 + 4 * 0.029
    assert np.std([d.drift for d in found]) == pytest.approx(np.mean([d.error for d in found]), rel=0.25)
    assert abs(off.mean()) < 4 / np.sqrt(250)
