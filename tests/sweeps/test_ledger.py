"""A study is not lost: it goes on after a signal or a kill to the same bits, grows, and refuses what is another's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import TrainingError
from leignn_jax.sweeps.ledger import Ledger
from leignn_jax.sweeps.report import write_study
from leignn_jax.sweeps.space import make_study, members
from leignn_jax.training import loop

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

MODEL = {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    write_hdf5(folder / "train.h5", copper(20))
    return folder / "train.h5"


def study(data, out, rates=(1e-3, 2e-3, 3e-3), epochs=3, **more):
    return {
        "base": {
            "data": {"train": str(data), "batch_size": 4, "validation_fraction": 0.2},
            "model": MODEL,
            "optimizer": {"warmup_epochs": 0},
            "run": {"out": str(out), "epochs": epochs, "checkpoint_minutes": 0.0},
        },
        "space": {"optimizer.learning_rate": list(rates)},
        "members_at_once": 2,
        **more,
    }


def same(result, right):
    """Table and potentials, to the last bit."""
    assert result.rows == right.rows
    for a, b in zip(result.potentials, right.potentials, strict=True):
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return leignn.sweep(study(data, tmp_path_factory.mktemp("undisturbed") / "study"), progress=False)


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_signal_stops_it_and_the_same_call_goes_on(data, undisturbed, tmp_path, monkeypatch, epoch):
    """In the first lot, and in the second: the last epoch that was begun, of six in all, is seen by its rows."""
    calls, original = 0, loop.metrics

    def interrupt(sums):
        nonlocal calls
        calls += 1
        if calls == 2 * epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(sums)

    monkeypatch.setattr(loop, "metrics", interrupt)
    stopped = leignn.sweep(study(data, tmp_path / "study"), progress=False)
    monkeypatch.undo()
    assert not stopped.finished
    assert stopped.signal == "SIGTERM"
    assert len(stopped.rows) == (0 if epoch == 2 else 2)
    assert not (tmp_path / "study" / "results.csv").exists()
    result = leignn.sweep(study(data, tmp_path / "study"), progress=False)
    assert result.finished
    same(result, undisturbed)
    assert not list((tmp_path / "study" / "checkpoints").iterdir())


def test_what_has_ended_is_not_trained_again(undisturbed):
    again = leignn.sweep(undisturbed.out / "study.yaml", progress=False)
    assert again.compiles == [0]
    same(again, undisturbed)


@pytest.mark.slow
def test_members_that_come_are_trained_alone(data, undisturbed, tmp_path):
    first = leignn.sweep(study(data, tmp_path / "study"), progress=False)
    same(first, undisturbed)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "study" / "potentials").iterdir()}
    # One comes first in the grid: numbers stay what they are.
    grown = study(data, tmp_path / "study", (5e-4, 1e-3, 2e-3, 3e-3))
    with pytest.raises(TrainingError, match=r"another study \(space.optimizer.learning_rate differ\).*--extend"):
        leignn.sweep(grown, progress=False)
    result = leignn.sweep(grown, extend=True, progress=False)
    assert {row["member"]: row["optimizer.learning_rate"] for row in result.rows} == {
        0: 1e-3,
        1: 2e-3,
        2: 3e-3,
        3: 5e-4,
    }
    kept = [row for row in result.rows if row["member"] < 3]
    assert kept == first.rows
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "study" / "potentials").iterdir()}
    assert after.keys() - before.keys() == {"003.safetensors"}
    assert all(after[name] == time for name, time in before.items())
    with pytest.raises(TrainingError, match=r"member with optimizer.learning_rate 0.0005, which this one has not"):
        leignn.sweep(study(data, tmp_path / "study"), extend=True, progress=False)


def test_another_study_is_refused_by_its_key(data, undisturbed):
    other = study(data, undisturbed.out, epochs=4)
    with pytest.raises(TrainingError, match=r"holds another study \(base.run.epochs differ\)"):
        leignn.sweep(other, progress=False)
    with pytest.raises(TrainingError, match="holds a study already"):
        leignn.sweep(study(data, undisturbed.out), resume=False, progress=False)


def test_two_at_once_are_refused(data, tmp_path):
    asked = make_study(study(data, tmp_path / "study"))
    ledger = Ledger(tmp_path / "study", asked, members(asked))
    with pytest.raises(TrainingError, match="another process is working on the study"):
        leignn.sweep(asked, progress=False)
    ledger.close()
    Ledger(tmp_path / "study", asked, members(asked)).close()


def test_changed_data_are_told(data, tmp_path):
    file = tmp_path / "train.h5"
    file.write_bytes(data.read_bytes())
    leignn.sweep(study(file, tmp_path / "study", epochs=1), progress=False)
    file.unlink()
    write_hdf5(file, copper(20, 5))
    with pytest.raises(TrainingError, match="train file has changed since this study began"):
        leignn.sweep(study(file, tmp_path / "study", (1e-3, 2e-3, 3e-3, 4e-3), epochs=1), extend=True, progress=False)


@pytest.mark.parametrize("name", ["members.json", "data.json"])
def test_a_damaged_ledger_is_told(data, tmp_path, name):
    leignn.sweep(study(data, tmp_path / "study", epochs=1), progress=False)
    (tmp_path / "study" / "ledger" / name).write_text('{"members": [')
    with pytest.raises(TrainingError, match=f"{name}: damaged"):
        leignn.sweep(study(data, tmp_path / "study", (1e-3, 2e-3, 3e-3, 4e-3), epochs=1), extend=True, progress=False)


def test_a_ledger_without_its_members_is_told(data, tmp_path):
    leignn.sweep(study(data, tmp_path / "study", epochs=1), progress=False)
    (tmp_path / "study" / "ledger" / "members.json").unlink()
    with pytest.raises(TrainingError, match=r"members.json: it is missing"):
        leignn.sweep(study(data, tmp_path / "study", epochs=1), progress=False)


@pytest.mark.parametrize("rates", [(1e-3, 2e-3), (1e30, 1e30 / 3), (1e30, 1e-3)])
def test_epochs_without_validation(data, tmp_path, rates):
    """Of two that go on, of two that diverge before there is a loss, and of one of either."""
    values = study(data, tmp_path / "study", rates, objectives=["validation_forces_rmse_mev_per_angstrom"])
    values["base"]["run"] |= {"validate_every": 2}
    values["base"]["optimizer"] |= {"clip_norm": 1e30}
    result = leignn.sweep(values, progress=False)
    assert [row["validation_loss"] is None for row in result.rows] == sorted(rate > 1 for rate in rates)
    assert (result.out / "curves.png").exists()
    assert (result.out / "best.safetensors").exists() == (min(rates) < 1)


def test_lots_of_another_size_leave_no_member_out(data, tmp_path, monkeypatch):
    rates, calls, original = (1e-3, 2e-3, 3e-3, 4e-3), 0, loop.metrics

    def interrupt(sums):
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(sums)

    monkeypatch.setattr(loop, "metrics", interrupt)
    stopped = leignn.sweep(study(data, tmp_path / "study", rates), progress=False)
    monkeypatch.undo()
    assert len(stopped.rows) == 2
    wider = study(data, tmp_path / "study", rates) | {"members_at_once": 4}
    result = leignn.sweep(wider, extend=True, progress=False)
    assert result.finished
    assert sorted(row["member"] for row in result.rows) == [0, 1, 2, 3]


def test_a_study_goes_on_where_its_folder_and_its_data_have_come_to_lie(data, undisturbed, tmp_path):
    shutil.copytree(undisturbed.out, tmp_path / "study")
    shutil.copy(data, tmp_path / "moved.h5")
    again = leignn.sweep(study(tmp_path / "moved.h5", tmp_path / "study"), progress=False)
    assert again.compiles == [0]
    same(again, undisturbed)
    write_hdf5(tmp_path / "moved.h5", copper(21))
    with pytest.raises(TrainingError, match="train file has changed"):
        leignn.sweep(
            study(tmp_path / "moved.h5", tmp_path / "study", (1e-3, 2e-3, 3e-3, 4e-3)), extend=True, progress=False
        )


def test_rules_of_evolution_stay(data, tmp_path):
    values = study(data, tmp_path / "study", search="evolution", samples=4)
    values["space"] = {"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    one, other = (make_study(values | {"evolution": {"every": every}}) for every in (1, 2))
    Ledger(tmp_path / "study", one, members(one)).close()
    with pytest.raises(TrainingError, match=r"evolution.every differ\), by which its members would be of two kinds"):
        Ledger(tmp_path / "study", other, members(other), extend=True)


def test_settings_of_several_kinds_are_a_table(tmp_path):
    import pandas

    (tmp_path / "study.yaml").write_text("")
    rows = [
        {"member": 0, "x": 0.5, "y": "fit", "validation_loss": 1.0, "epochs": 1},
        {"member": 1, "x": "1e-3", "y": {"Cu": -1.0}, "validation_loss": 2.0, "epochs": 1},
    ]
    write_study(tmp_path, rows, [{"member": i, "epoch": 1, "validation_loss": 1.0} for i in range(2)], ["x", "y"])
    found = pandas.read_parquet(tmp_path / "results.parquet")
    assert found["y"].tolist() == ["fit", '{"Cu": -1.0}']
    assert found["validation_loss"].tolist() == [1.0, 2.0]


def test_members_that_are_the_same_are_trained_once(data, tmp_path, caplog):
    result = leignn.sweep(study(data, tmp_path / "study", (1e-3, 1e-3), epochs=1), progress=False)
    assert len(result.rows) == 1
    assert "1 members are the same as others" in caplog.text


@pytest.mark.slow
def test_a_member_that_stops_early_is_what_it_is_alone(data, tmp_path):
    """One of two has no better loss for an epoch; the other goes on, and the first one's best does not change any more."""
    values = study(data, tmp_path / "study", (3e-2, 1e-4), epochs=8)
    values["base"]["run"] |= {"early_stop": 1}
    result = leignn.sweep(values, progress=False)
    rows = {row["member"]: row for row in result.rows}
    lengths = []
    for number, rate in enumerate((3e-2, 1e-4)):
        alone = {**values["base"], "optimizer": {"warmup_epochs": 0, "learning_rate": rate}}
        alone["run"] = {**values["base"]["run"], "out": str(tmp_path / f"alone {number}")}
        history = leignn.train(alone, progress=False).history
        best = min(history, key=lambda row: row["validation_loss"])
        assert rows[number]["best_epoch"] == best["epoch"]
        assert rows[number]["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-3)
        lengths.append(len(history))
    assert lengths[0] < lengths[1]


SWEEP = """
import json, sys
import leignn_jax
leignn_jax.sweep(json.loads(sys.argv[1]), progress=False)
"""


@pytest.mark.slow
def test_kill_and_resume(data, undisturbed, tmp_path):
    values, rng, kills = study(data, tmp_path / "study"), np.random.default_rng(0), 0
    while kills < 6:
        process = subprocess.Popen([sys.executable, "-c", SWEEP, json.dumps(values)])
        saved = tmp_path / "study" / "checkpoints"
        end = time.monotonic() + 300
        while process.poll() is None and not (saved.is_dir() and any(saved.iterdir())):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
    assert kills
    same(leignn.sweep(values, progress=False), undisturbed)
