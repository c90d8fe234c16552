"""Metadynamics: hills at the right steps and heights, resumed bit for bit, the profile of a double well, what is refused."""

import logging

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import simulate as jax_md_simulate

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.simulation import JaxMD, Metadynamics, PairEnergy
from leignn_jax.simulation.biases import Hills
from leignn_jax.simulation.collective_variables import Distance, observed
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import NVE, CellRescaling, Langevin, NoseHoover
from leignn_jax.simulation.simple_models import LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")
run = leignn.differentiable
ARGON = LennardJones(cutoff=5.0)
LANGEVIN = Langevin(40.0, 0.02)


def argon():
    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.rattle(0.05, seed=0)
    return atoms


def around(ensemble, **more):
    settings = {"variable": Distance(0, 1), "height": 0.01, "width": 0.1, "every": 10, "hills": 8}
    return Metadynamics(ensemble, **settings | more)


def go(ensemble, atoms=None, steps=60, **more):
    settings = {"timestep": 4.0, "temperature": 40.0, "dtype": "float64", "seed": 3, "save_every": 10}
    return leignn.simulate(ARGON, argon() if atoms is None else atoms, ensemble, steps=steps, **settings | more)


def distances(result):
    cell = np.asarray(argon().cell)
    away = result.trajectory.positions[:, 1] - result.trajectory.positions[:, 0]
    return np.linalg.norm(away - np.round(away @ np.linalg.inv(cell)) @ cell, axis=1)


@pytest.fixture(scope="module")
def done(fast_compiles):
    with jax.enable_x64(True):
        return go(around(LANGEVIN))


def test_hills_are_put_where_the_variable_is_when_they_are_due(done):
    assert done.bath["deposited"].tolist() == [6]
    np.testing.assert_allclose(done.bath["centers"][0, :6], distances(done)[1:], rtol=0, atol=1e-12)
    assert not done.bath["centers"][0, 6:].any()
    np.testing.assert_array_equal(done.bath["heights"][0], [0.01] * 6 + [0.0] * 2)


def test_well_tempered_heights_shrink_as_they_should():
    ensemble = around(LANGEVIN, bias_factor=5.0)
    done = go(ensemble)
    centers, heights = done.bath["centers"][0, :6], done.bath["heights"][0, :6]
    expected = []
    for n, center in enumerate(centers):
        bias = sum(h * np.exp(-((center - c) ** 2) / (2 * 0.1**2)) for h, c in zip(expected, centers[:n], strict=True))
        expected.append(0.01 * np.exp(-bias / (4.0 * BOLTZMANN * 40.0)))
    np.testing.assert_allclose(heights, expected, rtol=1e-12)
    assert (heights[1:] < heights[0]).all()


