"""Shortest distances of each two elements: images, stores, frames that are none."""

import ase
import ase.build
import numpy as np
import pytest

from leignn_jax.data import read_labels, shortest_distances
from leignn_jax.data.store import Store, write_store
from leignn_jax.errors import StructureError


def salt(seed):
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.2, seed=seed)
    return atoms


def test_images_count():
    frames = [salt(seed) for seed in range(4)]
    found = shortest_distances(frames)
    assert found.keys() == {("Na", "Na"), ("Na", "Cl"), ("Cl", "Cl")}
    # The primitive cell holds one atom of each: equal ones are a lattice vector apart, however they are rattled.
    assert found["Na", "Na"] == pytest.approx(5.6 / 2**0.5, abs=1e-12)
    apart = []
    for atoms in frames:
        large = atoms.repeat(3)
        vectors = large.get_all_distances(mic=True)[np.ix_(large.numbers == 11, large.numbers == 17)]
        apart.append(vectors.min())
    assert found["Na", "Cl"] == pytest.approx(min(apart), abs=1e-12)


def test_far_elements_are_left_out():
    atoms = ase.Atoms("HHe2", [[0, 0, 0], [9, 0, 0], [9, 1.5, 0]])
    assert shortest_distances([atoms], cutoff=5.0) == {("He", "He"): pytest.approx(1.5)}
    assert shortest_distances([ase.Atoms("H", [[0, 0, 0]])]) == {}


def test_a_store_knows_them(tmp_path):
    frames = [salt(seed) for seed in range(4)]
    write_store(tmp_path / "store", ((a, read_labels(a, "frame")) for a in frames), 5.0)
    assert Store(tmp_path / "store").shortest == shortest_distances(frames)


def test_the_frame_is_named():
    broken = salt(0)
    broken.positions[1] = np.nan
    with pytest.raises(StructureError, match="Frame 1: Atom 1"):
        shortest_distances([salt(0), broken])
