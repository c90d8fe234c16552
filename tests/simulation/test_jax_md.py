"""Simulators of jax-md as ensembles: our trajectories, conserved numbers, files, held atoms, gradients, what is refused."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms
from jax_md import simulate as jax_md

import leignn_jax as leignn
from leignn_jax import simulate
from leignn_jax.errors import ConfigError
from leignn_jax.simulation import JaxMD, chunks
from leignn_jax.simulation.dynamics import BOLTZMANN, kinetic_energy
from leignn_jax.simulation.ensembles import NVE, NoseHoover, Ramp
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

run = leignn.differentiable
MODEL = LennardJones(cutoff=5.0)
KT = 40.0 * BOLTZMANN

THEIRS = {
    "nve": JaxMD(jax_md.nve),
    "nose-hoover": JaxMD(jax_md.nvt_nose_hoover, kT=KT, tau=100.0, chain_length=3),
    "langevin": JaxMD(jax_md.nvt_langevin, kT=KT, gamma=0.01),
    "csvr": JaxMD(jax_md.temp_csvr, kT=KT, tau=100.0),
    "npt": JaxMD(jax_md.npt_nose_hoover, kT=KT, pressure=0.01, barostat_kwargs={"tau": 500.0}),
}


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def start(ensemble, atoms, kelvin=40.0, skin=0.5):
    """System and state in float64, with room in the lists."""
    settings = {"temperature": kelvin, "dtype": "float64", "skin": skin}
    sizes = run.start(MODEL, atoms, ensemble, **settings)[1].neighbors.sizes
    sizes = sizes._replace(neighbors=2 * sizes.neighbors, pairs=2 * sizes.pairs)
    return run.start(MODEL, atoms, ensemble, sizes=sizes, **settings)


def conserved(ensemble):
    def observe(system, state):
        held = ensemble.stored_energy(system, state, 2.0) - state.exchanged
        return state.positions, state.energy + kinetic_energy(system, state.velocities) + held

    return observe


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "ours", "apart"), [("nve", NVE(), 1e-7), ("nose-hoover", NoseHoover(40.0, 100.0), 1e-4)]
)
def test_trajectories_are_ours(name, ours, apart, argon):
    # jax-md rounds the timestep to float32, and its chain is composed of steps by other weights.
    seen = []
    for ensemble in (ours, THEIRS[name]):
        system, state = start(ensemble, argon)
        seen.append(
            run.rollout(MODEL, ensemble, system, state, 2.0, 100, observe=conserved(ensemble), every=10).seen[0]
        )
    assert np.ptp(seen[0], axis=0).max() > 0.1
    np.testing.assert_allclose(seen[1], seen[0], atol=apart)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "npt" else ()) for n in THEIRS])
def test_what_is_conserved(name, argon):
    ensemble = THEIRS[name]
    system, state = start(ensemble, argon * (2, 1, 1))
    out = run.rollout(MODEL, ensemble, system, state, 2.0, 200, observe=conserved(ensemble))
    assert bool(out.valid)
    spread = np.ptp(np.asarray(out.seen[1]))
    moved = float(jnp.abs(state.energy - out.state.energy).max())
    assert spread < 0.01 * moved, (spread, moved)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_barostat_takes_the_pressure_to_its_target():
    ensemble = JaxMD(jax_md.npt_nose_hoover, kT=20.0 * BOLTZMANN, pressure=0.2, barostat_kwargs={"tau": 1000.0})
    system, state = start(ensemble, ase.build.bulk("Ar", a=5.2, cubic=True) * (2, 2, 2), 20.0, 1.0)

    def observe(system, state):
        return run.observables.pressure(system, state), state.cell[:, 0, 0]

    out = jax.jit(lambda s: run.rollout(MODEL, ensemble, system, s, 4.0, 2000, observe=observe))(state)
    assert bool(out.valid)
    assert abs(float(out.seen[0][0, 0]) - 0.2) > 0.05
    assert np.ptp(np.asarray(out.seen[1])) > 0.02
    assert float(out.seen[0][500:].mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("nose-hoover", "reverse"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("nose-hoover", "remat"),
                ("langevin", "remat"),
                ("nose-hoover", "forward"),
                ("langevin", "reverse"),
                ("langevin", "forward"),
            )
        ),
    ],
)
def test_gradients_are_those_of_finite_differences(name, mode, argon):
    ensemble = THEIRS[name]
    system, state = start(ensemble, argon)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=state.positions.shape))

    def loss(argument, rollout):
        begin = state.replace(positions=argument["positions"])
        out = rollout(
            argument["model"],
            argument["ensemble"],
            system.replace(masses=argument["masses"]),
            begin,
            argument["dt"],
            20,
        )
        return (weights * (out.state.positions + 10 * out.state.velocities)).sum()

    argument = {
        "model": MODEL,
        "ensemble": ensemble,
        "masses": system.masses,
        "positions": state.positions,
        "dt": jnp.asarray(2.0),
    }
    _, gradient = run.value_and_grad(loss, mode)(argument)
    plain = jax.jit(lambda a: loss(a, run.rollout))
    leaves, tree = jax.tree.flatten(argument)
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        place = (0,) * np.ndim(leaf)
        # jax-md rounds the timestep to float32, which wants a step beyond that.
        h = (1e-2 if leaf is argument["dt"] else 1e-4) * max(abs(float(jnp.asarray(leaf)[place])), 0.1)

        def at(x, i=i, leaf=leaf, place=place):
            return tree.unflatten([*leaves[:i], jnp.asarray(leaf).at[place].add(x), *leaves[i + 1 :]])

        numeric = float(plain(at(h)) - plain(at(-h))) / (2 * h)
        if leaf is argument["dt"]:
            assert float(slope[place]) == pytest.approx(numeric, rel=1e-2)
        else:
            assert float(slope[place]) == pytest.approx(numeric, rel=1e-5, abs=1e-8), i


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "csvr" else pytest.mark.slow) for name in THEIRS]
)
def test_a_resumed_simulation_ends_in_the_same_bits(name, argon, tmp_path):
    settings = {"timestep": 2.0, "temperature": 40.0, "save_every": 20, "progress": False, "seed": 4}
    whole = simulate(MODEL, argon * (2, 2, 1), THEIRS[name], steps=200, **settings)
    simulate(MODEL, argon * (2, 2, 1), THEIRS[name], steps=80, out=tmp_path, **settings)
    again = simulate(MODEL, argon * (2, 2, 1), THEIRS[name], steps=200, out=tmp_path, resume=True, **settings)
    np.testing.assert_array_equal(again.trajectory.positions, whole.trajectory.positions)
    np.testing.assert_array_equal(again.thermo["conserved_eV"], whole.thermo["conserved_eV"])


@pytest.mark.slow
def test_replicas_are_those_that_run_alone(argon):
    ensemble = JaxMD(jax_md.nvt_langevin, kT=KT * np.array([1.0, 2.0]), gamma=0.05)
    settings = {"steps": 40, "temperature": np.array([40.0, 80.0]), "save_every": 20, "progress": False}
    both = simulate(MODEL, argon, ensemble, replicas=2, **settings)
    alone = simulate(MODEL, argon, JaxMD(jax_md.nvt_langevin, kT=KT, gamma=0.05), **{**settings, "temperature": 40.0})
    np.testing.assert_allclose(both.trajectory[0].positions, alone.trajectory.positions, atol=1e-5)
    assert np.abs(both.trajectory[1].positions - alone.trajectory.positions).max() > 0.01


def test_other_numbers_compile_nothing_anew(argon):
    def go(kelvin):
        ensemble = JaxMD(jax_md.nvt_langevin, kT=kelvin * BOLTZMANN, gamma=0.01)
        simulate(MODEL, argon, ensemble, steps=20, temperature=kelvin, save_every=20, progress=False)

    go(30.0)
    compiled = chunks._chunk._cache_size()
    go(35.0)
    assert chunks._chunk._cache_size() == compiled


@pytest.mark.parametrize("name", ["nve", "nose-hoover", "langevin"])
def test_held_atoms_stay(name, argon):
    held = argon.copy()
    held.set_constraint(FixAtoms([1, 2]))
    out = simulate(MODEL, held, THEIRS[name], steps=50, temperature=40.0, save_every=50, progress=False)
    moved = np.abs(out.trajectory.positions[-1] - out.trajectory.positions[0]).max(1)
    assert (moved[[1, 2]] == 0).all()
    assert (moved[[0, 3]] > 0.01).all()
    assert np.ptp(out.thermo["conserved_eV"]) < 1e-4


@pytest.mark.slow
def test_a_thermostat_at_its_temperature():
    # Wells hold no momentum: three degrees of freedom for every atom, told to the chain.
    atoms = ase.Atoms("He8Ne8", 9.0 * np.stack(np.unravel_index(np.arange(16), (4, 2, 2)), 1))
    wells = HarmonicWells(1.0, atoms.positions.copy())
    for ensemble in (JaxMD(jax_md.nvt_langevin, kT=KT, gamma=0.05), JaxMD(jax_md.temp_csvr, kT=KT, tau=50.0)):
        out = simulate(
            wells, atoms, ensemble, steps=20000, timestep=2.0, temperature=40.0, save_every=20000, progress=False
        )
        assert out.thermo["temperature_K"][100:].mean() == pytest.approx(40.0, rel=0.05)


@pytest.mark.slow
def test_whole_numbers_have_units_too(argon):
    settings = {"steps": 40, "save_every": 20, "progress": False}
    one, other = (
        simulate(MODEL, argon, JaxMD(jax_md.nvt_nose_hoover, kT=KT, tau=tau, chain_length=3), **settings)
        for tau in (50, 50.0)
    )
    np.testing.assert_array_equal(one.trajectory.positions, other.trajectory.positions)
    ensemble = JaxMD(jax_md.npt_nose_hoover, kT=1, pressure=0, barostat_kwargs={"tau": 100, "chain_length": 4})
    assert len(jax.tree.leaves(ensemble)) == 3
    assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(ensemble))
    words = JaxMD(jax_md.nvt_langevin, kT=KT, gamma=0.01, center_velocity=False)
    assert simulate(MODEL, argon, words, steps=2, save_every=1, log_every=1, progress=False).summary["finished"]


def test_temperatures_of_replicas_are_those_of_the_bath(argon):
    ensemble = JaxMD(jax_md.nvt_langevin, kT=KT * np.array([0.1, 10.0]), gamma=0.01)
    out = simulate(MODEL, argon, ensemble, steps=10, replicas=2, save_every=10, progress=False)
    assert out.thermo[1]["temperature_K"][0] > 10 * out.thermo[0]["temperature_K"][0]


@pytest.mark.slow
def test_a_ramp_heats(argon):
    ramp = Ramp(times=np.array([0.0, 400.0]), values=BOLTZMANN * np.array([10.0, 60.0]))
    ensemble = JaxMD(jax_md.nvt_langevin, kT=ramp, gamma=0.1)
    out = simulate(MODEL, argon * 2, ensemble, steps=400, temperature=10.0, save_every=100, progress=False)
    assert out.thermo["temperature_K"][-1] > 2.5 * out.thermo["temperature_K"][0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: JaxMD(jax_md.nvt_langevin, kT=1.0, gama=0.1), "gama"),
        (lambda: JaxMD(jax_md.nvt_langevin), "needs kT"),
        (lambda: JaxMD("nvt"), "must be a function"),
        (lambda: JaxMD(jax_md.nvt_langevin, kT=-0.1), "out of range"),
        (lambda: JaxMD(jax_md.nvt_langevin, kT=np.ones(3)), "for each of 1 replicas"),
        (lambda: JaxMD(jax_md.nvt_langevin, kT=[0.1, "warm"]), "kT"),
        (lambda: JaxMD(jax_md.nvt_langevin, kT=True), "must be a number"),
        (lambda: JaxMD(jax_md.nvt_langevin, kT=KT, gamma="a"), "must be a number"),
        (lambda: JaxMD(jax_md.brownian, kT=KT), "no momenta"),
    ],
)
def test_what_is_refused(make, words, argon):
    with pytest.raises(ConfigError, match=words):
        simulate(MODEL, argon, make(), steps=1, temperature=40.0)


def test_what_can_not_hold_atoms_says_so(argon):
    held = argon.copy()
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="counts all atoms as free"):
        simulate(MODEL, held, THEIRS["csvr"], steps=1, temperature=40.0)


def test_a_state_of_another_ensemble_is_refused(argon):
    system, state = run.start(MODEL, argon, THEIRS["nose-hoover"], temperature=40.0)
    with pytest.raises(ConfigError, match="started with another ensemble"):
        run.rollout(MODEL, THEIRS["csvr"], system, state, 1.0, 1)


def test_a_molecule_has_no_pressure():
    with pytest.raises(ConfigError, match="periodic in all three"):
        simulate(MODEL, ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), THEIRS["npt"], steps=1, temperature=40.0)
