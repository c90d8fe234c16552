"""The linear model that labels are judged by: its forces and virial are derivatives of its energy, and it can be fitted."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from frames import copper

from leignn_jax.data.labels import read_labels
from leignn_jax.data.pair_model import ForceModel, features, fit_forces, make_basis, model_forces


@pytest.fixture(params=["crystal", "molecule"])
def atoms(request):
    made = molecule("CH3CH2OH") if request.param == "molecule" else bulk("NaCl", "rocksalt", a=5.6)
    made.positions += 0.1 * np.random.default_rng(0).normal(size=made.positions.shape)
    return made


def test_forces_are_derivatives(atoms):
    basis = make_basis([atoms], 5.0)
    weights = np.random.default_rng(1).normal(size=basis.size)
    found = features(atoms, basis)
    forces = (found.forces @ weights).reshape(-1, 3)
    np.testing.assert_allclose(model_forces(atoms, ForceModel(basis, weights)), forces, atol=1e-12)
    for atom, axis in ((0, 0), (1, 2)):
        energies = []
        for step in (-1e-4, 1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energies.append(features(moved, basis).energy @ weights)
        assert forces[atom, axis] == pytest.approx((energies[0] - energies[1]) / 2e-4, rel=1e-4, abs=1e-5)


def test_virial_is_the_derivative_by_strain():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.positions[1] += [0.1, 0.05, -0.1]
    basis = make_basis([atoms], 5.0)
    weights = np.random.default_rng(1).normal(size=basis.size)
    virial = (features(atoms, basis).virial @ weights).reshape(3, 3)
    for a, b in ((0, 0), (0, 1)):
        energies = []
        for step in (-1e-4, 1e-4):
            strain = np.eye(3)
            strain[a, b] += 0.5 * step
            strain[b, a] += 0.5 * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(features(strained, basis).energy @ weights)
        assert virial[a, b] == pytest.approx((energies[1] - energies[0]) / 2e-4, rel=1e-3, abs=1e-4)


def test_fitted_to_forces_with_two_wrong_frames():
    frames = copper(20)
    forces = [read_labels(a).forces for a in frames]
    basis = make_basis(frames, 5.0)
    matrices = [features(a, basis) for a in frames]
    wrong = [50 * f if i in (3, 8) else f for i, f in enumerate(forces)]
    weights = fit_forces(matrices, wrong)
    for matrix, true in zip(matrices, forces, strict=True):
        foretold = matrix.forces @ weights
        assert foretold @ true.ravel() / np.sum(true**2) == pytest.approx(1.0, abs=0.15)
