"""Minima differentiated implicitly: against finite differences of relaxing again; what is refused."""

from functools import partial

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.properties.elasticity import elastic_tensor
from leignn_jax.properties.relax import relax
from leignn_jax.properties.second_derivatives import second_derivatives
from leignn_jax.simulation.dynamics import GIGAPASCAL
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")

run = leignn.differentiable


@pytest.fixture(scope="module")
def argon():
    atoms = ase.build.bulk("Ar", a=5.3, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def model(argument):
    return LennardJones(argument["epsilon"], argument["sigma"], cutoff=6.0)


ARGUMENT = {"epsilon": 0.0104, "sigma": 3.4, "pressure": 0.1}


def compare(of, argument, mode="reverse", rel=1e-5):
    """Derivatives of ``of`` by everything in ``argument`` against central differences."""
    of = jax.jit(of)
    slopes = (jax.grad if mode == "reverse" else jax.jacfwd)(of)(argument)
    for name, value in argument.items():
        h = 1e-4 * value
        up, down = (float(of({**argument, name: value + s * h})) for s in (1, -1))
        assert float(slopes[name]) == pytest.approx((up - down) / (2 * h), rel=rel, abs=1e-7), name


@pytest.mark.parametrize(
    ("cell", "mode"),
    [
        ("full", "reverse"),
        pytest.param("full", "forward", marks=pytest.mark.slow),
        pytest.param("isotropic", "reverse", marks=pytest.mark.slow),
        pytest.param(False, "reverse", marks=pytest.mark.slow),
    ],
)
def test_the_minimum_moves_as_relaxing_again_says(argon, cell, mode):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

    def of(argument):
        found = run.relaxed(model(argument), argon, cell=cell, pressure=argument["pressure"])
        return found.energy + (weights * found.cell).sum()

    compare(of, ARGUMENT, mode)


def test_atoms_move_with_the_model():
    # Between two different wells of springs the place of rest has a derivative by both: a diatomic in a field of wells.
    atoms = ase.Atoms("ArKr", [[0.0, 0.1, 0.0], [3.5, 0.0, 0.2]])

    def of(argument):
        found = run.relaxed(LennardJones(argument["epsilon"], argument["sigma"], cutoff=8.0), atoms)
        return jnp.linalg.norm(found.positions[1] - found.positions[0])

    compare(of, {"epsilon": 0.0104, "sigma": 3.4})


@pytest.mark.parametrize(
    ("box", "held"),
    [(0.0, []), pytest.param(20.0, [], marks=pytest.mark.slow), pytest.param(0.0, [1], marks=pytest.mark.slow)],
)
def test_a_molecule_does_not_turn_with_the_model(box, held):
    """Whatever a loss of its positions asks for: a triangle only grows, in either mode, also in a box of vacuum, and from
    an atom that is held."""
    atoms = ase.Atoms("Ar3", [[0.0, 0.0, 0.0], [3.9, 0.1, 0.0], [1.8, 3.3, 0.2]], cell=3 * [box], pbc=box > 0)
    atoms.set_constraint(FixAtoms(held))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))

    @jax.jit
    def at(sigma):
        return run.relaxed(LennardJones(0.0104, sigma, cutoff=6.0), atoms).positions

    positions = at(3.4)
    sides = [jnp.linalg.norm(at(sigma)[1] - at(sigma)[0]) for sigma in (3.399, 3.4, 3.401)]
    grown = (positions - positions[jnp.array(held or [0, 1, 2])].mean(0)) * (sides[2] - sides[0]) / 2e-3 / sides[1]
    slope = jax.grad(lambda sigma: (weights * at(sigma)).sum())(3.4)
    assert float(slope) == pytest.approx(float((weights * grown).sum()), rel=1e-4)
    np.testing.assert_allclose(jax.jacfwd(at)(3.4), grown, atol=1e-4)


@pytest.mark.slow
def test_elastic_constants_and_a_vibration_move_with_the_minimum(argon):
    def of(argument):
        found = run.relaxed(model(argument), argon, cell="isotropic", pressure=argument["pressure"])
        stiffness = second_derivatives(model(argument), found.graph, np.arange(4)).reshape(12, 12)
        constants = elastic_tensor(model(argument), found.graph)
        return constants[0, 0] + 0.5 * constants[3, 3] + jnp.linalg.eigvalsh(stiffness)[-1]

    compare(of, ARGUMENT)

    def held(argument, graph):
        return elastic_tensor(model(argument), graph)[0, 0]

    graph = run.relaxed(model(ARGUMENT), argon, cell="isotropic", pressure=0.1).graph
    alone = jax.grad(held)(ARGUMENT, graph)["sigma"]
    whole = jax.grad(lambda a: held(a, run.relaxed(model(a), argon, cell="isotropic", pressure=a["pressure"]).graph))(
        ARGUMENT
    )["sigma"]
    assert abs(float(alone / whole) - 1) > 0.5


def test_it_is_the_minimum_that_relax_finds(argon):
    found = run.relaxed(model(ARGUMENT), argon, cell="full", pressure=0.1)
    other = relax(model(ARGUMENT), argon, cell="full", pressure=0.1, max_force=1e-5, max_stress=1e-5, steps=3000)
    assert other.converged
    assert float(found.energy + 0.1 / GIGAPASCAL * np.linalg.det(found.cell)) == pytest.approx(
        other.energy + 0.1 / GIGAPASCAL * other.atoms.get_volume(), abs=1e-8
    )
    np.testing.assert_allclose(found.cell, np.asarray(other.atoms.cell), atol=1e-4)
    assert float(found.max_force) < 1e-10


