"""Averages by reweighting against simulations at the parameters asked for, and their gradient against other ways to it.

    python experiments/reweighting/run.py       # about ten minutes on one CPU core; results.json, results.md, results.png

Liquid argon: 108 atoms, Lennard-Jones, Langevin at 95 K, 4 fs, float32, 8 replicas from one crystal that starts at three
times the temperature and melts in the part that is discarded (10 ps of 50). One sample; averages at other parameters from
it, and from 8 other replicas that run there. Deviations are in standard errors of the difference.
"""

import json
import os
import platform
import time
from pathlib import Path

import ase.build
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.simulation.simple_models import LennardJones

HERE = Path(__file__).resolve().parent
KELVIN, EPSILON, SIGMA, TIMESTEP, REPLICAS = 95.0, 0.0104, 3.4, 4.0, 8
SIDE = 5.75  # Å, of a cell of four atoms
STEPS, DISCARD, EVERY = 12_500, 2_500, 50
EDGES = np.linspace(2.8, 8.0, 53)
run = leignn.differentiable
RDF = run.observables.rdf(EDGES, 0.05, reach=8.6)


def model(epsilon, sigma=SIGMA) -> LennardJones:
    return LennardJones(epsilon, sigma, cutoff=8.6)


def observe(system, state):
    return {"pressure": run.observables.pressure(system, state), "rdf": RDF(system, state)}


def draw(epsilon: float, kelvin: float, seed: int):
    """A sample, and the seconds that it took with its compilation."""
    begun = time.perf_counter()
    atoms = ase.build.bulk("Ar", a=SIDE, cubic=True) * 3
    ensemble = Langevin(kelvin, 0.005)
    system, state = run.start(model(epsilon), [atoms] * REPLICAS, ensemble, temperature=3 * kelvin, seed=seed)
    sample = run.sample(model(epsilon), ensemble, system, state, TIMESTEP, STEPS, every=EVERY, discard=DISCARD)
    return sample, time.perf_counter() - begun


def average(sample, epsilon: float, kelvin: float):
    found = jax.jit(lambda e, kT: run.reweighted(model(e), sample, observe, kT=kT))(epsilon, kelvin * BOLTZMANN)
    return jax.tree.map(np.asarray, found)


def apart(one, other) -> dict[str, float]:
    """Of pressures, and of the curves by bins: root of the mean square and largest, in standard errors."""
    z = jax.tree.map(lambda a, b, c, d: (a - b) / np.sqrt(c**2 + d**2), one.value, other.value, one.error, other.error)
    curve = z["rdf"][np.asarray(other.value["rdf"]) > 0.05]
    return {
        "pressure": float(z["pressure"]),
        "rdf_rms": float(np.sqrt((curve**2).mean())),
        "rdf_most": float(np.abs(curve).max()),
    }


