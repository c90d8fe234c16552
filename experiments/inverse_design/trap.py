"""A particle dragged from A to B by a trap: the simulation, its work, and the best that theory knows.

Particles in harmonic wells of one common centre, which moves along straight lines between knots; Langevin dynamics, nothing
acts between them, so that each is a replica. Before every step the centre moves while the particles stand still, which is
work; then they move in the resting trap, which is heat. The first knot is where the centre is right after the start, the
last one where it is just before the end: it may jump at both.

The mean work is a quadratic function of the knots (:func:`quadratic`), from which their best values follow. The best of all
protocols, knots or not, is that of Schmiedl and Seifert, Phys. Rev. Lett. 98, 108301 (2007), for overdamped motion: two
jumps and a straight line between them, W = k d^2 / (t / tau + 2) with tau = friction m / k. Inertia does not change this
work but its protocol, which gets peaks at both ends (Gomez-Marin, Schmiedl and Seifert, J. Chem. Phys. 129, 024114 (2008)):
a centre that moves along straight lines can't have them, and so stays above.
"""

from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.constraints import FixCartesian
from flax import struct

import leignn_jax as leignn
from leignn_jax.simulation.dynamics import ACCELERATION, BOLTZMANN, State, System
from leignn_jax.simulation.ensembles import InParts, Langevin, Parts, Ramp, Shift, time_of, value_at
from leignn_jax.simulation.simple_models import IdealGas

run = leignn.differentiable
MASS, KELVIN, FRICTION, TAU = 40.0, 300.0, 0.02, 500.0  # amu, K, 1/fs, fs
STIFFNESS = FRICTION * MASS / TAU / ACCELERATION  # eV/Å^2
DISTANCE, TIMESTEP, STEPS = 5.0, 4.0, 250  # Å, fs
KNOTS = 10
PARTICLES = 64
BEST = STIFFNESS * DISTANCE**2 / (TIMESTEP * STEPS / TAU + 2)
TIMES = np.linspace(TIMESTEP, TIMESTEP * STEPS, KNOTS)  # fs; the centre of step n is that at the time of its end


@struct.dataclass
class Trapped(InParts):
    """Langevin dynamics in wells around a centre that moves.

    bath: with friction and noise. stiffness: eV/Å^2. center: Å along x, a Ramp; that at the end of a step counts for it.
    """

    bath: Langevin
    stiffness: Any
    center: Any

    holds_momentum = False
    words = ("bath", "center")

    def kT(self, state: State, dt) -> Any:
        """Thermal energy in eV, ``[replicas]``."""
        return self.bath.kT(state, dt)

    def damping(self, dt) -> Any:
        """That of the bath."""
        return self.bath.damping(dt)

    def parts(self, system: System, dt) -> Parts:
        """Those of the bath, each half of a kick with its pull."""
        first, drift, last = self.bath.parts(system, dt)

        def pull(state):
            away = state.positions.at[..., 0].add(-value_at(self.center, time_of(state, dt) + dt))
            return -0.5 * dt * ACCELERATION * self.stiffness * away / system.masses[..., None] * system.mobile

        kick = Shift("velocities", pull)
        return Parts([kick, *first], drift, [kick, *last])


class Start(NamedTuple):
    """Particles in equilibrium in the trap at 0."""

    system: System
    state: State


def start(particles: int = PARTICLES, seed: int = 0) -> Start:
    """System and state; positions and velocities are drawn anew by :func:`drawn`."""
    atoms = ase.Atoms("Ar" * particles, positions=np.zeros((particles, 3)), masses=np.full(particles, MASS))
    # Side by side, and free along x only: nobody is in anybody's list of neighbours.
    atoms.positions[:, 1:] = 4.0 * np.stack(np.divmod(np.arange(particles), round(particles**0.5)), axis=1)
    atoms.set_constraint(FixCartesian(np.arange(particles), (False, True, True)))
    return Start(*run.start(IdealGas(), atoms, ensemble(np.zeros(KNOTS)), temperature=KELVIN, seed=seed))


