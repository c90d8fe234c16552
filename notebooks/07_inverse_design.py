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
# # 7. Inverse design: controls found through simulations
#
# A simulation that can be differentiated can be steered: write down what you want as a loss of what
# is seen, make what you can turn its argument, and go down. Two controls here:
#
# - the path of a trap that drags particles through a noisy bath, for the least work. The best answer is
#   known, so that we see how close we come;
# - the schedule of a thermostat that brings a crystal from rest to equilibrium at 40 K in two
#   picoseconds, faster than a bath of 40 K can.
#
# `experiments/inverse_design` has both against searches without gradients, and a case where chaos spoils
# gradients.

# %%
from typing import Any

import ase
import ase.build
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from ase.constraints import FixCartesian
from flax import struct

import leignn_jax as leignn
from leignn_jax.simulation.dynamics import ACCELERATION, BOLTZMANN
from leignn_jax.simulation.ensembles import (
    NVE,
    InParts,
    Langevin,
    Parts,
    Ramp,
    Shift,
    time_of,
    value_at,
)
from leignn_jax.simulation.simple_models import IdealGas, LennardJones

run = leignn.differentiable

# %% tags=["parameters"]
TRAP_GRADIENTS = 150  # on the way to the trap's path
PARTICLES = 64  # dragged side by side, for every gradient
HELD_OUT = 40  # runs of these that judge
ARGON_GRADIENTS = 60  # on the way to the thermostat's schedule

# %% [markdown]
# ## A trap that drags
#
# A particle in a harmonic well of stiffness $k$, whose center $\lambda$ goes from A to B in a given
# time. In a bath with friction it lags behind, and the well does work on it. How must the center move so
# that the mean work is least? Not at one speed: it should jump at the start and at the end (Schmiedl and
# Seifert 2007).
#
# No ensemble of the package has a moving well, so we write one: Langevin dynamics with a further kick. A
# step that is given in parts, each a shift or a scaling, can be run, differentiated and (mode
# `"reversible"`) undone.


# %%
@struct.dataclass
class Trapped(InParts):
    """Langevin dynamics in wells around a center that moves along x."""

    bath: Langevin
    stiffness: Any  # eV/Å^2
    center: Any  # Å, a Ramp; that at the end of a step counts for it

    holds_momentum = False
    words = ("bath", "center")  # settings that are not checked to be positive

    def kT(self, state, dt):
        return self.bath.kT(state, dt)

    def parts(self, system, dt):
        first, drift, last = self.bath.parts(system, dt)

        def pull(state):
            center = value_at(self.center, time_of(state, dt) + dt)
            force = -self.stiffness * state.positions.at[..., 0].add(-center)
            return 0.5 * dt * ACCELERATION * force / system.masses[..., None] * system.mobile

        kick = Shift("velocities", pull)
        return Parts([kick, *first], drift, [kick, *last])


# %% [markdown]
# The numbers: 40 amu at 300 K, friction 0.02/fs. The well is so soft that a particle needs 500 fs to follow
# it, and it has 1,000 fs to go 5 Å. The protocol is ten knots with straight lines between them; before the
# first and after the last the center jumps. Between two steps the center moves while the particles
# stand still, which is work; then they move in a resting well, which is heat.

# %%
mass, kelvin, friction, relaxation = 40.0, 300.0, 0.02, 500.0  # amu, K, 1/fs, fs
stiffness = friction * mass / relaxation / ACCELERATION
distance, timestep, steps = 5.0, 4.0, 250
knot_times = np.linspace(timestep, timestep * steps, 10)


def dragging(knots, kelvin=kelvin):
    return Trapped(Langevin(kelvin, friction), stiffness, Ramp(knot_times, knots))


def particles(count):
    """Side by side, free along x: each is a replica."""
    atoms = ase.Atoms("Ar" * count, np.zeros((count, 3)), masses=np.full(count, mass))
    atoms.positions[:, 1:] = 4.0 * np.stack(np.divmod(np.arange(count), 8), axis=1)
    atoms.set_constraint(FixCartesian(np.arange(count), (False, True, True)))
    return run.start(IdealGas(), atoms, dragging(np.zeros(10)), temperature=kelvin)


def in_equilibrium(state, key):
    """The state with other positions and velocities of equilibrium in the well, and another key."""
    places, speeds, noise = jax.random.split(key, 3)
    shape = state.positions.shape[:2]
    x = jnp.sqrt(BOLTZMANN * kelvin / stiffness) * jax.random.normal(places, shape)
    v = jnp.sqrt(BOLTZMANN * kelvin * ACCELERATION / mass) * jax.random.normal(speeds, shape)
    return state.replace(
        positions=state.positions.at[..., 0].set(x),
        velocities=jnp.zeros_like(state.velocities).at[..., 0].set(v),
        key=jax.random.split(noise, shape[0]),
    )


def centers(knots):
    """The center before the start, at every step, and after the end."""
    path = jnp.interp(timestep * jnp.arange(1, steps + 1), jnp.asarray(knot_times), knots)
    return jnp.concatenate([jnp.zeros(1), path, jnp.full(1, distance)])


