"""Every check passes for a LEIGNN and an analytic potential, and fails where its property is broken on purpose."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from flax import struct

from leignn_jax import potential, testing
from leignn_jax.errors import ElementError, LeignnError, StructureError
from leignn_jax.models.config import preset
from leignn_jax.models.network import init_params
from leignn_jax.neighbors import find_pairs
from leignn_jax.potential import Potential, Prediction
from leignn_jax.testing import PropertyViolation, as_model

pytestmark = pytest.mark.usefixtures("fast_compiles")

SMALL = preset("small", elements=("Si", "O", "H"), features=16, layers=2, cutoff=4.0)


STRAIN = np.array([[1.02, 0.05, 0], [0, 0.97, 0.01], [0.04, 0, 1]])
DIMER = Atoms("SiO", positions=[[0, 0, 0], [1.9, 0.3, 0.2]])
UPPER = np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]])


def random_params(config, seed=0):
    """Random parameters, filter biases included, which start at zero in a fresh potential; nothing is compiled."""
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        scale = 0.1 if "filter" in jax.tree_util.keystr(path) else x.shape[0] ** -0.5
        return rng.normal(0, scale, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def small_potential(**settings):
    config = dataclasses.replace(SMALL, **settings)
    return Potential.from_params(config, random_params(config), {"Si": -160.0, "O": -430.0}, scale=0.3)


@pytest.fixture(scope="module")
def crystal():
    """Two elements in a triclinic cell smaller than the cutoff, off their ideal places."""
    atoms = bulk("Si")
    atoms.symbols[1] = "O"
    atoms.set_cell(atoms.cell.array @ STRAIN, scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.fixture(scope="module")
def global_model():
    return as_model(small_potential(direct_forces=True))


@pytest.fixture(scope="module")
def local_model():
    return as_model(small_potential(global_nodes=False, layers=1))


# -------------------------------------------------------------------------------------------------------- leignn passes


SYMMETRIES = {"rotation", "translation", "permutation", "force_sum"}
OF_CRYSTALS = {"wrapping", "extensivity", "stress"}


def assert_exact(deviations):
    """Symmetries hold to rounding, finite differences to their own error."""
    print(deviations)
    assert all(isinstance(value, float) and value >= 0 for value in deviations.values())
    differences = {"forces", "stress", "cutoff_smoothness"}
    assert max(value for name, value in deviations.items() if name not in differences) < 1e-11


def test_leignn_has_every_property(global_model, crystal):
    deviations = testing.check_all(global_model, crystal)
    assert set(deviations) == SYMMETRIES | OF_CRYSTALS | {"forces", "cutoff_smoothness", "padding"}
    assert_exact(deviations)


def test_leignn_without_global_nodes(local_model, crystal):
    # Wrapped, it is any callable: there is no padding to check.
    deviations = testing.check_all(lambda atoms: local_model(atoms), crystal, cutoff=local_model.cutoff)
    assert set(deviations) == SYMMETRIES | OF_CRYSTALS | {"forces", "cutoff_smoothness"}
    assert_exact(deviations)


def test_leignn_molecule(global_model, crystal):
    global_model(crystal * (2, 2, 2))  # so that its program is there to be used
    deviations = testing.check_all(lambda atoms: global_model(atoms), molecule("H2O"), cutoff=global_model.cutoff)
    assert set(deviations) == SYMMETRIES | {"forces", "cutoff_smoothness"}
    assert_exact(deviations)


@pytest.fixture(scope="module")
def published_model():
    """One layer of the published formula."""
    return as_model(small_potential(smooth_cutoff=False, layers=1, radial_basis="gaussian"))


def test_published_formula_jumps_at_the_cutoff(published_model):
    jumps = testing.cutoff_jumps(published_model, DIMER)
    print(jumps)
    assert jumps.energy > 1e-3
    assert jumps.places[0] == pytest.approx(4.0, abs=1e-9)
    with pytest.raises(PropertyViolation, match=r"the energy jumps by .* eV at 4.00000 Å") as caught:
        testing.check_cutoff_smoothness(published_model, DIMER)
    assert caught.value.deviation == pytest.approx(jumps.energy / jumps.typical[0])
    assert caught.value.deviation > 100
    testing.check_translation(published_model, DIMER)


def test_as_model_needs_no_global_switch(global_model, crystal):
    assert not jax.config.jax_enable_x64
    answer = global_model(crystal)
    assert not jax.config.jax_enable_x64
    assert isinstance(answer.energy, float)
    assert [x.dtype for x in (answer.forces, answer.stress, answer.atomic_energies)] == [np.float64] * 3
    assert (answer.forces.shape, answer.stress.shape, answer.atomic_energies.shape) == ((2, 3), (3, 3), (2,))
    assert answer.direct_forces.shape == (2, 3)
    assert answer.energy == pytest.approx(answer.atomic_energies.sum(), rel=1e-14)


def test_as_model_in_float32(published_model):
    single = as_model(published_model.potential, np.float32)
    answer, exact = single(DIMER), published_model(DIMER)
    assert answer.direct_forces is None
    difference = np.abs(answer.forces - exact.forces).max() / np.abs(exact.forces).max()
    assert 1e-9 < difference < 1e-4
    # Reference energies of -590 eV don't cost the network's part its digits.
    assert abs(answer.energy - exact.energy) < 1e-6 * max(1.0, abs(exact.energy + 590))
    assert 0 < testing.check_rotation(single, DIMER, tolerance=1e-3) < 1e-3


def test_as_model_reuses_programs(local_model, crystal):
    local_model(crystal * (2, 2, 2))
    compiled = potential._compute._cache_size()
    for atoms in (crystal, crystal * (2, 1, 1), Atoms("Si"), molecule("H2O"), crystal * (2, 2, 1)):
        local_model(atoms)
    assert potential._compute._cache_size() == compiled


def test_as_model_refuses(local_model):
    with pytest.raises(ElementError, match="Atom 1 is C"):
        local_model(molecule("CO"))
    with pytest.raises(StructureError, match="no atoms"):
        local_model(Atoms())


# ------------------------------------------------------------------------------------------------ an analytic potential


class PairModel:
    """sum over pairs of z_i z_j (1 - (r / cutoff)^2)^power exp(-r) with its forces and stress, in NumPy."""

    cutoff = 4.0

    def __init__(self, power=4):
        self.power = power

    def __call__(self, atoms):
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, self.cutoff)
        a, b, r = pairs.receivers, pairs.senders, pairs.distances
        vectors = atoms.positions[b] + pairs.shifts @ atoms.cell.array - atoms.positions[a]
        inside, n = 1 - (r / self.cutoff) ** 2, self.power
        charges = atoms.numbers[a] * atoms.numbers[b] / 10
        energies = charges * inside**n * np.exp(-r)
        slopes = -energies - charges * n * inside ** (n - 1) * np.exp(-r) * 2 * r / self.cutoff**2
        pull = (slopes / r)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, a, pull)
        np.add.at(forces, b, -pull)
        stress = vectors.T @ pull / atoms.get_volume() if atoms.pbc.all() else None
        atomic = np.bincount(a, energies / 2, len(atoms)) + np.bincount(b, energies / 2, len(atoms))
        return Prediction(energies.sum(), forces, stress, atomic, forces.copy())


def spoiled(change):
    """The analytic model with ``change(prediction, atoms)`` as fields that replace its own."""
    right = PairModel()

    def model(atoms):
        answer = right(atoms)
        return answer._replace(**change(answer, atoms))

    return model


def scaled_first(forces, factor=1.001):
    return np.concatenate([factor * forces[:1], forces[1:]])


def relative(atoms):
    return atoms.positions - atoms.positions.mean(0)


def test_analytic_model_has_every_property(crystal):
    deviations = testing.check_all(PairModel(), crystal)
    assert len(deviations) == 9  # there is no padding to check
    assert max(deviations.values()) < 10
    assert max(v for k, v in deviations.items() if k not in ("cutoff_smoothness", "forces", "stress")) < 1e-12


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False)])
def test_checks_of_slabs_and_wires(crystal, pbc):
    atoms = crystal.copy()
    atoms.pbc = pbc
    atoms.cell[~np.array(pbc)] = 0
    deviations = testing.check_all(PairModel(), atoms)
    assert "stress" not in deviations
    assert {"wrapping", "extensivity"} <= set(deviations)


BROKEN = {
    "energy turns": ("rotation", lambda p, a: {"energy": p.energy + 1e-3 * (relative(a)[:, 0] ** 2).sum()}),
    "forces do not turn": ("rotation", lambda p, _: {"forces": p.forces * [1.001, 1, 1]}),
    "direct forces do not turn": ("rotation", lambda p, _: {"direct_forces": p.direct_forces * [1, 1, 1.001]}),
    "stress does not turn": ("rotation", lambda p, _: {"stress": p.stress * [1.001, 1, 1]}),
    "field along x": ("translation", lambda p, a: {"energy": p.energy + 1e-3 * a.positions[:, 0].sum()}),
    "forces of a place": ("translation", lambda p, a: {"forces": p.forces * (1 + 1e-4 * a.positions[0, 0])}),
    "no images": ("wrapping", lambda p, a: {"energy": p.energy + 1e-3 * np.linalg.norm(np.ptp(a.positions, axis=0))}),
    "first atom is special": (
        "permutation",
        lambda p, a: {"energy": p.energy + 1e-3 * float(a.numbers[0])},
    ),
    "first force is special": ("permutation", lambda p, _: {"forces": scaled_first(p.forces)}),
    "first direct force is special": ("permutation", lambda p, _: {"direct_forces": scaled_first(p.direct_forces)}),
    "energy as N^2": ("extensivity", lambda p, a: {"energy": p.energy + 1e-3 * len(a) ** 2}),
    "forces as 1/N": ("extensivity", lambda p, a: {"forces": p.forces * (1 + 1e-3 / len(a))}),
    "stress as N": ("extensivity", lambda p, a: {"stress": p.stress * len(a)}),
    "forces too large": ("forces", lambda p, _: {"forces": 1.01 * p.forces}),
    "forces of other sign": ("forces", lambda p, _: {"forces": -p.forces}),
    "stress too large": ("stress", lambda p, _: {"stress": 1.01 * p.stress}),
    "stress of other sign": ("stress", lambda p, _: {"stress": -p.stress}),
    "stress not symmetric": ("stress", lambda p, _: {"stress": p.stress + 1e-3 * UPPER}),
    "forces add to something": ("force_sum", lambda p, _: {"forces": p.forces + 1e-4 * UPPER[0]}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_fails_on_a_broken_model(name, crystal):
    prop, change = BROKEN[name]
    check = getattr(testing, f"check_{prop}")
    check(PairModel(), crystal)
    with pytest.raises(PropertyViolation, match=r"relative deviation .*, tolerance ") as caught:
        check(spoiled(change), crystal)
    deviation = caught.value.deviation
    assert isinstance(deviation, float)
    assert check(spoiled(change), crystal, tolerance=1e9) == deviation


def test_message_says_what_how_much_and_the_tolerance(crystal):
    with pytest.raises(PropertyViolation) as caught:
        testing.check_forces(spoiled(lambda p, _: {"forces": 1.01 * p.forces}), crystal, tolerance=0.002)
    message = str(caught.value)
    assert message.startswith("The force on atom ")
    assert "the energy's slope is" in message
    assert message.endswith("tolerance 0.002.")
    assert caught.value.deviation == pytest.approx(0.01 / 1.01, rel=1e-3)


def test_reflections_are_checked_as_well_as_rotations():
    def handed(answer, atoms):
        a, b, c = relative(atoms)[:3]
        return {"energy": answer.energy + 1e-3 * float(np.cross(a - b, b - c) @ (a + relative(atoms)[3]))}

    atoms = molecule("CH3OH")
    atoms.rattle(0.1, seed=0)
    testing.check_rotation(spoiled(handed), atoms, samples=1)
    with pytest.raises(PropertyViolation, match="After a reflection"):
        testing.check_rotation(spoiled(handed), atoms, samples=2)


def test_rotations_are_orthogonal_and_spread():
    matrices = testing.random_rotations(400, seed=1)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(matrices), np.tile([1, -1], 200), atol=1e-13)
    for half in (matrices[::2], matrices[1::2]):
        # Each element has mean 0 and variance 1/3: five standard deviations of 200 of them.
        assert np.abs(half.mean(0)).max() < 5 / np.sqrt(3 * 200)
    np.testing.assert_array_equal(matrices, testing.random_rotations(400, seed=1))


@pytest.mark.parametrize(("power", "jumping"), [(0, "energy"), (1, "forces"), (2, "derivative of the forces")])
def test_cutoff_check_finds_a_jump_of_each_order(power, jumping, crystal):
    for atoms in (Atoms("SiO", positions=[[0, 0, 0], [2, 1, 0]]), crystal):
        model = PairModel(power)
        with pytest.raises(PropertyViolation, match=f"the {jumping} jumps by .* at 4.000"):
            testing.check_cutoff_smoothness(model, atoms)


def test_cutoff_check_passes_from_the_third_power_on(crystal):
    for power in (3, 4, 6):
        for atoms in (Atoms("SiO", positions=[[0, 0, 0], [2, 1, 0]]), crystal, bulk("Cu")):
            assert testing.check_cutoff_smoothness(PairModel(power), atoms) < 3
            assert testing.check_cutoff_smoothness(PairModel(power), atoms, step=1e-3) < 3


def test_jumps_are_those_of_the_formula():
    dimer = Atoms("SiO", positions=[[0, 0, 0], [0, 0, 2]])
    amplitude = 14 * 8 / 10 * np.exp(-4.0)
    slope = 2 / 4.0  # of 1 - (r / 4)^2 at the cutoff
    energy = testing.cutoff_jumps(PairModel(0), dimer)
    assert energy.energy == pytest.approx(amplitude, rel=1e-3)
    forces = testing.cutoff_jumps(PairModel(1), dimer, atom=0)
    assert forces.forces == pytest.approx(amplitude * slope, rel=1e-3)
    assert forces.energy < 1e-3 * amplitude
    derivative = testing.cutoff_jumps(PairModel(2), dimer, atom=1)
    assert derivative.derivative == pytest.approx(2 * amplitude * slope**2, rel=1e-2)
    assert max(derivative.places) == pytest.approx(4.0, abs=3e-3)


def test_cutoff_is_taken_from_the_argument_first():
    dimer = Atoms("SiO", positions=[[0, 0, 0], [0, 0, 2]])
    assert testing.check_cutoff_smoothness(PairModel(0), dimer, cutoff=3.0) < 1
    with pytest.raises(LeignnError, match="give cutoff="):
        testing.check_cutoff_smoothness(spoiled(lambda *_: {}), dimer)
    with pytest.raises(PropertyViolation):
        testing.check_all(lambda atoms: PairModel(0)(atoms), dimer, cutoff=4.0)


@struct.dataclass
class Springs(Potential):
    """Springs between all atoms within the cutoff; with ``leak`` each row of the padded arrays has an energy, too."""

    leak: float = struct.field(pytree_node=False, default=0.0)

    def compute(self, graph):
        energies = jnp.where(graph.pair_mask, (graph.vectors() ** 2).sum(1), 0.0)
        atomic = jnp.zeros_like(graph.positions[:, 0]).at[graph.lists.receivers].add(energies)
        return Prediction(
            energy=graph.sum_atoms(atomic) + self.leak * graph.numbers.shape[0],
            forces=jnp.zeros_like(graph.positions),
            stress=jnp.full((graph.num_graphs, 3, 3), jnp.nan),
            atomic_energies=atomic,
            direct_forces=None,
        )


def test_padding_check_fails_where_padding_counts(local_model, crystal):
    fields = {field.name: getattr(local_model.potential, field.name) for field in dataclasses.fields(Potential)}
    assert testing.check_padding(Springs(**fields), crystal) < 1e-12
    with pytest.raises(PropertyViolation, match=r"Padded to .* the energy per atom is off by"):
        testing.check_padding(Springs(**fields, leak=1e-3), crystal)
    with pytest.raises(PropertyViolation, match="padding: Padded to"):
        testing.check_all(as_model(Springs(**fields, leak=1e-3)), Atoms("Si"))


def test_check_all_reports_all_that_failed(crystal):
    def two_faults(answer, atoms):
        return {"forces": 1.01 * answer.forces, "energy": answer.energy + 1e-3 * len(atoms) ** 2}

    with pytest.raises(PropertyViolation) as caught:
        testing.check_all(spoiled(two_faults), crystal)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 8 properties do not hold."
    assert [line.split(":")[0] for line in lines[1:]] == ["extensivity", "forces"]
    assert caught.value.deviation >= 0.0099  # of the forces


def test_numbers_that_are_not_finite_do_not_pass(crystal):
    for change in (
        lambda *_: {"energy": float("nan")},
        lambda p, _: {"forces": p.forces + np.inf},
        lambda p, _: {"stress": np.where(np.eye(3) > 0, np.nan, p.stress)},
    ):
        with pytest.raises(PropertyViolation, match="is not finite"):
            testing.check_translation(spoiled(change), crystal)


def test_model_of_another_interface_is_refused(crystal):
    for change, message in (
        (lambda *_: {"energy": np.zeros(2)}, r"must be one number, not an array of shape \(2,\)"),
        (lambda p, _: {"forces": p.forces.ravel()}, r"forces must have the shape \(2, 3\), not \(6,\)"),
        (lambda p, _: {"direct_forces": p.forces[:1]}, r"direct_forces must have the shape"),
        (lambda *_: {"stress": np.zeros(6)}, r"stress must have the shape \(3, 3\), not \(6,\)"),
        (lambda p, a: {"stress": None if a.positions[0, 0] > 1 else p.stress}, "for one of two equal structures"),
    ):
        with pytest.raises(LeignnError, match=message):
            testing.check_translation(spoiled(change), crystal)


def test_model_may_leave_out_what_it_has_not(crystal):
    for missing in (None, np.full((3, 3), np.nan)):
        model = spoiled(lambda *_, missing=missing: {"stress": missing, "direct_forces": None})
        assert "stress" not in testing.check_all(model, crystal)
        with pytest.raises(LeignnError, match="no stress"):
            testing.check_stress(model, crystal)


def test_structures_that_a_check_cannot_use_are_refused():
    water = molecule("H2O")
    for check in (testing.check_wrapping, testing.check_extensivity, testing.check_stress):
        with pytest.raises(StructureError, match="periodic in"):
            check(PairModel(), water)
    with pytest.raises(StructureError, match="bring two atoms closer than 6 Å"):
        testing.cutoff_jumps(PairModel(), Atoms("H2", positions=[[0, 0, 0], [0, 0, 6.5]]))
    with pytest.raises(StructureError, match="of atom 2"):
        testing.cutoff_jumps(PairModel(), Atoms("H3", positions=[[0, 0, 0], [0, 0, 1], [9, 9, 9]]), atom=2)
    with pytest.raises(LeignnError, match="at least 12 points"):
        testing.cutoff_jumps(PairModel(), water, points=11)


def test_one_atom():
    assert "cutoff_smoothness" not in testing.check_all(PairModel(), Atoms("Si"))
    assert "cutoff_smoothness" in testing.check_all(PairModel(), bulk("Cu"))


def test_checks_leave_the_structure_alone(crystal):
    copy = crystal.copy()
    testing.check_all(PairModel(), crystal)
    assert copy == crystal
