"""g(r) and h(r) against the ideal gas, shells of fcc, ASE's own, and each other in other cells."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.geometry.rdf import get_rdf
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.analysis import distance_distribution, from_ase, radial_distribution, rdf_mae
from leignn_jax.data import read_frames
from leignn_jax.errors import ConfigError, DataError, StructureError

TRICLINIC = np.array([[5.0, 0, 0], [1.7, 4.6, 0], [-1.1, 1.3, 4.2]])
DATA = Path(__file__).parents[3] / "shared" / "data"


def rdf_of(frames, **settings):
    t = from_ase(frames)
    return radial_distribution(t.positions, t.numbers, t.cell, t.pbc, **settings)


def binary(seed, repeat=(1, 1, 1)):
    """Rattled rock salt in a sheared cell."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(repeat)
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.1 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.2 * rng.normal(size=atoms.positions.shape)
    return atoms


def test_ideal_gas_in_a_triclinic_cell_smaller_than_r_max():
    rng = np.random.default_rng(1)
    numbers = [3] * 6 + [9] * 5
    positions = rng.uniform(0, 1, (200, 11, 3)) @ TRICLINIC
    g = radial_distribution(positions, numbers, TRICLINIC, r_max=9.0, bins=9)
    # Unlike atoms know nothing of each other: exactly 1 on average, also beyond half of the cell. Like atoms lack
    # themselves (N - 1 of N) and see their own images, which are no gas.
    density = 30 * 200 * 4 / 3 * np.pi * np.diff(g.edges**3) / np.linalg.det(TRICLINIC)
    error = 1 / np.sqrt(density)
    assert (np.abs(g.of("Li", "F") - 1) < 4.5 * error).all()
    assert (np.abs(g.of("Li", "F") - 1) > 0).all()
    first = g.edges[1:] < np.linalg.norm(TRICLINIC, axis=1).min() - 0.5
    like = 36 / 30 * error[first]
    assert (np.abs(g.of("Li", "Li")[first] - 5 / 6) < 4.5 * like).all()


def test_shells_of_fcc():
    a = 4.05
    g = rdf_of(bulk("Al", a=a), r_max=1.47 * a, bins=301)
    shells = a / np.sqrt(2) * np.sqrt(np.arange(1, 5))
    inside = np.cumsum([12, 6, 24, 12])
    for distance, count in zip(shells, inside, strict=True):
        bin_ = np.searchsorted(g.edges, distance) - 1
        assert g.total[bin_] > 0
        assert g.coordination("Al", "Al")[bin_] == pytest.approx(count)
    peaks = np.flatnonzero(g.total)
    np.testing.assert_allclose(g.r[peaks], shells, atol=g.r[0])


def test_partials_add_up_to_the_total():
    atoms = binary(0)
    atoms.numbers[:2] = 19
    g = rdf_of([atoms], r_max=7.3, bins=80)
    assert g.pairs == (("Na", "Na"), ("Na", "Cl"), ("Na", "K"), ("Cl", "Cl"), ("Cl", "K"), ("K", "K"))
    count = sum(g.composition.values())
    total = sum((1 if a == b else 2) * g.composition[a] * g.composition[b] / count**2 * g.of(a, b) for a, b in g.pairs)
    np.testing.assert_allclose(total, g.total, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(g.of("K", "Na"), g.of("Na", "K"))
    # Pairs counted from either end: N_a n_ab = N_b n_ba.
    a, b = g.coordination("Na", "K"), g.coordination("K", "Na")
    np.testing.assert_allclose(a * g.composition["Na"], b * g.composition["K"])
    volume = atoms.get_volume()
    shells = 4 / 3 * np.pi * np.diff(g.edges**3)
    np.testing.assert_allclose(b, np.cumsum(g.of("K", "Na") * shells) * g.composition["Na"] / volume)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), r_max=st.floats(2.5, 8.1))
def test_wrapping_supercells_and_order_change_nothing(seed, r_max):
    atoms = binary(seed)
    rng = np.random.default_rng(seed)
    first = rdf_of(atoms, r_max=r_max, bins=37)
    moved = atoms.copy()
    moved.positions += rng.normal(size=3) + rng.integers(-4, 5, (len(atoms), 3)) @ atoms.cell.array
    moved = moved[rng.permutation(len(atoms))]
    larger = make_supercell(atoms, [[1, 1, 0], [0, 1, 1], [0, 0, 2]])
    for other in (moved, larger):
        second = rdf_of(other, r_max=r_max, bins=37)
        # An atom on an edge of two bins may fall on either side of it by rounding: the sums up to there agree.
        np.testing.assert_allclose(second.partial, first.partial, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(second.total, first.total, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(second.neighbors, first.neighbors, rtol=1e-9, atol=1e-12)


def test_as_ase_where_the_cell_is_large():
    frames = [binary(seed, (2, 2, 2)) for seed in range(2)]
    r_max, bins = 4.0, 50
    g = rdf_of(frames, r_max=r_max, bins=bins)
    total, r = get_rdf(frames, r_max, bins)
    np.testing.assert_allclose(g.r, r)
    np.testing.assert_allclose(g.total, total, atol=1e-10)
    for pair in (("Na", "Na"), ("Cl", "Na"), ("Cl", "Cl")):
        expected, _ = get_rdf(frames, r_max, bins, elements=pair)
        np.testing.assert_allclose(g.of(*pair), expected, atol=1e-10)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False)])
