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
# # 8. Silicon from experiment
#
# A potential that is trained on DFT is at best as good as its DFT. The bundled silicon potential has the
# lattice constant of PBE, 0.7 % too long, and PBE's elastic constants, about a tenth too soft. Where
# measured numbers are at hand, `leignn.fit` trains on DFT frames and on these numbers together.
#
# This is the short version: a quarter of the frames, a few epochs, and one measured number, the lattice
# constant. Elastic constants are judges here. Fitting them too adds minutes of compilation; the study
# `experiments/fit_silicon` did that, and its figures stand at the end.

# %%
import json
import tempfile
from pathlib import Path

import ase.build
import ase.io
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.properties.elasticity import elastic_constants
from leignn_jax.properties.second_derivatives import INVERSE_CM
from leignn_jax.properties.vibrations import normal_modes

# %% tags=["parameters"]
EPOCHS = 6
STRIDE = 4  # of the training frames, every so many-th is used
TEST_FRAMES = 25  # that judge

# %% [markdown]
# ## What was measured
#
# At room temperature: a lattice constant of 5.4307 Å, and elastic constants of 166, 64 and 80 GPa. They are
# handbook values, the elastic ones quoted from memory and rounded to a GPa. Our crystal is at rest, without
# heat and zero-point motion, which is worth some thousandths of an Å; so 0.005 Å is all the nearness that we
# ask for, though the measurement is far better.
#
# A target is a dictionary. One at a minimum relaxes the crystal in float64 and differentiates the
# result implicitly, so that no step of the relaxation is gone back through. `weight` is how much a target
# counts beside the loss of a batch of frames, `period` in which updates.

# %%
folder = Path(tempfile.mkdtemp())
cell = folder / "cell.xyz"
ase.io.write(cell, ase.build.bulk("Si", cubic=True, a=5.45), format="extxyz")
lattice_constant = {
    "name": "a",
    "observable": "lattice_constant",
    "structure": str(cell),
    "value": 5.4307,
    "uncertainty": 0.005,
    "weight": 0.02,
    "period": 3,
}

# %% [markdown]
# ## The fit
#
# It goes on from the bundled potential with frames of its own training set. `reference_energies: keep` is
# for frames that were computed alike. A small learning rate: we want another crystal, not another
# potential.

# %%
frames = leignn.read_frames(bundled_data("si") / "train.extxyz.xz")[::STRIDE]
ase.io.write(folder / "frames.extxyz", frames)
result = leignn.fit(
    {
        "data": {
            "train": str(folder / "frames.extxyz"),
            "reference_energies": "keep",
            "batch_size": 4,
        },
        "loss": {"energy_weight": 1.0, "stress_weight": 0.3},
        "optimizer": {
            "learning_rate": 1e-4,
            "warmup_epochs": 1,
            "ema_decay": 0.99,
            "weight_decay": 0.01,
        },
        "run": {"start_from": "si", "out": str(folder / "fit"), "epochs": EPOCHS},
        "targets": [lattice_constant],
    },
    progress=False,
)
metrics = json.loads((result.out / "metrics.json").read_text())
print(f"{len(frames)} frames")

# %% [markdown]
# The run folder is that of a training; `report.html` in it has the target before and after. How it went,
# by epoch. The parameters are averaged exponentially, so they lag behind at first.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
epochs = np.arange(len(result.history) + 1)
path = [metrics["targets"]["a"]["before"]["values"][0]]
path += [row["target_a"] for row in result.history]
left.plot(epochs, path, "o-", ms=4, color="C3")
left.axhspan(5.4257, 5.4357, color="0.88", label="measured ± 0.005 Å")
left.axhline(5.4307, color="0.4", lw=1)
left.set(xlabel="epoch", ylabel="lattice constant (Å)")
left.legend()
path = [row["validation_forces_mae_mev_per_angstrom"] for row in result.history]
path = [metrics["validation_before"]["forces_mae_mev_per_angstrom"], *path]
right.plot(epochs, path, "o-", ms=4, color="0.3")
right.set(
    xlabel="epoch",
    ylabel="force MAE, frames held out\n(meV/Å)",
    ylim=(0.9 * min(path), 1.1 * max(path)),
)
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# ## What it costs, and what was not fitted
#
# Two kinds of judges that took no part. First the DFT frames of the test file: PBE's crystal and the measured one
# are not the same, so that energies and above all stress must become worse; forces should not.

# %%
before, after = leignn.load_potential("si"), result.potential
test = leignn.read_frames(bundled_data("si") / "test.extxyz.xz")[:TEST_FRAMES]
errors = [leignn.evaluate(potential, test).metrics for potential in (before, after)]
print(f"{'mean absolute errors, test file':34}{'before':>8}{'after':>8}")
for key, name in (
    ("energy_mae_mev_per_atom", "energy (meV/atom)"),
    ("forces_mae_mev_per_angstrom", "forces (meV/Å)"),
    ("stress_mae_mev_per_angstrom3", "stress (meV/Å³)"),
):
    print(f"{name:34}" + "".join(f"{one[key]:8.2f}" for one in errors))

