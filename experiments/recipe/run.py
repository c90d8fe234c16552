"""Which optimiser and learning rate: the default recipe with these changed alone, for the same time on each of six sets.

    python experiments/recipe/run.py --budget 90     # about an hour on one CPU core
    python experiments/recipe/run.py --report        # results.md from what is there

Steps of all recipes are timed in turns first; then each trains for as many epochs as fit into the budget by these times, so
that other work on the machine does not decide. Judged on frames held out from the train files; no test file is read.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETS = {
    "ethanol": "rmd17_ethanol",
    "aspirin": "rmd17_aspirin",
    "acac": "acac",
    "Si": "mlearn_Si",
    "water": "water",
    "LiPS": "lips",
}
RECIPES = {
    "adam 2e-3": {"algorithm": "adam", "learning_rate": 2e-3},
    "adam 5e-3": {"algorithm": "adam", "learning_rate": 5e-3},
    "muon 5e-3": {"algorithm": "muon", "learning_rate": 5e-3},
    "muon 1e-2": {"algorithm": "muon", "learning_rate": 1e-2},
}
# Frames of large structures come fewer at a time, that there are steps enough.
BATCH = {"ethanol": 5, "aspirin": 5, "acac": 5, "Si": 2, "water": 2, "LiPS": 2}


def settings(name: str, recipe: str, seed: int) -> dict:
    """What a training is told, without its length."""
    folder = DATA / SETS[name]
    files = {"train": folder / "train.extxyz.xz", "validation": folder / "val.extxyz.xz"}
    return {
        "data": {"batch_size": BATCH[name], **{key: str(file) for key, file in files.items() if file.exists()}},
        "model": {"preset": "small"},
        "optimizer": RECIPES[recipe],
        "run": {"seed": seed},
    }


def step_times(name: str, recipes: list[str]) -> dict[str, tuple[float, int]]:
    """Seconds per step of every recipe, medians of steps taken in turns, and steps per epoch."""
    import jax

    from leignn_jax.training.config import make_config
    from leignn_jax.training.prepared import prepare, train_batches
    from leignn_jax.training.step import start_state, train_step

    steps = {}
    for recipe in recipes:
        config = make_config(settings(name, recipe, 0))
        prepared = prepare(config)
        algorithm = config.optimizer.algorithm
        state = start_state(prepared.potential, config.hyperparameters(prepared.steps_per_epoch), algorithm)
        _, batch = next(train_batches(prepared, config, 0, 0))
        step = (
            jax.jit(partial(train_step, kinds=config.loss.kinds(), algorithm=algorithm)).lower(state, batch).compile()
        )
        steps[recipe] = (partial(step, state, batch), prepared.steps_per_epoch)
    found: dict[str, list[float]] = {recipe: [] for recipe in recipes}
    for _ in range(6):
        for recipe, (step, _) in steps.items():
            for _ in range(6):
                began = time.perf_counter()
                jax.block_until_ready(step())
                found[recipe].append(time.perf_counter() - began)
    return {recipe: (statistics.median(found[recipe]), steps[recipe][1]) for recipe in recipes}


def report(rows: list[dict]) -> str:
    """The table as Markdown."""
    lines = [
        "# Recipes at equal training time",
        "",
        f"Preset small, default recipe but for algorithm and learning rate, float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), one of them used; errors on validation frames.",
        "",
        "| set | recipe | seed | s of steps | ms per step | epochs | energy MAE (meV/atom) | force MAE (meV/Å) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['set']} | {row['recipe']} | {row['seed']} | {row['budget_s']:.0f} | {1e3 * row['step_s']:.1f} | "
            f"{row['epochs']} | {row['energy']:.3g} | {row['forces']:.3g} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of training steps per run")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only write the table")
    options = parser.parse_args()
    path = HERE / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in [] if options.report else options.only:
        done = {row["recipe"] for row in rows if (row["set"], row["seed"]) == (name, options.seed)}
        left = [recipe for recipe in options.recipes if recipe not in done]
        if not left:
            continue
        import leignn_jax as leignn

        times = step_times(name, left)
        for recipe in left:
            seconds, per_epoch = times[recipe]
            epochs = max(1, round(options.budget / seconds / per_epoch))
            values = settings(name, recipe, options.seed)
            with tempfile.TemporaryDirectory() as folder:
                values["run"] |= {"epochs": epochs, "validate_every": max(1, epochs // 20), "out": folder + "/run"}
                found = leignn.train(values, progress=False).metrics["validation"]
            row = {"set": name, "recipe": recipe, "seed": options.seed, "budget_s": options.budget}
            row |= {"step_s": seconds, "epochs": epochs, "energy": found["energy_mae_mev_per_atom"]}
            row |= {"forces": found["forces_mae_mev_per_angstrom"]}
            rows.append(row)
            rows.sort(key=lambda r: (list(SETS).index(r["set"]), r["seed"], list(RECIPES).index(r["recipe"])))
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(name, recipe, epochs, f"{row['energy']:.3g} meV/atom, {row['forces']:.3g} meV/Å", flush=True)
    (HERE / "results.md").write_text(report(rows))


if __name__ == "__main__":
    main()
