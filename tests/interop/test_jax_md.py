"""The jax-md hook: energies and forces as predicted, in every form of box; jax-md's integrator gives our trajectory."""

import ase
import ase.build
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")


@pytest.fixture(scope="module")
def potential():
    config = leignn.preset("small", elements=("Si",), features=8, layers=1, num_radial=4, cutoff=4.0)
    return leignn.Potential.create(config, jax.random.key(0), reference_energies={"Si": -100.0})


@pytest.fixture(scope="module")
def silicon():
    # Triclinic and smaller than the cutoff.
    atoms = ase.build.bulk("Si")
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.mark.parametrize("fractional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_energy_and_forces_are_those_of_predict(potential, silicon, fractional):
    cell = np.asarray(silicon.cell)
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, silicon.numbers, cell.T, fractional_coordinates=fractional)
    R = jnp.asarray(silicon.get_scaled_positions(wrap=False) if fractional else silicon.positions)
    neighbors = neighbor_fn.allocate(R)
    assert not bool(neighbors.did_buffer_overflow)
    expected = potential.predict(silicon, dtype="float64")
    energy, gradient = jax.jit(jax.value_and_grad(energy_fn))(R, neighbors)
    np.testing.assert_allclose(energy, expected.energy + 200.0, rtol=1e-9)
    np.testing.assert_allclose(-gradient, expected.forces, atol=1e-9)
    # An atom that was wrapped to the other side is the same atom.
    jump = np.array([1.0, -1.0, 0.0]) if fractional else cell[0] - cell[1]
    np.testing.assert_allclose(energy_fn(R.at[1].add(jump), neighbors), energy, rtol=1e-10)
    updated = neighbors.update(R.at[1].add(jump))
    assert int(updated.list.renewals) == int(neighbors.list.renewals)


@pytest.mark.slow
def test_perturbation_and_params(potential, silicon):
    cell = np.asarray(silicon.cell)
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, silicon.numbers, cell.T)
    R = jnp.asarray(silicon.positions)
    neighbors = neighbor_fn.allocate(R)

    def strained(strain):
        return energy_fn(R, neighbors, perturbation=jnp.eye(3) + strain)

    volume = silicon.get_volume()
    stress = jax.grad(strained)(jnp.zeros((3, 3))) / volume
    np.testing.assert_allclose(stress, potential.predict(silicon, dtype="float64").stress, atol=1e-9)
    gradient = jax.grad(lambda params: energy_fn(R, neighbors, params=params))(potential.params)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 0


@pytest.mark.slow
def test_boxes_and_molecules(potential):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    expected = potential.predict(atoms, dtype="float64").energy + 800.0
    R = jnp.asarray(atoms.positions)
    for box in (5.43, np.full(3, 5.43), 5.43 * np.eye(3)):
        neighbor_fn, energy_fn = leignn.neighbor_list(potential, atoms.numbers, box)
        np.testing.assert_allclose(energy_fn(R, neighbor_fn.allocate(R)), expected, rtol=1e-9)
    molecule = ase.Atoms("Si3", positions=[[0, 0, 0], [2.3, 0, 0], [0, 2.4, 0]])
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, molecule.numbers)
    R = jnp.asarray(molecule.positions)
    found = energy_fn(R, neighbor_fn.allocate(R))
    np.testing.assert_allclose(found, potential.predict(molecule, dtype="float64").energy + 300.0, rtol=1e-9)


@pytest.mark.slow
def test_integrator_of_jax_md_gives_our_trajectory(potential):
    from jax_md import simulate, space

    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    rng = np.random.default_rng(0)
    momenta = rng.normal(size=(8, 3))
    atoms.set_momenta(momenta - momenta.mean(0))
    ours = leignn.simulate(
        potential, atoms, "nve", steps=20, timestep=1.0, save_every=20, log_every=20, dtype="float64", progress=False
    )
    box = np.asarray(atoms.cell).T
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, atoms.numbers, box)
    _, shift = space.periodic_general(box, fractional_coordinates=False)
    init, apply = simulate.nve(energy_fn, shift, ase.units.fs)
    R = jnp.asarray(atoms.positions)
    neighbors = neighbor_fn.allocate(R)
    mass = jnp.asarray(atoms.get_masses())[:, None]
    state = init(jax.random.key(0), R, 0.0, mass=mass, momenta=jnp.asarray(atoms.get_momenta()), neighbor=neighbors)

    @jax.jit
    def step(state, neighbors):
        neighbors = neighbors.update(state.position)
        return apply(state, neighbor=neighbors), neighbors

    for _ in range(20):
        state, neighbors = step(state, neighbors)
    difference = np.asarray(state.position) - ours.trajectory.positions[-1]
    difference -= np.round(difference / 5.43) * 5.43
    np.testing.assert_allclose(difference, 0.0, atol=1e-8)


def test_what_it_refuses(potential, silicon):
    with pytest.raises(ConfigError, match="need a box"):
        leignn.neighbor_list(potential, silicon.numbers, fractional_coordinates=True)
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, silicon.numbers, np.asarray(silicon.cell).T)
    R = jnp.asarray(silicon.positions)
    with pytest.raises(ConfigError, match="did you mean 'perturbation'"):
        energy_fn(R, neighbor_fn.allocate(R), pertubation=1.0)
    with pytest.raises(ElementError, match="has not seen"):
        leignn.neighbor_list(potential, [6, 6])


def test_an_open_direction_may_lie_anywhere(potential):
    """Here it is the third vector, along x, and the periodic ones lie where the unit matrix has the others."""
    atoms = ase.Atoms(
        "Si2", [[0, 0, 0], [1.2, 1.4, 1.6]], cell=[[0, 5, 0], [0, 0, 5], [12, 0, 0]], pbc=(True, True, False)
    )
    cell = np.asarray(atoms.cell)
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, atoms.numbers, cell.T, pbc=atoms.pbc)
    neighbors = neighbor_fn.allocate(atoms.positions)
    expected = potential.predict(atoms, dtype="float64").energy + 200.0
    for jump in (0.0, cell[0] - cell[1]):
        R = jnp.asarray(atoms.positions).at[1].add(jump)
        assert float(energy_fn(R, neighbors)) == pytest.approx(expected, rel=1e-9)
    assert neighbors.idx.shape[0] == 2
    np.testing.assert_array_equal(neighbors.reference_position, atoms.positions)


def test_positions_that_do_not_fit_are_told(potential, silicon):
    neighbor_fn, _ = leignn.neighbor_list(potential, silicon.numbers, np.asarray(silicon.cell).T)
    with pytest.raises(ConfigError, match=r"R must have the shape \[2, 3\]"):
        neighbor_fn.allocate(jnp.zeros((3, 3)))
    whole = neighbor_fn.allocate(np.array([[0, 0, 0], [1, 1, 1]]))
    np.testing.assert_allclose(whole.list.cell, silicon.cell)
