"""Pairs against ASE's neighbour list on random structures, and every structure that is refused."""

import re

import numpy as np
import pytest
import vesin
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from leignn_jax.errors import StructureError
from leignn_jax.neighbors import FARTHEST, OVERLAP, check_structure, find_pairs, near_origin

PERIODICITIES = [(True, True, True), (True, True, False), (False, True, True), (False, False, True), (False,) * 3]


def pairs_of(atoms, cutoff):
    return find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)


def directed(pairs):
    """Both directed edges of every pair: receiver, sender, shift."""
    there = np.column_stack([pairs.receivers, pairs.senders, pairs.shifts])
    back = np.column_stack([pairs.senders, pairs.receivers, -pairs.shifts])
    return sorted(map(tuple, np.concatenate([there, back]).tolist()))


def assert_as_ase(atoms, cutoff):
    i, j, shifts, distances = neighbor_list("ijSd", atoms, cutoff)
    pairs = pairs_of(atoms, cutoff)
    assert directed(pairs) == sorted(map(tuple, np.column_stack([i, j, shifts]).tolist()))
    vectors = atoms.positions[pairs.senders] + pairs.shifts @ atoms.cell.array - atoms.positions[pairs.receivers]
    scale = max(1.0, np.abs(atoms.positions).max())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), pairs.distances, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(np.sort(np.tile(pairs.distances, 2)), np.sort(distances), rtol=0, atol=1e-13 * scale)
    assert (pairs.distances < cutoff).all()
    assert (pairs.receivers <= pairs.senders).all()
    keys = list(zip(pairs.receivers.tolist(), pairs.senders.tolist(), map(tuple, pairs.shifts.tolist()), strict=True))
    assert keys == sorted(keys)
    assert [x.dtype for x in pairs] == [np.int32, np.int32, np.int32, np.float64]
    return pairs


def random_structure(seed, size, pbc, *, skew=1.0, outside=0, zero_cell=True):
    """Atoms in a random cell that are up to ``outside`` cells away from it along periodic directions."""
    rng = np.random.default_rng(seed)
    pbc = np.array(pbc)
    cell = np.diag(rng.uniform(2, 9, 3)) + skew * rng.uniform(-1, 1, (3, 3))
    positions = rng.uniform(0, 1, (size, 3)) @ cell
    positions += (rng.integers(-outside, outside + 1, (size, 3)) * pbc) @ cell
    if zero_cell:
        cell[~pbc] = 0
    return Atoms(["Si"] * size, positions=positions, cell=cell, pbc=pbc)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 7),
    pbc=st.sampled_from(PERIODICITIES),
    skew=st.sampled_from([0.0, 1.0, 2.5]),
    outside=st.sampled_from([0, 1, 40, 1000]),
    zero_cell=st.booleans(),
    cutoff=st.floats(0.5, 7.0),
)
@example(seed=0, size=1, pbc=(True, True, True), skew=0.0, outside=0, zero_cell=False, cutoff=7.0)
def test_pairs_are_those_of_ase(seed, size, pbc, skew, outside, zero_cell, cutoff):
    atoms = random_structure(seed, size, pbc, skew=skew, outside=outside, zero_cell=zero_cell)
    cell = atoms.cell.complete().array
    assume(abs(np.linalg.det(cell)) > 0.1 * np.prod(np.linalg.norm(cell, axis=1)))
    assume(not (neighbor_list("d", atoms, cutoff) < 2 * OVERLAP).any())
    assert_as_ase(atoms, cutoff)


@pytest.mark.parametrize("pbc", PERIODICITIES)
def test_many_atoms_far_from_the_origin(pbc):
    atoms = random_structure(5, 150, pbc, outside=3)
    atoms.positions += [300.0, -200.0, 10.0]
    assert len(assert_as_ase(atoms, 3.0).receivers) > 100


def test_cell_much_smaller_than_the_cutoff():
    pairs = assert_as_ase(bulk("Cu"), 9.0)
    assert not pairs.receivers.any()
    assert not pairs.senders.any()
    assert len(pairs.receivers) > 100


def test_flat_cell():
    # Vectors at 10 degrees to each other: many images, few of them near.
    angle = np.radians(10)
    atoms = Atoms(
        "C2", positions=[[0, 0, 0], [1.1, 0.3, 1.0]], cell=[[3, 0, 0], [3 * np.cos(angle), 0.6, 0], [0, 0, 4]]
    )
    atoms.pbc = True
    assert_as_ase(atoms, 5.0)


def test_dimer():
    pairs = pairs_of(Atoms("H2", positions=[[0, 0, 0], [0, 0.3, 0.4]]), 1.0)
    assert directed(pairs) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]
    np.testing.assert_allclose(pairs.distances, [0.5])


