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
# # 5. Sweeps and ensembles
#
# Members of a population that differ in numbers alone (learning rate, weights of the loss, seed, ...) train side by side as
# one compiled program, `vmap` over the train state. Afterwards those that differ in their seed alone are a committee,
# whose disagreement says where it knows nothing. Silicon, with frames that we hold back on purpose.

# %%
import tempfile
from pathlib import Path

import ase.build
import ase.io
import matplotlib.pyplot as plt
import numpy as np
import pandas

import leignn_jax as leignn
from leignn_jax.data import bundled_data

# %% tags=["parameters"]
EPOCHS = 24

# %% [markdown]
# ## What they will know, and what not
#
# The bundled silicon data hold DFT frames of a crystal whose cell was strained: stretched or compressed along one axis,
# or sheared. The population sees strains of up to 6 % and thermal vibrations of the unstrained crystal; larger strains,
# vacancies and the melt are kept for later. The strain of a frame is the largest component of the Green-Lagrange tensor.

# %%
everything = leignn.read_frames(bundled_data("si") / "train.extxyz.xz")
crystal = ase.build.bulk("Si", cubic=True, a=5.468728) * 2


def strain(atoms):
    """The largest component in size of (F Fᵀ - 1) / 2, F from the unstrained cell of 64 atoms; no unit."""
    deformation = np.linalg.solve(crystal.cell.array, atoms.cell.array)
    tensor = 0.5 * (deformation @ deformation.T - np.eye(3))
    return tensor.flat[np.abs(tensor).argmax()]


lowest = min(atoms.get_potential_energy() / len(atoms) for atoms in everything)
kinds = {"seen": [], "strained": [], "vacancy": [], "melt": []}
for atoms in everything:
    energy = atoms.get_potential_energy() / len(atoms) - lowest
    if atoms.info["config_type"] == "Elastic":
        kinds["seen" if abs(strain(atoms)) < 0.06 else "strained"].append(atoms)
    elif atoms.info["config_type"] == "AIMD-NVT":
        kinds["seen" if energy < 0.4 else "melt"].append(atoms)
    elif atoms.info["config_type"] == "Vacancy":
        kinds["vacancy"].append(atoms)

folder = Path(tempfile.mkdtemp())
ase.io.write(folder / "seen.extxyz", kinds["seen"][::2])
print(", ".join(f"{len(frames)} {name}" for name, frames in kinds.items()))
print("every second of those seen goes into the file to train on")

# %% [markdown]
# ## A study
#
# `base` is a training as in notebook 2, `space` what is varied: here three learning rates, three seeds of the first
# parameters, all combinations. What goes into one program is decided by shapes; `compiles` counts programs.

# %%
study = {
    "base": {
        "data": {"train": str(folder / "seen.extxyz"), "batch_size": 4, "validation_fraction": 0.2},
        "model": {"preset": "small", "variant": "vanilla_nmu", "features": 32, "cutoff": 4.5},
        "loss": {"stress_weight": 2.0, "final_energy_weight": 2.0},
        "optimizer": {"ema_decay": 0.98},
        "run": {"out": str(folder / "study"), "epochs": EPOCHS},
    },
    "space": {"optimizer.learning_rate": [1e-3, 5e-3, 2e-2], "run.seed": [0, 1, 2]},
}
result = leignn.sweep(study, progress=False)
print(len(result.rows), "members, programs compiled for training:", sum(result.compiles))

# %% [markdown]
# `rows` is the table, best first; the folder has it as results.csv, the learning curves as history.csv,
# and a report. The best rate stands at the edge of the grid: a real study would look beyond.

# %%
table = pandas.DataFrame(result.rows)
columns = {
    "optimizer.learning_rate": "learning rate",
    "run.seed": "seed",
    "validation_loss": "loss",
    "validation_energy_mae_mev_per_atom": "energy MAE (meV/atom)",
    "validation_forces_mae_mev_per_angstrom": "force MAE (meV/Å)",
    "best_epoch": "best epoch",
}
table[list(columns)].rename(columns=columns).round(4)

# %%
history = pandas.read_csv(result.out / "history.csv").merge(
    table[["member", "optimizer.learning_rate"]], on="member"
)
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for color, (rate, members) in zip(
    ("C0", "C1", "C2"), history.groupby("optimizer.learning_rate"), strict=True
):
    for number, (_, curve) in enumerate(members.groupby("member")):
        label = f"learning rate {rate:g}" if number == 0 else None
        axis.semilogy(curve["epoch"], curve["validation_loss"], color=color, lw=1.2, label=label)
axis.set(xlabel="epoch", ylabel="validation loss (no unit)")
axis.legend()
axis.grid(alpha=0.3, which="both")

