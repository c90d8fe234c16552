"""Whole runs: what they leave, that they go on bit for bit, and how they refuse."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from damage import outcomes
from frames import copper

import leignn_jax as leignn
from leignn_jax import potential_file
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError, DataError, ElementError, LeignnError, TrainingError
from leignn_jax.plotting import new_figure
from leignn_jax.sweeps.committee import committee
from leignn_jax.training import loop, report
from leignn_jax.training.checkpoint import Checkpoints
from leignn_jax.training.config import make_config
from leignn_jax.training.folder import RunFolder, _hashes_in
from leignn_jax.training.prepared import prepare, resident_frames
from leignn_jax.training.programs import CountedCompiles

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

SIZE = {"features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}
MODEL = {"preset": "small", **SIZE}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_hdf5(folder / "train.h5", copper(20, 0))
    write_hdf5(folder / "test.h5", copper(5, 1))
    return folder


def settings(files, out, **run):
    return {
        "data": {"train": str(files / "train.h5"), "batch_size": 4, "validation_fraction": 0.2},
        "model": MODEL,
        "loss": {"stress_weight": 0.1},
        "optimizer": {"learning_rate": 5e-3, "warmup_epochs": 0},
        "run": {"out": str(out), "epochs": 3, **run},
    }


def test_walls_stand_below_the_train_file(files, tmp_path):
    """The same from memory and from a store; going on with other data opens what either holds."""
    from leignn_jax.data import read_frames, shortest_distances

    values = settings(files, tmp_path / "run")
    values["model"] = {**MODEL, "repulsion": True}
    first = prepare(make_config(values)).potential
    shortest = shortest_distances(read_frames(files / "train.h5"), 4.0)
    assert first.wall_distances == {("Cu", "Cu"): pytest.approx(0.9 * shortest["Cu", "Cu"])}
    begins = first.wall_distances["Cu", "Cu"]
    cached = make_config(values, [f"data.cache={tmp_path / 'cache'}"])
    assert prepare(cached).potential.wall_distances == first.wall_distances

    narrow = first.with_walls({("Cu", "Cu"): begins - 0.1})
    wide = first.with_walls({("Cu", "Cu"): begins + 0.1})
    del values["model"]
    for start, walls in (
        (narrow, narrow.wall_distances),
        (wide, first.wall_distances),
        (first.replace(walls=None), {}),
    ):
        start.save(tmp_path / "start.safetensors")
        values["run"]["start_from"] = str(tmp_path / "start.safetensors")
        assert prepare(make_config(values)).potential.wall_distances == walls


@pytest.fixture(autouse=True)
def without_pictures(request):
    """To draw takes longer than a small run does; `whole` has its pictures, and the test that compares them."""
    with pytest.MonkeyPatch.context() as patch:
        if request.function is not test_a_cache_changes_no_bit:
            patch.setattr(report, "save_figure", lambda _figure, _path: b"")
        yield


def parameters(path):
    return leignn.load_potential(path).params


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run that nobody interrupts."""
    values = settings(files, tmp_path_factory.mktemp("runs") / "whole", epochs=4)
    values["data"]["test"] = str(files / "test.h5")
    return leignn.train(values, progress=False)


def test_a_run_folder_is_complete(whole):
    names = {p.name for p in whole.out.iterdir()}
    expected = {"config.yaml", "data.json", "metrics.csv", "metrics.json", "report.html", "learning_curve.png"}
    assert expected | {"parity_validation.png", "parity_test.png", "potential.safetensors", "last.safetensors"} <= names
    assert whole.finished
    assert len(whole.history) == len((whole.out / "metrics.csv").read_text().splitlines()) - 1 == 4
    assert whole.history[-1]["validation_loss"] < whole.history[0]["validation_loss"]
    found = json.loads((whole.out / "metrics.json").read_text())
    assert found["test"]["structures"] == 5
    assert found["run"]["compiles"]["train"][0] <= found["run"]["compiles"]["train"][1] <= 3
    data = json.loads((whole.out / "data.json").read_text())
    assert len(data["validation_frames_of_train"]) == 4
    page = (whole.out / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert whole.potential.metadata["epoch"] == found["run"]["best_epoch"]


def test_metrics_are_those_of_evaluate(whole, files):
    evaluation = leignn.evaluate(whole.potential, files / "test.h5")
    for name, value in whole.metrics["test"].items():
        assert evaluation.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5)
    best = min(whole.history, key=lambda row: row["validation_loss"])
    for name in ("energy_mae_mev_per_atom", "forces_rmse_mev_per_angstrom", "stress_mae_mev_per_angstrom3"):
        assert whole.metrics["validation"][name] == pytest.approx(best[f"validation_{name}"], rel=1e-3)


