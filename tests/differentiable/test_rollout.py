"""Rollouts: exact answers, finite differences for every kind of argument, the engine's own trajectory, poison."""

from functools import partial

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.differentiable.rollout import segment_lengths, slots_together
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover, Ramp
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")

run = leignn.differentiable
MODES = ["reverse", "remat", "forward"]


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_an_oscillator_are_exact(mode):
    # Velocity Verlet of x'' = -w^2 x is solved by x_n = x_0 cos(n a) + v_0 sin(n a) / (w sqrt(1 - (w h)^2 / 4)) with
    # cos a = 1 - (w h)^2 / 2.
    steps, h, stiffness, mass = 50, 2.0, 1.3, 39.95
    atoms = ase.Atoms("Ar", positions=[[0.3, -0.1, 0.2]], masses=[mass])
    model = HarmonicWells(stiffness=stiffness, centers=jnp.zeros((1, 3)))
    system, state = run.start(model, atoms, NVE(), temperature=50.0, dtype="float64")
    w = np.sqrt(stiffness / mass * leignn.simulation.dynamics.ACCELERATION)
    angle = np.arccos(1 - (w * h) ** 2 / 2)

    def last_x(argument, rollout):
        begin = state.replace(positions=argument["x"], velocities=argument["v"])
        return rollout(model, NVE(), system, begin, h, steps).state.positions[0, 0, 0]

    argument = {"x": state.positions, "v": state.velocities}
    value, gradient = run.value_and_grad(last_x, mode)(argument)
    x0, v0 = float(state.positions[0, 0, 0]), float(state.velocities[0, 0, 0])
    by_v = np.sin(steps * angle) / (w * np.sqrt(1 - (w * h) ** 2 / 4))
    np.testing.assert_allclose(value, x0 * np.cos(steps * angle) + v0 * by_v, rtol=1e-10)
    np.testing.assert_allclose(gradient["x"][0, 0], [np.cos(steps * angle), 0, 0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient["v"][0, 0], [by_v, 0, 0], rtol=1e-10, atol=1e-12)


ENSEMBLES = {
    "nve": NVE(),
    "nose-hoover": NoseHoover(40.0, 100.0),
    "langevin": Langevin(40.0, 0.01),
    "csvr": CSVR(40.0, 100.0),
    "npt": CellRescaling(40.0, 0.02, 100.0, 500.0, compressibility=0.5, shape="triclinic", every=5),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "langevin" else pytest.mark.slow) for name in ENSEMBLES]
)
def test_gradients_are_those_of_finite_differences(name, argon):
    ensemble = ENSEMBLES[name]
    system, state = run.start(MODEL, argon, ensemble, temperature=40.0, dtype="float64")
    weights = jnp.asarray(np.random.default_rng(0).normal(size=4))

    def loss(argument, rollout):
        begin = state.replace(**{k: argument[k] for k in ("positions", "velocities", "cell")})
        of_system = system.replace(masses=argument["masses"])
        out = rollout(
            argument["model"],
            argument["ensemble"],
            of_system,
            begin,
            2.0,
            20,
            observe=run.observables.total_energy,
            every=5,
        )
        return (weights * out.seen[:, 0]).sum() + (out.state.positions**2).mean() + (out.state.cell**2).mean()

    argument = {
        "model": MODEL,
        "ensemble": ensemble,
        "masses": system.masses,
        **{k: getattr(state, k) for k in ("positions", "velocities", "cell")},
    }
    argument = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), argument)
    rng = np.random.default_rng(1)
    plain = jax.jit(lambda a: loss(a, run.rollout))
    value, gradient = run.value_and_grad(loss, "reverse")(argument)
    np.testing.assert_allclose(value, plain(argument), rtol=1e-12)
    for kind in argument:
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)) * (1e-2 + jnp.abs(x)), argument[kind])

        def moved(amount, kind=kind, direction=direction):
            return plain({**argument, kind: jax.tree.map(lambda x, d: x + amount * d, argument[kind], direction)})

        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient[kind], direction)), jnp.zeros(()))
        step = 1e-5
        difference = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
        np.testing.assert_allclose(along, difference, rtol=1e-5, atol=1e-9, err_msg=kind)


