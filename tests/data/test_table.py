"""The table of frames, and fits by it against a row per frame."""

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.data import chemical_symbols
from frames import copper
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.data.references import fit_reference_energies, reference_energy, residual_energies
from leignn_jax.data.table import tabulate
from leignn_jax.errors import DataError


def row_per_frame(frames, energies):
    """Least squares with one row for each frame: what the fit over compositions must equal."""
    numbers = np.array(sorted({int(z) for a in frames for z in a.numbers}))
    counts = np.array([(a.numbers[:, None] == numbers).sum(0) for a in frames], np.float64)
    sizes = counts.sum(1)
    mean = np.mean(energies / sizes)
    solution = np.linalg.lstsq(counts / sizes[:, None], energies / sizes - mean, rcond=1e-8)[0]
    return {chemical_symbols[z]: mean + x for z, x in zip(numbers, solution, strict=True)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(["CH4", "H2O", "CO2", "CH3OH", "O2"]), min_size=1, max_size=12))
def test_the_fit_over_compositions_is_that_over_frames(seed, names):
    rng = np.random.default_rng(seed)
    frames = [molecule(name) for name in names]
    energies = np.array([-1000.0 * len(a) for a in frames]) + rng.normal(size=len(frames))
    table = tabulate((a, Labels(e, None, None)) for a, e in zip(frames, energies, strict=True))
    found, expected = fit_reference_energies(table), row_per_frame(frames, energies)
    assert found.keys() == expected.keys()
    # Single numbers are determined as far as the compositions tell elements apart; energies of frames always.
    for atoms in frames:
        assert reference_energy(atoms.numbers, found) == pytest.approx(
            reference_energy(atoms.numbers, expected), abs=1e-7
        )
    for symbol in found:
        assert found[symbol] == pytest.approx(expected[symbol], abs=1e-5)


def test_frames_without_energy_and_sets_without_elements():
    frames = [molecule("H2O"), molecule("CH4"), molecule("H2O")]
    labels = [Labels(-10.0, None, None), Labels(None, np.zeros((5, 3)), None), Labels(-12.0, None, None)]
    table = tabulate(zip(frames, labels, strict=True))
    assert table.elements == ("H", "C", "O")
    assert fit_reference_energies(table).keys() == {"H", "O"}
    np.testing.assert_array_equal(table.atoms, [3, 5, 3])
    residuals = residual_energies(table, {"H": -3.0, "C": 0.0, "O": -5.0})
    np.testing.assert_allclose(residuals, [1 / 3, np.nan, -1 / 3])
    part = table.take([2, 0])
    assert part.present() == ("H", "O")
    assert part.energy.tolist() == [-12.0, -10.0]
    assert fit_reference_energies(table.take([1])) == {}
    assert table.forces_rms() == 0.0
    assert part.forces_rms() is None


def test_forces_rms_is_over_components():
    frames = copper(4, sizes=((1, 1, 1), (2, 1, 1)))
    forces = np.concatenate([read_labels(a).forces for a in frames])
    assert tabulate((a, read_labels(a)) for a in frames).forces_rms() == pytest.approx(np.sqrt((forces**2).mean()))


@pytest.mark.parametrize("number", [-1, 0, 119, 10**13])
def test_numbers_of_no_element(number):
    atoms = ase.Atoms(numbers=[1, number], positions=np.zeros((2, 3)))
    with pytest.raises(DataError, match=f"the atomic number of atom 1 is {number}, not an element"):
        tabulate([(atoms, Labels(None, None, None))])


def test_a_table_without_frames():
    for table in (tabulate([]), tabulate([(ase.Atoms("H"), Labels(None, None, None))]).take([])):
        assert table.atoms.shape == (0,)
        assert table.present() == ()
        assert table.forces_rms() is None
        assert fit_reference_energies(table) == {}
        assert residual_energies(table, {}).shape == (0,)


def test_order_of_atoms_is_no_composition():
    table = tabulate((ase.Atoms(s, np.arange(9).reshape(3, 3)), Labels(None, None, None)) for s in ("OH2", "HOH"))
    assert table.kind.tolist() == [0, 0]
    assert len(np.unique(table.fingerprint, axis=0)) == 2
