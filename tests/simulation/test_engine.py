"""Whole simulations: what is written, what goes on from where it was, and what happens when something breaks."""

import logging
import re
import signal

import ase.build
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from argon_runs import argon, run, same_atoms, same_frames
from flax import struct

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError, SimulationError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.potential import Prediction
from leignn_jax.simulation import chunks, dynamics, folder
from leignn_jax.simulation.engine import make_ensemble
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover, Ramp
from leignn_jax.simulation.simple_models import HarmonicWells
from leignn_jax.simulation.thermo import read_thermo
from leignn_jax.simulation.trajectory import read_trajectory

pytestmark = pytest.mark.usefixtures("fast_compiles", "roomy")


# ----------------------------------------------------------------------------------------------------------- lists, cells


def test_lists_too_small_change_nothing(roomy, monkeypatch, caplog):
    """Neither at the start, whose forces come from them, nor later."""
    whole = run("csvr")

    def small(*where):
        sizes = roomy(*where)
        return sizes._replace(neighbors=int(sizes.neighbors * 0.7), pairs=int(sizes.pairs * 0.8))

    monkeypatch.setattr(dynamics, "plan_sizes", small)
    compiled = chunks._chunk._cache_size()
    with caplog.at_level(logging.INFO, "leignn_jax"):
        again = run("csvr")
    enlarged = caplog.text.count("enlarged")
    assert enlarged >= 1
    assert chunks._chunk._cache_size() == compiled + 1 + enlarged
    same_atoms(again.atoms, whole.atoms, 1e-11)
    same_frames(again.trajectory, whole.trajectory, 1e-11)
    np.testing.assert_allclose(again.thermo["conserved_eV"], whole.thermo["conserved_eV"], rtol=0, atol=1e-11)
    # And not without end.
    monkeypatch.setattr(chunks, "_GROWTHS", 1)
    with pytest.raises(SimulationError, match="lists grew 1 times within one chunk: the system collapses"):
        run("csvr")


def test_a_collapsing_cell_ends_in_words(tmp_path):
    crush = CellRescaling(40.0, 1000.0, compressibility=0.5, pressure_time_constant=1000.0, every=5)
    end = run(crush, out=tmp_path, steps=400)
    assert re.fullmatch(
        r"step \d+: .* farther than max_step in one step|step \d+: it is hotter .*", end.summary["stopped"]
    )
    assert not end.summary["finished"]
    assert read_trajectory(tmp_path / "trajectory.h5").step[0] == 0
    thermo = read_thermo(tmp_path / "thermo.csv")
    assert np.isfinite(thermo["potential_energy_eV"]).all()


# ------------------------------------------------------------------------------------------------------ what breaks


