"""Memory and time of a gradient by every mode, from 10 to 100,000 steps of 64 silicon atoms.

    python experiments/gradients/modes.py              # writes modes.json, modes.md, modes.png; 50 minutes on two CPU cores
    python experiments/gradients/modes.py --large      # 4,096 atoms, 1,000 steps by "reversible": an hour

Bundled potential, NVE, float32, 1 fs, gradient of the last positions by all initial velocities. Memory is what the compiler
plans for scratch, for every length. Time is measured up to the length that is stated, as the ratio of value and gradient
to the same rollout without gradient, run by turns.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import ase.build
import jax
import matplotlib.pyplot as plt

import leignn_jax as leignn

HERE = Path(__file__).resolve().parent
run = leignn.differentiable
LENGTHS = (10, 100, 1000, 10_000, 100_000)
MODES = {
    "reverse": {},
    "remat, sqrt": {"segment": "sqrt"},
    "remat, recursive": {"segment": "recursive"},
    "reversible": {"reversible": True},
}
# How often each length is timed (a first run before them is not counted, but for the longest, where it would not be felt),
# and MiB beyond which a program is not run.
REPEATS, MOST = {10: 5, 100: 5, 1000: 3, 10_000: 2}, 8000


def programs(repeat: int, steps: int, mode: dict):
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.rattle(0.05, seed=0)
    potential, ensemble = leignn.load_potential("si"), leignn.simulation.ensembles.NVE()
    system, state = run.start(potential, atoms, ensemble, temperature=300.0)

    def end(velocities, **how):
        begin = state.replace(velocities=velocities)
        out = run.rollout(potential, ensemble, system, begin, 1.0, steps, **how)
        return (out.state.positions**2).mean()

    there = jax.jit(end).lower(state.velocities).compile()
    and_back = jax.jit(jax.value_and_grad(lambda v: end(v, **mode))).lower(state.velocities).compile()
    return there, and_back, state.velocities


def seconds(program, argument) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(program(argument))
    return time.perf_counter() - begun


def one(name: str, steps: int) -> dict:
    there, and_back, argument = programs(2, steps, MODES[name])
    row = {"mode": name, "steps": steps}
    row["without_mib"] = there.memory_analysis().temp_size_in_bytes / 2**20
    row["mib"] = and_back.memory_analysis().temp_size_in_bytes / 2**20
    if steps in REPEATS and row["mib"] < MOST:
        if steps < max(REPEATS):
            seconds(there, argument), seconds(and_back, argument)
        times = [(seconds(there, argument), seconds(and_back, argument)) for _ in range(REPEATS[steps])]
        row["forward_s"] = statistics.median(a for a, _ in times)
        row["gradient_s"] = statistics.median(b for _, b in times)
        row["ratio"] = statistics.median(b / a for a, b in times)
    print(row, flush=True)
    return row


def draw(rows: list[dict]) -> None:
    figure, (memory, ratio) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in MODES:
        mine = [row for row in rows if row["mode"] == name]
        memory.loglog([r["steps"] for r in mine], [r["mib"] for r in mine], "o-", label=name)
        timed = [r for r in mine if "ratio" in r]
        ratio.semilogx([r["steps"] for r in timed], [r["ratio"] for r in timed], "o-", label=name)
    memory.axhline(64, color="grey", lw=0.8, ls=":", label="wanted at most")
    memory.set(xlabel="steps", ylabel="scratch memory (MiB)")
    memory.legend(fontsize=8)
    ratio.axhline(5, color="grey", lw=0.8, ls=":", label="wanted at most")
    ratio.set(xlabel="steps", ylabel="time of value and gradient / of the value", ylim=(0, None))
    figure.savefig(HERE / "modes.png", dpi=150)


def table(rows: list[dict]) -> str:
    lines = [
        "# Memory and time of a gradient by mode",
        "",
        f"64 atoms of silicon, bundled potential, NVE, float32, {platform.machine()}, {os.cpu_count()} CPU cores, "
        f"jax {jax.__version__}. Ratios: medians of 5, 5, 3 and 2, by turns; time of value and gradient over that of the "
        "value.",
        "",
        "| mode | steps | value, MiB | with gradient, MiB | value, s | with gradient, s | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        timed = f"{r['forward_s']:.2f} | {r['gradient_s']:.2f} | {r['ratio']:.2f}" if "ratio" in r else "- | - | -"
        lines.append(f"| {r['mode']} | {r['steps']:,} | {r['without_mib']:.1f} | {r['mib']:.1f} | {timed} |")
    return "\n".join(lines) + "\n"


def large(steps: int) -> None:
    there, and_back, argument = programs(8, steps, MODES["reversible"])
    del there
    row = {"atoms": argument.shape[1], "steps": steps, "mib": and_back.memory_analysis().temp_size_in_bytes / 2**20}
    print(row, flush=True)
    row["seconds"] = seconds(and_back, argument)
    row["peak_process_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(row)
    (HERE / "large.json").write_text(json.dumps(row, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true", help='4,096 atoms by "reversible" alone')
    parser.add_argument("--steps", type=int, default=1000, help="of --large, whose memory does not depend on it")
    options = parser.parse_args()
    if options.large:
        large(options.steps)
        return
    rows = [one(name, steps) for name in MODES for steps in LENGTHS]
    (HERE / "modes.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "modes.md").write_text(table(rows))
    draw(rows)


if __name__ == "__main__":
    main()