def test_cutoff_itself_is_outside():
    atoms = Atoms("H2", positions=[[0, 0, 0], [2, 0, 0]])
    assert len(pairs_of(atoms, 2.0).distances) == 0
    assert len(pairs_of(atoms, np.nextafter(2, 3)).distances) == 1


@pytest.mark.parametrize("atoms", [Atoms("H"), Atoms("H2", positions=[[0, 0, 0], [9, 0, 0]]), Atoms()])
def test_no_pairs(atoms):
    pairs = pairs_of(atoms, 3.0)
    assert [x.shape for x in pairs] == [(0,), (0,), (0, 3), (0,)]
    assert [x.dtype for x in pairs] == [np.int32, np.int32, np.int32, np.float64]


def test_shifts_follow_atoms_moved_by_lattice_vectors():
    atoms = random_structure(3, 4, (True, True, True))
    before = pairs_of(atoms, 5.0)
    moves = np.array([[0, 0, 0], [2, -1, 0], [-7, 0, 3], [0, 0, 100]])
    moved = atoms.copy()
    moved.positions += moves @ atoms.cell.array
    after = pairs_of(moved, 5.0)
    expected = before._replace(shifts=before.shifts + moves[before.receivers] - moves[before.senders])
    assert directed(after) == directed(expected)


def test_pairs_in_any_order_and_direction_are_put_in_one(monkeypatch):
    class Backwards(vesin.NeighborList):
        def compute(self, *args, **kwargs):
            i, j, shifts, distances = super().compute(*args, **kwargs)
            return j[::-1], i[::-1], -shifts[::-1], distances[::-1]

    atoms = random_structure(4, 5, (True, True, True), outside=2)
    expected = pairs_of(atoms, 5.0)
    monkeypatch.setattr(vesin, "NeighborList", Backwards)
    pairs = pairs_of(atoms, 5.0)
    assert (pairs.receivers <= pairs.senders).all()
    assert directed(pairs) == directed(expected)


def test_arguments_are_left_alone():
    atoms = random_structure(1, 4, (True, True, False), outside=2)
    copy = atoms.copy()
    pairs_of(atoms, 4.0)
    np.testing.assert_array_equal(atoms.positions, copy.positions)
    np.testing.assert_array_equal(atoms.cell.array, copy.cell.array)


def crystal(**changes):
    """Two silicon atoms, with some arrays changed."""
    atoms = bulk("Si")
    values = {"positions": atoms.positions.copy(), "cell": atoms.cell.array.copy(), "pbc": np.ones(3, bool)}
    for name, (index, value) in changes.items():
        values[name][index] = value
    return values


REFUSED = {
    "nan": (crystal(positions=((1, 2), np.nan)), "Atom 1 has the position", "1 of 2 atoms are so"),
    "inf": (crystal(positions=((0, 0), np.inf)), "Atom 0 has the position", "not a number"),
    "all nan": (crystal(positions=(slice(None), np.nan)), "Atom 0", "2 of 2 atoms"),
    "nan cell": (crystal(cell=((0, 0), np.nan)), "The cell holds a number that is not finite", "nan"),
    "infinite cell": (crystal(cell=((2, 1), -np.inf)), "The cell holds a number that is not finite", "-inf"),
    "singular": (crystal(cell=(2, bulk("Si").cell[0] + bulk("Si").cell[1])), "lie in one plane", "rows, Å"),
    "zero vector": (crystal(cell=(1, 0.0)), "periodic along cell vector 1", "that vector is zero"),
    "overlap": (crystal(positions=(slice(None), [[0, 0, 0], [0, 0, 0.001]])), "Atoms 0 and 1 are 0.001 Å", "overlap"),
    "overlap by an image": (
        crystal(positions=(1, bulk("Si").cell[0] + bulk("Si").cell[2])),
        "Atoms 0 and 1 (image (-1, 0, -1)) are 0 Å",
        "check the cell",
    ),
    "cell of nanometres": (
        {"positions": np.zeros((1, 3)), "cell": 0.001 * np.eye(3), "pbc": np.ones(3, bool)},
        "Atoms 0 and 0 (image",
        "units",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_structure(name):
    arguments, *messages = REFUSED[name]
    cutoff = 0.0015 if name == "cell of nanometres" else 4.0
    with pytest.raises(StructureError) as caught:
        find_pairs(**arguments, cutoff=cutoff)
    for message in messages:
        assert message in str(caught.value)


def test_two_parallel_vectors_of_a_slab_are_refused():
    cell = np.array([[3.0, 1, 0], [6, 2, 0], [0, 0, 0]])
    with pytest.raises(StructureError, match="lie in one plane"):
        find_pairs(np.zeros((1, 3)), cell, np.array([True, True, False]), 3.0)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf])
