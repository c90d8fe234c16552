"""One recipe, every set: `leignn train` with no setting but the data and the size, for the same minutes each.

    python experiments/benchmark/run.py --minutes 40            # every set that is not in the results yet
    python experiments/benchmark/run.py --minutes 40 --only Si water
    python experiments/benchmark/run.py --report                # results.md and results.png

A set's epochs follow from its measured epoch: two are trained first, and the second is timed. Frames of validation are the
set's own or a tenth of train; the test files are read once, at the end, for the potential that was best on validation. Each
set runs in a process of its own, whose peak memory is told. A line in results.json as each ends: the same command goes on.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from sets import SETS

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
RESULTS = HERE / "results.json"
# Trained for the same minutes by painn.py and nequip.py: name, marker, and how it is told.
BESIDE = {"painn": ("ks", "PaiNN of schnetpack, as long"), "nequip": ("k^", "NequIP of mlip (small), as long")}
MAE = (("energy", "atom"), ("forces", "angstrom"))


def settings(name: str, preset: str, epochs: int, out: str, test: bool = True) -> dict:
    """What the training is told: files, size, length."""
    folder = DATA / SETS[name].folder
    files = {"train": folder / "train.extxyz.xz", "validation": folder / "val.extxyz.xz"}
    if test:
        files["test"] = folder / "test.extxyz.xz"
    return {
        "data": {key: str(file) for key, file in files.items() if file.exists()} | {"allow": list(SETS[name].allow)},
        "model": {"preset": preset},
        "run": {"epochs": epochs, "out": out, "validate_every": max(1, epochs // 100)},
    }


def train_and_judge(name: str, preset: str, minutes: float, keep: str | None) -> dict:
    """A row of the table, of a training that takes about so many minutes, and of its errors on the test files."""
    import leignn_jax as leignn
    from leignn_jax.bench import bench

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run") if keep is None else Path(keep, name)
        begun = (out / "config.yaml").exists()
        if begun:
            epochs = yaml.safe_load((out / "config.yaml").read_text())["run"]["epochs"]
        else:
            first = leignn.train(settings(name, preset, 2, f"{folder}/timed", test=False), progress=False)
            epochs = max(1, round(60 * minutes / first.history[-1]["seconds"]))
        result = leignn.train(settings(name, preset, epochs, str(out)), progress=False)
        took = json.loads((out / "metrics.json").read_text())["run"]["training_seconds"]
    tests = {
        test: result.metrics["test"]
        if test == "test"
        else leignn.evaluate(result.potential, DATA / SETS[name].folder / f"{test}.extxyz.xz").metrics
        for test in SETS[name].tests
    }
    frames = leignn.read_frames(DATA / SETS[name].folder / "test.extxyz.xz")
    largest = max(frames, key=len)
    timed = bench(result.potential, largest, steps=10)["rows"][0]
    return {
        "set": name,
        "preset": preset,
        "minutes": minutes,
        "epochs": epochs,
        "seconds": took,
        "validation": result.metrics["validation"],
        "tests": tests,
        "atoms": len(largest),
        "energy_forces_ms": timed["energy_forces_ms"],
        # Of a run that went on it is not known what it took before.
        "peak_MiB": None if begun else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }


def beside(model: str, row: dict) -> dict | None:
    """What PaiNN or NequIP came to on the same test file in the same minutes."""
    file = HERE / f"{model}.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    # NequIP has two sizes; what is told is the small one.
    rows = [r for r in rows if r.get("size", "small") == "small"]
    same = [r for r in rows if (r["set"], r["minutes"]) == (row["set"], row["minutes"])]
    return same[0]["test"] if same else None


def report(rows: list[dict]) -> str:
    """The table as Markdown."""
    lines = [
        "# Every set by one recipe",
        "",
        "Errors on test files, read once; float32, seed 0; each set alone in a process. Where published figures are RMSE "
        "compare with that. They are of long trainings on accelerators, several of them recalled and not verified "
        "(READMEs of the sets).",
        "",
        "| set | file | preset | minutes | epochs | energy MAE (meV/atom) | force MAE (meV/Å) | force RMSE (meV/Å) | "
        "stress MAE (meV/Å³) | PaiNN, same minutes: energy, forces (MAE) | NequIP, same | "
        "published forces (meV/Å) | atoms, energy and forces (ms) | peak memory (MiB) |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]

    def shown(value):
        return "" if value is None else f"{value:.3g}"

    for row in rows:
        one = SETS[row["set"]]
        for number, (test, found) in enumerate(row["tests"].items()):
            published = "" if number or one.published is None else one.error.upper() + " "
            if published:
                published += ", ".join(f"{model} {value:g}" for model, value in one.published.items())
            first = [f"{row['seconds'] / 60:.1f}", str(row["epochs"])] if not number else ["", ""]
            others, last = ["", ""], ["", ""]
            if not number:
                peers = [beside(model, row) for model in BESIDE]
                others = [
                    "" if peer is None else ", ".join(shown(peer[f"{kind}_mae_mev_per_{unit}"]) for kind, unit in MAE)
                    for peer in peers
                ]
                peak = "" if row["peak_MiB"] is None else f"{row['peak_MiB']:.0f}"
                last = [f"{row['atoms']}, {row['energy_forces_ms']:.1f}", peak]
            cells = [
                row["set"] if not number else "",
                test,
                row["preset"] if not number else "",
                *first,
                shown(found["energy_mae_mev_per_atom"]),
                shown(found["forces_mae_mev_per_angstrom"]),
                shown(found["forces_rmse_mev_per_angstrom"]),
                shown(found["stress_mae_mev_per_angstrom3"]),
                *others,
                published,
                *last,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict]) -> None:
    """Force errors beside the published ones, relative to the best of those."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in rows if SETS[row["set"]].published]
    fig, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.8), layout="constrained")
    models = sorted({model for row in rows for model in SETS[row["set"]].published})
    colours = {model: f"C{number + 1}" for number, model in enumerate(models)}
    told = set()
    for place, row in enumerate(rows):
        one = SETS[row["set"]]
        best = min(one.published.values())
        ours = row["tests"]["test"][f"forces_{one.error}_mev_per_angstrom"] / best
        axis.plot(ours, place, "kD", ms=7, label=None if "ours" in told else "ours, on one core of a CPU")
        told.add("ours")
        for model, (marker, label) in BESIDE.items():
            if (found := beside(model, row)) is not None:
                error = found[f"forces_{one.error}_mev_per_angstrom"] / best
                axis.plot(error, place, marker, mfc="none", label=None if model in told else label)
                told.add(model)
        for model, value in one.published.items():
            axis.plot(value / best, place, "o", color=colours[model], label=None if model in told else model)
            told.add(model)
    axis.set_yticks(range(len(rows)), [f"{row['set']}, {row['minutes']:g} min" for row in rows])
    axis.set(xscale="log", xlabel="force error over the best published one (no unit)")
    axis.grid(axis="x", which="both", alpha=0.3)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    if told:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    fig.savefig(HERE / "results.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0, help="of training for each set (default 40)")
    parser.add_argument("--preset", default="small", choices=("small", "medium", "large"))
    parser.add_argument("--only", nargs="+", choices=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument(
        "--keep", metavar="FOLDER", help="keep each set's run in a folder of its name in this one, where it goes on"
    )
    parser.add_argument("--report", action="store_true", help="only write table and figure")
    parser.add_argument("--one", choices=list(SETS), metavar="SET", help="one set in this process; prints its row")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train_and_judge(options.one, options.preset, options.minutes, options.keep)))
        return
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in [] if options.report else options.only or SETS:
        if any((row["set"], row["preset"], row["minutes"]) == (name, options.preset, options.minutes) for row in rows):
            continue
        command = [
            sys.executable,
            __file__,
            "--one",
            name,
            "--minutes",
            str(options.minutes),
            "--preset",
            options.preset,
            *(["--keep", options.keep] if options.keep else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        rows.sort(key=lambda row: (list(SETS).index(row["set"]), row["preset"], row["minutes"]))
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, row["epochs"], row["tests"]["test"], flush=True)
    (HERE / "results.md").write_text(report(rows))
    figure(rows)


if __name__ == "__main__":
    main()
