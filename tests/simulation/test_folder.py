"""What a simulation writes, and going on from there."""

import json
import logging
import resource
import signal
import subprocess
import sys
import time

import ase.build
import ase.io
import numpy as np
import pytest
from argon_runs import ARGON, ENSEMBLES, argon, run, same_atoms, same_frames
from ase.constraints import FixAtoms

import leignn_jax as leignn
from leignn_jax.errors import SimulationError
from leignn_jax.files import FolderLock
from leignn_jax.simulation import chunks, dynamics, folder
from leignn_jax.simulation.biases import Umbrella
from leignn_jax.simulation.collective_variables import Distance
from leignn_jax.simulation.ensembles import Ramp
from leignn_jax.simulation.own_models import PairEnergy
from leignn_jax.simulation.thermo import read_thermo
from leignn_jax.simulation.trajectory import read_trajectory

pytestmark = pytest.mark.usefixtures("fast_compiles", "roomy")


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


def test_stopped_between_frames_after_a_short_start_it_goes_on(tmp_path, monkeypatch):
    """The frame at the end of the start is not one of those that are due every thousand steps."""
    run(out=tmp_path, steps=20, save_every=1000)
    advance = chunks.Run.advance

    def asked(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return advance(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(chunks.Run, "advance", asked)
        stopped = run(out=tmp_path, steps=520, save_every=1000, resume=True)
    assert stopped.summary["steps"] == 500
    again = run(out=tmp_path, steps=520, save_every=1000, resume=True)
    assert again.trajectory.step.tolist() == [0, 20, 520]
    same_atoms(again.atoms, run(steps=520).atoms)


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


def test_frames_read_before_it_went_on_are_there_still(tmp_path):
    before = run(out=tmp_path, steps=40)
    run(out=tmp_path, resume=True)
    assert before.trajectory.positions.shape == (3, 4, 3)
    same_frames(before.trajectory, read_trajectory(tmp_path / "trajectory.h5"))


def test_a_start_that_failed_is_told_and_can_be_begun_anew(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("leignn_jax.simulation.state.write_atomically", full)
        with pytest.raises(SimulationError, match=r"state can't be written: the disk is full.*Then start the run anew"):
            run(out=tmp_path)
    with pytest.raises(SimulationError, match=r"Delete trajectory\.h5 and thermo\.csv of a start that failed"):
        run(out=tmp_path, resume=True)
    for name in ("trajectory.h5", "thermo.csv"):
        (tmp_path / name).unlink()
    assert run(out=tmp_path).trajectory.step.tolist() == [0, 20, 40, 60]


def test_a_log_that_is_gone_is_told(tmp_path, caplog):
    run(out=tmp_path, steps=20)
    (tmp_path / "thermo.csv").unlink()
    found = run(out=tmp_path, resume=True, steps=40)
    assert "no log to go on with; its first row comes after step 20" in caplog.text
    assert found.thermo["step"].tolist() == [30, 40]


def test_another_ensemble_is_told_by_its_name(tmp_path):
    run("npt", out=tmp_path, steps=20)
    with pytest.raises(SimulationError, match="was run with ensemble = CellRescaling, not NVE"):
        run("nve", out=tmp_path, resume=True)


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


def test_two_at_once_in_one_folder(tmp_path):
    run(steps=10, out=tmp_path / "md")
    with pytest.raises(SimulationError, match="holds a simulation already"):
        run(steps=20, out=tmp_path / "md")
    lock = FolderLock(tmp_path / "md", SimulationError, "simulation")
    with pytest.raises(SimulationError, match="another process is working on the simulation in this folder"):
        run(steps=20, out=tmp_path / "md", resume=True)
    lock.close()
    assert run(steps=20, out=tmp_path / "md", resume=True).thermo["step"][-1] == 20


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