def test_refused_cutoff(cutoff):
    with pytest.raises(StructureError, match=re.escape(f"The cutoff must be a positive number of Å, not {cutoff}")):
        pairs_of(bulk("Si"), cutoff)


def test_cell_of_a_molecule_may_be_anything_finite():
    for cell in (np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 0, 2])):
        check_structure(np.zeros((1, 3)), cell, np.zeros(3, bool))
        pairs = find_pairs(np.array([[0.0, 0, 0], [0, 0, 1]]), cell, np.zeros(3, bool), 2.0)
        assert directed(pairs) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]


def test_zero_vector_is_fine_where_the_structure_is_not_periodic():
    atoms = Atoms("Si", cell=[[2.5, 0, 0], [0, 2.5, 0], [0, 0, 0]], pbc=(True, True, False))
    assert len(pairs_of(atoms, 3.0).receivers) == 2


# --------------------------------------------------------------------------------------- as large or as dense as it may be


def two_groups(distance, seed=0):
    """Two clumps of atoms, in each direction about ``distance`` Å apart, and pairs of each alone."""
    rng = np.random.default_rng(seed)
    clump = rng.uniform(0, 6, (20, 3))
    return np.concatenate([clump, clump + distance]), clump


@pytest.mark.parametrize("distance", [(1e4, 1e4, 1e4), (5e5, 0, 0), (0, 3e6, 1e9), (-1e9, 2e9, 0)])
def test_groups_far_apart_in_open_space(distance):
    positions, clump = two_groups(np.array(distance, float))
    # What is left of the coordinates far away.
    second = positions[20:] - positions[20]
    alone = [pairs_of(Atoms("H20", positions=p), 4.0) for p in (clump, second)]
    both = pairs_of(Atoms("H40", positions=positions), 4.0)
    assert len(both.receivers) == sum(len(one.receivers) for one in alone) > 20
    near = both.senders < 20
    np.testing.assert_array_equal(both.receivers[near], alone[0].receivers)
    np.testing.assert_array_equal(both.senders[near], alone[0].senders)
    np.testing.assert_array_equal(both.receivers[~near], alone[1].receivers + 20)
    np.testing.assert_allclose(both.distances[near], alone[0].distances, rtol=1e-12)
    np.testing.assert_allclose(both.distances[~near], alone[1].distances, rtol=1e-12)
    assert not both.shifts.any()


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True)])
def test_empty_space_of_a_periodic_cell(pbc):
    # Skewed, a million Å along one direction and much along another; atoms stand on both sides of every face.
    cell = np.array([[1e6, 3e5, 0.0], [0.0, 2e5, 10.0], [0.0, 0.5, 7.0]])
    positions = two_groups([3e5, 1.5e5, 3.0])[0] - 3.0
    many = find_pairs(positions, cell, np.array(pbc), 4.0)
    vectors = positions[many.senders] + many.shifts @ cell - positions[many.receivers]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), many.distances, rtol=0, atol=1e-8)
    # The same by brute force over the images next to it.
    images = np.stack(np.meshgrid(*(range(-2 * p, 2 * p + 1) for p in pbc), indexing="ij"), -1).reshape(-1, 3)
    away = positions[None, :, None] + (images @ cell)[None, None] - positions[:, None, None]
    close = np.linalg.norm(away, axis=-1) < 4.0
    assert close.sum() - len(positions) == 2 * len(many.receivers)
    assert many.shifts.any()


def test_wide_and_flat():
    # More cells across than the search has, and one cell thick.
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 1, (2000, 3)) * [3000.0, 3000.0, 1.0]
    positions[1000:] = positions[:1000] + np.array([0.8, 0.3, 0.1])
    for pbc, cell in ((np.zeros(3, bool), np.zeros((3, 3))), (np.ones(3, bool), np.diag([3001.0, 3001.0, 30.0]))):
        pairs = find_pairs(positions, cell, pbc, 1.5)
        i, j = np.triu_indices(2000, 1)
        close = ((positions[i] - positions[j]) ** 2).sum(1) < 1.5**2
        within = ~pairs.shifts.any(1)
        np.testing.assert_array_equal(pairs.receivers[within], i[close])
        np.testing.assert_array_equal(pairs.senders[within], j[close])
        assert pairs.distances.max() < 1.5


