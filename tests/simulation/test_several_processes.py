"""Two processes on loopback, two virtual devices each, that simulate together: one trajectory, one writer, one will."""

import json
from pathlib import Path

import ase.build
import numpy as np
import pytest
from eight_devices import end, free_port, start

import leignn_jax as leignn
from leignn_jax.simulation.simple_models import LennardJones
from leignn_jax.simulation.trajectory import read_trajectory

pytestmark = pytest.mark.usefixtures("fast_compiles")

# What each process does: arguments of `simulated`; a signal to itself in a chunk, a disk that is full.
WORKER = """
import json, os, signal, sys
import jax
import numpy as np
number, port, tasks = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sys.path[:0] = sys.argv[4:]
import leignn_jax as leignn
from leignn_jax.processes import join_processes

join_processes(f"127.0.0.1:{port}", 2, number)
from leignn_jax.simulation import chunks, engine, folder
from test_several_processes import arrays, simulated

engine._CHUNK_STEPS = 40
advance, append, report = chunks.Run.advance, folder.SimulationFolder.append, []
for i, task in enumerate(tasks):
    done, signal_in_chunk, full_disk = 0, task.pop("signal_in_chunk", None), task.pop("full_disk", False)

    def counted(*args):
        global done
        done += 1
        if done == signal_in_chunk:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(*args)

    def full(self, new):
        return append(self, broken(new) if done > 1 else new)

    def broken(new):
        raise leignn.errors.SimulationError("the disk is full")
        yield

    chunks.Run.advance = counted
    folder.SimulationFolder.append = full if full_disk else append
    try:
        found = simulated(**task)
    except leignn.errors.LeignnError as error:
        report.append({"error": f"{type(error).__name__}: {error}"})
        continue
    np.savez(f"{i}.npz", **arrays(found))
    several = isinstance(found.trajectory, list)
    kept = found.trajectory[0] if several else found.trajectory
    report.append({"summary": found.summary, "kept": None if kept is None else type(kept).__name__})
print(json.dumps(report))
"""


def argon(rattle=0.1):
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * (4, 2, 2)
    atoms.rattle(rattle, seed=0)
    return atoms


def simulated(ensemble="nve", rattle=0.1, devices=4, **settings):
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)
    settings = {"steps": 120, "timestep": 3.0, "temperature": 80.0, "save_every": 20, "dtype": "float64", **settings}
    return leignn.simulate(model, argon(rattle), ensemble, devices=devices, progress=False, skin=0.3, **settings)


def arrays(found):
    """The last structures, and what was kept of all frames and lines."""
    several = found.atoms if isinstance(found.atoms, list) else [found.atoms]
    kept = {
        "last": np.stack([a.positions for a in several]),
        "velocities": np.stack([a.get_velocities() for a in several]),
    }
    for r, one in enumerate(found.trajectory if isinstance(found.trajectory, list) else [found.trajectory]):
        if one is not None:
            kept[f"positions {r}"] = one.positions[:]
    for r, one in enumerate(found.thermo if isinstance(found.thermo, list) else [found.thermo]):
        if one is not None:
            kept |= {f"{name} {r}": one[name] for name in ("conserved_eV", "pressure_GPa", "temperature_K")}
    return kept


