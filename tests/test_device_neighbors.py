"""Lists made on the device: the same pairs as on the host, for any cell, and never a pair too few while atoms move."""

import itertools

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leignn_jax as leignn
from leignn_jax.device_neighbors import _renewed_jit, allocate, update
from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph
from leignn_jax.list_sizes import (
    OVERFLOW_BIN,
    OVERFLOW_GRID,
    OVERFLOW_NEIGHBORS,
    OVERFLOW_PAIRS,
    ListSizes,
    grown,
    largest,
    plan_sizes,
)
from leignn_jax.neighbors import find_pairs
from leignn_jax.simulation.simple_models import LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")
update_jit = jax.jit(update)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def canonical(i, j, shift):
    """A pair has two names where both atoms are the same."""
    return (i, j, max(shift, tuple(-s for s in shift)) if i == j else shift)


def pairs_of(neighbors):
    """The list's pairs as a set, each once."""
    mask = np.asarray(neighbors.pair_mask)
    columns = (np.asarray(x)[mask].astype(int) for x in (*_ends(neighbors), neighbors.shifts))
    listed = [canonical(int(i), int(j), tuple(s.tolist())) for i, j, s in zip(*columns, strict=True)]
    assert len(set(listed)) == len(listed)
    return set(listed)


def _ends(neighbors):
    return neighbors.lists.receivers, neighbors.lists.senders


def host_pairs(positions, cell, pbc, radius):
    pairs = find_pairs(np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc), radius)
    rows = zip(pairs.receivers.tolist(), pairs.senders.tolist(), pairs.shifts.tolist(), strict=True)
    named = [canonical(i, j, tuple(s)) for i, j, s in rows]
    return dict(zip(named, pairs.distances.tolist(), strict=True))


def assert_sides_agree(neighbors):
    """Every pair is in the table twice, once from each end, and nothing else is."""
    lists = jax.tree.map(np.asarray, neighbors.lists)
    signs, mask = lists.neighbor_signs, np.asarray(neighbors.pair_mask)
    for sign, mine, other in ((1, *_ends(neighbors)), (-1, *_ends(neighbors)[::-1])):
        atom, slot = np.nonzero(signs == sign)
        pair = lists.neighbor_pairs[atom, slot]
        np.testing.assert_array_equal(np.bincount(pair, minlength=len(mask)), mask)
        np.testing.assert_array_equal(np.asarray(mine)[pair], atom)
        np.testing.assert_array_equal(np.asarray(other)[pair], lists.neighbors[atom, slot])
    for array in (*_ends(neighbors), lists.neighbors, lists.neighbor_pairs):
        assert array.min() >= 0
    assert (np.asarray(neighbors.shifts)[~mask] == 0).all()


def assert_right(neighbors, positions, cell, pbc, radius, edge=1e-6):
    """The pairs of the host, but for those whose distance is the radius to rounding."""
    assert int(neighbors.overflow) == 0, neighbors.sizes
    assert_sides_agree(neighbors)
    found = pairs_of(neighbors)
    expected = host_pairs(positions, cell, pbc, radius + edge)
    assert found <= expected.keys()
    assert all(expected[p] > radius - edge for p in expected.keys() - found)


def rattled(atoms, amplitude=0.1, seed=0):
    atoms.positions += amplitude * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    return atoms


def far_away(atoms, seed=0):
    whole = np.random.default_rng(seed).integers(-4, 5, (len(atoms), 3)) * np.asarray(atoms.pbc)
    atoms.positions += whole @ atoms.cell.array
    return atoms


def mixed_gas():
    positions = np.random.default_rng(1).uniform(0, 24, (120, 3))
    return ase.Atoms("Ar120", positions=positions, pbc=[True, False, True], cell=[[24, 0, 0], [0, 0, 0], [5, 0, 22]])