def slope_by_weights(sample) -> dict[str, float]:
    """d pressure / d epsilon, GPa/eV, its error over replicas, and the seconds of one once compiled."""

    def pressure(epsilon, sample):
        return run.reweighted(model(epsilon), sample, run.observables.pressure, least=1.0).value

    slope = jax.jit(jax.grad(pressure))
    float(slope(EPSILON, sample))
    begun = time.perf_counter()
    whole = float(slope(EPSILON, sample))
    seconds = time.perf_counter() - begun
    # Blocks in time, of all replicas: each is a sample of its own.
    frames, blocks = sample.energy.shape[0], 5
    names = ("positions", "images", "velocities", "cell", "energy", "kT", "pressure", "made")
    parts = []
    for b in range(blocks):
        part = slice(b * frames // blocks, (b + 1) * frames // blocks)
        parts.append(float(slope(EPSILON, sample.replace(**{n: getattr(sample, n)[part] for n in names}))))
    return {"value": whole, "error": float(np.std(parts, ddof=1) / np.sqrt(blocks)), "seconds": seconds}


def slope_through_time(sample, steps: int) -> dict[str, float]:
    """The same through ``steps`` steps from the sample's last frames, of the pressure at their end; one per replica."""
    state = sample.state.replace(
        positions=sample.positions[-1], images=sample.images[-1], velocities=sample.velocities[-1]
    )
    ensemble = Langevin(KELVIN, 0.005)

    def pressures(epsilon):
        settings = {"every": steps, "observe": run.observables.pressure}
        seen = run.rollout(model(epsilon), ensemble, sample.system, state, TIMESTEP, steps, **settings).seen
        return seen[0]

    slope = jax.jit(jax.jacfwd(pressures))
    np.asarray(slope(EPSILON))
    begun = time.perf_counter()
    each = np.asarray(slope(EPSILON))
    return {
        "value": float(each.mean()),
        "error": float(each.std(ddof=1) / np.sqrt(len(each))),
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    sample, seconds = draw(EPSILON, KELVIN, 0)
    print("sample", seconds, flush=True)
    results: dict = {
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}",
        "seconds_of_a_sample": seconds,
        "frames": int(sample.energy.size),
        "cases": {},
    }
    there = {}
    cases = {"as it was made": (1.0, 1.0), "epsilon + 1 %": (1.01, 1.0), "epsilon - 1 %": (0.99, 1.0),
             "epsilon + 3 %": (1.03, 1.0), "kT + 2 %": (1.0, 1.02)}  # fmt: skip
    curves = {}
    for number, (name, (by, warmer)) in enumerate(cases.items()):
        asked = (by * EPSILON, warmer * KELVIN)
        other = average(draw(*asked, 100 + number)[0], *asked)
        found = average(sample, *asked)
        there[name] = (float(other.value["pressure"]), float(other.error["pressure"]))
        curves[name] = (found, other)
        results["cases"][name] = {
            "effective": float(found.effective),
            "by_weights": [float(found.value["pressure"]), float(found.error["pressure"])],
            "simulated": list(there[name]),
            "apart": apart(found, other),
        }
        print(name, results["cases"][name], flush=True)
    (up, up_error), (down, down_error) = there["epsilon + 1 %"], there["epsilon - 1 %"]
    step = 0.02 * EPSILON
    results["slopes"] = {
        "by weights": slope_by_weights(sample),
        "difference of two simulations": {
            "value": (up - down) / step,
            "error": float(np.hypot(up_error, down_error)) / step,
            "seconds": 2 * seconds,
        },
        **{f"through {n} steps": slope_through_time(sample, n) for n in (100, 300, 1000)},
    }
    print(results["slopes"], flush=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(table(results))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    middle = 0.5 * (EDGES[1:] + EDGES[:-1])
    base = curves["as it was made"][0].value["rdf"]
    for axis, name in zip(axes, ("epsilon + 3 %", "kT + 2 %"), strict=True):
        found, other = curves[name]
        axis.plot(middle, found.value["rdf"] - base, label="by weights")
        axis.errorbar(middle, other.value["rdf"] - base, other.error["rdf"], fmt=".", ms=4, label="simulated there")
        axis.set(title=name, xlabel="distance (Å)", ylabel="change of g(r)")
        axis.legend()
    figure.savefig(HERE / "results.png", dpi=110)


def table(results: dict) -> str:
    """Markdown."""
    lines = [
        "# Averages by reweighting",
        "",
        f"{results['device']}, float32; {results['frames']:,} frames of {REPLICAS} replicas, one run each.",
        "",
        "| asked for | frames that count | pressure by weights (MPa) | simulated there (MPa) | apart (standard errors) "
        "| g(r), root mean square of bins | largest |",
        "|---|" + "---:|" * 6,
    ]
    for name, row in results["cases"].items():
        a, b = (f"{1000 * v:.2f} ± {1000 * e:.2f}" for v, e in (row["by_weights"], row["simulated"]))
        z = row["apart"]
        apart = f"{z['pressure']:.1f} | {z['rdf_rms']:.1f} | {z['rdf_most']:.1f}"
        lines.append(f"| {name} | {row['effective']:.0f} | {a} | {b} | {apart} |")
    lines += ["", "| d pressure / d epsilon | GPa/eV | seconds |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {s['value']:.2f} ± {s['error']:.2f} | {s['seconds']:.2f} |"
        for name, s in results["slopes"].items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
