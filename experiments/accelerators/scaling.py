"""One system over many devices: what each computes, keeps and sends, compiled for devices that were not there.

    python experiments/accelerators/scaling.py [--targets h100 v5e]    # scaling.json, scaling.md, scaling.png; half an hour

Strong scaling: 100,000 atoms of preset medium over 1 to 8 H100, 16,000 of small over 1 to 16 TPU v5e; weak scaling: bars of
10,000 atoms for each device. A step of NVE; energies and forces are what matters in it. Nothing is run: sizes of lists are
planned from the structure, all other arrays are shapes.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import compiled

HERE = Path(__file__).resolve().parent
# Of links: bytes a second out of a device to its neighbours, and seconds for a message to arrive. NVLink 4 of an H100 450
# GB/s one way, of which NCCL reaches about 360; v5e: four links of 50 GB/s, of which a shift along one axis uses one.
LINKS = {"h100": (360e9, 10e-6), "v5e": (45e9, 2e-6)}
COUNTS = {"h100": (1, 2, 4, 8), "v5e": (1, 4, 16)}
STRONG = {"h100": ("medium", 100_000), "v5e": ("small", 16_000)}
EACH = 10_000


def bar(atoms: int):
    """A crystal of the density of the others that grows along one axis."""
    import ase.build
    import numpy as np

    side = 10
    made = ase.build.bulk("C", "diamond", a=80.0 ** (1 / 3), cubic=True) * (side, side, atoms // (8 * side * side))
    made.numbers = np.resize([1, 6, 1, 7, 1, 6, 1, 8], len(made))
    made.rattle(0.02, seed=0)
    return made


def step_of(target: str, preset: str, atoms: Any, devices: int):
    """A chunk of ten steps of NVE, compiled for ``devices`` of a kind."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P
    from programs import potential

    from leignn_jax.device_neighbors import blank_list, renewed_each
    from leignn_jax.domains import DEVICES
    from leignn_jax.list_sizes import plan_sizes
    from leignn_jax.simulation import chunks, divided
    from leignn_jax.simulation.dynamics import State, make_system
    from leignn_jax.simulation.ensembles import NVE

    mesh = compiled.mesh_of(target, devices, DEVICES)
    model, system = potential(preset), make_system([atoms], np.float32)
    cell, count = np.asarray(atoms.cell), len(atoms)
    sizes = plan_sizes(atoms.positions, cell, atoms.pbc, model.cutoff + 0.5, devices)
    before = blank_list(
        atoms.positions, cell, atoms.pbc, atoms.numbers, model.cutoff, 0.5, sizes=sizes, dtype=np.float32
    )
    copies = jax.tree.map(lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), before)
    renew = partial(divided._renew_divided, mesh=mesh) if devices > 1 else renewed_each
    neighbors = jax.eval_shape(renew, copies)
    per_atom, scalar = jax.ShapeDtypeStruct((1, count, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    square = jax.ShapeDtypeStruct((1, 3, 3), jnp.float32)
    state = State(
        positions=per_atom,
        images=jax.ShapeDtypeStruct((1, count, 3), jnp.int32),
        velocities=per_atom,
        cell=square,
        energy=scalar,
        forces=per_atom,
        stress=square,
        bath=(),
        exchanged=scalar,
        key=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
        step=jax.ShapeDtypeStruct((), jnp.int32),
        neighbors=neighbors,
    )
    stopped = jax.ShapeDtypeStruct((1,), jnp.int32)
    limits = chunks.Limits(*(jnp.float32(x) for x in chunks.LIMITS))
    center = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    given = (model, NVE(), system, (state, stopped, stopped), jnp.float32(1.0), center, limits, jnp.int32(10), stopped)

    def abstract(where, x):
        of_list = any(getattr(key, "name", None) == "neighbors" for key in where)
        dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
        spec = P(DEVICES) if of_list and devices > 1 else P()
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=NamedSharding(mesh, spec))

    given = jax.tree_util.tree_map_with_path(abstract, given)
    shape = {"log_every": 10, "logs": 1, "frames": 1, "mesh": mesh if devices > 1 else None}
    return chunks._chunk.lower(*given, **shape).compile(), sizes


def sent(program: Any) -> tuple[int, float, float]:
    """Of a step: messages, bytes that a device sends to another, and bytes of sums over all."""
    computations = compiled.read(program.as_text())
    messages, shifted, summed = 0, 0.0, 0.0
    for one in computations[compiled.body(computations)]:
        opcode = re.sub("-start$", "", one.opcode)
        if opcode not in ("collective-permute", "all-reduce", "all-gather", "reduce-scatter"):
            continue
        # Of a permutation that begins, the shape is that of what goes in and of what comes out.
        share = 2 if opcode == "collective-permute" and one.opcode.endswith("-start") else 1
        size = compiled.size(one.shape) / share
        messages += 1
        shifted += size if opcode == "collective-permute" else 0.0
        summed += size if opcode != "collective-permute" else 0.0
    return messages, shifted, summed


def row(target: str, preset: str, atoms: Any, devices: int) -> dict[str, Any]:
    program, sizes = step_of(target, preset, atoms, devices)
    alone = compiled.summary(program, target)
    messages, shifted, summed = sent(program)
    bandwidth, latency = LINKS[target]
    # A sum over all passes each device's links twice, less its own share.
    exchange = messages * latency + (shifted + 2 * (devices - 1) / devices * summed) / bandwidth
    return {
        "atoms": len(atoms),
        "devices": devices,
        "halo": sum(sizes.halo),
        "messages": messages,
        "MB shifted": shifted / 1e6,
        "MB summed": summed / 1e6,
        "MB temporaries": alone["MB temporaries"],
        "ms computing": alone["ms predicted"],
        "ms exchanging": 1e3 * exchange,
        "Mcycles": alone["Mcycles"],
    }


def main() -> None:
    compiled.prepare()
    from programs import crystal

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(LINKS), choices=list(LINKS))
    options = parser.parse_args()
    file = HERE / "scaling.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for target in options.targets:
        preset, many = STRONG[target]
        rows: dict[str, Any] = {"preset": preset}
        for kind in ("strong", "weak"):
            rows[kind] = []
            for devices in COUNTS[target]:
                atoms = crystal(many) if kind == "strong" else bar(EACH * devices)
                rows[kind].append(row(target, preset, atoms, devices))
                print(target, kind, rows[kind][-1], flush=True)
        found[target] = rows
        compiled.store(file, found)
    (HERE / "scaling.md").write_text(table(found))
    plot(found, HERE / "scaling.png")