STRUCTURES = {
    "one atom of fcc": (lambda: ase.build.bulk("Cu"), 4.0, 0.4),
    "two atoms of silicon": (lambda: ase.build.bulk("Si"), 5.0, 0.5),
    "tiny and skewed": (lambda: rattled(ase.build.bulk("Cu") * (3, 2, 1)), 4.0, 0.3),
    "far outside": (lambda: far_away(rattled(ase.build.bulk("Si", cubic=True))), 5.0, 0.5),
    "slab": (lambda: rattled(ase.build.fcc111("Cu", (2, 2, 4), vacuum=8)), 4.5, 0.5),
    "cluster without a cell": (lambda: ase.build.molecule("CH3CH2OH"), 5.0, 0.5),
    "atom alone": (lambda: ase.Atoms("Ar"), 5.0, 0.5),
    "gas of many bins, zero vector": (mixed_gas, 3.5, 0.5),
    "crystal of many bins, far outside": (lambda: far_away(rattled(ase.build.bulk("Cu", cubic=True) * 4)), 3.0, 0.3),
    "open gas of many bins": (lambda: ase.Atoms("Ar60", np.random.default_rng(2).uniform(0, 20, (60, 3))), 4.0, 0.5),
    "needle": (
        lambda: ase.Atoms("Ar9", np.random.default_rng(3).uniform(0, 9, (9, 3)), cell=[2, 30, 4], pbc=1),
        4.0,
        1.0,
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_pairs_are_those_of_the_host(name, double):
    make, cutoff, skin = STRUCTURES[name]
    atoms = make()
    neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, cutoff, skin, dtype=np.float64)
    if "many bins" in name:
        assert max(neighbors.sizes.bins) > 3
    assert_right(neighbors, atoms.positions, atoms.cell, atoms.pbc, cutoff + skin)
    assert int(neighbors.renewals) == 1


def test_padding_has_no_pairs():
    atoms = rattled(ase.build.bulk("Si", cubic=True))
    numbers = np.append(atoms.numbers, [0, 0, 0])
    # Padding lies on top of an atom and of itself.
    positions = np.concatenate([atoms.positions, np.repeat(atoms.positions[:1], 3, 0)])
    neighbors = allocate(positions, atoms.cell, atoms.pbc, numbers, 5.0, 0.5)
    assert_right(neighbors, atoms.positions, atoms.cell, atoms.pbc, 5.5, edge=1e-5)
    assert not np.asarray(neighbors.lists.neighbor_signs)[8:].any()


@pytest.mark.parametrize("skin", [0.5, 5.43 * np.sqrt(11) / 4 - 4.0, 5.43 * np.sqrt(0.5) * np.sqrt(2) - 4.0])
def test_both_ends_see_a_pair_at_the_very_edge(skin):
    """In a perfect crystal many pairs are as far as the list reaches, and float32 rounds either way from either end."""
    atoms = ase.build.bulk("Si", cubic=True) * (2, 2, 1)
    atoms.positions += [0.123, 7.31, -3.77]
    atoms = far_away(atoms)
    neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 4.0, float(skin))
    assert_right(neighbors, atoms.positions, atoms.cell, atoms.pbc, 4.0 + skin, edge=1e-4)


def test_atoms_on_the_faces_of_the_cell_keep_their_pairs():
    """Rounding puts them on either side, in all parts of the program on the same: a compiler must not round them anew."""
    rng = np.random.default_rng(0)
    places = np.array(list(itertools.product(range(4), repeat=3))) / 4
    sizes = ListSizes((2, 2, 2), (1, 1, 1), 24, 64, 64 * 32)
    for _ in range(8):
        cell = 9.0 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
        positions = (places + rng.integers(-2, 3, places.shape)) @ cell
        neighbors = allocate(positions, cell, np.ones(3, bool), np.full(64, 18), 3.0, 0.5, sizes=sizes)
        assert_right(neighbors, positions, cell, np.ones(3, bool), 3.5, edge=1e-4)


# One atom count and one set of sizes, so that one program serves all examples.
ROOM = ListSizes((1, 1, 1), (3, 3, 3), 6, 160, 480)
floats = st.floats(-1, 1, width=32)


@st.composite
def structures(draw):
    positions = np.array(draw(st.lists(st.tuples(floats, floats, floats), min_size=6, max_size=6)))
    # Apart by construction: a grid, each atom moved by less than half of its step.
    grid = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0], [0, 0, 2], [2, 0, 2]], float)
    strain = np.array(draw(st.lists(floats, min_size=9, max_size=9))).reshape(3, 3)
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    whole = np.array(draw(st.lists(st.integers(-3, 3), min_size=18, max_size=18))).reshape(6, 3)
    cell = np.diag([4.2, 4.4, 4.6]) @ (np.eye(3) + 0.2 * strain)
    positions = (grid + 0.6 * positions) / [4.2, 4.4, 4.6] @ cell + (whole * pbc) @ cell
    cell[~pbc] *= draw(st.sampled_from([0.0, 1.0]))
    return positions, cell, pbc


