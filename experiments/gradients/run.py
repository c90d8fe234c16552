"""Gradients through simulations: what they cost, how they grow, and what they can be used for.

    python experiments/gradients/run.py            # about 15 minutes on one CPU core

1. Memory and time of one gradient against the number of steps, in each mode (8 atoms of Si, trained potential, float32).
   Memory is the scratch that XLA plans for the compiled program.
2. Growth of a gradient with the horizon beside the growth of a small displacement (liquid and solid argon, float64).
3. Two parameters of a Lennard-Jones potential recovered from a trajectory of a known one, by gradient descent through
   the rollout.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ase.build
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.optimize

import leignn_jax as leignn
from leignn_jax.differentiable.rollout import without_constants
from leignn_jax.simulation.ensembles import NVE
from leignn_jax.simulation.simple_models import LennardJones

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
run = leignn.differentiable


def cost(steps_list: Sequence[int]) -> list[dict]:
    """Memory and seconds of the gradient of the last energy by the initial velocities."""
    potential = leignn.load_potential("si")
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    system, state = run.start(potential, atoms, NVE(), temperature=300.0)
    model = without_constants(potential)
    rows = []
    for steps in steps_list:

        def loss(velocities, rollout, steps=steps):
            return rollout(model, NVE(), system, state.replace(velocities=velocities), 1.0, steps).state.energy.sum()

        def forward(velocities, loss=loss):
            return loss(velocities, run.rollout)

        programs = {"no gradient": jax.jit(forward)}
        programs |= {mode: run.value_and_grad(loss, mode, inputs_at_once=24) for mode in run.MODES}
        compiled = {mode: program.lower(state.velocities).compile() for mode, program in programs.items()}
        times: dict[str, list[float]] = {mode: [] for mode in compiled}
        for _ in range(7 if steps <= 300 else 3):  # in turns, since the machine's speed varies
            for mode, program in compiled.items():
                begun = time.perf_counter()
                jax.block_until_ready(program(state.velocities))
                times[mode].append(time.perf_counter() - begun)
        for mode, program in compiled.items():
            memory = program.memory_analysis().temp_size_in_bytes
            rows.append({"mode": mode, "steps": steps, "mib": memory / 2**20, "seconds": float(np.median(times[mode]))})
            print(rows[-1], flush=True)
    return rows


def growth() -> dict[str, dict]:
    """Norms of a displaced trajectory's difference and of reverse gradients, by the horizon."""
    out = {}
    model = LennardJones(cutoff=6.5)
    for name, lattice, kelvin in (("solid", 5.3, 20.0), ("liquid", 5.9, 150.0)):
        with jax.enable_x64(True):
            atoms = ase.build.bulk("Ar", a=lattice, cubic=True) * (3, 3, 3)
            warm = leignn.simulate(
                model,
                atoms,
                "langevin",
                steps=2000,
                timestep=4.0,
                temperature=kelvin,
                dtype="float64",
                save_every=2000,
                progress=False,
            ).atoms
            system, state = run.start(model, warm, NVE(), dtype="float64", skin=1.5)
            direction = jax.random.normal(jax.random.key(0), state.positions.shape)
            direction /= jnp.sqrt((direction**2).sum())

            def positions(first, steps, segment, system=system, state=state):
                begin = state.replace(positions=first)
                return run.rollout(
                    model,
                    NVE(),
                    system,
                    begin,
                    4.0,
                    steps,
                    observe=run.observables.positions,
                    every=25,
                    segment=segment,
                ).seen

            def along(first, steps, positions=positions, direction=direction):
                return (positions(first, steps, "sqrt")[-1] * direction).sum()

            ahead = jax.jit(lambda x, d: jax.jvp(lambda y: positions(y, 1500, None), (x,), (d,))[1])
            moved = ahead(state.positions, direction)
            displacement = jnp.sqrt((moved**2).sum((1, 2, 3)))
            horizons, gradients = [50, 100, 200, 400, 800, 1500], []
            for steps in horizons:
                back = jax.jit(jax.grad(partial(along, steps=steps)))
                gradients.append(float(jnp.sqrt((back(state.positions) ** 2).sum())))
                print(name, steps, gradients[-1], flush=True)
        out[name] = {
            "time_ps": [0.1 * (i + 1) for i in range(60)],
            "displacement": [float(x) for x in displacement],
            "horizons_ps": [4e-3 * n for n in horizons],
            "gradient": gradients,
        }
    return out


def recover() -> dict[str, list]:
    """Epsilon and sigma by L-BFGS through 100 steps, from positions of a trajectory made with the true ones."""
    with jax.enable_x64(True):
        true = LennardJones(epsilon=jnp.asarray(0.0104), sigma=jnp.asarray(3.40), cutoff=6.5)
        atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=0)
        system, state = run.start(true, atoms, NVE(), temperature=60.0, dtype="float64", skin=1.0)

        def seen(model, rollout):
            out = rollout(model, NVE(), system, state, 4.0, 100, observe=run.observables.positions, every=10)
            return out.seen

        target = jax.jit(lambda m: seen(m, run.rollout))(true)

        def loss(logs, rollout):
            model = true.replace(epsilon=jnp.exp(logs["epsilon"]), sigma=jnp.exp(logs["sigma"]))
            return ((seen(model, rollout) - target) ** 2).sum(-1).mean()

        descend = run.value_and_grad(loss, "reverse")
        names = ("epsilon", "sigma")
        history = []

        # Its first step has length one: in these units 2 % of a parameter.
        start, unit = np.log([0.0150, 3.25]), 0.02

        def value_and_slope(x):
            logs = start + unit * x
            value, slope = descend(dict(zip(names, jnp.asarray(logs), strict=True)))
            history.append([float(value), *(float(v) for v in np.exp(logs))])
            return float(value), unit * np.array([float(slope[n]) for n in names])

        scipy.optimize.minimize(
            value_and_slope, np.zeros(2), jac=True, method="L-BFGS-B", options={"gtol": 1e-12, "ftol": 1e-16}
        )
    print("recovered", len(history), history[-1], flush=True)
    return {"loss": [h[0] for h in history], "epsilon": [h[1] for h in history], "sigma": [h[2] for h in history]}


