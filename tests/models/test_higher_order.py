"""The model of higher order: messages against e3nn-jax's products, symmetries, features, files, training, MD."""

import ase.build
import ase.io
import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from frames import silicon_with_oxygen as crystal

import leignn_jax as leignn
from leignn_jax import differentiable, testing
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.graph import Graph
from leignn_jax.models.config import HigherOrderConfig, config_from_dict
from leignn_jax.models.higher_order import coupling, paths
from leignn_jax.pair_ops import pair_sum

pytestmark = pytest.mark.usefixtures("fast_compiles")


def untrained(degree=2, **settings):
    size = {"features": 4, "cutoff": 4.0, "elements": ("Si", "O", "H"), **settings}
    config = leignn.preset("small", variant="higher_order", degree=degree, **size)
    return leignn.Potential.create(config, jax.random.key(0), reference_energies={"Si": -100.0}, scale=0.3)


def test_paths_are_those_that_conserve_parity():
    assert len(paths(1, 1, 1)) == 4
    assert len(paths(2, 2, 2)) == 11
    assert paths(0, 2, 2) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    assert paths(2, 2, 0) == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]


@pytest.mark.parametrize("path", paths(2, 2, 2), ids=str)
def test_messages_are_tensor_products_of_e3nn_jax(path):
    """Over directed edges one by one, with e3nn-jax's own tensor product and a plain sum."""
    l1, l2, l3 = path
    one, two, three = (e3nn.Irrep(degree, (-1) ** degree) for degree in path)
    graph = Graph.from_ase(crystal(), 4.0, np.float64)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        atoms, pairs, *_ = graph.shape
        features, filters = rng.normal(size=(atoms, 3, one.dim)), rng.normal(size=(pairs, 3))
        vectors = np.asarray(graph.vectors())
        directions = -vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        harmonics = e3nn.spherical_harmonics(e3nn.Irreps([(1, two)]), directions, False, "component").array
        sums = pair_sum(
            graph.lists, filters, jnp.swapaxes(features, 1, 2), coupling(l1, l2, l3, harmonics), odd=l2 % 2 == 1
        )
        expected = np.zeros((atoms, 3, three.dim))
        ends = graph.lists.receivers, graph.lists.senders
        for center, other, sign in ((*ends, 1), (*ends[::-1], -1)):
            y = e3nn.spherical_harmonics(e3nn.Irreps([(1, two)]), sign * directions, False, "component")
            x = e3nn.IrrepsArray(3 * e3nn.Irreps([(1, one)]), features[other].reshape(pairs, -1))
            product = e3nn.tensor_product(x, y, filter_ir_out=[three]).array.reshape(pairs, 3, three.dim)
            np.add.at(expected, center, filters[..., None] * np.asarray(product))
    np.testing.assert_allclose(np.swapaxes(sums, 1, 2), expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("degree", [pytest.param(d, marks=() if d == 2 else pytest.mark.slow) for d in range(4)])
def test_every_property(degree):
    deviations = testing.check_all(testing.as_model(untrained(degree)), crystal())
    differences = {"forces", "stress", "cutoff_smoothness"}
    assert max(value for name, value in deviations.items() if name not in differences) < 1e-11
    assert deviations["forces"] < 1e-8


@pytest.mark.slow
def test_molecule_and_lone_atom():
    potential = untrained()
    testing.check_all(testing.as_model(potential), ase.build.molecule("H2O"))
    alone = potential.predict(Atoms("Si"))
    assert np.isfinite(alone.energy)
    assert not alone.forces.any()


@pytest.mark.parametrize("name", ["tensor", "leignn", pytest.param("direct", marks=pytest.mark.slow), "higher_order"])
def test_features_turn_with_the_structure(name):
    if name == "higher_order":
        potential = untrained()
        expected = "4x0e + 4x1o + 4x2e"
    else:
        variant = "leignn" if name == "leignn" else None
        settings = {"elements": ("Si", "O"), "features": 4, "direct_forces": name == "direct"}
        config = leignn.preset("small", variant=variant, **settings)
        potential = leignn.Potential.create(config, jax.random.key(0))
        expected = "4x0e + 4x1o" + ("" if variant else f" + {config.tensor_features}x2e")
    graph = Graph.from_ase(crystal(), potential.cutoff, np.float64)
    with jax.enable_x64(True):
        rotation = np.asarray(-e3nn.rand_matrix(jax.random.key(0), ()), np.float64)  # a reflection too
        turned = graph.replace(positions=graph.positions @ rotation.T, cell=graph.cell @ rotation.T)
        found = jax.jit(potential.features)
        plain, other = found(graph), found(turned)
        assert plain.irreps == expected
        assert plain.shape == (4, plain.irreps.dim)
        assert np.abs(plain.array).max() > 0.1
        np.testing.assert_allclose(other.array, plain.transform_by_matrix(jnp.asarray(rotation)).array, atol=1e-6)


def test_settings_and_their_errors():
    config = leignn.preset("medium", variant="higher_order", elements=("Si",), degree=1)
    assert isinstance(config, HigherOrderConfig)
    assert (config.features, config.layers, config.degree) == (128, 3, 1)
    assert config_from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="degree"):
        leignn.preset("small", variant="higher_order", degree=4)
    with pytest.raises(ConfigError, match="Unknown model setting 'update'"):
        leignn.preset("small", variant="higher_order", update="painn")
    with pytest.raises(ConfigError, match="has no tensors"):
        leignn.preset("published", variant="higher_order")
    with pytest.raises(ConfigError, match="architecture"):
        config_from_dict({**config.to_dict(), "architecture": "other"})


