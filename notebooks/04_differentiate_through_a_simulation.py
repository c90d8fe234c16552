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
# # 4. Differentiate through a simulation
#
# A rollout is the engine's simulation as a pure function
#
#     (model, ensemble, system, state, timestep) -> what was seen
#
# of a fixed number of steps. Everything in the brackets is a pytree, and JAX differentiates by all of it: temperature,
# parameters of the potential, masses, initial positions and velocities, the cell. Float64 here, because we compare with
# finite differences.

# %%
import ase.build
import ase.units
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

import leignn_jax as leignn
from leignn_jax.simulation.ensembles import NVE, Langevin
from leignn_jax.simulation.simple_models import LennardJones

run = leignn.differentiable
jax.config.update("jax_enable_x64", True)

# %% tags=["parameters"]
STEPS = 150  # of the response to temperature, 1 fs each
CHECKED_STEPS = 50  # of the gradients beside finite differences, 1 fs each
GRADIENTS = 25  # at most, on each way down to the parameters of a trajectory
GRID = 11  # points of the loss's map along each parameter
HORIZON = 1100  # steps of 4 fs, to see gradients explode

# %% [markdown]
# ## By the temperature of a bath
#
# Sixteen replicas of 8 silicon atoms at 300 K under Langevin dynamics, in one rollout. How does the kinetic energy answer
# to a hotter bath? For one input, forward mode gives the derivative of a whole time series: `jax.jvp` works on a
# rollout as on any function.

# %%
silicon = leignn.load_potential("si")
crystal = ase.build.bulk("Si", cubic=True, a=5.47)
crystal.rattle(0.02, seed=0)
friction = 0.02  # 1/fs
replicas, replicas_state = run.start(
    silicon, [crystal] * 16, Langevin(300.0, friction), temperature=300.0, dtype="float64"
)


@jax.jit
def response(kelvin):
    def kinetic(kelvin):
        bath = Langevin(kelvin, friction)
        observe = run.observables.kinetic_energy
        return run.rollout(
            silicon, bath, replicas, replicas_state, 1.0, STEPS, observe=observe
        ).seen

    return jax.jvp(kinetic, (kelvin,), (jnp.ones(()),))


kinetic, slope = response(jnp.asarray(300.0))
kinetic.shape  # steps, replicas

# %% [markdown]
# Equipartition says where this ends: 3/2 k = 129 µeV/K per atom. Friction alone would take it there as
# 1 - exp(-2 γ t); in a solid half of the heat goes into potential energy, so it takes about twice as long.

# %%
time = np.arange(1, STEPS + 1)
per_atom = 1e6 * np.asarray(slope) / len(crystal)
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(time, per_atom, color="C0", lw=0.6, alpha=0.3)
axis.plot(time, per_atom.mean(1), color="C0", lw=2, label="mean of 16 replicas")
limit = 1.5e6 * ase.units.kB
axis.axhline(limit, color="0.4", ls="--", lw=1, label="3/2 k")
axis.plot(time, limit * (1 - np.exp(-friction * time)), "k:", lw=1.2, label="3/2 k (1 − exp(−γ t))")
axis.set(xlabel="time (fs)", ylabel="∂(kinetic energy) / ∂T (µeV/K/atom)")
axis.legend()
axis.grid(alpha=0.3)

# %% [markdown]
# ## By everything at once, in four ways
#
# `value_and_grad(loss, mode)` differentiates a loss by every float of its argument. The loss gets the rollout that it
# is to call; the mode decides how that is differentiated.
#
# | mode | memory | time |
# |---|---|---|
# | `"reverse"` | grows as the steps | a few forward passes |
# | `"remat"` | that of ten steps, and a state for every ten more | one forward pass more |
# | `"reversible"` | that of one step: every step is undone to the last bit | one forward pass more |
# | `"forward"` | that of one step | grows as the inputs |
#
# Here: the mean pressure (GPa) along 50 steps, by temperature, masses and all parameters of the potential.

