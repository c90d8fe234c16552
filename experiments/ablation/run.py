"""What pays: one choice of the model or recipe changed at a time, on a molecule and on a crystal, at equal training time.

    python experiments/ablation/run.py                    # about 80 minutes on one CPU core
    python experiments/ablation/run.py --table            # results.md and results.png from what is there

First a step of every variant is timed, in turns; then each is trained for as many epochs as
fit into the same budget. All have 64 features, 2 layers and 12 radial functions. Choices are judged on validation
frames; the errors on the test frames are there to be read.
"""

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
# What "ours" was when the choices were made; the smooth norm has become part of the presets since.
OURS = {"preset": "small", "variant": "leignn", "norm_floor": 1e-8}
PUBLISHED = {**OURS, "radial_basis": "gaussian", "smooth_cutoff": False, "direct_forces": True}
SYSTEMS = {
    "ethanol": {
        "data": {"batch_size": 5, "validation_fraction": 0.05},
        "loss": {"final_energy_weight": 5.0},
    },
    "si": {"data": {"batch_size": 4}, "loss": {"energy_weight": 0.3, "final_energy_weight": 2.0}},
}
FILES = {"ethanol": "rmd17_ethanol", "si": "mlearn_Si"}
VARIANTS = {
    "ours": {},
    "ours, seed 1": {"run": {"seed": 1}},
    "no global nodes": {"model": {"variant": "vanilla_nmu"}},
    "direct forces": {"model": {"direct_forces": True}, "loss": {"force_source": "direct"}},
    "Gaussian basis": {"model": {"radial_basis": "gaussian"}},
    "hard cutoff": {"model": {"smooth_cutoff": False}},
    "smooth norm": {"model": {"norm_floor": 1e-2}},
    "published": {"recipe": "published", "model": {**PUBLISHED, "repulsion": False}},
}


def values_of(system: str, variant: str) -> dict:
    """The nested config values of one run, without epochs and folder."""
    base, change = SYSTEMS[system], VARIANTS[variant]
    files = {name: str(DATA / FILES[system] / f"{name}.extxyz.xz") for name in ("train", "test")}
    if change.get("recipe") == "published":  # its own loss and optimizer
        return {**change, "data": {**base["data"], **files}, "run": {}}
    return {
        "data": {**base["data"], **files},
        "model": {**OURS, **change.get("model", {})},
        "loss": {**base["loss"], **change.get("loss", {})},
        "optimizer": {"algorithm": "adam", "learning_rate": 2e-3, "weight_decay": 0.01},
        "run": change.get("run", {}),
    }


def epoch_times(path: Path) -> dict[tuple[str, str], float]:
    """Seconds per epoch of every system and variant, from the medians of steps taken in turns; measured once and kept."""
    if path.exists():
        return {tuple(key.split("/")): value for key, value in json.loads(path.read_text()).items()}
    times = {}
    for system in SYSTEMS:
        steps = {variant: compiled_step(system, variant) for variant in VARIANTS}
        found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(8):  # in turns, since the machine's speed varies
            for variant, (step, _) in steps.items():
                for _ in range(10):
                    started = time.perf_counter()
                    step()
                    found[variant].append(time.perf_counter() - started)
        for variant, (_, per_epoch) in steps.items():
            times[system, variant] = per_epoch * statistics.median(found[variant])
        times[system, "ours"] = times[system, "ours, seed 1"] = min(times[system, v] for v in ("ours", "ours, seed 1"))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"/".join(case): value for case, value in times.items()}, indent=1))
    return times


def compiled_step(system: str, variant: str):
    """A train step on the first batch, ready to be called, and the steps of an epoch."""
    import jax

    from leignn_jax.training.config import make_config
    from leignn_jax.training.prepared import prepare, train_batches
    from leignn_jax.training.step import start_state, train_step

    values = values_of(system, variant)
    del values["data"]["test"]
    config = make_config(values)
    prepared = prepare(config)
    algorithm = config.optimizer.algorithm
    state = start_state(prepared.potential, config.hyperparameters(prepared.steps_per_epoch), algorithm)
    _, batch = next(train_batches(prepared, config, 0, 0))
    compiled = (
        jax.jit(partial(train_step, kinds=prepared.kinds(config), algorithm=algorithm)).lower(state, batch).compile()
    )
    return lambda: jax.block_until_ready(compiled(state, batch)), prepared.steps_per_epoch


