# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Train on your own data
#
# From a file of labelled frames to a potential that is judged on frames it has not seen. The file here is bundled:
# ethanol from rMD17, 1000 geometries of a 500 K trajectory with energies (eV) and forces (eV/Å) by PBE. Put the path of
# yours in its place: extended XYZ, npz, DeePMD-kit folders, ASE databases and others are read.

# %%
import tempfile
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.data.inspect import inspect_data
from leignn_jax.errors import TrainingError

# %% tags=["parameters"]
FRAMES = 250  # of the training file
EPOCHS = 30
TUNING_FRAMES = 50  # of another part of the training file, to fine-tune with
TUNING_EPOCHS = 30
TEST_FRAMES = 300

# %% [markdown]
# ## Look at the data
#
# `inspect_data` (on the command line `leignn data inspect FILE`) reads every frame and says what stands there and what
# looks wrong: outliers, duplicates, labels that are probably in another unit. "Batch shapes" is how many programs will
# be compiled.

# %%
data = bundled_data("ethanol") / "train.extxyz.xz"
facts = inspect_data(data, batch_size=5)
for name, value in facts.lines():
    print(f"{name:29}{value}")

# %% [markdown]
# The reference energies are a fit of one energy per element. With a single composition they can't be
# told apart, and all atoms get the same.
#
# How distances and forces are distributed decides what a potential can learn: it knows nothing of
# distances that are not in the data, such as those below 0.88 Å here.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.hist(facts.distances, bins=150)
left.set(xlabel="distance (Å)", ylabel="pairs of atoms (some frames)")
right.hist(np.concatenate([one.forces.ravel() for one in facts.labels]), bins=150, log=True)
right.set(xlabel="force component (eV/Å)", ylabel="components")
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Train
#
# Settings are nested dictionaries (or a YAML file); a key that does not exist is an error with a suggestion. What is not
# said has a default, see `leignn_jax.training.config`. In a notebook the learning curve is drawn anew after every epoch.
#
# This is a small model (32 features, 2 layers) for a minute of training. Loss: forces first, energies five times heavier in
# the last quarter.

# %%
folder = Path(tempfile.mkdtemp())
settings = {
    "data": {"train": str(data), "max_frames": FRAMES, "batch_size": 5},
    "model": {"preset": "small", "features": 32},
    "loss": {"final_energy_weight": 5.0},
    "run": {"out": str(folder / "small"), "epochs": EPOCHS},
}
result = leignn.train(settings)

# %% [markdown]
# `result.potential` is the epoch best on validation, with exponentially averaged parameters. The run
# folder holds all of it, with `report.html` to look at.

# %%
print(*sorted(path.name for path in result.out.iterdir()), sep="\n")

# %% [markdown]
# ## Judge it
#
# On test frames that took no part in the training, beside the bundled potential (64 features, 2 layers, 900 frames, 600
# epochs, 13 minutes on one CPU core). Energies are compared less the reference energies of the atoms.

# %%
frames = leignn.read_frames(bundled_data("ethanol") / "test.extxyz.xz", index=f":{TEST_FRAMES}")
judged = {
    "trained here": leignn.evaluate(result.potential, frames),
    "bundled": leignn.evaluate(leignn.load_potential("ethanol"), frames),
}
for name, evaluation in judged.items():
    errors = evaluation.metrics
    print(
        f"{name:14} energy MAE {errors['energy_mae_mev_per_atom']:5.2f} meV/atom, "
        f"force MAE {errors['forces_mae_mev_per_angstrom']:5.1f} meV/Å"
    )

# %% [markdown]
# An `Evaluation` carries the numbers behind a parity plot: label and prediction, side by side.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
tables = [
    ("energy less references (meV/atom)", lambda e: 1e3 * e.energies),
    ("force component (eV/Å)", lambda e: e.forces),
]
for axis, (label, table) in zip(axes, tables, strict=True):
    for color, (name, evaluation) in zip(("C1", "C0"), judged.items(), strict=True):
        axis.plot(
            *table(evaluation).T, ".", ms=3, alpha=0.5, color=color, label=name, rasterized=True
        )
    axis.axline((0, 0), slope=1, color="0.5", lw=0.8)
    axis.set(
        xlabel=f"DFT {label}", ylabel=f"predicted {label}", aspect="equal", adjustable="datalim"
    )
    axis.legend(markerscale=3)
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Stop and go on
#
# A run folder is the run: the same call with the same settings goes on from its last checkpoint, after Ctrl-C and after a
# kill. Here the run is complete, so nothing is trained again. Other settings in the same folder are refused.

# %%
again = leignn.train(settings, progress=False)
print(f"{len(again.history)} epochs, the same errors: {again.metrics == result.metrics}")

# %%
try:
    leignn.train({**settings, "optimizer": {"learning_rate": 1e-3}}, progress=False)
except TrainingError as error:
    print(str(error).replace(str(folder), "FOLDER"))

# %% [markdown]
# ## Fine-tune
#
# `run.start_from` takes the parameters and the shape of another potential, a file or a bundled one. The bundled
# `aspirin` knows C, H and O in another molecule. As it stands it is poor for ethanol. How far does it get with 50
# frames of ethanol, at a quarter of the learning rate? Reference energies are fitted to the new data first.

# %%
tuning = folder / "some.extxyz"
ase.io.write(tuning, leignn.read_frames(data, index=f"{FRAMES}:{FRAMES + TUNING_FRAMES}"))
tuned = leignn.train(
    {
        "data": {"train": str(tuning), "batch_size": 5},
        "loss": {"final_energy_weight": 5.0},
        "optimizer": {"learning_rate": 5e-4, "ema_decay": 0.99},
        "run": {"out": str(folder / "tuned"), "epochs": TUNING_EPOCHS, "start_from": "aspirin"},
    },
    progress=False,
)

# %%
judged = {
    "aspirin as it is": leignn.evaluate(leignn.load_potential("aspirin"), frames),
    f"aspirin, {TUNING_FRAMES} frames of ethanol": leignn.evaluate(tuned.potential, frames),
    **{f"{name}, ethanol": evaluation for name, evaluation in judged.items()},
}
errors = [evaluation.metrics["forces_mae_mev_per_angstrom"] for evaluation in judged.values()]
figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
bars = axis.barh(list(judged), errors, color=["C3", "C2", "C1", "C0"])
axis.bar_label(bars, fmt="%.0f", padding=3)
axis.set(xlabel="force MAE on test frames (meV/Å)", xlim=(0, 1.1 * max(errors)))
axis.invert_yaxis()
axis.grid(alpha=0.3, axis="x")

# %% [markdown]
# The same from a shell:
#
#     leignn train --train frames.extxyz --out run
#     leignn train config.yaml run.start_from=aspirin
#     leignn evaluate run/potential.safetensors test.extxyz --plot parity.png
