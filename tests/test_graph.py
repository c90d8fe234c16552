"""Graphs: what they hold, batches and padding there and back, and energies that neither of them changes."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph, bucket, pair_lists
from leignn_jax.models.config import preset
from leignn_jax.models.network import init_params
from leignn_jax.potential import Potential, compute

pytestmark = pytest.mark.usefixtures("fast_compiles")

CUTOFF = 4.0


def structures():
    """One of each kind, off their ideal places."""
    slab = Atoms("SiOH", positions=[[0, 0, 0], [1.2, 1.1, 0.3], [2, 2, 1.2]], cell=[[3, 0, 0], [1, 3.3, 0], [0, 0, 0]])
    slab.pbc = (True, True, False)
    wire = Atoms("SiH", positions=[[9, 0, 0], [-9, 1.5, 0.2]], cell=[0, 0, 5.0], pbc=(False, False, True))
    triclinic = bulk("Si", cubic=True)
    triclinic.symbols[2:4] = "O"
    triclinic.set_cell(triclinic.cell.array @ np.array([[1, 0.2, 0], [0, 1, 0.1], [0, 0, 1.05]]), scale_atoms=True)
    found = {
        "molecule": molecule("H2O"),
        "one atom": Atoms("Si"),
        "no pairs": Atoms("SiO", positions=[[0, 0, 0], [50, 0, 0]]),
        "crystal of one atom": Atoms("Si", cell=2.5 * np.eye(3), pbc=True),
        "primitive cell": bulk("Si"),
        "triclinic": triclinic,
        "slab": slab,
        "wire": wire,
    }
    for atoms in found.values():
        atoms.rattle(0.05, seed=1)
    return found


STRUCTURES = structures()
NAMES = list(STRUCTURES)


def graph_of(name, dtype=np.float64):
    return Graph.from_ase(STRUCTURES[name], CUTOFF, dtype)


def all_graphs(dtype=np.float64):
    return [graph_of(name, dtype) for name in NAMES]


def assert_same(a, b):
    """Every array equal in value, shape and dtype."""
    leaves, others = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
    for (path, x), (_, y) in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path), strict=True)


# ------------------------------------------------------------------------------------------------------- what they hold


@pytest.mark.parametrize("name", NAMES)
def test_graph_has_the_edges_of_ase(name):
    atoms, graph = STRUCTURES[name], graph_of(name)
    i, j, vectors = neighbor_list("ijD", atoms, CUTOFF)
    mask, lists = graph.pair_mask, graph.lists
    with jax.enable_x64(True):
        mine = np.asarray(graph.vectors())[mask]
    assert mine.dtype == np.float64
    edges = np.column_stack([lists.receivers[mask], lists.senders[mask], mine])
    back = np.column_stack([lists.senders[mask], lists.receivers[mask], -mine])
    ours = np.round(np.concatenate([edges, back]), 8) + 0.0
    theirs = np.round(np.column_stack([i, j, vectors]), 8) + 0.0
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)].reshape(-1, 5), atol=2e-8)


@pytest.mark.parametrize("name", NAMES)
def test_graph_keeps_the_structure(name):
    atoms = STRUCTURES[name]
    before = atoms.copy()
    for dtype in (np.float32, np.float64):
        graph = graph_of(name, dtype)
        assert before == atoms
        np.testing.assert_array_equal(graph.positions, atoms.positions.astype(dtype), strict=True)
        np.testing.assert_array_equal(graph.cell, atoms.cell.array[None].astype(dtype), strict=True)
        np.testing.assert_array_equal(graph.pbc, atoms.pbc[None], strict=True)
        np.testing.assert_array_equal(graph.numbers, atoms.numbers.astype(np.int32), strict=True)
        assert graph.shifts.dtype == dtype
        assert graph.atom_mask.all()
        assert graph.graph_mask.tolist() == [True]
        assert graph.num_graphs == 1
        assert graph.shape == (len(atoms), len(graph.pair_mask), graph.lists.neighbors.shape[1], 1)


@pytest.mark.parametrize("name", ["one atom", "no pairs"])
def test_graph_without_pairs_has_one_masked(name):
    graph = graph_of(name)
    assert graph.pair_mask.tolist() == [False]
    assert graph.shape[1:] == (1, 1, 1)
    assert not graph.lists.neighbor_signs.any()


def test_default_dtype_is_single():
    assert Graph.from_ase(STRUCTURES["molecule"], CUTOFF).positions.dtype == np.float32


def test_refused_structures():
    with pytest.raises(StructureError, match="has no atoms"):
        Graph.from_ase(Atoms(), CUTOFF)
    with pytest.raises(StructureError, match=r"Atom 1 has atomic number 0 \(X\)"):
        Graph.from_ase(Atoms("HXH", positions=np.eye(3)), CUTOFF)
    with pytest.raises(StructureError, match="Atom 2 has the position"):
        Graph.from_ase(Atoms("H3", positions=[[0, 0, 0], [0, 0, 1], [0, np.nan, 0]]), CUTOFF)
    with pytest.raises(StructureError, match="cutoff must be a positive number"):
        Graph.from_ase(Atoms("H"), 0.0)
    with pytest.raises(StructureError, match="at least one graph"):
        Graph.batch([])


def check_lists(lists, atoms):
    """Every pair stands twice in the neighbour table, from both sides; rows are filled from the left."""
    counts = np.zeros((len(lists.receivers), 2), int)
    for atom in range(atoms):
        signs = lists.neighbor_signs[atom]
        used = np.flatnonzero(signs)
        assert used.tolist() == list(range(len(used)))
        for slot in used:
            pair = lists.neighbor_pairs[atom, slot]
            ends = lists.receivers[pair], lists.senders[pair]
            assert (atom, lists.neighbors[atom, slot]) == (ends if signs[slot] == 1 else ends[::-1])
            counts[pair, 0 if signs[slot] == 1 else 1] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_neighbor_table_of_any_pairs(drawn):
    atoms, ends = drawn
    ends = np.array(ends, np.int32).reshape(-1, 2)
    lists = pair_lists(ends[:, 0], ends[:, 1], atoms)
    assert (check_lists(lists, atoms) == 1).all()
    degree = np.bincount(ends.ravel(), minlength=atoms)
    assert lists.neighbors.shape == (atoms, max(degree.max(), 1))
    dtypes = [getattr(lists, field.name).dtype for field in dataclasses.fields(lists)]
    assert dtypes == [np.int32, np.int32, np.int32, np.int32, np.int8]


def test_neighbor_table_of_a_padded_batch():
    graph = Graph.batch([g.pad_to_bucket() for g in all_graphs()])
    counts = check_lists(graph.lists, graph.shape[0])
    np.testing.assert_array_equal(counts, np.repeat(graph.pair_mask[:, None], 2, 1))


# ------------------------------------------------------------------------------------------------- batches and padding


def test_batch_holds_the_structures_side_by_side():
    graphs = all_graphs()
    batch = Graph.batch(graphs)
    atoms, pairs, neighbors, count = np.array([g.shape for g in graphs]).T
    assert batch.shape == (atoms.sum(), pairs.sum(), neighbors.max(), count.sum())
    np.testing.assert_array_equal(batch.graph_index, np.repeat(np.arange(len(graphs)), atoms))
    np.testing.assert_array_equal(batch.positions, np.concatenate([g.positions for g in graphs]))
    with jax.enable_x64(True):
        alone = np.concatenate([g.vectors() for g in graphs])
        np.testing.assert_allclose(batch.vectors(), alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unbatch_returns_what_was_batched(dtype):
    graphs = all_graphs(dtype)
    batches = {
        "plain": Graph.batch(graphs),
        "padded": Graph.batch(graphs).pad(atoms=60, pairs=999, neighbors=70, graphs=12),
        "padded parts": Graph.batch([g.pad_to_bucket().pad(graphs=1 + k % 3) for k, g in enumerate(graphs)]),
        "batch of batches": Graph.batch([Graph.batch(graphs[:3]).pad_to_bucket(), graphs[3], Graph.batch(graphs[4:])]),
        "on a device": jax.device_put(Graph.batch(graphs)) if dtype == np.float32 else Graph.batch(graphs),
    }
    for name, batch in batches.items():
        back = batch.unbatch()
        assert len(back) == len(graphs), name
        for graph, expected in zip(back, graphs, strict=True):
            assert_same(graph, expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5), st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_any_batch_and_padding_come_back(names, more):
    graphs = [graph_of(name) for name in names]
    batch = Graph.batch(graphs)
    padded = batch.pad(*(size + add for size, add in zip(batch.shape, more, strict=True)))
    assert padded.shape == tuple(size + add for size, add in zip(batch.shape, more, strict=True))
    assert padded.atom_mask.sum() == batch.shape[0]
    assert padded.pair_mask.sum() == batch.pair_mask.sum()
    assert padded.graph_mask.sum() == len(graphs)
    for graph, expected in zip(padded.unbatch(), graphs, strict=True):
        assert_same(graph, expected)


def test_padding_to_its_own_size_changes_nothing():
    graph = graph_of("slab")
    assert_same(graph.pad(), graph)
    assert_same(graph.pad(*graph.shape), graph)
    padded = graph.pad_to_bucket()
    assert_same(padded.pad_to_bucket(), padded)


@pytest.mark.parametrize("name", ["atoms", "pairs", "neighbors", "graphs"])
def test_padding_to_less_is_refused(name):
    graph = Graph.batch([graph_of("primitive cell")] * 2)
    have = dict(zip(("atoms", "pairs", "neighbors", "graphs"), graph.shape, strict=True))[name]
    with pytest.raises(StructureError, match=f"Can't pad to {have - 1} {name}: the graph has {have}."):
        graph.pad(**{name: have - 1})


@given(st.integers(0, 10**6), st.sampled_from([1, 4, 16]))
def test_buckets(size, smallest):
    found = bucket(size, smallest)
    assert size <= found <= max(size * 9 / 8 + 1, size + smallest)
    assert found % smallest == 0
    assert bucket(found, smallest) == found
    assert bucket(size + 1, smallest) >= found


def test_sums_and_spreads():
    graph = Graph.batch(all_graphs(np.float32)).pad(atoms=60, graphs=11)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 3, 2)).astype(np.float32)
    of_graphs = rng.normal(size=(11, 3, 2)).astype(np.float32)
    sums, spread = np.zeros((11, 3, 2)), np.zeros((60, 3, 2))
    for atom in np.flatnonzero(graph.numbers):
        sums[graph.graph_index[atom]] += values[atom]
        spread[atom] = of_graphs[graph.graph_index[atom]]
    np.testing.assert_allclose(graph.sum_atoms(jnp.asarray(values)), sums, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(graph.spread(jnp.asarray(of_graphs)), spread.astype(np.float32))
    np.testing.assert_allclose(graph.sum_atoms(jnp.asarray(values[:, 0, 0])), sums[:, 0, 0], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- energies and forces


@pytest.fixture(scope="module")
def predict():
    """From a graph to a small potential's answer in float64, as NumPy arrays."""
    changes = {"features": 16, "cutoff": CUTOFF, "repulsion": False, "direct_forces": True}
    config = preset("small", elements=("Si", "O", "H"), **changes)
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (rng.normal(0, 0.5, x.shape) / x.shape[0] ** 0.5).astype(np.float32), shapes)
    potential = Potential.from_params(config, params, {"Si": -3.0, "H": 1.0}, energy_shift=0.5)
    return partial(compute, potential)


