"""Checkpoints: what was saved comes back, or words; leftovers go."""

import contextlib
import math
import os
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from copper_runs import same
from damage import outcomes

from leignn_jax.errors import TrainingError
from leignn_jax.training.checkpoint import Checkpoints


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
@pytest.mark.parametrize("limit", [100, 8000])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_told(tmp_path, limit):
    """Whoever writes first, orbax its notes or TensorStore the arrays."""
    tree = {"a": np.random.default_rng(0).random(9000)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, {"epoch": 1})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        checkpoints.save(2, tree, {"epoch": 2})
        with pytest.raises(TrainingError, match=r"can't be written: a limit on the size of files is reached.*goes on"):
            checkpoints.wait()
        with contextlib.suppress(TrainingError):
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = Checkpoints(tmp_path)
    assert again.restore(tree)[1]["epoch"] == 1
    again.close()


# As above.
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
