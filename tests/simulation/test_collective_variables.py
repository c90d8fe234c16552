"""Collective variables against ASE, their slopes, images; umbrellas in simulations and rollouts; what is refused."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.simulation import Umbrella
from leignn_jax.simulation.biases import Hills, pushed
from leignn_jax.simulation.collective_variables import (
    Angle,
    Coordination,
    Dihedral,
    Distance,
    check_variable,
    difference,
    nearest,
)
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.simulation.simple_models import HarmonicWells, IdealGas, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")
run = leignn.differentiable


def height(radius, positions, cell, pbc):
    """One of one's own, with a number to differentiate by."""
    return jnp.sqrt(radius**2 + (nearest(positions, cell, pbc, 0, 3) ** 2).sum())


VARIABLES = {
    "distance": Distance(0, 3),
    "angle": Angle(0, 1, 2),
    "dihedral": Dihedral(0, 1, 2, 3),
    "coordination": Coordination((0, 2), (1, 2, 3), 2.5),
    "own": Partial(height, 0.7),
}
CELLS = {
    "open": (np.zeros((3, 3)), False),
    "triclinic": (np.array([[6.0, 0, 0], [2.5, 5.5, 0], [1.0, -2.0, 7.0]]), True),
    "slab": (np.array([[0.0, 6.0, 0], [0, 3.0, 5.0], [0, 0, 0]]), [True, True, False]),
}


def structure(kind, seed=0):
    cell, pbc = CELLS[kind]
    return ase.Atoms("HCNO", np.random.default_rng(seed).uniform(0, 5, (4, 3)), cell=cell, pbc=pbc)


def where(atoms):
    return jnp.asarray(atoms.positions), jnp.asarray(np.asarray(atoms.cell)), jnp.asarray(atoms.pbc)


