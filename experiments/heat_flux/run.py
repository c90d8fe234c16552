"""Thermal conductivity of a Lennard-Jones liquid by Green-Kubo, against a published value; what the heat flux costs.

    python experiments/heat_flux/run.py argon    # results.json after every batch; about 25 minutes on one CPU core
    python experiments/heat_flux/run.py silicon  # cost.json: two minutes
    python experiments/heat_flux/report.py       # results.md, results.png

Argon: 256 atoms at the state point of the published value, T* = 0.722 and rho* = 0.8442 (87.1 K, 1.42 g/cm^3), Lennard-Jones
with the cutoff of 2.5 sigma there too, but taken smoothly to zero from 2.35 sigma on. Every replica begins as a crystal at
three times the temperature, is cooled by a thermostat, and runs at constant energy; the heat flux of every fifth step is
:func:`leignn_jax.analysis.heat_flux` of the saved frames. Replicas run in batches with seeds of their own.

Silicon: 64 atoms of the bundled potential, which passes messages twice, so that energies depend on atoms up to twice the
cutoff away: what one flux by the unfolded graph costs beside one evaluation of energy, forces and stress.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from ase.units import fs, kB

import leignn_jax as leignn
from leignn_jax.analysis import green_kubo_conductivity, heat_current, heat_flux
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.simulation.own_models import PairEnergy

HERE = Path(__file__).resolve().parent
EPSILON, SIGMA = 0.0104, 3.40  # eV, Å
KELVIN = 0.722 * EPSILON / kB
SIDE = (4 * SIGMA**3 / 0.8442) ** (1 / 3)  # Å, of a cell of four atoms
TIMESTEP, EVERY = 4.0, 5  # fs, and steps between frames
MELT, COOL, STEPS = 2_500, 5_000, 25_000
BATCH, BATCHES = 4, 6
CUTOFF, LONGEST = 3_000.0, 8_000.0  # fs, of the integral that is reported, and of the curve that is kept
# W/(m K) of one unit of conductivity in reduced units, k_B / sigma^2 sqrt(epsilon / m).
REDUCED = 1.380649e-23 / (SIGMA * 1e-10) ** 2 * np.sqrt(EPSILON * 1.602176634e-19 / (39.948 * 1.66053907e-27))


def lennard_jones(params, r):
    power = (params["sigma"] / r) ** 6
    return 4 * params["epsilon"] * (power**2 - power)


MODEL = PairEnergy(lennard_jones, {"epsilon": EPSILON, "sigma": SIGMA}, cutoff=2.5 * SIGMA, onset=2.35 * SIGMA)


def batch(seed: int) -> dict:
    """Heat flux ``[replicas, frames, 3]`` of a few replicas, the temperature of each, and facts."""
    crystal = ase.build.bulk("Ar", a=SIDE, cubic=True) * 4
    settings = {"timestep": TIMESTEP, "skin": 1.0, "progress": False}
    began = time.perf_counter()
    quiet = {"save_every": 2_500, "log_every": 2_500, **settings}
    hot, bath = Langevin(3 * KELVIN, 0.005), Langevin(KELVIN, 0.005)
    atoms = leignn.simulate(
        MODEL, crystal, hot, temperature=3 * KELVIN, replicas=BATCH, steps=MELT, seed=seed, **quiet
    ).atoms
    atoms = leignn.simulate(MODEL, atoms, bath, steps=COOL, seed=seed + 1, **quiet).atoms
    made = leignn.simulate(MODEL, atoms, "nve", steps=STEPS, save_every=EVERY, log_every=EVERY, **settings)
    simulated = time.perf_counter()
    fluxes = [
        heat_flux(MODEL, t.positions, t.velocities, crystal.numbers, t.cell[0], layers=1, skin=1.5).total
        for t in made.trajectory
    ]
    energy = np.stack([t["conserved_eV"] for t in made.thermo])
    return {
        "flux": np.stack(fluxes)[:, 1:],
        "kelvin": [float(t["temperature_K"].mean()) for t in made.thermo],
        "pressure_MPa": [float(1e3 * t["pressure_GPa"].mean()) for t in made.thermo],
        "drift_meV_per_atom": float(1e3 * np.abs(energy[:, -50:].mean(1) - energy[:, :50].mean(1)).max() / 256),
        "seconds": [simulated - began, time.perf_counter() - simulated],
    }


def summary(parts: list[dict]) -> dict:
    """What is kept of all batches so far."""
    flux = np.concatenate([p["flux"] for p in parts])
    kelvin = float(np.mean([p["kelvin"] for p in parts]))
    volume = 64 * SIDE**3
    asked = {"volume": volume, "temperature": kelvin, "timestep": TIMESTEP * EVERY}
    found = green_kubo_conductivity(flux, cutoff=CUTOFF, **asked)
    curve = green_kubo_conductivity(flux, cutoff=LONGEST, **asked)
    return {
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}",
        "replicas": len(flux),
        "picoseconds": TIMESTEP * STEPS / 1e3,
        "kelvin": kelvin,
        "kelvin_of_replicas": float(np.std([p["kelvin"] for p in parts], ddof=1)),
        "pressure_MPa": float(np.mean([p["pressure_MPa"] for p in parts])),
        "drift_meV_per_atom": max(p["drift_meV_per_atom"] for p in parts),
        "seconds": np.sum([p["seconds"] for p in parts], axis=0).tolist(),
        "reduced_unit": float(REDUCED),
        "cutoff_fs": found.cutoff,
        "value": found.value,
        "error": found.error,
        "each": found.each.tolist(),
        "time_fs": curve.time.tolist(),
        "running": curve.running.tolist(),
        "running_error": curve.running_error.tolist(),
        "correlation": curve.correlation.tolist(),
    }


def argon() -> None:
    parts = []
    for number in range(BATCHES):
        parts.append(batch(10 * number))
        results = summary(parts)
        (HERE / "results.json").write_text(json.dumps(results) + "\n")
        print(
            len(parts), {k: v for k, v in results.items() if not isinstance(v, list)}, parts[-1]["seconds"], flush=True
        )


def seconds(function, *arguments, repeats: int = 15) -> float:
    """Median of one call, compiled before."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def silicon() -> None:
    """Seconds of one flux and of one evaluation of the forces, and how many atoms and pairs each has to do with."""
    potential, rows = leignn.load_potential("si"), []
    model, _ = potential.split_references()
    for side in (1, 2, 3):
        crystal = ase.build.bulk("Si", cubic=True, a=5.47) * side
        crystal.rattle(0.05, seed=0)
        positions, cell = crystal.positions, crystal.cell.array
        graph = leignn.Graph.from_ase(crystal, model.cutoff)
        unfolded = heat_current.unfold(positions, crystal.numbers, cell, crystal.pbc, model.cutoff, model.config.layers)
        velocities = jnp.asarray(np.random.default_rng(0).normal(0, 0.003, positions.shape), "float32")
        masses = jnp.asarray(crystal.get_masses() / fs**2, "float32")
        moving = (jnp.asarray(positions, "float32"), jnp.asarray(cell, "float32"), velocities, masses)
        force = jax.jit(lambda model, graph: model.compute(graph).forces)
        flux = jax.jit(heat_current.flux)
        began = time.perf_counter()
        for _ in range(5):
            heat_current.unfold(positions, crystal.numbers, cell, crystal.pbc, model.cutoff, model.config.layers)
        laid_out = (time.perf_counter() - began) / 5
        rows.append({
            "atoms": len(crystal), "unfolded_atoms": len(unfolded.origin),
            "pairs": int(graph.pair_mask.sum()), "unfolded_pairs": int(unfolded.graph.pair_mask.sum()),
            "forces_s": seconds(force, model, graph), "flux_s": seconds(flux, model, unfolded, *moving),
            "unfold_s": laid_out,
        })  # fmt: skip
        print(rows[-1], flush=True)
        (HERE / "cost.json").write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("argon", "silicon"))
    {"argon": argon, "silicon": silicon}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
