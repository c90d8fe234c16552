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
# # 3. Molecular dynamics and analysis
#
# Ensembles, energy conservation, radial distributions beside those of DFT, diffusion, vibrations. Silicon and ethanol,
# with bundled potentials and data. `simulate` takes a structure, a list of structures, or one structure and
# `replicas=n`; lists and replicas run side by side in one compiled program.

# %%
import ase.build
import ase.units
import matplotlib.pyplot as plt
import numpy as np

import leignn_jax as leignn
from leignn_jax import analysis
from leignn_jax.data import bundled_data
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling

# %% tags=["parameters"]
STEPS = 1500  # of silicon in each ensemble, 1 fs each
ETHANOL_STEPS = 3000  # of ethanol, 0.5 fs each

# %% [markdown]
# ## DFT to compare with
#
# The bundled silicon data hold 90 frames of ab initio molecular dynamics of 64 atoms in one cell. The
# file does not say at which temperatures, but the energies do: the potential energy of a classical
# harmonic crystal lies 3/2 kT above its minimum.

# %%
training = leignn.read_frames(bundled_data("si") / "train.extxyz.xz")
dft = [atoms for atoms in training if atoms.info["config_type"] == "AIMD-NVT"]
lowest = min(atoms.get_potential_energy() / len(atoms) for atoms in training)
above = np.array([atoms.get_potential_energy() / len(atoms) for atoms in dft]) - lowest
groups = above.reshape(5, 18)
for number, energies in enumerate(groups):
    kelvin = energies.mean() / (1.5 * ase.units.kB)
    print(f"group {number}: {1e3 * energies.mean():4.0f} meV/atom, if harmonic {kelvin:4.0f} K")

# %% [markdown]
# Group 2 is the crystal at 300 K, groups 0 and 1 are hotter crystals. Groups 3 and 4 lie far above
# what any crystal can bear: melts, for which the rule does not hold.
#
# ## Three ensembles
#
# An ensemble is a short name or an object with its numbers. Constant energy and constant pressure, for
# the crystal; it starts at rest in its minimum, so velocities are drawn at 600 K, and half of
# their energy becomes potential energy. Constant temperature, for four systems side by side in one
# program: the crystal at 300 K and three copies of a melt at 2500 K, each with its own random numbers.

# %%
silicon = leignn.load_potential("si")
crystal = ase.build.bulk("Si", cubic=True, a=5.468728) * 2
melt = dft[3 * 18]
kelvin = np.array([300.0, 2500.0, 2500.0, 2500.0])
common = {"timestep": 1.0, "log_every": 5, "save_every": 10, "progress": False}

nve = leignn.simulate(silicon, crystal, NVE(), temperature=600, steps=STEPS, **common)
npt = leignn.simulate(
    silicon,
    crystal,
    CellRescaling(temperature=300.0, pressure=0.0, pressure_time_constant=300.0),
    temperature=600,
    steps=STEPS,
    **common,
)
nvt = leignn.simulate(
    silicon,
    [crystal, melt, melt, melt],
    CSVR(temperature=kelvin, time_constant=100.0),
    temperature=kelvin * [2, 1, 1, 1],
    steps=STEPS,
    **common,
)

# %% [markdown]
# Each run carries a log with units in its names. `conserved_eV` is the total energy in NVE; elsewhere
# the energy that the baths gave is taken off, so that it should stay where it is in every
# ensemble: the test of a timestep.

# %%
logs = {"NVE": nve.thermo, "NVT": nvt.thermo[0], "NPT": npt.thermo}
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for name, log in logs.items():
    time = log["time_fs"] / 1000
    change = 1e3 * (log["conserved_eV"] - log["conserved_eV"][0]) / len(crystal)
    axes[0].plot(time, log["temperature_K"], lw=0.8, label=name)
    axes[1].plot(time, change, lw=0.8, label=name)
    axes[2].plot(time, log["volume_A3"] / len(crystal), lw=1.2, label=name)
axes[0].set(xlabel="time (ps)", ylabel="temperature (K)")
axes[1].set(xlabel="time (ps)", ylabel="change of conserved energy\n(meV/atom)")
axes[2].set(xlabel="time (ps)", ylabel="volume (Å³/atom)")
axes[0].legend()
for axis in axes:
    axis.grid(alpha=0.3)

