"""What `estimate` says a gradient costs, and what it then costs.

    python experiments/gradients/costs.py        # costs.json, costs.md; about an hour on two CPU cores; goes on where it was

Bundled potentials, float32, 1 fs. "reverse", "remat" and "reversible": gradient of the mean squared last positions by all
velocities, 64 atoms of Si by NVE and aspirin by Langevin; "forward": by ten numbers that scale velocities of some atoms
each. Time of a gradient is the median of three. Memory is compared with what the compiler plans for the program that is run.
What the estimate itself costs is counted twice: the first time, which compiles, and again with compiled programs kept
on disk (JAX_COMPILATION_CACHE_DIR), as any later call in any process finds them; of the second, how long it was traced,
lowered and read from disk is told apart from what then ran.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import ase.build
import ase.io
import jax
import jax.numpy as jnp

import leignn_jax as leignn
from leignn_jax.simulation.ensembles import NVE, Langevin

HERE = Path(__file__).resolve().parent
run = leignn.differentiable


def silicon():
    atoms = ase.build.bulk("Si", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    return "si", atoms, NVE()


def aspirin():
    return "aspirin", ase.io.read(HERE.parent / "md_speed" / "aspirin.xyz"), Langevin(300.0, 0.01)


def problem(build, steps: int, mode: str):
    name, atoms, ensemble = build()
    potential = leignn.load_potential(name)
    system, state = run.start(potential, atoms, ensemble, temperature=300.0)
    groups = jnp.arange(len(atoms)) % 10

    def loss(argument, rollout):
        velocities = state.velocities * argument[groups][:, None] if mode == "forward" else argument
        out = rollout(potential, ensemble, system, state.replace(velocities=velocities), 1.0, steps)
        return (out.state.positions**2).mean()

    return loss, jnp.ones(10) if mode == "forward" else state.velocities


def seconds(function) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


# Seconds that jax took to trace, lower and compile, or to read from disk what it had compiled.
_preparing: list[float] = []


def _note(name: str, duration: float, **_) -> None:
    if name.startswith("/jax/core/compile/"):
        _preparing.append(duration)


def compare(name: str, build, steps: int, mode: str) -> dict:
    loss, argument = problem(build, steps, mode)
    costs = []
    for _ in range(2):
        begun = time.perf_counter()
        _preparing.clear()
        said = run.estimate(loss, argument, modes=(mode,))[mode]
        costs.append(time.perf_counter() - begun)
        prepared = sum(_preparing)
    program = run.value_and_grad(loss, mode)
    memory = program.lower(argument).compile().memory_analysis().temp_size_in_bytes
    seconds(lambda: program(argument))
    took = statistics.median(seconds(lambda: program(argument)) for _ in range(3))
    row = {
        "system": name,
        "mode": mode,
        "steps": steps,
        "MiB said": said.memory / 2**20,
        "MiB": memory / 2**20,
        "s said": said.seconds,
        "s": took,
        "s for the first estimate": costs[0],
        "s for another": costs[1],
        "s of it preparing": prepared,
    }
    print(row, flush=True)
    return row


def main() -> None:
    jax.monitoring.register_event_duration_secs_listener(_note)
    file = HERE / "costs.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    there = {(r["system"], r["mode"], r["steps"]) for r in rows}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name, build in (("Si, 64 atoms", silicon), ("aspirin", aspirin)):
            for mode in run.MODES:
                for steps in (100, 1000):
                    if (name, mode, steps) not in there:
                        rows.append(compare(name, build, steps, mode))
                        file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "# What `estimate` says, and what it is",
        "",
        f"float32, {os.cpu_count()} CPU cores ({platform.machine()}), jax {jax.__version__}; medians of three.",
        "",
        "| system | mode | steps | MiB said / planned | s said | s taken | ratio | s for the estimate, first / again / "
        "of it running |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['system']} | {r['mode']} | {r['steps']:,} | {r['MiB said']:.1f} / {r['MiB']:.1f} | {r['s said']:.2f} | "
            f"{r['s']:.2f} | {r['s said'] / r['s']:.2f} | {r['s for the first estimate']:.0f} / {r['s for another']:.1f} / "
            f"{r['s for another'] - r['s of it preparing']:.1f} |"
        )
    (HERE / "costs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