def of_ase(name, atoms):
    if name == "distance":
        return atoms.get_distance(0, 3, mic=True)
    if name == "angle":
        return np.radians(atoms.get_angle(0, 1, 2, mic=True))
    if name == "dihedral":
        turned = np.radians(atoms.get_dihedral(0, 1, 2, 3, mic=True))
        return turned - 2 * np.pi * (turned > np.pi)
    if name == "own":
        return np.hypot(0.7, atoms.get_distance(0, 3, mic=True))
    pairs = [(i, j) for i in (0, 2) for j in (1, 2, 3) if i != j]
    x = np.array([atoms.get_distance(i, j, mic=True) for i, j in pairs]) / 2.5
    return ((1 - x**6) / (1 - x**12)).sum() / 2


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("name", VARIABLES)
def test_values_are_those_of_ase_and_images_do_not_matter(name, kind):
    variable = VARIABLES[name]
    for seed in range(3):
        atoms = structure(kind, seed)
        value = float(variable(*where(atoms)))
        assert value == pytest.approx(of_ase(name, atoms), abs=1e-9)
        moved = atoms.copy()
        moved.positions += np.random.default_rng(seed).integers(-3, 4, (4, 3)) * atoms.pbc @ np.asarray(atoms.cell)
        assert float(variable(*where(moved))) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_bias_pushes_by_its_slope(name):
    """Energy, forces and stress of an umbrella, by finite differences; energy by its numbers too."""
    model, atoms = Umbrella(VARIABLES[name], 0.4, 2.0), structure("triclinic", 1)
    positions, cell, pbc = where(atoms)

    @jax.jit
    def energy(positions, cell):
        return model.energy(model.variable(positions, cell, pbc)[None])[0]

    out = jax.jit(lambda m, g: m.compute(g))(model, Graph.from_ase(atoms, 1.0, np.float64))
    away = float(difference(model.variable, model.variable(positions, cell, pbc), 0.4))
    assert float(out.energy[0]) == pytest.approx(away**2, rel=1e-12)
    step = 1e-5
    for atom in range(4):
        for axis in range(3):
            h = np.zeros((4, 3))
            h[atom, axis] = step
            slope = (energy(positions + h, cell) - energy(positions - h, cell)) / (2 * step)
            assert float(out.forces[atom, axis]) == pytest.approx(-float(slope), abs=1e-7)
    for i, j in ((0, 0), (0, 1), (1, 2), (2, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        up, down = (energy(positions + s * positions @ strain, cell + s * cell @ strain) for s in (1, -1))
        slope = float(up - down) / (2 * step) / atoms.get_volume()
        assert float(out.stress[0, i, j]) == pytest.approx(slope, abs=1e-8)
    if name != "own":
        np.testing.assert_allclose(out.forces.sum(0), 0, atol=1e-12)
        assert model.conserves_momentum


def test_an_umbrella_on_a_distance_is_exact():
    atoms = ase.Atoms("Ar2", [[0, 0, 0.2], [9.6, 0, 0.2]], cell=[10, 10, 10], pbc=True)
    out = Umbrella(Distance(0, 1), 1.0, 3.0).compute(Graph.from_ase(atoms, 1.0, np.float64))
    # Across the boundary they are 0.4 Å apart, and pushed away from each other.
    np.testing.assert_allclose(out.energy, [1.5 * 0.6**2], rtol=1e-12)
    np.testing.assert_allclose(out.forces, [[3 * 0.6, 0, 0], [-3 * 0.6, 0, 0]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.stress[0, 0, 0], -3 * 0.6 * 0.4 / 1000, rtol=1e-10)
    one = Umbrella(Dihedral(0, 1, 2, 3), 3.0, 1.0).energy(jnp.array([-3.0]))
    np.testing.assert_allclose(one, 0.5 * (2 * np.pi - 6) ** 2, rtol=1e-12)


def test_where_slopes_have_no_direction_they_are_zero():
    on_top = ase.Atoms("H4", np.zeros((4, 3)))
    in_line = ase.Atoms("H4", np.arange(4)[:, None] * [1.0, 0, 0])
    for atoms in (on_top, in_line):
        for variable in VARIABLES.values():
            assert np.isfinite(jax.grad(variable)(*where(atoms))).all(), variable
    assert float(VARIABLES["angle"](*where(in_line))) == pytest.approx(np.pi)


def test_hills_are_a_sum_of_gaussians():
    model = Hills(Distance(0, 1), jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[0.3, 0.2, 0.0]]), 0.4)
    values = np.array([1.3])
    expected = 0.3 * np.exp(-0.5 * (0.3 / 0.4) ** 2) + 0.2 * np.exp(-0.5 * (0.7 / 0.4) ** 2)
    assert float(model.energy(jnp.asarray(values))[0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_an_umbrella_in_a_simulation_is_its_well():
    """A ladder of centres, one per replica: two atoms bound by a spring alone swing around each."""
    atoms = ase.Atoms("ArAr", [[0, 0, 0], [3.0, 0, 0]])
    centers = np.linspace(2.0, 4.0, 16)
    model, kelvin = IdealGas() + Umbrella(Distance(0, 1), centers, 5.0), 50.0
    system, state = run.start(model, [atoms] * 16, Langevin(kelvin, 0.05), temperature=kelvin, dtype="float64")
    seen = run.rollout(
        model, Langevin(kelvin, 0.05), system, state, 2.0, 4000, every=20,
        observe=leignn.simulation.collective_variables.observed(Distance(0, 1)),
    ).seen[20:]  # fmt: skip
    # In three dimensions the density of the distance is r^2 exp(-k (r - r0)^2 / 2 kT).
    width = BOLTZMANN * kelvin / 5.0
    means, spread = centers + 2 * width * centers / (centers**2 + width), np.sqrt(width)
    assert np.abs(np.asarray(seen.mean(0)) - means).mean() < 0.1 * spread
    assert np.asarray(seen.std(0)).mean() == pytest.approx(spread, rel=0.05)


def test_an_umbrella_biases_the_engine_and_conserves():
    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.rattle(0.05, seed=0)
    bare = LennardJones(cutoff=5.0)
    model = bare + Umbrella(Distance(0, 1), 3.4, 0.5)
    done = leignn.simulate(
        model, atoms, "nve", steps=200, timestep=4.0, temperature=30.0, dtype="float64", save_every=100
    )
    assert np.ptp(done.thermo["conserved_eV"]) < 0.1 * np.ptp(done.thermo["potential_energy_eV"])
    plain = float(bare.compute(Graph.from_ase(atoms, 5.0, np.float64)).energy[0])
    away = atoms.get_distance(0, 1, mic=True) - 3.4
    assert done.trajectory.energy[0] == pytest.approx(plain + 0.25 * away**2, abs=1e-10)


def test_gradients_by_an_umbrella_through_a_rollout():
    atoms = ase.Atoms("ArAr", [[0, 0, 0], [3.0, 0, 0]])
    model = IdealGas() + Umbrella(Distance(0, 1), 3.5, 5.0)
    system, state = run.start(model, atoms, "nve", temperature=10.0, dtype="float64")

    @jax.jit
    def end(center):
        moved = IdealGas() + Umbrella(Distance(0, 1), center, 5.0)
        return run.rollout(moved, "nve", system, state, 5.0, 20).state.positions[0, 1, 0]

    slope = float(jax.jit(jax.grad(end))(3.5))
    assert slope == pytest.approx(float(end(3.5 + 1e-5) - end(3.5 - 1e-5)) / 2e-5, rel=1e-6)


def test_padding_of_other_replicas_is_not_pushed():
    positions = jnp.zeros((1, 6, 3)).at[0, :4].set(structure("open").positions)
    forces = pushed(lambda s: s**2, Distance(0, 3), positions, jnp.zeros((1, 3, 3)), jnp.zeros((1, 3), bool))[1]
    assert not np.asarray(forces[0, [1, 2, 4, 5]]).any()


# ----------------------------------------------------------------------------------------------------------------- refused


def absolute(positions, cell, pbc):
    return positions[0, 0]


REFUSED = {
    r"Distance\(first=0, second=9\) looks at atom 9, and the structure has atoms 0 to 3": lambda: Distance(0, 9),
    "must be a whole number of at least 0, not -1": lambda: Distance(-1, 2),
    "Angle needs different atoms": lambda: Angle(0, 1, 1),
    "power must be even, not 5": lambda: Coordination([0], [1], 1.0, 5),
    "first must be different atoms, one at least": lambda: Coordination([], [1], 1.0),
    r"must return one real number, not float32\[3\]": lambda: lambda positions, cell, pbc: positions[0],
    r"must return one real number, not int32\[\]": lambda: lambda positions, cell, pbc: jnp.asarray(3),
    "can't be called with": lambda: lambda positions: positions[0, 0],
    "is no finite number for this structure": lambda: lambda r, cell, pbc: jnp.sqrt(-1 - r[0, 0] ** 2),
    r"or its slope is no finite number": lambda: lambda r, cell, pbc: jnp.linalg.norm(r[0] - r[0]),
    "absolute.. changes from .* where atoms move by lattice vectors": lambda: absolute,
    "not the class Distance": lambda: Distance,
    "not 'distance'": lambda: "distance",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words):
    atoms = structure("triclinic")
    model = IdealGas()
    with pytest.raises(ConfigError, match=words):
        leignn.simulate(model + Umbrella(REFUSED[words](), 0.0, 1.0), atoms, "nve", steps=1, temperature=1.0)


def test_where_it_is_open_a_variable_may_be_of_positions():
    check_variable(Partial(absolute), structure("open"))
    atoms = ase.Atoms("Ar", [[100_000.5, 0, 0]])
    model = IdealGas() + Umbrella(absolute, 100_000.0, 1.0)
    assert not model.conserves_momentum
    out = leignn.simulate(model, atoms, "nve", steps=0, temperature=1.0, dtype="float64")
    assert out.trajectory.energy[0] == pytest.approx(0.125)
    assert HarmonicWells(1.0, atoms.positions).conserves_momentum is False


def test_a_position_that_is_no_number_is_no_distance():
    positions = jnp.array([[0.0, 0.0, 0.0], [jnp.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
    space = (positions, jnp.zeros((3, 3)), jnp.zeros(3, bool))
    assert np.isnan(Distance(0, 1)(*space))
    assert Distance(0, 2)(*space) == 0


@pytest.mark.parametrize("radius", [0.0, -2.0, float("nan")])
def test_a_radius_that_is_none(radius):
    with pytest.raises(ConfigError, match="radius"):
        Coordination((0,), (1,), radius)