# %% [markdown]
# So it is: stress is worse by two thirds, and energies, which were close to PBE's, by half. In forces
# hardly a price is to be seen: 1.1 meV/Å on the test file.
#
# Second, what else was measured of the crystal. Elastic constants by exact second derivatives of the relaxed
# cell.

# %%
cold, elastic = [], []
for potential in (before, after):
    crystal = ase.build.bulk("Si", cubic=True, a=5.45)
    crystal = leignn.relax(
        potential, crystal, cell="isotropic", max_stress=1e-3, progress=False
    ).atoms
    constants = elastic_constants(potential, crystal).constants
    cold.append(crystal)
    elastic.append([constants[0, 0], constants[0, 1], constants[3, 3]])
    elastic[-1].append((constants[0, 0] + 2 * constants[0, 1]) / 3)
print(f"{'GPa':14}{'measured':>9}{'before':>9}{'after':>9}")
names, measured = ("C11", "C12", "C44", "bulk modulus"), (166.0, 64.0, 80.0, 98.0)
for name, value, *both in zip(names, measured, *elastic, strict=True):
    print(f"{name:14}{value:9.0f}" + "".join(f"{x:9.1f}" for x in both))

# %% [markdown]
# And vibrations. The modes of the cubic cell of 8 atoms are those at Γ and at X of the
# primitive one, so that one Hessian of 24 coordinates gives them. Measured frequencies by neutrons and
# Raman scattering, room temperature: 15.53 THz (optical, Γ), at X 4.49 (TA), 12.32 (LA and LO) and 13.90
# (TO).

# %%
measured = {"X: TA": 4.49, "X: LA, LO": 12.32, "X: TO": 13.90, "Γ: optical": 15.53}
spectra = []
for potential, crystal in zip((before, after), cold, strict=True):
    modes = normal_modes(potential, crystal).frequencies / INVERSE_CM  # THz, 21 of them
    spectra.append([part.mean() for part in np.split(modes, [6, 12, 18])])

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
places = np.arange(len(measured))
off = 100 * (np.array(spectra) / list(measured.values()) - 1)
for shift, values, color, label in ((-0.2, off[0], "C0", "before"), (0.2, off[1], "C3", "after")):
    axis.bar(places + shift, values, 0.38, color=color, label=label)
axis.axhline(0, color="0.4", lw=1)
axis.set_xticks(places, [f"{name}\n{value:.2f} THz" for name, value in measured.items()])
axis.set(ylabel="frequency beside measured (%)")
axis.legend()
axis.grid(alpha=0.3, axis="y")
for name, value, a, b in zip(measured, measured.values(), *spectra, strict=True):
    print(f"{name:12} measured {value:5.2f}, before {a:5.2f}, after {b:5.2f} THz")

# %% [markdown]
# Where the crystal is shorter its bonds are stiffer: all elastic constants and three of four frequencies come
# nearer, though nobody asked for them. The TA mode at X, which was right, is a little too high now. One number
# of one structure fits many potentials, and six epochs went two thirds of the way. Whoever wants more must ask
# for more.
#
# ## More targets: the study
#
# `experiments/fit_silicon` asks for $C_{11}$, $C_{12}$ and $C_{44}$ too, with dictionaries such as
#
#     {"name": "C12", "observable": "elastic_constant", "component": [1, 2], "value": 64.0,
#      "uncertainty": 3.0, "structure": ..., "weight": 0.005, "period": 3}
#
# all 193 frames and 20 epochs, in 6 to 15 minutes on two CPU cores. It went on from an earlier potential, without
# tensors, whose $C_{11} - C_{12}$ was half of what is measured:
#
# | | measured | before | after |
# |---|---|---|---|
# | lattice constant (Å) | 5.431 | 5.470 | 5.434 |
# | C11 (GPa) | 166 | 139.0 | 151.6 |
# | C12 (GPa) | 64 | 90.8 | 65.7 |
# | C44 (GPa) | 80 | 74.5 | 80.2 |
# | optical mode at Γ, not fitted (THz) | 15.53 | 15.32 | 15.41 |
# | TA mode at X, not fitted (THz) | 4.49 | 4.34 | 4.24 |
# | forces, test file (meV/Å) | | 82.4 | 85.2 |
# | stress, test file (meV/Å³) | | 2.84 | 3.70 |
#
# All within 10 % of measurement for 3 % more force error. What is bought is a trade: with
# weights four times as large, of $C_{11}$ sixteen times, $C_{11}$ reached 165 GPa, for 5 to 6 % more force
# error. One seed each: how far such numbers scatter from run to run was measured neither there nor here.