# One program for every single structure, one for every batch.
SINGLE, BATCH = (12, 300, 60, 1), (60, 900, 60, 10)


@pytest.fixture(scope="module")
def alone(predict):
    """The answer for each structure by itself, in arrays of one common size."""
    return {name: predict(graph_of(name).pad(*SINGLE)) for name in NAMES}


def assert_answers(answer, graph, expected):
    """``answer`` for a batch says of its structures what ``expected`` says of each."""
    real = np.flatnonzero(graph.graph_mask)
    assert len(real) == len(expected)
    for index, (name, one) in zip(real, expected, strict=True):
        mine = np.flatnonzero((graph.graph_index == index) & (graph.numbers > 0))
        size = len(STRUCTURES[name])
        assert len(mine) == size
        np.testing.assert_allclose(answer.energy[index], one.energy[0], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(answer.stress[index], one.stress[0], rtol=0, atol=1e-12, err_msg=name)
        for field in ("forces", "atomic_energies", "direct_forces"):
            got, want = getattr(answer, field)[mine], getattr(one, field)[:size]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-11, err_msg=f"{name}: {field}")


def test_batches_change_no_answer(predict, alone):
    orders = [NAMES, NAMES[::-1], ["slab"], ["one atom", "no pairs"], ["triclinic", "wire", "triclinic"]]
    for names in orders:
        graph = Graph.batch([graph_of(name) for name in names]).pad(*BATCH)
        assert_answers(predict(graph), graph, [(name, alone[name]) for name in names])