CROWDS = {
    "cell 0.01": (bulk("Si", a=0.03), 5.0),
    "cell 0.3": (Atoms("H", cell=[0.3] * 3, pbc=True), 5.5),
    "line 0.01": (Atoms("H", cell=[0.0002, 1e7, 1e7], pbc=True), 5.0),
    "thousandth": (Atoms("H12000", positions=np.random.default_rng(0).uniform(0, 0.05, (12000, 3))), 5.0),
    "thousandth in its cell": (
        Atoms("H12000", positions=np.random.default_rng(0).uniform(0, 0.05, (12000, 3)), cell=[50] * 3, pbc=True),
        5.0,
    ),
    "cutoff 1e9": (bulk("Si"), 1e9),
    "cutoff 100": (bulk("Si"), 100.0),
}


@pytest.mark.parametrize("name", CROWDS)
def test_a_crowd_is_refused_before_the_search(name):
    atoms, cutoff = CROWDS[name]
    with pytest.raises(StructureError, match=r"neighbours within .* Å"):
        pairs_of(atoms, cutoff)


def test_positions_that_have_lost_their_digits_are_refused():
    for far in (1e30, -1e14):
        with pytest.raises(StructureError, match=r"Atom 1 .*so far from the origin"):
            pairs_of(Atoms("H2", positions=[[0, 0, 0], [far, 0, 0]]), 5.0)
        with pytest.raises(StructureError, match=r"Atom 1 .*so far from the origin"):
            pairs_of(Atoms("H2", positions=[[0, 0, 0], [far, 0, 0]], cell=[5] * 3, pbc=True), 5.0)
    with pytest.raises(StructureError, match="cell"):
        pairs_of(Atoms("H2", positions=[[0, 0, 0], [1, 0, 0]], cell=[1e30] * 3, pbc=True), 5.0)


# --------------------------------------------------------------------------------------------------- far from the origin


@pytest.mark.parametrize("pbc", PERIODICITIES)
@pytest.mark.parametrize("keep", [True, False])
def test_what_is_far_comes_near_and_the_rest_stays(pbc, keep):
    atoms = random_structure(3, 12, pbc)
    far = atoms.positions + np.array([3e8, -7e8, 1e9])
    far[:3] += (np.array([[10**6, 0, 0], [0, -(10**5), 0], [7, 8, 9]]) * pbc) @ atoms.cell.array
    near = near_origin(far, atoms.cell.array, atoms.pbc, keep=keep)
    assert np.abs(near.positions).max() < 60
    assert not near.images[:, ~atoms.pbc].any()
    np.testing.assert_allclose(near.positions + near.offsets(atoms.cell.array), far, rtol=1e-15)
    # Whole lattice vectors and one common shift along what is open.
    np.testing.assert_allclose(near.center @ np.linalg.pinv(atoms.cell.array[atoms.pbc]), 0, atol=1e-6)
    wrapped = near_origin(atoms.positions, atoms.cell.array, atoms.pbc, keep=False).positions
    inside = wrapped + (np.random.default_rng(0).integers(-1, 1, (12, 3)) * pbc) @ atoms.cell.array
    again = near_origin(inside, atoms.cell.array, atoms.pbc, keep=keep)
    np.testing.assert_allclose(again.positions, inside if keep else wrapped, rtol=0, atol=0 if keep else 1e-12)


def test_nothing_is_far_of_no_atoms():
    assert len(near_origin(np.zeros((0, 3)), np.eye(3), np.ones(3, bool)).positions) == 0


@pytest.mark.parametrize("pbc", PERIODICITIES)
def test_pairs_of_a_structure_moved_far_away_are_the_same(pbc):
    atoms = random_structure(4, 20, pbc)
    expected = pairs_of(atoms, 4.0)
    atoms.positions += [1e9, -3e8, 7e8]
    found = pairs_of(atoms, 4.0)
    np.testing.assert_allclose(np.sort(found.distances), np.sort(expected.distances), atol=1e-6)


def test_shifts_beyond_32_bits():
    cell = np.eye(3) * 2.0
    positions = np.array([[0.2, 0.2, 0.2], [1.2, 0.2, 0.2 + 2.0 * 3e9]])
    pairs = find_pairs(positions, cell, np.ones(3, bool), 1.5)
    assert pairs.shifts.dtype == np.int64
    vectors = positions[pairs.senders] + pairs.shifts @ cell - positions[pairs.receivers]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), pairs.distances, atol=1e-5)


@pytest.mark.parametrize("pbc", [True, False])
def test_farther_than_numbers_reach_is_refused(pbc):
    atoms = bulk("Si", cubic=True)
    atoms.pbc = pbc
    atoms.positions[5, 1] = 2 * FARTHEST
    with pytest.raises(StructureError, match=r"Atom 5 is at \[.*1000000000000.0.*\] Å: so far from the origin"):
        pairs_of(atoms, 5.0)