def table(results: dict) -> str:
    """All runs as Markdown."""
    lines = [
        "# What pays at equal training time",
        "",
        f"{results['budget_s']:.0f} s of training steps per run by epochs measured beforehand, one core of "
        f"{results['device']}, float32. 64 features, 2 layers, 12 radial functions, batches of 5 (ethanol) and 4 (si).",
        "Force errors are of the forces that the variant was trained to give.",
        "",
        "| system | variant | s per epoch | epochs | validation: energy MAE (meV/atom) | force MAE (meV/Å) "
        "| test: energy MAE | force MAE |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    order = list(VARIANTS)
    for row in sorted(results["rows"], key=lambda r: (r["system"], order.index(r["variant"]))):
        errors = [row[s][k] for s in ("validation", "test") for k in ("energy", "forces")]
        shown = " | ".join(f"{x:.3g}" for x in errors)
        lines.append(f"| {row['system']} | {row['variant']} | {row['epoch_s']:.2f} | {row['epochs']} | {shown} |")
    return "\n".join(lines) + "\n"


def plot(results: dict) -> None:
    """Validation force error over training time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, system in zip(axes, SYSTEMS, strict=True):
        rows = {r["variant"]: r for r in results["rows"] if r["system"] == system}
        for n, row in enumerate(rows[v] for v in VARIANTS if v in rows):
            epochs, errors = zip(*row["curve"], strict=True)
            axis.plot([row["epoch_s"] * e / 60 for e in epochs], errors, f"C{n}", label=row["variant"], lw=1.5)
        axis.set(xlabel="training time (min)", ylabel="validation force MAE (meV/Å)", title=system, yscale="log")
        axis.legend(fontsize=8)
    figure.savefig(HERE / "results.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=270.0, help="seconds of training steps per run")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="only these variants")
    parser.add_argument("--table", action="store_true", help="only write table and figure")
    options = parser.parse_args()
    path = HERE / "results.json"
    if not options.table:
        import leignn_jax as leignn

        results = {
            "budget_s": options.budget,
            "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "rows": [],
        }
        times = epoch_times(HERE / "runs" / "times.json")
        for (system, variant), seconds in times.items():
            print(f"{system}, {variant}: {seconds:.2f} s per epoch", flush=True)
        if path.exists():  # a stopped study goes on
            results = json.loads(path.read_text())
        done = {(row["system"], row["variant"]) for row in results["rows"]}
        for (system, variant), seconds in times.items():
            if (system, variant) in done or (options.only and variant not in options.only):
                continue
            epochs = max(1, round(options.budget / seconds))
            values = values_of(system, variant)
            out = HERE / "runs" / f"{system}-{variant.replace(', ', '-').replace(' ', '-')}"
            every = max(1, epochs // 60)
            run = {"epochs": epochs, "validate_every": every, "checkpoint_minutes": 10, "out": str(out)}
            values["run"] = {**values["run"], **run}
            result = leignn.train(values, progress=False)
            errors = {
                name: {
                    "energy": result.metrics[name]["energy_mae_mev_per_atom"],
                    "forces": result.metrics[name]["forces_mae_mev_per_angstrom"],
                }
                for name in ("validation", "test")
            }
            key = "validation_forces_mae_mev_per_angstrom"
            curve = [(row["epoch"], row[key]) for row in result.history if row.get(key) is not None]
            row = {"system": system, "variant": variant, "epoch_s": seconds, "epochs": epochs, **errors, "curve": curve}
            results["rows"].append(row)
            print(system, variant, epochs, errors, flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(path.read_text())
    (HERE / "results.md").write_text(table(results))
    plot(results)


if __name__ == "__main__":
    main()
