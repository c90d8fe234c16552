"""Gradients through 100 steps of a trained potential against finite differences, in every mode, for every argument.

    python experiments/gradients/check.py       # about ten minutes on one CPU core

float64, 1 fs, Langevin at 300 K with fixed noise: 8 and 64 atoms of Si, aspirin. Model parameters, positions,
velocities, masses, cell and temperature are each moved along a random direction; the loss is a random combination of
the total energy after every ten steps and the last positions. Finite differences are central and of fourth order; their
step is the best of four, since too large ones truncate and too small ones round.
"""

import json
import os
import platform
import time
from pathlib import Path

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np

import leignn_jax as leignn
from leignn_jax.differentiable.rollout import without_constants
from leignn_jax.simulation.ensembles import Langevin

HERE = Path(__file__).resolve().parent
STEPS = 100
AMOUNTS = (1e-2, 1e-3, 1e-4, 1e-5)


def silicon(repeat: int):
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.rattle(0.05, seed=0)
    return atoms


SYSTEMS = {
    "Si, 8 atoms": ("si", lambda: silicon(1)),
    "Si, 64 atoms": ("si", lambda: silicon(2)),
    "aspirin": ("aspirin", lambda: ase.io.read(HERE.parent / "md_speed" / "aspirin.xyz")),
}


def compare(name: str) -> dict:
    """Relative errors by argument, for each mode."""
    run = leignn.differentiable
    folder, build = SYSTEMS[name]
    potential, atoms = leignn.load_potential(folder), build()
    model = without_constants(potential)
    kelvin = jnp.asarray(300.0)
    system, state = run.start(potential, atoms, Langevin(kelvin), temperature=300.0, dtype="float64", skin=1.0)
    rng = np.random.default_rng(0)

    def direction(tree, relative):
        return jax.tree.map(lambda x: relative * jnp.asarray(rng.normal(size=np.shape(x))) * (0.1 + jnp.abs(x)), tree)

    moves = {
        "parameters": direction(jax.tree.map(jnp.asarray, model.params), 0.01),
        "positions": 0.01 * jnp.asarray(rng.normal(size=state.positions.shape)),
        "velocities": 0.1 * jnp.asarray(rng.normal(size=state.velocities.shape)) * jnp.abs(state.velocities).mean(),
        "masses": direction(system.masses, 0.05),
        "temperature": jnp.asarray(30.0),
    }
    if atoms.pbc.all():
        moves["cell"] = 0.02 * jnp.asarray(rng.normal(size=state.cell.shape))
    weights = jnp.asarray(rng.normal(size=STEPS // 10))
    pulls = jnp.asarray(rng.normal(size=state.positions.shape))

    def loss(amounts, rollout):
        def moved(kind, tree):
            if kind not in moves:
                return tree
            return jax.tree.map(lambda x, d: x + amounts[kind] * d, tree, moves[kind])

        begin = state.replace(**{k: moved(k, getattr(state, k)) for k in ("positions", "velocities", "cell")})
        out = rollout(
            model.replace(params=moved("parameters", model.params)),
            Langevin(moved("temperature", kelvin)),
            system.replace(masses=moved("masses", system.masses)),
            begin,
            1.0,
            STEPS,
            observe=run.observables.total_energy,
            every=10,
        )
        return (weights * out.seen[:, 0]).sum() + (pulls * out.state.positions).mean()

    here = {kind: jnp.zeros(()) for kind in moves}
    plain = jax.jit(lambda amounts: loss(amounts, run.rollout))
    found, seconds = {}, {}
    for mode in run.MODES:
        program = run.value_and_grad(loss, mode)
        jax.block_until_ready(program(here))
        begun = time.perf_counter()
        found[mode] = jax.block_until_ready(program(here))[1]
        seconds[mode] = time.perf_counter() - begun
    row = {"system": name, "seconds": seconds, "errors": {}}
    for kind in moves:
        slopes = []
        for h in AMOUNTS:
            f = {k: float(plain({**here, kind: jnp.asarray(k * h)})) for k in (-2, -1, 1, 2)}
            slopes.append((8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h))
        row["errors"][kind] = {
            mode: min(abs(float(found[mode][kind]) - s) / abs(s) for s in slopes) for mode in run.MODES
        }
        print(name, kind, float(found["reverse"][kind]), row["errors"][kind], flush=True)
    return row


def main() -> None:
    with jax.enable_x64(True):
        rows = [compare(name) for name in SYSTEMS]
    (HERE / "check.json").write_text(json.dumps(rows, indent=1) + "\n")
    modes = list(leignn.differentiable.MODES)
    lines = [
        "# Gradients through 100 steps against finite differences",
        "",
        f"Largest relative error of the three modes ({', '.join(modes)}); float64, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), jax {jax.__version__}.",
        "",
        "| system | " + " | ".join(kinds := list(rows[0]["errors"])) + " | s per gradient, by mode |",
        "|---|" + "---:|" * (len(kinds) + 1),
    ]
    for row in rows:
        cells = [f"{max(row['errors'][k].values()):.1e}" if k in row["errors"] else "–" for k in kinds]
        times = ", ".join(f"{row['seconds'][m]:.2f}" for m in modes)
        lines.append(f"| {row['system']} | " + " | ".join(cells) + f" | {times} |")
    (HERE / "check.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
