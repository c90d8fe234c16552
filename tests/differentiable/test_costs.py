"""What a gradient is said to cost before it is computed."""

import ase.build
import jax
import jax.numpy as jnp
import pytest

import leignn_jax as leignn
from leignn_jax.differentiable import costs
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.ensembles import CSVR, NVE
from leignn_jax.simulation.simple_models import LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

run = leignn.differentiable
MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def loss_of(atoms, ensemble, steps, **settings):
    system, state = run.start(MODEL, atoms, ensemble, temperature=40.0)

    def loss(model, rollout):
        observed = {"observe": run.observables.temperature, "every": 5, **settings}
        out = rollout(model, ensemble, system, state, 2.0, steps, **observed)
        weights = jnp.ones((steps // observed["every"], 1))
        return (weights * out.seen).sum() + out.state.energy[0]

    return loss


@pytest.fixture
def one_second(monkeypatch):
    """A clock by which every short rollout takes as long, and no compilation."""

    def traced(function, argument, *_):
        jax.eval_shape(function, argument)
        return 1

    monkeypatch.setattr(costs, "_seconds", traced)
    monkeypatch.setattr(costs, "_scratch_memory", traced)


@pytest.mark.slow
def test_memory_is_that_of_the_program(argon):
    loss = loss_of(argon, NVE(), 100)
    found = run.estimate(loss, MODEL, modes=("remat",), repeats=1)["remat"]
    program = run.value_and_grad(loss, "remat").lower(MODEL).compile()
    assert found.memory == program.memory_analysis().temp_size_in_bytes > 0
    assert found.seconds > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_second")
def test_time_goes_with_the_steps(argon):
    few = run.estimate(loss_of(argon, NVE(), 100), MODEL)
    many = run.estimate(loss_of(argon, NVE(), 3000), MODEL, segment=(60, 2))
    assert set(few) == set(run.MODES)
    for mode in ("reverse", "reversible", "forward"):
        assert few[mode].seconds == pytest.approx(101 / 21)
        assert many[mode].seconds == pytest.approx(3001 / 21)
    # One level of segments, and two: rollouts of 20 and of 40 steps.
    assert few["remat"].seconds == pytest.approx(101 / 21)
    assert many["remat"].seconds == pytest.approx(3001 / 41)


@pytest.mark.usefixtures("one_second")
def test_time_of_forward_mode_goes_with_the_inputs(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0)

    def loss(positions, rollout):
        begin = state.replace(positions=positions)
        return rollout(MODEL, NVE(), system, begin, 2.0, 20).state.energy[0]

    # Twelve inputs: eight at once and half as many again, or three times four.
    for at_once, batches in ((8, 1.5), (4, 3), (20, 1)):
        cost = run.estimate(loss, state.positions, modes=("forward",), inputs_at_once=at_once)["forward"]
        assert cost.seconds == pytest.approx(batches)


@pytest.mark.usefixtures("one_second")
def test_a_short_rollout_is_timed(argon):
    lengths = []
    loss = loss_of(argon, NVE(), 1000, every=50, truncate=30)

    def watched(model, rollout):
        def counted(*args, **settings):
            lengths.append((args[5], settings["every"]))
            return rollout(*args, **settings)

        return loss(model, counted)

    run.estimate(watched, MODEL, modes=("reverse",))
    assert lengths == [(1000, 50)] * 2


@pytest.mark.usefixtures("one_second")
def test_modes_that_can_not_be_are_left_out(argon):
    assert set(run.estimate(loss_of(argon, CSVR(40.0), 10), MODEL, modes=("reversible", "remat"))) == {"remat"}
    assert set(run.estimate(loss_of(argon, NVE(), 10, clip=1.0), MODEL, modes=("forward", "remat"))) == {"remat"}
    with pytest.raises(ConfigError, match=r"CSVR can't be undone"):
        run.estimate(loss_of(argon, CSVR(40.0), 10), MODEL, modes=("reversible",))
    with pytest.raises(ConfigError, match="multiple of every"):
        run.estimate(loss_of(argon, NVE(), 12, every=5), MODEL)


@pytest.mark.usefixtures("one_second")
def test_a_rollout_may_be_called_by_names(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0)

    def loss(model, rollout):
        out = rollout(model=model, ensemble=NVE(), system=system, state=state, timestep=2.0, steps=100)
        return out.state.energy[0]

    assert run.estimate(loss, MODEL, modes=("reverse",))["reverse"].seconds == pytest.approx(101 / 21)


@pytest.mark.usefixtures("one_second")
def test_what_has_no_cost_is_told(argon):
    with pytest.raises(ConfigError, match="has not called the rollout"):
        run.estimate(lambda x, rollout: x**2, 1.0, modes=("reverse",))
    with pytest.raises(ConfigError, match="no floats"):
        run.estimate(loss_of(argon, NVE(), 100), 3, modes=("forward",))
