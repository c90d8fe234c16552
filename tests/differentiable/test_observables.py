"""Observables for fits: against the analysis on the host, differences, exact answers, and what has no cell."""

from functools import partial

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.analysis import (
    angle_distribution,
    density,
    smooth_density_of_states,
    structure_factor,
    thermal_expansion,
    vibrational_density_of_states,
)
from leignn_jax.analysis.spectra import wavenumbers
from leignn_jax.errors import ConfigError, DataError
from leignn_jax.simulation.dynamics import ACCELERATION, BOLTZMANN, GIGAPASCAL
from leignn_jax.simulation.ensembles import NVE, CellRescaling, thermo
from leignn_jax.simulation.simple_models import HarmonicWells, IdealGas, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")

run = leignn.differentiable
see = run.observables
MODEL = LennardJones(cutoff=5.2)
EDGES = np.linspace(30.0, 180.0, 31)


@pytest.fixture(scope="module")
def two():
    """Two replicas of different size, and their structures."""
    small = ase.build.bulk("Ar", a=5.3, cubic=True)
    large = small * (2, 1, 1)
    for k, atoms in enumerate((small, large)):
        atoms.rattle(0.15, seed=k)
    with jax.enable_x64(True):
        system, state = run.start(MODEL, [small, large], NVE(), temperature=30.0, dtype="float64")
    return [small, large], system, state


def looks(indices):
    return {
        "volume": see.volume,
        "density": see.density,
        "structure factor": see.structure_factor(indices),
        "angles": see.angle_distribution(EDGES, 0.01, r_max=4.4, fade=0.005, reach=5.2),
    }


def test_they_are_what_the_analysis_says(two):
    structures, system, state = two
    indices = np.array([[1, 0, 0], [1, 1, 1], [2, 0, -1]])
    seen = jax.jit(lambda state: {name: one(system, state) for name, one in looks(indices).items()})(state)
    for r, atoms in enumerate(structures):
        cell = atoms.cell.array
        assert seen["volume"][r] == pytest.approx(atoms.get_volume())
        assert seen["density"][r] == pytest.approx(density(cell, atoms.get_masses())[0])
        exact = structure_factor(atoms.positions[None], cell, q_max=5.0)
        rows = [np.flatnonzero((exact.indices == i).all(1))[0] for i in indices]
        np.testing.assert_allclose(seen["structure factor"][r], exact.each[rows], rtol=1e-8)
        bins = angle_distribution(atoms.positions[None], atoms.numbers, cell, r_max=4.4, bins=36)
        np.testing.assert_allclose(seen["angles"][r], bins.density[6:], atol=1e-4)


def test_slopes_of_a_rollout_are_those_of_differences(two):
    _, system, state = two
    curves = looks(np.array([[1, 1, 1], [2, 0, 0]]))
    curves["angles"] = see.angle_distribution(EDGES, 4.0, r_max=4.2, fade=0.2, reach=5.2)

    @jax.jit
    def loss(sigma):
        observe = lambda system, state: [curves["structure factor"](system, state), curves["angles"](system, state)]  # noqa: E731
        seen = run.rollout(MODEL.replace(sigma=sigma), NVE(), system, state, 4.0, 6, observe=observe, every=3).seen
        return sum((x * jnp.arange(x.shape[-1])).mean() for x in seen)

    slope = jax.jit(jax.grad(loss))(3.4)
    finite = (loss(3.4 + 1e-5) - loss(3.4 - 1e-5)) / 2e-5
    assert abs(float(slope)) > 1e-3
    assert float(slope) == pytest.approx(float(finite), rel=1e-6)


@pytest.mark.slow
def test_expansion_by_fluctuations_is_the_slope_of_the_reweighted_volume():
    argon = ase.build.bulk("Ar", a=5.4, cubic=True)
    ensemble = CellRescaling(40.0, 0.05, compressibility=0.5, pressure_time_constant=200.0)
    system, state = run.start(MODEL, argon, ensemble, temperature=40.0, dtype="float64")
    sample = run.sample(MODEL, ensemble, system, state, 4.0, 300, every=10)
    volume = jax.jit(jax.value_and_grad(lambda kT: run.reweighted(MODEL, sample, see.volume, kT=kT).value))
    mean, slope = volume(40.0 * BOLTZMANN)
    volumes = np.abs(np.linalg.det(np.asarray(sample.cell[:, 0])))
    found = thermal_expansion(volumes, np.asarray(sample.energy[:, 0]), 40.0, 0.05)
    # By weights the variance is over the number of frames, here over one less.
    assert found.value * 29 / 30 == pytest.approx(float(slope / mean) * BOLTZMANN, rel=1e-8)


