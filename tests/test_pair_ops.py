"""The sums over neighbours: against loops, and every derivative against finite differences and transposes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from leignn_jax import pair_ops
from leignn_jax.graph import pair_lists
from leignn_jax.pair_ops import PairLists, pair_difference, pair_divergence, pair_sum

pytestmark = pytest.mark.usefixtures("fast_compiles")

ATOMS, FEATURES = 6, 16
# Atom 0 is a neighbour of its own images, atoms 2 and 3 are neighbours twice, atom 5 has none.
PAIRS = [(0, 0), (0, 1), (0, 4), (1, 2), (2, 3), (2, 3), (3, 4), (0, 0)]


@pytest.fixture(params=["one block", "several blocks"], scope="module")
def lists(request):
    """Pair lists with two padding pairs and a padding column, in one block of atoms and in several."""
    original = pair_ops._BLOCK_BYTES
    # Programs of the other number of blocks.
    jax.clear_caches()
    pair_ops._BLOCK_BYTES = original if request.param == "one block" else 600
    table = pair_lists(*np.array(PAIRS, np.int32).T, ATOMS)
    pad = ((0, 0), (0, 1))
    yield PairLists(
        jnp.append(table.receivers, jnp.zeros(2, jnp.int32)),
        jnp.append(table.senders, jnp.zeros(2, jnp.int32)),
        *(jnp.asarray(np.pad(x, pad)) for x in (table.neighbors, table.neighbor_pairs, table.neighbor_signs)),
    )
    pair_ops._BLOCK_BYTES = original


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    mask = (np.arange(len(PAIRS) + 2) < len(PAIRS)).astype(float)
    return {
        "weights": 0.3 * rng.normal(size=(len(PAIRS) + 2, FEATURES)),
        "coefficients": rng.normal(size=(len(PAIRS) + 2, 3, 1)),
        "scalars": rng.normal(size=(ATOMS, 1, FEATURES)),
        "vectors": rng.normal(size=(ATOMS, 3, FEATURES)),
        "mask": mask[:, None],
    }


@pytest.mark.parametrize("odd", [False, True])
def test_coupled_sum_equals_a_loop(lists, arrays, odd):
    w, c, y = arrays["weights"], arrays["coefficients"], arrays["scalars"]
    expected = np.zeros((ATOMS, 3, FEATURES))
    for p, (a, b) in enumerate(PAIRS):
        expected[a] += c[p] * w[p] * y[b]
        expected[b] += (-1 if odd else 1) * c[p] * w[p] * y[a]
    with jax.enable_x64(True):
        got = jax.jit(lambda *x: pair_sum(lists, *x, odd=odd))(w, y, c)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_calls_outside_of_jit_compile_once(lists, arrays, caplog):
    def gradient():
        return jax.grad(lambda y: pair_sum(lists, arrays["weights"], y, arrays["coefficients"], odd=True).sum())(
            arrays["scalars"]
        )

    gradient()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        gradient()
    assert not [r for r in caplog.records if "compil" in r.getMessage().lower()]


def test_sum_equals_a_loop(lists, arrays):
    w, y = arrays["weights"], arrays["vectors"]
    expected = np.zeros((ATOMS, 3, FEATURES))
    for p, (a, b) in enumerate(PAIRS):
        expected[a] += w[p] * y[b]
        expected[b] += w[p] * y[a]
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(lambda *x: pair_sum(lists, *x))(w, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("members", "block_bytes"),
    [
        ("none", 1 << 24),
        ("none", 5000),
        ("all", 5000),
        ("all and their coefficients", 1 << 24),
        ("weights", 5000),
        ("features", 1 << 24),
        ("coefficients", 5000),
    ],
)
def test_what_other_platforms_compute_is_the_same(lists, arrays, members, block_bytes, monkeypatch):
    """Their forms of every sum, run here; of a TPU in one block of atoms and in several."""
    monkeypatch.setattr(pair_ops, "_TPU_BLOCK_BYTES", block_bytes)
    tables, scales = pair_ops._tables(lists), jnp.array([1.0, 2.0, -1.0])

    def given(name, x):
        if members == name or members == "all and their coefficients" or (members == "all" and name != "coefficients"):
            axis = x.ndim if name == "coefficients" else x.ndim - 1
            return jnp.stack([scale * x for scale in scales], axis)
        return jnp.asarray(x)

    with jax.enable_x64(True):
        w, c = (given(name, arrays[name]) for name in ("weights", "coefficients"))
        x, y = (given("features", arrays[name]) for name in ("scalars", "vectors"))
        for primitive, operands, odd in (
            (pair_ops._sum, (w, y), {}),
            (pair_ops._weight, (y, y), {}),
            (pair_ops._coupled_sum, (w, c, x), {"odd": True}),
            (pair_ops._coupled_sum, (w, jnp.swapaxes(c, 1, 2), y), {"odd": True}),
            (pair_ops._coupled_weight, (c, y, x), {"odd": True}),
            (pair_ops._coefficient, (w, y, x), {"odd": True}),
        ):
            form = pair_ops._forms[primitive]
            here = form(*operands, *tables, platform="cpu", **odd)
            for platform in ("tpu", None):
                there = form(*operands, *tables, platform=platform, **odd)
                np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-12)


def test_difference_and_divergence_are_transposes(lists, arrays):
    rng = np.random.default_rng(1)
    x, flow = rng.normal(size=(ATOMS, 3)), rng.normal(size=(len(PAIRS) + 2, 3)) * arrays["mask"]
    with jax.enable_x64(True):
        difference, divergence = pair_difference(lists, x), pair_divergence(lists, flow)
        assert float((difference * flow).sum()) == pytest.approx(float((x * divergence).sum()), rel=1e-12)
    for p, (a, b) in enumerate(PAIRS):
        np.testing.assert_allclose(difference[p], x[b] - x[a], rtol=1e-12)


@pytest.mark.parametrize("kind", ["sum", "outer", "inner"])
def test_derivatives_to_second_order_in_both_modes(lists, arrays, kind):
    """Second order of each sum runs through every primitive and every transpose."""
    mask = arrays["mask"]
    w, c, scalars, vectors = (arrays[k] for k in ("weights", "coefficients", "scalars", "vectors"))

    def energy(w, y, c):
        coefficients = {"sum": None, "outer": c, "inner": jnp.swapaxes(c, 1, 2)}[kind]
        out = pair_sum(lists, w * mask, y, coefficients, odd=kind != "sum")
        return (jnp.sin(out) * jnp.arange(out.size).reshape(out.shape)).sum() / out.size

    y = scalars if kind == "outer" else vectors
    with jax.enable_x64(True):
        check_grads(jax.jit(energy), (w, y, c), order=2, modes=["fwd", "rev"], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("many", "count"), [((0,), 3), ((2,), 3), ((1, 2), 3), ((0, 1, 2), 3), ((0,), 1), ((0, 1, 2), 1)]
)
def test_members_that_share_a_graph(lists, arrays, many, count):
    """Weights, features, coefficients of many members, and what they share; derivatives inside and outside of vmap."""
    mask = arrays["mask"]
    given = [arrays["weights"], arrays["scalars"], arrays["coefficients"]]
    scales = np.array([1.0, 2.0, -1.0])[:count]
    wide = [np.multiply.outer(scales, x) if k in many else x for k, x in enumerate(given)]
    axes = tuple(0 if k in many else None for k in range(3))

    def loss(w, y, c):
        return jnp.sin(pair_sum(lists, w * mask, y, c, odd=True)).sum()

    def force_loss(w, y, c):
        return (jax.grad(loss, 2)(w, y, c) ** 2).sum() + (jax.grad(loss, 0)(w, y, c) ** 2).sum()

    gradient = jax.grad(force_loss, (0, 1, 2))
    with jax.enable_x64(True):
        inside = jax.jit(jax.vmap(gradient, axes))(*wide)
        outside = jax.jit(jax.grad(lambda *x: jax.vmap(force_loss, axes)(*x).sum(), (0, 1, 2)))(*wide)
        alone = [jax.jit(gradient)(*(x[i] if k in many else x for k, x in enumerate(wide))) for i in range(len(scales))]
    for k in range(3):
        want = np.stack([one[k] for one in alone])
        np.testing.assert_allclose(inside[k], want, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(outside[k], want if k in many else want.sum(0), rtol=1e-12, atol=1e-13)


def test_members_of_graphs_of_members(lists, arrays):
    """vmap over graphs and, inside and outside of it, over what shares one."""
    w, y, c = arrays["weights"], arrays["vectors"], np.swapaxes(arrays["coefficients"], 1, 2)
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=4), rng.normal(size=2)
    tables = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 3), lists)

    def one(lists, k, a, b):
        return pair_sum(lists, a * w, jnp.cos(k + y), b * c, odd=True)

    with jax.enable_x64(True):
        graphs = jax.vmap(one, (0, 0, None, None))
        both = jax.vmap(jax.vmap(graphs, (None, None, 0, None)), (None, None, None, 0))
        got = jax.jit(both)(tables, np.arange(3.0), a, b)
        inner = jax.vmap(jax.vmap(one, (None, None, None, 0)), (None, None, 0, None))
        again = jax.jit(jax.vmap(inner, (0, 0, None, None)))(tables, np.arange(3.0), a, b)
        alone = np.stack([jax.jit(one)(lists, float(k), 1.0, 1.0) for k in range(3)])
    assert got.shape == (2, 4, 3, ATOMS, 1, FEATURES)
    np.testing.assert_allclose(
        got, b[:, None, None, None, None, None] * a[:, None, None, None, None] * alone, rtol=1e-12
    )
    np.testing.assert_allclose(np.moveaxis(again, (0, 1, 2), (2, 1, 0)), got, rtol=1e-12)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_members_are_not_copies_of_the_graph(lists, arrays, platform):
    """What a program for many members gathers there: rows of all of them, by the entries of one table."""
    y, c = arrays["scalars"], arrays["coefficients"]
    many = np.stack([arrays["weights"]] * 16)
    program = jax.jit(jax.vmap(lambda w: pair_sum(lists, w, y, c, odd=True)))
    text = program.trace(many).lower(lowering_platforms=(platform,)).as_text()
    gathered = re.findall(r"gather.*-> tensor<([0-9x]+)xf32>", text)
    entries = "x".join(map(str, lists.neighbors.shape))
    assert f"{entries}x16x{FEATURES}" in gathered
    assert all(shape.startswith(f"{entries}x") for shape in gathered)


def test_no_derivative_needs_a_scatter(lists, arrays):
    y, c, w = arrays["scalars"], arrays["coefficients"], arrays["weights"]

    def force_loss(w, y, c):
        def energy(c):
            return jnp.sin(pair_sum(lists, w, y, c, odd=True)).sum()

        return (jax.grad(energy)(c) ** 2).sum()

    text = jax.jit(jax.grad(force_loss, (0, 1, 2))).lower(w, y, c).as_text()
    assert "scatter" not in text


def test_bfloat16_is_summed_in_float32(lists, arrays):
    w = jnp.asarray(arrays["weights"], jnp.bfloat16)
    y = jnp.asarray(arrays["vectors"], jnp.bfloat16)
    out = jax.jit(lambda *x: pair_sum(lists, *x))(w, y)
    exact = jax.jit(lambda *x: pair_sum(lists, *x))(w.astype(jnp.float32), y.astype(jnp.float32))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, exact)
    gradients = jax.jit(jax.grad(lambda *x: pair_sum(lists, *x).sum(), (0, 1)))(w, y)
    assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