@struct.dataclass
class Brittle(HarmonicWells):
    """Wells that say NaN for the whole structure when an atom is farther than 1 Å away, as a network may."""

    def compute(self, graph: Graph) -> Prediction:
        """As the wells, or no numbers."""
        centers = jnp.tile(jnp.asarray(self.centers), (graph.positions.shape[0] // len(self.centers), 1))
        far = ((graph.positions - centers) ** 2).sum(-1) > 1.0
        out = super().compute(graph)
        # Sums of a network go through all structures of a graph: one that is no number makes the others none.
        poison = graph.spread(graph.sum_atoms(jnp.where(far, jnp.nan, 0.0)))
        return out._replace(energy=out.energy + graph.sum_atoms(poison), forces=out.forces + poison[:, None])


def wells(energies):
    """Structures of two atoms in wells; the first is kicked by a kinetic energy [eV] that takes it sqrt(2 E / k) away."""
    atoms = ase.Atoms("ArAr", [[0, 0, 0], [8, 0, 0]])
    model = Brittle(1.0, atoms.positions.copy())
    structures = []
    for energy in energies:
        one = atoms.copy()
        one.set_velocities([[0, np.sqrt(2 * energy / one.get_masses()[0]), 0], [0, 0, 0.001]])
        structures.append(one)
    return model, structures


def test_no_number_stops_and_what_is_good_is_kept(tmp_path, caplog):
    model, (atoms,) = wells([0.8])
    with caplog.at_level(logging.WARNING, "leignn_jax"):
        end = run("nve", atoms, model, out=tmp_path, steps=400, max_temperature=1e6)
    # |x| = sqrt(1.6) sin(w t) leaves 1 Å at asin(1 / sqrt(1.6)) / w.
    rate = np.sqrt(1.0 / atoms.get_masses()[0]) * ase.units.fs
    step = np.floor(np.arcsin(1 / np.sqrt(1.6)) / rate / 4.0)
    assert end.summary["stopped"] == f"step {int(step)}: energy or positions are no finite numbers"
    assert not end.summary["finished"]
    assert "The simulation stopped at step" in caplog.text
    assert np.isfinite(end.thermo["potential_energy_eV"]).all()
    assert end.thermo["step"][-1] <= step
    assert end.thermo["step"].tolist() == list(range(0, int(step) + 1, 10))
    assert end.trajectory.step.tolist() == list(range(0, int(step) + 1, 20))
    # The last good structure, still with its velocities: potential and kinetic energy add up to what was put in.
    away = end.atoms.positions - atoms.positions
    assert 0.9 < np.abs(away).max() < 1.0
    total = 0.5 * (away**2).sum() + end.atoms.get_kinetic_energy()
    assert total == pytest.approx(atoms.get_kinetic_energy(), rel=1e-2)
    again = run("nve", atoms, model, out=tmp_path, steps=500, resume=True, max_temperature=1e6)
    assert again.summary["stopped"] == end.summary["stopped"]
    same_atoms(again.atoms, end.atoms)


def test_one_broken_replica_stops_and_the_others_go_on(tmp_path):
    """Also where its NaN goes through the sums of a network into the energies of all."""
    model, structures = wells([0.1, 0.8, 0.2])
    compiled = chunks._chunk._cache_size()
    more = {"max_temperature": 1e6, "steps": 300}
    end = run("nve", structures, model, out=tmp_path, **more)
    assert chunks._chunk._cache_size() == compiled + 1
    assert [why is None for why in end.summary["stopped"]] == [True, False, True]
    assert "no finite numbers" in end.summary["stopped"][1]
    for r in (0, 2):
        alone = run("nve", structures[r], model, **more)
        same_atoms(end.atoms[r], alone.atoms, 1e-12)
        assert end.trajectory[r].step.tolist() == alone.trajectory.step.tolist()
        np.testing.assert_allclose(end.thermo[r]["conserved_eV"], alone.thermo["conserved_eV"], rtol=0, atol=1e-12)
    broken = run("nve", structures[1], model, **more)
    assert broken.summary["stopped"] == end.summary["stopped"][1]
    same_atoms(end.atoms[1], broken.atoms, 1e-12)
    again = run("nve", structures, model, out=tmp_path, **more | {"steps": 320}, resume=True)
    assert again.summary["stopped"] == end.summary["stopped"]


@pytest.fixture
def dimer():
    """Two argon atoms that part at 0.01 Å/fs; nothing holds them beyond the cutoff."""
    atoms = ase.Atoms("Ar2", [[0, 0, 0], [6.5, 0, 0]])
    atoms.set_velocities(np.array([[-0.005, 0, 0], [0.005, 0, 0]]) / ase.units.fs)
    return atoms


def test_limits(dimer):
    apart = run("nve", dimer, max_distance=5.0)
    # From 3.25 Å at 0.02 Å a step: beyond 5 Å after step 87, 88 is the first.
    assert apart.summary["stopped"] is None
    apart = run("nve", dimer, max_distance=5.0, steps=200)
    assert apart.summary["stopped"] == "step 87: an atom is farther than max_distance from where the system was"
    np.testing.assert_allclose(np.abs(apart.atoms.positions[:, 0] - 3.25), 3.25 + 87 * 0.02, atol=1e-9)
    hot = run("nve", dimer, max_temperature=10.0)
    assert hot.summary["stopped"] == "step 0: it is hotter than max_temperature"
    fast = run("nve", dimer, max_step=0.019)
    assert fast.summary["stopped"] == "step 0: an atom moved farther than max_step in one step"
    for end in (hot, fast):
        assert end.thermo["step"].tolist() == [0]
        same_atoms(end.atoms, dimer)


# ------------------------------------------------------------------------------------------------- several side by side


def test_a_replica_does_not_depend_on_how_many_there_are():
    """Replica r is the same in runs of any number of replicas of one seed; the first is the run of one structure."""
    three, two, one = run("langevin", replicas=3), run("langevin", replicas=2), run("langevin")
    for r in range(2):
        same_atoms(three.atoms[r], two.atoms[r], 1e-12)
    same_atoms(three.atoms[0], one.atoms, 1e-12)
    same_frames(three.trajectory[0], one.trajectory, 1e-12)
    assert np.abs(three.atoms[0].positions - three.atoms[1].positions).max() > 0.01
    other = run("langevin", replicas=2, seed=4)
    assert np.abs(other.atoms[0].positions - two.atoms[0].positions).max() > 0.01


def test_structures_of_different_sizes_side_by_side_are_as_alone(dimer):
    """Also their random numbers: those of a structure do not depend on the padding after it."""
    structures = [dimer, argon()]
    together = run("langevin", structures)
    assert together.summary["atoms"] == [2, 4]
    same_atoms(together.atoms[0], run("langevin", dimer).atoms, 1e-12)
    # The second structure draws from the second seed: it is the second of two of its kind.
    same_atoms(together.atoms[1], run("langevin", replicas=2).atoms[1], 1e-12)
    np.testing.assert_array_equal(together.atoms[0].cell, 0.0)
    assert np.isnan(together.thermo[0]["pressure_GPa"]).all()
    assert np.isfinite(together.thermo[1]["pressure_GPa"]).all()


def test_velocities_are_drawn_where_there_are_none(dimer):
    still = dimer.copy()
    still.set_velocities(np.zeros((2, 3)))
    end = run("nve", [dimer, still], steps=0)
    same_atoms(end.atoms[0], dimer)
    assert np.abs(end.atoms[1].get_velocities()).max() > 0
    with pytest.raises(ConfigError, match="Structure 1 has no velocities"):
        run("nve", [dimer, still], temperature=None)


# --------------------------------------------------------------------------------------------------------- a potential


@pytest.mark.slow
def test_logged_energies_are_those_of_the_potential(tmp_path):
    config = leignn.LEIGNNConfig(elements=("Si", "Ge"), features=8, layers=2, num_radial=4, cutoff=4.0)
    potential = leignn.Potential.create(
        config, jax.random.key(3), scale=3.0, reference_energies={"Si": -4000.0, "Ge": -9000.0}
    )
    # A cell smaller than the cutoff.
    atoms = ase.build.bulk("Si")
    atoms.numbers[1] = 32
    atoms.rattle(0.02, seed=0)
    more = {"timestep": 1.0, "temperature": 300.0, "dtype": "float32", "steps": 40, "out": tmp_path}
    end = run("nvt", atoms, potential, **more)
    assert end.summary["dtype"] == "float32"
    frames = end.trajectory.to_atoms()
    rows = np.isin(end.thermo["step"], end.trajectory.step)
    for frame, logged in zip(frames, end.thermo["potential_energy_eV"][rows], strict=True):
        prediction = potential.predict(frame)
        assert logged == pytest.approx(prediction.energy, abs=1e-5)
        assert frame.get_potential_energy() == pytest.approx(prediction.energy, abs=1e-5)
        np.testing.assert_allclose(frame.get_forces(), prediction.forces, rtol=0, atol=2e-4)
    assert np.ptp(end.thermo["potential_energy_eV"]) > 1e-3
    with pytest.raises(ElementError, match="Atom 0 is Ar"):
        run("nve", argon(), potential)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ensemble": "nvq"}, "'nvq' is not known"),
        ({"ensemble": "nvt", "temperature": None}, "give a temperature"),
        ({"ensemble": "nvt", "pressure": 1.0}, "no pressure; use npt"),
        ({"ensemble": "csvr", "pressure": 1.0}, "an object here"),
        ({"temperature": None}, "no velocities: give a temperature"),
        ({"steps": -1}, "steps must be a whole number from 0"),
        ({"save_every": 15}, r"save_every \(15\) must be a multiple of log_every \(10\)"),
        ({"timestep": 0.0}, "timestep must be a positive number"),
        ({"timestep": float("nan")}, "timestep must be a positive number"),
        ({"dtype": "bfloat16"}, "dtype must be"),
        ({"skin": 0.0}, "skin must be a positive number"),
        ({"resume": True}, "name the folder"),
        ({"replicas": 0}, "replicas must be a whole number from 1"),
        ({"atoms": []}, "one structure or more"),
        ({"atoms": [argon(), argon()], "replicas": 2}, "give one structure"),
        ({"ensemble": Langevin(np.array([1.0, 2.0, 3.0])), "replicas": 2}, r"Langevin, temperature: has shape \(3,\)"),
        ({"ensemble": Langevin(40.0, -0.1)}, "Langevin, friction: -0.1 is out of range"),
        ({"ensemble": NoseHoover(0.0)}, "NoseHoover, temperature: 0.0 is out of range"),
        ({"ensemble": CSVR(40.0, 0.0)}, "CSVR, time_constant"),
        ({"ensemble": CellRescaling(40.0, every=0)}, "CellRescaling, every"),
        ({"ensemble": CellRescaling(40.0, shape="cube")}, "isotropic, anisotropic, triclinic"),  # pyright: ignore
        ({"ensemble": CSVR(Ramp(np.array([5.0, 0.0]), np.array([1.0, 2.0])))}, "times that grow"),
        ({"ensemble": Langevin(Ramp([], []))}, "one or more"),
        ({"ensemble": CellRescaling(40.0, every=2.5)}, "every"),
        ({"temperature": -5.0}, "temperature of the start: -5.0 is out of range"),
        ({"ensemble": "npt", "atoms": ase.build.molecule("H2O")}, "periodic in all three"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told(more, words):
    with pytest.raises(ConfigError, match=words):
        run(**more)


def test_replicas_that_will_be_copies_are_told(caplog):
    atoms = argon()
    atoms.set_velocities(np.random.default_rng(0).normal(size=(4, 3)) * 0.01)
    run("langevin", atoms, replicas=2, steps=0)
    assert "copies of each other" not in caplog.text
    run("nose-hoover", atoms, replicas=2, steps=0)
    assert "copies of each other" in caplog.text


def test_at_zero_kelvin_a_barostat_drifts_without_noise():
    cold = CellRescaling(0.0, 0.1, compressibility=0.5, shape="triclinic", every=5)
    found = run(cold, temperature=10.0)
    conserved = found.thermo["conserved_eV"]
    assert np.isfinite(conserved).all()
    assert np.ptp(found.thermo["volume_A3"]) > 0.01


def test_structures_that_can_not_be_simulated():
    with pytest.raises(StructureError, match=r"atoms\[1\]: The structure has no atoms"):
        run("nve", [argon(), ase.Atoms()])
    overlapping = ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 0.001]])
    with pytest.raises(StructureError, match="overlap"):
        run("nve", overlapping)
    light = argon()
    light.set_masses([1.0, 0.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="Atom 1 has the mass 0"):
        run("nve", light)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVE", NVE), ("nvt", NoseHoover), ("langevin", Langevin), ("csvr", CSVR), ("npt-triclinic", CellRescaling)],
)
def test_names_of_ensembles(name, kind):
    assert isinstance(make_ensemble(name, 300.0), kind)