def test_round_trip_of_a_file(tmp_path):
    potential = untrained()
    potential.save(tmp_path / "p.safetensors")
    again = leignn.load_potential(tmp_path / "p.safetensors")
    assert again.config == potential.config
    assert "degree 2" in again.summary()["model"]
    one, two = (p.predict(crystal()) for p in (potential, again))
    assert one.energy == two.energy
    np.testing.assert_array_equal(one.forces, two.forces)


def test_file_of_an_unknown_model(tmp_path, monkeypatch):
    monkeypatch.setattr(HigherOrderConfig, "to_dict", lambda self: {"architecture": ["x"], "elements": ["Si"]})
    untrained().save(tmp_path / "p.safetensors")
    with pytest.raises(FileFormatError, match=r"architecture in its config .* none of leignn, higher_order"):
        leignn.load_potential(tmp_path / "p.safetensors")


def test_one_program_whatever_the_numbers():
    potential = untrained()
    graph = potential.to_graph(crystal())
    count = 0

    @jax.jit
    def energy(potential, graph):
        nonlocal count
        count += 1
        return potential.energy(graph)

    energy(potential, jax.device_put(graph))
    other = untrained().replace(params=jax.tree.map(lambda x: 1.1 * x, potential.params))
    energy(other, jax.device_put(graph.replace(positions=graph.positions + 0.1)))
    assert count == 1


@pytest.mark.slow
def test_trains_by_its_name_in_a_config(tmp_path):
    rng = np.random.default_rng(0)
    model = untrained(degree=1, features=8)
    frames = []
    for _ in range(12):
        atoms = crystal()
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = model.calculator()
        atoms.get_potential_energy()
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.extxyz", frames)
    result = leignn.train(
        {
            "data": {"train": str(tmp_path / "frames.extxyz"), "batch_size": 2, "validation_fraction": 0.25},
            "model": {"preset": "small", "variant": "higher_order", "degree": 1, "features": 8, "cutoff": 4.0},
            "optimizer": {"learning_rate": 5e-3, "warmup_epochs": 0},
            "run": {"epochs": 8, "out": str(tmp_path / "run")},
        },
        progress=False,
    )
    assert result.history[-1]["validation_loss"] < 0.8 * result.history[0]["validation_loss"]
    assert isinstance(result.potential.config, HigherOrderConfig)


@pytest.mark.slow
def test_dynamics_and_gradients_through_them():
    """The same engine and the same rollouts: energy is kept, and the gradient is that of differences."""
    potential = untrained()
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    run = leignn.simulate(
        potential, atoms, "nve", steps=200, timestep=0.5, temperature=300.0, dtype="float64", progress=False
    )
    assert np.ptp(run.thermo["conserved_eV"]) < 1e-2 * np.ptp(run.thermo["kinetic_energy_eV"])
    with jax.enable_x64(True):
        system, state = differentiable.start(potential, atoms, "nve", temperature=300.0, dtype="float64")

        def end(scale):
            model = potential.replace(
                params=jax.tree.map(lambda x: scale * jnp.asarray(x, jnp.float64), potential.params)
            )
            out = differentiable.rollout(model, "nve", system, state, 1.0, 20)
            return (out.state.positions[0] ** 2).sum()

        slope = jax.jit(jax.grad(end))(1.0)
        differences = (end(1 + 1e-4) - end(1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, differences, rtol=1e-5)