@pytest.mark.parametrize("kind", [Langevin, CellRescaling, pytest.param(CSVR, marks=pytest.mark.slow)])
def test_a_bath_that_ends_at_zero_kelvin_has_a_gradient(kind, argon):
    """The noise of a bath is the root of its temperature, which has no slope at zero: 0 times infinity is no answer."""
    times = np.array([0.0, 20.0, 20.5, 60.0])

    def ensemble(first):
        return kind(Ramp(times, jnp.concatenate([first[None], jnp.array([20.0, 0.0, 0.0])])), 0.05)

    system, state = run.start(MODEL, argon, ensemble(jnp.asarray(40.0)), temperature=40.0, dtype="float64")

    def end(first):
        return run.rollout(MODEL, ensemble(first), system, state, 2.0, 20).state.energy.sum()

    difference = (jax.jit(end)(40.01) - jax.jit(end)(39.99)) / 0.02
    for slope in (jax.grad(end), jax.jacfwd(end)):
        np.testing.assert_allclose(jax.jit(slope)(40.0), difference, rtol=1e-5)


def test_lists_of_numbers_are_traced_as_arrays_are(argon):
    """Each number of a list is a leaf of the ensemble."""
    system, state = run.start(MODEL, argon, Langevin(40.0), temperature=40.0, dtype="float64")

    def end(ensemble):
        return run.rollout(MODEL, ensemble, system, state, 2.0, 2).state.energy.sum()

    lists, arrays = (Langevin(Ramp(kind([0.0, 9.0]), kind([40.0, 80.0])), kind([0.01])) for kind in (list, jnp.array))
    found, expected = (jax.jit(jax.grad(end))(ensemble) for ensemble in (lists, arrays))
    np.testing.assert_allclose(found.temperature.values, expected.temperature.values, rtol=1e-12)
    np.testing.assert_allclose(found.friction, expected.friction, rtol=1e-12)


@pytest.mark.parametrize("reversible", [False, True])
def test_a_timestep_of_another_dtype_leaves_the_state_its_own(argon, reversible):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float32")

    def end(timestep):
        return run.rollout(MODEL, NVE(), system, state, timestep, 3, reversible=reversible).state.positions

    plain = end(2.0)
    assert plain.dtype == jnp.float32
    np.testing.assert_array_equal(end(np.float64(2.0)), plain)
    np.testing.assert_allclose(jax.vmap(end)(jnp.array([2.0, 1.0]))[0], plain, rtol=1e-6)


@pytest.mark.slow
def test_modes_agree_for_a_potential(argon):
    config = leignn.preset("small", elements=("Ar",), features=8, layers=1, num_radial=4, cutoff=4.2)
    potential = leignn.Potential.create(config, jax.random.key(0), scale=0.01)
    ensemble = Langevin(40.0, 0.01)
    system, state = run.start(potential, argon, ensemble, temperature=40.0, dtype="float64")

    def loss(argument, rollout):
        of_model = potential.replace(params={**potential.params, "energy": argument})
        out = rollout(of_model, ensemble, system, state, 2.0, 7, observe=run.observables.pressure)
        return (out.seen**2).sum()

    argument = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), potential.params["energy"])
    found = {mode: run.value_and_grad(loss, mode)(argument) for mode in MODES}
    assert float(jnp.abs(found["reverse"][1]["kernel"]).max()) > 0
    for mode in ("remat", "forward"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found[mode], found["reverse"])


