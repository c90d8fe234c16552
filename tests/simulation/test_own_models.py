"""Energies of one's own: against closed forms, jax-md and finite differences; sums; what is refused and how."""

from typing import Any

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct
from jax_md import energy as jax_md_energy
from jax_md import space

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError
from leignn_jax.graph import Graph
from leignn_jax.models.radial import polynomial_envelope
from leignn_jax.pair_ops import pair_sum
from leignn_jax.potential import Prediction
from leignn_jax.simulation import Adds, AtomEnergy, GraphEnergy, ModelSum, PairEnergy
from leignn_jax.simulation.ensembles import NVE
from leignn_jax.simulation.model_sums import split_constants, within
from leignn_jax.simulation.simple_models import HarmonicWells, LennardJones
from leignn_jax.testing import check_forces, check_stress, check_wrapping

pytestmark = pytest.mark.usefixtures("fast_compiles", "x64")
EPSILON, SIGMA = 0.0104, 3.4


def lennard_jones(params, r):
    power = (params["sigma"] / r) ** 6
    return 4 * params["epsilon"] * (power**2 - power)


def by_elements(params, r, small, large):
    return lennard_jones(params, r) * small / (small + 2 * large)


def embedded(params, z, vectors, zs, weights):
    """An embedded atom and angles: nothing that pairs could do."""
    distances = jnp.sqrt((vectors**2).sum(-1))
    near = weights * jnp.exp(-params["decay"] * distances) * jnp.sqrt(zs)
    units = vectors / distances[:, None]
    cosines = units @ units.T
    density = near.sum()
    return -params["depth"] * jnp.sqrt(density + 1e-3 * z) + 0.1 * (near[:, None] * near * (cosines + 0.3) ** 2).sum()


class Bond(nn.Module):
    """A small network of the distance."""

    @nn.compact
    def __call__(self, r):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(r[None])))[0]


class Messages(nn.Module):
    """One round of messages by what the package's own models are made of."""

    @nn.compact
    def __call__(self, graph, vectors):
        squared = jnp.where(graph.pair_mask, (vectors**2).sum(-1), 16.0)
        weights = jnp.where(graph.pair_mask, polynomial_envelope(jnp.sqrt(squared) / 4.0), 0.0)
        ones = jnp.ones((graph.numbers.shape[0], 1, 1), vectors.dtype)
        density = pair_sum(graph.lists, weights[:, None], ones)[:, :, 0]
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(density)))[:, 0]


PARAMS = {"epsilon": EPSILON, "sigma": SIGMA}


def alloy(repeat=1):
    atoms = ase.build.bulk("Ar", cubic=True, a=5.3) * repeat
    atoms.numbers[::3] = 36
    atoms.rattle(0.15, seed=0)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.05 * np.random.default_rng(1).normal(size=(3, 3))), scale_atoms=True)
    return atoms


compiled = jax.jit(lambda model, graph: model.compute(graph))


class Answers:
    """A model as ``leignn_jax.testing`` takes it; lists reach half an Å farther than the cutoff, as those of dynamics do."""

    def __init__(self, model):
        self.model, self.cutoff = model, model.cutoff

    def __call__(self, atoms):
        graph = Graph.from_ase(atoms, self.cutoff + 0.5, np.float64)
        graph = graph.pad(graph.shape[0] + 3, 400, 60)
        out = compiled(self.model, graph)
        count = len(atoms)
        assert not np.asarray(out.forces[count:]).any()
        return Prediction(float(out.energy[0]), np.asarray(out.forces[:count]), np.asarray(out.stress[0]), None, None)


def params_of(module, *arguments):
    return module.init(jax.random.key(0), *arguments)


def models():
    graph = jax.tree.map(jnp.asarray, Graph.from_ase(alloy(), 4.0, np.float64))
    return {
        "pairs": PairEnergy(lennard_jones, PARAMS, 5.0),
        "pairs of elements": PairEnergy(by_elements, PARAMS, 5.0, onset=3.0),
        "pairs by a module": PairEnergy(Bond(), params_of(Bond(), jnp.ones(())), 5.0),
        "atoms": AtomEnergy(embedded, {"decay": 0.7, "depth": 1.0}, 4.5),
        "graph by a module": GraphEnergy(Messages(), params_of(Messages(), graph, graph.vectors()), 4.0),
    }


