"""The command line as a user meets it: in this process, but for what belongs to a process."""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import signal
import subprocess
import sys
from typing import NamedTuple

import ase.build
import ase.io
import pytest
from frames import copper

import leignn_jax.quickstart as tour
from leignn_jax import cli, files, potential_file
from leignn_jax.commands.output import plain
from leignn_jax.data import public
from leignn_jax.data.readers import read_frames, write_hdf5
from leignn_jax.properties import relax
from leignn_jax.simulation import chunks, engine
from leignn_jax.sweeps import study
from leignn_jax.sweeps.study import StudyResult
from leignn_jax.training import prepared
from leignn_jax.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

ARGUMENTS = ["model.preset=small", "model.features=8", "model.layers=1", "model.num_radial=4", "model.cutoff=4.0"]
LOG = logging.getLogger("leignn_jax")


class Done(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def leignn(*arguments) -> Done:
    """One command, with the log where main() would put it."""
    out, err = io.StringIO(), io.StringIO()
    handler, level = logging.StreamHandler(err), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in arguments])
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
    assert "Traceback" not in err.getvalue()
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


def one_line_of_error(done: Done, code: int = 1) -> str:
    """The error of a command that did nothing else."""
    assert done.code == code, done
    (line,) = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert not done.out
    return line


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """Also where the tests were started in the background of a script, whose shell has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_hdf5(folder / "train.h5", copper(12))
    write_hdf5(folder / "test.h5", copper(4, 1))
    ase.io.write(folder / "start.extxyz", copper(2))
    command = ["train", "--train", folder / "train.h5", "--test", folder / "test.h5", "--out", folder / "run"]
    command += ["run.epochs=2", "data.batch_size=4", f"data.cache={folder / 'cache'}", *ARGUMENTS]
    done = leignn(*command, "--json", folder / "metrics.json")
    assert done.code == 0, done.err
    return folder, done, command


def test_train_and_evaluate(run):
    folder, done, _ = run
    assert json.loads(done.out)["test"]["structures"] == 4
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(done.out)
    assert "report.html" in done.err
    assert done.err.count("epoch ") >= 2
    assert "Building the cache" in done.err
    assert "Reading train.h5 into the cache: 12 frames" in done.err
    assert len(list((folder / "cache").glob("t*/meta.json"))) == 2
    potential = folder / "run" / "potential.safetensors"
    done = leignn("evaluate", potential, folder / "test.h5", "--json", folder / "e.json", "--plot", folder / "e.png")
    assert done.code == 0, done.err
    found = json.loads((folder / "e.json").read_text())
    assert found == json.loads(done.out)
    names = {"energy_mae_mev_per_atom", "energy_rmse_mev_per_atom", "forces_mae_mev_per_angstrom"}
    names |= {"forces_rmse_mev_per_angstrom", "stress_mae_mev_per_angstrom3", "structures"}
    assert names <= found.keys()
    assert (folder / "e.png").stat().st_size > 1000
    assert json.loads(leignn("info", potential, "--json", "-").out)["elements"] == "Cu"
    assert "elements" in leignn("info", potential).out


def test_ctrl_c_while_training_and_the_same_command(run, tmp_path, monkeypatch):
    _, _, command = run
    command = [tmp_path / "run" if word == run[0] / "run" else word for word in command]
    with monkeypatch.context() as patch:
        interrupt_after(patch, RunFolder, "log_epoch")
        done = leignn(*command)
    assert done.code == 130
    assert "the same command goes on" in done.err.splitlines()[-1]
    assert not done.out
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    done = leignn(*command)
    assert done.code == 0
    assert "Going on from epoch 1" in done.err
    # Where there is no state to save yet, at once.
    with monkeypatch.context() as patch:
        interrupt_after(patch, prepared, "load_splits")
        done = leignn(*command)
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("Interrupted. The same command goes on")


def test_relax_simulate_and_time(run, tmp_path, monkeypatch):
    """With Ctrl-C on the way; the programs of the first runs serve the later ones."""
    folder = run[0]
    potential, start = folder / "run" / "potential.safetensors", folder / "start.extxyz"
    monkeypatch.setattr(relax, "_CHUNK_STEPS", 1)
    monkeypatch.setattr(engine, "_CHUNK_STEPS", 10)
    command = ["relax", potential, start, "--steps", 3, "--dtype", "float32", "--out"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, relax.ProgressBar, "update")
        done = leignn(*command, tmp_path / "early")
    assert done.code == 130
    assert done.err.splitlines()[-1].endswith(f"leignn relax {potential} {tmp_path / 'early' / 'relaxed.extxyz'} ...")
    assert {f["steps"] for f in json.loads(done.out)} == {1}
    assert "stopped by a signal after step 1" in json.loads(done.out)[0]["reason"]
    done = leignn(*command, tmp_path / "relaxed", "--json", tmp_path / "relaxed.json")
    facts = json.loads(done.out)
    assert facts == json.loads((tmp_path / "relaxed.json").read_text())
    assert done.code == (0 if all(f["converged"] for f in facts) else 1), done.err
    assert len(facts) == len(ase.io.read(tmp_path / "relaxed" / "relaxed.extxyz", ":")) == 2

    command = ["md", potential, start, "--temperature", 50, "--save-every", 10, "--out", tmp_path / "md", "--extxyz"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, chunks.Run, "advance")
        done = leignn(*command, "--steps", 20)
    assert done.code == 130
    assert json.loads(done.out)["signal"] == "SIGINT"
    assert done.err.splitlines()[-1] == "Stopped by a signal at step 10 of 20; resume (--resume) goes on from there."
    done = leignn(*command, "--steps", 30, "--resume", "--json", "-")
    assert done.code == 0
    assert json.loads(done.out)["finished"]
    assert json.loads(done.out)["resumed_at"] == 10
    assert len(ase.io.read(tmp_path / "md" / "trajectory.extxyz", ":")) == 4
    assert "Resume it, or choose another folder" in one_line_of_error(leignn(*command, "--steps", 20))

    command = [
        "bench",
        potential,
        start,
        "--atoms",
        4,
        "--steps",
        10,
        "--repeats",
        1,
        "--json",
        tmp_path / "bench.json",
    ]
    done = leignn(*command)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["dtype"] == "float32"
    assert found["platform"] == "cpu"
    assert found["device"] in done.out
    (row,) = found["rows"]
    assert row["atoms"] == 4
    assert row["energy_forces_ms"] > 0


def test_ctrl_c_in_a_study_and_in_the_tour(tmp_path, monkeypatch):
    values = {"base": {"run": {"out": str(tmp_path / "study")}}, "space": {"run.seed": [0, 1]}}
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    interrupt_after(monkeypatch, study, "group_key")
    done = leignn("sweep", tmp_path / "study.yaml")
    assert done.code == 130
    assert done.err.splitlines() == [
        "Interrupted. The same command goes on from the last checkpoint, or starts anew where there is none."
    ]
    interrupt_after(monkeypatch, tour, "bundled_data")
    done = leignn("quickstart", "--out", tmp_path / "tour")
    assert done.code == 130
    assert done.err.splitlines()[-1] == "Interrupted. The same command goes on with the training where it was."


def test_quickstart_interrupted_in_its_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "sweep", lambda *_, **__: StudyResult([], [], tmp_path, [], False, "SIGINT", None))
    with pytest.raises(KeyboardInterrupt):
        tour._sweep(tmp_path, False)


@pytest.mark.slow
def test_a_study_as_json(run, tmp_path):
    folder = run[0]
    settings = {"model": {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0}}
    settings |= {"data": {"train": str(folder / "train.h5"), "batch_size": 4}}
    settings |= {"run": {"epochs": 1, "out": str(tmp_path / "study")}}
    values = {"base": settings, "space": {"optimizer.learning_rate": [1e-3, 1e-2]}}
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    done = leignn("sweep", tmp_path / "study.yaml", "--quiet", "--json", "-")
    assert done.code == 0, done.err
    assert {row["optimizer.learning_rate"] for row in json.loads(done.out)} == {1e-3, 1e-2}


def test_inspect(run):
    folder = run[0]
    done = leignn("data", "inspect", folder / "train.h5", "--against", folder / "test.h5")
    assert done.code == 0, done.err
    assert "frames in both sets" in done.out
    assert json.loads(leignn("data", "inspect", folder / "train.h5", "--json", "-").out)["frames"] == 12


def test_public_data(tmp_path, monkeypatch):
    listed = leignn("data", "list").out
    assert "rmd17-aspirin" in listed
    assert "licence: CC0 1.0" in listed
    assert leignn("data", "get").out == listed
    assert json.loads(leignn("data", "list", "--json", "-").out)["iso17"]["files"][0]["unpack"] == "iso17"
    assert "did you mean 'mlearn-Si'?" in one_line_of_error(
        leignn("data", "get", "mlearn-Sj", "--out", tmp_path / "no")
    )
    assert not (tmp_path / "no").exists()
    # Put there by hand, nothing is downloaded.
    for name in ("mlearn_Si_training.json", "mlearn_Si_test.json"):
        (tmp_path / name).write_text("[]")
    done = leignn("data", "get", "mlearn-Si", "--out", tmp_path, "--json", tmp_path / "set.json")
    assert done.code == 0, done.err
    assert f"leignn train --train {tmp_path}/mlearn_Si_training.json --test {tmp_path}/mlearn_Si_test.json" in done.out
    assert "Licence: BSD 3-Clause" in done.out
    assert json.loads((tmp_path / "set.json").read_text())["folder"] == str(tmp_path)
    interrupt_after(monkeypatch, public, "_recorded")
    done = leignn("data", "get", "mlearn-Si", "--out", tmp_path)
    assert (done.code, done.err) == (130, "Interrupted. The same command goes on.\n")


def interrupt_after(monkeypatch, owner, name):
    """Ctrl-C comes when this function has done its work for the first time."""
    original, came = getattr(owner, name), []

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        result = original(*args, **kwargs)
        if not came:
            came.append(True)
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, wrapped)


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Give a config file, or --train FILE"),
        (["train", "absent.yaml"], "no such config file"),
        (["train", "--train", "absent.extxyz"], "no such file"),
        (["train", "--train", "x", "optimizer.lr=1"], "unknown key 'optimizer.lr'"),
        (["train", "--train", "x", "optimizer.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["train", "--train", "x", "optimizer.learning_rate=[1"], "not readable as YAML"),
        (["train", "."], "no such config file"),
        (["train", "--tran", "x"], "--train"),
        (["trian"], "train"),
        # A setting longer than a file's name may be.
        (
            ["train", "--train", "absent.h5", f"data.reference_energies={{Cu: -1.{'0' * 300}}}"],
            "absent.h5: no such file",
        ),
        (["data", "inspec", "x"], "inspect"),
        (["evaluate", "absent.safetensors", "x"], "no such file"),
        (["evaluate", "si", "absent.extxyz"], "absent.extxyz: no such file or folder"),
        (["evaluate", "si", "."], "a folder of none of the known kinds"),
        (["info", "absent.safetensors"], "no such file"),
        (["info", "ethanl"], "did you mean 'ethanol'?"),
        (["md", "si", "absent.cif", "--steps", "1", "--out", "md"], "absent.cif: no such file"),
        (["relax", "si", "absent.cif", "--out", "x"], "absent.cif: no such file"),
        (["relax", "si", "x.cif", "--out", "x", "--cell", "ful"], "did you mean 'full'?"),
        (["bench", "si", "absent.cif"], "absent.cif: no such file"),
        (["sweep", "absent.yaml"], "no such study file"),
        (["data", "inspect", "absent.extxyz"], "absent.extxyz: no such file"),
        (["evaluate", "si", "x", "--json", "."], ". is a folder"),
        (["evaluate", "si", "x", "--plot", "p.pdf"], "call it p.png"),
        (["label", "si", "--frames", "x", "--out", "."], ". is a folder"),
        (["select", "si", "--pool", "x", "--out", "chosen.h5"], "call it .extxyz or .xyz"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    done = leignn(*arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\xff\xfe", b"nothing of that kind\n"])
def test_files_that_are_another_thing(content, tmp_path):
    """Words that name the file, wherever it is given."""
    file = tmp_path / "file.cif"
    config = tmp_path / "config.yaml"
    file.write_bytes(content)
    config.write_bytes(content or b"- 1\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    for command in (["md", "--steps", 1, "--out", folder], ["relax", "--out", folder], ["bench"]):
        assert "file.cif: " in one_line_of_error(leignn(command[0], "si", file, *command[1:]))
        assert "folder: " in one_line_of_error(leignn(command[0], "si", folder, *command[1:]))
        assert "file.cif: not a readable" in one_line_of_error(leignn(command[0], file, file, *command[1:]))
    assert "folder: is a folder" in one_line_of_error(leignn("info", folder))
    for command in (["train", config], ["sweep", config]):
        assert "config.yaml: " in one_line_of_error(leignn(*command))
    for command in (["evaluate", "si", file], ["data", "inspect", file], ["train", "--train", file, "--out", folder]):
        assert "file.cif: " in one_line_of_error(leignn(*command))
    assert not list(folder.iterdir())


def test_frames_are_written_as_their_name_says_and_not_over_others(tmp_path):
    frames = tmp_path / "frames.extxyz"
    ase.io.write(frames, ase.build.bulk("Si", cubic=True))
    before = frames.read_bytes()
    assert "is what is read" in one_line_of_error(leignn("label", "si", "--frames", frames, "--out", frames), 2)
    assert "is what is read" in one_line_of_error(leignn("select", "si", "--pool", frames, "--out", frames), 2)
    assert frames.read_bytes() == before
    for ending in ("xz", "gz", "bz2"):
        out = tmp_path / f"labelled.extxyz.{ending}"
        assert leignn("label", "si", "--frames", frames, "--out", out).code == 0
        (found,) = read_frames(out)
        assert found.get_potential_energy() < -40


def test_a_folder_below_a_file(run, tmp_path):
    """Nothing can be written there, whoever one is."""
    folder = run[0]
    below = folder / "start.extxyz" / "out"
    (tmp_path / "study.yaml").write_text(json.dumps({"base": {"run": {"out": str(below)}}, "space": {"run.seed": [0]}}))
    commands = [
        ["train", "--train", folder / "train.h5", "--out", below, *ARGUMENTS],
        ["md", "si", folder / "start.extxyz", "--steps", 1, "--out", below],
        ["relax", "si", folder / "start.extxyz", "--out", below],
        ["sweep", tmp_path / "study.yaml"],
        ["quickstart", "--out", below],
        ["data", "get", "iso17", "--out", below],
        ["info", "si", "--json", below / "info.json"],
    ]
    for command in commands:
        done = leignn(*command)
        assert done.code == 1, command
        assert "a part of this path is a file, not a folder" in done.err.splitlines()[-1], command
        assert str(below) in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "is read-only")],
)
def test_a_disk_that_does_not_take_it(number, message, tmp_path, monkeypatch):
    def fails(temporary, path):
        raise OSError(number, "as the system says", str(path))

    monkeypatch.setattr(files, "put_in_place", fails)
    done = leignn("info", "si", "--json", tmp_path / "info.json")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"Error: {tmp_path / 'info.json'}: ")
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_training(run, tmp_path, monkeypatch):
    def fails(path, content):
        raise OSError(errno.ENOSPC, "as the system says", str(path))

    monkeypatch.setattr(potential_file, "write_atomically", fails)
    done = leignn(*[tmp_path / "run" if word == run[0] / "run" else word for word in run[2]])
    assert done.code == 1
    file = tmp_path / "run" / "potential.safetensors"
    assert done.err.splitlines()[-1] == f"Error: {file}: the disk is full; free some space."


def test_numbers_that_json_does_not_have_are_null():
    assert plain({"a": [float("nan"), 1.0], "b": (float("inf"), "x"), "c": None}) == {
        "a": [None, 1.0],
        "b": [None, "x"],
        "c": None,
    }


# ------------------------------------------------------------------------------------------------------------ processes


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from leignn_jax import cli; sys.argv = ['leignn', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'ase', 'numpy', 'yaml', 'pydantic', 'pooch', 'requests', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("quickstart", "train", "evaluate", "sweep", "md", "relax", "bench", "info", "data"):
        assert f"\n  {verb} " in done.stdout


def test_a_device_that_is_not_there():
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "leignn_jax.cli", "info", "si"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "JAX finds no device of JAX_PLATFORMS=cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_words_are_completed(monkeypatch):
    monkeypatch.setenv("_LEIGNN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "leignn da")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert leignn().out.split() == ["data"]
    monkeypatch.setenv("COMP_WORDS", "leignn md --tem")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert leignn().out.split() == ["--temperature"]


def test_a_config_may_lie_in_a_folder_with_an_equals_sign(tmp_path):
    file = tmp_path / "lr=1e-3" / "config.yaml"
    file.parent.mkdir()
    file.write_text("data: {train: absent.extxyz}\n")
    done = leignn("train", file, "run.epochs=1")
    assert done.code == 1
    assert "absent.extxyz" in done.err