def test_rollout_is_the_engines_trajectory(argon):
    ensemble = Langevin(40.0, 0.01)
    system, state = run.start(MODEL, argon, ensemble, temperature=40.0, seed=3, dtype="float64")
    out = jax.jit(
        lambda s: run.rollout(MODEL, ensemble, system, s, 2.0, 30, observe=run.observables.positions, every=10)
    )(state)
    ran = leignn.simulate(
        MODEL, argon, ensemble, steps=30, timestep=2.0, seed=3, save_every=10, dtype="float64", progress=False
    )
    assert bool(out.valid)
    np.testing.assert_allclose(out.seen[:, 0], ran.trajectory.positions[1:], atol=1e-10)


@pytest.mark.slow
def test_sweeps_over_temperature_by_vmap(argon):
    system, state = run.start(MODEL, argon, Langevin(1.0), temperature=40.0, dtype="float64")

    def mean_kinetic(kelvin):
        out = run.rollout(MODEL, Langevin(kelvin, 0.1), system, state, 2.0, 20, observe=run.observables.kinetic_energy)
        return out.seen[10:].mean()

    kelvins = jnp.array([10.0, 40.0])
    together = jax.jit(jax.vmap(jax.value_and_grad(mean_kinetic)))(kelvins)
    alone = [jax.jit(jax.value_and_grad(mean_kinetic))(k) for k in kelvins]
    np.testing.assert_allclose(together[0], [v for v, _ in alone], rtol=1e-10)
    np.testing.assert_allclose(together[1], [g for _, g in alone], rtol=1e-8)
    assert (together[1] > 0).all()  # hotter bath, more kinetic energy


def test_an_overflow_poisons_value_and_gradient(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    small = state.neighbors.sizes._replace(pairs=16)
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64", sizes=small)

    def loss(velocities, rollout):
        out = rollout(MODEL, NVE(), system, state.replace(velocities=velocities), 2.0, 4)
        return out.state.energy.sum(), out.valid

    (value, valid), gradient = run.value_and_grad(loss, has_aux=True)(state.velocities)
    assert not bool(valid)
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    with pytest.raises(SimulationError, match=r"Replica 0, step 0: its neighbour list has no room for pairs.*grown"):
        run.check(run.rollout(MODEL, NVE(), system, state, 2.0, 4))


@pytest.mark.parametrize("mode", ["reverse", "remat", "reversible"])
def test_what_went_wrong_is_told_by_replica_and_step(argon, mode):
    """The second replica has an atom that is too fast, in every mode alike."""
    system, state = run.start(MODEL, [argon] * 3, NVE(), temperature=40.0, dtype="float64")
    how = {"reversible": {"reversible": True}, "remat": {"segment": 2}}.get(mode, {}) | {"max_temperature": np.inf}

    @jax.jit
    def go(fast):
        velocities = state.velocities.at[:, 0, 0].add(jnp.array(fast))
        return run.rollout(MODEL, NVE(), system, state.replace(velocities=velocities), 1.0, 6, **how)

    out = go([0.0, 5.0, 0.0])
    np.testing.assert_array_equal(out.trouble.step, [-1, 1, -1])
    with pytest.raises(SimulationError, match=r"Replica 1, step 1: an atom moved farther than max_step in one step\."):
        run.check(out)
    with pytest.raises(SimulationError, match=r"Replica 0, step 1: .*3 of 3 replicas"):
        run.check(go([5.0, 5.0, 5.0]))
    run.check(go([0.0, 0.0, 0.0]))


def test_rdf_is_that_of_the_analysis(argon):
    edges = np.linspace(3.0, 4.6, 17)
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    observe = run.observables.rdf(edges, 1e-3, reach=5.0)
    soft = observe(system, state)[0]
    hard = leignn.analysis.radial_distribution(
        argon.positions[None], argon.numbers, np.asarray(argon.cell), r_max=4.6, bins=46
    )
    counts = np.histogram(hard.edges[:-1] + 0.05, edges, weights=np.asarray(hard.of("Ar", "Ar")))[0]
    assert (soft > 1e-9).any()
    np.testing.assert_array_equal(np.asarray(soft) > 1e-6, counts > 0)
    with pytest.raises(ConfigError, match=r"lists reach 5 Å"):
        run.observables.rdf(np.linspace(0, 5, 10), 0.1, reach=5.0)


def test_settings_that_do_not_fit(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    with pytest.raises(ConfigError, match="multiple of every"):
        run.rollout(MODEL, NVE(), system, state, 1.0, 10, every=3)
    with pytest.raises(ConfigError, match="segment"):
        run.rollout(MODEL, NVE(), system, state, 1.0, 10, segment=11)
    with pytest.raises(ConfigError, match="did you mean 'remat'"):
        run.value_and_grad(lambda x, rollout: x, "rematt")
    with jax.enable_x64(False), pytest.raises(ConfigError, match="enable_x64"):
        run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")


def test_a_rollout_that_blew_up_is_not_valid(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")

    def last(argument, rollout):
        begin = state.replace(velocities=argument["velocities"])
        out = rollout(MODEL, NVE(), system, begin, argument["timestep"], 4, every=2)
        return (out.state.velocities**2).sum(), out.valid

    differentiate = run.value_and_grad(last, "remat", has_aux=True)
    # 2 ps per step; 40,000 K. All numbers are finite after both.
    for timestep, faster, good in ((2.0, 1.0, True), (2000.0, 1.0, False), (1e-3, 1000.0**0.5, False)):
        argument = {"velocities": faster * state.velocities, "timestep": jnp.asarray(timestep)}
        (value, valid), gradient = differentiate(argument)
        assert bool(valid) == good
        assert np.isfinite(value) == good
        assert (np.isfinite(gradient["velocities"]) == good).all()


def test_an_atom_lost_in_open_space_is_not_valid():
    pair = ase.Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 30.0]])
    system, state = run.start(MODEL, pair, NVE(), temperature=0.0, dtype="float64")

    @jax.jit
    def valid(speed):
        begin = state.replace(velocities=jnp.zeros((1, 2, 3)).at[0, 1, 2].set(speed))
        return run.rollout(MODEL, NVE(), system, begin, 1.0, 3, max_distance=15.02).valid

    assert bool(valid(0.005))
    assert not bool(valid(0.01))


