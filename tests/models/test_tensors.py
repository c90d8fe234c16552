"""Traceless symmetric tensors: their basis, their product with a vector, and a LEIGNN that sums them."""

import ase.build
import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frames import silicon_with_oxygen as crystal

import leignn_jax as leignn
from leignn_jax import testing
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.models import layers
from leignn_jax.models.tensors import BASIS, contracted, outer, quadrupoles

pytestmark = pytest.mark.usefixtures("fast_compiles")


def untrained(**settings):
    size = {"features": 8, "cutoff": 4.0, "elements": ("Si", "O", "H"), "tensor_features": 6, **settings}
    return leignn.Potential.create(leignn.preset("small", **size), jax.random.key(0), scale=0.3)


def test_the_basis_is_orthonormal_symmetric_and_traceless():
    np.testing.assert_allclose(np.einsum("mij,nji->mn", BASIS, BASIS), np.eye(5), atol=1e-15)
    np.testing.assert_array_equal(BASIS, BASIS.transpose(0, 2, 1))
    np.testing.assert_allclose(np.trace(BASIS, axis1=1, axis2=2), 0, atol=1e-15)


def test_quadrupoles_are_components_of_u_u_minus_a_third():
    u = np.random.default_rng(0).normal(size=(20, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    with jax.enable_x64(True):
        found = np.asarray(quadrupoles(jnp.asarray(u)))
    np.testing.assert_allclose((found**2).sum(1), 1.0, rtol=1e-14)
    matrices = np.einsum("pm,mij->pij", found, BASIS)
    np.testing.assert_allclose(matrices, np.sqrt(1.5) * (u[:, :, None] * u[:, None] - np.eye(3) / 3), atol=1e-14)


def test_quadrupoles_are_e3nns_spherical_harmonics():
    u = np.random.default_rng(0).normal(size=(20, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    with jax.enable_x64(True):
        found = quadrupoles(jnp.asarray(u))
        expected = e3nn.spherical_harmonics("2e", jnp.asarray(u), normalize=False, normalization="norm").array
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_contraction_is_the_product_of_matrix_and_vector():
    rng = np.random.default_rng(0)
    tensors, vectors = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 3, 3))
    with jax.enable_x64(True):
        found = contracted(jnp.asarray(tensors), jnp.asarray(vectors))
    np.testing.assert_allclose(found, np.einsum("amf,mij,ajf->aif", tensors, BASIS, vectors), rtol=1e-12)


def test_the_outer_product_is_symmetric_and_traceless():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 3, 6))
    with jax.enable_x64(True):
        found = outer(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, np.einsum("aif,ajf,mij->amf", a, b, BASIS), atol=1e-14)


def test_what_is_large_grows_as_its_square_at_most():
    """Products of the fifth degree in each layer made -18 keV of a bond that was compressed by a third."""
    update = layers.LocalUpdate("gated")
    rng = np.random.default_rng(0)
    one = [jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32) for shape in ((8,), (3, 8), (5, 6))]
    variables = update.init(jax.random.key(0), *one, last=False)

    def made(scale):
        return update.apply(variables, *[scale * x for x in one], last=False)

    for far, near in zip(made(1e5), made(1e4), strict=True):
        assert jnp.abs(far).max() < 101 * jnp.abs(near).max()


def test_bounded_vectors():
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3, 4)) * np.geomspace(1e-3, 1e6, 20)[:, None, None])
    length = jnp.linalg.norm(layers.bounded(vectors), axis=1)
    assert (length < 1 + 1e-6).all()
    np.testing.assert_allclose(length[0], jnp.linalg.norm(vectors[0], axis=0), rtol=1e-4)
    slope = jax.grad(lambda v: layers.bounded(v)[0, 0, 0])(jnp.zeros((1, 3, 1)))
    np.testing.assert_array_equal(slope[0, :, 0], [1, 0, 0])


# Of the default, with tensors, tests/test_testing.py.
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"update": "painn"}, {"direct_forces": True, "layers": 1}], ids=str)
def test_every_property(settings):
    deviations = testing.check_all(testing.as_model(untrained(**settings)), crystal())
    differences = {"forces", "stress", "cutoff_smoothness"}
    assert max(value for name, value in deviations.items() if name not in differences) < 1e-11
    assert deviations["forces"] < 1e-8


def test_it_tells_what_scalars_and_vectors_of_one_layer_can_not():
    """A square of neighbours from a tetrahedron: as many at the same distance, and no dipole either way."""
    square = ase.Atoms("SiHHHH", [[0, 0, 0], [2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0]])
    corners = 2 / np.sqrt(3) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    tetrahedron = ase.Atoms("SiHHHH", [[0, 0, 0], *corners])

    def of_centre(potential):
        def energy(atoms):
            graph = Graph.from_ase(atoms, 3.0, np.float64)
            # Only pairs with the centre, so that hydrogen atoms do not see each other.
            with_centre = (np.asarray(graph.lists.receivers) == 0) | (np.asarray(graph.lists.senders) == 0)
            signs = graph.lists.neighbor_signs * with_centre[graph.lists.neighbor_pairs]
            graph = graph.replace(pair_mask=with_centre, lists=graph.lists.replace(neighbor_signs=signs))
            with jax.enable_x64(True):
                return float(potential.atomic_energies(graph)[0])

        return energy(square), energy(tetrahedron)

    settings = {"layers": 1, "cutoff": 3.0, "global_nodes": False, "repulsion": False}
    one, two = of_centre(untrained(tensor_features=0, **settings))
    assert one == pytest.approx(two, abs=1e-12)
    one, two = of_centre(untrained(**settings))
    assert abs(one - two) > 1e-3


def test_sums_by_element_are_the_sums_over_pairs(monkeypatch):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    potential = untrained(elements=("Si",), layers=1)
    by_element = potential.predict(atoms, dtype="float64")
    monkeypatch.setattr(layers, "_element_sums", None)
    jax.clear_caches()
    monkeypatch.setattr(layers, "_NEIGHBORS_PER_ELEMENT", np.inf)
    by_pair = potential.predict(atoms, dtype="float64")
    np.testing.assert_allclose(by_element.forces, by_pair.forces, atol=1e-12)


def test_width_out_of_range():
    with pytest.raises(ConfigError, match="tensor_features"):
        untrained(tensor_features=-1)
