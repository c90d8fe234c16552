"""Whole simulations: what is written, what goes on from where it was, and what happens when something breaks."""

import json
import logging
import re
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import ase.build
import ase.io
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms
from flax import struct

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError, SimulationError, StructureError
from leignn_jax.files import FolderLock
from leignn_jax.graph import Graph
from leignn_jax.potential import Prediction
from leignn_jax.simulation import chunks, dynamics, folder
from leignn_jax.simulation.biases import Umbrella
from leignn_jax.simulation.collective_variables import Distance
from leignn_jax.simulation.engine import make_ensemble, simulate
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover, Ramp
from leignn_jax.simulation.own_models import PairEnergy
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones
from leignn_jax.simulation.thermo import read_thermo
from leignn_jax.simulation.trajectory import read_trajectory

pytestmark = pytest.mark.usefixtures("fast_compiles")
ARGON = LennardJones(cutoff=6.0)
SETTINGS: dict[str, Any] = {
    "steps": 60,
    "timestep": 4.0,
    "temperature": 40.0,
    "save_every": 20,
    "log_every": 10,
    "dtype": "float64",
    "seed": 3,
}
ENSEMBLES = {
    "nve": NVE(),
    "nose-hoover": NoseHoover(40.0),
    "langevin": Langevin(40.0),
    "csvr": CSVR(40.0),
    "npt": CellRescaling(40.0, 0.1, compressibility=0.5, shape="triclinic", every=5),
}


def argon():
    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.rattle(0.05, seed=0)
    return atoms


def run(ensemble="nve", atoms=None, model=ARGON, **more):
    ensemble = ENSEMBLES.get(ensemble, ensemble) if isinstance(ensemble, str) else ensemble
    return simulate(model, argon() if atoms is None else atoms, ensemble, **SETTINGS | more)


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """Lists that need not be enlarged: in a cell of four atoms all images of a pair come and go together."""
    plan = dynamics.plan_sizes

    def planned(*where):
        sizes = plan(*where)
        return sizes._replace(neighbors=sizes.neighbors + 20, pairs=sizes.pairs + 60)

    monkeypatch.setattr(dynamics, "plan_sizes", planned)
    return plan


def same_atoms(a, b, tolerance=0.0):
    for one, other in ((a.positions, b.positions), (a.get_velocities(), b.get_velocities()), (a.cell, b.cell)):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def same_frames(a, b, tolerance=0.0):
    """The frames at steps that both have."""
    steps = np.intersect1d(a.step, b.step)
    rows = np.isin(a.step, steps), np.isin(b.step, steps)
    for name in ("positions", "velocities", "forces", "cell", "energy", "time"):
        one, other = (np.asarray(getattr(x, name))[r] for x, r in zip((a, b), rows, strict=True))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)
    return steps


# ------------------------------------------------------------------------------------------------- files, and going on


