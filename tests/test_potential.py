"""Potential: constants, files, prediction of many, the ASE calculator, pytree behaviour, bad input."""

import dataclasses
import subprocess
import sys

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

import leignn_jax as leignn
from leignn_jax.errors import ConfigError, ElementError, FileFormatError, StructureError
from leignn_jax.potential import _compute

pytestmark = pytest.mark.usefixtures("fast_compiles")


@pytest.fixture(scope="module")
def potential():
    config = leignn.preset("small", elements=("H", "O", "Si"), features=16)
    return leignn.Potential.create(
        config, jax.random.key(0), reference_energies={"O": -432.1, "Si": -155.5}, scale=2.0, metadata={"data": "none"}
    )


@pytest.fixture
def silicon():
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def test_float32_keeps_small_differences_of_large_energies(potential, silicon):
    single, double = potential.predict(silicon), potential.predict(silicon, dtype="float64")
    assert double.energy < -8 * 150
    assert single.energy == pytest.approx(double.energy, abs=1e-4)
    assert single.atomic_energies.sum() == pytest.approx(single.energy, abs=1e-5)


def test_scale_and_references(potential, silicon):
    network = potential.replace(reference_energies=np.zeros(3), scale=np.ones(()))
    ours = potential.replace(config=potential.config)
    zbl = potential.replace(scale=np.zeros(())).predict(silicon).energy - 8 * -155.5
    without = network.predict(silicon).energy - zbl
    assert ours.predict(silicon).energy == pytest.approx(2 * without + zbl + 8 * -155.5, abs=1e-4)


def test_many_structures_equal_one_by_one(potential, silicon):
    many = [silicon, ase.build.molecule("H2O"), ase.build.bulk("Si"), silicon * (2, 1, 1), ase.Atoms("O")]
    for atoms, together in zip(many, potential.predict(many, batch_atoms=12), strict=True):
        alone = potential.predict(atoms)
        assert together.energy == pytest.approx(alone.energy, abs=2e-5)
        np.testing.assert_allclose(together.forces, alone.forces, atol=2e-5)
        np.testing.assert_allclose(together.stress, alone.stress, atol=1e-6)


def test_save_and_load_are_bit_for_bit(potential, silicon, tmp_path):
    path = tmp_path / "folder" / "silicon.safetensors"
    potential.save(path)
    again = leignn.load_potential(path)
    assert again.config == potential.config
    assert again.metadata == {"data": "none"}
    assert jax.tree.structure(again) == jax.tree.structure(potential)
    jax.tree.map(np.testing.assert_array_equal, again, potential)
    assert again.predict(silicon).energy == potential.predict(silicon).energy
    assert [p.name for p in path.parent.iterdir()] == ["silicon.safetensors"]