@settings(deadline=None, max_examples=40, derandomize=True)
@given(structures(), st.floats(1.0, 4.0))
def test_any_structure(structure, radius):
    positions, cell, pbc = structure
    numbers = np.full(6, 18)
    with jax.enable_x64(True):
        neighbors = allocate(positions, cell, pbc, numbers, radius, 0.25, sizes=ROOM, dtype=np.float64)
        assert_right(neighbors, positions, cell, pbc, radius + 0.25)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(structures(), st.integers(0, 2**31), st.floats(0.0, 0.3), st.floats(0.0, 0.08))
def test_no_pair_within_the_cutoff_is_ever_missing(structure, seed, step, strain):
    positions, cell, pbc = structure
    rng = np.random.default_rng(seed)
    cutoff = 3.0
    with jax.enable_x64(True):
        neighbors = allocate(positions, cell, pbc, np.full(6, 18), cutoff, 0.5, sizes=ROOM, dtype=np.float64)
        for _ in range(4):
            deform = np.eye(3) + strain * rng.normal(size=(3, 3))
            move = rng.normal(size=(6, 3))
            positions = positions @ deform + step * move / np.linalg.norm(move, axis=1, keepdims=True)
            cell = cell @ deform
            before = int(neighbors.renewals)
            neighbors = update_jit(neighbors, jnp.asarray(positions), jnp.asarray(cell))
            if int(neighbors.overflow):
                # Told, so nobody uses it.
                return
            assert_sides_agree(neighbors)
            needed = host_pairs(positions, cell, pbc, cutoff - 1e-9)
            assert needed.keys() <= pairs_of(neighbors)
            if int(neighbors.renewals) > before:
                assert_right(neighbors, positions, cell, pbc, cutoff + 0.5)


def test_a_list_is_kept_while_it_holds_and_renewed_when_it_does_not(double):
    atoms = rattled(ase.build.bulk("Si", cubic=True))
    start = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 4.0, 0.5, dtype=np.float64)
    compiled = update_jit._cache_size()

    def renewals(positions, cell=atoms.cell.array):
        return int(update_jit(start, jnp.asarray(positions), jnp.asarray(cell)).renewals)

    def moved(distance):
        one = atoms.positions.copy()
        one[3] += distance * np.array([0.6, 0.0, 0.8])
        return one

    assert renewals(atoms.positions) == 1
    assert renewals(moved(0.2499)) == 1
    assert renewals(moved(0.2501)) == 2
    for strain, count in ((-0.05, 1), (-0.12, 2), (0.05, 1), (0.3, 2)):
        deform = np.diag([1.0, 1.0 + strain, 1.0])
        # |F^-1| is bounded by 1 + |F^-1 - 1|.
        expected = 1 + (4.0 * abs(1 / (1 + strain) - 1) > 0.5)
        assert renewals(atoms.positions @ deform, atoms.cell.array @ deform) == expected == count
    assert update_jit._cache_size() == compiled + 1


def test_growing_room_repairs_every_overflow(double):
    atoms = rattled(ase.build.bulk("Cu", cubic=True) * 4)
    good = plan_sizes(atoms.positions, atoms.cell, atoms.pbc, 3.3)
    assert min(good.bins) >= 4

    def lists(sizes):
        return allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 3.0, 0.3, sizes=sizes, dtype=np.float64)

    sizes, seen = good._replace(bin_atoms=6, neighbors=11, pairs=1300), 0
    for _ in range(8):
        neighbors = lists(sizes)
        if not int(neighbors.overflow):
            break
        seen |= int(neighbors.overflow)
        sizes = grown(sizes, int(neighbors.overflow), len(atoms))
    assert seen == OVERFLOW_BIN | OVERFLOW_NEIGHBORS | OVERFLOW_PAIRS
    assert_right(neighbors, atoms.positions, atoms.cell, atoms.pbc, 3.3)


