"""The differentiable g(r) against the hard one and its gradients against finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from leignn_jax.analysis import (
    pair_distances,
    pair_weights,
    radial_distribution,
    rdf_from_histogram,
    rdf_mae,
    smooth_rdf,
    soft_histogram,
)
from leignn_jax.neighbors import find_pairs

PADDING = 13

pytestmark = pytest.mark.usefixtures("fast_compiles")


@pytest.fixture(scope="module")
def system():
    """A rattled cell, and its padded list of pairs up to 1 Å beyond r_max."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.15, seed=4)
    r_max = 5.0
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, r_max + 1.0)
    fill = np.zeros(PADDING, int)
    return {
        "atoms": atoms,
        "r_max": r_max,
        "i": np.concatenate([pairs.receivers, fill]),
        "j": np.concatenate([pairs.senders, fill]),
        "offsets": np.concatenate([pairs.shifts @ atoms.cell.array, np.zeros((PADDING, 3))]),
        "mask": np.arange(len(pairs.distances) + PADDING) < len(pairs.distances),
    }


def vectors_of(system, positions):
    return positions[system["j"]] + system["offsets"] - positions[system["i"]]


@pytest.mark.parametrize("kind", [None, ("Na", "Cl"), ("Cl", "Cl")])
def test_narrow_gaussians_give_the_hard_histogram(system, kind):
    atoms, bins = system["atoms"], 40
    hard = radial_distribution(atoms.positions[None], atoms.numbers, atoms.cell.array, r_max=system["r_max"], bins=bins)
    numbers = {"Na": 11, "Cl": 17}
    code = None if kind is None else (numbers[kind[0]], numbers[kind[1]])
    target = hard.total if kind is None else hard.of(*kind)
    size = (8, 8) if kind is None else (4, 4)
    with jax.enable_x64(True):
        distances = pair_distances(jnp.asarray(vectors_of(system, atoms.positions)), jnp.asarray(system["mask"]))
        z = jnp.asarray(atoms.numbers)
        weights = pair_weights(z[system["i"]], z[system["j"]], jnp.asarray(system["mask"]), code)
        volume = atoms.get_volume()
        smooth = jax.jit(lambda width: smooth_rdf(distances, weights, jnp.asarray(hard.edges), width, volume, *size))
        errors = [float(rdf_mae(smooth(width), target, hard.edges)) for width in (1e-1, 1e-2, 1e-3, 1e-6)]
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


def test_a_pair_counts_its_weight_at_any_width():
    edges = jnp.linspace(0.0, 6.0, 31)
    for width in (0.05, 0.3):
        counts = jax.jit(soft_histogram)(jnp.array([3.0, 2.5]), jnp.array([2.0, 1.0]), edges, width)
        assert counts.shape == (30,)
        assert float(counts.sum()) == pytest.approx(3.0, rel=1e-5)
    g = rdf_from_histogram(counts, edges, 50.0, 4, 5)
    np.testing.assert_allclose(g * 4 / 3 * np.pi * np.diff(np.asarray(edges) ** 3) * 20 / 50.0, counts, rtol=2e-5)


def test_gradient_is_that_of_finite_differences(system):
    with jax.enable_x64(True):
        edges = jnp.linspace(0.0, system["r_max"], 26)
        rng = np.random.default_rng(0)
        target = jnp.asarray(rng.normal(size=25))
        mask = jnp.asarray(system["mask"])

        @jax.jit
        def loss(positions, width, volume):
            distances = pair_distances(vectors_of(system, positions), mask)
            weights = pair_weights(mask, mask, mask)
            return jnp.sum((smooth_rdf(distances, weights, edges, width, volume, 8, 8) - target) ** 2)

        at = (jnp.asarray(system["atoms"].positions), 0.12, system["atoms"].get_volume())
        gradients = jax.grad(loss, argnums=(0, 1, 2))(*at)
        assert bool(jnp.isfinite(gradients[0]).all())
        direction, h = rng.normal(size=at[0].shape), 1e-5
        steps = [(direction, 0, 0), (0 * direction, 1, 0), (0 * direction, 0, 1)]
        for step in steps:
            ahead, behind = (loss(*[a + s * h * d for a, d in zip(at, step, strict=True)]) for s in (1, -1))
            along = sum(float(jnp.sum(g * d)) for g, d in zip(gradients, step, strict=True))
            assert float(ahead - behind) / (2 * h) == pytest.approx(along, rel=1e-6)


def test_padding_with_nan_leaves_value_and_gradient_alone(system):
    edges = jnp.linspace(0.0, 5.0, 11)
    vectors = vectors_of(system, system["atoms"].positions)
    mask = jnp.asarray(system["mask"])

    @jax.jit
    def counts(vectors, mask):
        return soft_histogram(pair_distances(vectors, mask), pair_weights(mask, mask, mask), edges, 0.1)

    bad = jnp.asarray(np.where(system["mask"][:, None], vectors, np.nan), jnp.float32)
    elsewhere = jnp.where(mask[:, None], bad, 0.3)
    np.testing.assert_array_equal(counts(bad, mask), counts(elsewhere, mask))
    gradient = jax.jit(jax.grad(lambda v: counts(v, mask)[5]))(bad)
    assert bool(jnp.isfinite(gradient).all())
    assert not np.asarray(gradient)[~system["mask"]].any()
    assert np.asarray(gradient)[system["mask"]].any()
    # The weights alone mask too: a list of distances may hold anything where they are 0.
    distances = jnp.where(mask, pair_distances(bad, mask), jnp.nan)
    gradient = jax.jit(jax.grad(lambda d: soft_histogram(d, jnp.where(mask, 2.0, 0.0), edges, 0.1)[5]))(distances)
    assert bool(jnp.isfinite(gradient).all())


def test_inside_a_scan_under_vmap_and_jit_compiles_once(system):
    edges = jnp.linspace(0.0, 5.0, 11)
    mask = jnp.asarray(system["mask"])
    start = jnp.asarray(vectors_of(system, system["atoms"].positions), jnp.float32)
    traces = []

    def mean_histogram(scale, width):
        traces.append(None)

        def step(vectors, _):
            vectors = vectors * scale
            return vectors, soft_histogram(pair_distances(vectors, mask), pair_weights(mask, mask, mask), edges, width)

        return jax.lax.scan(step, start, length=3)[1].mean(axis=0)

    both = jax.jit(jax.vmap(mean_histogram))
    found = both(jnp.array([1.0, 1.01]), jnp.array([0.1, 0.2]))
    both(jnp.array([1.02, 1.03]), jnp.array([0.3, 0.2]))
    assert len(traces) == 1
    one = soft_histogram(pair_distances(start, mask), pair_weights(mask, mask, mask), edges, 0.1)
    np.testing.assert_allclose(found[0], one, rtol=1e-4)


def test_many_atoms_fill_no_whole_number():
    edges = jnp.linspace(0.0, 5.0, 11)
    many = jnp.int32(50_000)
    found = rdf_from_histogram(jnp.ones(10), edges, 1e6, many, many)
    np.testing.assert_allclose(found, rdf_from_histogram(jnp.ones(10), edges, 1e6, 5e4, 5e4), rtol=1e-6)
