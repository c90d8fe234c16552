"""Measure one layout on one structure in this process and print one JSON line; run.py calls it.

``--layout reference`` computes what all layouts must agree with, by the package's own network, and writes it to FILE.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import ase
import ase.build
import jax
import numpy as np
from ase.collections import g2
from layouts import LAYOUTS, build, energy_and_forces

import leignn_jax as leignn
from leignn_jax import pair_ops
from leignn_jax.models.leignn import species_index

sys.path.append(str(Path(__file__).resolve().parents[1] / "speed"))
from structures import aspirin, water

TOLERANCE = 1e-4  # norm of a difference by the norm of the reference, of energy, forces and gradient each


def silicon(cells: int) -> ase.Atoms:
    """Cubic silicon of ``cells``^3 cells of 8 atoms, displaced by 0.05 Å."""
    atoms = ase.build.bulk("Si", cubic=True) * cells
    atoms.rattle(stdev=0.05, seed=0)
    return atoms


def molecules() -> list[ase.Atoms]:
    """32 molecules of 2 to 12 atoms, evenly spread over the G2 set sorted by size, and four aspirins."""
    fitting = sorted((m for m in map(ase.build.molecule, g2.names) if 2 <= len(m) <= 12), key=len)
    chosen = np.linspace(0, len(fitting) - 1, 32).astype(int)
    return [fitting[k] for k in chosen] + [aspirin()] * 4


SIZES = {
    "aspirin": lambda: [aspirin()],
    "molecules": molecules,
    "water": lambda: [water()],
    "silicon-1000": lambda: [silicon(5)],
    "silicon-10648": lambda: [silicon(11)],
}


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def repeat(call, options) -> dict:
    """Time calls until there are ``repeats`` and ``seconds`` of them, or ``limit`` seconds, and compare their bits."""
    times, outputs = [], set()
    while len(times) < options.repeats or sum(times) < options.seconds:
        start = time.perf_counter()
        out = jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
        outputs.add(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(out))).digest())
        if sum(times) > options.limit:
            break
    return {
        "median_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * min(times),
        "max_ms": 1e3 * max(times),
        "calls": len(times),
        "different_outputs": len(outputs),
    }


def difference(ours, theirs) -> float:
    """Norm of the difference of two pytrees of arrays by the norm of the second."""
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def measure(function, arguments, expected, options) -> dict:
    """Compile a function, check the tuple that it returns against ``expected`` and time it."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    row = {
        "compile_s": time.perf_counter() - start,
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    if row["temporary_mib"] > 1024 * options.memory:
        return row | {"status": f"needs more than {options.memory:g} GiB"}
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(*arguments))
    first = time.perf_counter() - start
    row["difference"] = max(map(difference, out, expected))
    if not row["difference"] < TOLERANCE:
        raise ValueError(f"differs from the package's result by {row['difference']:.1e}")
    row["status"] = "ok"
    if first > options.limit:
        row |= {"status": f"over {options.limit:g} s a call", "median_ms": 1e3 * first, "calls": 1}
    else:
        row |= repeat(lambda: compiled(*arguments), options)
    return row | {"peak_rss_mib": peak_rss_mib()}


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine used since its start; 0 where the system doesn't say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system = map(int, stat.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", required=True, choices=["reference", *LAYOUTS])
    parser.add_argument("--size", required=True, choices=list(SIZES))
    parser.add_argument("--reference", required=True, type=Path, metavar="FILE", help="what to agree with (.npz)")
    parser.add_argument("--repeats", type=int, default=5, help="fewest timed calls")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed time")
    parser.add_argument("--limit", type=float, default=120.0, help="most timed time (s)")
    parser.add_argument("--memory", type=float, default=20.0, help="largest temporary memory of a program (GiB)")
    parser.add_argument("--block-bytes", type=int, default=pair_ops._BLOCK_BYTES)
    options = parser.parse_args()
    pair_ops._BLOCK_BYTES = options.block_bytes

    structures = SIZES[options.size]()
    elements = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    config = leignn.preset("medium", variant="vanilla_nmu", elements=elements, repulsion=False)
    graph = leignn.Graph.batch([leignn.Graph.from_ase(atoms, config.cutoff) for atoms in structures])
    potential = leignn.Potential.create(config, jax.random.key(0))
    targets = np.random.default_rng(0).normal(size=graph.positions.shape).astype(np.float32)

    def loss_gradient(forces, params):
        return jax.grad(lambda p: ((forces(p) - targets) ** 2).mean())(params)

    if options.layout == "reference":

        def reference(params):
            energies, forces = dataclasses.replace(potential, params=params).energy_and_forces(graph)
            return energies.sum(), forces

        gradient = jax.jit(partial(loss_gradient, lambda p: reference(p)[1]))(potential.params)
        np.savez(options.reference, *jax.jit(reference)(potential.params), *jax.tree.leaves(gradient))
        return

    with np.load(options.reference) as stored:
        energy, forces, *gradient = stored.values()
    species = np.asarray(species_index(config, graph.numbers))
    layout = build(options.layout, graph)
    arguments = jax.device_put((potential.params, layout, graph.positions, species))

    def energy_forces(*arguments):
        return energy_and_forces(config, *arguments)

    def force_loss_gradient(params, *arguments):
        return (loss_gradient(lambda p: energy_forces(p, *arguments)[1], params),)

    baseline, started, busy = peak_rss_mib(), time.perf_counter(), busy_seconds() - time.process_time()
    row = {
        "layout": options.layout,
        "size": options.size,
        "block_bytes": options.block_bytes,
        "atoms": len(graph.positions),
        "pairs": int(graph.pair_mask.sum()),
        "table_width": graph.lists.neighbors.shape[1],
        "energy_forces": measure(energy_forces, arguments, (energy, forces), options),
        "gradient": measure(force_loss_gradient, arguments, (gradient,), options),
    }
    others = busy_seconds() - time.process_time() - busy
    device = jax.devices()[0]
    print(
        json.dumps(
            row
            | {
                "baseline_rss_mib": baseline,
                "others_cpu_share": max(0.0, others) / (time.perf_counter() - started) / os.cpu_count(),
                "device": f"{device.platform}: {device.device_kind}",
                "dtype": str(graph.positions.dtype),
            }
        )
    )


if __name__ == "__main__":
    main()
