"""Units and signs of labels told by physics: what is scaled is found, and nothing else is."""

from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from frames import copper

from leignn_jax.data import bundled_data, read_frames
from leignn_jax.data.evidence import Ratio, robust_ratio, works
from leignn_jax.data.inspect import inspect_data
from leignn_jax.data.label_checks import compare, examine
from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.data.readers import write_hdf5
from leignn_jax.data.table import tabulate
from leignn_jax.data.units import Evidence, explain

SHARED = Path(__file__).parents[3] / "shared" / "data"
GPA = 160.2177


def labelled(frames):
    return [(a, read_labels(a)) for a in frames]


def scaled(frames, label, factor, which=None):
    """Frames with a label times ``factor``, a number or a function of the frame."""
    out = []
    for i, (atoms, labels) in enumerate(frames):
        if which is not None and i not in which:
            out.append((atoms, labels))
        elif label == "positions":
            moved = atoms.copy()
            moved.set_cell(atoms.cell * factor)
            moved.positions *= factor
            out.append((moved, labels))
        else:
            by = factor(atoms) if callable(factor) else factor
            out.append((atoms, labels._replace(**{label: getattr(labels, label) * by})))
    return out


def judge(frames):
    return examine(frames.__getitem__, tabulate(frames)).findings


def certain(found):
    return {one.label for one in found if one.certain}


@pytest.fixture(scope="module")
def ethanol():
    return labelled(read_frames(bundled_data("ethanol") / "train.extxyz.xz", index=":80"))


@pytest.fixture(scope="module")
def silicon():
    return labelled(read_frames(bundled_data("si") / "train.extxyz.xz", index="::2"))


# The molecule with each factor, the larger crystal with some: the rest is in experiments/label_checks.
SOME = [("ethanol", x) for x in (23.0605, 27.2114, 51.4221, 10.0, 1e-3, -1.0)]
SOME += [("silicon", x) for x in (51.4221, -1.0)]


@pytest.mark.parametrize(("name", "factor"), SOME)
def test_forces_of_a_set(name, factor, request):
    (found,) = judge(scaled(request.getfixturevalue(name), "forces", factor))
    assert (found.label, found.certain, found.frames) == ("forces", True, ())
    assert found.factor is not None
    assert 0.5 < found.factor / factor < 2
    assert "wrong sign" in found.what if factor < 0 else "times too" in found.what
    if factor == 23.0605:
        assert "kcal/mol/Å" in found.what
        assert "eV/Å²" in found.evidence


@pytest.mark.parametrize(("name", "factor"), [*SOME[:1], *SOME[3:]])
def test_forces_of_two_frames(name, factor, request):
    frames = request.getfixturevalue(name)
    rms = np.array([np.sqrt((x.forces**2).mean()) for _, x in frames])
    which = [int(i) for i in np.flatnonzero(rms > np.median(rms[rms > 0.1]))[[3, 11]]]
    (found,) = judge(scaled(frames, "forces", factor, which))
    assert (found.label, found.certain, found.frames) == ("forces", True, tuple(which))
    assert found.factor / factor == pytest.approx(1.0, abs=0.5)
    assert found.text([f"a.xyz: frame {i}" for i in range(len(frames))]).startswith(
        f"a.xyz: frame {which[0]} and 1 more"
    )


@pytest.mark.parametrize(
    ("name", "factor"), [("ethanol", 23.0605), ("ethanol", 1e-3), ("ethanol", -1.0), ("silicon", 27.2114)]
)
def test_energies_of_a_set(name, factor, request):
    found = judge(scaled(request.getfixturevalue(name), "energy", factor))
    assert certain(found) == {"energy"}
    assert 0.5 < found[0].factor / factor < 2


def test_energies_of_two_frames(ethanol):
    (found,) = judge(scaled(ethanol, "energy", -1.0, [4, 70]))
    assert (found.label, found.frames, found.certain) == ("energy", (4, 70), True)