def total(r: dict[str, Any]) -> float:
    return r["ms computing"] + r["ms exchanging"]


def table(found: dict[str, Any]) -> str:
    lines = ["# One system over many devices that were not there", ""]
    for target, both in found.items():
        for kind in ("strong", "weak"):
            lines += [
                f"## {compiled.DEVICES[target].name}, preset {both['preset']}, {kind} scaling",
                "",
                "| devices | atoms | halo atoms of one | messages a step | MB sent by one | MB summed over all | "
                "MB temporaries of one | ms computing | ms exchanging | efficiency | Mcycles |",
                "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            ]
            first = both[kind][0]
            for r in both[kind]:
                ideal = total(first) * (first["devices"] / r["devices"] if kind == "strong" else 1)
                cycles = f"{r['Mcycles']:.1f}" if r["Mcycles"] else "–"
                lines.append(
                    f"| {r['devices']} | {r['atoms']:,} | {r['halo']:,} | {r['messages']} | {r['MB shifted']:.2f} | "
                    f"{r['MB summed']:.2f} | {r['MB temporaries']:,.0f} | {r['ms computing']:.2f} | "
                    f"{r['ms exchanging']:.2f} | {ideal / total(r):.0%} | {cycles} |"
                )
            lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for target, both in found.items():
        name = f"{compiled.DEVICES[target].name}, {both['preset']}, {both['strong'][0]['atoms']:,} atoms"
        counts = [r["devices"] for r in both["strong"]]
        times = [total(r) for r in both["strong"]]
        (line,) = axes[0].loglog(counts, times, "o-", label=name)
        axes[0].loglog(counts, [times[0] * counts[0] / n for n in counts], ":", color=line.get_color(), lw=1)
        memory = [r["MB temporaries"] / 1e3 for r in both["strong"]]
        (line,) = axes[1].loglog(counts, memory, "o-", label=name)
        axes[1].loglog(counts, [memory[0] * counts[0] / n for n in counts], ":", color=line.get_color(), lw=1)
    axes[0].set(xlabel="devices", ylabel="predicted time of a step (ms)")
    axes[1].set(xlabel="devices", ylabel="temporaries of one device (GB)")
    for axis in axes:
        axis.set_title("strong scaling; dotted: ideal", fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
