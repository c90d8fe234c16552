"""Replicas divided among devices: the same simulations, nothing crosses, kill and resume; in processes with 8 devices."""

import subprocess
import sys
from pathlib import Path

import ase.build
import numpy as np
import pytest
from eight_devices import environment_of

import leignn_jax as leignn
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.simple_models import LennardJones

MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0)


BEGIN = f"""
import sys
import jax
from leignn_jax.errors import SimulationError
from leignn_jax.simulation import Umbrella
from leignn_jax.simulation.collective_variables import Distance, length, nearest
from leignn_jax.simulation.ensembles import NVE, CellRescaling, Langevin, NoseHoover
sys.path[:0] = {[str(p) for p in Path(__file__).parents[:2]]!r}
from pathlib import Path
from test_divided import ConfigError, MODEL, argon, leignn, np, same, simulated
assert jax.device_count() == 8
"""


def in_eight(program: str) -> None:
    environment = environment_of(8)
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # much is compiled, little computed
    out = subprocess.run(
        [sys.executable, "-c", BEGIN + program], env=environment, capture_output=True, text=True, timeout=600
    )
    assert out.stdout.strip().endswith("done"), out.stderr


def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * 2
    atoms.rattle(0.1, seed=0)
    return atoms


def simulated(ensemble, devices, model=MODEL, replicas=8, **settings):
    settings = {"steps": 60, "timestep": 2.0, "temperature": 80.0, "save_every": 20, "dtype": "float64", **settings}
    return leignn.simulate(
        model, argon(), ensemble, replicas=replicas, devices=devices, progress=False, skin=0.3, **settings
    )


def same(one, other, tolerance=1e-9):
    for a, b in zip(one.trajectory, other.trajectory, strict=True):
        assert a.step[:].tolist() == b.step[:].tolist()
        np.testing.assert_allclose(a.positions[:], b.positions[:], atol=tolerance)
        np.testing.assert_allclose(a.velocities[:], b.velocities[:], atol=tolerance)
    for a, b in zip(one.thermo, other.thermo, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    "ensembles",
    [
        "Langevin(np.linspace(60.0, 95.0, 8)), CellRescaling(80.0, every=5)",
        pytest.param("NVE(), NoseHoover(80.0)", marks=pytest.mark.slow),
    ],
    ids=["langevin and cell", "nve and nose-hoover"],
)
def test_eight_devices_as_one(ensembles):
    in_eight(
        f"""
for ensemble in ({ensembles}):
    one, eight = simulated(ensemble, 1), simulated(ensemble, 8)
    assert eight.summary["devices"] == 8 and eight.summary["list_renewals"] > 1
    same(one, eight)
print("done")
"""
    )


@pytest.mark.slow
def test_a_potential_per_replica_goes_with_it():
    in_eight(
        """
windows = MODEL + Umbrella(Distance(0, 1), np.linspace(3.5, 4.2, 8), 0.5)
same(simulated("langevin", 1, windows), simulated("langevin", 4, windows))
# As many weights as replicas, and yet all of them are every replica's.
def weighted(w, positions, cell, pbc):
    return (w * length(nearest(positions, cell, pbc, np.zeros(8, int), np.arange(1, 9)))).sum()
mean = jax.tree_util.Partial(weighted, np.linspace(0.0, 0.2, 8))
pulled = MODEL + Umbrella(mean, np.linspace(2.0, 3.0, 8), 0.05)
same(simulated("langevin", 1, pulled), simulated("langevin", 8, pulled))
print("done")
"""
    )


def test_nothing_crosses_within_a_step():
    in_eight(
        """
from leignn_jax.simulation import chunks
texts = []
lowered = chunks._chunk
def spy(*args, **more):
    texts.append(lowered.lower(*args, **more).compile().as_text())
    return lowered(*args, **more)
chunks._chunk = spy
simulated(NVE(), 8)
crossing = [line for line in texts[0].splitlines() if any(f" {w}(" in line for w in (
    "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"))]
assert len(crossing) == 1 and "all-reduce" in crossing[0] and "s32[]" in crossing[0], crossing
print("done")
"""
    )


def test_resumed_on_the_same_devices_to_the_bit(tmp_path):
    in_eight(
        f"""
tmp_path = Path({str(tmp_path)!r})
from leignn_jax.simulation import chunks
whole = simulated("langevin", 4, out=tmp_path / "whole")
simulated("langevin", 4, out=tmp_path / "parts", steps=20)
parts = simulated("langevin", 4, out=tmp_path / "parts", resume=True)
for a, b in zip(whole.trajectory, parts.trajectory, strict=True):
    np.testing.assert_array_equal(a.positions[:], b.positions[:])
assert chunks._chunk._cache_size() == 1
try:
    simulated("langevin", 8, out=tmp_path / "parts", resume=True, steps=80)
except SimulationError as error:
    assert "devices = 4, not 8" in str(error)
    print("done")
"""
    )


@pytest.mark.slow
def test_a_replica_that_breaks_stops_alone():
    in_eight(
        """
atoms = [argon() for _ in range(8)]
atoms[5].positions[1] = atoms[5].positions[0] + 0.4
found = leignn.simulate(MODEL, atoms, "nve", steps=40, timestep=2.0, temperature=80.0, devices=8, progress=False)
stopped = found.summary["stopped"]
assert stopped[5] is not None and [one for r, one in enumerate(stopped) if r != 5] == [None] * 7, stopped
assert found.trajectory[0].step[-1] == 40 or found.thermo[0]["step"][-1] == 40
print("done")
"""
    )


def test_what_can_not_be_divided():
    with pytest.raises(ConfigError, match=r"devices: 64 were asked for and there are 1 \(cpu\)"):
        simulated("nve", 64, replicas=64)
    in_eight(
        """
try:
    simulated("nve", 3)
except ConfigError as error:
    assert "8 replicas can't be divided among 3 devices" in str(error)
    print("done")
"""
    )
