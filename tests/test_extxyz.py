"""Extended XYZ: what is written comes back, and what can't be is told."""

import io
import logging

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixCom, FixedPlane, FixScaled, Hookean
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.constraints import free_components
from leignn_jax.data.readers import read_frames
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
        ("none", np.zeros((3, 0))),
        ("long", np.array([1, 2, 1 << 40])),
        ("residue", np.array(["SOL", "SOL", ""])),
        ("two words", np.arange(3)),
        ("a:b", np.arange(3)),
        ("words", np.array(["a", "b c", "d"])),
        ("Z", np.array([1, 1, 1])),
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (3, 1.0),
        ("energy", -7.0),
        ("odd", object()),
        ("set", {1, 2}),
        ("empty", ""),
        ("nothing", np.zeros(0)),
        ("comment", "line 1\nline 2"),
        ("Lattice", "1 2 3"),
        ("properties", "many"),
        ("virial", 5.0),
    ],
)
def test_entries_that_it_can_not_hold(name, value, caplog):
    atoms = water()
    atoms.info[name] = value
    (found,) = read(extxyz_of([atoms]))
    assert found.get_potential_energy() == -1.5
    assert found.info["name"] == "mine"
    assert name in atoms.info
    assert str(name) in caplog.text


names = st.text(max_size=4)
values = st.one_of(
    names, st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.lists(st.integers(0, 3), max_size=3)
)
columns = st.one_of(
    st.lists(names, min_size=3, max_size=3).map(np.array),
    st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3).map(np.array),
    st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3).map(np.array),
)


@settings(deadline=None, max_examples=200)
@given(info=st.dictionaries(names, values, max_size=4), arrays=st.dictionaries(names, columns, max_size=3))
def test_whatever_a_structure_carries_what_is_written_can_be_read(info, arrays, tmp_path_factory):
    atoms = water()
    atoms.info |= info
    atoms.arrays |= arrays
    file = tmp_path_factory.mktemp("any") / "any.extxyz"
    file.write_text(extxyz_of([atoms, atoms]), encoding="utf-8")
    for found in read_frames(file):
        np.testing.assert_array_equal(found.positions, atoms.positions)
        assert found.get_potential_energy() == -1.5
        np.testing.assert_array_equal(found.get_forces(), np.eye(3))
        assert found.info["name"] == atoms.info["name"]


@pytest.mark.parametrize(
    "constraints",
    [
        [FixedPlane(0, (0, 0, 1)), FixCartesian(2, (True, False, False))],
        [FixScaled(1, (True, False, True)), FixAtoms([0])],
    ],
)
def test_constraints_come_back_as_the_coordinates_that_they_hold(constraints, caplog):
    atoms = water()
    atoms.set_constraint(constraints)
    (found,) = read(extxyz_of([atoms]))
    np.testing.assert_array_equal(free_components(found), free_components(atoms))
    assert not free_components(found).all()
    assert not caplog.records


def test_constraints_that_hold_no_coordinates_are_told(caplog):
    atoms = water()
    atoms.set_constraint([FixAtoms([1]), FixCom(), Hookean(0, 1, k=1.0, rt=2.0)])
    (found,) = read(extxyz_of([atoms]))
    assert "the constraint FixCom, the constraint Hookean" in caplog.text
    assert free_components(found).all(1).tolist() == [True, False, True]
