"""Searches: places filled anew without a recompile, halving, several workers, evolution; and nothing lost by a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from glob import glob
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError, TrainingError
from leignn_jax.sweeps.ledger import Ledger
from leignn_jax.sweeps.space import make_study
from leignn_jax.sweeps.trials import Trials
from leignn_jax.training import loop

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

MODEL = {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}
TWO = ["validation_loss", "validation_energy_mae_mev_per_atom"]
SPACE = {
    "optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "optimizer.schedule": ["constant", "cosine"],
    "loss.ramp": [[0.1, 0.5], [0.5, 0.9]],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    write_hdf5(folder / "train.h5", copper(20))
    return folder / "train.h5"


def study(data, out, **more):
    return {
        "base": {
            "data": {"train": str(data), "batch_size": 4, "validation_fraction": 0.2},
            "model": MODEL,
            "optimizer": {"warmup_epochs": 0},
            "run": {"out": str(out), "epochs": 4, "checkpoint_minutes": 0.0},
        },
        "space": SPACE,
        "search": "tpe",
        "samples": 10,
        "members_at_once": 4,
        "startup": 5,
        "halving": {"first_epochs": 1, "factor": 2},
        **more,
    }


def same(result, right):
    """Table and potentials, to the last bit."""
    assert result.rows == right.rows
    for a, b in zip(result.potentials, right.potentials, strict=True):
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
            np.testing.assert_array_equal(x, y)


def stored(result, name="study"):
    journal = optuna.storages.journal.JournalFileBackend(str(result.out / "trials.log"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(journal)).trials


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return leignn.sweep(study(data, tmp_path_factory.mktemp("undisturbed") / "study"), progress=False)


def test_places_are_filled_anew_by_one_program(undisturbed):
    assert undisturbed.compiles == [1]
    assert sorted(row["member"] for row in undisturbed.rows) == list(range(10))
    epochs = [row["epochs"] for row in undisturbed.rows]
    assert 4 in epochs
    assert 1 in epochs
    assert sum(epochs) < 40
    losses = [row["validation_loss"] for row in undisturbed.rows]
    assert losses == sorted(losses)
    assert undisturbed.best is undisturbed.potentials[0]


def test_the_storage_is_optunas(undisturbed):
    trials = stored(undisturbed)
    rows = {row["member"]: row for row in undisturbed.rows}
    assert len(trials) == 10
    for number, trial in enumerate(trials):
        row = rows[trial.user_attrs["member"]]
        assert trial.user_attrs["member"] == number
        assert trial.params["optimizer.learning_rate"] == row["optimizer.learning_rate"]
        assert json.loads(trial.params["loss.ramp"]) == row["loss.ramp"]
        assert max(trial.intermediate_values) == row["epochs"]
        assert trial.intermediate_values[row["epochs"]] == row["validation_loss"]
        assert trial.state.name == ("COMPLETE" if row["epochs"] == 4 else "PRUNED")


def test_halving_drops_who_is_not_among_the_best_of_a_rung(undisturbed):
    """The four of the first population come to the first rung together: two go on."""
    trials = stored(undisturbed)
    first = [trial.intermediate_values[1] for trial in trials[:4]]
    kept = [trial.user_attrs["rung 0"] for trial in trials[:4]]
    assert kept == [value <= sorted(first)[1] for value in first]
    assert [trial.user_attrs["epochs"] > 1 for trial in trials[:4]] == kept


def test_a_member_that_came_later_begins_at_the_beginning(undisturbed):
    with open(undisturbed.out / "history.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["member"] == "9"]
    settings = next(row for row in undisturbed.rows if row["member"] == 9)
    assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(len(rows))]
    assert [row["step"] for row in rows] == [str(4 * (i + 1)) for i in range(len(rows))]
    if settings["optimizer.schedule"] == "constant":
        assert float(rows[0]["learning_rate"]) == pytest.approx(settings["optimizer.learning_rate"], rel=1e-6)
    else:
        # The cosine's fourth of sixteen steps.
        cosine = 0.5 * (1 + np.cos(np.pi * 3 / 16))
        floor = float(rows[0]["learning_rate"]) / settings["optimizer.learning_rate"]
        assert floor == pytest.approx(cosine, rel=0.05)


@pytest.mark.parametrize("rows", [13, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 21))])
def test_sigterm_stops_and_the_same_call_goes_on(data, undisturbed, tmp_path, monkeypatch, rows):
    """After so many epochs of members."""
    right, seen = loop.train_row, []

    def row(running):
        seen.append(1)
        if len(seen) == rows:
            os.kill(os.getpid(), signal.SIGTERM)
        return right(running)

    monkeypatch.setattr(loop, "train_row", row)
    stopped = leignn.sweep(study(data, tmp_path / "study"), progress=False)
    assert not stopped.finished
    assert stopped.signal == "SIGTERM"
    same(leignn.sweep(study(data, tmp_path / "study"), progress=False), undisturbed)


class Died(BaseException):
    """As if killed: nothing catches it."""


@pytest.mark.parametrize(
    ("where", "name", "calls", "before"),
    [
        (Trials, "ask", 7, False),
        (Trials, "end", 3, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (Trials, "ask", 3, True),
                (Trials, "report", 9, False),
                (Trials, "goes_on", 2, False),
                (Trials, "end", 3, True),
                (Ledger, "add", 6, True),
                (Ledger, "end", 2, True),
                (Ledger, "write_population", 2, True),
            )
        ),
    ],
)
def test_a_kill_between_storage_and_ledger_changes_nothing(
    data, undisturbed, tmp_path, monkeypatch, where, name, calls, before
):
    right, seen = getattr(where, name), []

    def dying(self, *args, **more):
        seen.append(1)
        if before and len(seen) == calls:
            raise Died
        found = right(self, *args, **more)
        if len(seen) == calls:
            raise Died
        return found

    with monkeypatch.context() as patch:
        patch.setattr(where, name, dying)
        with pytest.raises(Died):
            leignn.sweep(study(data, tmp_path / "study"), progress=False)
    same(leignn.sweep(study(data, tmp_path / "study"), progress=False), undisturbed)
    trials = [trial for trial in stored(undisturbed) if "lost" not in trial.user_attrs]
    assert len(trials) == 10


def test_samples_can_be_added(data, undisturbed, tmp_path):
    small = leignn.sweep(study(data, tmp_path / "study", samples=6), progress=False)
    with pytest.raises(TrainingError, match=r"holds another study \(samples differ\)"):
        leignn.sweep(study(data, tmp_path / "study"), progress=False)
    grown = leignn.sweep(study(data, tmp_path / "study"), extend=True, progress=False)
    assert sorted(row["member"] for row in grown.rows) == list(range(10))
    assert [row for row in grown.rows if row["member"] < 6] == small.rows
    other = study(data, tmp_path / "study", seed=3)
    with pytest.raises(TrainingError, match=r"another study|other settings \(seed differ\)"):
        leignn.sweep(other, extend=True, progress=False)


def test_a_folder_that_was_moved_keeps_its_trials(data, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    asked = make_study(study(data, here))
    trials = Trials(asked, here)
    told = [trials.ask(n, {}) for n in range(3)]
    here.rename(there)
    shutil.copy(data, tmp_path / "moved.h5")
    moved = Trials(make_study(study(tmp_path / "moved.h5", there)), there)
    assert [moved.ask(n, {}) for n in range(3)] == told
    assert moved.ask(3, {}).number == 3


def test_folders_of_other_programs_are_left_alone(data, undisturbed):
    folders = [undisturbed.out / name / ".ipynb_checkpoints" for name in ("ledger", "potentials")]
    for folder in folders:
        folder.mkdir()
    same(leignn.sweep(study(data, undisturbed.out), progress=False), undisturbed)
    for folder in folders:
        folder.rmdir()


def test_who_comes_to_a_rung_is_validated(data, tmp_path):
    """However seldom all are; and the best one is judged on frames that none has seen."""
    write_hdf5(tmp_path / "test.h5", copper(5, 1))
    asked = study(data, tmp_path / "study", samples=6)
    asked["base"]["run"]["validate_every"] = 3
    asked["base"]["data"]["test"] = str(tmp_path / "test.h5")
    found = leignn.sweep(asked, progress=False)
    epochs = [row["epochs"] for row in found.rows]
    assert {1, 4} <= set(epochs)
    assert all(row["validation_loss"] is not None for row in found.rows)
    assert found.test == leignn.evaluate(found.best, tmp_path / "test.h5").metrics
    assert json.loads((found.out / "test.json").read_text()) == found.test


@pytest.mark.slow
def test_a_population_has_one_shape_and_each_shape_one_program(data, tmp_path):
    values = study(data, tmp_path / "study", samples=8, members_at_once=2, trials_per_shape=2)
    values["space"] = {**SPACE, "model.features": [4, 8]}
    result = leignn.sweep(values, progress=False)
    features = {row["member"]: row["model.features"] for row in result.rows}
    pairs = [{features[2 * i], features[2 * i + 1]} for i in range(4)]
    assert all(len(pair) == 1 for pair in pairs)
    assert result.compiles == [1] * len(set(features.values()))


@pytest.mark.parametrize(
    "search", ["nsga2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qmc", "cmaes", "gp"))]
)
def test_other_samplers(data, tmp_path, search):
    for needed in {"cmaes": ["cmaes"], "gp": ["torch"]}.get(search, []):
        pytest.importorskip(needed)
    more = {"objectives": TWO} if search == "nsga2" else {}
    values = study(data, tmp_path / "study", search=search, samples=6, halving=None, startup=2, **more)
    values["base"]["run"]["epochs"] = 1
    result = leignn.sweep(values, progress=False)
    rates = {row["optimizer.learning_rate"] for row in result.rows}
    assert len(rates) == 6
    assert all(len(trial.values) == (2 if more else 1) for trial in stored(result))


def test_members_that_diverge_give_way(data, tmp_path):
    values = study(data, tmp_path / "study", samples=8, halving=None)
    values["space"] = {"optimizer.learning_rate": [1e-3, 1e30], "run.seed": {"integers": [0, 1000]}}
    values["base"]["optimizer"]["clip_norm"] = 1e30
    result = leignn.sweep(values, progress=False)
    states = {trial.user_attrs["member"]: trial.state.name for trial in stored(result)}
    assert {"COMPLETE", "PRUNED"} == set(states.values())
    for row in result.rows:
        assert (row["diverged_at_step"] is not None) == (row["optimizer.learning_rate"] > 1)
        assert states[row["member"]] == ("PRUNED" if row["optimizer.learning_rate"] > 1 else "COMPLETE")


# ------------------------------------------------------------------------------------------------------- several workers


@pytest.fixture(scope="module")
def server():
    """Folder of a PostgreSQL server's socket, and a call of its programs. A server is no Python package: where none can be
    started, its tests are skipped, and run on a journal alone."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb") or next(iter(sorted(glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL on this machine")
    # It refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path has to be short
    if user:
        shutil.chown(folder, "postgres")

    def call(program, *words):
        command = [*user, str(Path(found).resolve().with_name(program)), *words]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    call("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "postgres")
    call(
        "pg_ctl",
        "-D",
        f"{folder}/data",
        "-o",
        f"-k {folder} -c listen_addresses=''",
        "-l",
        f"{folder}/log",
        "-w",
        "start",
    )
    yield folder, call
    call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["journal", "postgresql"])
def where(request, tmp_path):
    """An empty storage of each kind."""
    if request.param == "journal":
        return str(tmp_path / "trials.log")
    folder, call = request.getfixturevalue("server")
    call("createdb", "-h", str(folder), "-U", "postgres", tmp_path.name)
    return f"postgresql://postgres@/{tmp_path.name}?host={folder}"


def test_two_workers_share_a_storage(data, tmp_path, where):
    """Each trains its own trials, and all together there are as many as asked for."""
    asked = study(data, tmp_path / "none", samples=5, storage=where)
    workers = [Trials(make_study(asked), tmp_path / name) for name in "ab"]
    found = [workers[i % 2].ask(i // 2, {}) for i in range(6)]
    assert [trial.number for trial in found[:5]] == list(range(5))
    assert found[5] is None
    assert workers[0].ask(1, {}) == found[2]
    # Neither draws what the other does.
    assert len({trial.settings["optimizer.learning_rate"] for trial in found[:5]}) == 5


def test_a_dead_workers_trials_are_asked_again_and_none_counts_twice(data, tmp_path, where):
    asked = study(data, tmp_path / "none", samples=3, storage=where, patience_minutes=1e-6)
    dead = Trials(make_study(asked), tmp_path / "dead")
    lost = [dead.ask(0, {}), dead.ask(1, {})]
    dead.report(lost[0].number, 1, 0.5)
    alive = Trials(make_study(asked), tmp_path / "alive")
    found = [alive.ask(i, {}) for i in range(4)]
    assert found[3] is None
    assert [one.settings for one in found[:2]] == [one.settings for one in lost]
    for trial in found[:3]:
        alive.end(trial.number, "complete", [1.0], {})
    # It was not dead.
    assert not dead.goes_on(lost[1].number, 3, 1)
    dead.end(lost[0].number, "complete", [0.1], {})
    states = [trial.state.name for trial in alive._study.trials]
    assert states.count("COMPLETE") == 3
    assert states.count("FAIL") == 2
    assert alive.ask(3, {}) is None


def test_a_lost_trial_is_asked_again_where_its_shape_is_trained(data, tmp_path):
    asked = study(data, tmp_path / "none", samples=9, storage=str(tmp_path / "trials.log"), patience_minutes=1e-6)
    asked["space"] = {**SPACE, "model.features": [4, 8]}
    lost = Trials(make_study(asked), tmp_path / "dead").ask(0, {"model.features": 4})
    alive = Trials(make_study(asked), tmp_path / "alive")
    assert alive.ask(0, {"model.features": 8}).settings["model.features"] == 8
    assert alive.ask(1, {"model.features": 4}).settings == lost.settings
    assert alive.ask(2, {"model.features": 4}).settings != lost.settings


def test_clocks_of_other_zones_make_no_trial_late(data, tmp_path, monkeypatch):
    """A trial whose worker has not been heard of is late by the clock of who met it, whatever time it was begun."""
    asked = study(data, tmp_path / "none", samples=9, storage=str(tmp_path / "trials.log"), patience_minutes=30)
    alive = Trials(make_study(asked), tmp_path / "alive")
    begun = alive._study.ask()
    right, ahead = time.time, 9 * 3600
    monkeypatch.setattr(time, "time", lambda: right() + ahead)
    alive.ask(0, {})
    assert alive._study.trials[begun.number].state.name == "RUNNING"
    ahead += 3600
    alive.ask(1, {})
    assert alive._study.trials[begun.number].state.name == "FAIL"


def test_a_worker_that_comes_too_late_has_nothing_to_do(data, tmp_path, where):
    values = study(data, tmp_path / "a", samples=2, halving=None, storage=where)
    values["base"]["run"]["epochs"] = 1
    assert len(leignn.sweep(values, progress=False).rows) == 2
    values["base"]["run"]["out"] = str(tmp_path / "b")
    late = leignn.sweep(values, progress=False)
    assert late.finished
    assert late.rows == []


# ------------------------------------------------------------------------------------------------------------- bad input


def test_a_storage_that_cannot_be_used_is_told(data, tmp_path):
    for where in (
        str(tmp_path / "no" / "such" / "folder.log"),
        "sqlite:////no/such/folder/trials.db",
        "nonsense://x",
        "postgresql://nobody@/none?host=/no/such/folder",
    ):
        with pytest.raises(TrainingError, match="the search's storage can't be used"):
            leignn.sweep(study(data, tmp_path / where.replace("/", "_"), storage=where), progress=False)


def test_a_driver_that_is_not_installed_is_named(data, tmp_path):
    with pytest.raises(TrainingError, match=r"module cx_Oracle, .* is not installed"):
        leignn.sweep(study(data, tmp_path / "out", storage="oracle+cx_oracle://nobody@nowhere/none"), progress=False)


def test_another_study_in_the_storage_is_told(data, tmp_path):
    where = str(tmp_path / "trials.log")
    Trials(make_study(study(data, tmp_path / "a", storage=where)), tmp_path / "a")
    with pytest.raises(TrainingError, match=r"'study' is another one \(seed differ\)"):
        Trials(make_study(study(data, tmp_path / "b", storage=where, seed=1)), tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"search": "random"}, "halving: it is for searches that ask"),
        ({"search": "random", "halving": None, "storage": "x"}, "storage: it is for searches that ask"),
        ({"objectives": TWO}, "halving: it goes by one number"),
        ({"objectives": TWO, "halving": None, "search": "cmaes"}, "objectives: several are for"),
        ({"halving": {"first_epochs": 0}}, "halving.first_epochs"),
        ({"space": {"optimizer.schedule": ["constant", "nonsense"]}}, "nonsense"),
        ({"space": {"model.features": []}}, "an empty list"),
        ({"search": "evolution", "halving": None}, "startup: search evolution makes no use of it"),
        (
            {"space": {"model.features": [8, 16]}, "search": "evolution", "halving": None, "startup": 10},
            "they must have one shape",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(data, tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        make_study(study(data, tmp_path / "study", **change))


def test_an_objective_that_is_no_column_is_told(data, tmp_path):
    with pytest.raises(ConfigError, match="objectives: 'validation_los' is no column"):
        leignn.sweep(study(data, tmp_path / "s", objectives=["validation_los"]), progress=False)


# ------------------------------------------------------------------------------------------------------------- evolution


def evolving(data, out, **more):
    values = study(data, out, search="evolution", halving=None, samples=4, **more)
    del values["startup"]
    values["evolution"] = {"every": 2, "fraction": 0.5, "factor": 1.5}
    values["base"]["run"]["epochs"] = 6
    values["space"] = {"optimizer.learning_rate": {"log_uniform": [1e-6, 1e-2]}, "run.seed": [0, 1, 2]}
    return values


def test_the_better_replace_the_worse(data, tmp_path, monkeypatch):
    result = leignn.sweep(evolving(data, tmp_path / "study"), progress=False)
    assert result.compiles == [1]
    said = [json.loads(file.read_text()) for file in (tmp_path / "study/ledger").glob("lot-*.json")]
    histories = [one["history"] for one in said[0]["members"].values()]
    assert all(len(history) == 6 for history in histories)
    with open(result.out / "history.csv", newline="") as file:
        told = list(csv.DictReader(file))
    assert "settings" not in told[0]
    assert all(1e-6 <= float(row["optimizer.learning_rate"]) <= 1e-2 for row in told)
    for row in result.rows:
        best = next(x for x in told if (x["member"], x["epoch"]) == (str(row["member"]), str(row["best_epoch"])))
        assert float(best["optimizer.learning_rate"]) == row["optimizer.learning_rate"]
    copies = [(history, i) for history in histories for i, row in enumerate(history) if "copied" in row]
    assert copies
    for history, i in copies:
        source = histories[history[i]["copied"]]
        assert (i + 1) % 2 == 0
        assert source[i]["validation_loss"] < history[i]["validation_loss"]
        before, after = (row["settings"]["optimizer.learning_rate"] for row in (source[i], history[i + 1]))
        assert after == pytest.approx(before * 1.5) or after == pytest.approx(before / 1.5) or after in (1e-6, 1e-2)
        # It goes on from the better one's parameters.
        assert history[i + 1]["train_loss"] < history[i]["train_loss"]

    # Stopped and gone on with: the same.
    right, seen = loop.train_row, []

    def row(running):
        seen.append(1)
        if len(seen) == 14:
            os.kill(os.getpid(), signal.SIGTERM)
        return right(running)

    monkeypatch.setattr(loop, "train_row", row)
    assert not leignn.sweep(evolving(data, tmp_path / "again"), progress=False).finished
    same(leignn.sweep(evolving(data, tmp_path / "again"), progress=False), result)


def test_places_are_filled_anew_with_frames_of_any_size(tmp_path):
    """A place goes on past the epochs of its first member; each batch has a shape then, too."""
    frames = [atoms[: 1 + n % 16] for n, atoms in enumerate(copper(24, sizes=((4, 1, 1),)))]
    for n, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=float(n), forces=np.zeros((len(atoms), 3)))
    write_hdf5(tmp_path / "mixed.h5", frames)
    asked = study(tmp_path / "mixed.h5", tmp_path / "out", samples=6, members_at_once=1, halving=None)
    asked["base"]["data"] |= {"batch_size": 3, "on_device": False}
    asked["base"]["run"]["epochs"] = 1
    assert len(leignn.sweep(asked, progress=False).rows) == 6
