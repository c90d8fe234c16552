"""The heat flux against its definition: time derivatives, images, supercells, pairs, and models of several layers."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units

import leignn_jax as leignn
from leignn_jax.analysis import green_kubo_conductivity, heat_flux
from leignn_jax.analysis.heat_current import flux, unfold
from leignn_jax.errors import ConfigError, DataError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.simulation.simple_models import IdealGas, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")

PAIRS = LennardJones(cutoff=5.0)


def network(layers, factor=1.0, **other):
    config = leignn.preset(
        "small",
        elements=("Ar",),
        features=6,
        layers=layers,
        num_radial=4,
        cutoff=4.2,
        **{"global_nodes": False, **other},
    )
    potential = leignn.Potential.create(config, jax.random.key(3), scale=0.3, reference_energies={"Ar": 5.0})
    return potential.replace(params=jax.tree.map(lambda x: factor * x, potential.params))


@pytest.fixture(scope="module")
def crystal():
    """A rattled, sheared cell smaller than the range of any model here, and velocities in Å/fs."""
    atoms = ase.build.bulk("Ar", a=5.3, cubic=True)
    atoms.set_cell(atoms.cell.array + np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]]), scale_atoms=True)
    atoms.rattle(0.2, seed=0)
    return atoms, np.random.default_rng(0).normal(size=(4, 3)) * 0.003


@pytest.fixture(scope="module")
def two_layers():
    """With larger weights than at the start of a training, where later layers hardly count."""
    return network(2, 2.0)


def of(model, atoms, velocities, **options):
    """The only frame's flux."""
    r, v = atoms.positions[None], np.asarray(velocities)[None]
    found = heat_flux(model, r, v, atoms.numbers, atoms.cell.array, atoms.pbc, dtype="float64", **options)
    return type(found)(*(x[0] for x in found))


def pair_partial_forces(model, atoms, velocities):
    """Potential part as the stress is made: each pair's partial force on the mean velocity of both ends, times the pair."""
    with jax.enable_x64(True):
        graph = Graph.from_ase(atoms, model.cutoff, np.float64)
        vectors = graph.vectors()

        def energy(vectors):
            if isinstance(model, LennardJones):
                return _pair_energy(model, vectors)
            return model._network(graph, vectors)[0].sum()

        partial = np.asarray(jax.grad(energy)(vectors))
    v = velocities[graph.lists.receivers] + velocities[graph.lists.senders]
    return -(0.5 * (partial * v).sum(1)[:, None] * np.asarray(vectors)).sum(0)


def _pair_energy(model, vectors):
    d = jnp.sqrt((vectors**2).sum(1))
    power = (model.sigma / d) ** 6
    envelope = leignn.models.radial.polynomial_envelope(d / model.cutoff, 6)
    return (4 * model.epsilon * (power**2 - power) * envelope).sum()


@pytest.mark.slow
def test_of_a_cluster_it_is_the_rate_of_the_first_moment_of_energy():
    model, rng = network(3), np.random.default_rng(1)
    atoms = ase.Atoms("Ar9", rng.permutation(np.indices((3, 3, 3)).reshape(3, -1).T)[:9] * 3.0)
    atoms.rattle(0.4, seed=1)
    velocities, masses = rng.normal(size=(9, 3)) * 0.01, atoms.get_masses() / units.fs**2
    found = of(model, atoms, velocities)

    network_only, _ = model.split_references()
    with jax.enable_x64(True):
        graph = Graph.from_ase(atoms, 20.0, np.float64)
        predict = jax.jit(lambda r: network_only.compute(graph.replace(positions=r)))
        forces = np.asarray(predict(graph.positions).forces)

        def moment(time):
            moving = velocities + time * forces / masses[:, None]
            r = atoms.positions + time * velocities + 0.5 * time**2 * forces / masses[:, None]
            energies = np.asarray(predict(jnp.asarray(r)).atomic_energies)
            return ((energies + 0.5 * masses * (moving**2).sum(1))[:, None] * r).sum(0)

        rate = (moment(1e-3) - moment(-1e-3)) / 2e-3
    assert np.abs(rate).max() > 1e-4
    np.testing.assert_allclose(found.total, rate, rtol=1e-6, atol=1e-9)
    # Where it stands makes no difference, though it does to the moment.
    away = atoms.copy()
    away.positions += [7.0, -5.0, 3.0]
    np.testing.assert_allclose(of(model, away, velocities).total, found.total, rtol=1e-9)


