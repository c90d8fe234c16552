"""Steps undone to the last bit, compiled as users compile them."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.differentiable import reversible
from leignn_jax.simulation.ensembles import NVE, Langevin, NoseHoover
from leignn_jax.simulation.simple_models import LennardJones

run = leignn.differentiable
MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)
ENSEMBLES = {"nve": NVE(), "nose-hoover": NoseHoover(80.0, 100.0), "langevin": Langevin(80.0, 0.01)}


@pytest.fixture(autouse=True)
def to_the_last_bit(monkeypatch):
    monkeypatch.setattr(reversible, "_TOLERATED", 0)


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def gradient_of_end(model, ensemble, system, state, steps, timestep=2.0):
    """By the first positions, of what is NaN where any number at the start is not met again to the last bit."""

    def end(positions):
        begin = state.replace(positions=positions)
        out = run.rollout(model, ensemble, system, begin, timestep, steps, reversible=True, clip=1e3)
        return (out.state.positions**2).mean(), out

    return jax.jit(jax.grad(end, has_aux=True))(state.positions)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_steps_are_undone_to_the_last_bit(name, dtype, argon):
    with jax.enable_x64(dtype == "float64"):
        system, state = run.start(MODEL, [argon] * 2, ENSEMBLES[name], temperature=80.0, dtype=dtype, skin=0.2)
        slope, out = gradient_of_end(MODEL, ENSEMBLES[name], system, state, 1000)
        assert int(out.state.neighbors.renewals[0]) > 10
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0


def spoil_the_way_back(monkeypatch, spoilt):
    evaluated = reversible.evaluated

    def other(*arguments):
        state, pull = evaluated(*arguments)
        return state.replace(forces=spoilt(state.forces)), pull

    monkeypatch.setattr(reversible, "evaluated", other)


def test_a_bit_that_is_not_met_again_is_told(argon, monkeypatch):
    """Forces on the way back that differ from those on the way there in one bit: told where none may be missed."""
    spoil_the_way_back(monkeypatch, lambda forces: jnp.nextafter(forces, jnp.inf))
    system, state = run.start(MODEL, argon, NVE(), temperature=80.0)
    slope, _ = gradient_of_end(MODEL, NVE(), system, state, 100)
    assert np.isnan(slope).all()


@pytest.mark.parametrize("kelvin", [pytest.param(20.0, marks=pytest.mark.slow), 300.0])
def test_a_chain_far_from_its_temperature_is_undone(kelvin, argon):
    """Which slows or speeds up itself by far more than in equilibrium, for hundreds of steps."""
    ensemble = NoseHoover(80.0, 30.0)
    system, state = run.start(MODEL, argon, ensemble, temperature=kelvin)
    slope, out = gradient_of_end(MODEL, ensemble, system, state, 1000)
    assert bool(out.valid)
    assert np.isfinite(slope).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ten_thousand_steps_of_silicon_are_undone(name):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    potential = leignn.load_potential("si")
    system, state = run.start(potential, atoms, ENSEMBLES[name], temperature=300.0)
    slope, out = gradient_of_end(potential, ENSEMBLES[name], system, state, 10_000, 1.0)
    assert bool(out.valid)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def test_a_start_that_is_missed_far_is_told(argon, monkeypatch):
    """Forces on the way back that are wrong by a thousandth, of more than rounding."""
    monkeypatch.setattr(reversible, "_TOLERATED", 1024)
    spoil_the_way_back(monkeypatch, lambda forces: 1.001 * forces)
    system, state = run.start(MODEL, argon, NVE(), temperature=80.0)
    slope, _ = gradient_of_end(MODEL, NVE(), system, state, 100)
    assert np.isnan(slope).all()
