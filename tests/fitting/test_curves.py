"""Measured curves: read as written, refused where they can't be what is meant."""

import numpy as np
import pytest

from leignn_jax.errors import FileFormatError
from leignn_jax.fitting.config import Rdf
from leignn_jax.fitting.curves import read_curve
from leignn_jax.fitting.observables import goal_of

SAMPLING = {"temperature": 300.0, "timestep": 1.0, "steps": 100}


def rdf(file, **more):
    values = {"name": "g", "observable": "rdf", "structure": "x.xyz", "file": str(file), "start": 2.0, "end": 4.0}
    return Rdf.model_validate({**values, "spacing": 0.1, "uncertainty": 0.02, "sampling": SAMPLING, **more})


@pytest.mark.parametrize(
    "text", ["r,g\n0.0,1.0\n0.5,2.0\n", "# r g\n0.0 1.0 # first\n0.5\t2.0\n", "0.0;1.0\n0.5;2.0\n"]
)
def test_columns_are_read(text, tmp_path):
    (tmp_path / "g.txt").write_text(text)
    x, y, error = read_curve(tmp_path / "g.txt", (0, 1), 10.0)
    np.testing.assert_array_equal([x, y, error], [[0.0, 5.0], [1.0, 2.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("0 1\n1 2\n", (0, 2), "2 columns"),
        ("0 1\n1 x\n", (0, 1), "not columns of numbers"),
        ("0 1\n1 nan\n", (0, 1), "row 1 holds"),
        ("1 1\n0 2\n", (0, 1), "does not rise at row 1"),
        ("0 1 0.1\n1 2 -0.1\n", (0, 1, 2), "below zero"),
        ("# nothing\n", (0, 1), "no numbers"),
    ],
)
def test_what_is_no_curve_is_refused(text, columns, says, tmp_path):
    (tmp_path / "g.txt").write_text(text)
    with pytest.raises(FileFormatError, match=says):
        read_curve(tmp_path / "g.txt", columns)


def test_bytes_that_are_no_text_and_no_file(tmp_path):
    (tmp_path / "g.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FileFormatError, match="not a text file"):
        read_curve(tmp_path / "g.txt", (0, 1))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_curve(tmp_path / "h.txt", (0, 1))


def test_other_units_of_length_are_told(tmp_path):
    """A curve in nm read as Å ends before the range that is asked for."""
    r = np.linspace(0, 1.0, 501)
    np.savetxt(tmp_path / "g.txt", np.c_[r, np.ones_like(r)])
    with pytest.raises(FileFormatError, match=r"goes from 0 to 1 Å.*Say `unit`"):
        goal_of(rdf(tmp_path / "g.txt"))
    goal = goal_of(rdf(tmp_path / "g.txt", unit="nm"))
    np.testing.assert_allclose(goal.values, 1.0, atol=2e-3)
    np.testing.assert_allclose(goal.x, np.arange(2.05, 4.0, 0.1))


def test_a_measured_peak_is_smeared_as_a_simulated_one(tmp_path):
    """A narrow shell of atoms, as a curve and as distances that are counted, gives the same bins."""
    from leignn_jax.analysis.soft_rdf import smooth_rdf

    r = np.linspace(0, 6, 6001)
    width, shell = 0.01, 3.0
    g = np.exp(-((r - shell) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi)) / (4 * np.pi * shell**2)
    np.savetxt(tmp_path / "g.txt", np.c_[r, g])
    goal = goal_of(rdf(tmp_path / "g.txt", width=0.1))
    edges = np.arange(2.0, 4.01, 0.1)
    simulated = smooth_rdf(np.array([shell]), np.array([1.0]), edges, np.hypot(0.1, width), 1.0, 1, 1)
    np.testing.assert_allclose(goal.values, simulated, atol=2e-4)
