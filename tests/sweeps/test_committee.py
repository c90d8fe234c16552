"""Committees: of many structures at once, in dynamics, against true errors, and as a guide to what to label."""

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import leignn_jax as leignn
from leignn_jax.bench import bench
from leignn_jax.cli import main
from leignn_jax.errors import ConfigError, DataError, ElementError
from leignn_jax.properties.phonons import phonons
from leignn_jax.properties.relax import relax
from leignn_jax.simulation.model_sums import ModelSum, without_constants
from leignn_jax.simulation.own_models import PairEnergy
from leignn_jax.sweeps.calibration import calibration_figure
from leignn_jax.sweeps.committee import CommitteeModel, committee_predict
from leignn_jax.sweeps.select import fingerprints

pytestmark = pytest.mark.usefixtures("fast_compiles")

CONFIG = leignn.preset("small", elements=("Si", "Ge"), features=8, layers=1, num_radial=4, cutoff=4.0)


@pytest.fixture(scope="module")
def potentials():
    energies = {"Si": -100.0, "Ge": -200.0}
    return [
        leignn.Potential.create(CONFIG, jax.random.key(i), reference_energies=energies, scale=0.2) for i in range(4)
    ]


@pytest.fixture(scope="module")
def members(potentials):
    return leignn.committee(potentials)


def crystal(seed, amount=0.1, repeat=1):
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.numbers[::3] = 32
    atoms.rattle(amount, seed=seed)
    return atoms


def molecule():
    return ase.Atoms("SiGe", [[0, 0, 0], [0, 0, 2.2]])


def test_a_list_is_answered_one_by_one(members, potentials):
    frames = [crystal(0), molecule(), crystal(1, repeat=2)]
    together = committee_predict(members, frames, batch_atoms=20)
    assert len(together) == 3
    for atoms, found in zip(frames, together, strict=True):
        one = committee_predict(members, atoms)
        alone = [p.predict(atoms) for p in potentials]
        assert found.energy == pytest.approx(np.mean([p.energy for p in alone]), abs=1e-4)
        assert found.energy == pytest.approx(one.energy, abs=1e-4)
        np.testing.assert_allclose(found.forces_std, np.std([p.forces for p in alone], axis=0), atol=1e-5)
        np.testing.assert_allclose(found.forces, one.forces, atol=1e-5)
        spread = np.sqrt(np.var([p.forces for p in alone], axis=0).sum(-1)).max()
        assert found.doubt == pytest.approx(spread, rel=1e-4)
    with pytest.raises(ElementError, match="Structure 1"):
        committee_predict(members, [crystal(0), ase.Atoms("O")])


def test_its_mean_moves_atoms_in_one_program(members, potentials):
    atoms = crystal(0)
    run = leignn.simulate(
        leignn.CommitteeModel(members), atoms, steps=20, temperature=100.0, log_every=5, save_every=10, dtype="float64"
    )
    ends = [crystal(0), *(atoms.copy() for _ in range(2))]
    for i, end in enumerate(ends[1:], 1):
        end.positions = run.trajectory.positions[i]
    said = committee_predict(members, ends, dtype="float64")
    np.testing.assert_allclose(run.trajectory.energy, [one.energy for one in said], atol=1e-9)
    np.testing.assert_allclose(run.trajectory.forces, [one.forces for one in said], atol=1e-9)
    # Logged at 0, 5, 10, 15, 20; frames are at 0, 10, 20.
    np.testing.assert_allclose(run.thermo["doubt_eV_per_A"][::2], [one.doubt for one in said], rtol=1e-9)
    conserved = run.thermo["conserved_eV"]
    assert np.ptp(conserved) < 0.01 * np.ptp(run.thermo["potential_energy_eV"]) + 1e-4