def test_seeds_fix_everything(whole, files, tmp_path):
    values = settings(files, tmp_path / "again", epochs=4)
    values["data"]["test"] = str(files / "test.h5")
    again = leignn.train(values, progress=False)
    assert same(parameters(whole.out / "last.safetensors"), parameters(again.out / "last.safetensors"))
    other = leignn.train(values, ["run.seed=1", f"run.out={tmp_path / 'other'}"], progress=False)
    assert not same(again.potential.params, other.potential.params)


SCRIPT = """
import sys, json, logging
import leignn_jax
from leignn_jax.training import loop
result = leignn_jax.train(json.loads(sys.argv[1]), progress=False)
print("finished" if result.finished else "stopped", flush=True)
"""


def start(values):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(values)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process, lines: int = 1, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and len(path.read_text().splitlines()) > lines):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_saves_and_the_same_command_goes_on(files, tmp_path):
    """The process writes a checkpoint, exits, and a second one ends with the bits of an undisturbed run."""
    undisturbed = leignn.train(settings(files, tmp_path / "undisturbed", epochs=60), progress=False)
    values = settings(files, tmp_path / "run", epochs=60)
    process = start(values)
    wait_for(tmp_path / "run" / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.strip() == "stopped"
    done = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    assert 1 <= done < 60
    result = leignn.train(values, progress=False)
    assert result.finished
    assert [row["train_loss"] for row in result.history] == [row["train_loss"] for row in undisturbed.history]
    for name in ("last.safetensors", "potential.safetensors"):
        assert same(parameters(tmp_path / "run" / name), parameters(tmp_path / "undisturbed" / name))


def kill_and_resume(files, folder, kills: int, epochs: int, seed: int) -> int:
    """Kill -9 a run at random moments until it is done; the number of kills. Every step is a checkpoint."""
    rng = random.Random(seed)
    values = settings(files, folder / "run", epochs=epochs, checkpoint_minutes=0.0)
    killed = 0
    while killed < kills:
        process = start(values)
        csv = folder / "run" / "metrics.csv"
        seen = len(csv.read_text().splitlines()) if csv.exists() else 0
        wait_for(csv, process, lines=max(seen, 1))
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    result = leignn.train(values, progress=False)
    undisturbed = leignn.train(settings(files, folder / "undisturbed", epochs=epochs), progress=False)
    assert [row["train_loss"] for row in result.history] == [row["train_loss"] for row in undisturbed.history]
    for name in ("last.safetensors", "potential.safetensors"):
        assert same(parameters(folder / "run" / name), parameters(folder / "undisturbed" / name))
    return killed


@pytest.mark.slow
def test_kill_and_resume(files, tmp_path):
    assert kill_and_resume(files, tmp_path, kills=2, epochs=20, seed=0) == 2


@pytest.mark.slow
def test_kill_twenty_times(files, tmp_path):
    assert kill_and_resume(files, tmp_path, kills=20, epochs=200, seed=1) == 20


def stopped_run(files, out, monkeypatch):
    """A run that ends after its second epoch as if preempted, with a checkpoint after every step."""
    values = settings(files, out, epochs=6, checkpoint_minutes=0.0)
    calls = 0
    original = loop.train_row

    def interrupt(*args):
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(loop, "train_row", interrupt)
    result = leignn.train(values, progress=False)
    monkeypatch.undo()
    assert not result.finished
    return values


def test_a_damaged_checkpoint_falls_back(files, tmp_path, monkeypatch, caplog):
    values = stopped_run(files, tmp_path / "run", monkeypatch)
    steps = sorted((int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()), reverse=True)
    assert len(steps) == 2
    newest = tmp_path / "run" / "checkpoints" / str(steps[0])
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    largest.write_bytes(content)
    result = leignn.train(values, progress=False)
    assert "trying the one before" in caplog.text
    undisturbed = leignn.train({**values, "run": {**values["run"], "out": str(tmp_path / "other")}}, progress=False)
    assert same(parameters(result.out / "last.safetensors"), parameters(undisturbed.out / "last.safetensors"))
    # The last epoch is in its checkpoint, too: a run that is done repeats nothing.
    monkeypatch.setattr(loop, "train_row", None)
    assert leignn.train(values, progress=False).history == result.history


def test_no_checkpoint_that_can_be_read(files, tmp_path, monkeypatch):
    values = stopped_run(files, tmp_path / "run", monkeypatch)
    for file in (tmp_path / "run" / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(TrainingError, match="no checkpoint can be read"):
        leignn.train(values, progress=False)


def test_another_config_or_data_is_refused(files, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(files, data)
    values = stopped_run(data, tmp_path / "run", monkeypatch)
    with pytest.raises(TrainingError, match=r"another config .*learning_rate: 0\.01"):
        leignn.train(values, ["optimizer.learning_rate=0.01"], progress=False)
    with pytest.raises(TrainingError, match="holds a run already"):
        leignn.train(values, resume=False, progress=False)
    write_hdf5(data / "train.h5", copper(20, 5))
    with pytest.raises(TrainingError, match="train file has changed"):
        leignn.train(values, progress=False)


def test_a_run_goes_on_where_its_folder_and_its_data_have_come_to_lie(files, tmp_path, monkeypatch):
    values = stopped_run(files, tmp_path / "run", monkeypatch)
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copy(files / "train.h5", tmp_path / "other.h5")
    values["data"]["train"], values["run"]["out"] = str(tmp_path / "other.h5"), str(tmp_path / "moved")
    values["model"] = dict(reversed(values["model"].items()))
    assert len(leignn.train(values, progress=False).history) == values["run"]["epochs"]
    # Whether there is a file is no matter of places.
    shutil.copy(files / "test.h5", tmp_path / "validation.h5")
    with pytest.raises(TrainingError, match=r"another config .*data\.validation: True"):
        leignn.train(values, [f"data.validation={tmp_path / 'validation.h5'}"], progress=False)


def test_epochs_go_to_the_loggers_that_are_named_and_these_are_closed(files, tmp_path, monkeypatch):
    said = []

    class Writer:
        def __init__(self, folder):
            said.append(("writer", Path(folder).name))

        def add_scalar(self, name, value, step):
            said.append((name, step))

        def flush(self):
            pass

        def close(self):
            said.append("writer closed")

    class Run:
        def log(self, row, step):
            said.append(("wandb", step, row["epoch"]))

        def finish(self):
            said.append("wandb finished")

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project, **_: said.append(project) or Run()))
    leignn.train(settings(files, tmp_path / "run", epochs=2, tensorboard=True, wandb="mine"), progress=False)
    assert said[:2] == [("writer", "tensorboard"), "mine"]
    assert [one for one in said if one[0] == "wandb"] == [("wandb", 4, 1), ("wandb", 8, 2)]
    assert ("validation_loss", 8) in said
    assert sorted(said[-2:]) == ["wandb finished", "writer closed"]


def test_no_start_from_a_committee(files, tmp_path):
    parts = [leignn.load_potential("si")] * 2
    committee(parts).save(tmp_path / "committee.safetensors")
    values = settings(files, tmp_path / "run", start_from=str(tmp_path / "committee.safetensors"))
    del values["model"]
    with pytest.raises(ConfigError, match="is a committee"):
        leignn.train(values, progress=False)


def test_a_full_disk_is_an_error_before_the_first_step(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(TrainingError, match="MiB free on the disk"):
        leignn.train(settings(files, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_nan_loss_names_the_batch(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=50)
    values["optimizer"] |= {"learning_rate": 1e30, "clip_norm": 1e30}
    with pytest.raises(TrainingError, match=r"no finite number at step \d+ \(epoch \d+\), on .*train\.h5: frame \d+"):
        leignn.train(values, progress=False)
    kept = parameters(tmp_path / "run" / "last.safetensors")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_fine_tuning_starts_from_a_potential(whole, files, tmp_path, monkeypatch):
    # By a name, as of those that ship with the package.
    monkeypatch.setattr(potential_file, "bundled_potentials", lambda: {"copper": whole.out / "potential.safetensors"})
    values = settings(files, tmp_path / "tuned", epochs=1, start_from="copper")
    values["optimizer"] |= {"freeze": ["messages_0", "embedding"], "learning_rate": 1e-4}
    with pytest.raises(ConfigError, match="leave it out"):
        leignn.train(values, progress=False)
    del values["model"]
    tuned = leignn.train(values, progress=False)
    assert same(tuned.potential.params["messages_0"], whole.potential.params["messages_0"])
    assert tuned.history[0]["validation_loss"] < 1.2 * min(row["validation_loss"] for row in whole.history)


def test_early_stop(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=30, early_stop=2)
    values["optimizer"] |= {"learning_rate": 0.3}
    result = leignn.train(values, progress=False)
    assert result.finished
    assert len(result.history) < 30
    again = leignn.train(values, progress=False)
    assert len(again.history) == len(result.history)


def test_early_stop_waits_for_a_validation(files, tmp_path):
    """Epochs that are not validated say nothing of whether it gets better."""
    result = leignn.train(settings(files, tmp_path / "run", epochs=10, early_stop=2, validate_every=5), progress=False)
    assert len(result.history) == 10
    assert [row["epoch"] for row in result.history if "validation_loss" in row] == [5, 10]
    assert (tmp_path / "run" / "potential.safetensors").exists()


def test_another_start_is_refused_when_it_goes_on(files, tmp_path):
    start = tmp_path / "start.safetensors"
    values = settings(files, tmp_path / "run", epochs=1, start_from=str(start))
    del values["model"]
    for seed in (0, 1):
        leignn.Potential.create(leignn.preset("small", **SIZE, elements=("Cu",)), jax.random.key(seed)).save(start)
        if seed == 0:
            leignn.train(values, progress=False)
    with pytest.raises(TrainingError, match="start_from file has changed"):
        leignn.train(values, progress=False)


def test_two_at_once_in_one_folder(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=1)
    first = RunFolder(make_config(values), {"sha256": {}}, resume=True)
    with pytest.raises(TrainingError, match="another process is working on the training in this folder"):
        leignn.train(values, progress=False)
    first.close()
    assert leignn.train(values, progress=False).finished


def test_a_potential_with_direct_forces_goes_on_with_them(files, tmp_path):
    start = tmp_path / "start.safetensors"
    loss = {"force_source": "direct", "stress_weight": 0.0}
    values = settings(files, tmp_path / "run", start_from=str(start))
    del values["model"]
    for direct in (True, False):
        config = leignn.preset("small", **SIZE, variant="leignn", direct_forces=direct, elements=("Cu",))
        leignn.Potential.create(config, jax.random.key(0)).save(start)
        for recipe in ("default", "published"):
            asked = make_config({**values, "loss": loss, "recipe": recipe})
            if direct:
                assert prepare(asked).potential.config == config
            else:
                with pytest.raises(ConfigError, match="has no such head: set it to gradient"):
                    prepare(asked)


def test_frames_of_a_store_stay_there(files, tmp_path):
    config = make_config(settings(files, tmp_path / "run"), [f"data.cache={tmp_path / 'cache'}"])
    assert resident_frames(prepare(config), config, possible=True) is None
    config = make_config(settings(files, tmp_path / "run"), [f"data.cache={tmp_path / 'cache'}", "data.on_device=true"])
    assert resident_frames(prepare(config), config, possible=True) is not None


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_frames_that_stay_on_the_device_change_no_number_but_by_rounding(files, tmp_path, accumulate):
    """Frames of several sizes, so that batches have several shapes; the program of an epoch is compiled once."""
    write_hdf5(tmp_path / "train.h5", copper(20, 0, ((1, 1, 1), (1, 1, 1), (3, 1, 1))))
    runs = []
    for kept in (True, False):
        values = settings(files, tmp_path / f"run {kept}")
        values["data"] |= {
            "train": str(tmp_path / "train.h5"),
            "batch_size": 2,
            "accumulate": accumulate,
            "on_device": kept,
        }
        runs.append(leignn.train(values, progress=False))
    planned = json.loads((tmp_path / "run True" / "data.json").read_text())["plan"]["shapes"]
    assert len(planned) > 1
    facts = json.loads((tmp_path / "run True" / "metrics.json").read_text())["run"]
    assert facts["compiles"]["train"] == [1, 1]
    # The same sums in another program: equal to rounding.
    for a, b in zip(runs[0].history, runs[1].history, strict=True):
        for name in a.keys() - {"seconds", "frames_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    for name in ("potential.safetensors", "last.safetensors"):
        for x, y in zip(*(jax.tree.leaves(parameters(run.out / name)) for run in runs), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_frames_can_not_stay_on_the_device_for_a_fit(files, tmp_path):
    values = settings(files, tmp_path / "run")
    values["data"] |= {"on_device": True}
    config = make_config(values)
    prepared = prepare(config)
    with pytest.raises(ConfigError, match=r"data.on_device: .* where a fit's targets pull"):
        resident_frames(prepared, config, possible=False)
    values["data"] |= {"on_device": False}
    assert resident_frames(prepared, make_config(values), possible=True) is None


@pytest.mark.slow
def test_accumulated_batches(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=2)
    values["data"] |= {"batch_size": 2, "accumulate": 2}
    result = leignn.train(values, progress=False)
    assert result.history[-1]["step"] == 8
    values["data"]["accumulate"] = 20
    with pytest.raises(ConfigError, match="One update takes 20 batches"):
        leignn.train({**values, "run": {"out": str(tmp_path / "other")}}, progress=False)


def test_published_recipe_on_direct_forces(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=3)
    values |= {"recipe": "published", "model": {**MODEL, "direct_forces": True}, "optimizer": {}, "loss": {}}
    result = leignn.train(values, progress=False)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    evaluation = leignn.evaluate(result.potential, files / "train.h5", direct=True)
    assert evaluation.metrics["forces_mae_mev_per_angstrom"] > 0


def bad_file(folder, frames):
    path = folder / "bad.extxyz"
    import ase.io

    ase.io.write(path, frames)
    return path


def with_forces(atoms, forces):
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy(), forces=forces)
    return copy


def test_bad_data_ends_in_words(files, tmp_path):
    frames = copper(6, 9, stress=False)
    values = settings(files, tmp_path / "run")
    values["loss"] = {}

    def attempt(error, message, **data):
        with pytest.raises(error, match=message):
            leignn.train({**values, "data": {**values["data"], **data}}, progress=False)

    nan = frames[2].get_forces().copy()
    nan[1] = np.nan
    attempt(
        DataError,
        r"bad\.extxyz: frame 2: the force on atom 1",
        train=str(bad_file(tmp_path, [*frames[:2], with_forces(frames[2], nan)])),
    )
    large = with_forces(frames[3], 100 * frames[3].get_forces())
    attempt(
        DataError,
        r"bad\.extxyz: frame 3: forces .* force RMS",
        train=str(bad_file(tmp_path, [*frames[:3], large, *frames[4:]])),
    )
    attempt(
        DataError,
        r"bad\.extxyz: forces are too large: their RMS is",
        validation=str(bad_file(tmp_path, [with_forces(a, 100 * a.get_forces()) for a in frames])),
    )
    attempt(DataError, "too few", train=str(bad_file(tmp_path, frames[:1])))
    attempt(DataError, "same structure as", validation=str(files / "train.h5"))
    gold = frames[0].copy()
    gold.numbers[0] = 79
    gold.calc = SinglePointCalculator(gold, **frames[0].calc.results)
    attempt(
        ElementError,
        "holds Au, which no frame of train",
        validation=str(bad_file(tmp_path, [gold])),
    )
    attempt(LeignnError, "name a file", train=None)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_return_what_was_saved(tmp_path):
    tree = {"a": np.arange(5.0), "b": (np.float32(2.0), np.int32(3))}
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(tree) is None
    checkpoints.save(3, tree, {"epoch": 1})
    checkpoints.wait()
    restored, meta = checkpoints.restore(jax.tree.map(np.zeros_like, tree))
    assert same(restored, tree)
    assert meta["epoch"] == 1
    checkpoints.close()


def test_compiles_are_counted():
    counted = CountedCompiles(lambda x: x + 1, 1, "The step")
    assert float(counted(np.float32(1))) == 2
    assert float(counted(np.float32(3))) == 4
    assert counted.count == 1
    with pytest.raises(TrainingError, match="1 were planned"):
        counted(np.zeros(3, np.float32))


def test_frames_of_many_sizes_compile_as_planned(tmp_path):
    write_hdf5(tmp_path / "train.h5", copper(12, 0, ((1, 1, 1), (3, 1, 1))))
    values = settings(tmp_path, tmp_path / "run", epochs=2)
    values["data"] |= {"batch_size": 1, "on_device": False}
    leignn.train(values, progress=False)
    run = json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]
    assert run["compiles"]["train"] == [2, 2]
    assert json.loads((tmp_path / "run" / "data.json").read_text())["plan"]["padding"] < 0.2


def test_make_config_is_what_train_takes(files, tmp_path):
    config = make_config(settings(files, tmp_path / "run", epochs=1))
    assert leignn.train(config, ["run.seed=3"], progress=False).finished


def test_a_cache_changes_no_bit(whole, files, tmp_path):
    values = settings(files, tmp_path / "cached", epochs=4)
    values["data"] |= {"test": str(files / "test.h5"), "cache": str(tmp_path / "cache"), "on_device": True}
    # Built here, found by the run.
    prepare(make_config(values))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    result = leignn.train(values, progress=False)
    for name in ("potential", "last"):
        mine, expected = (leignn.load_potential(r.out / f"{name}.safetensors") for r in (result, whole))
        assert same(mine, expected)
    assert result.metrics == whole.metrics
    timing = {"seconds": 0, "frames_per_second": 0}
    assert [row | timing for row in result.history] == [row | timing for row in whole.history]
    for name in ("data.json", "parity_test.png"):
        assert (result.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_a_cache_prepares_the_same(files, tmp_path):
    """Sizes and compositions that differ, frames without stress, a part of the file."""
    import ase.io

    frames = copper(21, 3, ((1, 1, 1), (2, 1, 1)))
    for atoms in frames[::3]:
        atoms.calc.results.pop("stress")
        atoms.numbers[0] = 79
        atoms.calc.atoms = atoms.copy()
    ase.io.write(tmp_path / "train.extxyz.xz", frames, format="extxyz")
    values = settings(files, tmp_path / "run")
    values["data"] |= {"train": str(tmp_path / "train.extxyz.xz"), "max_frames": 18}
    plain = prepare(make_config(values))
    values["data"] |= {"cache": str(tmp_path / "cache")}
    cached = prepare(make_config(values))
    assert cached.splits.held_out == plain.splits.held_out
    assert cached.steps_per_epoch == plain.steps_per_epoch
    assert cached.potential.config == plain.potential.config
    assert same(cached.potential, plain.potential)
    for mine, expected in ((cached.train, plain.train), (cached.validation, plain.validation)):
        assert mine.plan == expected.plan
        np.testing.assert_array_equal(mine.sizes, expected.sizes)
        assert len(mine.examples) == len(expected.examples) > 2
        assert all(same(a, b) for a, b in zip(mine.examples, expected.examples, strict=True))


def test_a_cache_refuses_what_memory_refuses(files, tmp_path):
    frames = copper(6, 9, stress=False)
    values = settings(files, tmp_path / "run")
    values["loss"] = {}
    gold = frames[0].copy()
    gold.numbers[0] = 79
    gold.calc = SinglePointCalculator(gold, **frames[0].calc.results)
    cases = [
        (DataError, {"train": [*frames[:3], with_forces(frames[3], 100 * frames[3].get_forces()), *frames[4:]]}),
        (DataError, {"train": frames, "validation": [with_forces(a, 100 * a.get_forces()) for a in copper(4, 1)]}),
        (DataError, {"train": frames, "validation": frames[4:]}),
        (ElementError, {"train": frames, "validation": [*copper(2, 1), gold]}),
        (DataError, {"train": [a.copy() for a in frames]}),
        (DataError, {"train": [with_forces(frames[0], np.full((4, 3), np.nan))]}),
        (ElementError, {"train": [*frames, gold], "model": {**MODEL, "elements": ["Cu", "Au"]}, "start": True}),
    ]
    import ase.io

    leignn.Potential.create(make_config(values).model_for(["Cu"]), jax.random.key(0)).save(
        tmp_path / "start.safetensors"
    )
    for number, (error, case) in enumerate(cases):
        data = dict(values["data"])
        for name in ("train", "validation"):
            if name in case:
                data[name] = str(tmp_path / f"{name}{number}.extxyz")
                ase.io.write(data[name], case[name])
        words = []
        for cache in (None, str(tmp_path / "cache")):
            run = values["run"] | ({"start_from": str(tmp_path / "start.safetensors")} if "start" in case else {})
            one = {**values, "data": data | {"cache": cache}, "run": run, "model": {} if "start" in case else MODEL}
            with pytest.raises(error) as caught:
                leignn.train(one, progress=False)
            words.append(str(caught.value))
        assert words[0] == words[1]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    mine, other = (tmp_path / name / "checkpoints" for name in ("mine", "other"))
    for folder in (mine, other):
        for name in ("7.orbax-checkpoint-tmp-1700000000", "8.orbax-checkpoint-tmp"):
            (folder / name / "state").mkdir(parents=True)
        (folder / "notes.txt").touch()
    tree = {"a": np.arange(5.0)}
    checkpoints = Checkpoints(mine)
    checkpoints.save(3, tree, {"epoch": 1})
    checkpoints.wait()
    assert sorted(p.name for p in mine.iterdir()) == ["3", "notes.txt"]
    assert len(list(other.iterdir())) == 3
    # What a process that lives is writing stays.
    (mine / "9.orbax-checkpoint-tmp").mkdir()
    program = (
        "import sys, pathlib; from leignn_jax.training.checkpoint import Checkpoints;"
        "Checkpoints(pathlib.Path(sys.argv[1])).close()"
    )
    command = [sys.executable, "-c", program, str(mine)]
    refused = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "another process is working on the training" in refused.stderr
    assert (mine / "9.orbax-checkpoint-tmp").is_dir()
    checkpoints.close()
    again = Checkpoints(mine)
    assert not (mine / "9.orbax-checkpoint-tmp").exists()
    assert same(again.restore(tree)[0], tree)
    again.close()


# Threads of orbax print what they met after its call has raised it.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_damaged_byte_of_a_checkpoint_is_told_or_changes_no_number(tmp_path):
    tree = {"a": np.arange(50.0), "b": np.int32(3)}
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(3, tree, {"epoch": 1, "best": {"loss": 0.123456789}, "history": [{"loss": math.inf}]})
    checkpoints.close()
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    largest = sorted((f for f in (tmp_path / "run").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    assert any("meta" in str(file) for file in largest)

    def read():
        opened = Checkpoints(tmp_path / "run")
        try:
            found = opened.restore(tree)
        finally:
            opened.close()
        return found[0], found[1]["epoch"], found[1]["best"], found[1]["history"]

    for file in largest:
        seen = outcomes(file, read, 2, seed=0)
        assert seen.keys() <= {"told", "same"}, (file, seen)
    (meta,) = (tmp_path / "run" / "3").rglob("metadata")
    meta.write_text(meta.read_text().replace("0.123456789", "0.123456788"))
    with pytest.raises(TrainingError, match="its checksum does not fit"):
        read()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', "[" * 5000])
def test_a_damaged_note_of_the_data_is_told(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(TrainingError, match=r"data\.json: damaged"):
        _hashes_in(tmp_path / "data.json")


def test_no_text_of_a_run_is_html(files, tmp_path, monkeypatch):
    """Names of files, settings and metadata: whatever they hold, a browser shows it and runs nothing."""
    script = "<script>alert('&')"
    out = tmp_path / script
    out.mkdir()
    (out / "config.yaml").write_text(f"recipe: {script}")
    config = make_config(settings(files, out))
    model = leignn.preset(MODEL["preset"], elements=("Cu",), features=8, layers=1, num_radial=4)
    metadata = {script: {"a": script}}
    potential = leignn.Potential.create(model, jax.random.key(0), metadata=metadata)
    monkeypatch.setattr(report, "compare", lambda *_: SimpleNamespace(metrics={script: 1.0}))
    monkeypatch.setattr(report, "parity", lambda *_: new_figure(1)[0])
    splits = SimpleNamespace(validation=None, test=SimpleNamespace(size=1, frame=None))
    report.finish_report(config, splits, potential, [], {script: script})
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert script not in report.page(script, [report.table([[script]], [script]), report.picture(b"", script)])
