"""Memory of a gradient through very many steps by segments of segments, as the compiler plans it; nothing is run.

    python experiments/gradients/recursive.py       # five minutes on one CPU core; writes recursive.md

64 atoms of silicon, bundled potential, NVE, float32: the program's scratch, with and without the gradient by all velocities.
"""

import os
import platform
from pathlib import Path

import ase.build
import jax

import leignn_jax as leignn

HERE = Path(__file__).resolve().parent
run = leignn.differentiable


def main() -> None:
    atoms = ase.build.bulk("Si", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    potential, ensemble = leignn.load_potential("si"), leignn.simulation.ensembles.NVE()
    system, state = run.start(potential, atoms, ensemble, temperature=300.0)

    def mebibytes(steps: int, gradient: bool) -> float:
        def end(velocities):
            begin = state.replace(velocities=velocities)
            segment = "recursive" if gradient else None
            out = run.rollout(potential, ensemble, system, begin, 1.0, steps, segment=segment)
            return out.state.positions.sum()

        program = jax.jit(jax.grad(end) if gradient else end).lower(state.velocities).compile()
        return program.memory_analysis().temp_size_in_bytes / 2**20

    lines = [
        '# Memory of `segment="recursive"`',
        "",
        f"64 atoms of silicon, NVE, float32, {platform.machine()}, {os.cpu_count()} CPU cores, jax {jax.__version__}.",
        "",
        "| steps | without gradient (MiB) | with (MiB) |",
        "|---:|---:|---:|",
    ]
    for steps in (100, 1000, 10_000, 100_000):
        lines.append(f"| {steps:,} | {mebibytes(steps, False):.1f} | {mebibytes(steps, True):.1f} |")
        print(lines[-1], flush=True)
    (HERE / "recursive.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
