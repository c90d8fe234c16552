"""A study on two processes of four virtual devices each, against one process of eight and against one device.

    python experiments/hosts/run.py            # meshes 8x1, 4x2, 1x8; about 15 minutes on two CPU cores

For each mesh: the table of two processes against that of one process with the same mesh, and against one device that
accumulates the batches of a step; and frames x members per second. Virtual devices share two cores, so that no mesh can be
faster than one device: what is measured is what the division costs. Writes results.json and results.md.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MESHES = ((8, 1), (4, 2), (1, 8))

WORKER = """
import json, sys
number, processes, port, values = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
from leignn_jax.processes import join_processes
if processes > 1:
    join_processes(f"127.0.0.1:{port}", processes, number)
import leignn_jax as leignn
from leignn_jax.data import bundled_data
values["base"]["data"]["train"] = str(bundled_data("ethanol") / "train.extxyz.xz")
result = leignn.sweep(values, progress=False)
print(json.dumps({"rows": result.rows, "compiles": result.compiles}))
"""


def run(values: dict, processes: int, devices: int) -> dict:
    """The study's table, as the first process tells it, and seconds of each epoch."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(i), str(processes), port, json.dumps(values)],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        done = [process.communicate() for process in started]
        for process, (_, errors) in zip(started, done, strict=True):
            if process.returncode:
                sys.exit(errors)
        found = [json.loads(out.splitlines()[-1]) for out, _ in done]
        assert all(one["rows"] == found[0]["rows"] for one in found), "processes tell different tables"
        lines = (Path(folder) / "study" / "history.csv").read_text().splitlines()
    names = lines[0].split(",")
    epochs = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    first = [float(row["frames_per_second"]) for row in epochs if row["member"] == epochs[0]["member"]]
    # The first epoch compiles.
    return {**found[0], "frames_per_second": statistics.median(first[1:])}


def apart(rows: list[dict], others: list[dict]) -> float:
    """The largest relative difference of validation errors of the same member."""
    names = ("validation_loss", "validation_forces_mae_mev_per_angstrom", "validation_energy_mae_mev_per_atom")
    pairs = zip(*(sorted(x, key=lambda row: row["member"]) for x in (rows, others)), strict=True)
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in pairs for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=320)
    parser.add_argument("--rate", type=float, default=1e-3, help="the learning rate")
    options = parser.parse_args()
    found = []
    for sweep, data in MESHES:
        values = {
            "base": {
                "data": {"max_frames": options.frames, "batch_size": 5},
                "model": {"preset": "small", "variant": "leignn", "features": 32},
                "optimizer": {"learning_rate": options.rate},
                "run": {"out": "study", "epochs": options.epochs},
            },
            "space": {"run.seed": list(range(8))},
            "mesh": [sweep, data],
        }
        alone = json.loads(json.dumps(values))
        alone["mesh"], alone["base"]["data"]["accumulate"] = [1, 1], data
        # Batch by batch, as on a mesh.
        alone["base"]["data"]["on_device"] = False
        two, one, single = run(values, 2, 4), run(values, 1, 8), run(alone, 1, 1)
        row = {
            "mesh": f"{sweep}x{data}",
            "from_one_process": apart(two["rows"], one["rows"]),
            "from_one_device": apart(two["rows"], single["rows"]),
            "two_processes": 8 * two["frames_per_second"],
            "one_process": 8 * one["frames_per_second"],
            "one_device": 8 * single["frames_per_second"],
            "compiles": [two["compiles"], one["compiles"], single["compiles"]],
        }
        found.append(row)
        print(row, flush=True)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# A study over two processes",
        "",
        f"Eight members of preset small (32 features) on bundled ethanol ({options.frames} frames, batches of 5 for each "
        f"device along the mesh's second axis), {options.epochs} epochs, float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), one run; two processes of four virtual devices each on loopback, one process of eight, "
        "and one device that accumulates. Largest relative difference of a member's validation loss and errors; frames x "
        "members per second, the median of the epochs but for the first.",
        "",
        "| mesh | from one process | from one device | two processes | one process | one device | programs |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in found:
        lines.append(
            f"| {row['mesh']} | {row['from_one_process']:.1e} | {row['from_one_device']:.1e} "
            f"| {row['two_processes']:.0f} | {row['one_process']:.0f} | {row['one_device']:.0f} | {row['compiles']} |"
        )
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