@pytest.mark.parametrize(
    "name", ["pairs", "pairs of elements", "pairs by a module", "atoms", "graph by a module", "sum"]
)
def test_forces_and_stress_are_those_of_differences(name):
    found = models()
    model = ModelSum(tuple(found.values())) if name == "sum" else found[name]
    answers, atoms = Answers(model), alloy()
    assert np.abs(answers(atoms).forces).max() > 1e-4
    assert check_forces(answers, atoms) < 1e-6
    assert check_stress(answers, atoms) < 1e-6
    assert check_wrapping(answers, atoms) < 1e-9


def test_lennard_jones_is_the_closed_form_of_two_atoms():
    for r, onset in ((3.7, None), (5.0, 5.5)):
        atoms = ase.Atoms("Ar2", [[0, 0, 0], [0, r, 0]])
        out = Answers(PairEnergy(lennard_jones, PARAMS, 5.5, onset=onset))(atoms)
        power = (SIGMA / r) ** 6
        assert out.energy == pytest.approx(4 * EPSILON * (power**2 - power), rel=1e-12)
        slope = 4 * EPSILON * (-12 * power**2 + 6 * power) / r
        np.testing.assert_allclose(out.forces, [[0, slope, 0], [0, -slope, 0]], rtol=0, atol=1e-14)
    assert Answers(PairEnergy(lennard_jones, PARAMS, 4.9))(atoms).energy == 0


def test_every_image_counts_once():
    """Against a sum over images: in a cell of one atom, smaller than the cutoff, each pair is an atom with itself."""
    atoms = ase.Atoms("Ar", cell=[3.6, 3.9, 4.1], pbc=True)
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3) @ np.asarray(atoms.cell)
    distances = np.linalg.norm(images, axis=1)
    near = distances[(distances > 0) & (distances < 6.0)]
    expected = 0.5 * lennard_jones(PARAMS, near).sum()
    assert Answers(PairEnergy(lennard_jones, PARAMS, 6.0, onset=6.0))(atoms).energy == pytest.approx(
        expected, rel=1e-12
    )

    def half(params, z, vectors, zs, weights):
        return 0.5 * (weights * lennard_jones(params, jnp.sqrt((vectors**2).sum(-1)))).sum()

    assert Answers(AtomEnergy(half, PARAMS, 6.0, onset=6.0))(atoms).energy == pytest.approx(expected, rel=1e-12)


def test_lennard_jones_of_pairs_is_that_of_the_package_and_of_jax_md():
    atoms = alloy(3)
    graph = Graph.from_ase(atoms, 5.5, np.float64)

    def enveloped(params, r):
        return lennard_jones(params, r) * polynomial_envelope(r / 5.5, 6)

    found = compiled(PairEnergy(enveloped, PARAMS, 5.5, onset=5.5), graph)
    expected = compiled(LennardJones(EPSILON, SIGMA, 5.5), graph)
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
    assert float(found.atomic_energies.sum()) == pytest.approx(float(found.energy[0]), rel=1e-12)

    displacement, _ = space.periodic_general(np.asarray(atoms.cell).T, fractional_coordinates=False)
    theirs = jax_md_energy.lennard_jones_pair(
        displacement, sigma=SIGMA, epsilon=EPSILON, r_onset=4.0 / SIGMA, r_cutoff=5.5 / SIGMA
    )
    switched = jax_md_energy.multiplicative_isotropic_cutoff(
        lambda r: lennard_jones(PARAMS, r), r_onset=4.0, r_cutoff=5.5
    )
    ours = compiled(PairEnergy(lambda params, r: switched(r), {}, 5.5, onset=5.5), graph)
    positions = jnp.asarray(atoms.positions)
    np.testing.assert_allclose(float(ours.energy[0]), float(theirs(positions)), rtol=1e-6)
    # Constants of theirs are float32.
    np.testing.assert_allclose(ours.forces, -jax.grad(theirs)(positions), rtol=0, atol=3e-7)


def test_it_goes_smoothly_to_zero_at_the_cutoff():
    model = Answers(PairEnergy(lambda params, r: 1.0 + 0 * r, {}, 5.0, onset=4.0))
    away = np.array([3.9, 4.0, 4.5, 4.999, 5.0, 5.2])
    out = [model(ase.Atoms("Ar2", [[0, 0, 0], [r, 0, 0]])) for r in away]
    np.testing.assert_allclose([one.energy for one in out], [1, 1, 0.5, 1e-8, 0, 0], rtol=0, atol=2e-8)
    slopes = [one.forces[1, 0] for one in out]
    np.testing.assert_allclose(slopes, [0, 0, 1.875, 3e-5, 0, 0], rtol=0, atol=1e-6)


