"""Labels: where they are looked for, and what is refused."""

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import label_names, read_labels
from leignn_jax.data.readers import read_frames
from leignn_jax.errors import ConfigError, DataError


def frame(**results):
    atoms = ase.Atoms("H2", positions=[[0, 0, 0], [0.74, 0, 0]], cell=[5, 5, 5], pbc=True)
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


# Of eV and Å: energy -1, forces 1, stress of 0.1 in a cell of 1000 Å^3, as users' files name them.
ENERGIES = ["energy", "REF_energy", "dft_energy", "DFT_energy", "total_energy", "free_energy"]
FORCES = ["forces", "force", "REF_forces", "dft_forces", "atomic_forces"]
STRESSES = ["stress", "REF_stress", "virial", "virials", "REF_virials", "dft_virial"]


def box(**info):
    return ase.Atoms("H2", positions=[[0, 0, 0], [0.74, 0, 0]], cell=[10, 10, 10], pbc=True, info=info)


@pytest.mark.parametrize("key", ENERGIES)
def test_names_of_energies(key):
    atoms = box(**{key: -1.0})
    assert read_labels(atoms).energy == -1.0
    assert label_names(atoms) == {"energy": key}


@pytest.mark.parametrize("key", FORCES)
def test_names_of_forces(key):
    atoms = box()
    atoms.arrays[key] = np.ones((2, 3))
    np.testing.assert_array_equal(read_labels(atoms).forces, np.ones((2, 3)))
    assert label_names(atoms) == {"forces": key}


