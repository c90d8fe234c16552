"""Gradients by undoing steps, and adjoints that are cut, faded and clipped."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leignn_jax as leignn
from leignn_jax.differentiable import whole_numbers
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.ensembles import CSVR, NVE, Langevin, NoseHoover, Ramp, Scaling
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

run = leignn.differentiable
MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)
ENSEMBLES = {"nve": NVE(), "nose-hoover": NoseHoover(80.0, 100.0), "langevin": Langevin(80.0, 0.01)}


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=8),
    st.integers(-(2**26), 2**26),
    st.integers(-(2**15), 2**15),
)
@settings(max_examples=60, deadline=None)
def test_scalings_lose_no_bit(exponents, number, partner):
    def whole(value):
        return whole_numbers.Whole(None, jnp.full((1, 1, 3), value, jnp.int32), None, None, 0)

    here = whole_numbers.Undoable(whole(number), whole(partner), None, True)
    part = Scaling("velocities", lambda state: 0.0)
    for exponent in exponents:
        here = whole_numbers.scaled(part, here, whole_numbers.factors(jnp.float32(exponent)), undo=False)
    expected = number * np.exp(np.float32(exponents).sum())
    assert abs(int(here.numbers.velocities[0, 0, 0]) - expected) < 64 + 4e-7 * abs(number) * len(exponents)
    for exponent in reversed(exponents):
        here = whole_numbers.scaled(part, here, whole_numbers.factors(jnp.float32(exponent)), undo=True)
    assert int(here.numbers.velocities[0, 0, 0]) == number
    assert int(here.partners.velocities[0, 0, 0]) == partner


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("langevin", 5),
        pytest.param("nose-hoover", 1, marks=pytest.mark.slow),
        pytest.param("nve", 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("x64")
def test_gradients_by_every_argument_are_those_of_reverse_mode(name, every, argon):
    ensemble = ENSEMBLES[name]
    system, state = run.start(MODEL, argon, ensemble, temperature=80.0, dtype="float64")
    starts = ("positions", "velocities", "cell", "bath")

    def loss(argument, rollout):
        def observe(system, state):
            return (run.observables.total_energy(system, state) - state.exchanged) * argument["weight"]

        begin = state.replace(**{k: argument[k] for k in starts})
        out = rollout(
            argument["model"],
            argument["ensemble"],
            system.replace(masses=argument["masses"]),
            begin,
            argument["timestep"],
            40,
            observe=observe,
            every=every,
        )
        weights = jnp.cos(jnp.arange(out.seen.shape[0]))
        return (weights * out.seen[:, 0]).sum() + (out.state.positions**2).mean() + (out.state.stress**2).sum()

    argument = {"model": MODEL, "ensemble": ensemble, "masses": system.masses, "timestep": 2.0, "weight": 1.3}
    argument |= {k: getattr(state, k) for k in starts}
    argument = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), argument)
    expected = run.value_and_grad(loss, "reverse")(argument)
    found = run.value_and_grad(loss, "reversible")(argument)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
    for kind in argument:
        for one, other in zip(jax.tree.leaves(found[1][kind]), jax.tree.leaves(expected[1][kind]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10 * np.abs(other).max(), err_msg=kind)


@pytest.mark.slow
def test_seeds_side_by_side(argon):
    system, state = run.start(MODEL, argon, ENSEMBLES["langevin"], temperature=80.0)

    def loss(argument, rollout):
        begin = state.replace(key=argument["key"])
        out = rollout(MODEL, Langevin(argument["kelvin"], 0.05), system, begin, 2.0, 20)
        return (out.state.velocities**2).sum()

    argument = {"key": jax.random.split(jax.random.key(0), 3)[:, None], "kelvin": jnp.array([40.0, 80.0, 120.0])}
    together = jax.vmap(run.value_and_grad(loss, "reversible"))(argument)
    alone = [run.value_and_grad(loss, "reverse")(jax.tree.map(lambda x, i=i: x[i], argument)) for i in range(3)]
    np.testing.assert_allclose(together[0], [value for value, _ in alone], rtol=1e-5)
    np.testing.assert_allclose(together[1]["kelvin"], [g["kelvin"] for _, g in alone], rtol=1e-4)


@pytest.mark.slow
def test_friction_that_loses_more_bits_than_are_kept_is_not_valid(argon):
    system, state = run.start(MODEL, argon, ENSEMBLES["langevin"], temperature=80.0)

    @jax.jit
    def valid(friction):
        return run.rollout(MODEL, Langevin(80.0, friction), system, state, 2.0, 40, reversible=True).valid

    assert bool(valid(0.05))
    assert not bool(valid(1.0))
    # Where it is known beforehand, partners are put aside as often as it takes.
    for friction in (1.0, Ramp([0.0, 40.0], [0.0, 1.0])):
        known = jax.jit(
            lambda s, f=friction: run.rollout(MODEL, Langevin(80.0, f), system, s, 2.0, 40, reversible=True)
        )
        assert bool(known(state).valid)


def test_what_can_not_be_undone_is_told(argon):
    system, state = run.start(MODEL, argon, CSVR(80.0), temperature=80.0)
    with pytest.raises(ConfigError, match=r"CSVR can't be undone.*remat"):
        run.rollout(MODEL, CSVR(80.0), system, state, 2.0, 4, reversible=True)
    with pytest.raises(ConfigError, match="two ways"):
        run.rollout(MODEL, NVE(), system, state, 2.0, 4, reversible=True, segment=2)
    with pytest.raises(ConfigError, match="has none"):
        run.value_and_grad(lambda s, rollout: rollout(MODEL, NVE(), system, s, 2.0, 4, clip=1.0).seen, "forward")(state)


# ------------------------------------------------------------------------------------------------------------- the adjoint


def oscillator(steps, every, timestep=2.0, **tamed):
    """Derivatives by the stiffness of a sum over what is seen of an oscillator."""
    atoms = ase.Atoms("Ar", positions=[[0.3, -0.1, 0.2]])
    model = HarmonicWells(stiffness=1.3, centers=jnp.zeros((1, 3)))
    system, state = run.start(model, atoms, NVE(), temperature=50.0, dtype="float64")

    def loss(argument, rollout):
        begin = state.replace(positions=argument["x"])
        of_model = model.replace(stiffness=argument["k"])
        out = rollout(
            of_model, NVE(), system, begin, timestep, steps, observe=run.observables.positions, every=every, **tamed
        )
        return out.seen[..., 0].sum()

    return loss, {"x": state.positions, "k": jnp.asarray(1.3)}, (model, system, state)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "mode", ["reversible", *(pytest.param(m, marks=pytest.mark.slow) for m in ("remat", "forward", "reverse"))]
)
def test_truncated_derivatives_are_those_of_short_rollouts(mode):
    loss, argument, (model, system, state) = oscillator(12, 4, truncate=3)
    _, gradient = run.value_and_grad(loss, mode)(argument)
    # By hand: three steps from where the trajectory is, after 1, 5 and 9.
    expected = 0.0
    for begin in (1, 5, 9):
        there = run.rollout(model, NVE(), system, state, 2.0, begin).state

        def short(k, there=there):
            for _ in range(3):
                there = NVE().step(model.replace(stiffness=k), system, there, 2.0)
            return there.positions[0, 0, 0]

        expected += jax.jit(jax.grad(short))(1.3)
    np.testing.assert_allclose(gradient["k"], expected, rtol=1e-10)
    np.testing.assert_array_equal(gradient["x"], 0.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "mode", ["reversible", *(pytest.param(m, marks=pytest.mark.slow) for m in ("reverse", "forward"))]
)
def test_decayed_derivatives_fade_with_every_step(mode):
    for steps in (1, 6):
        whole = run.value_and_grad(oscillator(steps, steps)[0], mode)(oscillator(steps, steps)[1])[1]["x"]
        faded = run.value_and_grad(oscillator(steps, steps, decay=0.9)[0], mode)(oscillator(steps, steps)[1])[1]["x"]
        np.testing.assert_allclose(faded, 0.9**steps * whole, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["reverse", "reversible"])
def test_a_clipped_adjoint_is_no_longer_than_said(mode):
    loss, argument, _ = oscillator(6, 6)
    whole = run.value_and_grad(loss, mode)(argument)[1]["x"]
    for most in (1e-3, 1e3):
        clipped = run.value_and_grad(oscillator(6, 6, clip=most)[0], mode)(argument)[1]["x"]
        assert np.linalg.norm(clipped) <= most * (1 + 1e-12)
        np.testing.assert_allclose(clipped / np.linalg.norm(clipped), whole / np.linalg.norm(whole), rtol=1e-10)
    np.testing.assert_allclose(clipped, whole, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_settings_of_the_adjoint_are_checked():
    _, _, (model, system, state) = oscillator(4, 2)
    for wrong, words in (
        ({"truncate": 3, "every": 2}, r"truncate \(3\) is at most every \(2\)"),
        ({"truncate": 0}, "truncate"),
        ({"decay": 1.5}, "decay is 1.5, and at most 1"),
        ({"decay": 0.0}, "decay"),
        ({"clip": -1.0}, "clip"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.rollout(model, NVE(), system, state, 2.0, 4, **wrong)
