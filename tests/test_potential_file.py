"""Bundled potentials: each loads by its name, says what it is, and has on the test file the errors that it states."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from damage import outcomes

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.potential_file import _digest, bundled_potentials
from leignn_jax.safetensors_file import pack, unpack

pytestmark = pytest.mark.usefixtures("fast_compiles")

DATA = Path(__file__).parents[2] / "shared" / "data"
FOLDERS = {
    "aspirin": "rmd17_aspirin",
    "ethanol": "rmd17_ethanol",
    "lips": "lips",
    "methane": "methane_gas",
    "si": "mlearn_Si",
    "tungsten-alloy": "nbmotaw",
    "water": "water",
}


def data_of(name, split):
    """The frames of a bundled potential: the package's own, or those of ../shared, which not every machine has."""
    file = (bundled_data(name) if name in ("ethanol", "si") else DATA / FOLDERS[name]) / f"{split}.extxyz.xz"
    if not file.is_file():
        pytest.skip("the data (../shared/data) are not on this machine")
    return file


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


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_atoms_that_come_too_near_repel_each_other(name):
    """The nearest two atoms of a frame, nearer and nearer: the energy rises all the way."""
    file = data_of(name, "train")
    atoms = leignn.read_frames(file)[0]
    apart = atoms.get_all_distances(mic=True) + 1e3 * np.eye(len(atoms))
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    pushed = [atoms.copy() for _ in range(12)]
    for step, one in enumerate(pushed):
        one.set_distance(i, j, apart[i, j] * (0.95 - 0.05 * step), fix=0, mic=True)
    energies = np.array([p.energy for p in leignn.load_potential(name).predict(pushed, dtype="float64")])
    assert (np.diff(energies) > 0).all(), energies - energies[0]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "si" else pytest.mark.slow) for n in sorted(FOLDERS)]
)
def test_stated_errors_are_found_again(name):
    file = data_of(name, "test")
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small potential's file."""
    config = leignn.preset("small", elements=("H", "O"), features=4, layers=2, num_radial=3)
    potential = leignn.Potential.create(config, jax.random.key(0), metadata={"made": "here"}, scale=2.0)
    path = tmp_path_factory.mktemp("written") / "p.safetensors"
    potential.with_walls({("H", "O"): 0.5}).save(path)
    return path


def craft(written, target, arrays=None, **header):
    """The file with other arrays or header, None for without, and a hash that fits."""
    old_arrays, old_header = unpack(written)
    arrays = {k: np.array(v) for k, v in {**old_arrays, **(arrays or {})}.items() if v is not None}
    header = {k: v for k, v in {**old_header, **header}.items() if v is not None and k != "sha256"}
    target.write_bytes(pack(arrays, {**header, "sha256": _digest(arrays, header)}))
    return target


def test_a_damaged_byte_is_told_or_changes_no_number(written):
    seen = outcomes(written, lambda: leignn.load_potential(written), 100, seed=0)
    assert seen.keys() <= {"told", "same"}, seen
    assert seen["told"] > 90