@pytest.mark.parametrize("key", STRESSES)
def test_names_of_stresses(key):
    """A virial is minus the stress times the volume."""
    value = np.diag([0.1, 0.2, 0.3]) * (-1000 if "virial" in key else 1)
    np.testing.assert_allclose(read_labels(box(**{key: value})).stress, np.diag([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(
        read_labels(box(**{key: full_3x3_to_voigt_6_stress(value)}), keys={"stress": key}).stress,
        np.diag([0.1, 0.2, 0.3]),
    )


def test_a_virial_of_a_molecule_is_no_stress():
    atoms = ase.Atoms("H", info={"virial": np.eye(3)})
    assert read_labels(atoms).stress is None
    assert label_names(atoms) == {}


@pytest.mark.parametrize("key", ["virial", "stress"])
@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_a_stress_needs_a_volume(tmp_path, caplog, key, pbc):
    """Of a molecule or a slab it is no label, which is told once for a file: a loss of it would be no number."""
    atoms = ase.Atoms("H", cell=[5, 5, 5], pbc=pbc, info={key: np.eye(3), "energy": 1.0})
    assert read_labels(atoms).stress is None
    assert read_labels(atoms, keys={"stress": key}).stress is None
    ase.io.write(tmp_path / "frames.extxyz", [atoms, atoms])
    with caplog.at_level("WARNING", "leignn_jax"):
        assert [labels.stress for _, labels in iter_labelled(tmp_path / "frames.extxyz")] == [None, None]
    assert len([r for r in caplog.records if "no volume" in r.message]) == 1


@pytest.mark.parametrize(
    ("label", "one", "other"),
    [
        ("energy", {"energy": -1.0}, {"REF_energy": -1.1}),
        ("energy", {"dft_energy": -1.0}, {"total_energy": -1.1}),
        ("forces", {"forces": np.zeros((2, 3))}, {"REF_forces": np.ones((2, 3))}),
        ("stress", {"stress": 0.1 * np.eye(3)}, {"virial": 100 * np.eye(3)}),
    ],
)
def test_two_names_that_differ_ask_which(label, one, other):
    (key,) = other
    with pytest.raises(
        DataError, match=rf"f: frame 2: .* and {key} differ as the {label}: .*data\.keys\.{label}={key}"
    ):
        read_labels(box(**one, **other), "f: frame 2")
    chosen = read_labels(box(**one, **other), keys={label: key})
    assert chosen._asdict()[label] is not None


def test_two_names_that_agree_are_one():
    atoms = box(energy=-17660.123456, REF_energy=-17660.1235, stress=0.1 * np.eye(3), virial=-100 * np.eye(3))
    assert read_labels(atoms).energy == -17660.123456
    assert label_names(atoms) == {"energy": "energy", "stress": "stress"}


def test_the_free_energy_is_another_quantity():
    assert read_labels(box(energy=-1.0, free_energy=-1.2)).energy == -1.0
    assert read_labels(box(energy=-1.0, free_energy=-1.2), keys={"energy": "free_energy"}).energy == -1.2


def test_one_name_with_two_numbers():
    atoms = frame(energy=1.0)
    atoms.info["energy"] = 2.0
    for keys in (None, {"energy": "energy"}):
        with pytest.raises(DataError, match="name: energy stands there twice"):
            read_labels(atoms, "name", keys)
    atoms.info["energy"] = 1.0
    assert read_labels(atoms).energy == 1.0


@pytest.mark.parametrize("value", ["-1.0", "unknown", True, {"total": 1.0}, 1j, [[1.0], [2.0, 3.0]], np.array([None])])
@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_labels_that_are_no_numbers(label, value):
    with pytest.raises(DataError, match=f"name: the {label} "):
        read_labels(box(**{label: value}), "name")


@pytest.mark.parametrize(("label", "size"), [("energy", 1), ("forces", (2, 3)), ("stress", 6)])
def test_numbers_beyond_sense(label, size):
    with pytest.raises(DataError, match=r"name: the (energy|force|stress)"):
        read_labels(box(**{label: np.full(size, 1e200)}), "name")


def test_a_calculator_that_several_frames_share():
    frames = [frame() for _ in range(2)]
    shared = LennardJones(sigma=1.0, rc=2.0)
    for number, atoms in enumerate(frames):
        atoms.positions[1, 0] += 0.1 * number
        atoms.calc = shared
        atoms.get_forces()
    with pytest.raises(DataError, match="frame 0: what its calculator holds is of another structure"):
        read_labels(frames[0], "frame 0")
    assert read_labels(frames[1]).energy == frames[1].get_potential_energy()
    # Where labels come from elsewhere it does not matter.
    frames[0].info["dft"], frames[0].arrays["slopes"] = 2.0, np.ones((2, 3))
    others = {"energy": "dft", "forces": "slopes", "stress": "virial"}
    frames[0].info["virial"] = np.zeros((3, 3))
    assert read_labels(frames[0], keys=others).energy == 2.0


def test_atoms_that_were_moved_after_they_were_computed():
    atoms = frame(energy=1.0)
    atoms.positions[0] += atoms.cell[0] - 2 * atoms.cell[2]
    atoms.positions += [0.3, -7.0, 1e3]
    assert read_labels(atoms).energy == 1.0
    for change in (
        lambda a: a.positions.__iadd__([[0, 0, 0.01], [0, 0, 0]]),
        lambda a: a.set_cell([5, 5, 5.1]),
        lambda a: a.set_pbc(False),
        lambda a: a.numbers.__iadd__(1),
        lambda a: a.append("H"),
    ):
        atoms = frame(energy=1.0)
        change(atoms)
        with pytest.raises(DataError, match="of another structure"):
            read_labels(atoms)


def test_keys_of_no_label(tmp_path):
    ase.io.write(tmp_path / "one.extxyz", frame(energy=1.0))
    for wrong, message in (({"enrgy": "x"}, "did you mean 'energy'"), ("x", "keys must be a dict")):
        with pytest.raises(ConfigError, match=message):
            read_labels(frame(energy=1.0), keys=wrong)
        with pytest.raises(ConfigError, match=message):
            read_frames(tmp_path / "one.extxyz", keys=wrong)


@pytest.mark.parametrize("index", [0, -1, slice(0, 1), None])
def test_an_index_that_is_no_text(tmp_path, index):
    ase.io.write(tmp_path / "one.extxyz", frame(energy=1.0))
    with pytest.raises(ConfigError, match="index must be a slice as text"):
        read_frames(tmp_path / "one.extxyz", index=index)
