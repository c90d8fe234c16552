"""The command line as a user meets it."""

import json
import os
import subprocess
import sys

import ase.io
import pytest
from frames import copper

from leignn_jax.data.readers import write_hdf5

pytestmark = pytest.mark.usefixtures("fast_compiles")

ARGUMENTS = ["model.preset=small", "model.features=8", "model.layers=1", "model.num_radial=4", "model.cutoff=4.0"]


def leignn(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "leignn_jax.cli", *map(str, arguments)], capture_output=True, text=True, **kwargs
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_hdf5(folder / "train.h5", copper(12))
    write_hdf5(folder / "test.h5", copper(4, 1))
    command = ["train", "--train", folder / "train.h5", "--test", folder / "test.h5", "--out", folder / "run"]
    done = leignn(*command, "run.epochs=2", "data.batch_size=4", f"data.cache={folder / 'cache'}", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_train_and_evaluate(run):
    folder, done = run
    assert json.loads(done.stdout)["test"]["structures"] == 4
    assert "report.html" in done.stderr
    assert done.stderr.count("epoch ") >= 2
    assert "Building the cache" in done.stderr
    assert "Reading train.h5 into the cache: 12 frames" in done.stderr
    assert len(list((folder / "cache").glob("t*/meta.json"))) == 2
    potential = folder / "run" / "potential.safetensors"
    done = leignn("evaluate", potential, folder / "test.h5", "--json", folder / "e.json", "--plot", folder / "e.png")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "e.json").read_text())
    assert found == json.loads(done.stdout)
    names = {"energy_mae_mev_per_atom", "energy_rmse_mev_per_atom", "forces_mae_mev_per_angstrom"}
    names |= {"forces_rmse_mev_per_angstrom", "stress_mae_mev_per_angstrom3", "structures"}
    assert names <= found.keys()
    assert (folder / "e.png").stat().st_size > 1000
    done = leignn("info", potential, "--json")
    assert json.loads(done.stdout)["elements"] == "Cu"


def test_relax_then_simulate_and_go_on(run):
    folder, _ = run
    potential, start = folder / "run" / "potential.safetensors", folder / "start.extxyz"
    ase.io.write(start, copper(2))
    done = leignn("relax", potential, start, "--out", folder / "relaxed", "--steps", 3, "--dtype", "float32")
    facts = json.loads(done.stdout)
    assert done.returncode == (0 if all(f["converged"] for f in facts) else 1), done.stderr
    assert len(facts) == len(ase.io.read(folder / "relaxed" / "relaxed.extxyz", ":")) == 2
    command = ["md", potential, start, "--temperature", 50, "--save-every", 10, "--out", folder / "md", "--extxyz"]
    done = leignn(*command, "--steps", 20)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"]
    done = leignn(*command, "--steps", 30, "--resume")
    assert json.loads(done.stdout)["resumed_at"] == 20, done.stderr
    assert len(ase.io.read(folder / "md" / "trajectory.extxyz", ":")) == 4
    done = leignn("relax", potential, folder / "none.cif", "--out", folder / "never")
    assert done.returncode == 2
    assert "none.cif: no such file" in done.stderr


def test_inspect(run):
    folder, _ = run
    done = leignn("data", "inspect", folder / "train.h5", "--against", folder / "test.h5")
    assert done.returncode == 0, done.stderr
    assert "frames in both sets" in done.stdout
    assert json.loads(leignn("data", "inspect", folder / "train.h5", "--json").stdout)["frames"] == 12


def test_help_does_not_import_jax():
    code = (
        "import sys; from leignn_jax import cli; sys.argv = ['leignn', '--help']\n"
        "try: cli.app()\nexcept SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'ase' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Give a config file, or --train FILE"),
        (["train", "absent.yaml"], "no such config file"),
        (["train", "--train", "absent.extxyz"], "no such file"),
        (["train", "--train", "x", "optimizer.lr=1"], "unknown key 'optimizer.lr'"),
        (["train", "--tran", "x"], "--train"),
        (["trian"], "train"),
        (["evaluate", "absent.safetensors", "x"], "no such file"),
        (["info", "absent.safetensors"], "no such file"),
    ],
)
def test_mistakes(arguments, message, tmp_path):
    done = leignn(*arguments, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
