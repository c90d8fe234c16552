"""Train one potential per system and judge each on its test file.

    python experiments/potentials/run.py                 # all seven, 1 to 38 minutes each on one CPU core
    python experiments/potentials/run.py ethanol si      # some
    python experiments/potentials/run.py --table         # results.md and cards from what is there

Each system's settings are configs/SYSTEM.yaml: files, epochs, of two the weight decay; the rest is the default recipe at
preset small. Its learning curve, parity plots and metrics.json end in SYSTEM/, and the potential, with the card in
cards.yaml, in the package: ``leignn.load_potential("SYSTEM")``. Work files go to runs/, where a stopped run goes on.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
SYSTEMS = ["methane", "ethanol", "si", "tungsten-alloy", "aspirin", "water", "lips"]
KEPT = ["metrics.json", "metrics.csv", "learning_curve.png", "parity_test.png", "config.yaml"]
# What each is to beat: (metric, number).
TARGETS = {
    "aspirin": [("forces_mae_mev_per_angstrom", 11.0)],
    "ethanol": [("forces_mae_mev_per_angstrom", 6.0)],
    "water": [("forces_rmse_mev_per_angstrom", 20.0)],
    "lips": [("forces_mae_mev_per_angstrom", 18.0)],
    "methane": [("forces_rmse_mev_per_angstrom", 40.0)],
    "si": [("forces_mae_mev_per_angstrom", 75.0), ("energy_mae_mev_per_atom", 6.0)],
    "tungsten-alloy": [("forces_mae_mev_per_angstrom", 140.0), ("energy_mae_mev_per_atom", 5.1)],
}


def train(system: str) -> None:
    """Train and keep what is worth keeping."""
    out = HERE / "runs" / system
    command = [
        sys.executable,
        "-m",
        "leignn_jax.cli",
        "train",
        str(HERE / "configs" / f"{system}.yaml"),
        f"run.out={out.relative_to(HERE.parents[1])}",
    ]
    subprocess.run(command, check=True, cwd=HERE.parents[1], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    (HERE / system).mkdir(exist_ok=True)
    for name in KEPT:
        shutil.copyfile(out / name, HERE / system / name)
    path = HERE / system / "metrics.json"
    found = json.loads(path.read_text())
    found["run"]["device"] = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    path.write_text(json.dumps(found, indent=1) + "\n")
    bundle(system, out / "potential.safetensors", found)


def bundle(system: str, file: Path, metrics: dict) -> None:
    """The potential with its card into the package."""
    import leignn_jax as leignn

    card = yaml.safe_load((HERE / "cards.yaml").read_text())[system]
    test = {name: round(value, 4) for name, value in metrics["test"].items() if value is not None}
    card = {
        "name": system,
        **card,
        "training frames": metrics["run"]["frames"]["train"],
        "test errors": test,
        "command": f"python experiments/potentials/run.py {system}",
    }
    leignn.load_potential(file).replace(metadata_json=json.dumps(card, ensure_ascii=False)).save(packaged(system))


def packaged(system: str) -> Path:
    """The potential in the package."""
    import leignn_jax as leignn

    return Path(leignn.__file__).parent / "resources" / "potentials" / f"{system}.safetensors"


def table() -> str:
    """All systems as Markdown."""
    lines = [
        "# Potentials trained on CPU",
        "",
        "Errors on each system's test file, which took no part in the training; averaged parameters of the epoch best on",
        "validation; float32, seed 0, one run each, one core each, of two that other work shared.",
        "",
        "| system | train/val/test | energy MAE (meV/atom) | force MAE (meV/Å) | force RMSE (meV/Å) | stress MAE (meV/Å³) "
        "| epochs (best) | training (min) | target | met |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for system in SYSTEMS:
        path = HERE / system / "metrics.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        test, run = found["test"], found["run"]

        def show(value):
            return "–" if value is None else f"{value:.3g}"

        targets = TARGETS[system]
        goal = "; ".join(f"{name.rsplit('_mev', 1)[0].replace('_', ' ')} {limit:g}" for name, limit in targets)
        met = "yes" if all(test[name] < limit for name, limit in targets) else "no"
        sizes = f"{run['frames']['train']}/{found['validation']['structures']}/{test['structures']}"
        lines.append(
            f"| {system} | {sizes} | {show(test['energy_mae_mev_per_atom'])} | {show(test['forces_mae_mev_per_angstrom'])} "
            f"| {show(test['forces_rmse_mev_per_angstrom'])} | {show(test['stress_mae_mev_per_angstrom3'])} "
            f"| {run['epochs']} ({run['best_epoch']}) | {run['training_seconds'] / 60:.0f} | {goal} | {met} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], default=[])
    parser.add_argument("--table", action="store_true", help="only write the table and the cards")
    options = parser.parse_args()
    for system in options.systems or SYSTEMS:
        if options.table:
            bundle(system, packaged(system), json.loads((HERE / system / "metrics.json").read_text()))
        else:
            train(system)
        (HERE / "results.md").write_text(table())


if __name__ == "__main__":
    main()
