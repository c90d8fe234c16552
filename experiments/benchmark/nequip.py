"""NequIP of mlip, trained for the same minutes on the same frames and cores as ours.

    python experiments/benchmark/nequip.py --minutes 40 --only Si water     # needs `pip install mlip`

mlip's own dataset, loss (1 of the squared energy error per atom, 25 of the squared force error), optimizer (AMSGrad at
0.01), averages and training loop; NequIP at mlip's size (128x0e+128x0o+64x1o+64x1e+32x2e+32x2o, degree 3, 2 layers) or,
``--size small``, a quarter as wide. In place of 4,000 steps of warm-up and a constant rate, for which minutes are too few:
a tenth of the training warms up and the rest falls linearly to a hundredth. Batches of 5 frames, as the NequIP paper's, or
one where a frame has more than 50 atoms, in place of 16. Epochs follow from a measured one, as ours do. The potential that
was best on validation is judged on the test file once. A line in nequip.json as each set ends.
"""

import argparse
import io
import json
import lzma
import os
import platform
from pathlib import Path

import ase.io
import jax
import numpy as np
from mlip.data import ASEAtomsReader, GraphDatasetBuilder, GraphDatasetBuilderConfig
from mlip.inference import run_batched_inference
from mlip.models import ForceField, Nequip
from mlip.models.loss import MSELoss
from mlip.training import OptimizerConfig, TrainingIOHandler, TrainingLoop, get_default_mlip_optimizer
from mlip.training.training_io_handler import LogCategory
from sets import SETS

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SIZES = {
    "default": "128x0e + 128x0o + 64x1o + 64x1e + 32x2e + 32x2o",
    "small": "32x0e + 32x0o + 16x1o + 16x1e + 8x2e + 8x2o",
}


def read(path: Path) -> list[ase.Atoms]:
    return ase.io.read(io.StringIO(lzma.open(path, "rt").read()), index=":", format="extxyz")


def train(
    frames: dict[str, list[ase.Atoms]], size: str, epochs: int, batch: int
) -> tuple[ForceField, list[float], int]:
    """The best potential on validation, seconds of each epoch, and steps of one."""
    builder = GraphDatasetBuilder(
        {split: ASEAtomsReader(some) for split, some in frames.items()}, GraphDatasetBuilderConfig(batch_size=batch)
    )
    data = builder.get_datasets()
    steps = len(data["train"])
    warm = max(1, epochs * steps // 10)
    rate = OptimizerConfig(
        init_learning_rate=1e-4,
        peak_learning_rate=0.01,
        final_learning_rate=1e-4,
        warmup_steps=warm,
        transition_steps=epochs * steps - warm,
    )
    network = Nequip(Nequip.Config(target_irreps=SIZES[size]), builder.dataset_info)
    seconds = []
    log = TrainingIOHandler()
    log.attach_logger(
        lambda kind, values, _: (
            seconds.append(values["runtime_in_seconds"]) if kind == LogCategory.SYSTEM_METRICS else None
        )
    )
    loop = TrainingLoop(
        data["train"],
        data["valid"],
        ForceField.from_mlip_network(network, seed=0),
        MSELoss(),
        get_default_mlip_optimizer(rate),
        TrainingLoop.Config(num_epochs=epochs, run_eval_at_start=False),
        log,
    )
    loop.run()
    best = loop.best_model
    # Its parameters are numpy's, which a traced index can't index.
    return ForceField(best.predictor, jax.tree.map(jax.numpy.asarray, best.params)), seconds, steps


def errors(model: ForceField, frames: list[ase.Atoms], batch: int) -> dict[str, float]:
    """Errors in meV/atom and meV/Å."""
    found = run_batched_inference(frames, model, batch_size=max(2, batch))
    energy = np.array([(p.energy - a.get_potential_energy()) / len(a) for p, a in zip(found, frames, strict=True)])
    forces = np.concatenate(
        [(np.asarray(p.forces) - a.get_forces()).ravel() for p, a in zip(found, frames, strict=True)]
    )
    return {
        "energy_mae_mev_per_atom": 1e3 * float(np.abs(energy).mean()),
        "forces_mae_mev_per_angstrom": 1e3 * float(np.abs(forces).mean()),
        "forces_rmse_mev_per_angstrom": 1e3 * float(np.sqrt((forces**2).mean())),
    }


def train_and_judge(name: str, size: str, minutes: float) -> dict:
    """A row of the table."""
    folder = DATA / SETS[name].folder
    frames = {"train": read(folder / "train.extxyz.xz")}
    if (folder / "val.extxyz.xz").exists():
        frames["valid"] = read(folder / "val.extxyz.xz")
    else:
        order = np.random.default_rng(0).permutation(len(frames["train"]))
        tenth = len(order) // 10
        frames["valid"] = [frames["train"][i] for i in order[:tenth]]
        frames["train"] = [frames["train"][i] for i in order[tenth:]]
    batch = 5 if len(frames["train"][0]) <= 50 else 1
    _, seconds, _ = train(frames, size, 2, batch)
    epochs = max(1, round(60 * minutes / seconds[-1]))
    model, seconds, steps = train(frames, size, epochs, batch)
    return {
        "set": name,
        "size": size,
        "minutes": minutes,
        "epochs": epochs,
        "seconds": sum(seconds),
        "step_ms": 1e3 * float(np.median(seconds)) / steps,
        "validation": errors(model, frames["valid"], batch),
        "test": errors(model, read(folder / "test.extxyz.xz"), batch),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--size", choices=list(SIZES), default="default")
    parser.add_argument("--only", nargs="+", choices=list(SETS), metavar="SET", required=True)
    options = parser.parse_args()
    path = HERE / "nequip.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in options.only:
        if any((row["set"], row["size"], row["minutes"]) == (name, options.size, options.minutes) for row in rows):
            continue
        rows.append(train_and_judge(name, options.size, options.minutes))
        print(name, rows[-1], flush=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
