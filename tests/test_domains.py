"""One system divided among devices: what it says and does is what it says and does on one; in processes with 8 devices."""

import logging
import re

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import in_eight

import leignn_jax as leignn
from leignn_jax import list_sizes
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.list_sizes import OVERFLOW_HALO, grown, plan_sizes
from leignn_jax.simulation import AtomEnergy, JaxMD, Metadynamics, Umbrella, divided, ensembles
from leignn_jax.simulation.collective_variables import Distance
from leignn_jax.simulation.dynamics import evaluate, make_lists, make_system
from leignn_jax.simulation.simple_models import IdealGas, LennardJones

pytestmark = pytest.mark.usefixtures("fast_compiles")
ARGON = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)


def network(variant="leignn", **more):
    config = leignn.preset("small", elements=("Ar", "Si"), variant=variant, features=16, cutoff=5.0, **more)
    return leignn.Potential.create(config, jax.random.key(0), scale=0.3)


def argon(*repeat):
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * (repeat or (2, 2, 2))
    atoms.rattle(0.1, seed=0)
    return atoms


def structures():
    """Long and short, closed and open, skewed, smaller than the cutoff, of a number of atoms that eight does not divide."""
    slab = argon(2, 2, 3)
    slab.center(vacuum=6.0, axis=2)
    slab.pbc = (True, True, False)
    drop = argon(2, 2, 2)[:29]
    drop.pbc, drop.cell = False, np.zeros((3, 3))
    skewed = argon(2, 3, 2)
    skewed.set_cell(skewed.cell @ [[1, 0.3, 0], [0, 1, 0.2], [0, 0, 1]], scale_atoms=True)
    tiny = ase.build.bulk("Si", cubic=True)
    tiny.rattle(0.1, seed=1)
    return {"cube": argon(), "bar": argon(1, 1, 12), "slab": slab, "drop": drop, "skewed": skewed[:-3], "tiny": tiny}


def evaluated(model, atoms, mesh=None, skin=0.5):
    system = make_system([atoms], np.float64)
    where = (system.numbers, atoms.positions[None], np.asarray(atoms.cell)[None], system.pbc, model.cutoff, skin)
    place = jnp.asarray(atoms.positions)[None], jnp.asarray(np.asarray(atoms.cell))[None]
    if mesh is None:
        return jax.jit(evaluate)(model, system, make_lists(*where, np.float64), *place)
    neighbors = divided.divided_lists(*where, np.float64, None, mesh)
    assert not np.asarray(neighbors.overflow).any()
    return divided.evaluate_divided(model, system, neighbors, *place, mesh=mesh)


def models():
    def embedded(params, z, vectors, zs, weights):
        return params * jnp.sqrt(1e-3 + (weights / (1 + (vectors**2).sum(-1))).sum())

    return {
        "leignn": network(tensor_features=8),
        "vanilla, repulsion": network("vanilla", repulsion=True),
        "remat, direct": network(remat=True, direct_forces=True),
        "argon": ARGON,
        "atoms": AtomEnergy(embedded, jnp.array(-2.0), 5.0),
        "sum": ARGON + network(),
    }


CASES = [("leignn", "slab", 8), ("atoms", "bar", 3)]
MORE = [("leignn", what, 8) for what in ("skewed", "cube", "bar", "drop", "tiny")]
MORE += [(name, "bar", 3) for name in ("leignn", "vanilla, repulsion", "remat, direct", "argon", "sum")]


def energies_are_the_same(cases):
    with jax.enable_x64(True):
        for name, what, devices in {"some": CASES, "more": MORE}[cases]:
            mesh, model, atoms = divided.device_mesh(devices, 1), models()[name], structures()[what]
            for one, many in zip(evaluated(model, atoms), evaluated(model, atoms, mesh), strict=True):
                np.testing.assert_allclose(many, one, rtol=1e-9, atol=1e-13, err_msg=f"{what}, {name}")


