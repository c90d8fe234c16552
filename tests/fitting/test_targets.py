"""Each estimator's gradient against differences of what it gives, and targets that a structure can't have."""

import ase
import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.fitting.config import FitConfig
from leignn_jax.fitting.targets import Reweighting, Targets
from leignn_jax.training.config import make_config

pytestmark = pytest.mark.usefixtures("fast_compiles")

SAMPLING = {"temperature": 300.0, "timestep": 1.0, "steps": 40, "every": 4, "warm_up": 0, "replicas": 2}


@pytest.fixture(scope="module")
def potential():
    config = leignn.preset(
        "small", elements=("Cu",), features=8, layers=1, num_radial=4, cutoff=4.0, repulsion=True, global_nodes=False
    )
    return leignn.Potential.create(config, jax.random.key(1), scale=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("targets")
    atoms = ase.build.bulk("Cu", cubic=True, a=3.7)
    ase.io.write(path / "cu.xyz", atoms)
    ase.io.write(path / "molecule.xyz", ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]))
    atoms.set_constraint(FixAtoms([0]))
    ase.io.write(path / "held.xyz", atoms)
    r = np.linspace(0, 6, 601)
    np.savetxt(path / "g.txt", np.c_[r, np.ones_like(r)])
    x = np.linspace(0, 700, 701)
    np.savetxt(path / "dos.txt", np.c_[x, np.ones_like(x)])
    return path


def targets_of(folder, potential, *targets):
    filled = [{"structure": str(folder / "cu.xyz"), "name": f"t{i}", **one} for i, one in enumerate(targets)]
    return Targets(make_config({"targets": filled}, (), FitConfig).targets, potential)


KINDS = {
    "pressure": {"observable": "pressure", "value": 1.0, "uncertainty": 0.5, "sampling": SAMPLING},
    "rdf": {
        "observable": "rdf",
        "file": "g.txt",
        "start": 2.0,
        "end": 3.0,
        "spacing": 0.2,
        "uncertainty": 1.0,
        "sampling": SAMPLING,
    },
    "trajectory": {
        "observable": "pressure",
        "value": 1.0,
        "uncertainty": 0.5,
        "estimator": "trajectory",
        "sampling": SAMPLING,
    },
    "density_of_states": {
        "observable": "density_of_states",
        "file": "dos.txt",
        "start": 50.0,
        "end": 600.0,
        "spacing": 50.0,
        "uncertainty": 1e-3,
        "sampling": {**SAMPLING, "ensemble": "nve", "replicas": 1},
    },
    "diffusivity": {"observable": "diffusivity", "value": 0.0, "uncertainty": 1.0, "sampling": SAMPLING},
    "lattice_constant": {"observable": "lattice_constant", "value": 3.6, "uncertainty": 0.05},
    "elastic_constant": {"observable": "elastic_constant", "component": [1, 2], "value": 100.0, "uncertainty": 10.0},
    "phonon_frequency": {"observable": "phonon_frequency", "modes": [9, 10, 11], "value": 7.0, "uncertainty": 1.0},
}


# Which compile for a minute.
_SLOW = (
    "pressure",
    "trajectory",
    "density_of_states",
    "diffusivity",
    "lattice_constant",
    "elastic_constant",
    "phonon_frequency",
)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in _SLOW else ()) for k in KINDS])
def test_gradients_are_differences_of_what_is_seen(kind, potential, folder):
    """Along a direction of all parameters; the simulations are in float32, the minima in float64."""
    settings = dict(KINDS[kind])
    if "file" in settings:
        settings["file"] = str(folder / settings["file"])
    (group,) = targets_of(folder, potential, settings).groups
    minimum, weights = "minimum" in type(group).__name__.lower(), np.float32([1.0])
    gradient, (seen,) = group.slope(potential, weights)
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda g: rng.normal(size=g.shape) + np.sign(g), gradient)
    slope = sum(float((g * a).sum()) for g, a in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))

    def at(amount):
        if not isinstance(group, Reweighting):
            group.recall(group.at_start(0))
        with jax.enable_x64(minimum):
            kind = jnp.float64 if minimum else jnp.float32
            params = jax.tree.map(lambda p, a: jnp.asarray(p + amount * a, kind), potential.params, along)
            return float(group.slope(potential.replace(params=params), weights)[1][0].loss)

    h = 1e-4
    numeric = (at(h) - at(-h)) / (2 * h)
    assert np.isfinite(float(seen.loss))
    assert slope == pytest.approx(numeric, rel=2e-3 if minimum else 3e-2)


@pytest.mark.slow
def test_a_sample_is_drawn_anew_when_its_frames_do_not_count(potential, folder):
    """And used as long as they do; what a checkpoint holds gives the same numbers elsewhere."""
    settings = {**KINDS["pressure"], "sampling": {**SAMPLING, "effective": 0.95}}
    (one,), weights = targets_of(folder, potential, settings).groups, np.float32([1.0])
    one.slope(potential, weights)
    first = one.frames
    one.slope(potential, weights)
    assert one.walk.done == 1
    assert one.frames is first
    far = potential.replace(scale=10 * potential.scale)
    slope, (seen,) = one.slope(far, weights)
    assert one.walk.done == 2
    assert float(seen.effective) == pytest.approx(1.0, abs=1e-3)
    (other,) = targets_of(folder, potential, settings).groups
    other.recall(jax.tree.map(np.asarray, one.memory()))
    jax.tree.map(np.testing.assert_array_equal, other.slope(far, weights), (slope, [seen]))