# %%
bath = Langevin(jnp.asarray(300.0), friction)
system, state = run.start(silicon, crystal, bath, temperature=300.0, dtype="float64")
start = {"temperature": jnp.asarray(300.0), "masses": system.masses, "potential": silicon}


def mean_pressure(argument, rollout):
    return rollout(
        argument["potential"],
        Langevin(argument["temperature"], friction),
        system.replace(masses=argument["masses"]),
        state,
        1.0,
        CHECKED_STEPS,
        observe=run.observables.pressure,
    ).seen.mean()


value, gradient = run.value_and_grad(mean_pressure, "reverse")(start)
print(
    f"pressure {value:.3f} GPa, its derivative by the temperature {1e3 * gradient['temperature']:.4f} MPa/K"
)
print("by the mass of each atom (MPa/amu):", 1e3 * np.asarray(gradient["masses"][0]).round(5))
print("the derivative by a potential is a", type(gradient["potential"]).__name__)

# %% [markdown]
# A gradient by a potential is a potential: same pytree, one number for each parameter. Times the
# parameters it says, to first order, what happens where all parameters of a part of the network grow by
# one percent.

# %%
params, slopes = silicon.params, gradient["potential"].params
answers = {
    name: 1e3
    * 0.01
    * sum(
        (x * g).sum()
        for x, g in zip(*map(jax.tree.leaves, (params[name], slopes[name])), strict=True)
    )
    for name in sorted(params)
}
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
axis.barh(list(answers), list(answers.values()))
axis.axvline(0, color="0.4", lw=0.8)
axis.set(xlabel="change of the mean pressure for 1 % (MPa)")
axis.invert_yaxis()
axis.grid(alpha=0.3, axis="x")

# %% [markdown]
# ## Against finite differences
#
# Each argument is moved along one random direction, by an amount. The derivative by three amounts is a small enough job
# for forward mode too. Central differences of fourth order; what is left between them and the gradients is their rounding.

# %%
rng = np.random.default_rng(0)
directions = {
    "temperature": jnp.asarray(30.0),
    "masses": 0.1 * system.masses * rng.normal(size=system.masses.shape),
    "potential": jax.tree.map(lambda x: 0.01 * x * rng.normal(size=np.shape(x)), silicon),
}


def along(amounts, rollout):
    moved = {
        name: jax.tree.map(
            lambda x, d, name=name: x + amounts[name] * d, start[name], directions[name]
        )
        for name in start
    }
    return mean_pressure(moved, rollout)


here = {name: jnp.zeros(()) for name in start}
modes = {mode: run.value_and_grad(along, mode)(here)[1] for mode in run.MODES}
plain = jax.jit(lambda amounts: along(amounts, run.rollout))
print(
    f"{'GPa per unit of the direction':32}{'differences':>14}"
    + "".join(f"{mode:>14}" for mode in modes)
)
for name in start:
    f = {k: float(plain({**here, name: jnp.asarray(1e-3 * k)})) for k in (-2, -1, 1, 2)}
    difference = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / 0.012
    print(
        f"{name:32}{difference:14.9f}"
        + "".join(f"{float(modes[mode][name]):14.9f}" for mode in modes)
    )

# %% [markdown]
# ## What will it cost?
#
# `estimate` compiles the gradient's program, which says how much memory it takes, and times twenty steps of it. Forward
# mode is for few inputs: by all parameters of a potential it is hopeless.

# %%
count = sum(x.size for x in jax.tree.leaves(silicon.params))


def long_loss(potential, rollout):
    return rollout(potential, bath, system, state, 1.0, 10_000).state.energy[0]


costs = run.estimate(long_loss, silicon)
print(f"a gradient through 10,000 steps by {count:,} parameters:")
for mode, cost in costs.items():
    print(f"{mode:8} {cost.memory / 2**20:8.1f} MiB {cost.seconds / 60:12.1f} min")