@pytest.mark.parametrize("cases", ["some", pytest.param("more", marks=pytest.mark.slow)])
def test_energies_forces_and_stress_are_those_of_one_device(cases):
    in_eight(__file__, "energies_are_the_same", cases)


def simulated(ensemble, devices, model=None, atoms=None, **settings):
    settings = {"steps": 60, "timestep": 2.0, "temperature": 80.0, "save_every": 20, "dtype": "float64", **settings}
    return leignn.simulate(
        model or ARGON, atoms or argon(), ensemble, devices=devices, progress=False, skin=0.3, **settings
    )


def same(one, other, tolerance=1e-9):
    assert one.trajectory.step[:].tolist() == other.trajectory.step[:].tolist()
    for name in ("positions", "velocities", "cell"):
        np.testing.assert_allclose(getattr(one.trajectory, name)[:], getattr(other.trajectory, name)[:], atol=tolerance)
    for name in one.thermo:
        np.testing.assert_allclose(one.thermo[name], other.thermo[name], rtol=1e-8, atol=1e-8, err_msg=name)


def their_nose_hoover():
    import jax_md

    return JaxMD(jax_md.simulate.nvt_nose_hoover, kT=0.007, tau=100.0)


ENSEMBLES = {
    "nve": ensembles.NVE,
    "nose-hoover": lambda: ensembles.NoseHoover(80.0),
    "langevin": lambda: ensembles.Langevin(80.0),
    "npt": lambda: ensembles.CellRescaling(80.0, every=5),
    "metadynamics": lambda: Metadynamics(ensembles.Langevin(80.0), Distance(0, 40), 0.01, 0.2, every=10, hills=8),
    "jax-md": their_nose_hoover,
}


def simulations_are_the_same(name):
    bar, model = argon(1, 1, 12), ARGON + Umbrella(Distance(1, 30), 20.0, 0.05)
    one, eight = (simulated(ENSEMBLES[name](), devices, model, bar) for devices in (1, 8))
    assert eight.summary["devices"] == 8
    assert eight.summary["list_renewals"] > 1
    same(one, eight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENSEMBLES)
def test_simulations_are_those_of_one_device(name):
    in_eight(__file__, "simulations_are_the_same", name)


def many_steps_are_the_same():
    model = network()
    one, eight = (simulated("nve", devices, model, argon(2, 2, 4), steps=500) for devices in (1, 8))
    same(one, eight)
    assert eight.summary["list_renewals"] > 5
    same(simulated("npt", 1, model, pressure=0.0), simulated("npt", 4, model, pressure=0.0))


@pytest.mark.slow
def test_500_steps_are_those_of_one_device():
    in_eight(__file__, "many_steps_are_the_same")


def resumed_to_the_bit(folder):
    whole = simulated("langevin", 4, out=f"{folder}/whole")
    simulated("langevin", 4, out=f"{folder}/parts", steps=20)
    parts = simulated("langevin", 4, out=f"{folder}/parts", resume=True)
    for name in ("positions", "velocities", "forces"):
        np.testing.assert_array_equal(getattr(whole.trajectory, name)[:], getattr(parts.trajectory, name)[:])
    with pytest.raises(SimulationError, match="devices = 4, not 8"):
        simulated("langevin", 8, out=f"{folder}/parts", resume=True, steps=80)


def test_resumed_on_the_same_devices_to_the_bit(tmp_path):
    in_eight(__file__, "resumed_to_the_bit", str(tmp_path))


