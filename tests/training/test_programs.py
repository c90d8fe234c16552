"""How often the programs of a training compile."""

import json

import numpy as np
import pytest
from copper_runs import settings
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import TrainingError
from leignn_jax.training.programs import CountedCompiles

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs", "without_pictures")


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
