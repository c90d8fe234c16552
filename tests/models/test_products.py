"""Products computed together: the numbers and derivatives of single ones, in fewer products where that pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from leignn_jax.models.products import fan_in, fan_out

ROWS, INNER, WIDTHS = (5, 3), 4, (2, 3, 6)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def out_arguments():
    return numbers(0, *ROWS, INNER), [numbers(1 + k, INNER, n) for k, n in enumerate(WIDTHS)]


@pytest.fixture
def in_arguments():
    return [numbers(k, *ROWS, n) for k, n in enumerate(WIDTHS)], [
        numbers(9 + k, n, INNER) for k, n in enumerate(WIDTHS)
    ]


def single_out(x, matrices):
    return [x @ w for w in matrices]


def single_in(xs, matrices):
    return sum(x @ w for x, w in zip(xs, matrices, strict=True))


def as_scalar(function):
    """Of all outputs, so that every derivative is of use."""

    def total(*arguments):
        return sum((jnp.sin(y) ** 2).sum() for y in jax.tree.leaves(function(*arguments)))

    return total


CASES = [(fan_out, single_out, "out_arguments"), (fan_in, single_in, "in_arguments")]


@pytest.mark.parametrize(("together", "single", "arguments"), CASES)
def test_numbers_and_derivatives_are_those_of_single_products(together, single, arguments, request):
    arguments = request.getfixturevalue(arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together(*arguments), single(*arguments))
    for wanted in (jax.grad, jax.jacfwd):
        found, right = (wanted(as_scalar(f), argnums=(0, 1))(*arguments) for f in (together, single))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, right)

    def second(function):
        slope = jax.grad(as_scalar(function), argnums=(0, 1))
        return jax.grad(lambda *a: sum((g**2).sum() for g in jax.tree.leaves(slope(*a))), argnums=(0, 1))

    found, right = (jax.jit(second(f))(*arguments) for f in (together, single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, right)


def test_differences_in_float64(out_arguments):
    with jax.enable_x64(True):
        x, matrices = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), out_arguments)
        check_grads(fan_out, (x, matrices), order=2, modes=("fwd", "rev"))
        xs, more = fan_out(x, matrices), [w.T for w in matrices]
        check_grads(fan_in, (xs, more), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("which", [0, 1])
def test_outputs_that_nobody_reads_and_arrays_held_fixed(out_arguments, in_arguments, which):
    """Where only some cotangents are there or only some tangents."""
    x, matrices = out_arguments

    def one(function):
        return jax.grad(lambda x: (function(x, matrices)[which] ** 2).sum())(x)

    np.testing.assert_allclose(one(fan_out), one(single_out), atol=1e-5)
    xs, more = in_arguments

    def moved(function, part):
        def total(one):
            given = [list(xs), list(more)]
            given[part][which] = one
            return (function(*given) ** 2).sum()

        return jax.grad(total)((xs, more)[part][which])

    for part in (0, 1):
        np.testing.assert_allclose(moved(fan_in, part), moved(single_in, part), atol=2e-5)
    found, right = (
        jax.jvp(
            lambda w, f=f: f(x, [*matrices[:which], w, *matrices[which + 1 :]]), [matrices[which]], [matrices[which]]
        )[1]
        for f in (fan_out, single_out)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, right)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize(("together", "single", "arguments"), CASES)
def test_many_at_once(together, single, arguments, axes, request):
    """Of rows, of matrices, of both; and derivatives of the many, and the many of derivatives."""
    arguments = request.getfixturevalue(arguments)
    many = [
        jax.tree.map(lambda a: jnp.stack([a, 2 * a, a - 1]), part) if axis == 0 else part
        for part, axis in zip(arguments, axes, strict=True)
    ]
    found, right = (jax.vmap(f, axes)(*many) for f in (together, single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, right)
    slopes = [jax.vmap(jax.grad(as_scalar(f), argnums=(0, 1)), axes)(*many) for f in (together, single)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *slopes)
    slopes = [jax.grad(as_scalar(jax.vmap(f, axes)), argnums=(0, 1))(*many) for f in (together, single)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *slopes)


def test_one_of_several_rows_is_many():
    """Of a sum, where one array has an axis that the others have not."""
    xs, matrices = [numbers(0, 3, 5, 2), numbers(1, 5, 4)], [numbers(2, 2, 6), numbers(3, 4, 6)]
    found = jax.vmap(lambda x: fan_in([x, xs[1]], matrices))(xs[0])
    np.testing.assert_allclose(found, xs[0] @ matrices[0] + xs[1] @ matrices[1], atol=1e-6)


@pytest.mark.parametrize(("platform", "products"), [("cuda", 2), ("tpu", 2 * len(WIDTHS)), ("cpu", 2 * len(WIDTHS))])
def test_products_are_joined_where_that_pays(out_arguments, platform, products):
    """The value and its gradient by the rows: one product each on a GPU."""
    x, matrices = out_arguments

    def both(x):
        return jax.value_and_grad(lambda x: sum((y**2).sum() for y in fan_out(x, matrices)))(x)

    text = jax.jit(both).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("dot_general") == products
