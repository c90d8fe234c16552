"""What pays at equal training time on six sets: optimiser and learning rate, the batch, the model, decay, stress.

    python experiments/recipe/run.py recipes --budget 90     # about an hour on one CPU core
    python experiments/recipe/run.py models --budget 90      # as long, or longer; so is `batches`
    python experiments/recipe/run.py --report                # results.md and pareto.png from what is there

Steps of all choices are timed in turns first, in seconds of the processor; then each trains for as many epochs as fit into
the budget by these times, so that other work on the machine does not decide. Run it on one core (taskset). Judged on frames
held out from the train files; no test file is read.
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
# What is changed of the default settings; models were compared with the recipe that won, and what comes after the models
# with the model that won.
CHOICES = {
    "recipes": {
        "adam 2e-3": {"optimizer": {"algorithm": "adam", "learning_rate": 2e-3}},
        "adam 5e-3": {"optimizer": {"algorithm": "adam", "learning_rate": 5e-3}},
        "muon 5e-3": {"optimizer": {"algorithm": "muon", "learning_rate": 5e-3}},
        "muon 1e-2": {"optimizer": {"algorithm": "muon", "learning_rate": 1e-2}},
    },
    "batches": {
        "1 frame": {"data": {"batch_size": 1}},
        "2 frames": {"data": {"batch_size": 2}},
        "4 frames": {"data": {"batch_size": 4}},
        "8 frames": {"data": {"batch_size": 8}},
    },
    "models": {
        "leignn": {},
        "local": {"model": {"global_nodes": False}},
        "tensors 32": {"model": {"tensor_features": 32}},
        "tensors 32, local": {"model": {"tensor_features": 32, "global_nodes": False}},
        "higher order 1": {"model": {"variant": "higher_order", "degree": 1}},
        "higher order 2": {"model": {"variant": "higher_order", "degree": 2}},
    },
    # None is of the model before, in commit 09504b4, whose atoms did not pass their tensors on.
    "tensors": {
        "summed": None,
        "summed, decay 0.03": None,
        "summed, decay 0.1": None,
        "exchanged": {},
        "exchanged, decay 0.01": {"optimizer": {"weight_decay": 0.01}},
        "exchanged, decay 0.03": {"optimizer": {"weight_decay": 0.03}},
    },
    "radial functions": {
        "Bessel": {"model": {"radial_basis": "bessel"}},
        "Gaussian": {"model": {"radial_basis": "gaussian"}},
        "Bessel, 3 layers": {"model": {"radial_basis": "bessel", "layers": 3}},
        "Gaussian, 3 layers": {"model": {"radial_basis": "gaussian", "layers": 3}},
    },
    "decays": {
        "decay 0.01": {"optimizer": {"weight_decay": 0.01}},
        "decay 0.03": {"optimizer": {"weight_decay": 0.03}},
    },
    "default": {
        "paper's model": {"model": {"variant": "leignn"}},
        "default model": {},
    },
    "stresses": {
        "hardly any stress": {"loss": {"stress_weight": 1e-9}},
        "stress 0.1": {"loss": {"stress_weight": 0.1}},
        "stress 1": {"loss": {"stress_weight": 1.0}},
    },
}
TITLES = {
    "recipes": "Optimiser and learning rate",
    "batches": "Frames of a step",
    "models": "Models",
    "tensors": "Tensors exchanged or only summed, and weight decay",
    "radial functions": "Radial functions and layers",
    "decays": "Weight decay of the model with bounds",
    "default": "Today's default beside the paper's model",
    "stresses": "Weight of the stress",
}
# The model of the groups in which it was not the default yet.
OLDER = {"recipes": "leignn", "batches": "leignn", "models": "leignn"}
# Frames of large structures come fewer at a time, that there are steps enough.
BATCH = {"ethanol": 5, "aspirin": 5, "acac": 5, "Si": 2, "water": 2, "LiPS": 2}


def settings(group: str, name: str, change: dict, seed: int) -> dict:
    """What a training is told, without its length."""
    variant = {"variant": OLDER[group]} if group in OLDER else {}
    folder = DATA / SETS[name]
    files = {"train": folder / "train.extxyz.xz", "validation": folder / "val.extxyz.xz"}
    return {
        "data": {
            "batch_size": BATCH[name],
            **{key: str(file) for key, file in files.items() if file.exists()},
            **change.get("data", {}),
        },
        "model": {"preset": "small", **variant, **change.get("model", {})},
        "loss": change.get("loss", {}),
        "optimizer": change.get("optimizer", {}),
        "run": {"seed": seed},
    }


def step_times(group: str, name: str, changes: dict[str, dict]) -> dict[str, tuple[float, int, float]]:
    """Seconds per step of every choice, steps per epoch, seconds for energy and forces of one frame; medians, in turns."""
    import jax

    from leignn_jax.training.config import make_config
    from leignn_jax.training.prepared import prepare, train_batches
    from leignn_jax.training.step import start_state, train_step

    calls, per_epoch = {}, {}
    for choice, change in changes.items():
        config = make_config(settings(group, name, change, 0))
        prepared = prepare(config)
        algorithm = config.optimizer.algorithm
        state = start_state(prepared.potential, config.hyperparameters(prepared.steps_per_epoch), algorithm)
        _, batch = next(train_batches(prepared, config, 0, 0))
        step = (
            jax.jit(partial(train_step, kinds=prepared.kinds(config), algorithm=algorithm))
            .lower(state, batch)
            .compile()
        )
        one = jax.device_put(batch.graph.unbatch()[0].pad_to_bucket())
        forces = (
            jax.jit(lambda potential, graph: potential.energy_and_forces(graph)).lower(state.potential, one).compile()
        )
        calls[choice] = (partial(step, state, batch), partial(forces, state.potential, one))
        per_epoch[choice] = prepared.steps_per_epoch
    found: dict = {choice: ([], []) for choice in changes}
    for _ in range(6):
        for choice, both in calls.items():
            for call, times in zip(both, found[choice], strict=True):
                for _ in range(6):
                    began = time.process_time()
                    jax.block_until_ready(call())
                    times.append(time.process_time() - began)
    return {c: (statistics.median(found[c][0]), per_epoch[c], statistics.median(found[c][1])) for c in changes}


def report(rows: list[dict]) -> str:
    """The tables as Markdown."""
    lines = [
        "# What pays at equal training time",
        "",
        "Preset small, default settings but for what is named, the model LEIGNN where not said otherwise and in the last "
        f"five tables what is now the default, float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), one of them used; errors on validation frames. Energy and forces are timed of one frame.",
    ]
    for group, title in TITLES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| set | choice | seed | s of steps | ms per step | energy and forces (ms) | epochs | energy MAE (meV/atom) | "
            "force MAE (meV/Å) | stress MAE (meV/Å³) |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows:
            if row["group"] == group:
                forces = f"{1e3 * row['forces_s']:.2f}" if "forces_s" in row else ""
                stress = f"{row['stress']:.3g}" if row.get("stress") is not None else ""
                lines.append(
                    f"| {row['set']} | {row['choice']} | {row['seed']} | {row['budget_s']:.0f} | "
                    f"{1e3 * row['step_s']:.1f} | {forces} | {row['epochs']} | {row['energy']:.3g} | {row['forces']:.3g} | "
                    f"{stress} |"
                )
    return "\n".join(lines) + "\n"


def pareto(rows: list[dict]) -> None:
    """Force error against the time for energy and forces, a panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["group"] == "models"]
    names = [name for name in SETS if any(row["set"] == name for row in rows)]
    if not names:
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 3.1 * lines), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for number, choice in enumerate(CHOICES["models"]):
            points = [(1e3 * r["forces_s"], r["forces"]) for r in rows if (r["set"], r["choice"]) == (name, choice)]
            if points:
                axis.plot(*zip(*points, strict=True), "o", color=f"C{number}", label=choice)
        axis.set(title=name, xlabel="energy and forces of one frame (ms)", ylabel="force MAE (meV/Å)")
        axis.set_xlim(0, 1.15 * max(1e3 * r["forces_s"] for r in rows if r["set"] == name))
        axis.set_ylim(0, 1.15 * max(r["forces"] for r in rows if r["set"] == name))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    drawn = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [choice for choice in CHOICES["models"] if choice in drawn]
    figure.legend([drawn[choice] for choice in order], order, loc="outside lower center", ncols=len(order), fontsize=8)
    figure.savefig(HERE / "pareto.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="?", choices=list(CHOICES))
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of training steps per run")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument("--choices", nargs="+", metavar="CHOICE", help="only these of the group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only write tables and figure")
    options = parser.parse_args()
    path = HERE / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    changes = {choice: change for choice, change in CHOICES.get(options.group, {}).items() if change is not None}
    changes = {choice: changes[choice] for choice in options.choices or changes}
    for name in options.only if changes and not options.report else []:
        ours = (name, options.seed, options.budget)
        done = {row["choice"] for row in rows if (row["set"], row["seed"], row["budget_s"]) == ours}
        left = {choice: change for choice, change in changes.items() if choice not in done}
        if not left:
            continue
        import leignn_jax as leignn

        times = step_times(options.group, name, left)
        for choice, change in left.items():
            seconds, per_epoch, forces = times[choice]
            epochs = max(1, round(options.budget / seconds / per_epoch))
            values = settings(options.group, name, change, options.seed)
            with tempfile.TemporaryDirectory() as folder:
                values["run"] |= {"epochs": epochs, "validate_every": max(1, epochs // 20), "out": folder + "/run"}
                found = leignn.train(values, progress=False).metrics["validation"]
            row = {"group": options.group, "set": name, "choice": choice, "seed": options.seed}
            row |= {"budget_s": options.budget, "step_s": seconds, "forces_s": forces, "epochs": epochs}
            row |= {"energy": found["energy_mae_mev_per_atom"], "forces": found["forces_mae_mev_per_angstrom"]}
            row |= {"stress": found["stress_mae_mev_per_angstrom3"]}
            rows.append(row)
            order = [choice for group in CHOICES.values() for choice in group]
            rows.sort(key=lambda r: (list(SETS).index(r["set"]), r["seed"], order.index(r["choice"]), r["budget_s"]))
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(name, choice, epochs, f"{row['energy']:.3g} meV/atom, {row['forces']:.3g} meV/Å", flush=True)
    (HERE / "results.md").write_text(report(rows))
    pareto(rows)


if __name__ == "__main__":
    main()
