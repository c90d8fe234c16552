"""Exported programs: what they answer with jax alone, and what they refuse."""

import json
import subprocess
import sys
import zipfile

import ase.build
import jax
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.errors import ConfigError, ElementError, FileFormatError, StructureError

ALONE = """
import json, sys, zipfile
import numpy as np
from jax import export
with zipfile.ZipFile(sys.argv[1]) as file:
    program, about = export.deserialize(bytearray(file.read("program"))), json.loads(file.read("about.json"))
given = np.load(sys.argv[2])
out = program.call(given["positions"], given["numbers"], given["cell"])
assert not any(name.startswith(("leignn_jax", "flax", "jax_md")) for name in sys.modules)
np.savez(sys.argv[3], **out)
"""


@pytest.fixture(scope="module")
def silicon():
    atoms = ase.build.bulk("Si", cubic=True) * 2
    atoms.rattle(0.08, seed=0)
    return atoms


@pytest.fixture(scope="module")
def potential():
    return leignn.load_potential("si")


@pytest.fixture(scope="module")
def file(potential, silicon, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "si.zip"
    potential.export(path, silicon)
    return path


def close(found, right):
    assert found.energy == pytest.approx(right.energy, abs=2e-5 * len(right.forces))
    np.testing.assert_allclose(found.forces, right.forces, atol=2e-5)
    np.testing.assert_allclose(found.stress, right.stress, atol=2e-6, equal_nan=True)


def test_the_same_answers_with_jax_alone(potential, silicon, file, tmp_path):
    with zipfile.ZipFile(file) as content:
        about = json.loads(content.read("about.json"))
    padding = about["atoms"] - len(silicon)
    assert padding > 0
    given = {
        "positions": np.pad(silicon.positions, ((0, padding), (0, 0))).astype(np.float32),
        "numbers": np.pad(silicon.numbers, (0, padding)).astype(np.int32),
        "cell": silicon.cell.array.astype(np.float32),
    }
    np.savez(tmp_path / "given.npz", **given)
    arguments = [sys.executable, "-c", ALONE, str(file), str(tmp_path / "given.npz"), str(tmp_path / "out.npz")]
    subprocess.run(arguments, check=True, env={"JAX_PLATFORMS": "cpu"})
    out = np.load(tmp_path / "out.npz")
    right = potential.predict(silicon)
    constants = sum(about["reference_energies"][s] for s in silicon.symbols) + about["energy_shift"]
    assert out["energy"] + constants == pytest.approx(right.energy, abs=1e-3)
    np.testing.assert_allclose(out["forces"][: len(silicon)], right.forces, atol=2e-5)
    np.testing.assert_allclose(out["stress"], right.stress, atol=2e-6)
    assert not out["forces"][len(silicon) :].any()
    assert not out["overflow"]


def test_other_structures_of_its_size(potential, silicon, file):
    program = leignn.load_exported(file)
    vacancy = silicon.copy()
    del vacancy[3]
    strained = silicon.copy()
    strain = np.array([[1.02, 0.03, 0], [0, 0.99, 0], [0, 0, 1.01]])
    strained.set_cell(strained.cell.array @ strain, scale_atoms=True)
    strained.positions += 3 * strained.cell.array[0]
    for atoms in (vacancy, strained):
        close(program.predict(atoms), potential.predict(atoms))


@pytest.mark.slow
def test_a_molecule_in_float64(tmp_path):
    potential = leignn.load_potential("ethanol")
    frames = leignn.read_frames(bundled_data("ethanol") / "train.extxyz.xz")[:2]
    potential.export(tmp_path / "ethanol.zip", frames[0], platforms=("cpu",), dtype="float64")
    found = leignn.load_exported(tmp_path / "ethanol.zip").predict(frames[1])
    right = potential.predict(frames[1], dtype="float64")
    assert found.energy == pytest.approx(right.energy, abs=1e-9)
    np.testing.assert_allclose(found.forces, right.forces, atol=1e-10)


def test_a_slab_across_another_direction_is_refused(tmp_path):
    config = leignn.preset("small", elements=("Si",), features=8, layers=1, num_radial=4, cutoff=3.0)
    potential = leignn.Potential.create(config, jax.random.key(0))
    slab = ase.Atoms("Si2", positions=[[0, 0, 0], [1.4, 1.4, 1.4]], cell=[3.0, 3.4, 0.0], pbc=(True, True, False))
    potential.export(tmp_path / "slab.zip", slab, platforms=["cpu"])
    exported = leignn.load_exported(tmp_path / "slab.zip")
    close(exported.predict(slab), potential.predict(slab))
    # In the plane of x and z, in which the vector that the program has along its own open direction lies too.
    turned = ase.Atoms(slab.numbers, slab.positions[:, [0, 2, 1]], cell=slab.cell.array[:, [0, 2, 1]], pbc=slab.pbc)
    with pytest.raises(StructureError, match="another cell"):
        exported.predict(turned)


def test_the_same_potential_is_the_same_bytes(potential, silicon, tmp_path):
    for name in ("one", "other"):
        potential.export(tmp_path / name, silicon, platforms=("cpu",))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_what_does_not_fit_is_told(silicon, file):
    program = leignn.load_exported(file)
    with pytest.raises(StructureError, match="512 atoms are more than the 77"):
        program.predict(silicon * 2)
    dense = silicon.copy()
    dense.set_cell(0.6 * dense.cell.array, scale_atoms=True)
    with pytest.raises(StructureError, match="more room"):
        program.predict(dense)
    open_one = silicon.copy()
    open_one.pbc = False
    with pytest.raises(StructureError, match="pbc"):
        program.predict(open_one)
    carbide = silicon.copy()
    carbide.symbols[0] = "C"
    with pytest.raises(ElementError, match="C is none of the program's elements"):
        program.predict(carbide)


def test_wrong_arguments(potential, silicon, tmp_path):
    with pytest.raises(ConfigError, match="TPU has no float64"):
        potential.export(tmp_path / "x", silicon, dtype="float64")
    with pytest.raises(ConfigError, match="cuda"):
        potential.export(tmp_path / "x", silicon, platforms=("gpu",))
    with pytest.raises(ConfigError, match="at least one"):
        potential.export(tmp_path / "x", silicon, platforms=())
    with pytest.raises(ElementError):
        potential.export(tmp_path / "x", ase.build.bulk("Cu"))
    assert not list(tmp_path.iterdir())


def rewritten(file, path, **changes):
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("about.json", json.dumps({**json.loads(old.read("about.json")), **changes.get("about", {})}))
        new.writestr("program", changes.get("program", old.read("program")))
    return path


def test_files_of_other_kinds(file, tmp_path):
    with pytest.raises(FileFormatError, match="missing"):
        leignn.load_exported(tmp_path / "missing.zip")
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(FileFormatError, match="no exported potential"):
        leignn.load_exported(tmp_path / "text")
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="damaged"):
        leignn.load_exported(tmp_path / "cut")
    with pytest.raises(FileFormatError, match="export it anew with this version"):
        leignn.load_exported(rewritten(file, tmp_path / "old", about={"format": "leignn_jax.exported/0"}))
    with pytest.raises(FileFormatError, match="exported for tpu, not for cpu"):
        leignn.load_exported(rewritten(file, tmp_path / "tpu", about={"platforms": ["tpu"]}))
    for said in ({"atoms": 7}, {"dtype": "float64"}):
        with pytest.raises(FileFormatError, match="damaged: its program takes positions float32"):
            leignn.load_exported(rewritten(file, tmp_path / "other", about=said))
    with zipfile.ZipFile(tmp_path / "empty", "w") as empty:
        empty.writestr("about.json", '{"format": "leignn_jax.exported/1"}')
        empty.writestr("program", b"")
    with pytest.raises(FileFormatError, match=r"about\.json lacks atoms"):
        leignn.load_exported(tmp_path / "empty")
    with pytest.raises(FileFormatError, match="can't read it"):
        leignn.load_exported(rewritten(file, tmp_path / "newer", program=b"of another version"))
