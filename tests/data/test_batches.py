"""Batches: order, shapes, padding, and a thread that hands on errors."""

import jax
import numpy as np
import pytest
from frames import copper
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.data.batches import (
    Shape,
    collate,
    epoch_order,
    example,
    frames_of_a_batch,
    in_order,
    plan_batches,
    prefetch,
    sizes_of,
)
from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.errors import DataError, ElementError, StructureError

REFERENCES = {"Cu": -1.0}


def examples(count=6, **kwargs):
    return [example(a, read_labels(a), 4.0, REFERENCES) for a in copper(count, **kwargs)]


def test_an_example_holds_the_frame():
    (atoms,) = copper(1)
    labels = read_labels(atoms)
    one = example(atoms, labels, 4.0, REFERENCES)
    assert one.energy[0] == pytest.approx(labels.energy + 4.0, rel=1e-6)
    np.testing.assert_allclose(one.forces, labels.forces, rtol=1e-6)
    assert one.stress_weight == 1
    unlabelled = example(atoms, Labels(None, None, None), 4.0, REFERENCES)
    assert unlabelled.energy_weight == 0
    assert not unlabelled.forces_weight.any()


def test_large_energies_keep_their_digits():
    (atoms,) = copper(1)
    labels = read_labels(atoms)._replace(energy=-4e6 + 0.0625)
    assert example(atoms, labels, 4.0, {"Cu": -1e6}).energy[0] == 0.0625


def test_errors_name_the_frame():
    (atoms,) = copper(1)
    with pytest.raises(ElementError, match="f: frame 2: holds Cu"):
        example(atoms, read_labels(atoms), 4.0, {"H": 0.0}, "f: frame 2")
    labels = read_labels(atoms)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(StructureError, match="f: frame 2: "):
        example(atoms, labels, 4.0, REFERENCES, "f: frame 2")


def test_collate_pads_with_weight_zero():
    three = examples(3)
    sizes = sizes_of(three)
    shape = Shape(20, int(sizes[:, 1].sum()) + 5, int(sizes[:, 2].max()) + 1, 5)
    batch = collate(three, shape)
    assert batch.graph.shape == tuple(shape)
    assert batch.forces.shape == (20, 3)
    np.testing.assert_array_equal(batch.energy_weight, [1, 1, 1, 0, 0])
    assert batch.forces_weight.sum() == 12
    np.testing.assert_array_equal(batch.energy[:3], np.concatenate([e.energy for e in three]))
    with pytest.raises(StructureError, match="Can't pad"):
        collate(three, shape._replace(atoms=8))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 1000), st.integers(0, 50))
def test_order_is_a_permutation_that_seed_and_epoch_decide(frames, size, seed, epoch):
    order = epoch_order(frames, size, seed, epoch)
    assert order.shape[1] == min(size, frames)
    assert len(np.unique(order)) == order.size
    assert order.size > frames - size
    np.testing.assert_array_equal(order, epoch_order(frames, size, seed, epoch))
    np.testing.assert_array_equal(np.concatenate([b.ravel() for b in in_order(frames, size)]), np.arange(frames))


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(1, 9), st.integers(0, 10_000), st.integers(1, 3))
def test_every_batch_fits_its_planned_shape(frames, size, seed, shapes):
    rng = np.random.default_rng(seed)
    atoms = rng.integers(1, 100, frames)
    sizes = np.stack([atoms, atoms * rng.integers(1, 30, frames), rng.integers(1, 40, frames)], axis=1)
    batches = [epoch_order(frames, size, seed, e) for e in range(3)]
    plan = plan_batches(sizes, batches, shapes)
    assert 1 <= len(plan.shapes) <= shapes
    assert 0 <= plan.padding < 1
    assert sum(plan.share) == pytest.approx(1)
    assert len({shape.pairs for shape in plan.shapes}) == len(plan.shapes)
    for batch in np.concatenate(batches):
        shape = plan.shape_for(sizes[batch])
        assert sizes[batch][:, 0].sum() <= shape.atoms
        assert sizes[batch][:, 1].sum() <= shape.pairs
        assert sizes[batch][:, 2].max() <= shape.neighbors


def test_equal_frames_take_one_shape_without_padding():
    sizes = np.tile([21, 160, 20], (50, 1))
    plan = plan_batches(sizes, [epoch_order(50, 5, 0, e) for e in range(4)])
    assert plan.shapes == (Shape(105, 800, 20, 5),)
    assert plan.padding == 0


def test_mixed_frames_waste_less_with_more_shapes():
    rng = np.random.default_rng(0)
    atoms = rng.integers(10, 200, 300)
    sizes = np.stack([atoms, atoms * 20, np.full(300, 40)], axis=1)
    batches = [epoch_order(300, 2, 0, e) for e in range(5)]
    one, three = plan_batches(sizes, batches, 1), plan_batches(sizes, batches, 3)
    assert 2 <= len(three.shapes) <= 3
    assert three.padding < 0.7 * one.padding


def test_two_to_five_hundred_atoms():
    """A set of dimers and large cells: the arrays of a batch never outgrow the largest batch by much."""
    atoms = np.array([2] * 200 + [64] * 40 + [500] * 4)
    sizes = np.stack([atoms, atoms * 30, np.minimum(atoms - 1, 60)], axis=1)
    batches = [epoch_order(len(atoms), 8, 0, e) for e in range(5)]
    plan = plan_batches(sizes, batches)
    largest = max(sizes[batch][:, 1].sum() for epoch in batches for batch in epoch)
    assert len(plan.shapes) <= 4
    assert max(shape.pairs for shape in plan.shapes) <= 1.1 * largest
    assert plan.padding < 0.75 * plan_batches(sizes, batches, 1).padding


def test_a_batch_that_was_not_planned_is_refused():
    plan = plan_batches(np.array([[4, 10, 3]] * 4), [np.array([[0, 1], [2, 3]])])
    with pytest.raises(DataError, match="none of the planned shapes"):
        plan.shape_for(np.array([[4, 10, 3], [4, 11, 3], [4, 4, 4]]))


def test_prefetch_keeps_order_and_hands_on_errors():
    assert list(prefetch(iter(range(20)))) == list(range(20))

    def broken():
        yield 1
        raise DataError("frame 7 is broken")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(DataError, match="frame 7"):
        next(items)


def test_prefetch_stops_when_no_one_listens():
    made = []

    def endless():
        n = 0
        while True:
            made.append(n)
            yield n
            n += 1

    items = prefetch(endless(), depth=2)
    assert next(items) == 0
    items.close()
    assert len(made) < 10


def test_batches_are_pytrees():
    one = examples(1)[0]
    assert len(jax.tree.leaves(one)) == 6 + len(jax.tree.leaves(one.graph))


def test_a_batch_has_about_128_atoms_and_one_to_eight_frames():
    assert [frames_of_a_batch(np.array([atoms])) for atoms in (3, 16, 21, 64, 192, 5000)] == [8, 8, 6, 2, 1, 1]
    assert frames_of_a_batch(np.array([10, 30])) == 6
