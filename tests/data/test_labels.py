"""Labels: where they are looked for, and what is refused."""

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from leignn_jax.data.labels import read_labels
from leignn_jax.errors import DataError


def frame(**results):
    atoms = ase.Atoms("H2", positions=[[0, 0, 0], [0.74, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_missing_labels_are_none():
    labels = read_labels(ase.Atoms("H"))
    assert labels == (None, None, None)


def test_other_names():
    atoms = frame(energy=1.0)
    atoms.info["dft_energy"] = 2.0
    atoms.arrays["dft_forces"] = np.ones((2, 3))
    labels = read_labels(atoms, keys={"energy": "dft_energy", "forces": ["absent", "dft_forces"]})
    assert labels.energy == 2.0
    np.testing.assert_array_equal(labels.forces, np.ones((2, 3)))
    with pytest.raises(DataError, match=r"f\.xyz: frame 3: has no energy named REF; it has dft_energy, dft_forces"):
        read_labels(atoms, "f.xyz: frame 3", {"energy": "REF"})


def test_stress_of_both_forms():
    stress = np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    np.testing.assert_array_equal(read_labels(frame(stress=full_3x3_to_voigt_6_stress(stress))).stress, stress)
    atoms = frame(energy=0.0)
    atoms.info["stress"] = stress
    np.testing.assert_array_equal(read_labels(atoms).stress, stress)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"energy": np.nan}, "the energy is nan"),
        ({"forces": np.array([[0, 0, 0], [np.inf, 0, 0]])}, "the force on atom 1"),
        ({"stress": np.full(6, np.nan)}, "the stress is"),
    ],
)
def test_numbers_that_are_none(results, message):
    with pytest.raises(DataError, match=f"name: {message}"):
        read_labels(frame(**results), "name")


def test_shapes_that_do_not_fit():
    with pytest.raises(DataError, match="no atoms"):
        read_labels(ase.Atoms(), "name")
    atoms = ase.Atoms("H2")
    atoms.info["forces"] = np.zeros((3, 3))
    with pytest.raises(DataError, match="2 atoms"):
        read_labels(atoms, "name")
    atoms.info = {"energy": [1.0, 2.0]}
    with pytest.raises(DataError, match="one number"):
        read_labels(atoms, "name")
    atoms.info = {"stress": [1.0, 2.0]}
    with pytest.raises(DataError, match="6 numbers"):
        read_labels(atoms, "name")