def test_damaged_potential_files(potential, tmp_path):
    path = tmp_path / "p.safetensors"
    potential.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(FileFormatError, match="Truncated"):
        leignn.load_potential(path)
    path.write_bytes(content[:-3] + b"abc")
    with pytest.raises(FileFormatError, match="edited or damaged"):
        leignn.load_potential(path)
    path.write_bytes(content.replace(b'\\"features\\": 16', b'\\"features\\": 18'))
    with pytest.raises(FileFormatError, match="edited or damaged"):
        leignn.load_potential(path)
    path.write_bytes(b"")
    with pytest.raises(FileFormatError):
        leignn.load_potential(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        leignn.load_potential(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(potential, tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    potential.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        potential.replace(scale=np.asarray(3.0)).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_calculator_follows_a_simulation_without_recompiling(potential, silicon):
    atoms = silicon * (2, 2, 1)
    atoms.calc = potential.calculator(dtype="float64", skin=0.3)
    atoms.get_potential_energy()
    rng = np.random.default_rng(0)
    atoms.set_velocities(0.02 * rng.normal(size=(len(atoms), 3)))
    compiled, lists = _compute._cache_size(), 0
    steps = VelocityVerlet(atoms, 1.0 * units.fs)
    for _ in range(40):
        before = atoms.calc._listed
        steps.run(1)
        lists += atoms.calc._listed is not before
        fresh = potential.predict(atoms, dtype="float64") if _ % 13 == 0 else None
        if fresh is not None:
            assert atoms.get_potential_energy() == pytest.approx(fresh.energy, abs=1e-9)
            np.testing.assert_allclose(atoms.get_forces(), fresh.forces, atol=1e-9)
    assert 1 <= lists < 20
    # predict() above has its own shapes; the calculator itself stays in one program.
    assert atoms.calc._sizes[0] == 32
    assert _compute._cache_size() - compiled <= 2


def test_calculator_properties(potential, silicon):
    silicon.calc = potential.calculator()
    prediction = potential.predict(silicon)
    assert silicon.get_potential_energy(force_consistent=True) == pytest.approx(prediction.energy, abs=1e-5)
    np.testing.assert_allclose(silicon.get_stress(voigt=False), prediction.stress, atol=1e-6)
    np.testing.assert_allclose(silicon.get_potential_energies().sum(), prediction.energy, atol=1e-5)
    silicon.set_cell(silicon.cell * 1.02, scale_atoms=True)
    assert silicon.get_potential_energy() == pytest.approx(potential.predict(silicon).energy, abs=1e-5)
    molecule = ase.build.molecule("H2O")
    molecule.calc = potential.calculator()
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three"):
        molecule.get_stress()


def test_hessian_is_the_derivative_of_forces(potential):
    water = ase.build.molecule("H2O")
    graph = potential.to_graph(water, "float64")
    with jax.enable_x64(True):
        hessian = np.asarray(jax.jit(lambda p, g: p.hessian(g))(potential, graph))
    np.testing.assert_allclose(hessian, hessian.transpose(2, 3, 0, 1), atol=1e-10)
    step = np.zeros((3, 3))
    step[1, 2] = 1e-5
    plus, minus = (ase.Atoms("OHH", water.positions + s) for s in (step, -step))
    finite = (
        -(potential.predict(plus, dtype="float64").forces - potential.predict(minus, dtype="float64").forces) / 2e-5
    )
    np.testing.assert_allclose(hessian[1, 2], finite, atol=1e-6 * np.abs(hessian).max())


def test_a_committee_is_one_vmap(potential, silicon):
    config = potential.config
    members = [leignn.Potential.create(config, jax.random.key(seed)) for seed in range(3)]
    committee = jax.tree.map(lambda *x: jnp.stack(x), *members)
    graph = potential.to_graph(silicon)
    together = jax.jit(jax.vmap(lambda p, g: p.energy_and_forces(g), (0, None)))(committee, graph)
    for k, member in enumerate(members):
        energy, forces = jax.jit(lambda p, g: p.energy_and_forces(g))(member, graph)
        np.testing.assert_allclose(together[0][k], energy, rtol=1e-5)
        np.testing.assert_allclose(together[1][k], forces, atol=1e-5)


def test_gradients_are_finite_where_geometry_is_degenerate(potential):
    cases = {
        "one atom": ase.Atoms("O"),
        "dimer at 0.3 Å": ase.Atoms("OH", [[0, 0, 0], [0.3, 0, 0]]),
        "no neighbours": ase.Atoms("OHH", [[0, 0, 0], [90, 0, 0], [0, 90, 0]]),
        "inversion centre": ase.build.bulk("Si"),
    }

    @jax.jit
    def force_loss_gradient(potential, graph):
        return jax.grad(lambda p: (p.energy_and_forces(graph)[1] ** 2).sum())(potential)

    for name, atoms in cases.items():
        graph = potential.to_graph(atoms).pad(8, 128, 64, 2)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(force_loss_gradient(potential, graph))), name
        assert np.isfinite(potential.predict(atoms).forces).all(), name


def test_repulsion_keeps_atoms_apart(potential):
    distances = np.array([0.2, 0.3, 0.4, 0.5])
    energies = [potential.predict(ase.Atoms("Si2", [[0, 0, 0], [d, 0, 0]])).energy for d in distances]
    assert (np.diff(energies) < -20).all()


def test_walls_stand_where_data_end(potential, tmp_path):
    """Nothing changes at the distances of the data; below, a pair pays, in every image, and by nobody else's wall, and the
    network sees no pair nearer than nine tenths of that."""
    walled = potential.with_walls({("H", "H"): 1.3, ("Si", "O"): 1.5, ("C", "C"): 1.2})
    assert walled.wall_distances == {("H", "H"): 1.3, ("O", "Si"): 1.5}

    def pair(symbols, distance):
        return ase.Atoms(symbols, [[0, 0, 0], [0, 0, distance]], cell=[9, 9, 9], pbc=True)

    def network(of, symbols, distance):
        """Without the repulsion of the nuclei and walls."""
        bare = of.replace(config=dataclasses.replace(of.config, repulsion=False), walls=None)
        return bare.predict(pair(symbols, distance), dtype="float64").energy

    def added(symbols, distance, seen):
        change = network(potential, symbols, seen) - network(potential, symbols, distance)
        energies = [of.predict(pair(symbols, distance), dtype="float64").energy for of in (walled, potential)]
        return energies[0] - energies[1] - change

    seen = 1.3 * (1 - 0.1 * 2 ** (-1 / 3))
    assert added("H2", 1.17, seen) == pytest.approx(1.0)
    assert added("H2", 9 - 1.17, seen) == pytest.approx(1.0)
    seen = 1.5 * (1 - 0.2 * 9 ** (-1 / 3))
    assert added("OSi", 1.2, seen) == pytest.approx(8.0)
    assert added("SiO", 1.2, seen) == pytest.approx(8.0)
    assert added("H2", 1.3, 1.3) == added("OH", 0.7, 0.7) == 0.0

    atoms = ase.Atoms("H3OSi", [[0, 0, 0], [1.1, 0, 0], [0, 1.2, 0.1], [3, 0, 0], [3, 1.2, 0.5]])
    forces = walled.predict(atoms, dtype="float64").forces
    for i, axis in ((1, 0), (4, 1)):
        ends = []
        for step in (-1e-4, 1e-4):
            moved = atoms.copy()
            moved.positions[i, axis] += step
            ends.append(walled.predict(moved, dtype="float64").energy)
        assert -(ends[1] - ends[0]) / 2e-4 == pytest.approx(forces[i, axis], rel=1e-6)

    walled.save(tmp_path / "walled.safetensors")
    again = leignn.load_potential(tmp_path / "walled.safetensors")
    assert again.wall_distances == walled.wall_distances
    assert "H-H 1.30 Å" in again.summary()["walls below"]
    with pytest.raises(ConfigError, match="must begin at a positive"):
        potential.with_walls({("H", "H"): 0.0})
    bare = leignn.Potential.create(leignn.preset("small", elements=("H",), repulsion=False), jax.random.key(0))
    with pytest.raises(ConfigError, match="repulsion=True"):
        bare.with_walls({("H", "H"): 1.0})


def test_bad_input_is_named(potential, silicon):
    with pytest.raises(ElementError, match=r"Atom 0 is C, .* it knows H, O, Si"):
        potential.predict(ase.build.molecule("CH4"))
    with pytest.raises(ElementError, match=r"Structure 1: Atom 0 is C"):
        potential.predict([silicon, ase.build.molecule("CH4")])
    silicon.positions[3, 1] = np.nan
    with pytest.raises(StructureError, match="Atom 3"):
        potential.predict(silicon)
    silicon.calc = potential.calculator()
    with pytest.raises(StructureError, match="Atom 3"):
        silicon.get_potential_energy()
    with pytest.raises(ConfigError, match="dtype"):
        potential.predict(silicon, dtype="float16")
    with pytest.raises(ConfigError, match="skin"):
        potential.calculator(skin=-1.0)
    with pytest.raises(ConfigError, match=r"Reference energies of \['C'\]"):
        leignn.Potential.create(potential.config, jax.random.key(0), reference_energies={"C": 1.0})
    broken = potential.replace(scale=np.asarray(np.nan))
    with pytest.raises(StructureError, match="no finite number"):
        broken.predict(ase.build.bulk("Si"))


def test_html_shows_what_it_is_and_escapes(potential):
    shown = potential.replace(metadata_json='{"data": "<b>"}')._repr_html_()
    assert "16 features x 2 layers" in shown
    assert "&lt;b&gt;" in shown
    assert repr(potential) == f"Potential(H, O, Si; 16 features x 2 layers, cutoff {potential.cutoff:g} Å)"


def test_import_is_quick_and_changes_no_setting():
    code = (
        "import sys, jax; before = dict(jax.config.values); import leignn_jax; "
        "after = dict(jax.config.values); assert all(after[key] == before[key] for key in before); "
        "assert not {'jax_md', 'matplotlib', 'e3nn_jax', 'orbax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("listed", [True, False])
def test_an_atom_that_is_nowhere_has_no_energy(potential, silicon, listed):
    """Whether lists still have its pairs or not; other structures of the batch are as they were."""
    good = leignn.Graph.from_ase(silicon, potential.cutoff)
    positions = np.array(good.positions)
    positions[3] = np.nan
    bad = good.replace(positions=positions)
    if not listed:
        ends = np.stack([good.lists.receivers, good.lists.senders])
        bad = bad.replace(pair_mask=np.asarray(good.pair_mask) & (ends != 3).all(0))
    out = _compute(potential, leignn.Graph.batch([bad, good]))
    assert np.isnan(out.energy[0])
    assert float(out.energy[1]) == pytest.approx(float(_compute(potential, good).energy[0]), rel=1e-5)
    assert np.isfinite(out.forces[8:]).all()
    stretched = good.replace(cell=np.full_like(good.cell, np.nan))
    assert np.isnan(_compute(potential, stretched).energy).all()


def test_atoms_in_one_place_are_far_from_any_minimum(potential, silicon):
    graph = leignn.Graph.from_ase(silicon, potential.cutoff)
    positions = np.array(graph.positions)
    a, b = int(graph.lists.receivers[0]), int(graph.lists.senders[0])
    near = positions.copy()
    shift = np.asarray(graph.vectors()[0])
    positions[b] -= shift
    near[b] -= 0.999 * shift
    there, beside = (_compute(potential, graph.replace(positions=x)) for x in (positions, near))
    assert a != b
    assert float(there.energy[0]) > float(beside.energy[0]) > 1e4
    assert np.isfinite(there.forces).all()


def test_a_potential_needs_elements_and_a_scale():
    with pytest.raises(ConfigError, match="elements: the model needs"):
        leignn.Potential.create(leignn.preset("small"), jax.random.key(0))
    with pytest.raises(ConfigError, match="scale must be a number of at least 0"):
        leignn.Potential.create(leignn.preset("small", elements=("Si",)), jax.random.key(0), scale=-1.0)


def test_numbers_of_numpy_are_numbers(tmp_path):
    plain = {"features": 8, "layers": 1, "cutoff": 4.0, "smooth_cutoff": True, "radial_basis": "bessel"}
    values = {name: np.array([value])[0] for name, value in plain.items()} | {"elements": np.array(["Si"]).tolist()}
    config = leignn.preset("small", **values)
    assert config == leignn.preset("small", **plain, elements=("Si",))
    assert [type(x) for x in config.to_dict().values()] == [
        type(x) for x in leignn.preset("small", **plain, elements=("Si",)).to_dict().values()
    ]
    leignn.Potential.create(config, jax.random.key(0)).save(tmp_path / "silicon.safetensors")


def test_a_gradient_step_leaves_walls_alike_in_both_orders(potential, tmp_path):
    walled = potential.with_walls({("H", "O"): 1.4})
    atoms = ase.Atoms("HO", positions=[[0, 0, 0], [0.95, 0, 0]])
    graph = leignn.Graph.from_ase(atoms, walled.cutoff)
    slope = jax.grad(lambda p: p.energy(graph)[0])(walled)
    assert np.abs(slope.walls).max() > 0
    moved = jax.tree.map(lambda x, g: np.asarray(x) - 1e-6 * np.asarray(g), walled, slope)
    np.testing.assert_array_equal(moved.walls, np.asarray(moved.walls).T)
    moved.save(tmp_path / "moved.safetensors")
    leignn.load_potential(tmp_path / "moved.safetensors")


def test_a_folder_is_no_place_for_a_potential(potential, tmp_path):
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        potential.save(tmp_path)
    assert not list(tmp_path.iterdir())
