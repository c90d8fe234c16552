"""Settings, radial functions, initialisation, symmetries of the whole network in float32, and its size."""

import itertools

import ase.build
import e3nn_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.models.radial import bessel_basis, envelope, radial_basis
from leignn_jax.models.repulsion import seen_share, wall_energy, zbl_energy

pytestmark = pytest.mark.usefixtures("fast_compiles")


def structure(name):
    if name == "silicon":
        atoms = ase.build.bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=0)
        return atoms, ("Si",)
    return ase.build.molecule("CH3CH2OH"), ("H", "C", "O")


def test_unknown_settings_have_a_suggestion():
    with pytest.raises(ConfigError, match=r"'feature': did you mean 'features'"):
        leignn.preset("medium", feature=64)
    with pytest.raises(ConfigError, match="did you mean 'medium'"):
        leignn.preset("mediun")
    with pytest.raises(ConfigError, match="did you mean 'bessel'"):
        leignn.preset("small", radial_basis="besel")
    with pytest.raises(ConfigError, match="vanilla"):
        leignn.preset("small", variant="painn")
    with pytest.raises(ConfigError, match="variant"):
        leignn.preset("small", variant="")


def test_presets_have_tensors_and_the_published_model_has_none():
    size = leignn.preset("small", features=10)
    assert (size.tensor_features, size.global_nodes) == (5, False)
    assert leignn.preset("small", tensor_features=3).tensor_features == 3
    for config in (leignn.preset("published"), leignn.preset("small", variant="leignn")):
        assert (config.tensor_features, config.global_nodes) == (0, True)
    with pytest.raises(ConfigError, match="no tensors"):
        leignn.preset("published", variant="tensor")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cutoff", 0.0), ("cutoff", -1), ("cutoff", float("nan")), ("features", 7), ("features", 0), ("layers", 0),
     ("num_radial", 1), ("elements", ("si",)), ("elements", ("Si", "Si")), ("layers", True), ("layers", 2.0)],
)  # fmt: skip
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=setting):
        leignn.preset("small", **{setting: value})


def test_config_survives_json():
    config = leignn.preset("large", elements=("Li", "P", "S"), cutoff=6)
    assert leignn.LEIGNNConfig.from_dict(config.to_dict()) == config


def test_bessel_functions_are_e3nn_jax_ones():
    t = np.linspace(0.01, 1, 50)
    with jax.enable_x64(True):
        np.testing.assert_allclose(bessel_basis(t, 8), e3nn_jax.bessel(t, 8), rtol=1e-12, atol=1e-12)


