"""Whether what was made for accelerators costs anything on a CPU: two checkouts of this repository, timed by turns.

    git worktree add /tmp/before f0c5fef
    python experiments/accelerators/cpu.py --before /tmp/before       # cpu.json, cpu.md; ten minutes, quiet machine; goes on

Every measurement is a process of its own, which compiles first and then takes the median of its calls; before and now take
turns, three rounds; ratios within a round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

BEGIN = """
import statistics, time
import ase.build, ase.io, jax, numpy as np
import leignn_jax as leignn
from leignn_jax.data import bundled_data

def forces(preset, atoms, repeats):
    model = leignn.preset(preset, variant="leignn", elements=tuple(dict.fromkeys(atoms.symbols)))
    potential = leignn.Potential.create(model, jax.random.key(0))
    graph = potential.to_graph(atoms).pad_to_bucket()
    call = jax.jit(lambda p, g: p.compute(g)[:2])
    jax.block_until_ready(call(potential, graph))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call(potential, graph))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)

def steps(name, atoms, ensemble, count, **settings):
    out = leignn.simulate(leignn.load_potential(name), atoms, ensemble, temperature=300.0, steps=count, timestep=1.0,
                          save_every=100, log_every=100, progress=False, **settings)
    return 1 / out.summary["steps_per_second"]

def silicon(*repeat):
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.rattle(0.02, seed=0)
    return atoms

def water():
    return ase.io.read(bundled_data("water") / "liquid.xyz")
"""
CASES = {
    "energy and forces, medium, 192 atoms of water": "forces('medium', water(), 20)",
    "energy and forces, small, 64 atoms of silicon": "forces('small', silicon(2, 2, 2), 100)",
    "energy and forces, published, 216 atoms of silicon": "forces('published', silicon(3, 3, 3), 3)",
    "a step of NVE, 64 atoms of silicon": "steps('si', silicon(2, 2, 2), 'nve', 1500)",
    "a step of NPT, 64 atoms of silicon": "steps('si', silicon(2, 2, 2), 'npt', 1000, pressure=0.0)",
    "a step of NVE, 1,000 atoms of silicon": "steps('si', silicon(5, 5, 5), 'nve', 500)",
    "a step of Langevin, 16 replicas of 8 silicon": "steps('si', silicon(1, 1, 1), 'langevin', 1000, replicas=16)",
}


def measured(root: Path, case: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    program = f"{BEGIN}\nprint({CASES[case]})"
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"{root}, {case}:\n{out.stderr}")
    return float(out.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    file = HERE / "cpu.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for case in (one for one in CASES if one not in found):
        pairs = [(measured(options.before, case), measured(ROOT, case)) for _ in range(options.rounds)]
        found[case] = pairs
        print(case, [f"{1e3 * b:.3g} {1e3 * a:.3g}" for b, a in pairs], flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Before and now on a CPU",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, float32; medians of {options.rounds} rounds by turns, ratios within "
        "a round.",
        "",
        "| what | before, ms | now, ms | now / before | rounds |",
        "|---|---:|---:|---:|---|",
    ]
    for case in CASES:
        pairs = found[case]
        before, now = (1e3 * statistics.median(x) for x in zip(*pairs, strict=True))
        ratios = [a / b for b, a in pairs]
        each = ", ".join(f"{r:.2f}" for r in ratios)
        lines.append(f"| {case} | {before:.3g} | {now:.3g} | {statistics.median(ratios):.2f} | {each} |")
    (HERE / "cpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
