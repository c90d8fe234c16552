"""Judging a potential on frames that it was not made for."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from frames import copper

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, DataError, ElementError


def test_an_element_of_the_test_set_only(tmp_path):
    frames = copper(3, stress=False)
    for atoms in frames:
        labels = atoms.calc.results
        atoms.numbers[:] = 14
        atoms.calc = SinglePointCalculator(atoms, **labels)
    labels = frames[1].calc.results
    frames[1].numbers[2] = 79
    frames[1].calc = SinglePointCalculator(frames[1], energy=labels["energy"], forces=np.array(labels["forces"]))
    ase.io.write(tmp_path / "test.extxyz", frames)
    potential = leignn.load_potential("si")
    with pytest.raises(ElementError, match=r"test\.extxyz: frame 1: Atom 2 is Au, which this potential has not seen"):
        leignn.evaluate(potential, tmp_path / "test.extxyz")
    with pytest.raises(ElementError, match="frame 1: Atom 2 is Au"):
        leignn.evaluate(potential, frames)


def test_results_of_another_frame_are_refused_and_others_passed_over():
    potential, (one, other) = leignn.load_potential("si"), (bulk("Si", cubic=True), bulk("Si", cubic=True))
    other.rattle(0.1, seed=0)
    for units in (None, "hartree/bohr"):
        one.calc = other.calc = SinglePointCalculator(one, energy=-40.0, forces=np.zeros((8, 3)))
        with pytest.raises(DataError, match="frame 1: what its calculator holds is of another structure"):
            leignn.evaluate(potential, [one, other], units=units)
        other.calc = SinglePointCalculator(other, energy=-40.0, forces=np.zeros((8, 3)), dipole=None)
        other.calc.results |= {"node_energy": np.zeros(8), "note": "converged"}
        found = leignn.evaluate(potential, [one, other], units=units)
        assert found.metrics["structures"] == 2


def test_direct_forces_of_a_potential_without_them():
    with pytest.raises(ConfigError, match="no head for direct forces"):
        leignn.evaluate(leignn.load_potential("si"), copper(3), direct=True)
