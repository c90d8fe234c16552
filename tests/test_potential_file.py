"""Bundled potentials: each loads by its name, says what it is, and has on the test file the errors that it states."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.potential_file import bundled_potentials

pytestmark = pytest.mark.usefixtures("fast_compiles")

DATA = Path(__file__).parents[2] / "shared" / "data"
FOLDERS = {
    "aspirin": "rmd17_aspirin",
    "ethanol": "rmd17_ethanol",
    "lips": "lips",
    "methane": "methane_gas",
    "si": "mlearn_Si",
    "water": "water",
}


def test_every_potential_has_a_card():
    assert set(bundled_potentials()) == set(FOLDERS)
    for name in FOLDERS:
        potential = leignn.load_potential(name)
        card = potential.metadata
        assert card["name"] == name
        for field in ("description", "data", "licence of the data", "limits", "command"):
            assert card[field]
        assert "forces_mae_mev_per_angstrom" in potential.summary()["test errors"]


def test_a_file_of_that_name_comes_first_and_slips_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled_potentials()["methane"], "si")
    assert leignn.load_potential("si").config.elements == ("H", "C")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'ethanol'.*one of aspirin, ethanol, lips"):
        leignn.load_potential("etanol")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "si" else pytest.mark.slow) for n in sorted(FOLDERS)]
)
def test_stated_errors_are_found_again(name):
    file = (bundled_data(name) if name in ("ethanol", "si") else DATA / FOLDERS[name]) / "test.extxyz.xz"
    if not file.is_file():
        pytest.skip("the data (../shared/data) are not on this machine")
    potential = leignn.load_potential(name)
    stated = potential.metadata["test errors"]
    found = leignn.evaluate(potential, file).metrics
    for key, value in stated.items():
        assert found[key] == pytest.approx(value, rel=2e-3, abs=2e-2), key


def test_silicon_is_a_crystal_at_rest():
    """Without any file: at the lattice constant of PBE the stress is small and forces vanish by symmetry."""
    import ase.build

    out = leignn.load_potential("si").predict(ase.build.bulk("Si", a=5.47, cubic=True), dtype="float64")
    assert np.abs(out.forces).max() < 1e-8
    assert np.abs(np.trace(out.stress)) / 3 < 0.02
    assert out.energy / 8 == pytest.approx(-5.42, abs=0.02)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(leignn.load_potential("si").params))