@pytest.mark.slow
def test_an_epoch_is_judged_by_a_sample_that_no_gradient_has_seen(potential, folder):
    """Which its first update goes on with."""
    targets = targets_of(folder, potential, {**KINDS["pressure"], "period": 1})
    (one,) = targets.groups
    targets.pull(potential, 0)
    trained_on = np.asarray(one.frames["positions"])
    row = targets.row(potential.replace(scale=1.001 * potential.scale))
    assert one.walk.done == 2
    assert not np.array_equal(one.frames["positions"], trained_on)
    assert row["target_t0_effective"] == pytest.approx(1.0, abs=1e-5)
    targets.pull(potential, 1)
    assert one.walk.done == 2


def test_a_walk_goes_on_with_what_its_bath_remembers(potential, folder):
    walk = targets_of(folder, potential, KINDS["rdf"] | {"file": str(folder / "g.txt")}).groups[0].walk
    assert not any(x.any() for x in walk.next().bath["chain_velocities"])
    group = targets_of(folder, potential, KINDS["rdf"] | {"file": str(folder / "g.txt")}).groups[0]
    group.renew(potential)
    assert group.walk.done == 0
    group.slope(potential, jnp.ones(1))
    assert all(x.all() for x in group.walk.next().bath["chain_velocities"])
    again = targets_of(folder, potential, KINDS["rdf"] | {"file": str(folder / "g.txt")}).groups[0]
    again.recall(jax.device_get(group.memory()))
    jax.tree.map(np.testing.assert_array_equal, again.walk.next().bath, group.walk.next().bath)


def test_what_is_simulated_alike_is_simulated_once(potential, folder):
    targets = [KINDS["lattice_constant"], KINDS["elastic_constant"], KINDS["pressure"], KINDS["trajectory"]]
    rdf = {**KINDS["rdf"], "file": str(folder / "g.txt")}
    groups = targets_of(folder, potential, *targets, rdf).groups
    assert [[target.name for target in group.targets] for group in groups] == [["t0", "t1"], ["t2", "t4"], ["t3"]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({**KINDS["elastic_constant"], "structure": "held.xyz"}, "elastic_constant is of atoms that are all free"),
        ({**KINDS["phonon_frequency"], "structure": "held.xyz"}, "phonon_frequency is of atoms that are all free"),
        ({**KINDS["rdf"], "start": 3.5}, r"from start \(3\.5\) to end \(3\) there must be a whole number of spacings"),
        ({**KINDS["rdf"], "spacing": 0.3}, "a whole number of spacings"),
        ({**KINDS["density_of_states"], "spacing": 1e-6}, "one to 100,000"),
        ({**KINDS["pressure"], "structure": "molecule.xyz"}, "not periodic in all directions, so it has no pressure"),
        ({**KINDS["rdf"], "pair": ["Cu", "O"]}, "pair names O"),
        ({**KINDS["phonon_frequency"], "modes": [12]}, "4 atoms have 0 to 11"),
        ({**KINDS["density_of_states"], "end": 20000.0}, "show wavenumbers up to"),
        ({"observable": "density", "value": 9.0, "uncertainty": 0.1, "sampling": SAMPLING}, "choose ensemble npt"),
        ({**KINDS["diffusivity"], "sampling": {**SAMPLING, "every": 20}}, "three frames are needed"),
        ({**KINDS["pressure"], "sampling": {**SAMPLING, "ensemble": "nve"}}, "ensemble with a temperature"),
    ],
)
def test_what_a_structure_can_not_have(settings, says, potential, folder):
    settings = {**settings, "structure": str(folder / settings.get("structure", "cu.xyz"))}
    if "file" in settings:
        settings["file"] = str(folder / settings["file"])
    with pytest.raises(ConfigError, match=says):
        targets_of(folder, potential, settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"targets": []}, "targets"),
        ({"targets": [{**KINDS["lattice_constant"], "name": "a", "structure": "x", "presure": 1}]}, "mean 'pressure'"),
        ({"targets": [{"observable": "rfd"}]}, "mean 'rdf'"),
        ({"targets": [{**KINDS["lattice_constant"], "name": "a", "structure": "x"}] * 2}, "two targets"),
        ({"targets": [{**KINDS["pressure"], "name": "a", "structure": "x", "estimator": "minimum"}]}, "estimator"),
        (
            {"targets": [{**KINDS["pressure"], "name": "a", "structure": "x", "sampling": {**SAMPLING, "every": 3}}]},
            "steps",
        ),
        ({"targets": [{**KINDS["lattice_constant"], "name": "../a", "structure": "x"}]}, "name"),
    ],
)
def test_settings_are_checked(change, says):
    with pytest.raises(ConfigError, match=says):
        make_config(change, (), FitConfig)