@pytest.mark.slow
def test_it_stops_where_it_is_unsure(members):
    atoms = crystal(0, 0.02)
    model = leignn.CommitteeModel(members)
    settings = {"steps": 400, "temperature": 600.0, "log_every": 5, "save_every": 20}
    free = leignn.simulate(model, atoms, "langevin", **settings)
    assert free.summary["stopped"] is None
    doubts = free.thermo["doubt_eV_per_A"]
    bound = float(doubts[0] + 0.5 * (doubts.max() - doubts[0]))
    first = int(np.argmax(doubts > bound))
    held = leignn.simulate(model, atoms, "langevin", max_doubt=bound, **settings)
    assert held.summary["stopped"] == (
        f"step {5 * first}: the committee's members disagree on a force by more than max_doubt"
    )
    # The line that says so is there, and the last structure is the doubtful one.
    np.testing.assert_array_equal(held.thermo["doubt_eV_per_A"], doubts[: first + 1])
    assert committee_predict(members, held.atoms).doubt == pytest.approx(doubts[first], rel=1e-3)
    assert committee_predict(members, held.atoms).doubt > bound
    # The trajectory has it too, between the frames that were due.
    assert held.trajectory.step.tolist() == [*range(0, 5 * first, 20), 5 * first]
    np.testing.assert_allclose(held.trajectory.positions[-1], held.atoms.positions, atol=1e-5)


@pytest.mark.slow
def test_each_replica_stops_by_itself(members):
    model = leignn.CommitteeModel(members)
    frames = sorted((crystal(i, 0.1) for i in range(6)), key=lambda atoms: committee_predict(members, atoms).doubt)
    frames = [frames[0], frames[-1]]
    doubts = [one.doubt for one in committee_predict(members, frames)]
    run = leignn.simulate(
        model, frames, steps=10, temperature=1.0, log_every=1, save_every=10, max_doubt=sum(doubts) / 2
    )
    assert run.summary["stopped"][0] is None
    assert "step 1:" in run.summary["stopped"][1]
    assert len(run.thermo[0]["step"]) == 11
    assert [frames.step.tolist() for frames in run.trajectory] == [[0, 10], [0, 1]]


def test_a_committee_in_a_sum(members):
    atoms = crystal(0)

    def wall(params, r):
        return params["a"] * (3.0 - r) ** 2

    model = leignn.CommitteeModel(members) + PairEnergy(wall, {"a": 0.1}, cutoff=3.0)
    assert isinstance(model, ModelSum)
    run = leignn.simulate(model, atoms, steps=5, temperature=100.0, log_every=5, save_every=5)
    assert run.thermo["doubt_eV_per_A"][0] == pytest.approx(committee_predict(members, atoms).doubt, rel=1e-3)
    assert run.trajectory.energy[0] != pytest.approx(committee_predict(members, atoms).energy, abs=1e-3)


def test_a_bound_on_doubt_needs_a_committee(potentials):
    with pytest.raises(ConfigError, match="max_doubt: it is for a committee"):
        leignn.simulate(potentials[0], crystal(0), steps=1, temperature=1.0, max_doubt=0.1)


# ----------------------------------------------------------------------------------------------------------- calibration