def works(knots, system, state, rollout):
    """eV, the work on each particle."""

    def x_of(system, state):
        return state.positions[0, :, 0]

    seen = rollout(IdealGas(), dragging(knots), system, state, timestep, steps, observe=x_of).seen
    x, path = jnp.concatenate([state.positions[:, :, 0], seen]), centers(knots)[:, None]
    return 0.5 * stiffness * ((x - path[1:]) ** 2 - (x - path[:-1]) ** 2).sum(0)


system, state = particles(PARTICLES)


def mean_work(argument, rollout):
    begin = in_equilibrium(state, argument["key"])
    return works(argument["knots"], system, begin, rollout).mean()


work_and_gradient = run.value_and_grad(mean_work, "reverse")

# %% [markdown]
# From a straight line down by Adam, with new noise for every gradient.

# %%
straight = distance * knot_times / knot_times[-1]
knots, works_seen = jnp.asarray(straight, jnp.float32), []
rule = optax.adam(optax.cosine_decay_schedule(0.15, TRAP_GRADIENTS))
memory = rule.init(knots)
for number in range(TRAP_GRADIENTS):
    value, slope = work_and_gradient({"knots": knots, "key": jax.random.key(number)})
    change, memory = rule.update(slope["knots"], memory)
    knots = optax.apply_updates(knots, change)
    works_seen.append(float(value))

# %% [markdown]
# ## How close is it?
#
# The work is linear in the particle's position, so its mean is the work on a particle without noise, which
# starts at rest in the middle: one rollout at 0 K. As a function of the knots it is a parabola, and the
# best knots follow from a linear equation. And no protocol whatever can do with less than
# $W = k d^2 / (t/\tau + 2)$; with inertia that takes peaks of the center at both ends (Gomez-Marin, Schmiedl
# and Seifert 2008), which straight lines between knots can only hint at.

# %%
one, resting = particles(1)
resting = resting.replace(velocities=0 * resting.velocities)


@jax.jit
def exact(knots):
    """eV, the mean work: of one particle at rest, in a bath of 0 K."""

    def x_of(system, state):
        return state.positions[0, :, 0]

    ensemble = dragging(knots, kelvin=0.0)
    seen = run.rollout(IdealGas(), ensemble, one, resting, timestep, steps, observe=x_of).seen
    x, path = jnp.concatenate([resting.positions[:, :, 0], seen]), centers(knots)[:, None]
    return 0.5 * stiffness * ((x - path[1:]) ** 2 - (x - path[:-1]) ** 2).sum()


unit = np.eye(10)
offset = float(exact(jnp.zeros(10)))
ups, downs = (np.array([float(exact(jnp.asarray(s * e))) for e in unit]) for s in (1, -1))
pairs = np.array([[float(exact(jnp.asarray(a + b))) for a in unit] for b in unit])
curvature = pairs - ups[:, None] - ups[None] + offset
best = np.linalg.solve(curvature, -0.5 * (ups - downs))
infimum = stiffness * distance**2 / (knot_times[-1] / relaxation + 2)

judge = jax.jit(lambda knots, key: works(knots, system, in_equilibrium(state, key), run.rollout))
print(f"{'':24}{'exact mean':>12}{'simulated, other noise':>28}")
for name, protocol in (("straight line", straight), ("found", knots), ("best of ten knots", best)):
    protocol = jnp.asarray(protocol, jnp.float32)
    each = np.concatenate([judge(protocol, jax.random.key(10_000 + n)) for n in range(HELD_OUT)])
    error = each.std() / np.sqrt(len(each))
    print(f"{name:24}{float(exact(protocol)):9.4f} eV{each.mean():19.4f} ± {error:.4f} eV")
print(f"{'no protocol below':24}{infimum:9.4f} eV")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
ends = [0.0, *knot_times[[0]]], [*knot_times[[-1]], knot_times[-1]]
for name, protocol, style in (
    ("straight line", straight, "C7--"),
    ("best, overdamped, any protocol", distance * (1 + knot_times / relaxation) / 4, "k:"),
    ("best of ten knots", best, "C1o-"),
    ("found", np.asarray(knots), "C0.-"),
):
    times = [0.0, *knot_times, knot_times[-1]]
    left.plot(times, [0.0, *protocol, distance], style, lw=1.5, label=name)
left.set(xlabel="time (fs)", ylabel="center of the trap (Å)")
left.legend(fontsize=8)
right.plot(works_seen, lw=0.8, label=f"mean of {PARTICLES} particles, as seen on the way")
right.axhline(float(exact(jnp.asarray(best, jnp.float32))), color="C1", label="best of ten knots")
right.axhline(infimum, color="k", ls=":", label="best of all protocols")
right.set(xlabel="gradients", ylabel="work (eV)")
right.legend(fontsize=8)
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# Adam, which has never seen the parabola, ends where the linear equation does, a straight line's excess over the
# infimum cut from 19 % to 1.2 %. It holds back after the first jump and swings out before the last one: as much of the
# peaks as ten knots can have, to start and to stop what has inertia.
#
# ## A thermostat that hurries
#
# 32 argon atoms, a crystal at rest, under Langevin dynamics with a friction of 0.001/fs. From a bath of
# 40 K the energy comes as $1 - e^{-\gamma t}$: after two picoseconds 14 % are missing. A schedule of the
# bath's temperature may overshoot: eight knots over these two picoseconds. What do we want? That the
# kinetic *and* the potential energy be those of equilibrium, and stay so while the crystal is left alone (NVE) for
# one picosecond more. What equilibrium is, a longer simulation under stronger friction says.

