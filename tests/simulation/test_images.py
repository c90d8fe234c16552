"""Simulations that begin, or get, far from the origin: float32 rounds no more there, and what is seen is not wrapped."""

from typing import Any

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph
from leignn_jax.simulation.chunks import start_state
from leignn_jax.simulation.dynamics import displacement, lattice_vectors, make_system, move_to, unwrapped
from leignn_jax.simulation.engine import simulate
from leignn_jax.simulation.ensembles import NVE, CellRescaling, Langevin
from leignn_jax.simulation.simple_models import HarmonicWells, IdealGas, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")
MODEL = LennardJones(cutoff=5.0)
run = leignn.differentiable
DIRECTION = np.array([1.0, 0.7, -0.3])
SETTINGS: dict[str, Any] = {"timestep": 2.0, "temperature": 40.0, "save_every": 20, "log_every": 20, "seed": 2}
NPT = CellRescaling(40.0, 0.1, compressibility=0.5, shape="triclinic", every=5)


def argon(kind="crystal"):
    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.rattle(0.05, seed=0)
    if kind == "slab":
        atoms.pbc = (True, True, False)
    if kind == "cluster":
        atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    return atoms


def hot_gas():
    """Argon so fast that atoms cross a cell in some tens of steps, and so thin that they pass each other."""
    atoms = ase.build.bulk("Ar", cubic=True, a=11.0)
    velocities = np.random.default_rng(1).normal(size=(4, 3)) * 0.05
    atoms.set_velocities((velocities - velocities.mean(0)) / ase.units.fs)
    return atoms


@pytest.mark.parametrize(
    ("kind", "ensemble"), [("crystal", "nve"), ("crystal", NPT), ("slab", "nve"), ("cluster", "nve")]
)
def test_a_simulation_from_far_away_is_the_one_from_near(kind, ensemble, tmp_path):
    near, far = argon(kind), argon(kind)
    far.positions += 1e6 * DIRECTION
    if kind != "cluster":
        far.positions[2] += 10**5 * far.cell[1]
    one = simulate(MODEL, near, ensemble, steps=60, **SETTINGS)
    other = simulate(MODEL, far, ensemble, steps=60, out=tmp_path / "far", **SETTINGS)
    np.testing.assert_allclose(other.trajectory.forces, one.trajectory.forces, atol=1e-5)
    np.testing.assert_allclose(other.trajectory.energy, one.trajectory.energy, atol=1e-5)
    np.testing.assert_allclose(other.trajectory.cell, one.trajectory.cell, atol=1e-5)
    shift = far.positions - near.positions
    if ensemble == "nve":
        seen = np.asarray(other.trajectory.positions) - one.trajectory.positions - shift
        # float64 on disk, and the cell as it was given.
        assert np.abs(seen).max() < 2e-5
        np.testing.assert_array_equal(other.trajectory.cell[-1], far.cell)
        np.testing.assert_allclose(other.atoms.positions, one.atoms.positions + shift, atol=2e-5)
    else:
        wrapped = [x.atoms.get_scaled_positions() for x in (one, other)]
        apart = np.diff(wrapped, axis=1)
        np.testing.assert_allclose(apart[1] - np.round(apart[1] - apart[0]), apart[0], atol=1e-5)
        np.testing.assert_allclose(other.atoms.positions, other.trajectory.positions[-1], atol=1e-9)


def test_a_gas_flies_straight_on(tmp_path):
    """Three kilometres, as atoms see it: in float32 every step would be rounded by 1e-4 Å at the end."""
    atoms = hot_gas()
    atoms.set_velocities(atoms.get_velocities() * 5)
    steps, dt = 3000, 2.0
    end = simulate(
        IdealGas(),
        atoms,
        "nve",
        steps=steps,
        timestep=dt,
        save_every=1000,
        log_every=1000,
        max_temperature=1e9,
        max_step=5,
    )
    way = steps * dt * end.atoms.get_velocities() * ase.units.fs
    assert np.abs(way).max() > 1500
    np.testing.assert_allclose(end.atoms.positions - atoms.positions, way, rtol=2e-6, atol=2e-4)