def test_gradients_by_parameters():
    """Of energy and forces, where padding is at distances that are none: finite, and those of differences."""
    graph = Graph.from_ase(alloy(), 5.5, np.float64).pad(8, 400, 60)
    for name, model in models().items():

        def loss(params, model=model):
            out = model.replace(params=params).compute(graph)
            return (out.forces**2).sum() + 0.1 * out.energy.sum()

        loss = jax.jit(loss)
        flat, restore = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, model.params))
        slope = np.asarray(jax.flatten_util.ravel_pytree(jax.jit(jax.grad(loss))(restore(flat)))[0])
        direction = np.random.default_rng(0).normal(size=flat.shape)
        up, down = (float(loss(restore(flat + sign * 1e-5 * direction))) for sign in (1, -1))
        assert slope @ direction == pytest.approx((up - down) / 2e-5, rel=1e-4), name


# -------------------------------------------------------------------------------------------------------------------- sums


@struct.dataclass
class Count(Adds):
    """Says how many pairs it is shown, whatever their distance."""

    cutoff: float = struct.field(pytree_node=False)

    def compute(self, graph):
        zero = jnp.zeros_like(graph.positions)
        shown = (jnp.abs(graph.lists.neighbor_signs).sum(), graph.pair_mask.sum())
        return Prediction(jnp.stack(shown)[:1] + 0.001 * shown[1], zero, jnp.zeros_like(graph.cell), None, None)


def test_a_part_is_shown_what_is_within_its_cutoff():
    atoms = alloy()
    wide = Graph.from_ase(atoms, 6.0, np.float64)
    for cutoff in (3.0, 4.5, 6.0):
        pairs = int(Graph.from_ase(atoms, cutoff, np.float64).pair_mask.sum())
        model = Count(cutoff) + Count(6.0)
        expected = 2.001 * pairs + float(Count(6.0).compute(wide).energy[0])
        assert model.cutoff == 6.0
        assert float(model.compute(wide).energy[0]) == pytest.approx(expected)
        near = within(jax.tree.map(jnp.asarray, wide), cutoff)
        assert int(near.pair_mask.sum()) == pairs


def test_a_sum_says_what_its_parts_say():
    atoms = alloy()
    parts = [*models().values(), LennardJones(cutoff=3.9)]
    alone = [Answers(part)(atoms) for part in parts]
    model: Any = sum(parts)
    assert isinstance(model, ModelSum)
    assert len(model.parts) == len(parts)
    assert model.cutoff == 5.0
    assert len((model + parts[0]).parts) == len(parts) + 1
    together = Answers(model)(atoms)
    for name in ("energy", "forces", "stress"):
        expected = sum(getattr(one, name) for one in alone)
        np.testing.assert_allclose(getattr(together, name), expected, rtol=0, atol=1e-12, err_msg=name)
    assert model.conserves_momentum
    assert not (model + HarmonicWells(1.0, atoms.positions)).conserves_momentum


@pytest.fixture(scope="module")
def potential():
    config = leignn.LEIGNNConfig(elements=("Ar", "Kr"), features=4, layers=1, num_radial=3, cutoff=4.0)
    references = {"Ar": -14_000.0, "Kr": -75_000.0}
    return leignn.Potential.create(config, jax.random.key(0), reference_energies=references).replace(energy_shift=7.0)


@pytest.mark.slow
def test_constants_of_a_potential_are_added_in_float64(potential):
    atoms = alloy()
    pairs = PairEnergy(lennard_jones, PARAMS, 5.0)
    model = potential + pairs
    assert model.cutoff == 5.0
    assert isinstance(pairs + potential, ModelSum)
    constants = 2 * -14_000.0 + 2 * -75_000.0 + 7.0
    expected = potential.predict(atoms, dtype="float64").energy + Answers(pairs)(atoms).energy
    out = leignn.simulate(model, atoms, NVE(), steps=1, save_every=1, log_every=1, timestep=0.1, temperature=1.0)
    assert out.trajectory.energy[0] == pytest.approx(expected, abs=1e-5)
    network, table, shift = split_constants(ModelSum((potential, model)))
    assert (table[18], table[36], shift) == (-28_000.0, -150_000.0, 14.0)
    assert abs(float(Answers(network)(atoms).energy)) < 100
    # A rollout's energies are without them.
    _, state = leignn.differentiable.start(model, atoms, NVE(), temperature=1.0, dtype="float64")
    assert float(state.energy[0]) == pytest.approx(expected - constants, abs=1e-9)
    with pytest.raises(ElementError, match="Atom 0 is He"):
        leignn.simulate(model, ase.Atoms("He", cell=[5] * 3, pbc=True), NVE(), steps=1, temperature=1.0)


