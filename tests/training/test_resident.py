"""Batches put together on the device are those of the host, to the last bit."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from frames import copper

from leignn_jax.data.batches import Shape, collate, example, sizes_of
from leignn_jax.data.labels import Labels
from leignn_jax.errors import ConfigError
from leignn_jax.training.resident import join_frames, resident_bytes, take_batch


@pytest.fixture(scope="module")
def examples():
    """Frames of several sizes, one of them a lone atom without a pair."""
    import ase

    frames = [*copper(5), *(atoms * (2, 1, 1) for atoms in copper(3, 1)), ase.Atoms("Cu", cell=[20] * 3, pbc=True)]
    rng = np.random.default_rng(0)
    labels = [
        Labels(energy=rng.normal(), forces=rng.normal(size=(len(a), 3)), stress=rng.normal(size=(3, 3))) for a in frames
    ]
    return [
        example(a, one, 4.0, {"Cu": 0.5}, weight=0.5 + i) for i, (a, one) in enumerate(zip(frames, labels, strict=True))
    ]


@pytest.mark.parametrize("chosen", [[0, 6, 8], [8, 8, 8], [7, 5, 1], [2, 1, 0]])
def test_they_are_the_hosts(examples, chosen):
    parts = [examples[i] for i in chosen]
    atoms, pairs, _ = sizes_of(parts).sum(0)
    shape = Shape(int(atoms) + 3, int(pairs) + 5, int(sizes_of(examples)[:, 2].max()) + 2, len(chosen))
    right = collate(parts, shape)
    taken = jax.jit(take_batch, static_argnums=2)(jax.device_put(join_frames(examples)), np.int32(chosen), shape)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(taken), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_memory_is_what_is_said(examples):
    held = sum(x.nbytes for x in jax.tree.leaves(join_frames(examples)))
    assert held == pytest.approx(resident_bytes(sizes_of(examples)), rel=0.02)


def test_more_pairs_than_a_device_counts_are_refused():
    huge = SimpleNamespace(graph=SimpleNamespace(shape=(10, 2**30, 4, 1)))
    with pytest.raises(ConfigError, match="20 atoms and 2,147,483,648 pairs are more than a device can count"):
        join_frames([huge, huge])  # pyright: ignore[reportArgumentType]