@pytest.mark.slow
def test_held_atoms_stay(argon):
    held = argon.copy()
    held.set_constraint(FixAtoms([0]))
    found = run.relaxed(model(ARGUMENT), held)
    np.testing.assert_allclose(found.positions[0], held.positions[0], atol=1e-12)
    assert np.abs(np.asarray(found.positions) - held.positions).max() > 0.01
    compare(lambda a: run.relaxed(model(a), held).positions[1, 0], {"epsilon": 0.0104, "sigma": 3.4})


@pytest.mark.slow
def test_wells_hold_the_molecule_where_they_are():
    wells = HarmonicWells(1.0, jnp.zeros((1, 3)))
    found = run.relaxed(wells, ase.Atoms("Ar", [[0.2, 0.1, 0.0]]))
    np.testing.assert_allclose(found.positions, 0.0, atol=1e-10)
    slope = jax.jit(jax.jacfwd(lambda x: run.relaxed(HarmonicWells(1.0, x), ase.Atoms("Ar", [[0.2, 0, 0]])).positions))
    np.testing.assert_allclose(slope(jnp.zeros((1, 3)))[0, :, 0], np.eye(3), atol=1e-10)


def test_a_saddle_is_told():
    # Three in a line, the middle one halfway and too far from both: it would fall to either side.
    line = ase.Atoms("Ar3", [[0, 0, 0], [4.9, 0, 0], [9.8, 0, 0]])
    line.set_constraint(FixAtoms([0, 2]))
    with pytest.raises(SimulationError, match="saddle"):
        run.relaxed(LennardJones(cutoff=8.0), line)
    traced = jax.jit(lambda e: run.relaxed(LennardJones(e, cutoff=8.0), line))(0.0104)
    assert not bool(traced.valid)
    assert np.isnan(float(traced.energy))


def test_what_is_refused(argon):
    with pytest.raises(SimulationError, match="No minimum after 2 steps"):
        run.relaxed(model(ARGUMENT), argon, steps=2)
    with pytest.raises(ConfigError, match="periodic in all three"):
        run.relaxed(model(ARGUMENT), ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), cell="full")
    with pytest.raises(ConfigError, match="cell"):
        run.relaxed(model(ARGUMENT), argon, cell="cubic")
    with pytest.raises(ConfigError, match="A pressure needs a cell"):
        run.relaxed(model(ARGUMENT), argon, pressure=50.0)
    with pytest.raises(ConfigError, match="one structure"):
        run.relaxed(model(ARGUMENT), [argon])
    with jax.enable_x64(False), pytest.raises(ConfigError, match="float64"):
        run.relaxed(model(ARGUMENT), argon)


@pytest.mark.slow
def test_silicon_by_parameters_of_the_bundled_potential():
    """Lattice constant, an elastic constant and the optical phonon at Gamma, along a direction of all parameters."""
    potential = leignn.load_potential("si")
    atoms = ase.build.bulk("Si", cubic=True, a=5.45)
    atoms.rattle(0.02, seed=0)
    rng = np.random.default_rng(0)
    towards = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * (np.abs(x) + 1e-3)), potential.params)

    def of(amount):
        moved = jax.tree.map(lambda x, d: jnp.asarray(x, jnp.float64) + amount * d, potential.params, towards)
        at = potential.replace(params=moved)
        found = run.relaxed(at, atoms, cell="isotropic")
        stiffness = second_derivatives(at, found.graph, np.arange(8)).reshape(24, 24)
        highest = jnp.linalg.eigvalsh(0.5 * (stiffness + stiffness.T))[-1]
        return jnp.stack([found.cell[0, 0], elastic_tensor(at, found.graph)[3, 3], highest])

    of = jax.jit(of)
    slopes = jax.jit(jax.jacfwd(of))(0.0)
    h = 1e-6
    numeric = (8 * (of(h) - of(-h)) - (of(2 * h) - of(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slopes, numeric, rtol=1e-5)


@pytest.mark.slow
def test_a_loss_in_small_units_has_its_gradient(argon):
    def of(argument, unit):
        found = run.relaxed(model(argument), argon, cell="isotropic", pressure=argument["pressure"])
        return unit * found.cell[0, 0]

    slope = jax.jit(jax.grad(of))
    plain, small = slope(ARGUMENT, 1.0), slope(ARGUMENT, 1e-18)
    for name in ARGUMENT:
        assert float(small[name]) == pytest.approx(1e-18 * float(plain[name]), rel=1e-6), name


@pytest.mark.parametrize(
    "way",
    [
        lambda f: jax.jacfwd(jax.grad(f)),
        pytest.param(lambda f: jax.grad(jax.grad(f)), marks=pytest.mark.slow),
        pytest.param(lambda f: jax.jacfwd(jax.jacfwd(f)), marks=pytest.mark.slow),
    ],
)
def test_second_derivatives_where_they_are_asked_for(argon, way):
    @partial(jax.jit, static_argnums=1)
    def size(pressure, order=1):
        found = run.relaxed(model(ARGUMENT), argon, cell="isotropic", pressure=pressure, order=order)
        return jnp.abs(jnp.linalg.det(found.cell))

    h, pressure = 1e-3, ARGUMENT["pressure"]
    up, here, down = (float(size(pressure + s * h)) for s in (1, 0, -1))
    twice = jax.jit(way(lambda x: size(x, 2)))(pressure)
    assert float(twice) == pytest.approx((up - 2 * here + down) / h**2, rel=1e-3)