def ensemble(knots, kelvin=KELVIN) -> Trapped:
    """Of a protocol."""
    return Trapped(Langevin(kelvin, FRICTION), STIFFNESS, Ramp(TIMES, knots))


def drawn(begin: Start, key) -> State:
    """The state of another realisation: positions and velocities of equilibrium, and a key for its noise."""
    places, speeds, noise = jax.random.split(key, 3)
    shape = begin.state.positions.shape[:2]
    x = jnp.sqrt(BOLTZMANN * KELVIN / STIFFNESS) * jax.random.normal(places, shape)
    speed = jnp.sqrt(BOLTZMANN * KELVIN * ACCELERATION / MASS) * jax.random.normal(speeds, shape)
    return begin.state.replace(
        positions=begin.state.positions.at[..., 0].set(x),
        velocities=jnp.zeros_like(begin.state.velocities).at[..., 0].set(speed),
        key=jax.random.split(noise, shape[0]),
    )


def centers(knots):
    """Å, ``[..., STEPS + 2]``: before the start, at every step, and after the end; of ``[..., KNOTS]`` in Å."""
    times = TIMESTEP * np.arange(1, STEPS + 1)
    weights = np.stack([np.interp(times, TIMES, one) for one in np.eye(KNOTS)])
    path = knots @ weights
    ends = path[..., :1]
    return jnp.concatenate([0.0 * ends, path, DISTANCE + 0.0 * ends], axis=-1)


def works(knots, begin: Start, key, rollout=run.rollout):
    """eV, ``[particles]``: the work on each particle, of one realisation."""
    state = drawn(begin, key)

    def position(system, state):
        return state.positions[0, :, 0]

    seen = rollout(IdealGas(), ensemble(knots), begin.system, state, TIMESTEP, STEPS, observe=position).seen
    x = jnp.concatenate([state.positions[:, :, 0], seen])
    return work(x, centers(knots)[:, None])


def work(x, path):
    """eV; positions [steps + 1, ...] and the centre before and after each of its moves [steps + 2, ...], Å."""
    return 0.5 * STIFFNESS * ((x - path[1:]) ** 2 - (x - path[:-1]) ** 2).sum(0)


# ---------------------------------------------------------------------------------------------- what is known beforehand


def mean_work(knots: np.ndarray) -> np.ndarray:
    """eV, the exact mean of ``[..., KNOTS]``: that of a particle without noise, for the work is linear in its position.

    By the same steps as :class:`Langevin` takes, written down once more.
    """
    path = np.moveaxis(np.asarray(centers(np.asarray(knots, float)), float), -1, 0)
    x = v = np.zeros(path.shape[1:])
    seen, pull = [x], 0.5 * TIMESTEP * ACCELERATION * STIFFNESS / MASS
    for center in path[1:-1]:
        v = v - pull * (x - center)
        x = x + 0.5 * TIMESTEP * v
        v = np.exp(-FRICTION * TIMESTEP) * v
        x = x + 0.5 * TIMESTEP * v
        v = v - pull * (x - center)
        seen.append(x)
    return work(np.stack(seen), path)


def quadratic() -> tuple[float, np.ndarray, np.ndarray]:
    """c, g and H of the mean work ``c + g . knots + knots . H . knots / 2``."""
    unit = np.eye(KNOTS)
    c, up, down = mean_work(0 * unit[0]), mean_work(unit), mean_work(-unit)
    both = mean_work(unit[:, None] + unit[None])
    curvature = both - up[:, None] - up[None] + c
    return float(c), 0.5 * (up - down), curvature


def best_knots() -> np.ndarray:
    """Å, of the least mean work that straight lines between knots can have."""
    _, slope, curvature = quadratic()
    return np.linalg.solve(curvature, -slope)


def straight() -> np.ndarray:
    """Å: from A to B at one speed, without jumps."""
    return DISTANCE * TIMES / (TIMESTEP * STEPS)


def theory(times: np.ndarray) -> np.ndarray:
    """Å, the centre of the best overdamped protocol at these times in fs."""
    total = TIMESTEP * STEPS / TAU
    return DISTANCE * (1 + times / TAU) / (total + 2)
