"""Small trainings on copper, and what they leave."""

import os
import signal

import jax
import numpy as np

import leignn_jax as leignn
from leignn_jax.training import loop

SIZE = {"features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}
MODEL = {"preset": "small", **SIZE}


def settings(files, out, **run):
    """What a short training on the file of copper is told."""
    return {
        "data": {"train": str(files / "train.h5"), "batch_size": 4, "validation_fraction": 0.2},
        "model": MODEL,
        "loss": {"stress_weight": 0.1},
        "optimizer": {"learning_rate": 5e-3, "warmup_epochs": 0},
        "run": {"out": str(out), "epochs": 3, **run},
    }


def parameters(path):
    return leignn.load_potential(path).params


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


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
