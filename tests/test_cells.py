"""Cells in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leignn_jax.cells import inverse, transformed


@pytest.mark.parametrize("shape", [(), (4,)])
def test_products_are_those_of_matrices(shape):
    rng = np.random.default_rng(0)
    rows, cells = rng.normal(size=(*shape, 7, 3)), rng.normal(size=(*shape, 3, 3))
    np.testing.assert_allclose(transformed(rows, cells), rows @ cells, rtol=1e-13, atol=1e-13)


def test_inverses_of_skewed_cells():
    rng = np.random.default_rng(1)
    cells = np.eye(3) * [3.0, 10.0, 40.0] + rng.normal(size=(50, 3, 3))
    with jax.enable_x64(True):
        found = np.asarray(inverse(jnp.asarray(cells)))
    np.testing.assert_allclose(found @ cells, np.broadcast_to(np.eye(3), cells.shape), atol=1e-12)
    np.testing.assert_allclose(found, np.linalg.inv(cells), rtol=1e-10, atol=1e-12)


def test_derivatives_of_the_inverse():
    cell = np.array([[5.0, 0.1, 0.0], [2.0, 6.0, 0.3], [0.2, -1.0, 7.0]])
    direction = np.random.default_rng(2).normal(size=(3, 3))
    with jax.enable_x64(True):
        slope = jax.jvp(inverse, (jnp.asarray(cell),), (jnp.asarray(direction),))[1]
    back = np.linalg.inv(cell)
    np.testing.assert_allclose(slope, -back @ direction @ back, rtol=1e-11, atol=1e-14)


def test_a_flat_cell_has_no_inverse():
    assert not np.isfinite(inverse(jnp.asarray([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]]))).all()
