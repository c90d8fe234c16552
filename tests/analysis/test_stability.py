"""Trajectories that break at a frame that is known."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.neighborlist import NeighborList, natural_cutoffs

from leignn_jax.analysis import bond_instability, distance_instability, radial_distribution, rdf_instability, rdf_mae
from leignn_jax.analysis.stability import find_bonds
from leignn_jax.errors import ConfigError, DataError, StructureError

STEP = 50.0  # fs
FRAMES, BREAK, WINDOW = 60, 35, 20


@pytest.fixture(scope="module")
def crystal():
    """Atoms that rattle about their sites, sites and all."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    rng = np.random.default_rng(0)
    positions = atoms.positions + 0.15 * rng.normal(size=(FRAMES, 8, 3))
    reference = radial_distribution(positions, atoms.numbers, atoms.cell.array, bins=100)
    return atoms, positions, reference


def judge(crystal, positions, **settings):
    atoms, _, reference = crystal
    return rdf_instability(positions, atoms.numbers, atoms.cell.array, True, STEP, reference, **settings)


def melted(positions):
    """Positions anywhere from frame BREAK on."""
    broken = positions.copy()
    broken[BREAK:] = np.random.default_rng(1).uniform(0, 5.6, broken[BREAK:].shape)
    return broken


def test_a_stable_crystal_is_stable(crystal):
    assert judge(crystal, crystal[1], threshold=1.0) is None


@pytest.mark.parametrize("partial", [True, False])
def test_the_first_window_that_is_off_is_found(crystal, partial):
    atoms, _, reference = crystal
    positions = melted(crystal[1])
    threshold = 1.5
    found = judge(crystal, positions, threshold=threshold, partial=partial)
    # Every window from scratch, as the definition says.
    for start in range(FRAMES - WINDOW + 1):
        g = radial_distribution(positions[start : start + WINDOW], atoms.numbers, atoms.cell.array, bins=100)
        pairs = (
            rdf_mae(g.partial, reference.partial, g.edges) if partial else rdf_mae(g.total, reference.total, g.edges)
        )
        if np.max(pairs) > threshold:
            break
    assert found.frame == start
    assert found.time == start * STEP
    assert found.value == pytest.approx(np.max(pairs))
    assert found.limit == threshold
    assert ("Na-Cl" in found.cause) or ("Na-Na" in found.cause) or ("Cl-Cl" in found.cause) or not partial
    # A window that holds a melted frame, not one before and not one that has melted whole.
    assert BREAK - WINDOW < found.frame < BREAK


def test_a_window_of_one_frame_finds_the_frame_itself(crystal):
    atoms, positions, _ = crystal
    # Few bins, so that the noise of one frame is below what melting does.
    coarse = radial_distribution(positions, atoms.numbers, atoms.cell.array, bins=6)
    arguments = (atoms.numbers, atoms.cell.array, True, STEP, coarse)
    assert rdf_instability(positions, *arguments, threshold=1.5, window=STEP) is None
    found = rdf_instability(melted(positions), *arguments, threshold=1.5, window=STEP)
    assert (found.frame, found.time) == (BREAK, BREAK * STEP)


def test_frames_that_are_no_structure_are_unstable(crystal):
    exploded = crystal[1].copy()
    exploded[BREAK:] = np.nan
    found = judge(crystal, exploded, threshold=1.0)
    assert (found.frame, found.time, found.value) == (BREAK, BREAK * STEP, np.inf)
    assert "not a number" in found.cause
    merged = crystal[1].copy()
    merged[BREAK, 1] = merged[BREAK, 0]
    found = judge(crystal, merged, threshold=1.0)
    assert found.frame == BREAK
    assert "overlap" in found.cause
    with pytest.raises(StructureError, match="not a number"):
        judge(crystal, exploded[BREAK:], threshold=1.0)


def test_what_is_refused(crystal):
    atoms, positions, reference = crystal
    with pytest.raises(DataError, match="shorter than the window of 20 frames"):
        judge(crystal, positions[:10], threshold=1.0)
    with pytest.raises(ConfigError, match="must be a positive number"):
        judge(crystal, positions, threshold=-1.0)
    with pytest.raises(DataError, match="Na-Na, Na-Cl, Cl-Cl"):
        rdf_instability(positions, [3] * 8, atoms.cell.array, True, STEP, reference, threshold=1.0)


