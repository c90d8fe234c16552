"""Bond angles of molecules and crystals where they are known, hard and smooth."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leignn_jax.analysis import angle_distribution, smooth_angle_distribution
from leignn_jax.analysis.soft_angles import neighbor_vectors, triple_mask
from leignn_jax.errors import ConfigError, DataError, ElementError
from leignn_jax.graph import Graph

pytestmark = pytest.mark.usefixtures("fast_compiles")


def of(atoms, **options):
    return angle_distribution(atoms.positions[None], atoms.numbers, atoms.cell.array, atoms.pbc, **options)


def test_water():
    water = ase.build.molecule("H2O")
    angle = water.get_angle(1, 0, 2)
    assert angle == pytest.approx(104, abs=1)
    found = of(water, r_max=1.2, kind=("H", "O", "H"))
    assert found.mean == pytest.approx(angle)
    assert found.angles == 1
    assert found.angle[np.argmax(found.density)] == np.floor(angle) + 0.5
    assert (found.density * np.diff(found.edges)).sum() == pytest.approx(1)
    # With H-H as a bond the triangle's angles are 180 degrees together.
    assert of(water, r_max=2.0).mean == pytest.approx(60)
    assert of(water, r_max=2.0).angles == 3


def test_images_count_in_a_cell_of_one_atom():
    # fcc: 12 neighbours, 66 angles: 24 of 60, 12 of 90, 24 of 120, 6 of 180 degrees.
    copper = ase.build.bulk("Cu", a=3.6)
    found = of(copper, r_max=2.7, bins=19)  # odd: no angle on an edge
    assert found.angles == 66
    counts = np.rint(found.density * np.diff(found.edges) * 66).astype(int)
    places = [np.searchsorted(found.edges, a, side="right") - 1 for a in (60, 90, 120, 179.99)]
    np.testing.assert_array_equal(counts[places], [24, 12, 24, 6])
    # Diamond: tetrahedra.
    assert of(ase.build.bulk("Si"), r_max=2.5).mean == pytest.approx(np.degrees(np.arccos(-1 / 3)))


def test_kinds_are_counted_once():
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=0)
    ends = [("Na", "Na"), ("Na", "Cl"), ("Cl", "Cl")]
    kinds = [(one, center, other) for one, other in ends for center in ("Na", "Cl")]
    each = {kind: of(salt, r_max=4.4, kind=kind).angles for kind in kinds}
    assert sum(each.values()) == of(salt, r_max=4.4).angles
    assert each["Na", "Na", "Cl"] == of(salt, r_max=4.4, kind=("Cl", "Na", "Na")).angles


def smooth(graph, edges, width, kind=None, **options):
    vectors, mask = neighbor_vectors(graph.lists, graph.vectors())
    triples = triple_mask(graph.numbers, jnp.asarray(graph.numbers)[graph.lists.neighbors], mask, kind)
    return smooth_angle_distribution(vectors, triples, edges, width, **options)


def test_smooth_ones_become_the_hard_ones_and_their_gradient_is_right():
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=0)
    hard = of(salt, r_max=3.4, kind=("Cl", "Na", "Cl"), bins=60)
    edges = hard.edges
    with jax.enable_x64(True):
        graph = Graph.from_ase(salt, 4.0, np.float64).pad(atoms=11, pairs=100, neighbors=20)
        curve = jax.jit(lambda r, w, f: smooth(graph.replace(positions=r), edges, w, (17, 11, 17), r_max=3.4, fade=f))
        sharp = curve(graph.positions, 1e-6, 1e-6)
        np.testing.assert_allclose(sharp, hard.density, atol=1e-9)
        place = jnp.asarray(np.arange(60.0) - 30)
        loss = lambda r: (curve(r, 4.0, 0.3) * place).sum() * 100  # noqa: E731
        gradient = np.asarray(jax.grad(loss)(graph.positions))
        step = np.zeros_like(graph.positions)
        step[:8] = np.random.default_rng(1).normal(size=(8, 3))
        finite = (loss(graph.positions + 1e-5 * step) - loss(graph.positions - 1e-5 * step)) / 2e-5
    assert float((gradient * step).sum()) == pytest.approx(float(finite), rel=1e-7)
    assert not gradient[8:].any()


def test_straight_bonds_and_none_have_finite_gradients():
    line = ase.Atoms("Ar3", [[0, 0, 0], [2, 0, 0], [4, 0, 0]])
    alone = ase.Atoms("Ar2", [[0, 0, 0], [9.0, 0, 0]])
    edges = jnp.linspace(0.0, 180.0, 19)
    for atoms in (line, alone):
        graph = Graph.from_ase(atoms, 3.0)
        value, slope = jax.value_and_grad(
            lambda r, graph=graph: smooth(graph.replace(positions=r), edges, 5.0, r_max=2.5, fade=0.1)[-1]
        )(jnp.asarray(graph.positions))
        assert np.isfinite(slope).all()
        assert float(value) == pytest.approx(0.05 * (atoms is line), rel=0.05)


def test_words():
    water = ase.build.molecule("H2O")
    with pytest.raises(DataError, match=r"no angle H-O-H: no atom has two such neighbours within r_max = 0\.5"):
        of(water, r_max=0.5, kind=("H", "O", "H"))
    with pytest.raises(ElementError, match="no 'Si'"):
        of(water, r_max=1.5, kind=("Si", "O", "Si"))
    with pytest.raises(ConfigError, match="kind must be three symbols"):
        of(water, r_max=1.5, kind=("H", "O"))
