"""What training does about labels that look wrong: it warns, refuses what is certain, and can be overruled."""

import logging

import ase.io
import pytest

from leignn_jax.data import bundled_data, read_frames
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError, DataError
from leignn_jax.training.config import make_config
from leignn_jax.training.dataset import load_splits


def settings(**data):
    return make_config({"data": data}).data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ethanol as it is, another part of it with forces in kcal/mol/Å, silicon with a stress that is not symmetric."""
    folder = tmp_path_factory.mktemp("files")
    frames = read_frames(bundled_data("ethanol") / "train.extxyz.xz", index=":80")
    ase.io.write(folder / "right.extxyz", frames[:50])
    for atoms in frames:
        atoms.calc.results["forces"] = 23.0605 * atoms.get_forces()
    ase.io.write(folder / "kcal.extxyz", frames[50:])
    crystals = read_frames(bundled_data("si") / "train.extxyz.xz", index="::20")
    for atoms in crystals:
        stress = atoms.get_stress(voigt=False)
        stress[0, 1] += 0.1
        atoms.calc.results["stress"] = stress
    write_hdf5(folder / "skewed.h5", crystals)
    return folder


def test_right_labels_are_taken_without_a_word(files, caplog):
    splits = load_splits(settings(train=str(files / "right.extxyz")), 5.0)
    assert splits.train.size + splits.validation.size == 50
    assert caplog.records == []


@pytest.mark.parametrize("cache", [False, True])
def test_forces_in_another_unit_are_refused(files, tmp_path, cache):
    data = settings(train=str(files / "kcal.extxyz"), cache=str(tmp_path) if cache else None)
    with pytest.raises(DataError, match=r"kcal\.extxyz: forces look 23\.06 times too large.*data\.allow=\[forces\]"):
        load_splits(data, 5.0)


def test_allowed_labels_are_warned_of(files, caplog):
    with caplog.at_level(logging.WARNING):
        load_splits(settings(train=str(files / "kcal.extxyz"), allow=["forces"]), 5.0)
    assert "23.06 times too large" in caplog.text
    with pytest.raises(DataError, match="forces"):
        load_splits(settings(train=str(files / "kcal.extxyz"), allow=["energy"]), 5.0)


def test_a_validation_set_in_another_unit_is_refused(files):
    data = settings(train=str(files / "right.extxyz"), validation=str(files / "kcal.extxyz"))
    with pytest.raises(DataError, match=r"kcal\.extxyz: forces"):
        load_splits(data, 5.0)


def test_a_stress_that_is_not_trained_on_is_warned_of(files, caplog):
    data = settings(train=str(files / "skewed.h5"))
    with pytest.raises(DataError, match="stress is not symmetric"):
        load_splits(data, 5.0)
    with caplog.at_level(logging.WARNING):
        load_splits(data, 5.0, with_stress=False)
    assert "not symmetric" in caplog.text


def test_what_can_be_allowed_is_known():
    with pytest.raises(ConfigError, match=r"data\.allow"):
        settings(train="a.xyz", allow=["units"])
    with pytest.raises(ConfigError, match="allow_unusual"):
        settings(train="a.xyz", allow_unusual=True)
