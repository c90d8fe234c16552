"""Each estimator's gradient against differences of what it gives, and targets that a structure can't have."""

import ase
import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.fitting.config import FitConfig
from leignn_jax.fitting.targets import Targets
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


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_differences_of_what_is_seen(kind, potential, folder):
    """Along a direction of all parameters; the simulations are in float32, the minima in float64."""
    settings = dict(KINDS[kind])
    if "file" in settings:
        settings["file"] = str(folder / settings["file"])
    (one,) = targets_of(folder, potential, settings).each
    seen, gradient = one.slope(potential)
    if settings.get("estimator") == "trajectory" or kind in ("density_of_states", "diffusivity"):
        one.walk.memory = one.walk.memory | {
            name: getattr(one.walk.begin, name) for name in ("positions", "images", "velocities", "cell")
        }
        one.walk.memory["done"] = jnp.int32(0)
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda g: jnp.asarray(rng.normal(size=g.shape) + np.sign(g), jnp.float32), gradient)
    slope = sum(float((g * a).sum()) for g, a in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
    minimum = settings.get("observable") in ("lattice_constant", "elastic_constant", "phonon_frequency")
    h = 1e-4

    def at(amount):
        with jax.enable_x64(minimum):
            params = jax.tree.map(lambda p, a: jnp.asarray(p) + amount * jnp.asarray(a), potential.params, along)
            if minimum:
                params = jax.tree.map(
                    lambda p, a: np.asarray(p, float) + amount * np.asarray(a), potential.params, along
                )
            return float(one.seen(potential.replace(params=params)).loss)

    numeric = (at(h) - at(-h)) / (2 * h)
    assert np.isfinite(float(seen.loss))
    assert slope == pytest.approx(numeric, rel=2e-3 if minimum else 3e-2)


def test_a_sample_is_drawn_anew_when_its_frames_do_not_count(potential, folder):
    """And used as long as they do; what a checkpoint holds gives the same numbers elsewhere."""
    (one,) = targets_of(folder, potential, {**KINDS["pressure"], "sampling": {**SAMPLING, "effective": 0.6}}).each
    one.slope(potential)
    assert int(one.walk.memory["done"]) == 1
    first = one.frames
    one.seen(potential)
    assert one.frames is first
    far = potential.replace(params=jax.tree.map(lambda p: 1.5 * p, potential.params))
    seen = one.seen(far)
    assert int(one.walk.memory["done"]) == 2
    assert float(seen.effective) == pytest.approx(1.0, abs=1e-3)
    (other,) = targets_of(folder, potential, {**KINDS["pressure"], "sampling": {**SAMPLING, "effective": 0.6}}).each
    other.recall(jax.tree.map(np.asarray, one.memory()))
    np.testing.assert_array_equal(other.seen(far).values, one.seen(far).values)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({**KINDS["pressure"], "structure": "molecule.xyz"}, "not periodic in all directions, so it has no pressure"),
        ({**KINDS["rdf"], "pair": ["Cu", "O"]}, "pair names O"),
        ({**KINDS["phonon_frequency"], "modes": [12]}, "4 atoms have 0 to 11"),
        ({**KINDS["density_of_states"], "end": 20000.0}, "show wavenumbers up to"),
        ({"observable": "density", "value": 9.0, "uncertainty": 0.1, "sampling": SAMPLING}, "choose ensemble npt"),
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
