"""S(q) of crystals and gases, where it is known."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leignn_jax.analysis import structure_factor
from leignn_jax.analysis.scattering import scattering_intensity, scattering_vectors
from leignn_jax.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("fast_compiles")


def test_a_crystal_scatters_at_its_bragg_peaks_alone():
    copper = ase.build.bulk("Cu", a=3.6, cubic=True) * 3
    found = structure_factor(copper.positions[None] + 1.7, copper.cell.array, q_max=5.0)
    # Of the cubic cell (h, k, l) all even or all odd; of three cells three times these.
    h = found.indices / 3
    bragg = (h == np.rint(h)).all(1) & ((np.rint(h) % 2).sum(1) % 3 == 0)
    assert bragg.sum() == 4 + 3 + 6  # half of {111}, {200}, {220}
    np.testing.assert_allclose(found.each[bragg], 108, rtol=1e-9)
    np.testing.assert_allclose(found.each[~bragg], 0, atol=1e-9)
    np.testing.assert_allclose(
        np.unique(found.lengths[bragg].round(9)), 2 * np.pi / 3.6 * np.sqrt([3, 4, 8]), rtol=1e-8
    )
    first = np.flatnonzero(found.value > 1e-6)[0]
    assert found.q[first] == pytest.approx(2 * np.pi * np.sqrt(3) / 3.6, abs=0.05)
    assert found.counts.sum() == len(found.indices)
    assert np.isnan(found.error).all()
    # A cell sheared by lattice vectors is the same crystal.
    turned = copper.cell.array.copy()
    turned[1] += turned[0]
    again = structure_factor(copper.positions[None], turned, q_max=5.0)
    np.testing.assert_allclose(again.value, found.value, atol=1e-8)


def test_an_ideal_gas_has_s_of_one():
    cell = np.array([[9.0, 0, 0], [1.0, 10.0, 0], [0, 2.0, 11.0]])
    positions = np.random.default_rng(0).uniform(size=(400, 12, 3)) @ cell
    found = structure_factor(positions, cell, q_max=3.0, bins=12)
    off = (found.value - 1) / found.error
    assert np.abs(off).max() < 4
    assert 0.5 < np.sqrt(np.mean(off**2)) < 1.6
    # Whatever the weights; and of one atom it is one exactly.
    weighted = structure_factor(positions, cell, q_max=3.0, bins=1, weights=np.arange(12) - 3.0)
    assert weighted.value[0] == pytest.approx(1, abs=4 * weighted.error[0])
    np.testing.assert_allclose(structure_factor(positions[:2, :1], cell, q_max=3.0).each, 1, rtol=1e-12)


def test_vectors_are_all_within_q_max_once():
    cell = np.array([[4.0, 0, 0], [1.5, 5.0, 0], [0, -2.0, 6.0]])
    found = scattering_vectors(cell, 4.0)
    everything = np.indices((21, 21, 21)).reshape(3, -1).T - 10
    lengths = np.linalg.norm(2 * np.pi * everything @ np.linalg.inv(cell).T, axis=1)
    inside = {tuple(n) for n in everything[(lengths <= 4.0) & (lengths > 0)]}
    both = [tuple(n) for n in found] + [tuple(-n) for n in found]
    assert len(both) == len(set(both))
    assert set(both) == inside


def test_its_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        positions, cell = (
            jnp.asarray(rng.uniform(size=(6, 3)) * 20 - 8),
            jnp.asarray(np.eye(3) * 5 + rng.normal(size=(3, 3))),
        )
        indices, weights = jnp.asarray(rng.integers(-3, 4, (7, 3))), jnp.array([1.0, 2, 1, 1, 0.5, 0])
        loss = jax.jit(lambda r, c: (scattering_intensity(r, indices, c, weights) * jnp.arange(7)).sum())
        slopes = jax.grad(loss, (0, 1))(positions, cell)
        steps = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(3, 3)))
        finite = loss(positions + 1e-6 * steps[0], cell + 1e-6 * steps[1])
        finite = (finite - loss(positions - 1e-6 * steps[0], cell - 1e-6 * steps[1])) / 2e-6
        exact = sum((s * d).sum() for s, d in zip(slopes, steps, strict=True))
    assert float(exact) == pytest.approx(float(finite), rel=1e-6)
    assert not np.asarray(slopes[0])[5].any()


def test_words():
    one = np.zeros((1, 2, 3))
    with pytest.raises(DataError, match=r"needs a cell that is periodic in all directions"):
        structure_factor(one, np.eye(3), [True, True, False])
    with pytest.raises(
        DataError, match=r"cell of frame 0 has no volume, so there is no S\(q\): give a structure with a cell"
    ):
        structure_factor(one, np.zeros((3, 3)))
    with pytest.raises(ConfigError, match=r"No vector of this cell is as short as q_max = 0\.1"):
        structure_factor(one, np.eye(3), q_max=0.1)
    with pytest.raises(ConfigError, match="more than 200,000: lower q_max"):
        structure_factor(one, 100 * np.eye(3))
    with pytest.raises(DataError, match=r"weights must be \[2\] finite numbers"):
        structure_factor(one, 5 * np.eye(3), weights=[1.0])
