"""Two processes on loopback, two virtual devices each: one training, one writer, one will."""

import hashlib
import json

import jax
import numpy as np
import pytest
from eight_devices import end, free_port, start
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError
from leignn_jax.files import digest
from leignn_jax.processes import arrays_from_first, from_first, gather, join_processes
from leignn_jax.training.checkpoint import named_leaves
from leignn_jax.training.parallel import make_mesh, own_parts

pytestmark = pytest.mark.usefixtures("fast_compiles")

# Direct forces: one gradient less to compile.
MODEL = {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0}
MODEL |= {"repulsion": False, "global_nodes": False}
DIRECT = {"model": {**MODEL, "direct_forces": True}, "loss": {"force_source": "direct", "stress_weight": 0}}


def settings(out="whole", **run):
    """Paths are relative: each process has a folder of its own."""
    return {
        "data": {"train": "train.h5", "batch_size": 1, "validation_fraction": 0.2},
        "optimizer": {"learning_rate": 5e-3, "warmup_epochs": 0},
        "run": {"out": out, "epochs": 3, "devices": 4, **run},
        **DIRECT,
    }


# What each process does: {"train": settings} or {"sweep": study}; a signal to itself in an epoch, an error in a batch.
WORKER = """
import json, os, signal, sys
import numpy as np
import jax
number, port, tasks = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
import leignn_jax
from leignn_jax.processes import arrays_from_first, connect, from_first, gather, join_processes

# Both ways to meet.
meet = join_processes if number else jax.distributed.initialize
meet(f"127.0.0.1:{port}", 2, number)
from leignn_jax.training import loop, programs
from leignn_jax.files import digest
from leignn_jax.training.checkpoint import named_leaves
from leignn_jax.training.folder import RunFolder

connect()
odd = {"a": np.array([-0.0, np.nan, np.inf, number], np.float32), "b": np.array(2**40 + number), "c": np.zeros((0, 3))}
bits = digest(named_leaves(arrays_from_first(odd)))
report = [{"bits": bits, "gathered": gather("x" * 5000 * number), "first": from_first(number)}]
train_row, save, compiles, made = loop.train_row, RunFolder.save_checkpoint, programs.CountedCompiles, {}
# All tasks have the same programs: compile them once.
for task in tasks:
    epochs, kind = 0, str(task.get("sweep", {}).get("mesh"))
    programs.CountedCompiles = lambda function, planned, name, **more: made.setdefault(
        name + kind, compiles(function, planned, name, **more)
    )

    def counted(*args):
        global epochs
        epochs += 1
        if epochs == task.get("signal_in_epoch"):
            os.kill(os.getpid(), signal.SIGTERM)
        return train_row(*args)

    def full(*args):
        raise leignn_jax.errors.TrainingError("the disk is full")

    loop.train_row = counted
    RunFolder.save_checkpoint = full if task.get("full_disk") else save
    try:
        if "sweep" in task:
            result = leignn_jax.sweep(task["sweep"], progress=False)
            found = {
                "finished": result.finished,
                "rows": result.rows,
                "params": [digest(named_leaves(p.params)) for p in result.potentials],
            }
        else:
            result = leignn_jax.train(task["train"], progress=False)
            found = {
                "finished": result.finished,
                "metrics": result.metrics,
                "history": result.history,
                "params": digest(named_leaves(result.potential.params)),
                "metadata": result.potential.metadata,
            }
    except (leignn_jax.errors.LeignnError, FileNotFoundError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    report.append(found)
print(json.dumps(report))
"""


def run_pair(folders, tasks):
    """Reports of two processes, each doing its list of tasks."""
    port = str(free_port())
    done = end(start(folders, [["-c", WORKER, str(i), port, json.dumps(tasks[i])] for i in range(2)]))
    for _, err, code in done:
        assert code == 0, err
    return [json.loads(out.splitlines()[-1]) for out, _, _ in done]


