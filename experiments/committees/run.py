"""Does a committee of eight know its errors? Ethanol and silicon.

    python experiments/committees/run.py            # about 20 minutes on two CPU cores

Eight members of preset small that differ in their seed are trained side by side on the bundled train files. The factor that
makes spreads the size of errors is found on frames that were held out from the train file; correlation and coverage are then
told on the test file, which is read once. Writes results.json, results.md and a figure for each set.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import ase.io

import leignn_jax as leignn
from leignn_jax.data import bundled_data, read_frames
from leignn_jax.plotting import save_figure
from leignn_jax.sweeps.calibration import calibration_figure

HERE = Path(__file__).resolve().parent
# Epochs that take a few minutes each; frames of the train file that are held out, for the best epoch and the factor.
SETS = {
    "ethanol": {"epochs": 40, "batch_size": 5, "held_out": 100},
    "si": {"epochs": 40, "batch_size": 2, "held_out": 20},
}


def judge(name: str, epochs: int, batch_size: int, held_out: int, members: int) -> dict:
    folder = bundled_data(name)
    frames = read_frames(folder / "train.extxyz.xz")
    # Every so many: the file may be ordered.
    every = len(frames) // held_out
    kept = [i for i in range(len(frames)) if i % every or i // every >= held_out]
    rest = [i for i in range(len(frames)) if i not in set(kept)]
    with tempfile.TemporaryDirectory() as temporary:
        train, validation = Path(temporary) / "train.extxyz", Path(temporary) / "validation.extxyz"
        ase.io.write(train, [frames[i] for i in kept])
        ase.io.write(validation, [frames[i] for i in rest])
        began = time.monotonic()
        result = leignn.sweep(
            {
                "base": {
                    "data": {"train": str(train), "validation": str(validation), "batch_size": batch_size},
                    "model": {"preset": "small", "variant": "leignn"},
                    "optimizer": {"learning_rate": 2e-3},
                    "run": {"out": str(Path(temporary) / "study"), "epochs": epochs},
                },
                "space": {"run.seed": list(range(members))},
            }
        )
        seconds = time.monotonic() - began
        group = result.committee(members)
        held = leignn.calibrate(group, validation)
        test = leignn.calibrate(group, folder / "test.extxyz.xz", factor=held.factor)
    save_figure(calibration_figure(test), HERE / f"{name}.png")
    alone = leignn.evaluate(result.best, folder / "test.extxyz.xz").metrics["forces_rmse_mev_per_angstrom"]
    return {
        "train": len(kept),
        "held_out": held.summary(),
        "test": test.summary(),
        "best_alone_forces_rmse_mev_per_angstrom": alone,
        "epochs": epochs,
        "members": members,
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="of ethanol, si; both where none is named")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in [] if options.report else options.sets or SETS:
        found[name] = judge(name, members=options.members, **SETS[name])
        print(name, found[name], flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# Calibration of committees",
        "",
        f"Preset small, float32, seeds 0 to {options.members - 1}, {os.cpu_count()} CPU cores ({platform.machine()}). The "
        "factor is from held-out frames, everything else from the test file. Shares within 1 and 2 recalibrated spreads "
        "would be 0.68 and 0.95 for normal errors.",
        "",
        "| set | frames trained on, held out, tested | forces RMSE of mean, of best alone (meV/Å) "
        "| spread RMS (meV/Å) | rank correlation | factor | within 1 | within 2 |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        test, held = one["test"], one["held_out"]
        lines.append(
            f"| {name} | {one['train']}, {held['frames']}, {test['frames']} "
            f"| {test['forces_rmse_mev_per_angstrom']:.1f}, {one['best_alone_forces_rmse_mev_per_angstrom']:.1f} "
            f"| {test['spread_rms_mev_per_angstrom']:.1f} | {test['correlation']:.2f} | {held['factor']:.2f} "
            f"| {test['coverage']['1']:.2f} | {test['coverage']['2']:.2f} |"
        )
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