def test_padding_between_structures_changes_no_answer(predict, alone):
    names = ["triclinic", "molecule", "slab", "one atom"]
    parts = [graph_of(name).pad_to_bucket().pad(graphs=1 + k % 2) for k, name in enumerate(names)]
    graph = Graph.batch(parts).pad(*BATCH)
    assert_answers(predict(graph), graph, [(name, alone[name]) for name in names])


def test_padding_has_no_energy_and_no_force(predict):
    names = ["molecule", "primitive cell"]
    graph = Graph.batch([graph_of(name) for name in names]).pad(*BATCH)
    answer = predict(graph)
    padding = graph.numbers == 0
    for field in ("forces", "atomic_energies", "direct_forces"):
        assert (getattr(answer, field)[padding] == 0).all()
    assert (answer.energy[2:] == 0).all()
    assert np.isfinite(answer.energy).all()
    assert np.isnan(answer.stress[2:]).all()


def test_atoms_without_neighbours_feel_nothing(alone):
    for name in ("one atom", "no pairs"):
        size = len(STRUCTURES[name])
        assert np.abs(alone[name].forces[:size]).max() == 0
        assert np.abs(alone[name].direct_forces[:size]).max() == 0
        assert np.isfinite(alone[name].energy).all()


def test_crystal_of_one_atom_has_no_force_but_stress(alone):
    answer = alone["crystal of one atom"]
    assert np.abs(answer.forces).max() == 0
    assert np.abs(answer.stress).max() > 1e-4
    np.testing.assert_allclose(answer.stress[0], np.eye(3) * answer.stress[0, 0, 0], rtol=0, atol=1e-12)


def test_stress_is_given_for_crystals_alone(alone):
    for name, atoms in STRUCTURES.items():
        assert np.isfinite(alone[name].stress).all() == atoms.pbc.all(), name


def test_vectors_are_differentiable_by_positions_and_cell():
    graph = graph_of("triclinic", np.float32)
    gradient = jax.grad(lambda x: (x.vectors() ** 2).sum(), allow_int=True)(graph)
    vectors = np.asarray(graph.vectors())
    expected = np.zeros_like(graph.positions)
    np.add.at(expected, graph.lists.senders, 2 * vectors)
    np.add.at(expected, graph.lists.receivers, -2 * vectors)
    np.testing.assert_allclose(gradient.positions, expected, atol=1e-3)
    np.testing.assert_allclose(gradient.cell[0], 2 * graph.shifts.T @ vectors, atol=1e-3)