# %% [markdown]
# The volume moves slowly and by much in so small a cell; 1.5 ps show that the barostat works and are
# too short for a mean volume.
#
# Means of correlated series need an error that knows of the correlation; `mean_with_error` takes it
# from the autocorrelation time. The first third of each run is left out. Of so short a run the error is too small:
# it sees how fast kinetic and potential energy take turns (56 samples), and not how slowly both follow the thermostat.
# The temperature of 64 atoms fluctuates by $T \sqrt{2 / 3N}$ = 31 K, and a picosecond is ten time constants of the
# thermostat, some five independent samples: a mean 15 K off says nothing yet.

# %%
for name, log in logs.items():
    settled = slice(len(log["step"]) // 3, None)
    kelvin = analysis.mean_with_error(log["temperature_K"][settled])
    pressure = analysis.mean_with_error(log["pressure_GPa"][settled])
    print(
        f"{name}: {kelvin.value:3.0f} ± {kelvin.error:2.0f} K, "
        f"{pressure.value:5.2f} ± {pressure.error:.2f} GPa, {kelvin.samples:.0f} independent samples"
    )

# %% [markdown]
# ## Energy and timestep
#
# NVE from the state that the run above ended in. Velocity Verlet conserves a neighbouring energy; the
# true one fluctuates by an amount that grows as the timestep squared.

# %%
timesteps = np.array([1.0, 2.0, 3.0, 4.0, 6.0])  # fs
totals, fluctuations = {}, []
for timestep in timesteps:
    log = leignn.simulate(
        silicon,
        nve.atoms,
        NVE(),
        temperature=600,
        steps=int(STEPS / 2 / timestep),
        **{**common, "timestep": timestep},
    ).thermo
    energy = log["conserved_eV"]
    totals[timestep] = log["time_fs"] / 1000, 1e3 * (energy - energy.mean()) / len(crystal)
    drift = analysis.energy_drift(energy, len(crystal), 5 * timestep)
    fluctuations.append(1e3 * drift.fluctuation)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for timestep, (time, energy) in list(totals.items())[::-1]:
    left.plot(time, energy, lw=0.8, label=f"{timestep:g} fs")
left.set(xlabel="time (ps)", ylabel="total energy less mean (meV/atom)")
left.legend(ncols=2, fontsize=8)
square = fluctuations[2] * (timesteps / timesteps[2]) ** 2
right.loglog(timesteps, square, color="0.5", lw=1, label="timestep squared")
right.loglog(timesteps, fluctuations, "o", label="RMS fluctuation")
right.set(xlabel="timestep (fs)", ylabel="fluctuation (meV/atom)")
right.set_xticks(timesteps, [f"{t:g}" for t in timesteps])
right.minorticks_off()
right.legend()
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Structure beside that of DFT
#
# 18 frames of 64 atoms are enough for a radial distribution with few bins. That the melt has the
# energy of group 3 says that 2500 K is about the temperature of those frames.

# %%
settled = slice(len(nve.trajectory.step) // 3, None)
energies = [frames.energy[settled].mean() / len(melt) - lowest for frames in nvt.trajectory[1:]]
print(f"melts at 2500 K: {1e3 * np.mean(energies):.0f} meV/atom, DFT: {1e3 * groups[3].mean():.0f}")


def distribution(positions, cell):
    return analysis.radial_distribution(
        positions, crystal.numbers, np.asarray(cell), r_max=5.4, bins=54
    )


def of_dft(group):
    return distribution([atoms.positions for atoms in dft[18 * group :][:18]], melt.cell)


crystals = nvt.trajectory[0].positions[settled]
melts = np.concatenate([frames.positions[settled] for frames in nvt.trajectory[1:]])
curves = {
    "crystal, 300 K": (of_dft(2), distribution(crystals, crystal.cell)),
    "melt, 2500 K": (of_dft(3), distribution(melts, melt.cell)),
}

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axis, (name, (reference, ours)) in zip(axes, curves.items(), strict=True):
    axis.stairs(
        reference.total, reference.edges, color="0.3", fill=True, alpha=0.35, label="DFT, 18 frames"
    )
    axis.plot(ours.r, ours.total, "C0", label="LEIGNN")
    difference = analysis.rdf_mae(ours.total, reference.total, ours.edges)
    axis.set(xlabel="r (Å)", ylabel="g(r)", xlim=(1.8, 5.4))
    axis.set_title(f"{name}: ∫|difference| dr = {difference:.2f} Å", fontsize=10)
    axis.legend()
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Diffusion
#
# In the melt the mean squared displacement becomes a straight line of slope 6 D. Three replicas are
# three independent estimates: their scatter gives the error of the mean. Positions of a simulation are
# not wrapped into the cell, as this needs.

# %%
spacing = 10.0  # fs between frames
motions = [frames.positions[settled] for frames in nvt.trajectory[1:]]
length = spacing * len(motions[0])
window = (0.15 * length, 0.45 * length)


def displacement(positions):
    return analysis.mean_squared_displacement(
        positions, melt.numbers, spacing, remove_drift=True, max_lag=0.5 * length
    )


def diffusivity(positions):
    return analysis.diffusivity(
        positions, melt.numbers, spacing, window=window, blocks=1, remove_drift=True
    )


curves, fits = [displacement(m) for m in motions], [diffusivity(m) for m in motions]
values = np.array([fit.value for fit in fits])
mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
print(f"D = {mean:.2f} ± {error:.2f} Å²/ps = ({mean:.2f} ± {error:.2f})e-4 cm²/s")

# %%
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for curve in curves:
    axis.plot(curve.time / 1000, curve.total, color="C0", lw=0.8, alpha=0.5)
average = np.mean([curve.total for curve in curves], axis=0)
axis.plot(curves[0].time / 1000, average, color="C0", lw=2, label="mean of three replicas")
time = np.array(window) / 1000
line = np.mean([fit.intercept for fit in fits]) + 6 * mean * time
axis.plot(time, line, "k--", lw=1.5, label="6 D t + constant")
axis.set(xlabel="lag time (ps)", ylabel="mean squared displacement (Å²)")
axis.set_title(f"molten silicon, 2500 K: D = {mean:.2f} ± {error:.2f} Å²/ps", fontsize=10)
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## Vibrations
#
# Four ethanol molecules in one program, each from another DFT frame of the 500 K trajectory, in NVE. The Fourier transform
# of the mass-weighted velocity autocorrelation counts vibrational states: C-H stretches near 3000 cm⁻¹, the O-H stretch
# above them, bends and skeleton below 1500 cm⁻¹. Rotation and translation are at the left end.

# %%
ethanol = leignn.load_potential("ethanol")
molecules = leignn.read_frames(bundled_data("ethanol") / "test.extxyz.xz")
gas = leignn.simulate(
    ethanol,
    molecules[:4],
    "nve",
    temperature=500,
    steps=ETHANOL_STEPS,
    timestep=0.5,
    save_every=4,
    log_every=4,
    progress=False,
)
numbers = molecules[0].numbers
spectra = [
    analysis.vibrational_density_of_states(f.velocities, numbers, 2.0, max_lag=0.3 * f.time[-1])
    for f in gas.trajectory
]

# %%
oxygen = int(np.flatnonzero(numbers == 8)[0])
distances = np.linalg.norm(molecules[0].positions - molecules[0].positions[oxygen], axis=1)
hydroxyl = int(min(np.flatnonzero(numbers == 1), key=lambda i: distances[i]))
alone = [
    analysis.vibrational_density_of_states(
        f.velocities[:, [hydroxyl]], [1], 2.0, max_lag=0.3 * f.time[-1], integral=3
    ).total
    for f in gas.trajectory
]
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.fill_between(
    spectra[0].wavenumber, np.mean([s.total for s in spectra], 0), alpha=0.4, label="all atoms"
)
axis.plot(spectra[0].wavenumber, np.mean(alone, 0), "C3", lw=1.2, label="hydroxyl H alone")
axis.set(
    xlabel="wavenumber (cm⁻¹)",
    ylabel="density of states (per cm⁻¹)",
    xlim=(0, 4200),
    ylim=(0, None),
)
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# The molecule's structure: all distances between two atoms, beside those of 1000 DFT frames at 500 K.

# %%
ours = np.concatenate([frames.positions for frames in gas.trajectory])
reference = np.stack([atoms.positions for atoms in molecules])
pairs = {
    "DFT": analysis.distance_distribution(reference, r_max=5.0, bins=200),
    "LEIGNN": analysis.distance_distribution(ours, r_max=5.0, bins=200),
}
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
axis.stairs(
    pairs["DFT"].density, pairs["DFT"].edges, color="0.3", fill=True, alpha=0.35, label="DFT"
)
axis.plot(pairs["LEIGNN"].r, pairs["LEIGNN"].density, "C0", lw=1.2, label="LEIGNN, 4 molecules")
axis.set(xlabel="distance (Å)", ylabel="h(r) (1/Å)", xlim=(0.8, 5))
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## On disk
#
# With `out=FOLDER` a simulation writes H5MD frames and a log as it goes; killed, the same call with `resume=True` goes on
# bit for bit. From a shell:
#
#     leignn md si start.extxyz --ensemble nvt --temperature 300 --steps 10000 --out md
#
# Longer runs, and where dynamics with the bundled potentials goes wrong, are in `experiments/solid_liquid_gas`.
