"""A thermostat's schedule that heals damaged silicon: the simulation and its loss.

64 atoms, bundled potential. Damage: a crystal that is driven at 5,000 K for 135 fs and loses its kinetic energy. Treatment:
Langevin dynamics of 240 fs, whose temperature is a straight line between six knots; then a quench that is always the same,
80 fs of strong friction at 0 K. The loss is the potential energy per atom above that of the crystal, the mean of a few
replicas, which are drawn anew from a pool of damaged crystals, with new noise, for every value.
"""

from typing import Any, NamedTuple

import ase.build
import jax
import jax.numpy as jnp
import numpy as np

import leignn_jax as leignn
from leignn_jax.simulation.dynamics import State, System
from leignn_jax.simulation.ensembles import Langevin, Ramp

run = leignn.differentiable
KNOTS, MOST = 6, 2000.0  # K, the largest temperature
FRICTION, TIMESTEP, STEPS = 0.02, 2.0, 120  # 1/fs, fs
QUENCH_FRICTION, QUENCH_STEPS = 0.05, 40
SPIKE_KELVIN, SPIKE_STEPS, SPIKE_TIMESTEP = 5000.0, 90, 1.5
REPLICAS, POOL = 4, 32
TIMES = np.linspace(0.0, TIMESTEP * STEPS, KNOTS)  # fs
# Atoms of a damaged crystal are fast for a while.
LIMITS = {"max_step": 3.0}


class Damaged(NamedTuple):
    """A pool of damaged crystals at rest, and the potential energy in eV of the crystal."""

    potential: Any
    system: System
    state: State
    crystal: Any


def damaged(seed: int, pool: int = POOL) -> Damaged:
    """Of this seed; pools of different seeds have nothing in common."""
    potential = leignn.load_potential("si")
    crystal = ase.build.bulk("Si", cubic=True, a=5.47) * 2
    ensemble = Langevin(SPIKE_KELVIN, 0.05)
    # Lists that are long enough for what is dense for a moment.
    rough = crystal.copy()
    rough.rattle(0.35, seed=0)
    sizes = run.start(potential, rough, ensemble, temperature=1.0, skin=1.2)[1].neighbors.sizes
    settings = {"temperature": SPIKE_KELVIN, "skin": 1.0, "seed": seed, "sizes": sizes}
    system, state = run.start(potential, [crystal] * pool, ensemble, **settings)
    spike = jax.jit(lambda s: run.rollout(potential, ensemble, system, s, SPIKE_TIMESTEP, SPIKE_STEPS, **LIMITS))
    found = spike(state)
    if not bool(found.valid):
        raise SystemExit("The damage broke the crystal: lists too small or atoms too fast.")
    state = found.state.replace(velocities=jnp.zeros_like(state.velocities), step=0 * state.step)
    return Damaged(
        potential, system, state, float(run.start(potential, crystal, ensemble, temperature=1.0)[1].energy[0])
    )


def drawn(pool: Damaged, key, replicas: int) -> tuple[System, State]:
    """Replicas of the pool, without one twice, and new keys for their noise."""
    which, noise = jax.random.split(key)
    index = jax.random.permutation(which, pool.state.positions.shape[0])[:replicas]
    fixed = pool.state.replace(key=None, step=None)
    state = jax.tree.map(lambda x: x[index], fixed).replace(key=jax.random.split(noise, replicas), step=pool.state.step)
    return jax.tree.map(lambda x: x[index], pool.system), state


def kelvin(numbers):
    """K of all knots, of numbers without bounds."""
    return MOST * jax.nn.sigmoid(numbers)


def healed(numbers, pool: Damaged, key, rollout=run.rollout, replicas: int = REPLICAS):
    """eV per atom above the crystal, ``[replicas]``: after treatment and quench."""
    return energy(kelvin(numbers), pool, key, rollout, replicas)


def energy(temperatures, pool: Damaged, key, rollout=run.rollout, replicas: int = REPLICAS):
    """As :func:`healed`, of temperatures in K."""
    system, state = drawn(pool, key, replicas)
    # One rollout, treatment and quench, so that it is one program.
    ends = TIMES[-1] + TIMESTEP * np.array([0.5, QUENCH_STEPS + 1])
    times = np.concatenate([TIMES, ends])
    bath = Langevin(
        Ramp(times, jnp.concatenate([temperatures, jnp.zeros(2)])),
        Ramp([0.0, TIMES[-1], *ends], [FRICTION, FRICTION, QUENCH_FRICTION, QUENCH_FRICTION]),
    )
    found = rollout(pool.potential, bath, system, state, TIMESTEP, STEPS + QUENCH_STEPS, **LIMITS)
    return (found.state.energy - pool.crystal) / state.positions.shape[1]


SIMPLE = {
    "constant 1,000 K": np.full(KNOTS, 1000.0),
    "constant 500 K": np.full(KNOTS, 500.0),
    "linear, 1,500 to 0 K": np.linspace(1500.0, 0.0, KNOTS),
    "exponential, 1,500 K over 60 fs": 1500.0 * np.exp(-TIMES / 60.0),
    "0 K": np.zeros(KNOTS),
}
