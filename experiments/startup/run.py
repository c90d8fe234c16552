"""From import to the first energy and the first step, and what a normal session compiles, each part in a fresh process.

    python experiments/startup/run.py [--repeats 3] [--label now]      # results.json, results.md; ten minutes

Every part runs without compiled programs on disk and again with them (JAX_COMPILATION_CACHE_DIR). "compiles" are programs
that XLA compiled or read, and their seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What stands before each part: seconds by a clock that starts before the import, and a counter of compiled programs.
BEGIN = """
import time
begun = time.perf_counter()
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(seconds) if name.endswith("backend_compile_duration") else None)
import leignn_jax as leignn
imported = time.perf_counter() - begun
import ase.build, ase.collections, tempfile
from leignn_jax.data import bundled_data
"""
END = """
import json
print(json.dumps({"seconds": time.perf_counter() - begun, "imported": imported, "compiles": len(compiled),
                  "compiling": sum(compiled)}))
"""
SILICON = "atoms = ase.build.bulk('Si', cubic=True); atoms.rattle(0.05, seed=0)\n"
PARTS = {
    "import": "",
    "first energy and forces": SILICON + "leignn.load_potential('si').predict(atoms)\n",
    "first MD step": SILICON
    + "leignn.simulate(leignn.load_potential('si'), atoms, 'nvt', temperature=300.0, steps=1, progress=False)\n",
    "a relaxation": SILICON + "leignn.relax(leignn.load_potential('si'), atoms, progress=False)\n",
    "30 molecules one by one": """
config = leignn.preset('small', variant='leignn', elements=('H', 'C', 'N', 'O', 'F', 'S', 'Cl'))
potential = leignn.Potential.create(config, jax.random.key(0))
names = [n for n in ase.collections.g2.names if set(ase.build.molecule(n).symbols) <= set(potential.config.elements)]
sizes = sorted(names, key=lambda n: (len(ase.build.molecule(n)), n))
for name in sizes[:: max(1, len(sizes) // 30)][:30]:
    potential.predict(ase.build.molecule(name))
""",
    "a growing slab": """
potential = leignn.load_potential('si')
for layers in range(2, 12):
    slab = ase.build.diamond100('Si', (2, 2, layers), vacuum=8.0, a=5.43)
    slab.calc = potential.calculator()
    slab.get_forces()
""",
    "a training, 3 epochs": """
with tempfile.TemporaryDirectory() as folder:
    leignn.train({'data': {'train': str(bundled_data('ethanol') / 'train.extxyz.xz'), 'max_frames': 200},
                  'model': {'preset': 'small', 'variant': 'leignn'},
                  'run': {'epochs': 3, 'out': folder + '/run'}}, progress=False)
""",
    "a gradient through 100 steps, 64 atoms": """
atoms = ase.build.bulk('Si', cubic=True) * 2
atoms.rattle(0.05, seed=0)
run, potential, nve = leignn.differentiable, leignn.load_potential('si'), leignn.simulation.ensembles.NVE()
system, state = run.start(potential, atoms, nve, temperature=300.0)
def end(velocities):
    out = run.rollout(potential, nve, system, state.replace(velocities=velocities), 1.0, 100, segment='sqrt')
    return (out.state.positions ** 2).mean()
jax.block_until_ready(jax.jit(jax.value_and_grad(end))(state.velocities))
""",
}


def measured(part: str, cache: str | None) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    program = BEGIN + PARTS[part] + END
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"{part}:\n{out.stderr}")
    return json.loads(out.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--label", default="now", help="of the rows in the table")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    rows = found.setdefault(options.label, {})
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            cold = [measured(part, None) for _ in range(options.repeats)]
            measured(part, folder)
            warm = [measured(part, folder) for _ in range(options.repeats)]
        rows[part] = {"repeats": options.repeats}
        for name, runs in (("", cold), (" from disk", warm)):
            for key in ("seconds", "imported", "compiles", "compiling"):
                rows[part][key + name] = statistics.median(r[key] for r in runs)
        print(part, rows[part], flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(table(found))


def table(found: dict) -> str:
    lines = [
        "# Start-up",
        "",
        f"Fresh processes, {platform.machine()}, {os.cpu_count()} CPU cores, float32, medians. Seconds from the start of "
        "the import.",
        "",
        "| what | when | seconds | of them import | compiles | compiling, s | seconds, programs from disk |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for part in PARTS:
        for label, rows in found.items():
            if (r := rows.get(part)) is not None:
                lines.append(
                    f"| {part} | {label} | {r['seconds']:.1f} | {r['imported']:.1f} | {r['compiles']:.0f} | "
                    f"{r['compiling']:.1f} | {r['seconds from disk']:.1f} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