def test_mixed_periodicity_counts_only_periodic_images(pbc):
    rng = np.random.default_rng(3)
    atoms = Atoms("Si4", positions=rng.uniform(0, 4, (4, 3)), cell=[4.0, 4.5, 30.0], pbc=pbc)
    g = rdf_of(atoms, r_max=9.0, bins=30)
    reach = [3 if p else 0 for p in pbc]
    images = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1).reshape(-1, 3)
    vectors = atoms.positions[:, None, None] - atoms.positions[None, :, None] - images @ atoms.cell.array
    distances = np.linalg.norm(vectors, axis=-1).ravel()
    counts = np.histogram(distances[(distances > 1e-9) & (distances < 9)], g.edges)[0]
    np.testing.assert_allclose(g.neighbors[0], counts / 4)
    shells = 4 / 3 * np.pi * np.diff(g.edges**3)
    np.testing.assert_allclose(g.total, counts * atoms.get_volume() / (16 * shells))


def test_cells_that_change_from_frame_to_frame():
    frames = [binary(0), binary(1)]
    both = rdf_of(frames, r_max=6.1, bins=40)
    apart = [rdf_of(f, r_max=6.1, bins=40) for f in frames]
    np.testing.assert_allclose(both.partial, (apart[0].partial + apart[1].partial) / 2)


def test_volume_and_errors():
    water = molecule("H2O")
    t = from_ase(water)
    with pytest.raises(DataError, match="no volume, so g"):
        rdf_of(water)
    free = radial_distribution(t.positions, t.numbers, t.cell, False, volume=100.0, r_max=2.0, bins=4)
    shells = 4 / 3 * np.pi * np.diff(free.edges**3)
    np.testing.assert_allclose(free.of("O", "H"), [0, 2 * 100 / (2 * shells[1]), 0, 0])
    with pytest.raises(ConfigError, match="volume must be a positive"):
        radial_distribution(t.positions, t.numbers, t.cell, False, volume=-1.0)
    with pytest.raises(ConfigError, match="no pair H-Li: there are H-H, H-O, O-O"):
        free.of("H", "Li")
    with pytest.raises(ConfigError, match="r_max must be"):
        radial_distribution(t.positions, t.numbers, t.cell, False, r_max=0.0)
    with pytest.raises(DataError, match=r"atomic numbers must be \[3\]"):
        radial_distribution(t.positions, [1, 2], np.eye(3))
    twice = np.concatenate([t.positions, 0 * t.positions])
    with pytest.raises(StructureError, match="Frame 1: Atoms 0 and 1"):
        radial_distribution(twice, t.numbers, 9 * np.eye(3), True, r_max=2.0)


def test_distances_of_a_dimer_and_of_water():
    h = distance_distribution([[[0, 0, 0], [0, 0, 1.01]], [[5, 5, 5], [5, 5, 6.21]]], r_max=2.0, bins=20)
    expected = np.zeros(20)
    expected[[10, 12]] = 0.5 / 0.1
    np.testing.assert_allclose(h.density, expected)
    assert h.outside == 0
    water = molecule("H2O")
    h = distance_distribution(water.positions[None], r_max=1.2, bins=12)
    assert h.outside == pytest.approx(1 / 3)
    assert np.sum(h.density * np.diff(h.edges)) == pytest.approx(1)
    h = distance_distribution(water.positions[None], r_max=3.0, bins=300, select=water.numbers == 1)
    assert h.r[np.argmax(h.density)] == pytest.approx(water.get_distance(1, 2), abs=0.005)
    with pytest.raises(DataError, match="two atoms"):
        distance_distribution(np.zeros((4, 1, 3)))
    with pytest.raises(DataError, match="closer than r_max"):
        distance_distribution(water.positions[None], r_max=0.1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), atoms=st.integers(2, 6), bins=st.integers(1, 50))
def test_distance_distribution_is_normalised_and_invariant(seed, atoms, bins):
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(4, atoms, 3))
    h = distance_distribution(positions, r_max=20.0, bins=bins)
    assert np.sum(h.density * np.diff(h.edges)) == pytest.approx(1)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    again = distance_distribution(positions[:, ::-1] @ rotation + 7.0, r_max=20.0, bins=bins)
    np.testing.assert_allclose(again.density, h.density)


def test_mae_is_the_integral_of_the_difference():
    edges = np.linspace(0, 6, 501)
    r = (edges[1:] + edges[:-1]) / 2
    first, second = np.stack([r, 0 * r]), np.stack([0 * r, 1 + 0 * r])
    np.testing.assert_allclose(rdf_mae(first, second, edges), [18.0, 6.0])
    # As the mean of |difference| times r_max, which is how it was first computed.
    np.testing.assert_allclose(rdf_mae(first, second, edges), np.abs(first - second).mean(-1) * 6)
    with pytest.raises(DataError, match="same r_max and bins"):
        rdf_mae(first[:, :-1], second, edges)


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets (../shared/data) are not on this machine")
def test_peaks_of_real_liquids_are_where_they_should_be():
    water = rdf_of(read_frames(DATA / "water" / "test.extxyz.xz", index="::4"), r_max=6.0, bins=120)
    oo = water.of("O", "O")
    peak = water.r[np.argmax(oo)]
    assert 2.65 < peak < 2.85
    assert 2.5 < oo.max() < 3.4
    assert (oo[water.r < 2.2] == 0).all()
    bonded = np.searchsorted(water.edges, 1.3)
    assert water.coordination("O", "H")[bonded] == pytest.approx(2, abs=0.01)
    assert 0.93 < water.r[np.argmax(water.of("O", "H"))] < 1.03

    lips = rdf_of(read_frames(DATA / "lips" / "test.extxyz.xz", index="::6"), r_max=6.0, bins=120)
    assert 2.0 < lips.r[np.argmax(lips.of("P", "S"))] < 2.1
    assert 2.35 < lips.r[np.argmax(lips.of("Li", "S"))] < 2.55
