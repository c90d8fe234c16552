"""From ase.Atoms to arrays, and atoms that were put back into the cell."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms, units
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax import analysis
from leignn_jax.analysis.trajectory import as_cells, as_frames, element, without_drift
from leignn_jax.errors import DataError, ElementError


def test_names_are_found_and_import_is_light():
    for name in analysis.__all__:
        found = getattr(analysis, name)
        # A function or class, or one of the modules that are used by their own names.
        assert callable(found) or found is sys.modules[f"{analysis.__name__}.{name}"]
        assert name in dir(analysis)
    with pytest.raises(AttributeError, match="no attribute 'rfd'"):
        analysis.__getattr__("rfd")
    code = (
        "from leignn_jax.analysis import radial_distribution, diffusivity, plot_rdf, view; import sys;"
        "assert not {'matplotlib', 'scipy.stats', 'py3Dmol', 'nglview'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_velocities_are_in_angstrom_per_fs():
    atoms = Atoms("ArAr", positions=[[0, 0, 0], [3, 0, 0]], cell=[9, 9, 9], pbc=[True, True, False])
    atoms.set_velocities([[1, 0, 0], [0, 0, 0]])
    t = analysis.from_ase([atoms, atoms])
    # 1/2 m v^2, once by ASE and once from Å/fs in SI: amu (1e5 m/s)^2 / e.
    assert t.velocities[0, 0, 0] == pytest.approx(units.fs)
    energy = 0.5 * 39.948 * 1.66053906660e-27 * (t.velocities[0, 0, 0] * 1e5) ** 2 / 1.602176634e-19
    assert atoms.get_kinetic_energy() == pytest.approx(energy, rel=1e-6)
    assert analysis.kinetic_energy(t.velocities, t.masses) == pytest.approx([atoms.get_kinetic_energy()] * 2)
    assert t.positions.shape == (2, 2, 3)
    assert t.cell.shape == (2, 3, 3)
    assert t.pbc.tolist() == [True, True, False]
    assert analysis.from_ase(atoms).positions.shape == (1, 2, 3)


def test_frames_of_different_systems_are_refused():
    with pytest.raises(DataError, match=r"Frame 1 \(HO\) has other atoms"):
        analysis.from_ase([Atoms("OH"), Atoms("HO")])
    with pytest.raises(DataError, match="Frame 1 has pbc"):
        analysis.from_ase([Atoms("H"), Atoms("H", pbc=True, cell=[3, 3, 3])])
    with pytest.raises(DataError, match="no frame"):
        analysis.from_ase([])
    with pytest.raises(DataError, match=r"must be \[frames, atoms, 3\], not \[4, 3\]"):
        as_frames(np.zeros((4, 3)), "positions")
    with pytest.raises(DataError, match="positions of frame 1, atom 2 are not finite"):
        as_frames(np.where(np.arange(18).reshape(2, 3, 3) == 16, np.nan, 0.0), "positions")
    with pytest.raises(DataError, match="with 5 frames, not"):
        as_cells(np.zeros((4, 3, 3)), 5)
    with pytest.raises(ElementError, match=r"no 'Li' among the atoms: they are H, O"):
        element("Li", np.array([8, 1]))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    varying=st.booleans(),
)
def test_unwrap_undoes_wrapping(seed, pbc, varying):
    rng = np.random.default_rng(seed)
    pbc = np.array(pbc)
    cell = np.diag(rng.uniform(4, 9, 3)) + rng.uniform(-1, 1, (3, 3))
    cells = cell * (1 + (0.01 * rng.uniform(-1, 1, (20, 1, 1)) if varying else np.zeros((20, 1, 1))))
    fractional = rng.uniform(0, 1, (1, 5, 3)) + np.cumsum(rng.uniform(-0.45, 0.45, (20, 5, 3)), axis=0)
    fractional -= np.where(pbc, np.floor(fractional[0]), 0)
    wrapped = fractional - np.where(pbc, np.floor(fractional), 0)
    true = np.einsum("tai,tij->taj", fractional, cells)
    given_cells = cells if varying else cell
    found = analysis.unwrap(np.einsum("tai,tij->taj", wrapped, cells), given_cells, pbc)
    np.testing.assert_allclose(found, true, atol=1e-10)


def test_unwrap_in_a_slab_without_a_third_vector():
    cell = np.array([[4.0, 0, 0], [1.0, 5, 0], [0, 0, 0]])
    steps = np.zeros((8, 1, 3))
    steps[:, 0] = [1.5, 0.2, 7.0]
    true = np.cumsum(steps, axis=0)
    wrapped = true.copy()
    wrapped[:, 0, 0] -= 4.0 * (np.arange(8) // 2)
    found = analysis.unwrap(wrapped, cell, [True, True, False])
    np.testing.assert_allclose(found - found[0], true - true[0], atol=1e-12)
    with pytest.raises(DataError, match="can't be inverted"):
        analysis.unwrap(wrapped, np.zeros((3, 3)), True)


def test_drift_is_that_of_the_centre_of_mass():
    rng = np.random.default_rng(0)
    masses = np.array([1.0, 16.0, 3.0])
    moving = rng.normal(size=(6, 3, 3)) + np.arange(6)[:, None, None]
    still = without_drift(moving, masses)
    np.testing.assert_allclose(np.einsum("tai,a->ti", still, masses), 0, atol=1e-12)
    np.testing.assert_allclose(still[:, 0] - still[:, 2], moving[:, 0] - moving[:, 2], atol=1e-12)
    with pytest.raises(DataError, match=r"masses must be \[3\]"):
        without_drift(moving, masses[:2])
