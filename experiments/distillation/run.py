"""What a fast student learns of a teacher's forces, beside what it learns of the same frames' DFT labels.

    python experiments/distillation/run.py --minutes 10        # results.json, results.md; goes on where it stopped

Teacher: the bundled potential of aspirin. Students: preset small, of 64 or 32 features and 2 layers or 1. Each is trained
for the same minutes on one of: the frames of train with their DFT labels; those frames with the teacher's labels; those and
copies of each with displaced atoms, with the teacher's labels, whose differences are products of its Hessian. A tenth of
train validates, with DFT labels, in all three cases. Hessians are compared with the teacher's on test frames, by products
with random directions.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import ase.io
import jax
import numpy as np

import leignn_jax as leignn
from leignn_jax.bench import bench

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "rmd17_aspirin"
RESULTS = HERE / "results.json"
STUDENTS = {
    "64 x 2": {"preset": "small"},
    "32 x 2": {"preset": "small", "features": 32},
    "32 x 1": {"preset": "small", "features": 32, "layers": 1},
}
LABELS = {"DFT": None, "teacher": 0, "teacher, 4 copies": 4}
# Frames and directions of the Hessian's comparison, and the length of a displacement (Å).
FRAMES, STEP = 50, 1e-3


def hessian_products(potential: leignn.Potential, frames: list) -> np.ndarray:
    """Forces' change along one random direction of unit length per frame, central differences in float64, eV/Å^2."""
    rng = np.random.default_rng(0)
    found = []
    for atoms in frames:
        direction = rng.standard_normal(atoms.positions.shape)
        direction /= np.linalg.norm(direction)
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions += sign * STEP * direction
            sides.append(moved)
        forward, back = potential.predict(sides, dtype="float64")
        found.append((forward.forces - back.forces) / (2 * STEP))
    return np.array(found)


def trained(student: dict, files: dict[str, str], minutes: float, folder: Path) -> leignn.Potential:
    """The student after so many minutes, the second of two epochs having been timed."""

    def settings(epochs: int, out: str) -> dict:
        return {
            "data": files,
            "model": student,
            "run": {"epochs": epochs, "out": str(folder / out), "validate_every": max(1, epochs // 100)},
        }

    first = leignn.train(settings(2, "timed"), progress=False)
    epochs = max(1, round(60 * minutes / first.history[-1]["seconds"]))
    return leignn.train(settings(epochs, "run"), progress=False).potential


def row(student: str, labels: str, minutes: float, teacher: leignn.Potential, train: list, held: list) -> dict:
    """One line of the table."""
    test = leignn.read_frames(DATA / "test.extxyz.xz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = LABELS[labels]
        ase.io.write(folder / "train.extxyz", train if copies is None else leignn.label(teacher, train, copies=copies))
        ase.io.write(folder / "validation.extxyz", held)
        files = {split: str(folder / f"{split}.extxyz") for split in ("train", "validation")}
        potential = trained(STUDENTS[student], files, minutes, folder)
    products, right = (hessian_products(p, test[:FRAMES]) for p in (potential, teacher))
    errors = leignn.evaluate(potential, test).metrics
    return {
        "student": student,
        "labels": labels,
        "minutes": minutes,
        "test": errors,
        "hessian_mae_mev_per_angstrom2": 1e3 * float(np.abs(products - right).mean()),
        "energy_forces_ms": bench(potential, test[0], steps=50)["rows"][0]["energy_forces_ms"],
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}",
    }


def report(rows: list[dict]) -> str:
    """The table as Markdown."""
    lines = [
        "# A student of the bundled aspirin",
        "",
        "Float32, seed 0; errors of energy and forces against DFT on the test file, those of Hessian products against the",
        f"teacher on {FRAMES} of its frames, one random direction each.",
        "",
        "| student | trained on | minutes | energy MAE (meV/atom) | force MAE (meV/Å) | force RMSE (meV/Å) "
        "| Hessian products, MAE (meV/Å²) | energy and forces (ms) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in rows:
        test = one["test"]
        lines.append(
            f"| {one['student']} | {one['labels']} | {one['minutes']:g} | {test['energy_mae_mev_per_atom']:.3g} "
            f"| {test['forces_mae_mev_per_angstrom']:.3g} | {test['forces_rmse_mev_per_angstrom']:.3g} "
            f"| {one['hessian_mae_mev_per_angstrom2']:.3g} | {one['energy_forces_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each row (default 10)")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    options = parser.parse_args()
    teacher = leignn.load_potential("aspirin")
    frames = leignn.read_frames(DATA / "train.extxyz.xz")
    order = np.random.default_rng(0).permutation(len(frames))
    held, train = ([frames[i] for i in some] for some in np.split(order, [len(frames) // 10]))
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for student in options.students:
        for labels in LABELS:
            if any((r["student"], r["labels"], r["minutes"]) == (student, labels, options.minutes) for r in rows):
                continue
            rows.append(row(student, labels, options.minutes, teacher, train, held))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            (HERE / "results.md").write_text(report(rows))
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