def test_forces_of_a_gas_that_goes_far_are_those_of_float64():
    atoms = hot_gas()
    end = simulate(MODEL, atoms, "nve", steps=1000, timestep=2.0, save_every=250, log_every=250, max_temperature=1e9)
    frames = end.trajectory
    assert np.abs(frames.positions[-1] - frames.positions[0]).max() > 50
    assert np.abs(frames.forces).max() > 1e-3
    with jax.enable_x64(True):
        exact_forces = jax.jit(lambda graph: MODEL.compute(graph).forces)
        for positions, forces in zip(frames.positions, frames.forces, strict=True):
            here = atoms.copy()
            here.positions = positions
            exact = exact_forces(Graph.from_ase(here, MODEL.cutoff, np.float64).pad(pairs=32, neighbors=16))
            np.testing.assert_allclose(forces, exact, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("ensemble", [NVE(), NPT], ids=["nve", "npt"])
def test_going_on_is_the_same_to_the_bit_where_images_are_counted(ensemble, tmp_path):
    atoms = hot_gas()
    atoms.positions += 1e7 * DIRECTION
    settings = SETTINGS | {"save_every": 40, "log_every": 40, "max_temperature": 1e9}
    whole = simulate(MODEL, atoms, ensemble, steps=400, **settings)
    simulate(MODEL, atoms, ensemble, steps=217, out=tmp_path / "run", **settings)
    # What the user sees goes on from where it was, also where the structure is given as it is by now.
    again = simulate(MODEL, hot_gas(), ensemble, steps=400, out=tmp_path / "run", resume=True, **settings)
    assert np.abs(whole.trajectory.positions[-1] - whole.trajectory.positions[0]).max() > 11
    rows = np.isin(again.trajectory.step, whole.trajectory.step)
    np.testing.assert_array_equal(again.trajectory.positions[rows], whole.trajectory.positions)
    np.testing.assert_array_equal(again.atoms.positions, whole.atoms.positions)
    np.testing.assert_array_equal(again.atoms.get_velocities(), whole.atoms.get_velocities())


def test_positions_and_images_scale_together_with_the_cell():
    near, far = argon(), argon()
    whole = np.array([[0, 0, 0], [5, 0, -3], [0, 1000, 0], [-70, 2, 2]])
    far.positions += whole @ far.cell.array
    one, other = (simulate(MODEL, a, NPT, steps=60, dtype="float64", **SETTINGS) for a in (near, far))
    assert np.abs(one.atoms.cell - near.cell).max() > 1e-3
    frames = np.asarray(one.trajectory.positions) + whole @ np.asarray(one.trajectory.cell)
    np.testing.assert_allclose(other.trajectory.positions, frames, atol=1e-8)


def test_a_stopped_replica_stands_where_it_was_though_its_list_took_atoms_back():
    """The step that breaks the limit renews the list, with the atom that is just beyond two cells taken back."""
    slow, fast = hot_gas(), hot_gas()
    for atoms, speed in ((slow, 0.01), (fast, 0.8)):
        atoms.positions[0] = [1.999 * 11, 0.1, 0.1]
        velocities = np.zeros((4, 3))
        velocities[:2, 0] = speed, -speed
        atoms.set_velocities(velocities / ase.units.fs)
    end = simulate(MODEL, [slow, fast], "nve", steps=40, timestep=2.0, save_every=20, log_every=20, max_temperature=1e9)
    assert end.summary["stopped"] == [None, "step 0: an atom moved farther than max_step in one step"]
    np.testing.assert_allclose(end.atoms[1].positions, fast.positions, atol=3e-6)
    np.testing.assert_allclose(end.atoms[0].positions[0, 0] - slow.positions[0, 0], 0.8, atol=1e-2)


# ------------------------------------------------------------------------------------------------------------- rollouts


def leaving():
    """A state whose atoms go beyond two cells within a few steps."""
    atoms = argon()
    atoms.positions += 1.48 * atoms.cell[0] + 0.9 * atoms.cell[1]
    atoms.set_velocities(np.array([[-1, 0, 0], [-1, 0, 0], [1, 0, 0], [1, 0, 0]]) * 0.01 / ase.units.fs)
    return atoms


@pytest.mark.parametrize(
    "ensemble",
    [
        pytest.param(Langevin(40.0, 0.001), marks=pytest.mark.slow, id="langevin"),
        pytest.param(NPT, marks=pytest.mark.slow, id="npt"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_gradients_of_a_rollout_are_those_of_the_unwrapped_way(ensemble):
    system, state = run.start(MODEL, leaving(), ensemble, dtype="float64", skin=0.2)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)))

    def loss(argument):
        begin = state.replace(**argument)
        squares = run.observables.squared_displacement(begin)

        def observe(system, state):
            return run.observables.positions(system, state), squares(system, state), state.images

        out = run.rollout(MODEL, ensemble, system, begin, 2.0, 30, observe=observe, every=15)
        seen, squared, images = out.seen
        return (weights * seen[:, 0]).sum() + squared.sum(), images

    argument = {name: getattr(state, name) for name in ("positions", "velocities", "cell")}
    images = loss(argument)[1]
    assert images[-1].any()
    gradient = jax.grad(lambda a: loss(a)[0])(argument)
    plain = jax.jit(lambda a: loss(a)[0])
    rng = np.random.default_rng(1)
    for name in argument:
        direction = jnp.asarray(rng.normal(size=argument[name].shape)) * (0.1 if name != "velocities" else 1e-3)

        def moved(amount, name=name, direction=direction):
            return plain({**argument, name: argument[name] + amount * direction})

        step = 1e-4
        difference = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
        np.testing.assert_allclose((gradient[name] * direction).sum(), difference, rtol=2e-6, err_msg=name)


def test_displacements_far_out_are_not_rounded():
    system, state = run.start(MODEL, argon(), NVE(), temperature=40.0)
    images = jnp.asarray(np.random.default_rng(0).integers(-(10**6), 10**6, (1, 4, 3)), jnp.int32)
    far = state.replace(images=images)
    after = move_to(MODEL, system, far, far.positions + 0.01, far.cell)
    moved = after.replace(images=after.images + jnp.asarray([1, 0, 0], jnp.int32))
    expected = 0.01 + np.asarray(state.cell[0, 0])
    np.testing.assert_allclose(displacement(far, moved)[0], np.tile(expected, (4, 1)), atol=1e-6)
    squared = run.observables.squared_displacement(far)(system, moved)
    np.testing.assert_allclose(squared, (expected**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(unwrapped(far), state.positions + lattice_vectors(images, state.cell))


# --------------------------------------------------------------------------------------------------------------- models


def test_wells_of_a_crystal_are_in_every_cell():
    atoms = argon()
    wells = HarmonicWells(2.0, atoms.positions + 0.1)
    near = wells.compute(Graph.from_ase(atoms, 1.0))
    atoms.positions += [[3], [0], [-200], [10**6]] * atoms.cell[0]
    far = wells.compute(Graph.from_ase(atoms, 1.0))
    np.testing.assert_allclose(near.forces, 0.2, atol=1e-6)
    np.testing.assert_allclose(far.forces, near.forces, atol=5e-6)


@pytest.mark.slow
def test_a_model_with_a_place_of_its_own_sees_an_open_structure_where_it_is():
    atoms = ase.Atoms("ArAr", [[100.0, 0, 0], [108.0, 0, 0]])
    wells = HarmonicWells(1.0, atoms.positions.copy())
    end = simulate(wells, atoms, "langevin", steps=20, **SETTINGS)
    assert np.abs(end.atoms.positions - atoms.positions).max() < 1.0
    np.testing.assert_allclose(
        leignn.relax(wells, end.atoms, max_force=1e-4).atoms.positions, atoms.positions, atol=1e-3
    )


def test_the_farthest_start_and_one_beyond():
    atoms = argon()
    atoms.positions += 4e11 * np.array([1.0, 0, 0])
    system = make_system([atoms], np.float32)
    state, origins = start_state(MODEL, system, [atoms], NVE(), 40.0, 0, 0.5, np.float32)
    assert np.abs(state.positions).max() < 12
    seen = origins.seen(state.positions, state.images, atoms.cell.array[None])[0]
    np.testing.assert_allclose(seen, atoms.positions, rtol=1e-15, atol=1e-6)
    atoms.positions += 4e11
    with pytest.raises(StructureError, match="so far from the origin"):
        simulate(MODEL, atoms, "nve", steps=1, **SETTINGS)
