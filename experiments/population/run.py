"""Sixteen members in one program against sixteen processes one after another, compilation included.

    python experiments/population/run.py                   # 16 members of preset small on rMD17 ethanol, 2 epochs

Members differ in seed and learning rate. Both ways see the same frames in the same order and run the same number of
updates; both times are of whole processes, from start to exit. Writes results.json and results.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "rmd17_ethanol" / "train.extxyz.xz"

ONE = """
import json, sys, leignn_jax
result = leignn_jax.train(json.loads(sys.argv[1]), progress=False)
print(json.dumps(result.history[-1]["validation_loss"]))
"""
MANY = """
import json, sys, leignn_jax
result = leignn_jax.sweep(json.loads(sys.argv[1]), progress=False)
rows = sorted(result.rows, key=lambda row: row["member"])
print(json.dumps({"losses": [row["validation_loss"] for row in rows], "compiles": result.compiles}))
"""


def run(code: str, values: dict):
    """A process of its own: its last line and its seconds."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(values)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--alone", type=int, default=None, help="how many of them to run alone; the rest is scaled up")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    alone_count = options.alone or options.members
    rates = [1e-3 * 4 ** (i / max(options.members - 1, 1)) for i in range(options.members)]
    with tempfile.TemporaryDirectory() as folder:
        base = {
            "data": {"train": str(DATA), "batch_size": 5, "validation_fraction": 0.05},
            "model": {"preset": "small"},
            "run": {"epochs": options.epochs, "out": f"{folder}/study"},
        }
        found, together = run(MANY, {"base": base, "space": {"optimizer.learning_rate": rates}, "search": "grid"})
        alone, losses = [], []
        for i in range(alone_count):
            values = {
                **base,
                "optimizer": {"learning_rate": rates[i]},
                "run": {**base["run"], "out": f"{folder}/{i}"},
            }
            loss, seconds = run(ONE, values)
            losses.append(loss)
            alone.append(seconds)
            print(
                f"member {i} alone: {seconds:.1f} s, loss {loss:.4f}; in the population {found['losses'][i]:.4f}",
                flush=True,
            )
    total = sum(alone) / alone_count * options.members
    difference = max(abs(a - b) / a for a, b in zip(losses, found["losses"], strict=False))
    results = {
        "members": options.members,
        "epochs": options.epochs,
        "updates": options.epochs * 190,
        "together_s": together,
        "alone_s": alone,
        "alone_total_s": total,
        "ratio": total / together,
        "compiles": found["compiles"],
        "largest_relative_difference_of_losses": difference,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "load_average": os.getloadavg(),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(
        f"# A population in one program\n\n{options.members} members of preset small on rMD17 ethanol, "
        f"{results['updates']} updates of 5 frames each, {results['device']}, float32; whole processes, compilation "
        f"included. {alone_count} of them were also run alone.\n\n"
        f"| | seconds |\n|---|---:|\n| one program | {together:.0f} |\n"
        f"| {options.members} processes, one after another | {total:.0f} |\n| ratio | {total / together:.2f} |\n\n"
        f"Programs compiled for training: {found['compiles']}. Largest relative difference of a member's validation loss "
        f"from that of the same run alone: {difference:.1e}. Load average at the end: {os.getloadavg()[0]:.1f}.\n"
    )
    print(f"together {together:.0f} s, alone {total:.0f} s, ratio {total / together:.2f}")


if __name__ == "__main__":
    main()