# %% [markdown]
# ## Parameters from a trajectory
#
# Positions of 32 argon atoms along 0.4 ps, made with a Lennard-Jones potential of ε = 10.4 meV, σ = 3.40 Å. We start 40 %
# and 4 % away and descend along gradients through the simulation. A model is any pytree with `cutoff` and
# `compute(graph)`.
#
# Neighbour lists in a rollout have a fixed size. Should one overflow, everything becomes NaN, gradients
# too, rather than wrong: then start with a larger `skin` (as here, where trial parameters squeeze the
# crystal) or larger `sizes`.

# %%
truth = LennardJones(epsilon=jnp.asarray(0.0104), sigma=jnp.asarray(3.40), cutoff=5.5)
argon = ase.build.bulk("Ar", a=5.4, cubic=True) * 2
argon.rattle(0.1, seed=0)
solid, solid_state = run.start(truth, argon, NVE(), temperature=60.0, dtype="float64", skin=1.5)


def positions(model, rollout):
    observe = run.observables.positions
    return rollout(model, NVE(), solid, solid_state, 4.0, 100, observe=observe, every=10).seen


target = jax.jit(lambda model: positions(model, run.rollout))(truth)


def mismatch(logs, rollout):
    model = truth.replace(epsilon=jnp.exp(logs[0]), sigma=jnp.exp(logs[1]))
    return ((positions(model, rollout) - target) ** 2).sum(-1).mean()


descend = run.value_and_grad(mismatch, "reverse")
first = np.log([0.0150, 3.25])

# %% [markdown]
# Two ways down with the same number of gradients: along the bare gradient, each step as long as it
# helps; and L-BFGS, which learns the curvature on its way.


# %%
def bare_gradient(x):
    path, (value, slope), length = [x], descend(jnp.asarray(x)), 0.02
    while len(path) < GRADIENTS:
        trial = x - length * np.asarray(slope / jnp.linalg.norm(slope))
        path.append(trial)
        trial_value, trial_slope = descend(jnp.asarray(trial))
        if trial_value < value:
            x, value, slope, length = trial, trial_value, trial_slope, 1.5 * length
        else:
            length = length / 3
    return np.exp(path)


def quasi_newton(x):
    path = []

    def in_units(y):
        path.append(x + 0.02 * y)
        value, slope = descend(jnp.asarray(path[-1]))
        return float(value), 0.02 * np.asarray(slope)

    options = {"gtol": 1e-12, "ftol": 1e-16, "maxfun": GRADIENTS - 1}
    scipy.optimize.minimize(in_units, np.zeros(2), jac=True, method="L-BFGS-B", options=options)
    return np.exp(path)


paths = {"bare gradient": bare_gradient(first), "L-BFGS": quasi_newton(first)}
for name, path in paths.items():
    epsilon, sigma = path[-1]
    print(f"{name:14} {len(path)} gradients: ε = {1e3 * epsilon:.5f} meV, σ = {sigma:.6f} Å")

# %% [markdown]
# The map of the loss says why they differ. A deeper well and a smaller atom give nearly the same forces at the distances
# of this crystal, so the loss has a valley, and the bare gradient goes to and fro across it.

# %%
epsilons, sigmas = np.linspace(0.009, 0.0165, GRID), np.linspace(3.2, 3.5, GRID)
mesh = np.log(np.stack(np.meshgrid(epsilons, sigmas), -1).reshape(-1, 2))
landscape = jax.jit(lambda points: jax.lax.map(lambda x: mismatch(x, run.rollout), points))(
    jnp.asarray(mesh)
)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
image = left.contourf(
    1e3 * epsilons,
    sigmas,
    np.log10(np.asarray(landscape)).reshape(GRID, GRID),
    levels=20,
    cmap="viridis",
)
figure.colorbar(image, ax=left, label="log₁₀ of the loss (Å²)")
for (name, path), color in zip(paths.items(), ("w", "C1"), strict=True):
    left.plot(1e3 * path[:, 0], path[:, 1], "o-", ms=3, lw=1, color=color, label=name)
    distance = np.linalg.norm(np.log(path) - np.log([0.0104, 3.40]), axis=1)
    right.semilogy(distance, "o-", ms=3, color="0.5" if color == "w" else color, label=name)