@pytest.mark.parametrize("name", ENSEMBLES)
def test_a_resumed_simulation_is_the_same_to_the_last_bit(name, tmp_path):
    compiled = chunks._chunk._cache_size()
    whole = run(name)
    first = run(name, out=tmp_path / "run", steps=23)
    assert first.summary["finished"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 23
    again = run(name, out=tmp_path / "run", resume=True)
    assert again.summary["resumed_at"] == 23
    # One program for all of them, whatever the number of steps; none where another test has made it.
    assert chunks._chunk._cache_size() <= compiled + 1

    same_atoms(again.atoms, whole.atoms)
    same_atoms(ase.io.read(tmp_path / "run" / "final.extxyz"), whole.atoms, 1e-6)
    assert whole.trajectory.step.tolist() == [0, 20, 40, 60]
    assert again.trajectory.step.tolist() == [0, 20, 23, 40, 60]
    single = whole.trajectory._replace(velocities=whole.trajectory.velocities.astype(np.float32))
    assert len(same_frames(again.trajectory, single, 1e-7)) == 4
    np.testing.assert_array_equal(again.trajectory.positions[[0, 1, 3, 4]], single.positions)
    assert whole.thermo["step"].tolist() == [0, 10, 20, 30, 40, 50, 60]
    kept = np.isin(again.thermo["step"], whole.thermo["step"])
    assert again.thermo["step"][~kept].tolist() == [23]
    assert again.thermo.keys() == whole.thermo.keys()
    for key, values in whole.thermo.items():
        np.testing.assert_array_equal(again.thermo[key][kept], values, err_msg=key)
    # It moved, and nothing of the caller's was touched.
    assert np.abs(whole.atoms.positions - argon().positions).max() > 0.05
    assert (np.abs(whole.atoms.cell - argon().cell).max() > 1e-4) == (name == "npt")


def test_nothing_to_do_and_going_on_from_the_very_start(tmp_path):
    nothing = run(out=tmp_path / "run", steps=0)
    assert nothing.trajectory.step.tolist() == [0]
    again = run(out=tmp_path / "run", resume=True)
    assert again.trajectory.step.tolist() == [0, 20, 40, 60]
    same_atoms(again.atoms, run().atoms)
    done = run(out=tmp_path / "run", resume=True)
    assert done.trajectory.step.tolist() == [0, 20, 40, 60]
    same_atoms(done.atoms, again.atoms)


CHILD = """
import sys
import ase.build
from leignn_jax.simulation.engine import simulate
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.simulation.own_models import PairEnergy
from leignn_jax.simulation.simple_models import LennardJones
atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
atoms.rattle(0.05, seed=0)
simulate(LennardJones(cutoff=6.0), atoms, Langevin(40.0), steps=10**9, timestep=4.0, temperature=40.0, save_every=20,
         log_every=10, dtype="float64", seed=3, out=sys.argv[1], checkpoint_minutes=0.0)
"""


@pytest.mark.slow
def test_a_killed_simulation_goes_on(roomy, tmp_path, monkeypatch):
    # The child plans its lists as it likes; bits are the same where sizes are.
    monkeypatch.setattr(dynamics, "plan_sizes", roomy)
    out = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(out)])
    try:
        deadline = time.monotonic() + 300
        # The second state: the first is that of the start.
        while not (out / "state.previous.safetensors").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(read_trajectory(out / "trajectory.h5")) > 0
    steps = int(read_thermo(out / "thermo.csv")["step"][-1]) + 47
    again = run("langevin", out=out, resume=True, steps=steps)
    assert again.summary["resumed_at"] is None or again.summary["resumed_at"] % 200 == 0
    whole = run("langevin", steps=steps)
    same_atoms(again.atoms, whole.atoms)
    np.testing.assert_array_equal(again.thermo["conserved_eV"], whole.thermo["conserved_eV"])
    assert again.trajectory.step.tolist() == whole.trajectory.step.tolist()


def test_killed_before_its_first_chunk_it_goes_on(tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chunks.Run, "advance", dies)
        with pytest.raises(KeyboardInterrupt):
            run(out=tmp_path)
    same_atoms(run(out=tmp_path, resume=True).atoms, run().atoms)


def test_sigterm_ends_with_a_folder_to_resume(tmp_path, monkeypatch, caplog):
    handler = signal.getsignal(signal.SIGTERM)
    append = folder.SimulationFolder.append

    def asked(folder, new):
        new = list(new)
        append(folder, new)
        if new[0][0]["step"][-1] > 0:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "leignn_jax"):
        patch.setattr(folder.SimulationFolder, "append", asked)
        stopped = run(out=tmp_path, steps=500)
    assert stopped.summary["steps"] == 200
    assert not stopped.summary["finished"]
    assert "Stopped by a signal at step 200 of 500" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is handler
    again = run(out=tmp_path, steps=500, resume=True)
    same_atoms(again.atoms, run(steps=500).atoms)


