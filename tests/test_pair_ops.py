"""The sums over neighbours: against loops, and every derivative against finite differences and transposes."""

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


@pytest.mark.parametrize("block_bytes", [1 << 24, 5000])
def test_what_other_platforms_compute_is_the_same(lists, arrays, block_bytes, monkeypatch):
    """Their forms of a sum, run here; of a TPU in one block of atoms and in several."""
    monkeypatch.setattr(pair_ops, "_TPU_BLOCK_BYTES", block_bytes)
    w, c, x, y = (arrays[name] for name in ("weights", "coefficients", "scalars", "vectors"))
    tables = pair_ops._tables(lists)
    with jax.enable_x64(True):
        w, c, x, y = map(jnp.asarray, (w, c, x, y))
        for rule, given in (
            (pair_ops._sum_rule, ((w, y), tables)),
            (lambda *a: pair_ops._coupled_sum_rule(*a, odd=True), ((w, c, x), tables)),
        ):
            here = rule(*given, "cpu")
            for platform in ("tpu", None):
                np.testing.assert_allclose(rule(*given, platform), here, rtol=1e-12, atol=1e-12)


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


def test_vmap_is_a_batch_of_graphs(lists, arrays):
    mask = arrays["mask"]
    y, c = arrays["scalars"], arrays["coefficients"]
    many = np.stack([arrays["weights"], 2 * arrays["weights"], -arrays["weights"]])

    def loss(w, y, c):
        return jnp.sin(pair_sum(lists, w * mask, y, c, odd=True)).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)), (0, None, None)))(many, y, c)
        outside = jax.jit(jax.grad(lambda m: jax.vmap(lambda w: loss(w, y, c))(m).sum()))(many)
        for k, w in enumerate(many):
            alone = gradient(w, y, c)
            for got, want in zip(together, alone, strict=True):
                np.testing.assert_allclose(got[k], want, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(outside[k], alone[0], rtol=1e-12, atol=1e-13)


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
