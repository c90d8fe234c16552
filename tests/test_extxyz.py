"""Extended XYZ: what is written comes back, and what can't be is told."""

import io
import logging

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.extxyz import extxyz_of


def water():
    atoms = ase.Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[5, 5, 5], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=np.eye(3), stress=np.arange(6.0))
    atoms.info["name"] = "mine"
    atoms.arrays["site"] = np.array([3, 1, 2])
    return atoms


def read(text):
    return ase.io.read(io.StringIO(text), index=":", format="extxyz")


def test_frames_come_back(caplog):
    with caplog.at_level(logging.WARNING):
        first, second = read(extxyz_of([water(), water()]))
    for found in (first, second):
        assert found.get_potential_energy() == -1.5
        np.testing.assert_array_equal(found.get_forces(), np.eye(3))
        np.testing.assert_array_equal(found.get_stress(), np.arange(6.0))
        np.testing.assert_array_equal(found.arrays["site"], [3, 1, 2])
        assert found.info["name"] == "mine"
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("byte", np.zeros(3, np.uint8)),
        ("phase", np.zeros(3, complex)),
        ("day", np.zeros(3, "datetime64[D]")),
        ("tensors", np.zeros((3, 3, 3))),
        ("forces", np.ones((3, 3))),
    ],
)
def test_arrays_that_it_can_not_hold(name, value, caplog):
    atoms = water()
    atoms.arrays[name] = value
    (found,) = read(extxyz_of([atoms]))
    assert name in caplog.text
    assert name in atoms.arrays
    np.testing.assert_array_equal(found.get_forces(), np.eye(3))
    np.testing.assert_array_equal(found.arrays["site"], [3, 1, 2])


@pytest.mark.parametrize(("name", "value"), [(3, 1.0), ("energy", -7.0), ("odd", object()), ("set", {1, 2})])
def test_entries_that_it_can_not_hold(name, value, caplog):
    atoms = water()
    atoms.info[name] = value
    (found,) = read(extxyz_of([atoms]))
    assert found.get_potential_energy() == -1.5
    assert found.info["name"] == "mine"
    assert name in atoms.info