def test_the_same_potential_is_the_same_bytes(tmp_path):
    program = "import sys, leignn_jax; leignn_jax.load_potential('methane').save(sys.argv[1])"
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, file in enumerate(files, 1):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", program, str(file)], env=environment, check=True)
    leignn.load_potential(files[0]).save(tmp_path / "again.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes() == (tmp_path / "again.safetensors").read_bytes()


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["config", "metadata", "units"])
@pytest.mark.parametrize("text", [None, "", "null", "[]", "3", "{", DEEP, '{"a": 1, "a": 2}', "9" * 5000])
def test_a_header_that_is_no_json_is_refused_in_words(written, tmp_path, name, text):
    with pytest.raises(FileFormatError, match=rf"p\.safetensors: .*{name}"):
        leignn.load_potential(craft(written, tmp_path / "p.safetensors", **{name: text}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("elements", value) for value in (None, "HO", [], ["H", 8], [["H"], "O"], ["H", "Xx"], ["H", "H"], ["O"])],
        *[("features", value) for value in (None, "4", 4.0, True, 3, -2, 6, 10**9, 10**30)],
        *[("layers", value) for value in ([2], 0, 1, 3, 10**9)],
        *[("num_radial", value) for value in ({}, 1, 4, 10**9)],
        *[("cutoff", value) for value in (None, "5", [5.0], 0, -1.0, float("nan"), float("inf"))],
        *[("global_nodes", value) for value in (None, 1, "no")],
        *[("update", value) for value in (None, 3, ["gated"], "painn", "other")],
        *[("envelope_exponent", value) for value in (None, 2.5, 0)],
        *[("norm_floor", value) for value in (None, "x", -1)],
        ("unknown", 1),
    ],
)
def test_a_config_that_no_model_has_is_refused_in_words(written, tmp_path, name, value):
    config = json.loads(unpack(written)[1]["config"]) | {name: value}
    with pytest.raises(FileFormatError, match=r"p\.safetensors: "):
        leignn.load_potential(craft(written, tmp_path / "p.safetensors", config=json.dumps(config)))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"params/embedding": None}, "array embedding has shape None"),
        ({"params/more": [1.0]}, r"array more has shape \(1,\)"),
        ({"params/embedding/kernel": [1.0]}, "array embedding/kernel has shape"),
        ({"more": [1.0]}, r"array more has shape \(1,\)"),
        ({"params/embedding": np.zeros((2, 4), int)}, "holds int64, not real numbers"),
        ({"params/embedding": np.full((2, 4), np.nan, np.float32)}, r"params/embedding holds nan at \[0, 0\]"),
        ({"params/embedding": np.zeros((0, 2, 4), np.float32)}, "array embedding has shape"),
        ({"params/embedding": np.zeros((3, 2, 4), np.float32), "scale": np.ones(2)}, "committees of different sizes"),
        ({"scale": None}, "array scale has shape None"),
        ({"scale": np.inf}, "array scale holds inf"),
        ({"scale": -1.0}, "scale is negative"),
        ({"energy_shift": np.nan}, "energy_shift holds nan"),
        ({"reference_energies": [0.0]}, "array reference_energies has shape"),
        ({"walls": [1.0, 2.0]}, "array walls has shape"),
        ({"walls": [[0.0, -1.0], [-1.0, 0.0]]}, "walls is negative"),
        ({"walls": [[0.0, 1.0], [2.0, 0.0]]}, "not symmetric"),
    ],
)
def test_arrays_that_no_potential_has_are_refused_in_words(written, tmp_path, arrays, words):
    with pytest.raises(FileFormatError, match=rf"p\.safetensors: .*{words}"):
        leignn.load_potential(craft(written, tmp_path / "p.safetensors", arrays))


def test_other_units_are_refused(written, tmp_path):
    with pytest.raises(FileFormatError, match="its units are"):
        leignn.load_potential(craft(written, tmp_path / "p.safetensors", units='{"energy": "kcal/mol"}'))


def test_what_could_not_be_loaded_is_not_saved(written, tmp_path):
    potential = leignn.load_potential(written)
    for change, words in (({"scale": np.array(np.nan)}, "scale holds nan"), ({"scale": np.array(-1.0)}, "negative")):
        with pytest.raises(ConfigError, match=words):
            potential.replace(**change).save(tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_any_metadata_are_told_and_no_html(written, tmp_path):
    script = "<script>alert('x')</script>"
    facts = {script: script, "errors": {"forces": 1.25, script: "<b>", "more": {"list": [1, None, script]}}, "n": None}
    potential = leignn.load_potential(craft(written, tmp_path / "p.safetensors", metadata=json.dumps(facts)))
    assert potential.summary()["errors"].startswith("forces 1.25, ")
    assert "&lt;b&gt;" in potential._repr_html_()
    assert "<script" not in potential._repr_html_()
    assert "<b>" not in potential._repr_html_()
