"""The calculator as ASE's users have it: many structures, copies, processes, threads, filters, constraints, NEB, files."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import ase.build
import ase.filters
import ase.io
import ase.phonons
import ase.vibrations
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixCom, FixedLine, FixedPlane, FixScaled, Hookean
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

import leignn_jax as leignn
from leignn_jax.errors import StructureError
from leignn_jax.properties.phonons import phonons
from leignn_jax.properties.vibrations import normal_modes

POTENTIAL = leignn.load_potential("si")
CONSTRAINTS = [
    FixAtoms([0, 1]),
    FixCom(),
    FixCartesian(0, (True, False, False)),
    FixScaled(0, (True, False, False)),
    FixedPlane(0, (1, 1, 0)),
    FixedLine(0, (1, 1, 0)),
    FixBondLengths([[0, 1]]),
    Hookean(0, 1, rt=2.0, k=1.0),
]


def silicon(repeat=1, seed=0):
    atoms = ase.build.bulk("Si", cubic=True).repeat((repeat, 1, 1))
    atoms.rattle(0.05, seed=seed)
    return atoms


def left_handed(atoms):
    """The same crystal with two cell vectors swapped."""
    atoms = atoms.copy()
    atoms.set_cell(np.asarray(atoms.cell)[[1, 0, 2]])
    assert atoms.cell.handedness == -1
    return atoms


def answer(calculator, atoms):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()


def same(one, other, atol=1e-5):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def work(item):
    """For a process or a thread."""
    return answer(*item)


@pytest.fixture(scope="module")
def frames():
    return [silicon(1 + i % 2, seed=i) for i in range(6)]


@pytest.fixture(scope="module")
def answers(frames):
    return [answer(POTENTIAL.calculator(), atoms) for atoms in frames]


def test_one_calculator_for_structures_of_different_sizes(frames, answers):
    calculator = POTENTIAL.calculator()
    for atoms, expected in zip(frames, answers, strict=True):
        same(answer(calculator, atoms), expected)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_is_a_calculator_of_its_own(how, frames, answers):
    calculator = POTENTIAL.calculator()
    answer(calculator, frames[0])
    other = how(calculator)
    same(answer(other, frames[1]), answers[1])
    assert len(calculator.atoms) == len(frames[0])
    same(answer(calculator, frames[0]), answers[0])
    whole = copy.deepcopy(silicon())
    whole.calc = calculator
    assert copy.deepcopy(whole).get_potential_energy() == whole.get_potential_energy()


def test_a_pickle_holds_no_list():
    calculator = POTENTIAL.calculator()
    before = len(pickle.dumps(calculator))
    answer(calculator, silicon(2))
    assert len(pickle.dumps(calculator)) < before + 10_000


def test_processes(frames, answers):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(work, [(POTENTIAL.calculator(), atoms) for atoms in frames[:2]])
    for one, expected in zip(found, answers, strict=False):
        same(one, expected)


@pytest.mark.parametrize("shared", [True, False])
def test_threads(shared, frames, answers):
    one = POTENTIAL.calculator()
    items = [(one if shared else POTENTIAL.calculator(), atoms) for atoms in frames] * 5
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(work, items), answers * 5, strict=True):
            same(found, expected)


def test_a_shared_calculator_answers_one_thread_at_a_time(frames, answers):
    """Threads that meet at the worst moment: between a calculation and the reading of its result."""
    calculator = POTENTIAL.calculator()
    calculate = calculator.calculate

    with ThreadPoolExecutor(1) as pool:
        waiting = []

        def slow(atoms=None, *rest):
            calculate(atoms, *rest)
            if not waiting:
                waiting.append(pool.submit(answer, calculator, frames[1]))
                with pytest.raises(TimeoutError):
                    waiting[0].result(timeout=0.3)

        calculator.calculate = slow
        atoms = frames[0].copy()
        assert calculator.get_property("energy", atoms) == pytest.approx(answers[0][0])
        same(waiting[0].result(timeout=60), answers[1])


def test_left_handed_cells(frames, answers):
    same(answer(POTENTIAL.calculator(), left_handed(frames[0])), answers[0])
    np.testing.assert_allclose(
        POTENTIAL.predict(left_handed(frames[0])).stress, POTENTIAL.predict(frames[0]).stress, atol=1e-6
    )


@pytest.mark.parametrize("cell", [lambda atoms: atoms, left_handed])
@pytest.mark.parametrize("name", ["FrechetCellFilter", "ExpCellFilter", "UnitCellFilter", "StrainFilter"])
@pytest.mark.filterwarnings("ignore:Use FrechetCellFilter")
def test_filters_relax_the_cell(name, cell):
    atoms = cell(ase.build.bulk("Si", cubic=True))
    atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
    atoms.calc = POTENTIAL.calculator(dtype="float64")
    optimizer = FIRE if name == "StrainFilter" else BFGS
    assert optimizer(getattr(ase.filters, name)(atoms), logfile=None).run(fmax=0.02, steps=100)
    assert atoms.get_volume() == pytest.approx(163.6, abs=0.2)
    assert np.abs(atoms.get_stress()).max() < 1e-3


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: type(one).__name__)
def test_constraints_of_ase_with_optimizers_of_ase(constraint):
    atoms = silicon()
    atoms.set_constraint(constraint)
    start = atoms.copy()
    atoms.calc = POTENTIAL.calculator()
    energy = atoms.get_potential_energy(apply_constraint=False)
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=3)
    assert atoms.get_potential_energy(apply_constraint=False) < energy
    if isinstance(constraint, FixAtoms):
        np.testing.assert_array_equal(atoms.positions[:2], start.positions[:2])
    if isinstance(constraint, FixBondLengths):
        assert atoms.get_distance(0, 1) == pytest.approx(start.get_distance(0, 1), abs=1e-6)


def test_a_symmetric_crystal_stays_symmetric():
    pytest.importorskip("spglib")
    from ase.constraints import FixSymmetry

    atoms = ase.build.bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell * [1.02, 1.02, 0.98], scale_atoms=True)
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.calc = POTENTIAL.calculator(dtype="float64")
    BFGS(ase.filters.FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=5)
    assert atoms.cell[0, 0] == pytest.approx(atoms.cell[1, 1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["each", "shared", "threads"])
def test_neb(kind):
    start = silicon(2)
    del start[0]
    end = start.copy()
    end.positions[0] = 0.0
    images = [start.copy() for _ in range(3)] + [end]
    one = POTENTIAL.calculator()
    for image in images:
        image.calc = one if kind == "shared" else POTENTIAL.calculator()
    neb = NEB(images, method="improvedtangent", allow_shared_calculator=kind == "shared", parallel=kind == "threads")
    neb.interpolate()
    BFGS(neb, logfile=None).run(fmax=0.01, steps=2)
    for image in images:
        assert image.get_potential_energy() == pytest.approx(POTENTIAL.predict(image).energy, abs=1e-4)


def test_forms_of_stress_and_energies_of_atoms():
    atoms = silicon()
    atoms.calc = POTENTIAL.calculator()
    found = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(found, POTENTIAL.predict(atoms).stress, atol=1e-7)
    np.testing.assert_allclose(found[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], atoms.get_stress(), atol=1e-12)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        ("get_stresses", "stresses"),
        ("get_dipole_moment", "dipole"),
        ("get_charges", "charges"),
        ("get_magnetic_moment", "magmom"),
    ],
)
def test_what_it_can_not_say_is_named(ask, name):
    atoms = silicon()
    atoms.calc = POTENTIAL.calculator()
    with pytest.raises(PropertyNotImplementedError, match=name):
        getattr(atoms, ask)()


def test_charges_and_magnetic_moments_change_nothing(answers, frames):
    atoms = frames[0].copy()
    atoms.set_initial_charges(np.linspace(-1, 1, len(atoms)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    same(answer(POTENTIAL.calculator(), atoms), answers[0])


def test_slabs_and_lone_atoms():
    slab = ase.build.diamond100("Si", (1, 1, 4), vacuum=6.0)
    slab.calc = POTENTIAL.calculator()
    assert slab.pbc.tolist() == [True, True, False]
    assert np.isfinite(slab.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three directions"):
        slab.get_stress()
    boxed = slab.copy()
    boxed.pbc = True
    boxed.calc = slab.calc
    # The vacuum is wider than the cutoff: neither energy nor forces know whether images are there.
    assert boxed.get_potential_energy() == pytest.approx(slab.get_potential_energy(), abs=1e-4)
    assert np.isfinite(boxed.get_stress()).all()
    alone = ase.Atoms("Si", calculator=slab.calc)
    assert alone.get_forces().tolist() == [[0.0, 0.0, 0.0]]
    with pytest.raises(StructureError, match="has no atoms"):
        ase.Atoms(calculator=POTENTIAL.calculator()).get_potential_energy()


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "json"])
def test_results_come_back_from_files(suffix, tmp_path):
    atoms = silicon()
    atoms.calc = POTENTIAL.calculator()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    ase.io.write(tmp_path / f"frames.{suffix}", atoms)
    (back,) = leignn.read_frames(tmp_path / f"frames.{suffix}")
    same((back.get_potential_energy(), back.get_forces(), back.get_stress()), (energy, forces, stress), 1e-8)


@pytest.mark.slow
def test_vibrations_of_ase(tmp_path):
    methane = leignn.load_potential("methane")
    atoms = leignn.relax(methane, ase.build.molecule("CH4"), max_force=1e-4, progress=False).atoms
    atoms.set_masses([12.011, 2.014, 2.014, 2.014, 2.014])
    ours = normal_modes(methane, atoms, displacement=0.005)
    atoms.calc = methane.calculator(dtype="float64")
    theirs = ase.vibrations.Vibrations(atoms, delta=0.005, name=str(tmp_path / "vibrations"))
    theirs.run()
    np.testing.assert_allclose(theirs.get_frequencies().real[-3:], ours.frequencies[-3:], rtol=5e-3)


@pytest.mark.slow
def test_phonons_of_phonopy_and_of_ase(tmp_path):
    silicon = ase.build.bulk("Si")
    waves = [[0.5, 0.5, 0.5], [0.5, 0.0, 0.5]]
    ours = phonons(POTENTIAL, silicon, supercell=2, displacement=0.01)
    calculator = POTENTIAL.calculator(dtype="float64")

    theirs = ase.phonons.Phonons(silicon, calculator, supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / "phonons"))
    theirs.run()
    theirs.read(acoustic=True)
    centre = theirs.band_structure([[0.0, 0.0, 0.0]], verbose=False)[0] * 1e3 / 4.135667696  # meV per THz
    np.testing.assert_allclose(centre[3:], ours.frequencies([0.0, 0.0, 0.0])[3:], rtol=1e-3)

    phonopy = pytest.importorskip("phonopy")
    cell = phonopy.structure.atoms.PhonopyAtoms(
        numbers=silicon.numbers, cell=silicon.cell.array, scaled_positions=silicon.get_scaled_positions()
    )
    other = phonopy.Phonopy(cell, supercell_matrix=np.eye(3) * 2, primitive_matrix=np.eye(3))
    other.generate_displacements(distance=0.01)
    forces = []
    for one in other.supercells_with_displacements:
        atoms = ase.Atoms(one.symbols, cell=one.cell, scaled_positions=one.scaled_positions, pbc=True)
        forces.append(answer(calculator, atoms)[1])
    other.forces = forces
    other.produce_force_constants()
    other.run_qpoints(waves)
    # At these waves the supercell is exact.
    np.testing.assert_allclose(np.asarray(other.qpoints.frequencies), ours.frequencies(waves), atol=0.03)


def test_a_structure_that_was_refused_leaves_no_trace():
    atoms = silicon()
    atoms.calc = POTENTIAL.calculator()
    atoms.get_potential_energy()
    overlapping = atoms.copy()
    overlapping.positions[0] += 10 * overlapping.cell[0]
    overlapping.positions[3] = overlapping.positions[2]
    overlapping.calc = atoms.calc
    with pytest.raises(StructureError):
        overlapping.get_potential_energy()
    moved = atoms.copy()
    moved.positions[0] += 0.01
    moved.calc = atoms.calc
    assert moved.get_potential_energy() == pytest.approx(POTENTIAL.predict(moved).energy, abs=1e-4)


def test_a_calculator_without_atoms_says_so():
    with pytest.raises(StructureError, match="no structure yet"):
        POTENTIAL.calculator().get_potential_energy()