def test_bernstein_polynomials_sum_to_one():
    t = np.linspace(0.02, 0.98, 40)
    with jax.enable_x64(True):
        np.testing.assert_allclose(np.asarray(radial_basis(t, "bernstein", 12)).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("name", ["polynomial", "exponential"])
def test_envelopes_end_smoothly(name):
    with jax.enable_x64(True):
        functions = [lambda t: envelope(t, name)]
        for _ in range(2):
            functions.append(jax.grad(functions[-1]))
        assert float(functions[0](jnp.array(1e-9))) == pytest.approx(1.0)
        for function in functions:
            assert abs(float(function(jnp.array(1 - 1e-7)))) < 1e-4
            assert float(function(jnp.array(1.0))) == float(function(jnp.array(1.5))) == 0.0


def test_polynomial_envelope_is_e3nn_jax_one():
    t = np.linspace(0.0, 1.2, 50)
    with jax.enable_x64(True):
        np.testing.assert_allclose(envelope(t, "polynomial", 5), e3nn_jax.poly_envelope(4, 2)(t), atol=1e-10)


def test_zbl_of_two_silicon_nuclei():
    # At 0.1 Å: 14.3996 * 14^2 / 0.1 times the universal screening at x = 0.1 / (0.8854 * 0.529177 / (2 * 14^0.23)).
    x = 0.1 * 2 * 14**0.23 / (0.8854 * 0.529177210903)
    screening = sum(
        a * np.exp(-b * x) for a, b in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    distances = jnp.array([0.1, 2.22, 3.0])
    energy = zbl_energy(distances, jnp.full(3, 14), jnp.full(3, 14))
    assert float(energy[0]) == pytest.approx(14.3996 * 196 / 0.1 * screening, rel=1e-3)
    assert float(energy[1]) == float(energy[2]) == 0.0


def test_a_wall_begins_smoothly_where_data_end(x64):
    begins = 1.3

    def energy(distance, begins=begins):
        return wall_energy(distance[None], jnp.array([begins]))[0]

    slope, bend = jax.grad(energy), jax.grad(jax.grad(energy))
    for f in (energy, slope, bend):
        assert float(f(jnp.array(begins + 1e-9))) == 0.0
        assert abs(float(f(jnp.array(begins - 1e-9)))) < 1e-5
    assert float(energy(jnp.array(0.9 * begins))) == pytest.approx(1.0)
    assert float(slope(jnp.array(0.9 * begins))) == pytest.approx(-3 / (0.1 * begins))
    # No wall, no number that isn't one.
    assert float(energy(jnp.array(0.1), 0.0)) == float(jax.grad(energy)(jnp.array(0.1), 0.0)) == 0.0


def test_what_is_seen_beyond_a_wall(x64):
    """All of the distance down to the wall, smoothly; never less than nine tenths of where it begins."""
    begins = jnp.array([1.3])

    def seen(distance):
        return distance * seen_share(distance[None], begins)[0]

    slope, bend = jax.grad(seen), jax.grad(jax.grad(seen))
    for distance in (1.3, 1.30001, 4.0):
        assert float(seen_share(jnp.array([distance]), begins)[0]) == 1.0
    near = jnp.array(1.3 - 1e-5)
    assert float(seen(near)) == pytest.approx(1.3 - 1e-5, abs=1e-12)
    assert float(slope(near)) == pytest.approx(1.0, abs=1e-8)
    assert abs(float(bend(near))) < 1e-4
    ways = jax.vmap(seen)(jnp.linspace(0.01, 1.3, 50))
    assert (jnp.diff(ways) > 0).all()
    assert 0.9 * 1.3 < float(ways[0]) < 0.9 * 1.3 + 1e-3
    # No wall.
    assert float(seen_share(jnp.array([0.01]), jnp.array([0.0]))[0]) == 1.0


def mostly_slow(cases, quick):
    """All cases, those that are not in ``quick`` behind the slow mark."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "basis"),
    mostly_slow(itertools.product([32, 256], ["bessel", "gaussian", "bernstein"]), {(32, "gaussian"), (256, "bessel")}),
)
def test_training_starts_at_the_scale_of_the_data(features, basis):
    """Forces of an untrained network are not beyond the data's, narrow or wide, for each basis."""
    for name in ("silicon", "ethanol"):
        atoms, elements = structure(name)
        config = leignn.preset("medium", elements=elements, features=features, radial_basis=basis, repulsion=False)
        forces = leignn.Potential.create(config, jax.random.key(0)).predict(atoms).forces
        assert 1e-3 < np.sqrt((forces**2).mean()) < 2.0, name


@pytest.mark.parametrize(
    ("variant", "name"),
    mostly_slow(
        itertools.product(["leignn", "vanilla_nmu", "vanilla"], ["silicon", "ethanol"]),
        {("leignn", "silicon")},
    ),
)
def test_float32_is_equivariant_under_100_rotations_and_reflections(variant, name):
    """Relative to the largest component. Silicon is distorted: near a lattice site forces are what is left of larger
    ones that cancel, and the rounding of the rotated positions themselves would be measured (2e-5 there)."""
    atoms, elements = structure(name)
    if name == "silicon":
        atoms.rattle(0.3, seed=1)
    config = leignn.preset("medium", variant=variant, elements=elements, direct_forces=True)
    potential = leignn.Potential.create(config, jax.random.key(0))
    graph = potential.to_graph(atoms)
    rotations = np.array(e3nn_jax.rand_matrix(jax.random.key(1), (100,)), np.float64)
    rotations = np.linalg.svd(rotations)[0] @ np.linalg.svd(rotations)[2]  # orthogonal in float64
    rotations[::2] *= -1
    positions = jnp.asarray(atoms.positions @ rotations.transpose(0, 2, 1), jnp.float32)
    cells = jnp.asarray(np.asarray(atoms.cell) @ rotations.transpose(0, 2, 1), jnp.float32)

    @jax.jit
    def rotated(inputs):
        return potential.compute(graph.replace(positions=inputs[0], cell=inputs[1][None]))

    one = jax.device_get(rotated((graph.positions, graph.cell[0])))
    many = jax.device_get(jax.lax.map(rotated, (positions, cells), batch_size=10))

    def deviation(turned, reference):
        return np.abs(turned - reference).max() / np.abs(reference).max()

    assert deviation(many.energy, one.energy) < 1e-5
    assert deviation(many.forces @ rotations, one.forces) < 1e-5
    assert deviation(many.direct_forces @ rotations, one.direct_forces) < 1e-5
    if name == "silicon":
        back = rotations.transpose(0, 2, 1) @ many.stress[:, 0] @ rotations
        assert deviation(back, one.stress[0]) < 1e-5


@pytest.mark.parametrize("repeat", [pytest.param((2, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_supercells_are_exact_multiples_with_global_nodes(repeat):
    atoms, elements = structure("silicon")
    potential = leignn.Potential.create(leignn.preset("small", elements=elements), jax.random.key(0))
    one, many = (potential.predict(a, dtype="float64") for a in (atoms, atoms * repeat))
    copies = int(np.prod(repeat))
    assert many.energy == pytest.approx(copies * one.energy, rel=1e-12)
    np.testing.assert_allclose(many.forces, np.tile(one.forces, (copies, 1)), atol=1e-12)
    np.testing.assert_allclose(many.stress, one.stress, atol=1e-13)
    assert np.abs(many.forces.sum(0)).max() < 1e-12


def test_one_program_serves_one_shape():
    atoms, elements = structure("ethanol")
    potential = leignn.Potential.create(leignn.preset("small", elements=elements, features=8), jax.random.key(0))
    traced = []

    @jax.jit
    def energy(potential, graph):
        traced.append(graph.shape)
        return potential.energy(graph)

    for seed in range(4):
        moved = atoms.copy()
        moved.rattle(0.05, seed=seed)
        energy(potential.replace(scale=np.asarray(1.0 + seed)), potential.to_graph(moved).pad_to_bucket())
    assert len(traced) == 1


@pytest.mark.slow
def test_rematerialisation_changes_no_number():
    atoms, elements = structure("ethanol")
    config = leignn.preset("small", elements=elements, features=16)
    plain = leignn.Potential.create(config, jax.random.key(0))
    remat = plain.replace(config=leignn.LEIGNNConfig.from_dict({**config.to_dict(), "remat": True}))
    graph = plain.to_graph(atoms)

    def loss(potential):
        return (potential.energy_and_forces(graph)[1] ** 2).sum()

    for a, b in zip(*(jax.tree.leaves(jax.jit(jax.grad(loss))(p)) for p in (plain, remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
