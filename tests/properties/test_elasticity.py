"""Elastic constants: against strained and relaxed structures, the volume curve, Cauchy's relation; moduli by formula."""

from types import SimpleNamespace

import ase.units
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from frames import copper
from scipy.optimize import minimize_scalar

from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.properties import elasticity
from leignn_jax.properties.elasticity import elastic_constants, elastic_tensor, moduli
from leignn_jax.properties.relax import relax
from leignn_jax.simulation.simple_models import LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

MODEL = LennardJones(cutoff=6.0)


def energy(a):
    """Energy of one atom of the fcc crystal, eV."""
    graph = Graph.from_ase(bulk("Ar", a=a), MODEL.cutoff, np.float64).pad(pairs=60, neighbors=120)
    with jax.enable_x64(True):
        return float(_energy(graph))


@jax.jit
def _energy(graph):
    return MODEL.compute(graph).energy[0]


@pytest.fixture(scope="module")
def fcc():
    a = minimize_scalar(energy, bounds=(5.0, 5.6), options={"xatol": 1e-9}).x
    atoms = bulk("Ar", a=a)
    return atoms, elastic_constants(MODEL, atoms)


def test_a_cubic_crystal_of_pairs(fcc):
    atoms, found = fcc
    c = found.constants
    cubic = np.diag([c[0, 0]] * 3 + [c[3, 3]] * 3)
    cubic[:3, :3] += c[0, 1] * (1 - np.eye(3))
    np.testing.assert_allclose(c, cubic, atol=1e-6)
    # Pairs at centres of symmetry, no pressure: Cauchy's relation; nothing for the atoms to give back.
    assert c[3, 3] == pytest.approx(c[0, 1], rel=1e-5)
    np.testing.assert_allclose(found.clamped, c, atol=1e-6)
    assert found.stable
    assert np.abs(found.stress).max() < 1e-4
    # The bulk modulus is the curvature of energy by volume.
    volume, step = atoms.get_volume(), 0.01
    sizes = (4 * np.array([volume - step, volume, volume + step])) ** (1 / 3)
    low, middle, high = (energy(a) for a in sizes)
    curvature = (low - 2 * middle + high) / step**2
    assert found.moduli.bulk == pytest.approx(volume * curvature / ase.units.GPa, rel=1e-4)


def test_atoms_that_give_way_soften_the_crystal():
    # The middle one of three layers, pushed aside, slides under shear.
    rng = np.random.default_rng(1)
    start = bulk("Ar", "hcp", a=3.75, c=6.1)
    start.set_cell(start.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms = relax(MODEL, start, cell="full", max_force=1e-6, max_stress=1e-6, steps=2000).atoms
    found = elastic_constants(MODEL, atoms)
    strained = elastic_constants(MODEL, atoms, strain=1e-3)
    np.testing.assert_allclose(found.clamped, strained.clamped, atol=2e-3)
    np.testing.assert_allclose(found.constants, strained.constants, atol=2e-3)
    # The correction is there, and it only ever softens.
    lost = found.clamped - found.constants
    assert np.linalg.eigvalsh(0.5 * (lost + lost.T)).max() > 0.05
    assert np.linalg.eigvalsh(0.5 * (lost + lost.T)).min() > -1e-6
    np.testing.assert_allclose(found.constants, found.constants.T, atol=1e-5)


def test_constants_can_be_differentiated_by_the_model(fcc):
    graph = Graph.from_ase(fcc[0], MODEL.cutoff, np.float64)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda m: elastic_tensor(m, graph)[0, 0]))(MODEL.replace(epsilon=0.02))
    # Every constant is proportional to epsilon, and those of the fixture were for 0.0104.
    assert float(gradient.epsilon) == pytest.approx(fcc[1].constants[0, 0] / 0.0104, rel=1e-6)


def test_moduli_of_an_isotropic_body_and_bounds_of_a_cubic_one():
    bulk_modulus, shear = 100.0, 40.0
    lame = bulk_modulus - 2 * shear / 3
    c = np.diag([2 * shear] * 3 + [shear] * 3)
    c[:3, :3] += lame
    m = moduli(c)
    np.testing.assert_allclose(m[:6], [100, 100, 100, 40, 40, 40])
    assert m.young == pytest.approx(9 * 100 * 40 / 340)
    assert m.poisson == pytest.approx((300 - 80) / (2 * 340))
    # Silicon's measured constants: G_V = (C11 - C12 + 3 C44) / 5, G_R = 5 (C11 - C12) C44 / (4 C44 + 3 (C11 - C12)).
    c = np.diag([166.0 - 64.0] * 3 + [80.0] * 3)
    c[:3, :3] += 64.0
    m = moduli(c)
    assert m.bulk == pytest.approx((166 + 128) / 3)
    assert m.shear_voigt == pytest.approx((102 + 240) / 5)
    assert m.shear_reuss == pytest.approx(5 * 102 * 80 / (320 + 306))
    with pytest.raises(ConfigError, match="inverted"):
        moduli(np.zeros((6, 6)))


def test_what_has_no_elastic_constants(fcc, caplog):
    with pytest.raises(ConfigError, match="periodic"):
        elastic_constants(MODEL, Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]]))
    held = fcc[0].copy()
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="held"):
        elastic_constants(MODEL, held)
    with pytest.raises(ConfigError, match="strain"):
        elastic_constants(MODEL, fcc[0], strain=0.5)
    with pytest.raises(ConfigError, match="dtype"):
        elastic_constants(MODEL, fcc[0], dtype="float16")
    pressed = fcc[0].copy()
    pressed.set_cell(pressed.cell.array * 0.92, scale_atoms=True)
    found = elastic_constants(MODEL, pressed)
    assert "not relaxed" in caplog.text
    assert found.stress[0] < -0.5


def test_ctrl_c_leaves_no_numbers_of_structures_half_relaxed(monkeypatch):
    still = copper(1)
    answers = iter([SimpleNamespace(signal=[None], atoms=still), SimpleNamespace(signal=["SIGINT"], atoms=still)])
    monkeypatch.setattr(elasticity, "relax", lambda *_, **__: next(answers))
    with pytest.raises(KeyboardInterrupt):
        elastic_constants(MODEL, bulk("Ar", a=5.3), strain=0.01)


@pytest.mark.parametrize("constants", [np.eye(3), np.full((6, 6), np.nan)])
def test_moduli_need_six_by_six_numbers(constants):
    with pytest.raises(ConfigError, match="constants"):
        moduli(constants)