def test_a_shrunken_cell_gets_another_grid(double):
    """Both ways: fewer bins where there are several, more images where there is one."""
    for repeat, shrink in ((4, 0.9), (1, 0.85)):
        atoms = rattled(ase.build.bulk("Cu", cubic=True) * repeat, 0.05)
        sizes = plan_sizes(atoms.positions, atoms.cell, atoms.pbc, 3.3)
        positions, cell = atoms.positions * shrink, atoms.cell.array * shrink
        seen = 0
        for _ in range(12):
            neighbors = allocate(positions, cell, atoms.pbc, atoms.numbers, 3.0, 0.3, sizes=sizes, dtype=np.float64)
            overflow = int(neighbors.overflow)
            if not overflow:
                break
            seen |= overflow
            sizes = grown(sizes, overflow, len(atoms))
        assert seen & OVERFLOW_GRID
        assert_right(neighbors, positions, cell, atoms.pbc, 3.3)


def test_overflow_stays_until_the_list_is_made_anew(double):
    atoms = ase.build.bulk("Cu", cubic=True)
    sizes = plan_sizes(atoms.positions, atoms.cell, atoms.pbc, 3.3)._replace(pairs=8)
    neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 3.0, 0.3, sizes=sizes, dtype=np.float64)
    assert int(neighbors.overflow) == OVERFLOW_PAIRS
    apart = 3.0
    neighbors = update_jit(neighbors, neighbors.positions * apart, neighbors.cell * apart)
    assert int(neighbors.renewals) == 2
    assert int(neighbors.overflow) == OVERFLOW_PAIRS
    assert not np.asarray(neighbors.pair_mask).any()


def test_largest_serves_all(double):
    several = [ase.build.bulk("Si"), rattled(ase.build.bulk("Cu", cubic=True) * 4), ase.build.molecule("H2O")]
    sizes = [plan_sizes(a.positions, a.cell, a.pbc, 3.3) for a in several]
    common = largest(sizes, max(map(len, several)))
    for atoms in several[::2]:
        room = common._replace(bin_atoms=len(atoms))
        neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 3.0, 0.3, sizes=room, dtype=float)
        assert_right(neighbors, atoms.positions, atoms.cell, atoms.pbc, 3.3)
    assert largest([sizes[1], sizes[1]._replace(pairs=1)], 256) == sizes[1]


def silicon_germanium():
    atoms = rattled(ase.build.bulk("Si", cubic=True))
    atoms.numbers[2] = 32
    return atoms


def assert_same(out, reference, tolerance):
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(out, name), getattr(reference, name), rtol=0, atol=tolerance, err_msg=name)


def test_energy_and_forces_are_those_of_the_host_list(double):
    config = leignn.LEIGNNConfig(elements=("Si", "Ge"), features=4, layers=2, num_radial=4, cutoff=4.0)
    potential = leignn.Potential.create(config, jax.random.key(3), scale=2.0)
    atoms = silicon_germanium()
    reference = jax.jit(type(potential).compute)(potential, Graph.from_ase(atoms, 4.0, np.float64))
    neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 4.0, 0.5, dtype=np.float64)
    out = jax.jit(type(potential).compute)(potential, neighbors.graph(neighbors.positions))
    assert_same(out, reference, 1e-12)


def test_more_room_changes_no_bits(double):
    """Sums go over neighbours in one order, whatever the room; that of pairs within a program may be split otherwise."""
    atoms = silicon_germanium()
    compute, results = jax.jit(LennardJones.compute), []
    for more in (0, 8):
        sizes = plan_sizes(atoms.positions, atoms.cell, atoms.pbc, 4.5)
        sizes = sizes._replace(neighbors=sizes.neighbors + more, pairs=sizes.pairs + 5 * more)
        where = (atoms.positions, atoms.cell, atoms.pbc, atoms.numbers)
        neighbors = allocate(*where, 4.0, 0.5, sizes=sizes, dtype=np.float64)
        results.append(compute(LennardJones(1.0, 2.1, 4.0), neighbors.graph(neighbors.positions)))
    assert_same(*results, 1e-13)
    assert np.abs(results[0].forces).max() > 0.1


def test_no_gradient_passes_through_a_list(double):
    atoms = silicon_germanium()
    model = LennardJones(1.0, 2.1, 4.0)
    neighbors = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 4.0, 0.5, dtype=np.float64)

    @jax.jit
    @jax.value_and_grad
    def energy(positions):
        renewed = update(neighbors, positions)
        return model.compute(renewed.graph(positions)).energy[0]

    forces = model.compute(neighbors.graph(neighbors.positions)).forces
    # Far enough for the list to be made anew.
    np.testing.assert_allclose(energy(neighbors.positions + 0.2)[1], -forces, rtol=0, atol=1e-10)
    assert int(update_jit(neighbors, neighbors.positions + 0.2).renewals) == 2