@pytest.mark.parametrize(
    ("name", "factor"), [("ethanol", 1.889726), ("ethanol", 0.529177), ("ethanol", 0.1), ("silicon", 1.889726)]
)
def test_positions_of_a_set(name, factor, request):
    found = judge(scaled(request.getfixturevalue(name), "positions", factor))
    assert certain(found) == {"positions"}
    assert found[0].factor == pytest.approx(factor, rel=1e-3)


def test_positions_of_two_frames(ethanol):
    (found,) = judge(scaled(ethanol, "positions", 1.889726, [4, 70]))
    assert (found.label, found.frames) == ("positions", (4, 70))


@pytest.mark.parametrize("factor", [GPA, -1.0, -10 * GPA, lambda atoms: atoms.get_volume()])
def test_stress_of_a_set(silicon, factor):
    found = judge(scaled(silicon, "stress", factor))
    assert certain(found) == {"stress"}
    if not callable(factor):
        assert found[0].factor / factor == pytest.approx(1.0, abs=0.01)


def test_stress_that_is_not_symmetric(silicon):
    skewed = [(a, x._replace(stress=x.stress + 0.2 * np.abs(x.stress).max() * np.eye(3, k=1))) for a, x in silicon]
    (found,) = judge(skewed)
    assert (found.label, found.certain) == ("stress", True)
    assert "not symmetric" in found.what


def test_two_labels_at_once(ethanol):
    found = judge(scaled(scaled(ethanol, "forces", 23.0605), "energy", 23.0605))
    assert certain(found) == {"forces", "energy"}


@pytest.mark.parametrize(("label", "factor"), [("forces", 23.0605), ("forces", -1.0), ("energy", 27.2114)])
def test_another_set_in_other_units(ethanol, label, factor):
    train, other = ethanol[:50], ethanol[50:]
    of_train, of_other = tabulate(train), tabulate(other)
    known = examine(train.__getitem__, of_train)
    assert compare(known, of_train, other.__getitem__, of_other) == []
    wrong = scaled(other, label, factor)
    (found,) = compare(known, of_train, wrong.__getitem__, tabulate(wrong))
    assert (found.label, found.certain) == (label, True)
    assert found.factor / factor == pytest.approx(1.0, abs=0.2)


def test_forces_in_another_order_of_atoms(ethanol):
    fixed = [(a, x._replace(forces=np.where(np.arange(9)[:, None] < 3, 0.0, x.forces))) for a, x in ethanol]
    assert any("don't add up" in one.what and not one.certain for one in judge(fixed))


# False alarms: real and unusual data that are right.


def test_bundled_sets_are_quiet(ethanol, silicon):
    assert judge(ethanol) == []
    assert judge(silicon) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_frames_are_quiet(ethanol, silicon, count):
    assert judge(ethanol[:count]) == []
    assert judge(silicon[:count]) == []


def test_copper_and_its_strained_crystals_are_quiet():
    assert judge(labelled(copper(40, sizes=((1, 1, 1), (2, 1, 1))))) == []
    strained = []
    for stretch in np.linspace(0.8, 1.3, 24):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * stretch, scale_atoms=True)
        atoms.calc = EMT()
        strained.append(
            (atoms, Labels(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)))
        )
    assert judge(strained) == []


def test_atoms_and_dimers_are_quiet():
    atoms = [(ase.Atoms(symbol), Labels(-13.6 * z, np.zeros((1, 3)), None)) for z, symbol in enumerate("HCNO", 1)]
    assert judge(atoms) == []
    curve = []
    for r in np.linspace(0.5, 6.0, 40):
        well, slope = 4.7, 1.9
        decay = np.exp(-slope * (r - 0.74))
        pull = 2 * well * slope * (1 - decay) * decay
        forces = np.array([[pull, 0, 0], [-pull, 0, 0]])
        curve.append(
            (ase.Atoms("H2", [[0, 0, 0], [r, 0, 0]]), Labels(well * ((1 - decay) ** 2 - 1) - 27.2, forces, None))
        )
    assert certain(judge(curve)) == set()