def test_a_rollout_that_is_not_the_one_given_is_no_remat(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")

    def elsewhere(velocities, rollout):
        return run.rollout(MODEL, NVE(), system, state.replace(velocities=velocities), 2.0, 4).state.energy.sum()

    with pytest.raises(ConfigError, match="has not called the rollout"):
        jax.eval_shape(run.value_and_grad(elsewhere, "remat"), state.velocities)
    # These differentiate whatever the loss is made of.
    for mode in ("reverse", "forward"):
        jax.eval_shape(run.value_and_grad(elsewhere, mode), state.velocities)


def test_another_ensemble_than_the_states_is_told(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    for other, words in (
        (NoseHoover(40.0), "NoseHoover goes on from chain positions, chain velocities, and the state has nothing"),
        (CellRescaling(40.0), "first volume"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.rollout(MODEL, other, system, state, 1.0, 2)
    with pytest.raises(ConfigError, match="what `start` returns"):
        run.rollout(MODEL, NVE(), state, system, 1.0, 2)
    # Neither remembers anything, but noise brings the momentum back that NVE holds.
    for call in (run.rollout, partial(run.sample, every=1)):
        with pytest.raises(ConfigError, match=r"keeps the total momentum, and Langevin .* doesn't"):
            call(MODEL, Langevin(40.0), system, state, 1.0, 2)
    system, state = run.start(MODEL, argon, Langevin(40.0), temperature=40.0, dtype="float64")
    run.rollout(MODEL, NVE(), system, state, 1.0, 2)


def test_numbers_of_another_ensemble_are_checked(argon):
    system, state = run.start(MODEL, [argon] * 2, Langevin(40.0), temperature=40.0, dtype="float64")
    for other, words in (
        (Langevin(-40.0), r"Langevin, temperature: -40\.0 is out of range"),
        (Langevin(40.0, -0.01), "Langevin, friction: -0.01 is out of range"),
        (Langevin(np.array([40.0, 50.0, 60.0])), r"has shape \(3,\); give one number, or one for each of 2 replicas"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.rollout(MODEL, other, system, state, 1.0, 2)
    traced = jax.jit(lambda t: run.rollout(MODEL, Langevin(t), system, state, 1.0, 2).state.positions)
    assert np.isfinite(traced(50.0)).all()


def test_ensembles_by_name(argon):
    named = run.start(MODEL, argon, "nvt", temperature=40.0, dtype="float64")
    made = run.start(MODEL, argon, NoseHoover(40.0), temperature=40.0, dtype="float64")
    jax.tree.map(np.testing.assert_array_equal, named[1].bath, made[1].bath)
    np.testing.assert_array_equal(named[1].velocities, made[1].velocities)
    programs = [
        jax.make_jaxpr(partial(run.rollout, MODEL, ensemble, named[0], timestep=2.0, steps=3, **kelvin))(named[1])
        for ensemble, kelvin in (("nvt", {"temperature": 40.0}), (NoseHoover(40.0), {}))
    ]
    assert str(programs[0]) == str(programs[1])
    with pytest.raises(ConfigError, match="give a temperature"):
        run.rollout(MODEL, "nvt", *named, 2.0, 3)
    with pytest.raises(ConfigError, match="did you mean 'langevin'"):
        run.start(MODEL, argon, "langevn", temperature=40.0)
    with pytest.raises(ConfigError, match="such as Langevin"):
        run.start(MODEL, argon, Langevin, temperature=40.0)
    with pytest.raises(ConfigError, match="periodic in all three"):
        run.start(MODEL, ase.Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 4]]), "npt", temperature=40.0)


def test_calls_that_can_not_be_are_told(argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")

    class NoPytree:
        cutoff = 5.0

        def compute(self, graph):
            return MODEL.compute(graph)

    for model, words in (
        (lambda graph: 0.0, "must be a Potential, or a pytree"),
        (NoPytree(), r"flax\.struct\.dataclass"),
        (LennardJones, "is a class"),
        ("si", "load_potential"),
        (None, "must be a Potential"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.start(model, argon, NVE(), temperature=40.0)
        with pytest.raises(ConfigError, match=words):
            run.rollout(model, NVE(), system, state, 1.0, 2)
    for wrong in (
        {"steps": "2"},
        {"steps": 1e18},
        {"timestep": True},
        {"timestep": 0.0},
        {"every": 0},
        {"max_step": "x"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            run.rollout(
                **{
                    "model": MODEL,
                    "ensemble": NVE(),
                    "system": system,
                    "state": state,
                    "timestep": 1.0,
                    "steps": 2,
                    **wrong,
                }
            )
    for seed in (-1, 2**40, 1.5, None):
        with pytest.raises(ConfigError, match="seed"):
            run.start(MODEL, argon, NVE(), temperature=40.0, seed=seed)
    for loss, aux in (
        (lambda v, rollout: v, False),
        (lambda v, rollout: None, False),
        (lambda v, rollout: v.sum(), True),
    ):
        with pytest.raises(ConfigError, match="must return"):
            run.value_and_grad(loss, has_aux=aux)(state.velocities)


@pytest.mark.parametrize(
    ("rounds", "segment", "lengths"),
    [
        (100, None, ()),
        (100, "sqrt", (10,)),
        (100, 7, (7,)),
        (100, (20, 4), (20, 4)),
        (5, "recursive", ()),
        (400, "recursive", (10,)),
        (2000, "recursive", (10,)),
        (50_000, "recursive", (10,)),
        (100_000, "recursive", (1000, 10)),
    ],
)
def test_segments(rounds, segment, lengths):
    assert segment_lengths(rounds, segment) == lengths


@pytest.mark.parametrize(
    ("rounds", "every", "lengths", "part"),
    [(40, 10, (1,), None), (40, 400, (), 10), (1000, 400, (125,), 10), (7, 97, (), 1), (3, 24, (), 8)],
)
def test_segments_of_many_steps_between_observations(rounds, every, lengths, part):
    assert segment_lengths(rounds, "recursive", every) == lengths
    assert slots_together("recursive", every) == part
    assert slots_together("sqrt", every) is None


@pytest.mark.slow
def test_segments_of_segments_change_nothing_and_take_less_memory(argon):
    ensemble = Langevin(40.0, 0.01)
    system, state = run.start(MODEL, argon, ensemble, temperature=40.0, dtype="float64")
    found, memory = {}, {}
    for segment in (None, 25, (50, 5), "recursive"):

        def loss(positions, segment=segment):
            begin = state.replace(positions=positions)
            out = run.rollout(
                MODEL, ensemble, system, begin, 2.0, 401, observe=run.observables.pressure, segment=segment
            )
            return out.seen[::7].sum()

        program = jax.jit(jax.grad(loss)).lower(state.positions).compile()
        found[segment], memory[segment] = program(state.positions), program.memory_analysis().temp_size_in_bytes
    for segment in (25, (50, 5), "recursive"):
        np.testing.assert_allclose(found[segment], found[None], rtol=1e-8, err_msg=str(segment))
    assert memory[50, 5] < 0.6 * memory[25] < 0.2 * memory[None], memory


@pytest.mark.parametrize("segment", [11, 0, (4, 3), (), "cubic", True])
def test_segments_that_can_not_be(segment, argon):
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    with pytest.raises(ConfigError, match="segment must be"):
        run.rollout(MODEL, NVE(), system, state, 1.0, 10, segment=segment)


def test_velocities_are_drawn_at_the_ensembles_temperature():
    atoms = ase.build.bulk("Ar", a=5.3, cubic=True)
    drawn = [
        run.start(LennardJones(cutoff=5.2), atoms, NoseHoover(80.0), temperature=kelvin)[1] for kelvin in (None, 80.0)
    ]
    np.testing.assert_array_equal(drawn[0].velocities, drawn[1].velocities)
    with pytest.raises(ConfigError, match="no velocities: give a temperature"):
        run.start(LennardJones(cutoff=5.2), atoms, NVE())


def test_recursive_segments_lie_between_observations_too(argon):
    """Of 200 steps that are seen twice, the memory is that of ten steps and not of a hundred."""
    system, state = run.start(MODEL, argon, NVE(), temperature=40.0, dtype="float64")
    found, memory = {}, {}
    for segment in (None, "recursive"):

        def loss(positions, segment=segment):
            begin = state.replace(positions=positions)
            out = run.rollout(
                MODEL, NVE(), system, begin, 2.0, 200, observe=run.observables.pressure, every=100, segment=segment
            )
            return out.seen.sum()

        program = jax.jit(jax.grad(loss)).lower(state.positions).compile()
        found[segment], memory[segment] = program(state.positions), program.memory_analysis().temp_size_in_bytes
    np.testing.assert_allclose(found["recursive"], found[None], rtol=1e-8)
    assert memory["recursive"] < 0.2 * memory[None], memory


def test_a_model_that_reaches_beyond_the_lists_is_refused(argon):
    system, state = run.start(MODEL, argon, Langevin(40.0), temperature=40.0, dtype="float64")
    farther = LennardJones(cutoff=8.0)
    for call in (run.rollout, partial(run.sample, every=1)):
        ensemble = NVE() if call is run.rollout else Langevin(40.0)
        with pytest.raises(ConfigError, match="cutoff is 8 Å, and the lists hold pairs within 5 Å"):
            call(farther, ensemble, system, state, 1.0, 2)
    shorter = run.rollout(LennardJones(cutoff=4.5), NVE(), system, state, 1.0, 1)
    assert shorter.valid