def test_the_frequency_of_an_oscillator_and_its_slope_by_the_spring():
    # omega = (k / m)^1/2: d ln(frequency) / dk = 1 / (2 k).
    stiffness, mass, step, frames = 1.5, 39.95, 8.0, 2000
    atoms = ase.Atoms("Ar2", positions=[[0.2, -0.1, 0.1], [5.1, 0.1, 0.2]], masses=[mass] * 2)
    centers = jnp.array([[0.0, 0, 0], [5.0, 0, 0]])
    wells = lambda k: HarmonicWells(k, centers)  # noqa: E731
    system, state = run.start(wells(stiffness), atoms, NVE(), temperature=50.0, dtype="float64")
    options = {"lags": 500, "padding": 4}
    places = wavenumbers(500, step, 4)
    near = (places > 20) & (places < 120)

    def velocities(k):
        return run.rollout(wells(k), NVE(), system, state, step, frames, observe=see.velocities).seen[:, 0]

    @jax.jit
    @jax.value_and_grad
    def frequency(k):
        dos = jnp.where(near, smooth_density_of_states(velocities(k), system.masses[0], step, **options), 0.0)
        return (dos**2 * places).sum() / (dos**2).sum()

    value, slope = frequency(stiffness)
    exact = np.sqrt(stiffness / mass * ACCELERATION) / (2 * np.pi) / 2.99792458e-5
    # A line of finite width: its mean is a little off its middle, by where the window ends.
    assert float(value) == pytest.approx(exact, rel=1e-2)
    assert float(slope) == pytest.approx(exact / (2 * stiffness), rel=0.02)
    seen = np.asarray(velocities(stiffness))
    smooth = smooth_density_of_states(jnp.asarray(seen), system.masses[0], step, **options)
    hard = vibrational_density_of_states(seen, [18, 18], step, masses=[mass] * 2, max_lag=499 * step)
    np.testing.assert_allclose(places, hard.wavenumber, rtol=1e-12)
    np.testing.assert_allclose(smooth, hard.total, atol=1e-9)
    assert abs(places[np.argmax(smooth)] - exact) < 33356.4 / (500 * step) / 2


def test_without_a_cell_there_are_words():
    molecule = ase.Atoms("Ar2", [[0, 0, 0], [3.7, 0, 0]])
    system, state = run.start(MODEL, molecule, NVE(), temperature=30.0, dtype="float64")
    for name, observe in {**looks(np.eye(3, dtype=int)), "pressure": see.pressure}.items():
        if name == "angles":
            assert not observe(system, state).any()
            continue
        with pytest.raises(ConfigError, match=f"Structure 0 is not periodic .* no {name}: give it a cell"):
            observe(system, state)
    with pytest.raises(ConfigError, match=r"need pairs up to 5\.3 Å; the lists reach 5 Å"):
        see.angle_distribution(EDGES, 1.0, r_max=5.0, fade=0.1, reach=5.0)
    with pytest.raises(ConfigError, match=r"indices must be an array of whole numbers"):
        see.structure_factor([[0.5, 0, 0]])
    velocities = jnp.ones((5, 2, 3))
    with pytest.raises(ConfigError, match="lags = 6 is more than there are frames"):
        smooth_density_of_states(velocities, jnp.ones(2), 1.0, lags=6)
    with pytest.raises(DataError, match="2 frames or more"):
        smooth_density_of_states(velocities[:1], jnp.ones(2), 1.0, lags=2)


def test_pressure_is_that_of_the_log(two):
    """The share of the momentum that is held included, without which four atoms of a gas lack a quarter of theirs."""
    _, system, state = two
    np.testing.assert_allclose(see.pressure(system, state), thermo(NVE(), system, state, 1.0).pressure, rtol=1e-12)
    gas = ase.Atoms("Ar4", 20 * np.eye(4, 3), cell=[40, 40, 40], pbc=True)
    with jax.enable_x64(True):
        system, state = run.start(IdealGas(), gas, NVE(), temperature=300.0, dtype="float64")
    expected = 4 * BOLTZMANN * float(see.temperature(system, state)[0]) / 40**3 * GIGAPASCAL
    assert float(see.pressure(system, state)[0]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": -0.1},
        {"width": "x"},
        {"edges": [3.0, 2.0]},
        {"edges": [2.0]},
        {"edges": [[2.0, 3.0]]},
        {"kind": ("Ar", "Ar")},
        {"kind": 18},
        {"kind": (18, 18, 18, 18)},
        {"reach": np.nan},
    ],
)
def test_histograms_that_can_not_be(wrong):
    given = {"edges": [2.0, 3.0, 4.0], "width": 0.1, "reach": 5.2, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        see.rdf(**given)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        see.angle_distribution(**{"r_max": 4.0, **given})


def test_histograms_are_made_inside_of_programs_too(two):
    """As a fit makes the RDF of a trajectory."""
    _, system, state = two

    def of(edges):
        angles = see.angle_distribution(edges, 1.0, r_max=4.0, reach=5.2)
        return see.rdf(edges / 30.0, 0.1, reach=5.2)(system, state), angles(system, state)

    edges = np.array([90.0, 120.0, 140.0])
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), jax.jit(lambda: of(edges))(), of(edges))


def test_an_element_that_is_not_there(two):
    _, system, state = two
    for look in (
        see.rdf([2.0, 3.0], 0.1, (18, 14), reach=5.2),
        see.angle_distribution([30.0, 60.0], 1.0, (18, 14, 18), r_max=4.0, reach=5.2),
    ):
        with pytest.raises(ConfigError, match="no atom of atomic number 14"):
            look(system, state)
