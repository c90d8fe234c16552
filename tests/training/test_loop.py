"""Whole runs: what they leave, that they go on bit for bit, and where they stop."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from copper_runs import MODEL, parameters, same, settings, stopped_run
from frames import copper

import leignn_jax as leignn
from leignn_jax import potential_file
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError, TrainingError
from leignn_jax.training import loop
from leignn_jax.training.config import make_config
from leignn_jax.training.prepared import prepare

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")


@pytest.fixture(autouse=True)
def pictures_where_they_are_compared(request):
    if request.function is not test_a_cache_changes_no_bit:
        request.getfixturevalue("without_pictures")


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


def test_it_trains_where_jax_has_64_bits(files, tmp_path):
    with jax.enable_x64(True):
        found = leignn.train(settings(files, tmp_path / "run", epochs=1), progress=False)
    assert np.isfinite(found.metrics["validation"]["forces_mae_mev_per_angstrom"])


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
