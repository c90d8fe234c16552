"""Published weights: .safetensors and .pt give the same potential, and a file of another kind is refused in words."""

import io
import pickle
import zipfile
from pathlib import Path

import ase.build
import jax
import numpy as np
import pytest
from damage import outcomes
from safetensors.numpy import load_file, save_file

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.interop.torch_checkpoint import _Storage, _Tensor

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def expected():
    return leignn.import_torch_checkpoint(FILES / "tiny.safetensors", cutoff=5.0)


def rewrite(source: Path, target: Path, change) -> Path:
    """Copy a .pt, its members run through ``change(name, content)``; None drops one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize("name", ["tiny_ema.pt", "tiny_parameters.pt"])
def test_pt_equals_safetensors(expected, name):
    potential = leignn.import_torch_checkpoint(FILES / name, cutoff=5.0)
    assert potential.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, potential.params, expected.params)


def test_shapes_and_formula_follow_from_the_file(expected):
    c = expected.config
    assert (c.features, c.layers, c.num_radial, c.radial_basis) == (4, 2, 3, "gaussian")
    assert c.elements == ("H", "He", "Li", "Be", "B", "C", "N", "O", "F")
    assert c.direct_forces
    assert not c.smooth_cutoff


def test_energy_shift_is_added_once_per_structure():
    water = ase.build.molecule("H2O")
    plain = leignn.import_torch_checkpoint(FILES / "tiny.safetensors", cutoff=5.0, elements=("H", "O"))
    shifted = leignn.import_torch_checkpoint(
        FILES / "tiny_ema.pt", cutoff=5.0, elements=("H", "O"), energy_shift=-2078.5
    )
    assert shifted.predict(water).energy - plain.predict(water).energy == pytest.approx(-2078.5, abs=1e-9)


def test_fewer_elements_give_the_same_numbers(expected):
    water = ase.build.molecule("H2O")
    fewer = leignn.import_torch_checkpoint(FILES / "tiny.safetensors", cutoff=5.0, elements=("O", "H"))
    a, b = fewer.predict(water, dtype="float64"), expected.predict(water, dtype="float64")
    np.testing.assert_allclose(a.forces, b.forces, rtol=1e-12, atol=1e-13)


def test_code_in_a_pickle_is_never_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    evil = pickle.dumps({"vn_emb.weight": Attack()}, protocol=2)
    path = rewrite(
        FILES / "tiny_ema.pt", tmp_path / "evil.pt", lambda name, data: evil if name.endswith("data.pkl") else data
    )
    with pytest.raises(FileFormatError, match=r"a call of _?io\.open"):
        leignn.import_torch_checkpoint(path, cutoff=5.0)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_files(tmp_path, kept):
    for name in ("tiny_ema.pt", "tiny.safetensors"):
        content = (FILES / name).read_bytes()
        path = tmp_path / name
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(FileFormatError, match=r"[Tt]runcated"):
            leignn.import_torch_checkpoint(path, cutoff=5.0)


def test_damaged_members(tmp_path):
    source = FILES / "tiny_ema.pt"
    cut = rewrite(source, tmp_path / "a.pt", lambda n, d: d[: len(d) // 2] if n.endswith("data.pkl") else d)
    missing = rewrite(source, tmp_path / "b.pt", lambda n, d: None if n.endswith("data/0") else d)
    short = rewrite(source, tmp_path / "c.pt", lambda n, d: d[:4] if n.endswith("data/0") else d)
    for path, words in ((cut, "can't be read"), (missing, "incomplete"), (short, "reaches past its data")):
        with pytest.raises(FileFormatError, match=words):
            leignn.import_torch_checkpoint(path, cutoff=5.0)


def test_other_files_are_named_for_what_they_are(tmp_path):
    other = io.BytesIO()
    np.savez(other, a=np.zeros(3))
    (tmp_path / "x.pt").write_bytes(other.getvalue())
    with pytest.raises(FileFormatError, match=r"not one that torch\.save wrote"):
        leignn.import_torch_checkpoint(tmp_path / "x.pt", cutoff=5.0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        leignn.import_torch_checkpoint(tmp_path / "none.safetensors", cutoff=5.0)
    with pytest.raises(FileFormatError, match=r"has a global node.*try 'leignn'"):
        leignn.import_torch_checkpoint(FILES / "tiny_ema.pt", variant="vanilla", cutoff=5.0)
    with pytest.raises(FileFormatError, match=r"no embedding for \['Si'\]"):
        leignn.import_torch_checkpoint(FILES / "tiny_ema.pt", cutoff=5.0, elements=("Si",))
    potential = leignn.Potential.create(leignn.preset("small", elements=("H",), features=4), jax.random.key(0))
    potential.save(tmp_path / "ours.safetensors")
    with pytest.raises(FileFormatError, match="not a LEIGNN checkpoint"):
        leignn.import_torch_checkpoint(tmp_path / "ours.safetensors", cutoff=5.0)


@pytest.mark.parametrize("name", ["tiny_ema.pt", "tiny_parameters.pt"])
def test_a_damaged_byte_is_told_or_changes_no_number(tmp_path, name):
    path = tmp_path / name
    path.write_bytes((FILES / name).read_bytes())
    seen = outcomes(path, lambda: leignn.import_torch_checkpoint(path, cutoff=5.0), 100, seed=0)
    assert seen.keys() <= {"told", "same"}, seen
    assert seen["told"] > 60


def weights_with(path: Path, **changes) -> Path:
    """The safetensors file with some weights replaced; "__" stands for a dot."""
    weights = load_file(FILES / "tiny.safetensors")
    save_file({**weights, **{name.replace("__", "."): value for name, value in changes.items()}}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"atom_emb__embeddings__weight": np.zeros(3, np.float32)}, "not two axes"),
        ({"atom_emb__embeddings__weight": np.full((10, 4), np.nan, np.float32)}, "holds NaN"),
        ({"message_layers__0__rbf_proj__weight": np.zeros((), np.float32)}, "not two axes"),
        ({"message_layers__1__x_proj__2__weight": np.zeros(3, np.float32)}, "do not fit together|has shape"),
        ({"message_layers__999999999__x": np.zeros(3, np.float32)}, "layers must be a whole number from 1 to 64"),
        ({"out_energy__0__bias": np.zeros((0, 4), np.float32)}, "has shape"),
    ],
)
def test_weights_of_wrong_sizes_are_refused_in_words(tmp_path, changes, words):
    path = weights_with(tmp_path / "x.safetensors", **changes)
    with pytest.raises(FileFormatError, match=rf"x\.safetensors: .*({words})"):
        leignn.import_torch_checkpoint(path, cutoff=5.0)


def test_what_unpacks_without_end_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(FILES / "tiny_ema.pt") as old, zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
        for name in old.namelist():
            bomb = name.endswith("data/0")
            content = bytes(64 << 20) if bomb else old.read(name)
            new.writestr(name, content, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)
    with pytest.raises(FileFormatError, match="would unpack to 64 MiB"):
        leignn.import_torch_checkpoint(tmp_path / "x.pt", cutoff=5.0)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((1 << 40,), (0,)), ((-1,), (1,)), ((2.0,), (1,)), (("a",), (1,)), ((2, 2), (1,)), (None, None), (3, 1)],
)
def test_a_tensor_that_is_none_is_refused_in_words(tmp_path, shape, strides):
    tensor = _Tensor(_Storage("FloatStorage", "0"), 0, shape, strides)
    with pytest.raises(FileFormatError, match=r"x\.pt: .*w"):
        tensor.array(bytes(64), b"little", tmp_path / "x.pt", "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": -5.0}, "cutoff must be a positive number"),
        ({"elements": "Si"}, "elements must be a list"),
        ({"elements": ()}, "elements: name one or more"),
    ],
)
def test_arguments_are_checked_before_the_file(change, message):
    with pytest.raises(ConfigError, match=message):
        leignn.import_torch_checkpoint(FILES / "tiny.safetensors", **{"cutoff": 5.0, **change})
