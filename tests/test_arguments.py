"""What public calls say to arguments that can't be: words, quickly, and nothing raw from inside."""

import os
import subprocess
import sys
from pathlib import Path

import ase
import numpy as np
import pytest

from leignn_jax import arguments
from leignn_jax.errors import ConfigError, StructureError

NO_NUMBER = [
    None,
    "3",
    "hot",
    b"3",
    True,
    np.True_,
    float("nan"),
    float("inf"),
    [1.0],
    np.zeros((2, 2)),
    {},
    object(),
    1j,
]


@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: repr(value).split(" at ")[0])
def test_what_is_no_number(value):
    with pytest.raises(ConfigError, match="speed must be a positive number, not "):
        arguments.check_number("speed", value, positive=True)
    with pytest.raises(ConfigError, match="steps must be a whole number of at least 0, not "):
        arguments.check_whole("steps", value)


def test_float64_is_refused_where_there_is_none(monkeypatch):
    assert arguments.check_dtype("float64") == "float64"
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert arguments.check_dtype("float32") == "float32"
    with pytest.raises(ConfigError, match="precision: a TPU has no float64"):
        arguments.check_dtype("float64", "precision")


def test_numbers_in_range_come_back():
    assert arguments.check_number("x", np.float32(2.5), positive=True, most=3) == 2.5
    assert arguments.check_whole("n", np.int64(3), 1, 3) == 3
    for wrong in (0, 3.5):
        with pytest.raises(ConfigError, match="a positive number of at most 3"):
            arguments.check_number("x", wrong, positive=True, most=3)
    with pytest.raises(ConfigError, match=r"from 1 to 2,000, not 3000\."):
        arguments.check_whole("n", 3000, 1, 2000)
    with pytest.raises(ConfigError, match=r"whole number of at least 0, not 1\.5"):
        arguments.check_whole("n", 1.5)


@pytest.mark.parametrize("value", [-1, 2**32, 10**30, 0.5, None, "1"])
def test_seeds(value):
    assert arguments.check_seed(2**32 - 1) == 2**32 - 1
    with pytest.raises(ConfigError, match="seed must be a whole number from 0 to 4,294,967,295"):
        arguments.check_seed(value)


def test_structures():
    silicon = ase.Atoms("Si")
    assert arguments.check_structures(silicon) == [silicon]
    assert arguments.check_structures(iter([silicon, silicon])) == [silicon, silicon]
    for wrong, words in (
        (None, "atoms must be ase.Atoms, not None"),
        ("start.cif", "read_frames reads files"),
        ([silicon, 3], r"atoms\[1\] must be ase.Atoms, not 3"),
        (ase.Atoms(), "no atoms"),
        ([silicon, ase.Atoms("SiX")], r"atoms\[1\]: Atom 1 has atomic number 0 \(X\)"),
    ):
        with pytest.raises(StructureError, match=words):
            arguments.check_structures(wrong)
    with pytest.raises(ConfigError, match="one structure or more"):
        arguments.check_structures([])


def test_arrays():
    assert arguments.check_array("x", [[1, 2, 3]], (None, 3)).shape == (1, 3)
    for wrong, words in (
        ([[1, 2]], r"x must have the shape \[any, 3\], not \[1, 2\]"),
        ([[1, 2], [3]], "array of numbers"),
        ("x", "array of numbers"),
        ([[None] * 3], "array of numbers"),
    ):
        with pytest.raises(ConfigError, match=words):
            arguments.check_array("x", wrong, (None, 3))


def test_choices_and_names():
    with pytest.raises(ConfigError, match="did you mean 'isotropic'"):
        arguments.check_choice("cell", "isotopic", (False, "isotropic"))
    for wrong in (0, np.zeros(2), None):
        with pytest.raises(ConfigError, match="cell"):
            arguments.check_choice("cell", wrong, (False, "isotropic"))
    for wrong in (None, 3, "", "a\0b"):
        with pytest.raises(ConfigError, match="name of a file"):
            arguments.check_path("out", wrong)


def test_public_calls_answer_wrong_types_in_words(tmp_path):
    # In a process without the type checks of the tests, as a user has it.
    script = Path(__file__).with_name("wrong_calls.py")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 not in words" in done.stdout
    assert int(done.stdout.split()[-6]) > 500