def a_halo_that_grows_is_enlarged():
    # Two gases that mix, and no room but for the start: slabs soon touch more atoms.
    atoms = argon(1, 1, 12)
    atoms.set_velocities(np.where(np.arange(len(atoms))[:, None] % 2, 0.02, -0.02) * np.ones(3))
    planned, with_slack, overflows = divided.plan_sizes, list_sizes._with_slack, []

    def tight(*arguments):
        list_sizes._with_slack = lambda size, *_: max(size, 1)
        sizes = planned(*arguments)
        list_sizes._with_slack = with_slack
        return sizes

    class Heard(logging.Handler):
        def emit(self, record):
            if record.msg.startswith("Neighbour lists were too small"):
                overflows.append(record.args[0])

    one = simulated("nve", 1, atoms=atoms)
    divided.plan_sizes = tight
    logger = logging.getLogger("leignn_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(Heard())
    same(one, simulated("nve", 8, atoms=atoms))
    assert any(overflow & OVERFLOW_HALO for overflow in overflows), overflows


def test_a_halo_that_grows_is_enlarged():
    in_eight(__file__, "a_halo_that_grows_is_enlarged")


def only_slabs_side_by_side_exchange():
    from leignn_jax.simulation import chunks

    texts, lowered = [], chunks._chunk

    def spy(*args, **more):
        texts.append(lowered.lower(*args, **more).compile().as_text())
        return lowered(*args, **more)

    chunks._chunk = spy
    simulated("nve", 8, network(), argon(1, 1, 40), steps=20, dtype="float32")
    lines = texts[0].splitlines()
    moved = [line for line in lines if " collective-permute(" in line or " collective-permute-start(" in line]
    named = [re.findall(r"{(\d),(\d)}", line.split("source_target_pairs=")[1].split("}}")[0] + "}") for line in moved]
    pairs = {frozenset(one) for one in named}
    # From the one before and from the one behind, in lists and in features, and from no other.
    assert len(pairs) == 2, pairs
    assert not any(f" {word}(" in line for line in lines for word in ("all-gather", "all-to-all"))


def test_only_slabs_side_by_side_exchange():
    in_eight(__file__, "only_slabs_side_by_side_exchange")


def memory_falls():
    model, atoms = network(), argon(4, 4, 32)
    system = make_system([atoms], np.float32)
    where = (system.numbers, atoms.positions[None], np.asarray(atoms.cell)[None], system.pbc, model.cutoff, 0.5)
    place = jnp.asarray(atoms.positions, jnp.float32)[None], jnp.asarray(np.asarray(atoms.cell), jnp.float32)[None]
    needed = []
    for devices in (1, 2, 4, 8):
        if devices == 1:
            lists = make_lists(*where, np.float32)
            program = jax.jit(evaluate).lower(model, system, lists, *place).compile()
        else:
            mesh = divided.device_mesh(devices, 1)
            lists = divided.divided_lists(*where, np.float32, None, mesh)
            program = divided.evaluate_divided.lower(model, system, lists, *place, mesh=mesh).compile()
        needed.append(program.memory_analysis().temp_size_in_bytes)
    shares = np.array(needed) / needed[0]
    assert (shares[1:] * [2, 4, 8] < [1.3, 1.5, 1.8]).all(), shares


@pytest.mark.slow
def test_memory_of_a_device_falls_with_their_number():
    in_eight(__file__, "memory_falls")


def test_sizes_of_domains():
    bar = argon(1, 1, 12)
    sizes = plan_sizes(bar.positions, np.asarray(bar.cell), bar.pbc, 5.5, 4)
    assert sizes.domains == 4
    assert sizes.axis == 2
    # Slabs thicker than the radius need the one before and the one behind, round the end too.
    assert sizes.halo[0] > 0
    assert sizes.halo[1] == 0
    assert sizes.halo[2] > 0
    larger = grown(sizes, OVERFLOW_HALO, len(bar))
    assert all(a < b for a, b in zip(sizes.halo, larger.halo, strict=True))


def refused_in_words():
    for settings, words in (
        ({"devices": 16}, r"16 were asked for and there are 8 \(cpu\)"),
        ({"devices": 8, "atoms": argon()[:5]}, "5 atoms can't be divided among 8 devices"),
        ({"devices": 8, "model": ARGON + IdealGas()}, "IdealGas may read atoms of other devices"),
        ({"devices": 3, "replicas": 8}, "8 replicas can't be divided among 3 devices"),
    ):
        with pytest.raises(ConfigError, match=words):
            simulated("nve", **settings)


def test_what_can_not_be_divided_is_refused():
    in_eight(__file__, "refused_in_words")