def labelled(members, frames, factor, seed=0):
    """With errors that are normal and ``factor`` spreads wide."""
    rng = np.random.default_rng(seed)
    for atoms, said in zip(frames, committee_predict(members, frames), strict=True):
        forces = said.forces + factor * said.forces_std * rng.normal(size=said.forces.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    return frames


def test_a_known_factor_is_found(members):
    frames = labelled(members, [crystal(i, 0.05 + 0.02 * i, repeat=2) for i in range(8)], 2.5)
    found = leignn.calibrate(members, frames)
    assert found.frames == 8
    assert found.factor == pytest.approx(2.5, rel=0.05)
    for width, share in found.coverage.items():
        assert share == pytest.approx(found.expected[width], abs=0.03)
    assert found.expected[1.0] == pytest.approx(0.6827, abs=1e-4)
    assert found.correlation > 0.3
    other = leignn.calibrate(members, frames, factor=1.0)
    assert other.coverage[1.0] == pytest.approx(0.31, abs=0.03)
    said = other.summary()
    assert said["coverage"]["1"] == other.coverage[1.0]
    assert len(calibration_figure(found).axes) == 2


def test_sites_of_symmetry_do_not_blow_up_the_factor(members):
    """There members agree to rounding, and labels have noise of their own: error over spread is without bound."""
    frames = labelled(members, [crystal(i, 0.05 + 0.02 * i, repeat=2) for i in range(8)], 2.5)
    perfect = ase.build.bulk("Si", cubic=True) * 2
    noise = np.random.default_rng(1).normal(0, 1e-3, perfect.positions.shape)
    perfect.calc = SinglePointCalculator(perfect, energy=0.0, forces=noise)
    found = leignn.calibrate(members, [*frames, perfect])
    assert (np.abs(found.error) > 100 * found.spread).any()
    assert found.factor == pytest.approx(2.5, rel=0.3)


def test_frames_without_forces_are_told(members):
    with pytest.raises(DataError, match="Frame 1 has no forces"):
        leignn.calibrate(members, [*labelled(members, [crystal(0)], 1.0), crystal(1)])
    with pytest.raises(ConfigError, match="this is one potential"):
        leignn.calibrate(leignn.Potential.create(CONFIG, jax.random.key(0)), [crystal(0)])


# ------------------------------------------------------------------------------------------------------------- selection


def test_fingerprints_do_not_see_how_a_frame_is_given():
    atoms, elements = crystal(3), (14, 32)
    (one,) = fingerprints([atoms], elements, 4.0)
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    turned.positions += [1.0, -2.0, 0.3]
    for other in (turned, atoms * (2, 1, 1), atoms[::-1]):
        (same,) = fingerprints([other], elements, 4.0)
        np.testing.assert_allclose(same, one, atol=1e-9)
    (moved,) = fingerprints([crystal(4)], elements, 4.0)
    assert np.linalg.norm(moved - one) > 0.05
    assert fingerprints([ase.Atoms("Si")], elements, 4.0).shape == (1, 72)


def test_the_most_doubtful_come_first_and_none_twice(members):
    """Ten frames, each there three times, and once more but for a hundredth of an Å."""
    frames = [crystal(i, 0.02 + 0.01 * i) for i in range(10)]
    near = [atoms.copy() for atoms in frames]
    for i, atoms in enumerate(near):
        atoms.rattle(0.001, seed=50 + i)
    pool = [*frames, *near, *frames, *frames]
    found = leignn.select(members, pool, 6)
    doubts = np.array([one.doubt for one in committee_predict(members, pool)])
    np.testing.assert_allclose(found.doubts, doubts, rtol=1e-4)
    assert found.indices[0] % 10 == np.argmax(doubts) % 10
    assert len({i % 10 for i in found.indices}) == 6
    assert found.distances[0] == np.inf
    assert (np.diff(found.distances[1:]) <= 1e-12).all()

    known = [pool[i] for i in found.indices[:3]]
    rest = leignn.select(members, pool, 3, known=known)
    # Of the doubtful fifteen some are known but for a hundredth of an Å: they come last.
    assert rest.indices[0] % 10 not in {i % 10 for i in found.indices[:3]}
    assert rest.distances.min() > 0
    assert (np.diff(rest.distances) <= 1e-12).all()
    assert len(leignn.select(members, frames, 3, known=frames).indices) == 0
    assert len(leignn.select(members, frames[:2] * 5, 5).indices) == 2
    none = leignn.select(members, pool, 3, least_doubt=2 * float(doubts.max()))
    assert len(none.indices) == 0


def test_members_that_are_copies_are_told(potentials, caplog):
    leignn.committee(potentials)
    assert not caplog.records
    leignn.committee([potentials[0]] * 2)
    assert "same parameters" in caplog.text


def test_one_potential_has_no_doubt_to_choose_by(potentials):
    with pytest.raises(ConfigError, match="one potential has no doubt"):
        leignn.select(leignn.committee(potentials[:1]), [crystal(0)], 1)


def test_known_frames_and_turned_copies_are_not_chosen(members, tmp_path):
    """A file's digits and a turn change a fingerprint by its rounding."""
    pool = [crystal(i, 0.1) for i in range(4)]
    ase.io.write(tmp_path / "known.extxyz", pool[:2])
    known = ase.io.read(tmp_path / "known.extxyz", index=":")
    assert sorted(leignn.select(members, pool, 4, known=known).indices) == [2, 3]
    turned = pool[0].copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    assert len(leignn.select(members, [pool[0], turned], 2).indices) == 1


def test_command_line(members, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    members.save("committee.safetensors")
    pool = [crystal(i, 0.03 * i) for i in range(6)]
    ase.io.write("pool.extxyz", pool)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["leignn", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    assert run("select", "committee.safetensors", "--pool", "pool.extxyz", "--count", "3", "--out", "label.extxyz") in (
        0,
        None,
    )
    expected = leignn.select(members, pool, 3)
    chosen = ase.io.read("label.extxyz", index=":")
    assert [atoms.info["pool_frame"] for atoms in chosen] == expected.indices.tolist()
    assert chosen[0].info["doubt_eV_per_A"] == pytest.approx(expected.doubts.max(), rel=1e-3)
    words = [
        "md",
        "committee.safetensors",
        "pool.extxyz",
        "--steps",
        "20",
        "--temperature",
        "1",
        "--out",
        "md",
        "--quiet",
    ]
    capsys.readouterr()
    assert run(*words, "--max-doubt", "1e-6") == 1
    assert "members disagree" in capsys.readouterr().out


def test_constants_are_taken_off_under_tracing_too(members):
    model = CommitteeModel(members)
    assert not np.asarray(without_constants(model).members.reference_energies).any()
    assert without_constants(model).members.reference_energies.shape == members.reference_energies.shape


def test_one_answer_of_a_committee_is_refused_in_words(members, potentials):
    asked = (
        members.predict,
        lambda atoms: members.calculator(),
        lambda atoms: relax(members, atoms),
        lambda atoms: phonons(members, atoms, supercell=1),
        lambda atoms: bench(members, atoms),
        lambda atoms: members.energy(leignn.Graph.from_ase(atoms, members.cutoff)),
        lambda atoms: members.features(leignn.Graph.from_ase(atoms, members.cutoff)),
    )
    for ask in asked:
        with pytest.raises(ConfigError, match="committee of several"):
            ask(crystal(0))
    walled = potentials[0].with_walls({("Si", "Si"): 2.0})
    with pytest.raises(ConfigError, match="some of these have walls"):
        leignn.committee([walled, potentials[1]])


def test_where_members_agree_their_doubt_has_a_slope_of_zero(members, potentials):
    graph = leignn.Graph.from_ase(ase.build.bulk("Si"), CONFIG.cutoff)
    model = CommitteeModel(members)
    doubts, slopes = jax.value_and_grad(lambda r: model.doubts(graph.replace(positions=r)).sum())(graph.positions)
    assert doubts < 1e-6
    assert np.isfinite(slopes).all()


def test_a_committee_of_committees_is_refused(members, potentials):
    with pytest.raises(ConfigError, match=r"potentials\[1\] is a committee"):
        leignn.committee([potentials[0], members])


def test_labels_of_other_names_calibrate_as_they_evaluate(members):
    frames = [crystal(seed) for seed in range(2)]
    for atoms in frames:
        atoms.arrays["REF_forces"] = np.random.default_rng(0).normal(size=(len(atoms), 3))
    assert leignn.calibrate(members, frames).frames == 2
