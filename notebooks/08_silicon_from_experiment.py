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
# # 8. Silicon, from DFT and experiment together
#
# A potential is as good as its DFT. PBE makes silicon too large: 5.47 Å where 5.43 is measured. `leignn.fit` trains
# on DFT frames as ever, and on *targets*: what a simulation or a relaxed structure of the potential should give.
# The gradient of a relaxed structure comes from the minimum itself (implicit differentiation), not from the way to it.
#
# This is the short version: the lattice constant alone, few frames, few epochs. The whole one, with the
# elastic constants as well (whose gradients take two minutes to compile), is
# `leignn fit experiments/fit_silicon/fit.yaml`.

# %%
import tempfile
from pathlib import Path

import ase.build
import ase.io
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax.data import bundled_data

# %% tags=["parameters"]
FRAMES = 60  # of the training file, a tenth of them held out
EPOCHS = 6
TEST_FRAMES = 25

# %% [markdown]
# ## The fit
#
# It goes on from the bundled potential, with the frames that this was trained on. Energies keep their
# references. The target's weight decides what is traded for what.

# %%
folder = Path(tempfile.mkdtemp())
ase.io.write(folder / "crystal.extxyz", ase.build.bulk("Si", cubic=True, a=5.45))
settings = {
    "data": {
        "train": str(bundled_data("si") / "train.extxyz.xz"),
        "max_frames": FRAMES,
        "reference_energies": "keep",
        "batch_size": 4,
    },
    "loss": {"energy_weight": 1.0, "stress_weight": 0.3},
    "run": {"start_from": "si", "out": str(folder / "fit"), "epochs": EPOCHS},
    "optimizer": {
        "learning_rate": 1e-4,
        "warmup_epochs": 1,
        "ema_decay": 0.9,
        "weight_decay": 0.01,
    },
    "targets": [
        {
            "name": "a",
            "observable": "lattice_constant",
            "structure": str(folder / "crystal.extxyz"),
            "value": 5.4307,  # Å, measured at room temperature
            "uncertainty": 0.005,
            "weight": 0.02,
            "period": 2,
        }
    ],
}
result = leignn.fit(settings, progress=False)

# %% [markdown]
# `metrics.csv` of the run folder has the target's deviation by epoch, beside the errors of the frames held
# out; `report.html` has all of it to look at.

# %%
column = next(name for name in result.history[0] if name.startswith("target"))
force = next(
    name for name in result.history[0] if "valid" in name and "force" in name and "mae" in name
)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
epochs = [row["epoch"] for row in result.history]
left.plot(epochs, [row[column] for row in result.history], "o-")
left.set(
    xlabel="epoch", ylabel="squared deviation of a\n(uncertainties of 0.005 Å)", ylim=(0, None)
)
right.plot(epochs, [row[force] for row in result.history], "o-")
right.set(xlabel="epoch", ylabel="force MAE, held-out frames (meV/Å)", ylim=(0, 120))
plt.show()

# %% [markdown]
# ## Before and after
#
# What was fitted, what must not suffer (forces on test frames), and what nobody asked for (elastic
# constants; measured 166, 64 and 80 GPa).


# %%
frames = leignn.read_frames(bundled_data("si") / "test.extxyz.xz", index=f":{TEST_FRAMES}")
start = ase.build.bulk("Si", a=5.45)
for name, potential in (("before", leignn.load_potential("si")), ("after", result.potential)):
    relaxed = leignn.relax(potential, start, cell="isotropic", max_stress=1e-3, progress=False)
    constants = leignn.properties.elasticity.elastic_constants(potential, relaxed.atoms)
    c = constants.constants
    errors = leignn.evaluate(potential, frames).metrics
    print(
        f"{name:7} a {np.cbrt(4 * relaxed.atoms.get_volume()):.4f} Å   "
        f"force MAE {errors['forces_mae_mev_per_angstrom']:.1f} meV/Å   "
        f"C11 {c[0, 0]:.0f}, C12 {c[0, 1]:.0f}, C44 {c[3, 3]:.0f} GPa"
    )

# %% [markdown]
# ## What the whole study found
#
# With lattice and elastic constants as targets (20 epochs, all frames; `experiments/fit_silicon`): a 5.470 to
# 5.434 Å, C11 139 to 152, C12 91 to 66, C44 74 to 80 GPa, all within 10 % of what is measured, for 3.4 % more force error
# on the test file. Phonons, which were not fitted, came no worse: 2.3 % from measurement on average, before 2.6 %.
# The trade is the weight's: four times as much brings C11 to 165 GPa and costs two more percent.
