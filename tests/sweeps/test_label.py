"""Labels from a teacher: what it predicts, of frames and of displaced copies, and what a student learns of them."""

from pathlib import Path

import ase.build
import ase.io
import jax
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.cli import main
from leignn_jax.errors import ConfigError, ElementError

pytestmark = pytest.mark.usefixtures("fast_compiles")

CONFIG = leignn.preset("small", elements=("Si", "Ge"), features=8, layers=1, num_radial=4, cutoff=4.0)


@pytest.fixture(scope="module")
def teachers():
    energies = {"Si": -100.0, "Ge": -200.0}
    return [
        leignn.Potential.create(CONFIG, jax.random.key(i), reference_energies=energies, scale=0.2) for i in range(3)
    ]


@pytest.fixture(scope="module")
def frames():
    crystal = ase.build.bulk("Si", cubic=True)
    crystal.numbers[::3] = 32
    crystal.rattle(0.1, seed=0)
    crystal.info["energy"] = 7.0
    return [crystal, ase.Atoms("SiGe", [[0, 0, 0], [0, 0, 2.2]])]


def test_labels_are_predictions(teachers, frames):
    found = leignn.label(teachers[0], frames, copies=2, displacement=0.03)
    assert [atoms.info for atoms in found] == [{"frame": i} for i in (0, 0, 0, 1, 1, 1)]
    for atoms in found:
        said = teachers[0].predict(atoms)
        assert atoms.get_potential_energy() == pytest.approx(said.energy, abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), said.forces, atol=1e-5)
    np.testing.assert_allclose(found[1].get_stress(voigt=False), teachers[0].predict(found[1]).stress, atol=1e-6)
    assert "stress" not in found[3].calc.results
    # What came is as it was.
    assert frames[0].calc is None
    assert frames[0].info == {"energy": 7.0}


def test_copies_are_displaced_as_asked(teachers, frames):
    found = leignn.label(teachers[0], frames[:1], copies=50, displacement=0.03, seed=1)
    np.testing.assert_array_equal(found[0].positions, frames[0].positions)
    shifts = np.array([atoms.positions - frames[0].positions for atoms in found[1:]])
    assert shifts.std() == pytest.approx(0.03, rel=0.05)
    assert all(np.array_equal(np.asarray(atoms.cell), np.asarray(frames[0].cell)) for atoms in found)
    again, other = (leignn.label(teachers[0], frames[:1], copies=1, displacement=0.03, seed=s)[1] for s in (1, 2))
    np.testing.assert_array_equal(again.positions, found[1].positions)
    assert not np.allclose(other.positions, found[1].positions)


def test_a_committee_gives_its_mean_and_leaves_out_what_it_doubts(teachers, frames):
    members = leignn.committee(teachers)
    found = leignn.label(members, frames)
    for atoms, said in zip(found, leignn.committee_predict(members, frames), strict=True):
        np.testing.assert_allclose(atoms.get_forces(), said.forces, atol=1e-5)
        assert atoms.info["doubt_eV_per_A"] == pytest.approx(said.doubt, rel=1e-3)
    doubts = [atoms.info["doubt_eV_per_A"] for atoms in found]
    sure = leignn.label(members, frames, most_doubt=sum(doubts) / 2)
    assert [atoms.info["frame"] for atoms in sure] == [int(np.argmin(doubts))]
    assert leignn.label(members, frames, most_doubt=0.0) == []


def test_wrong_arguments(teachers, frames):
    with pytest.raises(ConfigError, match="one potential has no doubt"):
        leignn.label(teachers[0], frames, most_doubt=0.1)
    with pytest.raises(ConfigError, match="copies"):
        leignn.label(teachers[0], frames, copies=-1)
    with pytest.raises(ElementError, match="1"):
        leignn.label(teachers[0], [frames[0], ase.Atoms("C")])


def test_the_command_labels_and_a_student_learns_of_it(teachers, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leignn.committee(teachers).save("committee.safetensors")
    for i, one in enumerate(teachers):
        one.save(f"{i}.safetensors")
    ase.io.write("frames.extxyz", frames[:1])

    def run(*arguments):
        try:
            main(["label", *arguments, "--frames", "frames.extxyz", "--out", "labelled.extxyz", "--copies", "9"])
        except SystemExit as stop:
            return stop.code
        return 0

    assert run("0.safetensors", "1.safetensors", "2.safetensors") in (0, None)
    several = Path("labelled.extxyz").read_text()
    assert run("committee.safetensors") in (0, None)
    assert Path("labelled.extxyz").read_text() == several
    assert run("0.safetensors", "--displacement", "0.02") in (0, None)
    assert "10 labelled structures" in capsys.readouterr().err
    told = leignn.evaluate(teachers[0], "labelled.extxyz").metrics
    assert told["forces_mae_mev_per_angstrom"] < 1e-3
    assert told["stress_mae_mev_per_angstrom3"] < 1e-3
    assert run("committee.safetensors", "--most-doubt", "0") == 2
    assert "doubts every frame" in capsys.readouterr().err

    settings = {
        "data": {
            "train": "labelled.extxyz",
            "validation_fraction": 0.2,
            "reference_energies": {"Si": -100.0, "Ge": -200.0},
        },
        "model": {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0},
        "run": {"epochs": 30, "out": "student"},
    }
    history = leignn.train(settings, progress=False).history
    assert history[-1]["validation_loss"] < 0.7 * history[0]["validation_loss"]
