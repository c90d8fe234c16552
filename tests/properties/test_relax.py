"""Relaxation: minima found by scans and by ASE, batches, pressure, held atoms, lists that grow, structures that get lost."""

import json
import logging
from typing import Any, ClassVar

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from flax import struct
from scipy.optimize import minimize_scalar

import leignn_jax
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.properties.relax import relax
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

MODEL = LennardJones(cutoff=6.0)


@jax.jit
def _answer(graph):
    out = MODEL.compute(graph)
    return out.energy[0], out.forces, out.stress[0]


def answer(atoms):
    """Energy, forces and stress on the host, by the list that training uses, padded so that little is compiled."""
    graph = Graph.from_ase(atoms, MODEL.cutoff, np.float64).pad(pairs=900, neighbors=220)
    with jax.enable_x64(True):
        return tuple(np.asarray(x) for x in _answer(graph))


class Answers(Calculator):
    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces, stress = answer(self.atoms)
        self.results = {"energy": float(energy), "forces": forces, "stress": full_3x3_to_voigt_6_stress(stress)}


def distorted(seed=0, a=5.35):
    rng = np.random.default_rng(seed)
    atoms = bulk("Ar", cubic=True, a=a)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.04 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def lattice():
    """Lattice constant and energy per atom of the fcc crystal, by a scan."""
    found = minimize_scalar(
        lambda a: float(answer(bulk("Ar", cubic=True, a=a))[0]) / 4, bounds=(5.0, 5.7), options={"xatol": 1e-9}
    )
    return found.x, found.fun


@pytest.fixture(scope="module")
def full():
    """A crystal of 4 atoms and one of 1, both distorted, side by side."""
    single = bulk("Ar", a=5.6)
    single.set_cell(single.cell.array @ np.array([[1.03, 0, 0], [0.02, 0.98, 0], [0, 0.03, 1]]), scale_atoms=True)
    return relax(MODEL, [distorted(), single], cell="full", max_force=1e-4, max_stress=1e-4)


def test_full_relaxation_finds_the_crystal_of_a_scan(full, lattice):
    a, energy = lattice
    assert full.converged.all()
    assert full.reason == [None, None]
    np.testing.assert_allclose(full.energy / [4, 1], energy, atol=2e-8)
    for atoms, count in zip(full.atoms, (4, 1), strict=True):
        assert atoms.get_volume() / count == pytest.approx(a**3 / 4, rel=1e-4)
    np.testing.assert_allclose(full.atoms[0].cell.cellpar(), [a, a, a, 90, 90, 90], rtol=2e-3)


def test_history_and_results_are_those_of_the_structures(full):
    for r, start in enumerate([distorted(), None]):
        history, steps = full.history[r], full.steps[r]
        assert {len(v) for v in history.values()} == {steps + 1}
        energy, forces, stress = answer(full.atoms[r])
        assert full.atoms[r].get_potential_energy() == pytest.approx(float(energy), abs=1e-10)
        np.testing.assert_allclose(full.atoms[r].get_forces(), forces, atol=1e-9)
        np.testing.assert_allclose(full.atoms[r].get_stress(voigt=False), stress, atol=1e-10)
        assert history["max_force"][-1] <= 1e-4
        assert history["max_stress"][-1] == pytest.approx(np.abs(stress).max() * 160.21766, abs=1e-7)
        assert history["energy"][-1] == full.energy[r]
        # It stood still only once it had arrived.
        assert ((history["max_force"][:-1] > 1e-4) | (history["max_stress"][:-1] > 1e-4)).all()
        if start is not None:
            assert history["energy"][0] == pytest.approx(float(answer(start)[0]), abs=1e-10)
            assert history["volume"][0] == pytest.approx(start.get_volume())


def test_ase_finds_the_same_minimum(full):
    other = distorted()
    other.calc = Answers()
    assert FIRE(FrechetCellFilter(other), logfile=None).run(fmax=1e-3, steps=500)
    assert other.get_potential_energy() == pytest.approx(full.energy[0], abs=1e-5)
    assert other.get_volume() == pytest.approx(full.atoms[0].get_volume(), rel=1e-3)


@pytest.mark.slow
def test_isotropic_under_pressure_and_a_list_that_must_grow(caplog):
    pressure = 2.0
    wide = bulk("Ar", cubic=True, a=5.8)
    with caplog.at_level(logging.INFO, "leignn_jax"):
        found = relax(MODEL, wide, cell="isotropic", pressure=pressure, max_stress=1e-3, skin=0.3)
    assert any("enlarged" in line for line in caplog.messages)
    assert found.converged
    np.testing.assert_allclose(found.atoms.get_stress(), [-pressure / 160.21766] * 3 + [0] * 3, atol=1e-5)
    # dH/da = 0 by a scan of the enthalpy.
    work = pressure / 160.21766
    a = minimize_scalar(
        lambda a: float(answer(bulk("Ar", cubic=True, a=a))[0]) + work * a**3,
        bounds=(4.2, 5.6),
        options={"xatol": 1e-9},
    ).x
    assert found.atoms.cell.lengths() == pytest.approx([a] * 3, rel=5e-5)
    assert found.energy == pytest.approx(float(answer(found.atoms)[0]), abs=1e-9)


