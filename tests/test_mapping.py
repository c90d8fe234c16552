"""Rows in batches: what they come to, in one compiled body."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leignn_jax.mapping import derivatives_by, map_in_batches


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 23])
@pytest.mark.parametrize("most", [1, 4, 8, 100])
def test_every_row_once_and_its_gradient(rows, most):
    values = {"x": jnp.arange(rows, dtype=jnp.float32) + 1.0, "y": jnp.ones((rows, 2))}

    def function(one):
        return one["x"] ** 2, one["x"] * one["y"]

    squares, products = map_in_batches(function, values, most)
    np.testing.assert_array_equal(squares, values["x"] ** 2)
    np.testing.assert_array_equal(products, values["x"][:, None] * values["y"])
    slope = jax.grad(lambda v: map_in_batches(function, v, most)[0].sum())(values)
    np.testing.assert_array_equal(slope["x"], 2 * values["x"])


def test_the_function_is_traced_once():
    traced = []

    def function(x):
        traced.append(x)
        return 2 * x

    for rows in (24, 25, 31):
        traced.clear()
        jax.jit(lambda x: map_in_batches(function, x, 16)).lower(jnp.zeros(rows))
        assert len(traced) == 1


def test_derivatives_by_some_elements():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

    def function(x):
        return jnp.sin(x) @ x.T

    whole = jnp.moveaxis(jax.jacobian(function)(x).reshape(3, 3, 6), -1, 0)
    np.testing.assert_allclose(
        derivatives_by(function, x, [4, 0, 5], 2), whole[jnp.asarray([4, 0, 5])], rtol=1e-5, atol=1e-6
    )
