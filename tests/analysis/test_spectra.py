"""Spectra of harmonic oscillators whose frequencies are known."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.analysis import vibrational_density_of_states
from leignn_jax.errors import ConfigError, DataError

STEP = 1.0  # fs


def oscillators(wavenumbers, frames=8000, seed=0, timestep=STEP):
    """Velocities [frames, atoms, 3] of one atom per wavenumber (cm^-1), random phases and equal kinetic energies."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (len(wavenumbers), 3))
    # By ASE's constants: 1 cm^-1 is h c, and omega = E / hbar.
    energy = np.array(wavenumbers) * units.invcm
    omega = energy / units._hbar * units._e * 1e-15
    return np.cos(omega[:, None] * timestep * np.arange(frames)[:, None, None] + phase)


@pytest.mark.parametrize("window", ["hann", "blackman", "none"])
def test_peaks_are_at_the_right_wavenumber(window):
    wavenumbers = [500.0, 1650.0, 3400.0]
    masses = np.array([2.0, 5.0, 9.0])
    velocities = oscillators(wavenumbers) / np.sqrt(masses)[:, None]
    vdos = vibrational_density_of_states(velocities, [1, 6, 8], STEP, masses=masses, window=window)
    assert vdos.elements == ("H", "C", "O")
    resolution = 33356.4 / 8000
    for k, wavenumber in enumerate(wavenumbers):
        peak = vdos.wavenumber[np.argmax(vdos.per_element[k])]
        assert peak == pytest.approx(wavenumber, abs=resolution / 2)
        # Each atom has three modes of the same energy, whatever its mass.
        assert np.trapezoid(vdos.per_element[k], vdos.wavenumber) == pytest.approx(3, rel=2e-3)
        near = np.abs(vdos.wavenumber - wavenumber) < 6 * resolution
        # Without a window the peak has slow wings.
        assert np.trapezoid(vdos.total[near], vdos.wavenumber[near]) == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(vdos.per_element.sum(axis=0), vdos.total, atol=1e-12)
    # 33.35641 cm^-1 are one THz.
    np.testing.assert_allclose(vdos.wavenumber, 33.3564095 * vdos.frequency, rtol=1e-8)
    assert vdos.frequency[-1] == pytest.approx(500.0 / STEP)


def test_a_diatomic_integrated_by_ase_vibrates_at_the_frequency_of_its_spring():
    # A Lennard-Jones pair near its minimum: k = 57.146 epsilon / sigma^2, with the reduced mass.
    sigma, epsilon, mass = 2.0, 1.0, 4.0
    atoms = Atoms("HeHe", positions=[[0, 0, 0], [0, 0, 2 ** (1 / 6) * sigma + 0.002]])
    atoms.set_masses([mass, mass])
    atoms.calc = LennardJones(sigma=sigma, epsilon=epsilon, rc=50.0)
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    velocities = []
    for _ in range(800):
        dynamics.run(1)
        velocities.append(atoms.get_velocities() * units.fs)
    angular = np.sqrt(57.1464 * epsilon / sigma**2 / (mass / 2)) * units.fs  # 1/fs
    expected = angular / (2 * np.pi) / 2.99792458e-5
    vdos = vibrational_density_of_states(velocities, [2, 2], 1.0, masses=[mass, mass])
    assert vdos.wavenumber[np.argmax(vdos.total)] == pytest.approx(expected, rel=0.01)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(4, 60),
    window=st.sampled_from(["hann", "blackman", "none"]),
    padding=st.integers(1, 5),
    integral=st.sampled_from([None, 1.0]),
)
def test_the_integral_is_what_was_asked_for(seed, frames, window, padding, integral):
    velocities = np.random.default_rng(seed).normal(size=(frames, 3, 3))
    vdos = vibrational_density_of_states(velocities, [1, 8, 1], 0.7, window=window, padding=padding, integral=integral)
    assert np.trapezoid(vdos.total, vdos.wavenumber) == pytest.approx(9 if integral is None else 1)
    assert vdos.wavenumber[-1] == pytest.approx(33356.40952 / 1.4)


def test_longer_correlation_sharpens_and_padding_does_not():
    velocities = oscillators([1000.0])

    def width(**settings):
        vdos = vibrational_density_of_states(velocities, [1], STEP, **settings)
        return np.ptp(vdos.wavenumber[vdos.total > vdos.total.max() / 2])

    # The transform of a hann window is 1/max_lag wide at half its height.
    assert width(max_lag=4000.0) == pytest.approx(33356.4 / 4000, rel=0.2)
    assert width(max_lag=2000.0) == pytest.approx(2 * width(max_lag=4000.0), rel=0.2)
    assert width(max_lag=2000.0, padding=8) == pytest.approx(width(max_lag=2000.0, padding=4), rel=0.1)


def test_a_drifting_crystal_has_its_modes_at_zero():
    vdos = vibrational_density_of_states(np.ones((200, 2, 3)), [1, 1], STEP)
    assert np.argmax(vdos.total) == 0


def test_what_is_refused():
    velocities = np.ones((10, 2, 3))
    for settings_, text in (
        ({"window": "hamming"}, "'hamming' is not known"),
        ({"padding": 0}, "padding must be"),
        ({"max_lag": 20.0}, "20.0 fs leaves 21 lags"),
        ({"max_lag": 0.0}, "at least 2 are needed"),
    ):
        with pytest.raises(ConfigError, match=text):
            vibrational_density_of_states(velocities, [1, 1], 1.0, **settings_)
    with pytest.raises(DataError, match="all zero"):
        vibrational_density_of_states(0 * velocities, [1, 1], 1.0)
    with pytest.raises(ConfigError, match="time between frames"):
        vibrational_density_of_states(velocities, [1, 1], -1.0)
