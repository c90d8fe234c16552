"""jax-md's simulators and the ensembles of this package: the same potential, the same start.

    python experiments/jax_md/run.py          # about ten minutes on one CPU core; writes results.json and results.md

Trajectories and invariants: argon, 108 atoms, Lennard-Jones, 40 K, 2 fs, float64. Gradients: the derivative of the kinetic
energy after 20 steps by the temperature (of NVE by a mass), against central differences, 4 atoms, float64. Times: 64 atoms
of silicon, bundled potential, float32, programs of 50 steps that take turns; medians of seven, and of the ratios.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from jax_md import simulate

import leignn_jax as leignn
from leignn_jax.simulation import JaxMD
from leignn_jax.simulation.dynamics import BOLTZMANN, kinetic_energy
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover
from leignn_jax.simulation.simple_models import LennardJones

HERE = Path(__file__).resolve().parent
REPEATS, STEPS = 7, 50
run = leignn.differentiable


def pairs(kelvin: Any) -> dict[str, tuple[Any, Any]]:
    """Ours and jax-md's, of the same time constants."""
    kT = kelvin * BOLTZMANN
    return {
        "NVE": (NVE(), JaxMD(simulate.nve)),
        "Nose-Hoover": (
            NoseHoover(kelvin, 100.0),
            JaxMD(simulate.nvt_nose_hoover, kT=kT, tau=100.0, chain_length=3),
        ),
        "Langevin": (Langevin(kelvin, 0.01), JaxMD(simulate.nvt_langevin, kT=kT, gamma=0.01)),
        "CSVR": (CSVR(kelvin, 100.0), JaxMD(simulate.temp_csvr, kT=kT, tau=100.0)),
        "NPT": (
            CellRescaling(kelvin, 0.0, compressibility=0.5, pressure_time_constant=500.0),
            JaxMD(simulate.npt_nose_hoover, kT=kT, pressure=0.0, barostat_kwargs={"tau": 500.0}),
        ),
    }


def begin(model, atoms, ensemble, kelvin, dtype):
    """System and state, with room in the lists."""
    sizes = run.start(model, atoms, ensemble, temperature=kelvin, dtype=dtype)[1].neighbors.sizes
    sizes = sizes._replace(neighbors=int(1.8 * sizes.neighbors), pairs=int(1.9 * sizes.pairs))
    return run.start(model, atoms, ensemble, temperature=kelvin, dtype=dtype, sizes=sizes)


def trajectory(ensemble) -> dict[str, np.ndarray]:
    """Positions [Å] and the invariant [eV] of argon, every step."""
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * 3
    atoms.rattle(0.05, seed=1)
    model = LennardJones(cutoff=6.0)
    system, state = begin(model, atoms, ensemble, 40.0, "float64")

    def observe(system, state):
        energy = state.energy + kinetic_energy(system, state.velocities)
        held = ensemble.stored_energy(system, state, 2.0) - state.exchanged
        return state.positions, energy, energy + held

    out = jax.jit(lambda s: run.rollout(model, ensemble, system, s, 2.0, 1000, observe=observe))(state)
    assert bool(out.valid)
    return dict(zip(("positions", "energy", "invariant"), map(np.asarray, out.seen), strict=True))


def gradient(name: str, which: int) -> dict[str, float]:
    """Of the kinetic energy after 20 steps, and its central difference."""
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True)
    atoms.rattle(0.05, seed=1)
    model = LennardJones(cutoff=5.0)
    system, state = begin(model, atoms, pairs(40.0)[name][which], 40.0, "float64")

    def loss(argument, rollout):
        of_system = system.replace(masses=system.masses.at[0, 0].mul(argument / 40.0)) if name == "NVE" else system
        out = rollout(model, pairs(argument)[name][which], of_system, state, 2.0, 20)
        return kinetic_energy(of_system, out.state.velocities)[0]

    slope = float(run.value_and_grad(loss, "reverse")(jnp.asarray(40.0))[1])
    plain = jax.jit(lambda x: loss(x, run.rollout))
    by_difference = float(plain(40.0 + 1e-3) - plain(40.0 - 1e-3)) / 2e-3
    return {"gradient": slope, "difference": by_difference, "apart": abs(slope / by_difference - 1)}


def times(name: str) -> dict[str, Any]:
    """Seconds to compile, milliseconds per step and of a gradient per step; of both, and the ratio within a turn."""
    atoms = ase.build.bulk("Si", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    potential = leignn.load_potential("si")
    programs, compile_seconds = {}, []
    for which, ensemble in enumerate(pairs(300.0)[name]):
        system, state = begin(potential, atoms, ensemble, 300.0, "float32")

        def forward(state, system=system, ensemble=ensemble):
            return run.rollout(potential, ensemble, system, state, 1.0, STEPS).state.positions.sum()

        for kind, function in (
            ("steps", forward),
            ("gradient", jax.grad(lambda p, s=state, f=forward: f(s.replace(positions=p)))),
        ):
            argument = state if kind == "steps" else state.positions
            begun = time.perf_counter()
            programs[kind, which] = (jax.jit(function).lower(argument).compile(), argument)
            if kind == "steps":
                compile_seconds.append(time.perf_counter() - begun)
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for repeat in range(REPEATS + 1):
        for key, (program, argument) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(argument))
            if repeat:
                seconds[key].append((time.perf_counter() - begun) / STEPS * 1000)
    row: dict[str, Any] = {"compile_s": compile_seconds}
    for kind in ("steps", "gradient"):
        ours, theirs = (np.array(seconds[kind, which]) for which in (0, 1))
        row[kind] = [float(np.median(ours)), float(np.median(theirs)), float(np.median(theirs / ours))]
    return row


def main() -> None:
    rows = {}
    for name, both in pairs(40.0).items():
        with jax.enable_x64(True):
            ours, theirs = (trajectory(ensemble) for ensemble in both)
            gradients = [gradient(name, which) for which in (0, 1)]
        apart = np.abs(ours["positions"] - theirs["positions"]).max((1, 2, 3))
        rows[name] = {
            "apart": [float(apart[9]), float(apart[99]), float(apart[999])],
            "spread": [[float(np.std(s["energy"])), float(np.std(s["invariant"]))] for s in (ours, theirs)],
            "gradients": gradients,
            **times(name),
        }
        print(name, rows[name], flush=True)
        results = {"device": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}", "rows": rows}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "results.md").write_text(table(results))


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Ensembles of this package and jax-md's",
        "",
        f"{results['device']}. Pairs are ours / jax-md's; what was run stands at the top of run.py.",
        "",
        "| | positions apart after 10, 100, 1,000 steps (Å) | spread of the energy (meV) | of the invariant (meV) "
        "| gradient against differences | compiling (s) | a step (ms) | ratio | gradient, per step (ms) | ratio |",
        "|---|" + "---|" * 9,
    ]
    for name, row in results["rows"].items():
        apart = ", ".join(f"{x:.1e}" for x in row["apart"])
        energy, invariant = (" / ".join(f"{1000 * s[i]:.3g}" for s in row["spread"]) for i in (0, 1))
        slopes = " / ".join(f"{g['apart']:.0e}" for g in row["gradients"])
        compiling = " / ".join(f"{x:.1f}" for x in row["compile_s"])
        cells = [f"{row[k][0]:.2f} / {row[k][1]:.2f} | {row[k][2]:.2f}" for k in ("steps", "gradient")]
        lines.append(f"| {name} | {apart} | {energy} | {invariant} | {slopes} | {compiling} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
