"""A real search: TPE with halving against random draws at the same price, and both against the default recipe.

    python experiments/search/run.py ethanol tpe      # or random, default; some hours on two CPU cores each
    python experiments/search/run.py --report

64 trials over learning rate, schedule, force weight, EMA, radial basis, width and depth; each at most `EPOCHS` epochs. The
price is counted in epochs of trials: halving is to cost at most 16 full trainings, and random search is given as many full
trainings as TPE took. Everything is chosen on frames held out from the train file; the test file is read once, for the best
of each. A study that was stopped goes on by the same command. Studies lie in --out; results.json and results.md beside this
file.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import leignn_jax as leignn
from leignn_jax.data import bundled_data

HERE = Path(__file__).resolve().parent
EPOCHS, TRIALS, FULL = 27, 64, 16
# What is searched from: the default recipe, with batches that divide the frames of train well.
SETS = {
    "ethanol": {"data": {"batch_size": 5}, "model": {"preset": "small"}, "optimizer": {}},
    "si": {"data": {"batch_size": 2}, "model": {"preset": "small"}, "optimizer": {}},
}
SPACE = {
    "optimizer.learning_rate": {"log_uniform": [3e-4, 1e-2]},
    "optimizer.schedule": ["cosine", "constant"],
    "loss.forces_weight": {"log_uniform": [0.3, 30.0]},
    "optimizer.ema_decay": [0.9, 0.99, 0.999],
    "model.radial_basis": ["bessel", "gaussian"],
    "model.features": [32, 64],
    "model.layers": [2, 3],
}


def study(name: str, kind: str, out: Path, samples: int) -> dict:
    base = {
        **SETS[name],
        "data": {
            "train": str(bundled_data(name) / "train.extxyz.xz"),
            "validation_fraction": 0.1,
            **SETS[name]["data"],
        },
        "run": {"out": str(out / f"{name}-{kind}"), "epochs": EPOCHS, "checkpoint_minutes": 2.0},
    }
    goal = {"objectives": ["validation_forces_mae_mev_per_angstrom"]}
    if kind == "default":
        return {**goal, "base": base, "space": {"run.seed": [0, 1, 2]}}
    if kind == "random":
        return {**goal, "base": base, "space": SPACE, "search": "random", "samples": samples, "members_at_once": 8}
    more = {"search": "tpe", "samples": TRIALS, "members_at_once": 8, "trials_per_shape": 16, "startup": 16}
    return {**goal, "base": base, "space": SPACE, "halving": {"first_epochs": 1, "factor": 3}, **more}


def run(name: str, kind: str, out: Path, samples: int) -> dict:
    result = leignn.sweep(study(name, kind, out, samples))
    if not result.finished:
        raise SystemExit("stopped; the same command goes on")
    test = leignn.evaluate(result.best, bundled_data(name) / "test.extxyz.xz").metrics
    return {
        "best": result.rows[0],
        "trials": len(result.rows),
        "price": sum(row["epochs"] for row in result.rows) / EPOCHS,
        "compiles": result.compiles,
        "test": {k: test[k] for k in ("forces_mae_mev_per_angstrom", "energy_mae_mev_per_atom")},
    }


def report(found: dict) -> str:
    lines = [
        "# Search",
        "",
        f"Preset small with the space's changes, bundled train files, float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), seed 0. The price is in trainings of {EPOCHS} epochs.",
        "",
        "| set | search | trials | price | validation forces MAE (meV/Å) | test forces MAE (meV/Å) | "
        "test energy MAE (meV/atom) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for key, one in found.items():
        best, test = one["best"], one["test"]
        lines.append(
            f"| {' | '.join(key.split())} | {one['trials']} | {one['price']:.1f} | "
            f"{best['validation_forces_mae_mev_per_angstrom']:.1f} | {test['forces_mae_mev_per_angstrom']:.1f} | "
            f"{test['energy_mae_mev_per_atom']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=SETS)
    parser.add_argument("kind", nargs="?", choices=("tpe", "random", "default"))
    parser.add_argument("--out", type=Path, default=Path("search_studies"))
    parser.add_argument("--report", action="store_true", help="write the table of what has ended")
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if options.set is not None:
        tpe = found.get(f"{options.set} tpe")
        samples = FULL if tpe is None else round(tpe["price"])
        found[f"{options.set} {options.kind}"] = run(options.set, options.kind, options.out, samples)
        file.write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(report(found))


if __name__ == "__main__":
    main()
