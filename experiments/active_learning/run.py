"""Active learning on aspirin: frames chosen by a committee's disagreement against as many drawn at random.

    python experiments/active_learning/run.py --seed 0     # and 1, 2; half an hour each on one CPU core
    python experiments/active_learning/run.py --report

From the train file of rMD17's aspirin 100 frames are labelled at the start, 50 for validation beside them; the rest
is the pool. Five times 50 frames of it are labelled: chosen by `leignn.select` of a committee of four that is trained
on what is labelled, or at random. After each round a committee of the same kind is trained anew; its mean is judged
on the test file, which nothing chooses by. Needs ../shared/data. Writes results.json after every round, and goes on
from it.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import ase.io
import numpy as np

import leignn_jax as leignn
from leignn_jax.plotting import new_figure, save_figure

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "rmd17_aspirin"
START, VALIDATION, ROUNDS, EACH, MEMBERS = 100, 50, 5, 50, 4
# As many steps whatever the number of frames.
STEPS, BATCH = 1500, 5


def trained(frames: list, validation: list, seed: int) -> leignn.Potential:
    """A committee that was trained on these frames."""
    with tempfile.TemporaryDirectory() as folder:
        train, held = Path(folder) / "train.extxyz", Path(folder) / "validation.extxyz"
        ase.io.write(train, frames)
        ase.io.write(held, validation)
        study = {
            "base": {
                "data": {"train": str(train), "validation": str(held), "batch_size": BATCH},
                "model": {"preset": "small"},
                "run": {
                    "out": str(Path(folder) / "study"),
                    "epochs": round(STEPS * BATCH / len(frames)),
                    "validate_every": 4,
                },
            },
            "space": {"run.seed": [MEMBERS * seed + i for i in range(MEMBERS)]},
        }
        return leignn.sweep(study, progress=False).committee(MEMBERS)


def judged(members: leignn.Potential, test: list) -> dict:
    said = leignn.committee_predict(members, test)
    errors = np.concatenate([one.forces - atoms.get_forces() for one, atoms in zip(said, test, strict=True)])
    return {
        "forces_mae_mev_per_angstrom": 1e3 * float(np.abs(errors).mean()),
        "forces_rmse_mev_per_angstrom": 1e3 * float(np.sqrt((errors**2).mean())),
    }


def run(seed: int, found: dict, save) -> None:
    frames = leignn.read_frames(DATA / "train.extxyz.xz")
    test = leignn.read_frames(DATA / "test.extxyz.xz")
    order = np.random.default_rng(seed).permutation(len(frames))
    validation = [frames[i] for i in order[:VALIDATION]]
    begin, pool = order[VALIDATION : VALIDATION + START].tolist(), order[VALIDATION + START :].tolist()
    for way in ("spread", "random"):
        # Both begin alike.
        rounds = found.setdefault(f"{way} {seed}", found.get(f"spread {seed}", [])[:1])
        labelled = [*begin, *(i for one in rounds[1:] for i in one["added"])]
        added: list[int] = []
        members = None
        while len(rounds) <= ROUNDS:
            if rounds:
                left = [i for i in pool if i not in set(labelled)]
                if way == "random":
                    draw = np.random.default_rng([seed, len(rounds)]).choice(left, EACH, replace=False)
                    added = [int(i) for i in draw]
                else:
                    if members is None:
                        members = trained([frames[i] for i in labelled], validation, seed)
                    known = [frames[i] for i in labelled]
                    chosen = leignn.select(members, [frames[i] for i in left], EACH, known=known)
                    added = [int(left[i]) for i in chosen.indices]
                labelled += added
            members = trained([frames[i] for i in labelled], validation, seed)
            rounds.append({"frames": len(labelled), "added": added, **judged(members, test)})
            print(way, seed, {k: v for k, v in rounds[-1].items() if k != "added"}, flush=True)
            save()


def report(found: dict) -> None:
    figure, axes = new_figure(2, width=4)
    lines = [
        "# Active learning on aspirin",
        "",
        f"Preset small, {STEPS:,} steps of {BATCH} frames, committees of {MEMBERS}, float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}). Test errors of the committee's mean force: MAE, RMSE (meV/Å).",
        "",
    ]
    sizes = [START + EACH * i for i in range(ROUNDS + 1)]
    lines += ["| way, seed | " + " | ".join(map(str, sizes)) + " |", "|---|" + "---:|" * len(sizes)]
    for name, rounds in sorted(found.items()):
        cells = [
            f"{one['forces_mae_mev_per_angstrom']:.1f}, {one['forces_rmse_mev_per_angstrom']:.1f}" for one in rounds
        ]
        lines.append(f"| {name} | " + " | ".join(cells + [""] * (len(sizes) - len(cells))) + " |")
        for axis, kind in zip(axes, ("mae", "rmse"), strict=True):
            values = [one[f"forces_{kind}_mev_per_angstrom"] for one in rounds]
            color = "C0" if name.startswith("spread") else "C1"
            axis.plot([one["frames"] for one in rounds], values, "o-", color=color, alpha=0.7, label=name)
            axis.set(xlabel="labelled frames", ylabel=f"test {kind.upper()} of forces (meV/Å)")
            axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save_figure(figure, HERE / "results.png")
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--report", action="store_true", help="write table and figure of what is there")
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}

    def save() -> None:
        file.write_text(json.dumps(found, indent=1) + "\n")

    if options.seed is not None:
        run(options.seed, found, save)
    if found:
        report(found)


if __name__ == "__main__":
    main()