def test_side_by_side_none_is_renewed_where_none_needs_it(double):
    atoms = rattled(ase.build.bulk("Cu", cubic=True))
    one = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 3.0, 0.4, dtype=np.float64)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    together = jax.jit(jax.vmap(lambda n, r: update(n, r, axis="member"), axis_name="member"))
    positions = np.stack([atoms.positions, atoms.positions])
    positions[1] += 0.1
    assert np.asarray(together(both, jnp.asarray(positions)).renewals).tolist() == [1, 1]
    positions[1, 2] += 0.2
    after = together(both, jnp.asarray(positions))
    assert np.asarray(after.renewals).tolist() == [2, 2]
    for r in range(2):
        assert_right(jax.tree.map(lambda x, r=r: x[r], after), positions[r], atoms.cell, atoms.pbc, 3.4)
    # The renewal is a loop of one turn or none, not a selection made after the work is done for all; and all that a list is
    # goes through it in place, which it does not through the branches of a condition.
    text = jax.jit(jax.vmap(lambda n, r: update(n, r, axis="m"), axis_name="m")).lower(both, both.positions).as_text()
    main = text[text.index("func.func public @main") :].split("\n  func.func")[0]
    assert "stablehlo.while" in main
    assert "stablehlo.case" not in main
    assert "@renewed" in main[main.index("stablehlo.while") :]


def test_side_by_side_without_an_axis_each_is_renewed_by_itself(double):
    atoms = rattled(ase.build.bulk("Cu", cubic=True))
    one = allocate(atoms.positions, atoms.cell, atoms.pbc, atoms.numbers, 3.0, 0.4, dtype=np.float64)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    positions = np.stack([atoms.positions, atoms.positions])
    positions[1, 2] += 0.3
    after = jax.jit(jax.vmap(update))(both, jnp.asarray(positions))
    assert np.asarray(after.renewals).tolist() == [1, 2]
    for r in range(2):
        assert_right(jax.tree.map(lambda x, r=r: x[r], after), positions[r], atoms.cell, atoms.pbc, 3.4)


def test_one_program_per_sizes(double):
    _renewed_jit.clear_cache()
    for shift in (0.0, 0.1):
        for cell in (4.1, 4.3):
            allocate([[0, 0, shift], [2, 0, 0]], np.eye(3) * cell, [True] * 3, [18, 18], 2.0, 0.5, dtype=float,
                     sizes=ROOM._replace(bin_atoms=2))  # fmt: skip
    assert _renewed_jit._cache_size() == 1


def test_bad_structures_are_told():
    with pytest.raises(StructureError, match="overlap"):
        allocate([[0, 0, 0], [0, 0, 0.001]], np.eye(3) * 5, [True] * 3, [18, 18], 3.0)
    with pytest.raises(StructureError, match="not a number"):
        allocate([[0, 0, 0], [0, 0, np.nan]], np.eye(3) * 5, [True] * 3, [18, 18], 3.0)
    with pytest.raises(StructureError, match="can't be inverted"):
        allocate([[0, 0, 0], [0, 0, 2]], np.ones((3, 3)), [True] * 3, [18, 18], 3.0)


@pytest.mark.parametrize("pbc", [False, True])
def test_atoms_far_apart_need_few_bins(pbc):
    rng = np.random.default_rng(0)
    clump = rng.uniform(0, 6, (12, 3))
    positions = np.concatenate([clump, clump + np.array([1e4, 2e4, 1e5])])
    cell = np.diag([1.5e4, 3e4, 2e5]) * pbc
    sizes = plan_sizes(positions, cell, np.array([pbc] * 3), 4.5)
    assert np.prod(sizes.bins) <= 8 * 24
    with jax.enable_x64(True):
        made = allocate(positions, cell, [pbc] * 3, np.ones(24), 4.0, 0.5, dtype=np.float64)
        assert not int(made.overflow)
        assert pairs_of(made) == set(host_pairs(positions, cell, [pbc] * 3, 4.5))