def test_without_hills_it_is_the_ensemble(done):
    plain, wrapped, biased = go(LANGEVIN), go(around(LANGEVIN, height=1e-15)), done
    np.testing.assert_allclose(wrapped.trajectory.positions, plain.trajectory.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(biased.trajectory.positions[1], plain.trajectory.positions[1], rtol=0, atol=1e-12)
    assert np.abs(biased.trajectory.positions[-1] - plain.trajectory.positions[-1]).max() > 1e-4
    # Energies of frames are the model's.
    expected = ARGON.compute(leignn.Graph.from_ase(biased.atoms, 5.0, np.float64))
    assert biased.trajectory.energy[-1] == pytest.approx(float(expected.energy[0]), abs=1e-10)
    np.testing.assert_allclose(biased.trajectory.forces[-1], expected.forces, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_hills_already_there_push_as_a_model_does():
    """NVE with a bias that stands still is NVE of the sum."""
    ensemble = around(NVE(), every=10_000, hills=2)
    system, state = run.start(ARGON, argon(), ensemble, temperature=40.0, dtype="float64")
    bath = {**state.bath, "centers": jnp.array([[3.8, 3.6]]), "heights": jnp.array([[0.05, 0.03]])}
    hills = Hills(Distance(0, 1), bath["centers"], bath["heights"], 0.1)
    assert jax.tree.structure(ensemble.bias(bath)) == jax.tree.structure(hills)
    biased = run.rollout(ARGON, ensemble, system, state.replace(bath=bath), 4.0, 50).state
    plain = run.rollout(ARGON + hills, NVE(), system, state.replace(bath=()), 4.0, 50).state
    np.testing.assert_allclose(biased.positions, plain.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(biased.energy + hills.energy(observed(Distance(0, 1))(system, biased)), plain.energy)
    without = run.rollout(ARGON, NVE(), system, state.replace(bath=()), 4.0, 50).state
    assert np.abs(without.positions - plain.positions).max() > 1e-3


AROUND = {
    "langevin": LANGEVIN,
    "npt": CellRescaling(40.0, 0.1, compressibility=0.5, shape="triclinic", every=5),
    "nose-hoover": NoseHoover(40.0),
    "jax-md": JaxMD(jax_md_simulate.nvt_langevin, kT=BOLTZMANN * 40.0, gamma=0.02),
}
SLOW = ("nose-hoover", "jax-md")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in AROUND])
def test_a_resumed_simulation_is_the_same_to_the_last_bit(name, tmp_path):
    ensemble = around(AROUND[name], bias_factor=8.0)
    whole = go(ensemble)
    go(ensemble, out=tmp_path / "run", steps=37)
    again = go(ensemble, out=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(again.atoms.positions, whole.atoms.positions)
    np.testing.assert_array_equal(again.atoms.cell, whole.atoms.cell)
    jax.tree.map(np.testing.assert_array_equal, again.bath, whole.bath)
    assert whole.bath["deposited"].tolist() == [6]
    # What hills and bath put in is counted, while the energy itself wanders.
    conserved = whole.thermo["conserved_eV"]
    total = whole.thermo["potential_energy_eV"] + whole.thermo["kinetic_energy_eV"]
    assert np.ptp(conserved) < 0.1 * np.ptp(total)
    if name == "langevin":
        with pytest.raises(SimulationError, match="ensemble_numbers"):
            go(around(AROUND[name], height=0.02, bias_factor=8.0), out=tmp_path / "run", resume=True)
        with pytest.raises(SimulationError, match="ensemble_numbers"):
            go(around(Langevin(40.0, 0.03), bias_factor=8.0), out=tmp_path / "run", resume=True)


def test_a_rollout_is_the_simulation_and_has_gradients():
    ensemble = around(LANGEVIN, bias_factor=8.0)
    system, state = run.start(ARGON, argon(), ensemble, temperature=40.0, dtype="float64", seed=3)

    @jax.jit
    def go_on(state, height):
        return run.rollout(ARGON, ensemble.replace(height=height), system, state, 4.0, 30)

    there = go_on(go_on(state, 0.01).state, 0.01)
    done = go(ensemble)
    assert bool(there.valid)
    np.testing.assert_allclose(there.state.bath["centers"], done.bath["centers"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(there.state.bath["heights"], done.bath["heights"], rtol=0, atol=1e-10)

    def loss(height):
        return go_on(state, height).state.bath["centers"][0, 2]

    slope = float(jax.jit(jax.grad(loss))(0.01))
    assert slope == pytest.approx(float(loss(0.0101) - loss(0.0099)) / 2e-4, rel=1e-3)
    assert abs(slope) > 1e-3


def test_a_full_bias_stays_and_is_told(caplog):
    with caplog.at_level(logging.WARNING, "leignn_jax"):
        done = go(around(LANGEVIN), steps=110)
    assert "11 hills were due, and there is room for 8" in caplog.text
    assert done.bath["deposited"].tolist() == [11]
    assert (done.bath["heights"] == 0.01).all()
    np.testing.assert_allclose(done.bath["centers"][0], distances(done)[1:9], rtol=0, atol=1e-12)


KELVIN, BARRIER = 300.0, 0.15


def double_well(params, r):
    """Two minima 1 Å apart, with a barrier of six kT between them."""
    return BARRIER * (((r - 3.0) / 0.5) ** 2 - 1) ** 2


def profile_error(steps, replicas):
    """Of the profile by well-tempered metadynamics, in kT, RMS up to 4 kT over the minima."""
    kT = BOLTZMANN * KELVIN
    atoms = ase.Atoms("Ar2", [[0, 0, 0], [2.5, 0, 0]])
    model = PairEnergy(double_well, {}, 30.0, onset=30.0)
    ensemble = Metadynamics(Langevin(KELVIN, 0.02), Distance(0, 1), 0.4 * kT, 0.12, 25, steps // 25, 8.0)
    system, state = run.start(model, [atoms] * replicas, ensemble, temperature=KELVIN)
    go = jax.jit(lambda state: run.rollout(model, ensemble, system, state, 4.0, steps, max_distance=1e9))
    out = go(state)
    assert bool(out.valid)
    at = np.linspace(2.3, 3.7, 29)
    exact = double_well({}, at) - 2 * kT * np.log(at)
    found = np.asarray(ensemble.free_energy(out.state.bath, at)) / kT
    exact = (exact - exact.min()) / kT
    near = exact < 6.5
    away = found - exact
    away -= away[:, near].mean(1, keepdims=True)
    return away[:, near]


@pytest.mark.slow
def test_a_double_well_is_filled():
    away = profile_error(8_000, 16)
    # All replicas have crossed, which without hills takes some exp(6) swings; their mean is close to the profile.
    assert np.sqrt((away.mean(0) ** 2).mean()) < 0.35
    assert np.sqrt((away**2).mean()) < 1.0


@pytest.mark.slow
def test_a_double_well_is_known():
    away = profile_error(200_000, 16)
    assert np.sqrt((away.mean(0) ** 2).mean()) < 0.12
    assert np.sqrt((away**2).mean()) < 0.35


REFUSED = {
    "height: .* is out of range": {"height": -0.1},
    "width: .* is out of range": {"width": 0.0},
    "width: has shape": {"width": np.array([0.1, 0.2, 0.3])},
    "every must be a whole number of at least 1, not 1.5": {"every": 1.5},
    "hills must be a whole number from 1": {"hills": 10**9},
    "bias_factor must be greater than 1, not 0.9": {"bias_factor": 0.9},
    "needs an ensemble with a temperature": {"ensemble": NVE(), "bias_factor": 5.0},
    "ensemble must be an object such as Langevin": {"ensemble": "langevin"},
    "looks at atom 7, and the structure has atoms 0 to 3": {"variable": Distance(0, 7)},
    "must return one real number": {"variable": lambda positions, cell, pbc: positions},
    "Langevin, friction: .* out of range": {"ensemble": Langevin(40.0, -1.0)},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words):
    with pytest.raises(ConfigError, match=words):
        go(around(**{"ensemble": LANGEVIN} | REFUSED[words]), steps=1)


def test_no_sample_is_drawn_of_it():
    ensemble = around(LANGEVIN)
    system, state = run.start(ARGON, argon(), ensemble, temperature=40.0)
    with pytest.raises(ConfigError, match="Metadynamics changes its bias as it goes"):
        run.sample(ARGON, ensemble, system, state, 4.0, 20, every=2)
    with pytest.raises(ConfigError, match="started with another ensemble"):
        run.rollout(ARGON, LANGEVIN, system, state, 4.0, 2)
    with pytest.raises(ConfigError, match="bath must be that of a state"):
        ensemble.free_energy((), [1.0])
