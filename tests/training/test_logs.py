"""Rows of epochs beside the CSV file."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from copper_runs import settings

import leignn_jax as leignn
from leignn_jax.training.config import make_config
from leignn_jax.training.logs import open_loggers

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs", "without_pictures")


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
        id = "abc"

        def log(self, row, step):
            said.append(("wandb", step, row["epoch"]))

        def finish(self):
            said.append("wandb finished")

    def begun(project, id, resume, **_):
        said.append((project, id, resume))
        return Run()

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=begun))
    values = settings(files, tmp_path / "run", epochs=2, tensorboard=True, wandb="mine")
    leignn.train(values, progress=False)
    assert said[:2] == [("writer", "tensorboard"), ("mine", None, None)]
    assert [one for one in said if one[0] == "wandb"] == [("wandb", 4, 1), ("wandb", 8, 2)]
    assert ("validation_loss", 8) in said
    assert sorted(said[-2:]) == ["wandb finished", "writer closed"]
    said.clear()
    with contextlib.ExitStack() as closing:
        open_loggers(make_config(values), closing)
    assert ("mine", "abc", "allow") in said