def plot(results: dict) -> None:
    """One figure of everything."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    modes = list(dict.fromkeys(r["mode"] for r in results["cost"]))
    for mode in modes:
        rows = [r for r in results["cost"] if r["mode"] == mode]
        steps = [r["steps"] for r in rows]
        axes[0, 0].loglog(steps, [r["mib"] for r in rows], "o-", ms=4, label=mode)
        axes[0, 1].loglog(steps, [1e3 * r["seconds"] / r["steps"] for r in rows], "o-", ms=4, label=mode)
    axes[0, 0].set(xlabel="steps", ylabel="scratch memory (MiB)", title="memory of one gradient, 8 atoms of Si")
    axes[0, 1].set(xlabel="steps", ylabel="ms per step", title="time of one gradient (24 inputs)")
    for name, color in (("solid", "C0"), ("liquid", "C3")):
        found = results["growth"][name]
        axes[1, 0].semilogy(found["time_ps"], found["displacement"], color, label=f"{name}: |δx(t)| / |δx(0)|")
        axes[1, 0].semilogy(found["horizons_ps"], found["gradient"], color + "o", label=f"{name}: |∂L(t)/∂x(0)|")
    axes[1, 0].set(xlabel="horizon (ps)", ylabel="growth", title="argon: gradients grow as displacements do")
    found = results["recovery"]
    axes[1, 1].semilogy(found["loss"], "k", label="loss (Å²)")
    axes[1, 1].semilogy(np.abs(np.array(found["epsilon"]) / 0.0104 - 1), "C0", label="|ε / ε_true − 1|")
    axes[1, 1].semilogy(np.abs(np.array(found["sigma"]) / 3.40 - 1), "C1", label="|σ / σ_true − 1|")
    axes[1, 1].set(xlabel="gradients taken", ylabel="loss (Å²), relative error", title="parameters from a trajectory")
    for axis in axes.flat:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 0.8))
    figure.savefig(HERE / "results.png", dpi=120)


def table(results: dict) -> str:
    """Figures in words."""
    cost_rows = results["cost"]

    def of(mode, steps, key):
        return next(r[key] for r in cost_rows if r["mode"] == mode and r["steps"] == steps)

    steps = sorted({r["steps"] for r in cost_rows})
    lines = [
        "# Gradients through simulations",
        "",
        f"{results['device']}.",
        "",
        "8 atoms of Si, trained potential (64 features, 2 layers), NVE, float32, gradient by all initial velocities:",
        "",
        "| steps | " + " | ".join(f"{m}: MiB, ms/step" for m in dict.fromkeys(r["mode"] for r in cost_rows)) + " |",
        "|---:|" + "---:|" * len({r["mode"] for r in cost_rows}),
    ]
    for n in steps:
        shown = [
            f"{of(m, n, 'mib'):.1f}, {1e3 * of(m, n, 'seconds') / n:.1f}"
            for m in dict.fromkeys(r["mode"] for r in cost_rows)
        ]
        lines.append(f"| {n} | " + " | ".join(shown) + " |")
    first, last = steps[1], steps[-1]
    slopes = {
        m: np.log(of(m, last, "mib") / of(m, first, "mib")) / np.log(last / first)
        for m in ("reverse", "remat", "forward")
    }
    ratios = [of("reverse", n, "seconds") / of("no gradient", n, "seconds") for n in steps[1:]]
    epsilon, sigma = results["recovery"]["epsilon"], results["recovery"]["sigma"]
    lines += [
        "",
        "Exponent of memory against steps, "
        + f"{first} to {last}: "
        + ", ".join(f"{m} {s:.2f}" for m, s in slopes.items())
        + f". Value and gradient over the value alone, reverse: {min(ratios):.1f} to {max(ratios):.1f}.",
        "",
        "Growth from 1 to 6 ps of a displacement and of the gradient (argon, 108 atoms, NVE, float64): "
        + "; ".join(
            f"{name} {g['displacement'][-1] / g['displacement'][9]:.3g} and "
            f"{g['gradient'][-1] / np.interp(1.0, g['horizons_ps'], g['gradient']):.3g}"
            for name, g in results["growth"].items()
        )
        + ".",
        "",
        f"Recovery by L-BFGS, {len(epsilon)} gradients: epsilon {epsilon[0]:.4f} to {epsilon[-1]:.6f} eV (true 0.0104), "
        f"sigma {sigma[0]:.3f} to {sigma[-1]:.5f} Å (true 3.40).",
    ]
    return "\n".join(lines) + "\n"


STEPS = (10, 30, 100, 300, 1000, 3000)
PARTS = {"recovery": recover, "growth": growth, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=3000, help="steps of the longest rollout in part 1")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="others stay as they are")
    options = parser.parse_args()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results["device"] = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
    for part in options.parts:
        results[part] = PARTS[part]() if part != "cost" else cost([n for n in STEPS if n <= options.longest])
    file.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(table(results))
    plot(results)


if __name__ == "__main__":
    main()