def test_handlers_come_back_and_a_second_ctrl_c_interrupts():
    from leignn_jax.interruption import stop_requests

    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_bar_says_where_it_is(capsys):
    run(progress=True)
    assert "60/60" in capsys.readouterr().err


def test_an_atom_thrown_far_leaves_the_last_good_step_and_the_others_as_they_were():
    calm, wild = argon() * (2, 2, 2), argon() * (2, 2, 2)
    wild.positions[0] = wild.positions[1] + [0.3, 0, 0]
    more = {"steps": 20, "save_every": 1, "log_every": 1, "dtype": "float32", "timestep": 1.0}
    alone = run(atoms=calm, **more)
    both = run(atoms=[calm, wild], **more)
    assert both.summary["stopped"][0] is None
    assert both.summary["stopped"][1].startswith("step 0")
    np.testing.assert_array_equal(both.trajectory[0].step, alone.trajectory.step)
    assert both.atoms[1].get_distance(0, 1) == pytest.approx(0.3, abs=1e-5)


def test_replicas_go_on_where_one_has_stopped_long_before(tmp_path):
    start = ase.Atoms("Ar3", positions=[[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]])
    velocities = np.random.default_rng(0).normal(size=(3, 3)) * 0.01
    start.set_velocities(velocities)
    leaves = start.copy()
    velocities[0] = [-2.0, 0, 0]
    leaves.set_velocities(velocities)
    more = {"timestep": 2.0, "save_every": 10, "max_temperature": 1e9, "max_step": 5.0, "max_distance": 13.0}
    whole = run(atoms=[start, leaves], steps=400, **more)
    first = run(atoms=[start, leaves], steps=300, out=tmp_path / "run", **more)
    last = first.trajectory[1].step[-1]
    assert 20 <= last < 200
    again = run(atoms=[start, leaves], steps=400, out=tmp_path / "run", resume=True, **more)
    assert [t.step[-1] for t in again.trajectory] == [400, last]
    np.testing.assert_array_equal(again.trajectory[0].positions, whole.trajectory[0].positions)