def test_held_atoms_keep_their_place_in_the_cell():
    atoms = distorted(3)
    atoms.set_constraint(FixAtoms([0, 2]))
    found = relax(MODEL, atoms, cell="full", max_force=1e-3, max_stress=0.05)
    assert found.converged
    assert np.abs(found.atoms.get_forces(apply_constraint=False)[[0, 2]]).max() > 1e-2
    before, after = atoms.get_scaled_positions(wrap=False), found.atoms.get_scaled_positions(wrap=False)
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-12)
    assert np.abs(after[[1, 3]] - before[[1, 3]]).max() > 1e-3
    assert len(found.atoms.constraints) == 1


def test_clusters_side_by_side_take_the_steps_that_they_take_alone():
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.5]])
    four = Atoms("Ar4", [[0, 0, 0], [3.6, 0, 0], [0, 3.7, 0.2], [1.7, 1.5, 3.0]])
    four.set_constraint(FixAtoms([0]))
    together = relax(MODEL, [dimer, four], max_force=1e-4)
    assert together.converged.all()
    assert together.steps[0] != together.steps[1]
    alone = relax(MODEL, dimer, max_force=1e-4)
    assert alone.steps == together.steps[0]
    np.testing.assert_allclose(alone.atoms.positions, together.atoms[0].positions, atol=1e-9)
    np.testing.assert_array_equal(together.atoms[1].positions[0], [0, 0, 0])
    # A tetrahedron: six bonds of the dimer.
    assert together.energy[1] == pytest.approx(6 * together.energy[0], rel=1e-6)
    assert not together.atoms[1].cell.array.any()


def test_wells_float32_files_and_going_on(tmp_path, caplog):
    centers = np.array([[0.0, 0, 0], [5, 0, 0], [0, 5, 0]])
    model = HarmonicWells(stiffness=3.0, centers=centers)
    start = Atoms("H3", centers + np.array([[0.3, 0, 0], [0, -0.2, 0], [0.1, 0.1, 0.4]]))
    short = relax(model, start, steps=4, dtype="float32")
    assert not short.converged
    assert short.steps == 4
    assert "out of steps after step 4" in short.reason
    assert any("did not converge" in line for line in caplog.messages)
    found = relax(model, [short.atoms], dtype="float32", out=tmp_path)
    assert found.converged.tolist() == [True]
    np.testing.assert_allclose(found.atoms[0].positions, centers, atol=0.01 / 3)
    np.testing.assert_allclose(ase.io.read(tmp_path / "relaxed.extxyz").positions, found.atoms[0].positions, atol=1e-7)
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts == [{"energy_eV": found.energy[0], "converged": True, "steps": found.steps[0], "reason": None}]
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "structure,step,energy_eV,max_force_eV_per_A,max_stress_GPa,volume_A3"
    assert len(lines) == found.steps[0] + 2


@struct.dataclass
class Cliff:
    """A slope along x that ends in no number at all, in structures of one atom; wells for others."""

    edge: Any = 1.0
    cutoff: float = struct.field(pytree_node=False, default=1.0)

    def compute(self, graph):
        wells = HarmonicWells(1.0, jnp.zeros_like(graph.positions)).compute(graph)
        x = graph.positions[:, 0]
        lost = (graph.numbers == 2) & (x > self.edge)
        push = jnp.where((graph.numbers == 2)[:, None], jnp.eye(3)[0], wells.forces)
        nothing = graph.sum_atoms(lost.astype(x.dtype)) > 0
        return wells._replace(energy=jnp.where(nothing, jnp.nan, wells.energy), forces=push)


def test_a_structure_that_falls_off_is_named_and_the_others_go_on(caplog):
    lost, well = Atoms("He", [[0.5, 0, 0]]), Atoms("H2", [[0.1, 0, 0], [0, 0.2, 0]])
    found = relax(Cliff(), [lost, well, Atoms("He", [[2.0, 0, 0]])], dtype="float32")
    assert found.converged.tolist() == [False, True, False]
    assert "no finite numbers" in found.reason[0]
    assert any(line.startswith("Structure 0 did not converge") for line in caplog.messages)
    assert 0.5 < found.atoms[0].positions[0, 0] <= 1.0
    np.testing.assert_allclose(found.atoms[1].positions, 0, atol=0.01)
    assert found.steps[2] == 0
    assert found.atoms[2].calc is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "cubic"}, "isotropic"),
        ({"cell": True}, "isotropic"),
        ({"pressure": 1.0}, "cell"),
        ({"max_force": 0.0}, "max_force"),
        ({"max_stress": np.nan}, "max_stress"),
        ({"steps": -1}, "steps"),
        ({"dtype": "float16"}, "dtype"),
        ({"optimizer": "bfgs"}, "fire"),
        ({"cell": "full"}, "Structure 0 is not periodic"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        relax(MODEL, Atoms("Ar2", [[0, 0, 0], [0, 0, 3.5]]), **settings)
    with pytest.raises(ConfigError, match="one structure or more"):
        relax(MODEL, [])


def test_it_is_found_at_the_top():
    assert leignn_jax.relax is relax


@pytest.mark.slow
def test_silicon_agrees_with_ase():
    potential = leignn_jax.load_potential("si")
    start = bulk("Si", "diamond", a=5.6)
    found = relax(potential, start, cell="full", max_force=1e-3, max_stress=1e-2)
    other = start.copy()
    other.calc = potential.calculator(dtype="float64")
    assert FIRE(FrechetCellFilter(other), logfile=None).run(fmax=1e-3, steps=300)
    assert found.converged
    assert found.energy == pytest.approx(other.get_potential_energy(), abs=1e-5)
    assert found.atoms.get_volume() == pytest.approx(other.get_volume(), rel=1e-3)