@pytest.mark.slow
def test_dynamics_of_a_sum_conserve_energy_and_have_gradients():
    atoms = alloy()
    model = PairEnergy(lennard_jones, PARAMS, 5.0) + PairEnergy(by_elements, {"epsilon": 0.02, "sigma": 3.0}, 4.0)
    out = leignn.simulate(
        model, atoms, "nve", steps=100, timestep=2.0, temperature=20.0, dtype="float64", log_every=100
    )
    kinetic = out.thermo["kinetic_energy_eV"]
    assert np.ptp(out.thermo["conserved_eV"]) < 0.02 * max(np.ptp(kinetic), 1e-3)
    run = leignn.differentiable
    system, state = run.start(model, atoms, "nve", temperature=20.0, dtype="float64")

    @jax.jit
    def far(model):
        return (run.rollout(model, NVE(), system, state, 2.0, 10).state.positions ** 2).sum()

    slope = jax.jit(jax.grad(far))(model).parts[1].params["epsilon"]
    first, second = model.parts
    up, down = (
        float(far(ModelSum((first, second.replace(params={"epsilon": 0.02 + h, "sigma": 3.0}))))) for h in (1e-5, -1e-5)
    )
    assert float(slope) == pytest.approx((up - down) / 2e-5, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------- refused


def go(model):
    return leignn.simulate(model, alloy(), NVE(), steps=1, temperature=1.0)


@struct.dataclass
class Says:
    """Answers what it is given."""

    energy: Any
    forces: Any = None
    cutoff: float = struct.field(pytree_node=False, default=2.0)

    def compute(self, graph):
        return self.replace(forces=graph.positions if self.forces is None else self.forces)

    @property
    def stress(self):
        return jnp.zeros((1, 3, 3))


REFUSED = {
    "PairEnergy: cutoff must be a positive number, not 0": lambda: PairEnergy(lennard_jones, PARAMS, 0.0),
    "AtomEnergy: cutoff must be a positive number": lambda: AtomEnergy(embedded, {}, -1.0),
    "onset must be a positive number of at most 5": lambda: PairEnergy(lennard_jones, PARAMS, 5.0, onset=6.0),
    "function must be one of .params, r. or .*, not str": lambda: PairEnergy("lj", PARAMS, 5.0),
    "not the class Bond": lambda: PairEnergy(Bond, PARAMS, 5.0),
    "takes 3 arguments": lambda: PairEnergy(lambda a, b, c: 0.0, PARAMS, 5.0),
    "takes 2 arguments; it must be a function of .params, graph": lambda: GraphEnergy(lennard_jones, PARAMS, 5.0),
    r"one number, not an array of shape \[2\]": lambda: go(PairEnergy(lambda p, r: jnp.ones(2) * r, {}, 5.0)),
    "AtomEnergy of <lambda> must return one": lambda: go(AtomEnergy(lambda p, z, v, zs, w: w, {}, 5.0)),
    "one energy for each of 4 atoms": lambda: go(GraphEnergy(lambda p, graph, v: v.sum(), {}, 5.0)),
    "PairEnergy gives no finite energy or force for atom 0": lambda: go(
        PairEnergy(lambda p, r: jnp.sqrt(r - 4.5), {}, 5.0)
    ),
    r"Says.compute\(graph\) must return energy as real numbers of shape \[1\]": lambda: go(Says(jnp.ones(()))),
    r"must return energy as .* it returns int64\[1\]": lambda: go(Says(jnp.ones(1, int))),
    r"must return forces .* \[4, 3\]": lambda: go(Says(jnp.ones(1), jnp.ones(3))),
    "Says gives no finite energy or force for atom 0": lambda: go(Says(jnp.full(1, jnp.nan))),
    "What is added to a model must be a Potential, or a pytree": lambda: LennardJones() + 3,
    "is a class; give an object": lambda: LennardJones() + LennardJones,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words):
    with pytest.raises(ConfigError, match=words):
        REFUSED[words]()