def test_a_full_disk_is_told_and_the_run_goes_on_later(tmp_path, monkeypatch):
    run(out=tmp_path, steps=40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    append = folder.SimulationFolder.append

    def full(folder, new):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        append(folder, new)

    with monkeypatch.context() as patch:
        patch.setattr(folder.SimulationFolder, "append", full)
        try:
            with pytest.raises(SimulationError, match=r"(size of files is reached|is full).*resume the run"):
                run(out=tmp_path, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = run(out=tmp_path, resume=True)
    assert again.trajectory.step.tolist() == [0, 20, 40, 60]
    same_atoms(again.atoms, run().atoms)


def test_the_last_structure_that_can_not_be_written_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_atomically", full)
        with pytest.raises(SimulationError, match=r"last structure can't be written: the disk is full.*resume"):
            run(out=tmp_path)
    assert read_trajectory(tmp_path / "trajectory.h5").step.tolist() == [0, 20, 40, 60]
    assert run(out=tmp_path, resume=True).summary["finished"]


def test_folders_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(SimulationError, match="no state to resume from"):
        run(out=tmp_path / "none", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulationError, match="file: the folder can't be made"):
        run(out=tmp_path / "file")
    run("npt", out=tmp_path / "run", steps=0)
    with pytest.raises(SimulationError, match="holds a simulation already"):
        run("npt", out=tmp_path / "run")
    npt = ENSEMBLES["npt"]
    others = (
        {"timestep": 2.0},
        {"save_every": 40},
        {"skin": 0.6},
        {"ensemble": npt.replace(shape="isotropic")},
        {"ensemble": npt.replace(pressure=0.2)},
        {"ensemble": npt.replace(temperature=Ramp(np.array([0.0, 9.0]), np.array([40.0, 50.0])))},
        {"atoms": argon()[:3]},
        {"model": ARGON.replace(epsilon=0.011)},
    )
    for other in others:
        with pytest.raises((SimulationError, leignn.errors.FileFormatError), match=r"was run with|another simulation"):
            run(**{"ensemble": "npt", "out": tmp_path / "run", "resume": True} | other)
    held = argon()
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(SimulationError, match="held_atoms"):
        run("npt", held, out=tmp_path / "run", resume=True)


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


def test_two_at_once_in_one_folder(tmp_path):
    run(steps=10, out=tmp_path / "md")
    with pytest.raises(SimulationError, match="holds a simulation already"):
        run(steps=20, out=tmp_path / "md")
    lock = FolderLock(tmp_path / "md", SimulationError, "simulation")
    with pytest.raises(SimulationError, match="another process is working on the simulation in this folder"):
        run(steps=20, out=tmp_path / "md", resume=True)
    lock.close()
    assert run(steps=20, out=tmp_path / "md", resume=True).thermo["step"][-1] == 20


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


def test_resume_refuses_another_function_variable_or_cell(tmp_path):
    def umbrella(a, b):
        return ARGON + Umbrella(Distance(a, b), 3.7, 5.0)

    def pair(function):
        return PairEnergy(function, {"a": 0.01}, cutoff=5.0)

    def pull(params, r):
        return -params["a"] * r

    wide = argon()
    wide.set_cell(1.05 * wide.cell, scale_atoms=True)
    cases = [
        ("model", umbrella(0, 1), umbrella(0, 2), None),
        ("model", pair(lambda params, r: params["a"] * (r - 3.7) ** 2), pair(pull), None),
        ("cells", ARGON, ARGON, wide),
    ]
    for i, (name, one, other, atoms) in enumerate(cases):
        out = tmp_path / str(i)
        run(model=one, steps=20, out=out)
        with pytest.raises(SimulationError, match=f"was run with {name}"):
            run(model=other, atoms=atoms, steps=40, out=out, resume=True)
        run(model=one, steps=40, out=out, resume=True)


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


def test_one_replica_is_not_resumed_as_one_of_several(tmp_path):
    run(steps=20, out=tmp_path / "alone")
    with pytest.raises(SimulationError, match="replicas = None, not 1"):
        run(steps=40, replicas=1, out=tmp_path / "alone", resume=True)
    run(steps=20, replicas=1, out=tmp_path / "several")
    with pytest.raises(SimulationError, match="replicas = 1, not None"):
        run(steps=40, out=tmp_path / "several", resume=True)


def test_labels_of_the_start_are_none_of_the_end(tmp_path):
    atoms = argon()
    atoms.info |= {"energy": -5.0, "stress": np.eye(3), "name": "mine"}
    atoms.arrays |= {"REF_forces": np.ones((len(atoms), 3)), "layer": np.arange(len(atoms))}
    found = run(atoms=atoms, steps=20, out=tmp_path)
    assert found.atoms.info == {"name": "mine"}
    assert "REF_forces" not in found.atoms.arrays
    written = ase.io.read(tmp_path / "final.extxyz")
    assert written.get_potential_energy() == pytest.approx(found.atoms.get_potential_energy())
    assert written.info["name"] == "mine"
    np.testing.assert_array_equal(written.arrays["layer"], np.arange(len(atoms)))
