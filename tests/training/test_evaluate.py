"""Judging a potential on frames that it was not made for."""

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from frames import copper

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError


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


def test_direct_forces_of_a_potential_without_them():
    with pytest.raises(ConfigError, match="no head for direct forces"):
        leignn.evaluate(leignn.load_potential("si"), copper(3), direct=True)