def test_bonds_are_those_of_ase():
    for name in ("H2O", "CH3CH2OH", "C6H6", "CH3SH"):
        atoms = molecule(name)
        neighbors = NeighborList(natural_cutoffs(atoms), self_interaction=False)
        neighbors.update(atoms)
        matrix = neighbors.get_connectivity_matrix(sparse=False)
        expected = np.argwhere(np.triu(matrix | matrix.T, 1))
        assert sorted(map(tuple, find_bonds(atoms.positions, atoms.numbers))) == sorted(map(tuple, expected))
    assert len(find_bonds(molecule("CH3CH2OH").positions, molecule("CH3CH2OH").numbers)) == 8


def test_a_bond_that_breaks_at_a_known_frame():
    atoms = molecule("CH3CH2OH")
    bonds = find_bonds(atoms.positions, atoms.numbers)
    o, h = next((i, j) for i, j in bonds if {8, 1} == {atoms.numbers[i], atoms.numbers[j]})
    rng = np.random.default_rng(0)
    positions = atoms.positions + 0.02 * rng.normal(size=(40, 9, 3))
    assert bond_instability(positions, atoms.numbers, 2.0, atoms.positions) is None
    vector = atoms.positions[h] - atoms.positions[o]
    vector /= np.linalg.norm(vector)
    positions[25:, h] += 0.7 * vector
    found = bond_instability(positions, atoms.numbers, 2.0, atoms.positions)
    assert (found.frame, found.time, found.limit) == (25, 50.0, 0.5)
    length = np.linalg.norm(positions[25, h] - positions[25, o])
    assert found.value == pytest.approx(length - atoms.get_distance(o, h))
    assert f"O{o}-H{h}" in found.cause or f"H{h}-O{o}" in found.cause
    assert bond_instability(positions, atoms.numbers, 2.0, atoms.positions, threshold=1.0) is None
    # Compression counts as well, and the reference may be a trajectory whose mean counts.
    positions[25:, h] -= 1.3 * vector
    reference = atoms.positions + np.array([-0.01, 0.01])[:, None, None] * np.eye(9)[h][:, None] * vector
    found = bond_instability(positions, atoms.numbers, 2.0, reference)
    assert found.frame == 25


def test_a_molecule_that_explodes():
    atoms = molecule("H2O")
    positions = np.tile(atoms.positions, (5, 1, 1))
    positions[3, 1] = np.nan
    found = bond_instability(positions, atoms.numbers, 1.0, atoms.positions)
    assert (found.frame, found.value) == (3, np.inf)
    with pytest.raises(DataError, match="has no bonds"):
        bond_instability(positions * 20, atoms.numbers, 1.0, atoms.positions * 20)
    with pytest.raises(DataError, match="has 2 atoms, the reference 3"):
        bond_instability(positions[:, :2], atoms.numbers, 1.0, atoms.positions)
    with pytest.raises(ConfigError, match="must be a positive number"):
        bond_instability(positions, atoms.numbers, 1.0, atoms.positions, threshold=0.0)


def test_one_pair_that_is_caught_is_seen():
    """Two hydrogens of a large liquid, in one frame, through the cell's face."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(5) * 2.4] * 3, indexing="ij"), -1).reshape(-1, 3)
    numbers = np.where(np.arange(125) % 3 == 0, 8, 1)
    positions = grid + 0.05 * rng.normal(size=(6, 125, 3))
    pairs = {("H", "H"): 1.6, ("H", "O"): 1.6}
    rest = positions, numbers, 12.0 * np.eye(3), True, STEP
    assert distance_instability(*rest, pairs) is None
    first = int(np.flatnonzero((grid == [0, 0, 2.4]).all(1))[0])
    assert numbers[first] == numbers[-1 - (numbers[::-1] == 1).argmax()] == 1
    last = 125 - 1 - int((numbers[::-1] == 1).argmax())
    positions[3, last] = positions[3, first] + [-1.2 + 12.0, 0, 0]
    found = distance_instability(*rest, pairs)
    assert (found.frame, found.time) == (3, 3 * STEP)
    assert found.value == pytest.approx(1.2)
    assert found.limit == pytest.approx(0.9 * 1.6)
    assert f"H{first}" in found.cause
    assert f"H{last}" in found.cause
    # Elements that nobody named are not judged, and a wider tolerance lets the pair be.
    assert distance_instability(*rest, {("O", "O"): 1.6}) is None
    assert distance_instability(*rest, pairs, tolerance=0.3) is None
    positions[2, 0] = np.nan
    assert "frame 2 is broken" in distance_instability(*rest, pairs).cause
    with pytest.raises(ConfigError, match="tolerance"):
        distance_instability(*rest, pairs, tolerance=1.0)