@pytest.mark.slow
def test_images_and_supercells(crystal, two_layers):
    atoms, velocities = crystal
    found = of(two_layers, atoms, velocities)
    elsewhere = atoms.copy()
    elsewhere.positions[1] += 2 * atoms.cell[0] - atoms.cell[2]
    elsewhere.positions[3] -= atoms.cell[1]
    np.testing.assert_allclose(of(two_layers, elsewhere, velocities).total, found.total, rtol=1e-9)
    eight = of(two_layers, atoms * 2, np.tile(velocities, (8, 1)))
    np.testing.assert_allclose(eight.total, 8 * found.total, rtol=1e-9)
    np.testing.assert_allclose(eight.potential, 8 * found.potential, rtol=1e-9)


def test_of_pairs_it_is_the_formula_for_pairs(crystal):
    atoms, velocities = crystal
    found = of(PAIRS, atoms, velocities, layers=1)
    np.testing.assert_allclose(found.potential, pair_partial_forces(PAIRS, atoms, velocities), rtol=1e-9)
    # More layers than there are lay out more, and change nothing.
    np.testing.assert_allclose(of(PAIRS, atoms, velocities, layers=2).total, found.total, rtol=1e-9)


@pytest.mark.slow
def test_of_two_layers_partial_forces_of_pairs_are_wrong(two_layers):
    # A ring of 36 Å with open sides: all distances within the 8.4 Å of two layers are those of the nearest image.
    rng = np.random.default_rng(2)
    atoms = ase.Atoms("Ar12", np.arange(12)[:, None] * [3.0, 0, 0] + rng.normal(size=(12, 3)) * 0.4)
    atoms.set_cell([36.0, 0, 0])
    atoms.pbc = [True, False, False]
    velocities = rng.normal(size=(12, 3)) * 0.01
    found = of(two_layers, atoms, velocities).potential
    with jax.enable_x64(True):
        graph = Graph.from_ase(atoms, two_layers.cutoff, np.float64)
        energies = lambda r: two_layers.atomic_energies(graph.replace(positions=r))  # noqa: E731
        jacobian = np.asarray(jax.jit(jax.jacrev(energies))(graph.positions))
    apart = atoms.positions[:, None] - atoms.positions[None]
    apart[..., 0] -= 36.0 * np.rint(apart[..., 0] / 36.0)
    exact = np.einsum("ijx,ijy,jy->x", apart, jacobian, velocities)
    np.testing.assert_allclose(found, exact, rtol=1e-8, atol=1e-12)
    naive = pair_partial_forces(two_layers, atoms, velocities)
    assert np.abs(naive - exact).max() > 0.1 * np.abs(exact).max()


def test_lists_that_are_kept_along_a_trajectory_change_nothing(crystal):
    atoms, velocities = crystal
    rng = np.random.default_rng(5)
    frames = atoms.positions + np.cumsum(rng.normal(size=(5, 4, 3)) * 0.03, axis=0)
    arguments = np.tile(velocities, (5, 1, 1)), atoms.numbers, atoms.cell.array
    options = {"layers": 1, "dtype": "float64"}
    kept = heat_flux(PAIRS, frames, *arguments, skin=1.0, **options)
    new = heat_flux(PAIRS, frames, *arguments, skin=1e-6, **options)
    np.testing.assert_allclose(kept.total, new.total, rtol=1e-9)
    single = heat_flux(PAIRS, frames, *arguments, layers=1)
    np.testing.assert_allclose(single.total, new.total, rtol=2e-4, atol=1e-7)


def test_of_an_ideal_gas_only_what_is_carried(crystal):
    atoms, velocities = crystal
    found = of(IdealGas(), atoms, velocities, layers=1)
    kinetic = 0.5 * atoms.get_masses() / units.fs**2 * (velocities**2).sum(1)
    np.testing.assert_allclose(found.total, kinetic @ velocities, rtol=1e-12)
    np.testing.assert_array_equal(found.potential, 0)


def test_it_can_be_differentiated_and_mapped(crystal):
    atoms, velocities = crystal
    with jax.enable_x64(True):
        unfolded = unfold(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, 5.5, 1, np.float64)
        masses = jnp.asarray(atoms.get_masses())

        def along_x(sigma):
            model = LennardJones(sigma=sigma, cutoff=5.0)
            return flux(model, unfolded, jnp.asarray(atoms.positions), atoms.cell.array, velocities, masses)[0][0]

        slope = jax.jit(jax.grad(along_x))(3.4)
        three = jax.jit(jax.vmap(along_x))(jnp.array([3.4 - 1e-5, 3.4, 3.4 + 1e-5]))
    assert float(slope) == pytest.approx(float(three[2] - three[0]) / 2e-5, rel=1e-6)


