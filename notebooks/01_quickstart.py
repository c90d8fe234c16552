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
# # 1. Quickstart
#
# A potential, its predictions, ASE, molecular dynamics: the shortest way in. Everything here ships with the package.
# Units at every public face are Å, eV, eV/Å, eV/Å³, fs, K and amu.

# %%
import ase.build
import ase.eos
import ase.units
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn

# %% tags=["parameters"]
STEPS = 2000  # of molecular dynamics, 1 fs each

# %% [markdown]
# ## A potential
#
# Seven trained potentials are bundled: `si`, `ethanol`, `aspirin`, `water`, `lips`, `methane`, `tungsten-alloy`.
# Each says what it is, what it was trained on, how large its errors are and what is beyond it.

# %%
potential = leignn.load_potential("si")
potential

# %% [markdown]
# ## Energy, forces, stress
#
# `predict` takes an `ase.Atoms`, or a list of them. Here: the 8-atom cubic cell of silicon, every coordinate displaced by
# a normal random number of 0.05 Å.

# %%
crystal = ase.build.bulk("Si", cubic=True, a=5.47)
rattled = crystal.copy()
rattled.rattle(0.05, seed=0)

prediction = potential.predict(rattled)
print(f"energy: {prediction.energy:.3f} eV")
print(f"forces (eV/Å):\n{prediction.forces.round(2)}")
print(f"stress (eV/Å³, positive under tension):\n{prediction.stress.round(4)}")

# %% [markdown]
# ## ASE
#
# `potential.calculator()` is an ASE calculator: whatever ASE does with one, it does with this. Energies of the crystal at
# nine volumes give its lattice constant and bulk modulus.

# %%
calculator = potential.calculator(dtype="float64")
volumes, energies = [], []
for factor in np.linspace(0.96, 1.04, 9):
    strained = crystal.copy()
    strained.set_cell(factor * crystal.cell, scale_atoms=True)
    strained.calc = calculator
    volumes.append(strained.get_volume())
    energies.append(strained.get_potential_energy())

state = ase.eos.EquationOfState(volumes, energies, eos="birchmurnaghan")
volume, minimum, bulk_modulus = state.fit(warn=False)
print(
    f"lattice constant {volume ** (1 / 3):.3f} Å, bulk modulus {bulk_modulus / ase.units.GPa:.0f} GPa"
)

# %% [markdown]
# ## Molecular dynamics
#
# `simulate` runs whole chunks of steps on the device, neighbour lists included. 64 atoms at 300 K under a Nosé-Hoover
# thermostat:

# %%
run = leignn.simulate(
    potential,
    crystal * 2,
    "nvt",
    temperature=300,
    steps=STEPS,
    timestep=1.0,
    save_every=10,
    progress=False,
)
frames = run.trajectory
print(
    f"{len(frames.step)} frames; positions {frames.positions.shape} Å, velocities {frames.velocities.shape} Å/fs"
)

# %% [markdown]
# ## A look at it
#
# Left: the crystal starts at rest in its minimum, and half of its kinetic energy turns into potential energy before the
# thermostat makes up for it. Right: the radial distribution of the second half of the run, and where the neighbours of the
# perfect crystal are.

# %%
rdf = leignn.analysis.radial_distribution(
    frames.positions[len(frames.step) // 2 :],
    (crystal * 2).numbers,
    (crystal * 2).cell,
    r_max=6.0,
    bins=150,
)
time, temperature = run.thermo["time_fs"] / 1000, run.thermo["temperature_K"]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(time, temperature, lw=0.8)
left.axhline(300, color="0.5", lw=0.8)
left.set(
    xlabel="time (ps)", ylabel="temperature (K)", title="64 atoms of silicon, thermostat at 300 K"
)
right.plot(rdf.r, rdf.total, label="300 K")
neighbours = 5.47 * np.sqrt([3 / 16, 1 / 2, 11 / 16, 1])
right.vlines(neighbours, 0, rdf.total.max(), color="0.6", lw=0.8, ls="--", label="crystal at rest")
right.set(xlabel="r (Å)", ylabel="g(r)", title="radial distribution", xlim=(2, 6), ylim=(0, None))
right.legend()
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Where to go on
#
# - [Train on your own data](02_train_on_your_own_data.ipynb)
# - [Molecular dynamics and analysis](03_molecular_dynamics_and_analysis.ipynb)
# - [Differentiate through a simulation](04_differentiate_through_a_simulation.ipynb)
# - [Sweeps and ensembles](05_sweeps_and_ensembles.ipynb)
# - [The model from the inside](06_the_model_from_the_inside.ipynb)
# - [Inverse design](07_inverse_design.ipynb)
# - Fits to experiments: [silicon](08_silicon_from_experiment.ipynb), [water](09_water_from_experiment.ipynb)
# - [The model from the inside](06_the_model_from_the_inside.ipynb)