def test_no_ramp_of_what_must_stay():
    ramp = Ramp([0.0, 100.0], [50.0, 100.0])
    with pytest.raises(ConfigError, match="time_constant: can't be a ramp"):
        run(NoseHoover(40.0, ramp))


def test_between_frames_far_apart_states_are_written_and_nothing_else_changes(tmp_path, monkeypatch):
    more = {"steps": 150, "save_every": 60, "log_every": 10}
    whole = run(**more)
    for name in ("_SPLIT_STEPS", "_CHUNK_STEPS"):
        monkeypatch.setattr(f"leignn_jax.simulation.engine.{name}", 20)
    written = []
    checkpoint = folder.SimulationFolder.checkpoint
    monkeypatch.setattr(folder.SimulationFolder, "checkpoint", lambda self, run: written.append(checkpoint(self, run)))
    split = run(out=tmp_path / "split", checkpoint_minutes=0.0, **more)
    assert len(written) > 6
    assert split.trajectory.step.tolist() == [0, 60, 120, 150]
    assert split.thermo["step"].tolist() == list(range(0, 151, 10))
    np.testing.assert_array_equal(split.trajectory.positions, whole.trajectory.positions)
    np.testing.assert_array_equal(split.trajectory.step, whole.trajectory.step)


def test_between_log_lines_far_apart_too(tmp_path, monkeypatch):
    more = {"steps": 130, "save_every": 60, "log_every": 60, "ensemble": "langevin"}
    whole = run(**more)
    for name in ("_SPLIT_STEPS", "_CHUNK_STEPS"):
        monkeypatch.setattr(f"leignn_jax.simulation.engine.{name}", 25)
    looked = []
    advance = chunks.Run.advance

    def watched(self, *given):
        found = advance(self, *given)
        looked.append(int(self.state.step))
        return found

    monkeypatch.setattr(chunks.Run, "advance", watched)
    split = run(out=tmp_path / "split", checkpoint_minutes=0.0, **more)
    assert looked == [25, 50, 60, 85, 110, 120, 130]
    assert split.trajectory.step.tolist() == [0, 60, 120, 130]
    assert split.thermo["step"].tolist() == [0, 60, 120, 130]
    np.testing.assert_array_equal(split.trajectory.positions, whole.trajectory.positions)
    np.testing.assert_array_equal(split.thermo["conserved_eV"], whole.thermo["conserved_eV"])