def test_of_a_sum_reference_energies_are_left_out_too(crystal, two_layers):
    atoms, velocities = crystal
    alone = of(two_layers, atoms, velocities)
    in_a_sum = of(two_layers + IdealGas(), atoms, velocities, layers=2)
    np.testing.assert_allclose(in_a_sum.convective, alone.convective, rtol=1e-5)
    np.testing.assert_allclose(in_a_sum.potential, alone.potential, rtol=1e-4, atol=1e-7)


def test_words(crystal, two_layers):
    atoms, velocities = crystal
    with pytest.raises(ConfigError, match=r"global nodes.*global_nodes=False"):
        of(network(2, global_nodes=True), atoms, velocities)
    with pytest.raises(ConfigError, match="layers: say how many times"):
        of(PAIRS, atoms, velocities)
    with pytest.raises(ConfigError, match=r"global nodes.*global_nodes=False"):
        of(network(2, global_nodes=True) + PAIRS, atoms, velocities, layers=2)
    with pytest.raises(ConfigError, match="layers must be a whole number from 2"):
        of(two_layers + PAIRS, atoms, velocities, layers=1)
    with pytest.raises(ConfigError, match="this potential has 2"):
        of(two_layers, atoms, velocities, layers=1)
    with pytest.raises(DataError, match="give both of each frame"):
        of(PAIRS, atoms, velocities[:3], layers=1)
    overlapping = atoms.copy()
    overlapping.positions[1] = overlapping.positions[0]
    with pytest.raises(StructureError, match="Frame 0: Atoms 0 and 1"):
        of(PAIRS, overlapping, velocities, layers=1)


# ------------------------------------------------------------------------------------------------------------- conductivity


def ornstein_uhlenbeck(replicas, frames, step, time, rng):
    from scipy.signal import lfilter

    a = np.exp(-step / time)
    noise = rng.normal(size=(replicas, frames, 3)) * np.sqrt(1 - a**2)
    noise[:, 0] /= np.sqrt(1 - a**2)
    return lfilter([1.0], [1.0, -a], noise, axis=1)


def test_conductivity_of_a_flux_whose_memory_is_known():
    # <J_x(0) J_x(t)> = exp(-t / 200 fs): kappa = 200 fs (eV Å/fs)^2 / (V k_B T^2).
    flux = ornstein_uhlenbeck(16, 20_000, 10.0, 200.0, np.random.default_rng(0))
    exact = 200.0 * (1 - np.exp(-10)) / (1000.0 * units.kB * 300.0**2) * 1.602176634e6
    found = green_kubo_conductivity(flux, 1000.0, 300.0, 10.0, cutoff=2000.0)
    assert found.value == pytest.approx(exact, abs=3 * found.error)
    assert 0.005 < found.error / exact < 0.05
    assert found.each.shape == (16,)
    assert found.running[0] == 0
    assert found.running[-1] == found.value
    np.testing.assert_allclose(found.correlation[:40], np.exp(-found.time[:40] / 200.0), atol=0.05)
    single = green_kubo_conductivity(flux[0], 1000.0, 300.0, 10.0, cutoff=2000.0, blocks=4)
    assert single.each.shape == (4,)
    assert single.value == pytest.approx(exact, abs=4 * single.error)


def test_conductivity_in_words():
    flux = np.ones((2, 50, 3))
    ask = lambda flux, **other: green_kubo_conductivity(flux, 1.0, 1.0, 1.0, **{"cutoff": 10.0, **other})  # noqa: E731
    assert ask(flux).error == 0
    with pytest.raises(ConfigError, match="length of each replica, 49 fs"):
        ask(flux, cutoff=50.0)
    with pytest.raises(DataError, match="1 replica: its error needs two"):
        ask(flux[:1])
    with pytest.raises(DataError, match=r"\[frames, 3\] or \[replicas, frames, 3\], not \[50\]"):
        ask(flux[0, :, 0])
    with pytest.raises(DataError, match=r"not finite at \[1, 3\]"):
        ask(np.where(np.arange(300).reshape(2, 50, 3) == 160, np.nan, 1.0))
    with pytest.raises(DataError, match="zero: do the atoms move"):
        ask(0 * flux)


def test_atoms_that_wandered_far_keep_their_digits(crystal):
    atoms, velocities = crystal
    far = atoms.positions + np.array([2000, -1000, 500]) @ atoms.cell.array
    found = [
        heat_flux(PAIRS, r[None], velocities[None], atoms.numbers, atoms.cell.array, layers=1).total
        for r in (atoms.positions, far)
    ]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4 * np.abs(found[0]).max())
