"""What members cost side by side: frames x members per second, with the epoch on the device and batch by batch.

    python experiments/population/cost.py         # about ten minutes on two CPU cores; cost.json, cost.md, cost.png

Preset small on the bundled ethanol, batches of 5 frames, float32. Each population is compiled (told apart) and then takes
steps for some seconds, in turns with the other way of feeding it; the median of three turns counts. "alone" is one model
without an axis of members.
"""

import json
import os
import platform
import statistics
from pathlib import Path

import jax
import matplotlib

from leignn_jax.data import bundled_data
from leignn_jax.sweeps.plan import Unkept, measure
from leignn_jax.training.config import make_config
from leignn_jax.training.loop import Loop
from leignn_jax.training.prepared import prepare
from leignn_jax.training.programs import make_programs

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
COUNTS = (1, 2, 4, 8, 16, 32, 64)
BATCH, TURNS, SECONDS = 5, 3, 3.0
WAYS = {"on the device": True, "batch by batch": False}


def config(on_device: bool):
    return make_config({
        "data": {"train": str(bundled_data("ethanol") / "train.extxyz.xz"), "batch_size": BATCH, "on_device": on_device},
        "model": {"preset": "small"},
        "run": {"epochs": 10},
    })  # fmt: skip


def main() -> None:
    prepared = prepare(config(True))
    rows = []
    for members in (None, *COUNTS):
        loops, compiling, speeds = {}, {}, {way: [] for way in WAYS}
        for way, on_device in WAYS.items():
            one = config(on_device)
            programs = make_programs(one, prepared, None, many=members is not None)
            loops[way] = Loop([one] * (members or 1), prepared, programs, Unkept(), many=members is not None)
            compiling[way] = measure(loops[way], 0.1).compiling
        for _ in range(TURNS):
            for way, loop in loops.items():
                loop.standing.next_step = 0
                step = measure(loop, SECONDS).step
                speeds[way].append(BATCH * (members or 1) / step)
        for way in WAYS:
            row = {"members": members, "way": way, "compiling_s": compiling[way]}
            row["frames_members_per_second"] = statistics.median(speeds[way])
            rows.append(row)
            print(row, flush=True)
        del loops
        jax.clear_caches()
    device = f"{os.cpu_count()} CPU cores ({platform.machine()}), jax {jax.__version__}"
    (HERE / "cost.json").write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
    (HERE / "cost.md").write_text(table(device, rows))
    draw(rows)


def table(device: str, rows: list[dict]) -> str:
    alone = next(r["frames_members_per_second"] for r in rows if r["members"] is None and r["way"] == "batch by batch")
    lines = [
        "# What members cost side by side",
        "",
        f"Preset small, ethanol, batches of {BATCH} frames, float32, {device}; medians of {TURNS} turns of {SECONDS:g} s.",
        "",
        "| members | frames x members per second, on the device | batch by batch | gain "
        "| on the device, beside one alone batch by batch | compiling (s), on the device | batch by batch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        a, b = first["frames_members_per_second"], second["frames_members_per_second"]
        lines.append(
            f"| {first['members'] or 'alone'} | {a:.0f} | {b:.0f} | {a / b:.2f} | {a / alone:.2f} | "
            f"{first['compiling_s']:.0f} | {second['compiling_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict]) -> None:
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for way, style in zip(WAYS, ("o-", "s--"), strict=True):
        points = [(r["members"], r["frames_members_per_second"]) for r in rows if r["way"] == way and r["members"]]
        axis.plot(*zip(*points, strict=True), style, label=way)
        alone = next(r["frames_members_per_second"] for r in rows if r["way"] == way and r["members"] is None)
        axis.axhline(alone, ls=":", color="C0" if way == "on the device" else "C1", lw=1, label=f"one alone, {way}")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="members", ylabel="frames x members per second", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(HERE / "cost.png", dpi=120)


if __name__ == "__main__":
    main()