def test_noble_gas_is_quiet():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(30):
        atoms = bulk("Ar", cubic=True, a=5.3).repeat(2)
        atoms.positions += 0.15 * rng.normal(size=atoms.positions.shape)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True)
        frames.append((atoms, Labels(atoms.get_potential_energy(), atoms.get_forces(), None)))
    assert certain(judge(frames)) == set()


def test_hot_and_crushed_molecules_are_quiet():
    rng = np.random.default_rng(0)
    frames = []
    for i in range(60):
        atoms = molecule("CH3CH2OH")
        atoms.positions += (0.05 if i % 2 else 0.25) * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        frames.append((atoms, Labels(atoms.get_potential_energy(), atoms.get_forces(), None)))
    assert not [one for one in judge(frames) if one.frames and one.certain]


@pytest.mark.parametrize("name", ["water", "lips", "combustion_cho", "ta", "nbmotaw", "oxides", "adsorption"])
def test_shared_sets_are_quiet(name):
    path = SHARED / name / "train.extxyz.xz"
    if not path.exists():
        pytest.skip("the reference data (../shared/data) are not on this machine")
    assert judge(labelled(read_frames(path, index=":100"))) == []


# The pieces.


def test_ratio_needs_agreement():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    assert robust_ratio(rng.normal(size=200), x, 0.1) is None
    found = robust_ratio(-3 * x * np.exp(0.1 * rng.normal(size=200)), x, 0.1)
    assert found is not None
    assert found.value == pytest.approx(-3.0, rel=0.1)
    assert robust_ratio(x[:10], x[:10], 0.1) is None


def test_nothing_is_explained_by_nothing():
    assert explain([], None, 9.0).changes == ()
    usual = [Evidence("stiffness", Ratio(1.2, 0.3, 100), {"forces": 1, "positions": 2})]
    assert explain(usual, None, 9.0).changes == ()
    verdict = explain([Evidence("stiffness", Ratio(23.0, 0.3, 100), {"forces": 1, "positions": 2})], None, 9.0)
    assert verdict.certain
    assert verdict.changes[0].label == "forces"


def test_inspect_says_it(tmp_path, ethanol):
    wrong = scaled(ethanol[:60], "forces", 23.0605)
    for atoms, labels in wrong:
        atoms.calc.results["forces"] = labels.forces
    path = tmp_path / "wrong.h5"
    write_hdf5(path, [atoms for atoms, _ in wrong])
    facts = inspect_data(path)
    assert "CERTAINLY WRONG" in dict(facts.lines())["units and signs"]
    (found,) = facts.to_dict()["findings"]
    assert found["label"] == "forces"
    assert found["factor"] == pytest.approx(23.06, rel=1e-3)


def test_an_isolated_atom_beside_its_crystal_is_quiet():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(59):
        atoms = bulk("Ag", cubic=True) * (2, 1, 1)
        atoms.positions += 0.02 * rng.standard_normal(atoms.positions.shape)
        atoms.calc = EMT()
        frames.append((atoms, Labels(-2.70 * len(atoms) + 0.001 * rng.standard_normal(), atoms.get_forces(), None)))
    # -2.70 in rydberg is about -0.198.
    alone = ase.Atoms("Ag", cell=[20, 20, 20], pbc=True)
    frames.append((alone, Labels(-0.198, np.zeros((1, 3)), None)))
    assert judge(frames) == []


def test_the_most_similar_of_large_clusters():
    rng = np.random.default_rng(0)
    positions = 3.0 * rng.random((3, 300, 3)) * np.array([10.0, 1.0, 1.0])
    positions[2] = positions[0] + 1e-3 * rng.standard_normal((300, 3))
    sample = [(ase.Atoms("Ar300", p), Labels(0.1 * i, np.zeros((300, 3)), None)) for i, p in enumerate(positions)]
    found = works(sample, 1.0)
    assert (found.first.tolist(), found.second.tolist()) == ([0], [2])