# %%
argon = LennardJones(cutoff=6.5)
crystal = ase.build.bulk("Ar", a=5.3, cubic=True) * 2
wanted, argon_friction, argon_timestep = 40.0, 0.001, 10.0  # K, 1/fs, fs
schedule_times = np.linspace(0.0, 2000.0, 8)
solid, at_rest = run.start(argon, [crystal] * 16, Langevin(wanted, argon_friction), temperature=1.0)
at_rest = at_rest.replace(velocities=0 * at_rest.velocities)


def both(system, state):
    """Kinetic energy, and potential energy above the crystal at rest; eV, [2, replicas]."""
    potential = state.energy - at_rest.energy
    return jnp.stack([run.observables.kinetic_energy(system, state), potential])


settings = {"observe": both, "every": 10}
strong = jax.jit(
    lambda: run.rollout(
        argon, Langevin(wanted, 0.01), solid, at_rest, argon_timestep, 1000, **settings
    )
)
equilibrium = strong().seen[20:].mean((0, 2))
per_atom = np.asarray(equilibrium) / (1.5 * BOLTZMANN * wanted * len(crystal))
print("in equilibrium, over 3/2 kT per atom: kinetic {:.3f}, potential {:.3f}".format(*per_atom))


def energies(logarithms, key, rollout):
    """Kinetic and potential energy over those wanted, [frames, 2, replicas]: 20 with the bath, 10 left alone."""
    bath = Langevin(Ramp(schedule_times, wanted * jnp.exp(logarithms)), argon_friction)
    begin = at_rest.replace(key=jax.random.split(key, 16))
    heated = rollout(argon, bath, solid, begin, argon_timestep, 200, **settings)
    alone = rollout(argon, NVE(), solid, heated.state, argon_timestep, 100, **settings)
    return jnp.concatenate([heated.seen, alone.seen]) / equilibrium[:, None]


def away(argument, rollout):
    """Of the means over replicas, from the end of the schedule on."""
    mean = energies(argument["logarithms"], argument["key"], rollout)[19:].mean(-1)
    return ((mean - 1) ** 2).mean()


away_and_gradient = run.value_and_grad(away, "reverse")
logarithms = jnp.zeros(8)
rule = optax.adam(optax.cosine_decay_schedule(0.15, ARGON_GRADIENTS))
memory = rule.init(logarithms)
for number in range(ARGON_GRADIENTS):
    value, slope = away_and_gradient({"logarithms": logarithms, "key": jax.random.key(number)})
    change, memory = rule.update(slope["logarithms"], memory)
    logarithms = optax.apply_updates(logarithms, change)
print("bath (K) at its knots:", (wanted * np.exp(logarithms)).round(1))

# %%
watch = jax.jit(lambda logarithms, key: energies(logarithms, key, run.rollout))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, name, schedule in (
    (axes[0], "bath of 40 K", jnp.zeros(8)),
    (axes[1], "schedule found", logarithms),
):
    seen = np.concatenate([watch(schedule, jax.random.key(5000 + n)) for n in range(8)], axis=-1)
    mean, error = seen.mean(-1), seen.std(-1) / np.sqrt(seen.shape[-1])
    time = 0.1 * np.arange(1, len(seen) + 1)
    for index, (kind, color) in enumerate((("kinetic", "C0"), ("potential", "C1"))):
        axis.errorbar(time, mean[:, index], error[:, index], color=color, lw=1.5, label=kind)
        late = seen[19:, index].mean(0)
        doubt = late.std() / np.sqrt(len(late))
        print(f"{name:15} {kind:10} {late.mean():.3f} ± {doubt:.3f} of equilibrium, 2 to 3 ps")
    axis.plot(schedule_times / 1000, np.exp(schedule), "k:", label="bath, T / 40 K")
    axis.axhline(1, color="0.6", lw=0.8)
    axis.axvspan(2, 3, color="0.93")
    axis.set(xlabel="time (ps)", title=name)
axes[0].set(ylabel="energy / that of equilibrium")
legend = axes[0].legend(fontsize=8)

# %% [markdown]
# Shaded: the crystal is left alone. Other noise than on the way, 128 replicas: of the 14 % that were missing, 2 % are
# left, about two standard errors.
#
# Both losses are averages over noise through short, damped or solid dynamics: there gradients are exact and
# quiet. Where trajectories part before the schedule ends (a liquid, a crystal that breaks) they are exact and
# loud: see the end of `04_differentiate_through_a_simulation`, and `experiments/inverse_design` for what
# that does to a search.