# Tasks.
WHOLE, REPLICAS, FILED, STOPPED, RESUMED, HALF, LATER, DIFFERENT, FULL, FEWER = range(10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One pair of processes for all tests: their folders, and what each reports of every task."""
    root = tmp_path_factory.mktemp("pair")
    folders = [root / "process_0", root / "process_1"]
    for folder in folders:
        folder.mkdir()
    replicas = {"ensemble": "langevin", "replicas": 4}
    tasks = [
        {},
        replicas,
        {"ensemble": "npt-triclinic", "pressure": 0.1, "out": "filed"},
        {"out": "stopped"},
        {"out": "stopped", "resume": True},
        {**replicas, "out": "replicas", "steps": 60},
        {**replicas, "out": "replicas", "resume": True},
        {},
        {"out": "full"},
        {"devices": 2},
    ]
    first, second = (json.loads(json.dumps(tasks)) for _ in range(2))
    second[STOPPED]["signal_in_chunk"] = 2
    second[DIFFERENT]["rattle"] = 0.2
    first[FULL]["full_disk"] = True
    port = str(free_port())
    paths = [str(path) for path in Path(__file__).parents[:2]]
    each = [["-c", WORKER, str(i), port, json.dumps(one), *paths] for i, one in enumerate((first, second))]
    done = end(start(folders, each), seconds=600)
    for _, err, code in done:
        assert code == 0, err
    return folders, [json.loads(out.splitlines()[-1]) for out, _, _ in done]


def of(folder, task):
    with np.load(folder / f"{task}.npz") as file:
        return dict(file)


def same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def close(one, other):
    for name in one.keys() | other.keys():
        np.testing.assert_allclose(one[name], other[name], rtol=1e-8, atol=1e-9, err_msg=name)


def test_one_system_divided_among_two_processes(pair):
    """As on one device, and the same bits in both."""
    folders, reports = pair
    for report in reports:
        assert report[WHOLE]["summary"]["devices"] == 4
        assert report[WHOLE]["summary"]["list_renewals"] > 1
    same_bits(of(folders[0], WHOLE), of(folders[1], WHOLE))
    close(of(folders[0], WHOLE), arrays(simulated(devices=1)))


def test_replicas_divided_among_two_processes(pair):
    folders, _ = pair
    same_bits(of(folders[0], REPLICAS), of(folders[1], REPLICAS))
    close(of(folders[0], REPLICAS), arrays(simulated("langevin", replicas=4, devices=1)))


def test_the_first_alone_writes(pair):
    folders, reports = pair
    assert [report[FILED]["kept"] for report in reports] == ["Trajectory", None]
    assert (folders[0] / "filed" / "final.extxyz").exists()
    assert not (folders[1] / "filed").exists()
    alone = simulated("npt-triclinic", pressure=0.1, devices=1)
    close(
        {"x": read_trajectory(folders[0] / "filed" / "trajectory.h5").positions[:]}, {"x": alone.trajectory.positions}
    )


def test_a_signal_to_one_stops_both_and_they_go_on(pair):
    folders, reports = pair
    first, second = (report[STOPPED]["summary"] for report in reports)
    assert 0 < first["steps"] == second["steps"] < 120
    assert (first["signal"], second["signal"]) == (None, "SIGTERM")
    assert [report[RESUMED]["summary"]["resumed_at"] for report in reports] == [first["steps"]] * 2
    whole, parts = of(folders[0], WHOLE), of(folders[0], RESUMED)
    same_bits({name: parts[name] for name in whole}, whole)


def test_replicas_go_on_to_the_bit(pair):
    folders, reports = pair
    assert [report[LATER]["summary"]["resumed_at"] for report in reports] == [60, 60]
    same_bits(of(folders[0], LATER), of(folders[0], REPLICAS))
    assert sorted(path.name for path in (folders[0] / "replicas").glob("replica_*")) == [
        f"replica_00{r}" for r in range(4)
    ]


def test_failures_stop_both_in_words(pair):
    _, (first, second) = pair
    for report in (first, second):
        assert report[DIFFERENT]["error"].startswith(
            "ProcessError: Process 1 differs from process 0 in the structure: sha256"
        )
        assert "give devices=4" in report[FEWER]["error"]
    assert first[FULL]["error"] == "SimulationError: the disk is full"
    assert second[FULL]["error"].startswith("ProcessError: Process 0 failed, so all stop; on ")
    assert second[FULL]["error"].endswith("the disk is full")


@pytest.mark.slow
def test_command_line(tmp_path):
    """One simulation by two commands; the first prints its summary."""
    folders = [tmp_path / "process_0", tmp_path / "process_1"]
    structure = "silicon.extxyz"
    atoms = ase.build.bulk("Si", cubic=True) * (3, 1, 1)
    for folder in folders:
        folder.mkdir()
        atoms.write(folder / structure)
    words = ["-m", "leignn_jax.cli", "md", "si", structure, "--steps", "20", "--out", "run", "--temperature", "300"]
    words += ["--save-every", "10", "--devices", "4"]
    port = free_port()
    each = [[*words, "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(i)] for i in range(2)]
    done = end(start(folders, each), seconds=600)
    assert [code for _, _, code in done] == [0, 0], done
    # Gloo, which CPUs talk by, writes lines of its own.
    texts = ["".join(x for x in out.splitlines(True) if not x.startswith("[Gloo]")) for out, _, _ in done]
    assert json.loads(texts[0])["devices"] == 4
    assert texts[1] == ""
    assert (folders[0] / "run" / "final.extxyz").exists()
    assert not (folders[1] / "run").exists()
