"""A system of 10^5 atoms; run by `pytest -m slow` (some minutes and 8 GiB)."""

import ase.build
import jax
import numpy as np
import pytest

import leignn_jax as leignn


@pytest.mark.slow
def test_a_hundred_thousand_atoms_have_finite_forces():
    atoms = ase.build.bulk("Si", cubic=True) * (24, 24, 22)
    atoms.rattle(0.05, seed=0)
    assert len(atoms) > 100_000
    potential = leignn.Potential.create(leignn.preset("small", elements=("Si",)), jax.random.key(0))
    prediction = potential.predict(atoms)
    assert np.isfinite(prediction.energy)
    assert np.isfinite(prediction.forces).all()
    assert np.sqrt((prediction.forces**2).mean()) > 1e-4
    assert np.abs(prediction.forces.sum(0)).max() < 1e-2