# %% [markdown]
# ## A committee
#
# The three seeds at the best learning rate, stacked along a leading axis of their arrays: a `Potential` to `vmap` over.
# `committee_predict` gives mean and standard deviation of energy, forces and stress in one compiled program.

# %%
best_rate = table["optimizer.learning_rate"][0]
chosen = table.index[table["optimizer.learning_rate"] == best_rate]
members = leignn.committee([result.potentials[i] for i in chosen])
answer = leignn.committee_predict(members, kinds["seen"][1])
print(f"learning rate {best_rate:g}: energy {answer.energy:.3f} ± {answer.energy_std:.3f} eV")
print(
    f"forces {answer.forces.shape} eV/Å, standard deviation {1e3 * answer.forces_std.mean():.0f} meV/Å on average"
)

# %% [markdown]
# ## Strained structures
#
# The crystal is stretched along x, far beyond what was seen. Band: one and two standard deviations of
# the committee. Dots: DFT, filled ones of strains that were in reach of the training. The band widens
# where no frame has been. It is too narrow all the same: that all members are too soft, having seen few
# strained frames for a short time, is a mistake that they share, and no disagreement.

# %%
stretches = np.linspace(-0.14, 0.14, 29)
answers = []
for stretch in stretches:
    atoms = ase.build.bulk("Si", cubic=True, a=5.468728)
    atoms.set_cell(atoms.cell.array @ np.diag([1 + stretch, 1, 1]), scale_atoms=True)
    answers.append(leignn.committee_predict(members, atoms))
energy = np.array([a.energy for a in answers]) / len(atoms) - lowest
energy_std = np.array([a.energy_std for a in answers]) / len(atoms)
stress = np.array([a.stress[0, 0] for a in answers]) * 160.21766  # GPa
stress_std = np.array([a.stress_std[0, 0] for a in answers]) * 160.21766


def stretched_along_one_axis(atoms):
    deformation = np.linalg.solve(crystal.cell.array, atoms.cell.array)
    return atoms.info["config_type"] == "Elastic" and np.allclose(
        deformation, np.diag(np.diag(deformation))
    )


# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for axis, mean, std in ((axes[0], energy, energy_std), (axes[1], stress, stress_std)):
    for width, alpha in ((2, 0.2), (1, 0.35)):
        axis.fill_between(
            100 * stretches, mean - width * std, mean + width * std, color="C0", alpha=alpha, lw=0
        )
    axis.plot(100 * stretches, mean, color="C0", label="committee")
for atoms in filter(stretched_along_one_axis, everything):
    lengths = atoms.cell.lengths() / crystal.cell.lengths() - 1
    k = np.abs(lengths).argmax()
    style = {
        "color": "k",
        "ms": 5,
        "ls": "",
        "marker": "o",
        "mfc": "k" if abs(strain(atoms)) < 0.06 else "w",
    }
    axes[0].plot(100 * lengths[k], atoms.get_potential_energy() / len(atoms) - lowest, **style)
    axes[1].plot(100 * lengths[k], atoms.get_stress(voigt=False)[k, k] * 160.21766, **style)
axes[0].set(xlabel="stretch along one axis (%)", ylabel="energy above the crystal (eV/atom)")
axes[1].set(xlabel="stretch along one axis (%)", ylabel="stress along it (GPa)")
axes[0].legend()
for axis in axes:
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Does the spread say where the error is?
#
# For frames of the kinds seen (those left out of the training file) and of kinds unseen: the error of the
# committee's mean force on each atom against the spread of its members there. The spread tells what is
# known from what is not, by an order of magnitude. As an error bar it is too small by a factor of
# three to five: it knows nothing of what the members get wrong together, and three of them are few.

# %%
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
shown = {"as seen": kinds["seen"][1::2][:20]}
shown |= {name: kinds[name][:20] for name in ("vacancy", "melt")}
for name, frames in shown.items():
    spread, error = [], []
    for atoms in frames:
        answer = leignn.committee_predict(members, atoms)
        spread.append(np.linalg.norm(answer.forces_std, axis=1))
        error.append(np.linalg.norm(answer.forces - atoms.get_forces(), axis=1))
    spread, error = np.concatenate(spread), np.concatenate(error)
    print(
        f"{name:9} spread {1e3 * spread.mean():4.0f} meV/Å, error {1e3 * error.mean():4.0f} meV/Å"
    )
    axis.loglog(spread, error, ".", ms=2, alpha=0.5, label=name, rasterized=True)
ends = np.array([1e-3, 10])
axis.loglog(ends, ends, color="0.4", lw=1, label="error = spread")
axis.set(xlabel="spread of the committee (eV/Å)", ylabel="error of its mean force (eV/Å)")
axis.set(xlim=(3e-3, 10), ylim=(3e-3, 10))
axis.legend(markerscale=5)
axis.grid(alpha=0.3)