left.plot(10.4, 3.40, "r*", ms=12)
left.set(xlabel="ε (meV)", ylabel="σ (Å)", xlim=(9, 16.5), ylim=(3.2, 3.5), title="star: the truth")
legend = left.legend(loc="lower left", facecolor="0.5", labelcolor="w")
right.set(xlabel="gradients taken", ylabel="distance of ln ε, ln σ from the truth")
right.legend()
right.grid(alpha=0.3)

# %% [markdown]
# ## Where it ends
#
# Two trajectories of a liquid part exponentially, and so a derivative by anything that came before
# grows exponentially. It remains right, and says nothing about the mean over the liquid. Here: the
# pressure, averaged from 0 to t, derived by ε; 32 argon atoms as a solid at 20 K, as a liquid at 150 K,
# and as the same liquid with strong friction, which forgets before it diverges. Six replicas of
# each, all in one rollout: Langevin dynamics takes one friction for each system, and without friction it is
# NVE.

# %%
lattices, kelvin = np.repeat([5.3, 5.9], 6), np.repeat([20.0, 150.0], 6)
cells = [ase.build.bulk("Ar", a=a, cubic=True) * 2 for a in lattices]
warm = leignn.simulate(
    truth,
    cells,
    Langevin(kelvin, 0.01),
    temperature=kelvin,
    steps=HORIZON,
    timestep=4.0,
    save_every=HORIZON,
    log_every=HORIZON,
    dtype="float64",
    progress=False,
).atoms

ensemble = Langevin(
    jnp.repeat(jnp.array([20.0, 150.0, 150.0]), 6), jnp.repeat(jnp.array([0, 0, 0.02]), 6)
)
argons, argons_state = run.start(truth, [*warm, *warm[6:]], ensemble, dtype="float64", skin=1.0)


@jax.jit
def mean_pressure_and_slope(epsilon):
    """MPa, averaged up to each horizon; and its derivative, MPa/meV."""

    def means(epsilon):
        model, observe = truth.replace(epsilon=epsilon), run.observables.pressure
        seen = run.rollout(
            model, ensemble, argons, argons_state, 4.0, HORIZON, observe=observe, every=10
        ).seen
        return 1e3 * jnp.cumsum(seen, axis=0) / jnp.arange(1, len(seen) + 1)[:, None]

    return jax.jvp(means, (epsilon,), (jnp.asarray(1e-3),))


slope = mean_pressure_and_slope(jnp.asarray(0.0104))[1]
up, down = (mean_pressure_and_slope(jnp.asarray(x))[0] for x in (0.0109, 0.0099))

# %% [markdown]
# Blue: gradients, one line for each replica, and their mean. Dashed: the difference of the means at
# two ε that are 1 meV apart, which is no derivative but the answer that one is after. The scale is
# linear up to 10 MPa/meV and logarithmic beyond.

# %%
names = ("solid, 20 K, NVE", "liquid, 150 K, NVE", "liquid, 150 K, friction")
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
time = 0.04 * np.arange(1, len(slope) + 1)
for axis, name, part in zip(axes, names, np.split(np.arange(18), 3), strict=True):
    axis.plot(time, slope[:, part], color="C0", lw=0.8, alpha=0.5)
    axis.plot(time, slope[:, part].mean(1), color="C0", lw=2, label="gradient")
    axis.plot(time, (up - down)[:, part].mean(1), "k--", lw=1.5, label="difference over 1 meV")
    axis.set_yscale("symlog", linthresh=10)
    axis.set(xlabel="horizon t (ps)", title=name)
    axis.grid(alpha=0.3)
axes[0].set(ylabel="∂(mean pressure) / ∂ε (MPa/meV)")
legend = axes[2].legend(fontsize=8)

# %% [markdown]
# In the solid and in the strongly damped liquid the gradient agrees with the difference at every horizon.
# In the free liquid it does so for about two picoseconds; then single replicas leave by orders of
# magnitude, and so does their mean.
#
# What to do about it: short horizons (the recovery above took 0.4 ps), damped dynamics, or estimators
# that need no gradient of the trajectory. `experiments/gradients` has the growth rates.
