"""Means of gradients over replicas, and their errors."""

import subprocess
import sys
from pathlib import Path

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import environment_of

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.ensembles import NVE, Langevin
from leignn_jax.simulation.simple_models import LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

run = leignn.differentiable
MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)


def replicas_of(ensemble, count=4):
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return run.start(MODEL, [atoms] * count, ensemble, temperature=40.0)


def loss_of(ensemble):
    def loss(model, replica, rollout):
        return (rollout(model, ensemble, *replica, 2.0, 5).state.velocities ** 2).sum()

    return loss


@pytest.mark.parametrize("mode", ["reverse", pytest.param("reversible", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at_once", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_means_and_errors_are_those_of_one_after_the_other(mode, at_once):
    ensemble = Langevin(40.0, 0.01)
    systems, states = run.each_replica(*replicas_of(ensemble))
    program = run.mean_value_and_grad(loss_of(ensemble), mode, at_once=at_once)
    found = program(MODEL, (systems, states))
    loss, each = loss_of(ensemble), []
    for r in range(4):
        replica = jax.tree.map(lambda x, r=r: x[r], (systems, states))
        each.append(run.value_and_grad(lambda model, rollout, one=replica: loss(model, one, rollout), mode)(MODEL))
    values = np.array([value for value, _ in each])
    assert np.unique(values).size == 4
    np.testing.assert_allclose(found.values, values, rtol=1e-5)
    np.testing.assert_allclose(found.value, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.value_error, values.std(ddof=1) / 2, rtol=1e-4)
    for name in ("epsilon", "sigma"):
        slopes = np.array([getattr(gradient, name) for _, gradient in each])
        np.testing.assert_allclose(getattr(found.gradient, name), slopes.mean(), rtol=1e-4)
        np.testing.assert_allclose(getattr(found.gradient_error, name), slopes.std(ddof=1) / 2, rtol=1e-3)
    program(MODEL, (systems, states))
    assert program._cache_size() == 1


def test_one_replica_that_broke_is_seen():
    systems, states = run.each_replica(*replicas_of(NVE()))
    hot = states.replace(velocities=states.velocities.at[2].multiply(1e4))
    found = run.mean_value_and_grad(loss_of(NVE()))(MODEL, (systems, hot))
    np.testing.assert_array_equal(np.isfinite(found.values), [True, True, False, True])
    assert np.isnan(found.value)


@pytest.mark.slow
def test_what_is_divided_among_devices_is_the_same():
    program = f"""
import sys
sys.path[:0] = {[str(p) for p in Path(__file__).parents[:2]]!r}
from test_replicas import *
assert jax.device_count() == 2
ensemble = Langevin(40.0, 0.01)
several = run.each_replica(*replicas_of(ensemble, 4))
one = run.mean_value_and_grad(loss_of(ensemble), devices=jax.devices()[:1])(MODEL, several)
two = run.mean_value_and_grad(loss_of(ensemble))(MODEL, several)
assert len(two.values.sharding.device_set) == 2
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4), one, two)
print("same")
"""
    environment = environment_of(2)
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert out.stdout.strip() == "same", out.stderr


def test_what_can_not_be_is_told():
    several = run.each_replica(*replicas_of(NVE()))
    program = run.mean_value_and_grad(loss_of(NVE()))
    with pytest.raises(ConfigError, match="two replicas or more, not 1"):
        program(MODEL, jax.tree.map(lambda x: x[:1], several))
    with pytest.raises(ConfigError, match="each_replica"):
        program(MODEL, (several[0], 1.0))
    with pytest.raises(ConfigError, match=r"at_once \(3\) must divide the 4"):
        run.mean_value_and_grad(loss_of(NVE()), at_once=3)(MODEL, several)
    with pytest.raises(ConfigError, match="4 replicas can't be divided among 3 devices"):
        run.mean_value_and_grad(loss_of(NVE()), devices=jax.devices() * 3)(MODEL, several)
    with pytest.raises(ConfigError, match="in this order"):
        run.each_replica(several[1], several[0])
    system, state = replicas_of(NVE())
    with pytest.raises(ConfigError, match="not one per replica"):
        run.each_replica(system, state.replace(bath=jnp.zeros(7)))
