"""Structures far from the origin are the same structures: prediction, calculator, evaluation, relaxation in float32."""

import ase.build
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import leignn_jax as leignn
from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph

pytestmark = pytest.mark.usefixtures("fast_compiles")
DIRECTION = np.array([1.0, 0.7, -0.3])
# At 1e9 Å the user's own float64 positions are rounded by 1e-7 Å.
FORCES, ENERGY, STRESS = 3e-5, 5e-6, 3e-7  # eV/Å, eV, eV/Å^3


@pytest.fixture(scope="module")
def potential():
    return leignn.load_potential("si")


def structure(kind):
    """Silicon as a crystal in a skew cell, as a slab, as a cluster."""
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    if kind == "crystal":
        atoms.set_cell(atoms.cell @ [[1, 0, 0], [0.1, 1, 0], [0, -0.05, 1]], scale_atoms=True)
    if kind == "slab":
        atoms.cell[2] *= 3
        atoms.pbc = (True, True, False)
    if kind == "cluster":
        atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    return atoms


def assert_same(found, expected):
    np.testing.assert_allclose(found.energy, expected.energy, rtol=0, atol=ENERGY)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=FORCES)
    np.testing.assert_allclose(found.stress, expected.stress, rtol=0, atol=STRESS)


@pytest.mark.parametrize("distance", [0.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("kind", ["crystal", "slab", "cluster"])
def test_prediction_is_the_same_wherever_the_structure_is(potential, kind, distance):
    atoms = structure(kind)
    expected = potential.predict(atoms)
    moved, each = atoms.copy(), atoms.copy()
    moved.positions += distance * DIRECTION
    most = int(distance / 5)
    whole = np.random.default_rng(0).integers(-most, most + 1, (len(atoms), 3)) * atoms.pbc
    each.positions += whole @ atoms.cell.array
    for found in potential.predict([moved, each]):
        assert_same(found, expected)


def test_graphs_of_ordinary_structures_keep_their_positions():
    for kind in ("crystal", "slab", "cluster"):
        atoms = structure(kind)
        graph = Graph.from_ase(atoms, 4.0)
        np.testing.assert_array_equal(graph.positions, atoms.positions.astype(np.float32))


@pytest.mark.parametrize("kind", ["crystal", "slab", "cluster"])
def test_calculator_follows_atoms_far_away(potential, kind):
    near, far = structure(kind), structure(kind)
    far.positions += 1e9 * DIRECTION
    if far.pbc[0]:
        far.positions[3] += 10**8 * far.cell[0]
    near.calc, far.calc = potential.calculator(), potential.calculator()
    listed = None
    for _ in range(4):
        assert np.abs(far.get_forces() - near.get_forces()).max() < FORCES
        assert abs(far.get_potential_energy() - near.get_potential_energy()) < ENERGY
        # All steps with one list.
        assert listed is None or far.calc._listed is listed
        listed = far.calc._listed
        for atoms in (near, far):
            atoms.positions[2] += [0.03, -0.02, 0.01]
    for atoms in (near, far):
        atoms.positions[5] += [0.4, 0, 0]
    assert np.abs(far.get_forces() - near.get_forces()).max() < FORCES
    assert far.calc._listed is not listed


def test_evaluation_of_frames_far_away(potential):
    frames = []
    for distance in (0.0, 1e5, 1e9):
        atoms = structure("crystal")
        label = potential.predict(atoms, dtype="float64")
        atoms.positions += distance * DIRECTION
        atoms.calc = SinglePointCalculator(atoms, energy=label.energy, forces=label.forces, stress=label.stress)
        frames.append(atoms)
    metrics = leignn.evaluate(potential, frames).metrics
    assert metrics["energy_mae_mev_per_atom"] < 1e-3
    assert metrics["forces_rmse_mev_per_angstrom"] < 2e-2
    assert metrics["stress_mae_mev_per_angstrom3"] < 1e-3


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        pytest.param("crystal", "full", marks=pytest.mark.slow),
        pytest.param("crystal", False, marks=pytest.mark.slow),
        pytest.param("cluster", False, marks=pytest.mark.slow),
    ],
)
def test_relaxation_far_away(potential, kind, cell):
    near, far = structure(kind), structure(kind)
    far.positions += 1e6 * DIRECTION
    if kind == "crystal":
        far.positions[3] += 10**5 * far.cell[0]
    settings = {"cell": cell, "max_force": 0.02, "steps": 30, "dtype": "float32"}
    one, other = leignn.relax(potential, near, **settings), leignn.relax(potential, far, **settings)
    assert other.steps == one.steps
    np.testing.assert_allclose(other.energy, one.energy, atol=1e-4)
    np.testing.assert_allclose(other.atoms.cell, one.atoms.cell, atol=1e-4)
    periodic = kind == "crystal"
    apart = [relaxed.atoms.get_all_distances(mic=periodic) for relaxed in (one, other)]
    np.testing.assert_allclose(apart[1], apart[0], atol=1e-4)
    # What was taken off comes back, in the cell as it has become.
    stretch = np.linalg.solve(far.cell.array, other.atoms.cell.array) if cell else np.eye(3)
    assert np.abs(other.atoms.positions - far.positions @ stretch).max() < 2.0


def test_too_far_for_any_number_is_refused_by_name(potential):
    atoms = structure("cluster")
    atoms.positions[6] = 1e30
    with pytest.raises(StructureError, match="Atom 6 is at"):
        potential.predict(atoms)
    atoms.calc = potential.calculator()
    with pytest.raises(StructureError, match="Atom 6 is at"):
        atoms.get_forces()
    with pytest.raises(StructureError, match="Atom 6 is at"):
        leignn.simulate(potential, atoms, steps=1, temperature=300.0)