def make_folders(root):
    folders = [root / "process_0", root / "process_1"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        write_hdf5(folder / "train.h5", copper(20, 0, stress=False))
        write_hdf5(folder / "other.h5", copper(20, i, stress=False))
    write_hdf5(folders[0] / "mine.h5", copper(20, 2, stress=False))
    return folders


WHOLE, STOPPED, RESUMED, DATA, CONFIG, MISSING, DEVICES, MESH, FULL, STUDY, HALF, REST = range(1, 13)
RATES = [5e-3, 2e-3]


def study(out, mesh=(2, 2)):
    values = settings(out)
    del values["run"]["devices"]
    return {"sweep": {"base": values, "space": {"run.seed": [0, 1], "optimizer.learning_rate": RATES}, "mesh": mesh}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One pair of processes for all tests, because each compiles for long."""
    folders = make_folders(tmp_path_factory.mktemp("pair"))

    def data(name):
        values = settings("refused")
        return {"train": {**values, "data": {**values["data"], "train": name}}}

    def rate(value):
        return {"train": {**settings("refused"), "optimizer": {"learning_rate": value}}}

    stopped, full = {"train": settings("stopped")}, {"train": settings("full", checkpoint_minutes=0.0)}
    devices = {"train": settings("refused", devices=2)}
    first = [
        {"train": settings()},
        stopped,
        stopped,
        data("other.h5"),
        rate(0.01),
        data("mine.h5"),
        devices,
        study("refused", (2, 1)),
        {**full, "full_disk": True},
        study("study"),
        study("half"),
        study("half"),
    ]
    second = [*first]
    second[STOPPED - 1] = {**stopped, "signal_in_epoch": 2}
    second[CONFIG - 1] = rate(0.02)
    second[FULL - 1] = full
    # Of four members' second epoch.
    second[HALF - 1] = {**study("half"), "signal_in_epoch": 5}
    return folders, run_pair(folders, [first, second])


def test_two_processes_train_as_one(pair, tmp_path, monkeypatch):
    """As one device that accumulates the four batches of a step."""
    folders, reports = pair
    monkeypatch.chdir(folders[0])
    values = settings(str(tmp_path / "alone"), devices=1)
    values["data"]["accumulate"] = 4
    alone = leignn.train(values, progress=False)
    for report in reports:
        found = report[WHOLE]
        assert found["finished"]
        np.testing.assert_allclose(
            [row["train_loss"] for row in found["history"]], [row["train_loss"] for row in alone.history], rtol=1e-5
        )
        errors = {k: v for k, v in found["metrics"]["validation"].items() if v is not None}
        assert errors == {k: pytest.approx(alone.metrics["validation"][k], rel=1e-3, abs=1e-3) for k in errors}
    together = leignn.load_potential(folders[0] / "whole" / "last.safetensors").params
    for a, b in zip(
        jax.tree.leaves(together),
        jax.tree.leaves(leignn.load_potential(alone.out / "last.safetensors").params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_both_return_the_same_and_the_first_alone_writes(pair):
    folders, (first, second) = pair
    assert first[WHOLE] == second[WHOLE]
    saved = leignn.load_potential(folders[0] / "whole" / "potential.safetensors")
    assert second[WHOLE]["params"] == digest(named_leaves(saved.params))
    assert second[WHOLE]["metadata"] == saved.metadata
    names = {p.name for p in (folders[0] / "whole").iterdir()}
    assert {"config.yaml", "data.json", "metrics.csv", "checkpoints", "report.html", "last.safetensors"} <= names
    assert sorted(p.name for p in folders[1].iterdir()) == ["other.h5", "train.h5"]


def test_a_signal_to_one_stops_both_and_they_go_on(pair):
    """Process 1 is asked in its second epoch; both stop after the third step of the third, whose checkpoint resumes."""
    folders, (first, second) = pair
    assert first[STOPPED] == second[STOPPED]
    assert not first[STOPPED]["finished"]
    assert len(first[STOPPED]["history"]) == 2
    assert {p.name for p in (folders[0] / "stopped" / "checkpoints").iterdir()} == {"13", "15"}
    assert first[RESUMED] == second[RESUMED]
    timing = ("seconds", "frames_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in timing} for row in first[i]["history"]] for i in (WHOLE, RESUMED)
    ]
    assert rows[0] == rows[1]
    assert first[RESUMED]["params"] == first[WHOLE]["params"]


def test_differences_are_refused_by_both(pair):
    folders, reports = pair
    hashes = [hashlib.sha256((folder / "other.h5").read_bytes()).hexdigest() for folder in folders]
    for report in reports:
        expected = f"Process 1 differs from process 0 in the train file: sha256 {hashes[1]}, not sha256 {hashes[0]}"
        assert report[DATA]["error"].startswith(f"ProcessError: {expected}")
        assert "process 0 in the config: learning_rate: 0.02, not learning_rate: 0.01." in report[CONFIG]["error"]
        assert "set run.devices=4" in report[DEVICES]["error"]
        assert "mesh 2 x 1 is 2, but 2 processes with 4 devices run together: make mesh" in report[MESH]["error"]
    assert not (folders[0] / "refused").exists()


def test_an_error_in_one_ends_both(pair):
    _, (first, second) = pair
    assert second[MISSING]["error"].startswith("FileNotFoundError: mine.h5")
    assert first[MISSING]["error"].startswith("ProcessError: Process 1 failed, so all stop; on ")
    assert "FileNotFoundError: mine.h5" in first[MISSING]["error"]
    assert first[FULL]["error"] == "TrainingError: the disk is full"
    assert second[FULL]["error"].startswith("ProcessError: Process 0 failed, so all stop; on ")


def test_two_processes_train_a_study_as_one(pair, tmp_path, monkeypatch):
    """Members divided among two processes, the batches of a step among the devices of each."""
    folders, (first, second) = pair
    assert first[STUDY] == second[STUDY]
    assert first[STUDY]["finished"]
    monkeypatch.chdir(folders[0])
    values = study(str(tmp_path / "alone"), (1, 1))["sweep"]
    values["base"]["data"]["accumulate"] = 2
    alone = leignn.sweep(values, progress=False)
    assert_alike(first[STUDY]["rows"], alone.rows)
    files = [folders[0] / f"study/potentials/{row['member']:03d}.safetensors" for row in first[STUDY]["rows"]]
    params = [leignn.load_potential(file).params for file in files]
    assert [digest(named_leaves(p)) for p in params] == second[STUDY]["params"]
    assert not (folders[1] / "study").exists()


def test_a_signal_to_one_stops_a_study_in_both_and_it_goes_on(pair):
    _, (first, second) = pair
    assert first[HALF] == second[HALF]
    assert not first[HALF]["finished"]
    assert first[HALF]["rows"] == []
    assert first[REST] == second[REST] == first[STUDY]


def assert_alike(rows, others):
    """Rows of the same members in any order, to rounding that differs."""
    rows, others = (sorted(x, key=lambda row: row["member"]) for x in (rows, others))
    for a, b in zip(rows, others, strict=True):
        assert a["best_epoch"] == b["best_epoch"]
        numbers = {k: v for k, v in a.items() if k.startswith("validation_") and v is not None}
        assert numbers == {k: pytest.approx(b[k], rel=1e-3, abs=1e-3) for k in numbers}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4, 1), (1, 4)])
def test_a_study_on_other_meshes(tmp_path, monkeypatch, mesh):
    """Only members divided, and only batches."""
    folders = make_folders(tmp_path)
    (first,), (second,) = (report[1:] for report in run_pair(folders, [[study("study", mesh)]] * 2))
    assert first == second
    monkeypatch.chdir(folders[0])
    values = study("alone", (1, 1))["sweep"]
    values["base"]["data"]["accumulate"] = mesh[1]
    assert_alike(first["rows"], leignn.sweep(values, progress=False).rows)


@pytest.mark.slow
def test_a_search_over_two_processes(tmp_path):
    """What the storage says to the first process decides in both; stopped by a signal to the second, it goes on."""
    pytest.importorskip("optuna")
    folders = make_folders(tmp_path)

    def search(out):
        values = study(out)["sweep"]
        values["space"] = {"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "run.seed": {"integers": [0, 99]}}
        more = {"search": "tpe", "samples": 9, "members_at_once": 4, "startup": 4}
        return {"sweep": {**values, **more, "halving": {"first_epochs": 1, "factor": 2}}}

    first = [search("whole"), search("half"), search("half")]
    second = [first[0], {**first[1], "signal_in_epoch": 9}, first[2]]
    (_, whole, half, rest), others = run_pair(folders, [first, second])
    assert others[1:] == [whole, half, rest]
    assert len(whole["rows"]) == 9
    assert {row["epochs"] for row in whole["rows"]} > {1}
    assert not half["finished"]
    assert rest == whole
    assert (folders[0] / "whole" / "trials.log").exists()
    assert not (folders[1] / "whole").exists()


def test_what_processes_tell_each_other(pair):
    _, reports = pair
    odd = {"a": np.array([-0.0, np.nan, np.inf, 0], np.float32), "b": np.array(2**40), "c": np.zeros((0, 3))}
    for report in reports:
        assert report[0] == {"bits": digest(named_leaves(odd)), "gathered": ["", "x" * 5000], "first": 0}


LATE = """
import sys, time
import jax
import numpy as np
number, port, late = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from leignn_jax.training.parallel import DATA, make_mesh, place_batch, place_state, shard_step
from leignn_jax.processes import connect, from_first, gather

time.sleep(late * number)
connect()
time.sleep(late * (1 - number))
told = [from_first(number), gather(str(number))]
mesh = make_mesh(1, 4)
step = jax.jit(shard_step(lambda carry, item: 2 * (jax.lax.psum(carry + item[0], DATA),), mesh))
carry, batch = place_state(mesh, np.ones(())), place_batch(mesh, np.full(2, 1.0 + number))
time.sleep(late * number)
print([*told, float(jax.device_get(step(carry, (batch, None, None))[0]))])
"""


@pytest.mark.slow
def test_processes_wait_for_each_other(tmp_path):
    """Longer than the half minute that CPUs have to meet for the first time: before, and where each compiles."""
    port = str(free_port())
    for out, err, code in end(start([tmp_path] * 2, [["-c", LATE, str(i), port, "40"] for i in range(2)])):
        assert code == 0, err
        assert out.splitlines()[-1] == "[0, ['0', '1'], 10.0]"


def test_one_process_needs_no_other():
    assert gather("a") == ["a"]
    tree = {"a": np.arange(3)}
    assert from_first(tree) is arrays_from_first(tree) is tree
    assert own_parts(make_mesh(1, 1)) == [0]


def test_how_processes_meet_is_said_in_full():
    with pytest.raises(ConfigError, match="together"):
        join_processes(processes=2)
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        join_processes("10.0.0.1", 2, 0)


def command(port, processes, process, *words):
    joining = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process", str(process)]
    return ["-m", "leignn_jax.cli", "train", "--out", "run", *words, *joining]


def test_the_command_line_joins_before_devices_start(tmp_path):
    """Else JAX would refuse before the missing file is seen."""
    ((_, err, code),) = end(start([tmp_path], [command(free_port(), 1, 0, "--train", "none.h5")]))
    assert code == 1
    assert err.startswith("Error: none.h5")


@pytest.mark.slow
def test_command_line(tmp_path):
    """One training by two commands; and a difference that both refuse."""
    folders = make_folders(tmp_path)
    words = ["data.batch_size=1", "data.validation_fraction=0.2", "run.devices=4", "run.epochs=1"]
    words += [f"{section}.{k}={json.dumps(v)}" for section in DIRECT for k, v in DIRECT[section].items()]

    def both(file):
        port = free_port()
        return end(start(folders, [command(port, 2, i, "--train", file, *words) for i in range(2)]))

    for _, err, code in both("other.h5"):
        assert code == 1
        assert "Error: Process 1 differs from process 0 in the train file" in err
    done = both("train.h5")
    assert [code for _, _, code in done] == [0, 0], done
    # Gloo, which CPUs talk by, writes lines of its own.
    texts = ["".join(x for x in out.splitlines(True) if not x.startswith("[Gloo]")) for out, _, _ in done]
    assert json.loads(texts[0])["validation"]["structures"] == 4
    assert texts[1] == ""
