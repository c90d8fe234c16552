"""A run's folder: what goes on there, and what is refused."""

import os
import shutil

import jax
import pytest
from copper_runs import SIZE, settings, stopped_run
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import TrainingError
from leignn_jax.training.config import make_config
from leignn_jax.training.folder import RunFolder, _hashes_in

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs", "without_pictures")


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


def test_a_folder_of_another_kind_is_refused(files, tmp_path):
    (tmp_path / "study" / "ledger").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"study: holds a study"):
        leignn.train(settings(files, tmp_path / "study"), progress=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data.json").write_text("{}")
    base = settings(files, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"run: holds a training"):
        leignn.sweep({"base": base, "space": {"optimizer.learning_rate": [1e-3]}}, progress=False)
    odd = tmp_path / os.fsdecode(b"r\xe9")
    with pytest.raises(TrainingError, match="name is no UTF-8"):
        leignn.train(settings(files, odd), progress=False)


def test_a_best_potential_that_is_gone_is_told(files, tmp_path):
    values = settings(files, tmp_path / "run", epochs=1)
    leignn.train(values, progress=False)
    (tmp_path / "run" / "potential.safetensors").unlink()
    with pytest.raises(TrainingError, match="is missing, though epoch 1 was the best on validation"):
        leignn.train(values, progress=False)


def test_a_full_disk_is_an_error_before_the_first_step(files, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(TrainingError, match="MiB free on the disk"):
        leignn.train(settings(files, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "metrics.csv").exists()


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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', "[" * 5000])
def test_a_damaged_note_of_the_data_is_told(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(TrainingError, match=r"data\.json: damaged"):
        _hashes_in(tmp_path / "data.json")
