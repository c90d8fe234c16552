"""Reweighted averages: wells with known answers, finite differences, samples pooled, what is refused."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import simulate

import leignn_jax as leignn
from leignn_jax.differentiable import reweighting
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.simulation import JaxMD
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import NVE, CellRescaling, Langevin, Ramp
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")

run = leignn.differentiable
KELVIN, STIFFNESS, ATOMS = 50.0, 0.5, 12
KT = KELVIN * BOLTZMANN
ARGON = LennardJones(cutoff=5.0)


def wells(stiffness=STIFFNESS):
    return HarmonicWells(stiffness, jnp.asarray(9.0 * np.stack(np.unravel_index(np.arange(ATOMS), (3, 2, 2)), 1)))


def squared(system, state):
    """Of every replica, Å^2 from the wells, per atom."""
    return ((state.positions - wells().centers) ** 2).sum(-1).mean(-1)


def sample_of_wells(kelvin=KELVIN, stiffness=STIFFNESS, seed=0, steps=20_000):
    model = wells(stiffness)
    atoms = ase.Atoms("He12", np.asarray(model.centers))
    ensemble = Langevin(kelvin, 0.05)
    system, state = run.start(model, [atoms] * 4, ensemble, temperature=kelvin, dtype="float64", seed=seed)
    return run.sample(model, ensemble, system, state, 2.0, steps, every=50, discard=steps // 10)


@pytest.fixture(scope="module")
def sample(fast_compiles):
    with jax.enable_x64(True):
        return sample_of_wells()


def deviation(found, exact):
    return abs(float(found.value) - exact) / float(found.error)


def test_an_average_of_the_sample_itself_is_plain(sample):
    found = run.reweighted(wells(), sample, squared)
    assert float(found.effective) == pytest.approx(sample.energy.size)
    frames = ((sample.positions - wells().centers) ** 2).sum(-1).mean(-1)
    assert float(found.value) == pytest.approx(float(frames.mean()), rel=1e-10)
    assert deviation(found, 3 * KT / STIFFNESS) < 3
    assert float(found.error) < 0.02 * float(found.value)


@pytest.mark.parametrize(("stiffer", "warmer"), [(1.15, 1.0), (1.0, 0.9), (0.9, 1.05)])
def test_averages_elsewhere_are_exact(sample, stiffer, warmer):
    found = run.reweighted(wells(stiffer * STIFFNESS), sample, squared, kT=warmer * KT)
    exact = 3 * warmer * KT / (stiffer * STIFFNESS)
    assert float(found.effective) < 0.95 * sample.energy.size
    assert deviation(found, exact) < 3
    # Far enough from where the sample was made that its own average is wrong.
    assert abs(exact / (3 * KT / STIFFNESS) - 1) > 5 * float(found.error) / exact


def test_velocities_are_those_of_the_temperature(sample):
    found = run.reweighted(wells(), sample, run.observables.kinetic_energy, kT=1.05 * KT)
    assert deviation(found, 1.5 * ATOMS * 1.05 * KT) < 3


def test_slopes_are_exact(sample):
    def average(stiffness, kT):
        return run.reweighted(wells(stiffness), sample, squared, kT=kT).value

    by_stiffness, by_kT = jax.jit(jax.grad(average, (0, 1)))(STIFFNESS, KT)
    # Fluctuations of few samples: to a tenth.
    assert float(by_stiffness) == pytest.approx(-3 * KT / STIFFNESS**2, rel=0.1)
    assert float(by_kT) == pytest.approx(3 / STIFFNESS, rel=0.1)


@pytest.mark.slow
def test_samples_pooled_reach_farther(sample):
    there = 1.6
    colder = sample_of_wells(stiffness=there * there * STIFFNESS, seed=1)
    both = run.pooled([sample, colder])
    one, two = (run.reweighted(wells(there * STIFFNESS), s, squared, least=1.0) for s in (sample, both))
    assert float(two.effective) > 3 * float(one.effective)
    assert deviation(two, 3 * KT / (there * STIFFNESS)) < 3


def test_pooling_two_halves_is_the_whole(sample):
    halves = [
        sample.replace(**{k: getattr(sample, k)[part] for k in ("positions", "images", "velocities", "cell", "energy")},
                       kT=sample.kT[part], pressure=sample.pressure[part], made=sample.made[part])
        for part in (slice(0, 100), slice(100, None))
    ]  # fmt: skip
    whole, both = (run.reweighted(wells(0.55), s, squared) for s in (sample, run.pooled(halves)))
    assert float(both.value) == pytest.approx(float(whole.value), rel=1e-9)
    assert float(both.effective) == pytest.approx(float(whole.effective), rel=1e-9)


def test_frames_of_several_temperatures_have_none_in_common(sample):
    """Each weighted at its own, they were averages of nothing: beyond those of both temperatures."""
    both = run.pooled([sample, sample_of_wells(1.5 * KELVIN, seed=1, steps=5_000)])
    with pytest.raises(ConfigError, match="several values of kT: name the one"):
        run.reweighted(wells(), both, squared)
    with pytest.raises(ConfigError, match="several values of kT"):
        run.thermodynamic_integration(wells, [0.5, 0.6], [both, both])
    assert np.isnan(jax.jit(lambda s: run.reweighted(wells(), s, squared).value)(both))
    assert deviation(run.reweighted(wells(), both, squared, kT=1.2 * KT), 3 * 1.2 * KT / STIFFNESS) < 3


@pytest.fixture(scope="module")
def argon(fast_compiles):
    with jax.enable_x64(True):
        atoms = ase.build.bulk("Ar", a=5.5, cubic=True) * (2, 2, 2)
        ensemble = CellRescaling(60.0, 0.05, compressibility=0.5, pressure_time_constant=300.0)
        system, state = run.start(ARGON, atoms, ensemble, temperature=60.0, dtype="float64")
        return run.sample(ARGON, ensemble, system, state, 4.0, 3000, every=50, discard=1000)


@pytest.mark.slow
def test_every_slope_at_constant_pressure_is_that_of_differences(argon):
    def observe(system, state):
        return {"pressure": run.observables.pressure(system, state), "cell": state.cell}

    def loss(argument):
        model = LennardJones(argument["epsilon"], argument["sigma"], cutoff=5.0)
        kT, pressure = argument["kT"], argument["pressure"]
        out = run.reweighted(model, argon, observe, kT=kT, pressure=pressure).value
        return out["pressure"] + out["cell"][0, 0]

    argument = {"epsilon": 0.0105, "sigma": 3.41, "kT": 61 * BOLTZMANN, "pressure": 0.06}
    loss = jax.jit(loss)
    slopes = jax.grad(loss)(argument)
    for name, value in argument.items():
        h = 1e-5 * value
        up, down = (float(loss({**argument, name: value + s * h})) for s in (1, -1))
        assert float(slopes[name]) == pytest.approx((up - down) / (2 * h), rel=1e-5), name


@pytest.mark.slow
def test_the_pressure_of_a_barostat_is_reached_by_weights(argon):
    # Where no weights are needed the mean pressure is the target; at another target the weights take it there.
    for target in (0.05, 0.055):
        found = run.reweighted(ARGON, argon, run.observables.pressure, pressure=target)
        assert abs(float(found.value) - target) < 4 * float(found.error)


def test_too_far_is_an_error_in_words(sample):
    with pytest.raises(SimulationError, match="Draw a new sample"):
        run.reweighted(wells(20 * STIFFNESS), sample, squared)
    traced = jax.jit(lambda k: run.reweighted(wells(k), sample, squared).effective)(20 * STIFFNESS)
    assert float(traced) < 10


def test_what_is_refused(sample):
    atoms = ase.Atoms("He12", np.asarray(wells().centers))
    system, state = run.start(wells(), atoms, Langevin(KELVIN), temperature=KELVIN, dtype="float64")
    for ensemble, steps, words in (
        (Langevin(KELVIN), 15, "multiples of every"),
        (NVE(), 20, "with a temperature"),
        (Langevin(Ramp([0.0, 1.0], [10.0, 20.0])), 20, "not ramps"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.sample(wells(), ensemble, system, state, 1.0, steps, every=10)
    both = run.start(wells(), [atoms] * 2, Langevin(KELVIN), temperature=KELVIN, dtype="float64")
    with pytest.raises(ConfigError, match="count together"):
        run.sample(wells(), Langevin(np.array([50.0, 60.0])), *both, 1.0, 20, every=10)
    heavier = both[0].replace(masses=both[0].masses.at[1].mul(2.0))
    with pytest.raises(ConfigError, match="count together"):
        run.sample(wells(), Langevin(KELVIN), heavier, both[1], 1.0, 20, every=10)
    held = both[0].replace(mobile=both[0].mobile.at[1, 0].set(0.0))
    with pytest.raises(ConfigError, match="of which the same are held"):
        run.sample(wells(), Langevin(KELVIN), held, both[1], 1.0, 20, every=10)
    with pytest.raises(ConfigError, match="two frames"):
        run.sample(wells(), Langevin(KELVIN), system, state, 1.0, 20, every=10, discard=10)
    ramp = JaxMD(simulate.nvt_langevin, kT=Ramp(np.array([0.0, 1.0]), np.array([0.1, 0.2])), gamma=0.1)
    other = run.start(wells(), atoms, ramp, temperature=KELVIN, dtype="float64")
    with pytest.raises(ConfigError, match="not ramps"):
        run.sample(wells(), ramp, *other, 1.0, 20, every=10)
    with pytest.raises(ConfigError, match="pooled again"):
        run.pooled([run.pooled([sample]), sample])
    with pytest.raises(ConfigError, match="constant volume"):
        run.reweighted(wells(), sample, squared, pressure=1.0)
    with pytest.raises(ConfigError, match="replicas"):
        run.reweighted(wells(), sample, lambda system, state: state.energy.sum())
    with pytest.raises(ConfigError, match="must come from"):
        run.reweighted(wells(), [sample], squared)
    with pytest.raises(ConfigError, match="list of samples"):
        run.pooled([])


def test_the_same_question_compiles_once(sample):
    run.reweighted(wells(), sample, squared)
    programs = reweighting._frame_by_frame._cache_size()
    for share in (1.01, 1.02):
        run.reweighted(wells(share * STIFFNESS), sample, squared)
    assert reweighting._frame_by_frame._cache_size() == programs
    # A number that an observable holds on to is differentiated all the same.
    plain = float(run.reweighted(wells(), sample, squared).value)

    def scaled(factor):
        return run.reweighted(wells(), sample, lambda system, state: factor * squared(system, state)).value

    assert float(jax.grad(scaled)(2.0)) == pytest.approx(plain, rel=1e-9)


def test_errors_are_of_scatter_and_not_of_what_samples_differ_in():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(300, 2))
    apart = parts + np.repeat([5.0, 0.0, -5.0], 100)[:, None]
    found = float(reweighting._error(jnp.asarray(apart), (100, 100, 100)))
    assert found == pytest.approx(np.sqrt(parts.size), rel=0.25)
    assert found < 0.2 * float(reweighting._error(jnp.asarray(apart), (300,)))


def test_errors_count_every_frame():
    rng = np.random.default_rng(0)
    each = jax.jit(jax.vmap(lambda x: reweighting._error(x, (19,))))(jnp.asarray(rng.normal(size=(4000, 19, 1))))
    assert float(jnp.sqrt((each**2).mean())) == pytest.approx(np.sqrt(19), rel=0.05)
