"""Vibrations: frequencies known in closed form, lattice sums, phonopy where it is installed, derivatives, kinks."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixedPlane
from flax import struct

from leignn_jax.errors import ConfigError
from leignn_jax.properties.phonons import (
    Bands,
    crystal_in_supercell,
    force_constants,
    frequencies,
    phonons,
    plot_phonons,
)
from leignn_jax.properties.second_derivatives import INVERSE_CM, TERAHERTZ, signed_root
from leignn_jax.properties.vibrations import normal_modes
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

MODEL = LennardJones(cutoff=6.0)
MASS = Atoms("Ar").get_masses()[0]
WAVES = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 3))


def pair(r, model=MODEL):
    """Energy of a pair and its two derivatives by the distance, by central differences in long doubles."""

    def energy(r):
        x = r / np.longdouble(model.cutoff)
        power = (np.longdouble(model.sigma) / r) ** 6
        envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
        return np.where(x < 1, 4 * np.longdouble(model.epsilon) * (power**2 - power) * envelope, 0)

    r, h = np.asarray(r, np.longdouble), np.longdouble(1e-4)
    first = (energy(r + h) - energy(r - h)) / (2 * h)
    second = (energy(r + h) - 2 * energy(r) + energy(r - h)) / h**2
    return np.asarray(energy(r), float), np.asarray(first, float), np.asarray(second, float)


def bond():
    """Distance where a pair is at rest, and its stiffness."""
    from scipy.optimize import brentq

    r = brentq(lambda r: float(pair(r)[1]), 3.4, 4.2, xtol=1e-12)
    return r, float(pair(r)[2])


def test_units():
    # 1 eV/Å^2 on 1 amu, from CODATA: sqrt(1.602176634 / 1.66053907 1e7) rad/s... over 2 pi; c = 2.99792458e10 cm/s.
    angular = np.sqrt(1.602176634e-19 * 1e20 / 1.66053906660e-27)
    assert pytest.approx(angular / (2 * np.pi) / 1e12, rel=1e-6) == TERAHERTZ
    assert pytest.approx(1e12 / 2.99792458e10) == INVERSE_CM


def test_wells():
    atoms = Atoms("HO", [[0, 0, 0], [3, 0, 0]])
    found = normal_modes(HarmonicWells(2.5, atoms.positions), atoms, rigid=False)
    expected = np.sqrt(2.5 / np.repeat(atoms.get_masses()[::-1], 3)) * TERAHERTZ * INVERSE_CM
    np.testing.assert_allclose(found.frequencies, expected, rtol=1e-9)
    assert found.rigid.size == 0
    # The wells hold the molecule where it is, as they say of themselves.
    np.testing.assert_allclose(normal_modes(HarmonicWells(2.5, atoms.positions), atoms).frequencies, found.frequencies)
    assert np.abs(found.vectors[3:, 1]).max() < 1e-12
    # h nu of 1000 cm^-1 is 0.1239842 eV.
    assert found.zero_point_energy == pytest.approx(expected.sum() / 2 * 1.239841984e-4, rel=1e-6)


def test_molecules_of_pairs():
    r, stiffness = bond()
    unit = TERAHERTZ * INVERSE_CM
    dimer = Atoms("ArHe", [[0, 0, 0], [r / np.sqrt(2), 0, r / np.sqrt(2)]])
    found = normal_modes(MODEL, dimer)
    masses = dimer.get_masses()
    reduced = masses.prod() / masses.sum()
    np.testing.assert_allclose(found.frequencies, [np.sqrt(stiffness / reduced) * unit], rtol=1e-6)
    assert found.rigid.shape == (5,)
    assert np.abs(found.rigid).max() < 0.05
    # Both atoms along the bond, the light one farther.
    np.testing.assert_allclose(found.vectors[0, 0] * masses[0], -found.vectors[0, 1] * masses[1], atol=1e-8)
    # Differences of forces tell the same.
    other = normal_modes(MODEL, dimer, displacement=1e-3)
    np.testing.assert_allclose(other.frequencies, found.frequencies, rtol=1e-4)
    # Beyond the inflection the bond breaks.
    apart = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.6]])
    _, slope, curvature = pair(4.6)
    assert curvature < 0
    (mode,) = normal_modes(MODEL, apart).frequencies
    assert mode == pytest.approx(-np.sqrt(-curvature * 2 / MASS) * unit, rel=1e-6)
    # One atom held: the bond, and across it the two directions of a string under its tension.
    apart.set_constraint(FixAtoms([0]))
    found = normal_modes(MODEL, apart)
    across = np.sqrt(slope / 4.6 / MASS) * unit
    np.testing.assert_allclose(found.frequencies, [-np.sqrt(-curvature / MASS) * unit, across, across], rtol=1e-6)
    assert not found.vectors[:, 0].any()


def test_a_triangle():
    r, stiffness = bond()
    atoms = Atoms("Ar3", [[0, 0, 0], [r, 0, 0], [r / 2, r * np.sqrt(3) / 2, 0]])
    found = normal_modes(MODEL, atoms)
    expected = np.sqrt(np.array([1.5, 1.5, 3]) * stiffness / MASS) * TERAHERTZ * INVERSE_CM
    np.testing.assert_allclose(found.frequencies, expected, rtol=1e-6)
    assert found.rigid.shape == (6,)


def test_a_straight_molecule_need_not_be_quite_straight():
    """As a relaxation leaves it: bent by 5e-3 Å it has both of its bending modes."""
    r, _ = bond()
    atoms = Atoms("Ar3", [[0, 0, -r], [0.005, 0, 0], [0, 0, r]])
    found = normal_modes(MODEL, atoms)
    assert (found.frequencies.shape, found.rigid.shape) == ((4,), (5,))
    atoms.positions[1, 0] = 0.2
    assert normal_modes(MODEL, atoms).rigid.shape == (6,)


def lattice_sum(atoms, q):
    """Frequencies of one atom per cell by direct sum over pairs: no supercell, no images."""
    indices = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vectors = indices[(indices != 0).any(1)] @ atoms.cell.array
    r = np.linalg.norm(vectors, axis=1)
    vectors, r = vectors[r < MODEL.cutoff], r[r < MODEL.cutoff]
    _, slope, curvature = pair(r)
    unit = vectors / r[:, None]
    along = unit[:, :, None] * unit[:, None, :]
    springs = curvature[:, None, None] * along + (slope / r)[:, None, None] * (np.eye(3) - along)
    phase = 1 - np.cos(vectors @ (2 * np.pi * np.asarray(atoms.cell.reciprocal()).T @ q))
    squares = np.linalg.eigvalsh((springs * phase[:, None, None]).sum(0) / atoms.get_masses()[0])
    return np.sign(squares) * np.sqrt(np.abs(squares)) * TERAHERTZ


@pytest.fixture(scope="module")
def fcc():
    """A crystal whose supercell is more than twice the cutoff high: no two images of an atom act on one."""
    return phonons(MODEL, bulk("Ar", a=5.3), supercell=4)


def test_phonons_are_those_of_a_lattice_sum(fcc):
    expected = np.array([lattice_sum(fcc.atoms, q) for q in WAVES])
    np.testing.assert_allclose(fcc.frequencies(WAVES), expected, atol=1e-6)
    np.testing.assert_allclose(fcc.frequencies(-WAVES), expected, atol=1e-6)
    np.testing.assert_allclose(fcc.frequencies(WAVES + np.array([1, -2, 0])), expected, atol=1e-6)
    np.testing.assert_allclose(fcc.frequencies([0, 0, 0]), 0, atol=1e-4)
    assert fcc.frequencies(WAVES.reshape(3, 4, 3)).shape == (3, 4, 3)


def test_a_small_supercell_is_exact_where_the_wave_fits():
    small = phonons(MODEL, bulk("Ar", a=5.3), supercell=(2, 2, 1))
    for q in ([0.5, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0]):
        np.testing.assert_allclose(small.frequencies(q), lattice_sum(small.atoms, np.array(q)), atol=1e-6)


def test_a_chain_of_two_masses():
    r, k = bond()
    far = 20.0
    chain = Atoms("ArHe", [[0, 0, 0], [r, 0, 0]], cell=[2 * r, far, far], pbc=True)
    found = phonons(MODEL, chain, supercell=(3, 1, 1))
    m1, m2 = chain.get_masses()
    _, _, second = pair(2 * r)  # next neighbours are out of reach: nothing else acts
    assert second == 0
    q = np.linspace(-0.5, 0.5, 7)
    along = found.frequencies(np.stack([q, 0 * q, 0 * q], 1))
    mean = k * (1 / m1 + 1 / m2)
    split = np.sqrt(mean**2 - 4 * k**2 / (m1 * m2) * np.sin(np.pi * q) ** 2)
    optical, acoustic = np.sqrt(mean + split) * TERAHERTZ, np.sqrt(mean - split) * TERAHERTZ
    np.testing.assert_allclose(along[:, -1], optical, rtol=1e-5)
    np.testing.assert_allclose(along[:, -2], acoustic, atol=1e-3)
    # Across the chain nothing holds the atoms.
    np.testing.assert_allclose(along[:, :4], 0, atol=1e-3)


def test_bands_and_states(fcc):
    bands = fcc.band_structure("GXL", points=11)
    assert isinstance(bands, Bands)
    assert bands.frequencies.shape == (11, 3)
    assert bands.labels == ["G", "X", "L"]
    np.testing.assert_allclose(bands.frequencies[-1], fcc.frequencies([0.5, 0.5, 0.5]), atol=1e-9)
    density = fcc.density_of_states((6, 6, 6), width=0.05)
    assert np.trapezoid(density.density, density.frequency) == pytest.approx(3, abs=0.01)
    # The second moment of the density is the trace of the force constants between an atom and itself.
    own = np.trace(fcc.force_constants[0, :, 0]) / MASS * TERAHERTZ**2
    moment = np.trapezoid(density.density * density.frequency**2, density.frequency) - 3 * 0.05**2
    assert moment == pytest.approx(own, rel=5e-3)
    figure = plot_phonons(bands, density)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["Γ", "X", "L"]
    assert "THz" in figure.axes[0].get_ylabel()
    # No grid has the centre, whose three motions cost nothing.
    one = fcc.density_of_states((1, 1, 1), width=0.01)
    assert one.frequency.min() > 0.5
    with pytest.raises(ConfigError, match="width"):
        fcc.density_of_states(width=0.0)
    with pytest.raises(ConfigError, match=r"face-centred cubic.*no point 'Z'; it has G, K"):
        fcc.band_structure("GZ")


def test_phonopy_agrees(fcc):
    pytest.importorskip("phonopy")
    other = fcc.to_phonopy()
    other.run_qpoints(WAVES)
    np.testing.assert_allclose(np.asarray(other.qpoints.frequencies), fcc.frequencies(WAVES), atol=1e-4)


def test_frequencies_can_be_differentiated_by_the_model():
    with jax.enable_x64(True):
        crystal, _ = crystal_in_supercell(MODEL, bulk("Ar", a=5.3), 2)
        # X and L, where two of three modes are degenerate: their sum has a derivative.
        q = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0.5]]) @ (2 * np.pi * np.asarray(bulk("Ar", a=5.3).cell.reciprocal()))

        def total(model):
            return frequencies(crystal, force_constants(model, crystal), q).sum()

        value, gradient = jax.jit(jax.value_and_grad(total))(MODEL)
    # Every frequency grows as the root of epsilon.
    assert float(value) > 1
    assert float(gradient.epsilon) == pytest.approx(float(value) / (2 * MODEL.epsilon), rel=1e-9)


@struct.dataclass
class Cones:
    """The tip of a rounded cone under every atom."""

    centers: Any
    steep: Any = 1.0
    cutoff: float = struct.field(pytree_node=False, default=1.0)

    def compute(self, graph):
        away = graph.positions - self.centers
        length = jnp.sqrt((away**2).sum(-1, keepdims=True) + 1e-8)
        wells = HarmonicWells(1.0, self.centers).compute(graph)
        return wells._replace(forces=jnp.where(self.steep > 0, -away / length, -away))


def test_a_kink_is_named(caplog):
    atoms = Atoms("H2", [[0, 0, 0], [3, 0, 0]])
    with caplog.at_level(logging.WARNING, "leignn_jax"):
        steep = normal_modes(Cones(atoms.positions), atoms, rigid=False)
    assert "kink" in caplog.text
    unit = TERAHERTZ * INVERSE_CM / np.sqrt(atoms.get_masses()[0])
    np.testing.assert_allclose(steep.frequencies, 100 * unit, rtol=1e-6)
    caplog.clear()
    wide = normal_modes(Cones(atoms.positions), atoms, rigid=False, displacement=0.05)
    np.testing.assert_allclose(wide.frequencies, unit / np.sqrt(0.05), rtol=1e-4)
    assert not caplog.text
    mixed = Atoms("OH", [[0, 0, 0], [3, 0, 0]])
    normal_modes(Cones(mixed.positions, jnp.asarray([[0.0], [1.0]])), mixed, rigid=False)
    assert "kink here: atom 1" in caplog.text


def test_what_has_no_phonons():
    with pytest.raises(ConfigError, match="periodic"):
        phonons(MODEL, Atoms("Ar"))
    held = bulk("Ar", a=5.3)
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="constraints"):
        phonons(MODEL, held)
    with pytest.raises(ConfigError, match="conserves_momentum"):
        phonons(HarmonicWells(1.0, np.zeros((1, 3))), bulk("Ar", a=5.3))
    with pytest.raises(ConfigError, match="supercell"):
        phonons(MODEL, bulk("Ar", a=5.3), supercell=(2, 0, 1))
    with pytest.raises(ConfigError, match="dtype"):
        phonons(MODEL, bulk("Ar", a=5.3), dtype="half")
    pair_held = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]], constraint=FixAtoms([0, 1]))
    with pytest.raises(ConfigError, match="held"):
        normal_modes(MODEL, pair_held)
    pair_held.set_constraint(FixedPlane(0, (0, 1, 1)))
    with pytest.raises(ConfigError, match="FixedPlane"):
        normal_modes(MODEL, pair_held)


def test_what_is_no_number_has_no_frequency():
    np.testing.assert_array_equal(signed_root(jnp.array([-4.0, 0.0, 9.0, jnp.nan])), [-2.0, 0.0, 3.0, np.nan])
    slopes = jax.vmap(jax.grad(signed_root))(jnp.array([-4.0, 0.0, 9.0, jnp.nan]))
    np.testing.assert_allclose(slopes, [0.25, 0.0, 1 / 6, np.nan], rtol=1e-6)


@pytest.mark.parametrize("mass", [0.0, -39.9, np.nan])
def test_a_mass_that_is_none(mass):
    atoms = bulk("Ar", a=5.3, cubic=True)
    masses = atoms.get_masses()
    masses[1] = mass
    atoms.set_masses(masses)
    for compute in (normal_modes, phonons):
        with pytest.raises(ConfigError, match="Atom 1 has the mass"):
            compute(MODEL, atoms)


def test_wave_vectors_and_grids_that_are_none(fcc):
    found = phonons(MODEL, fcc.atoms, supercell=jnp.asarray(2))
    assert found.supercell == (2, 2, 2)
    for q in ((0, 0), "G", [], (np.nan, 0, 0), [[0, 0], [0, 0, 0]]):
        with pytest.raises(ConfigError, match="q must"):
            found.frequencies(q)
    for grid in ((3, 3), (2, 2, 2, 3), (2, 2, 0), "x", 1.5):
        with pytest.raises(ConfigError, match="grid"):
            found.density_of_states(grid)
    np.testing.assert_array_equal(found.density_of_states(2).density, found.density_of_states((2, 2, 2)).density)
    for path, points in (("", 20), (3, 20), (None, 1.5), (None, 1)):
        with pytest.raises(ConfigError, match=r"path|points"):
            found.band_structure(path, points)
