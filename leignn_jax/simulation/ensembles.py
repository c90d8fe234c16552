r"""Ensembles: what surrounds the atoms, and one step of motion in it, as pure functions of the state.

=====================  ==========================================================================================
``NVE``                velocity Verlet
``NoseHoover``         NVT, a chain of three Nose-Hoover thermostats (Martyna et al. 1996)
``Langevin``           NVT, BAOAB (Leimkuhler and Matthews 2013)
``CSVR``               NVT, stochastic velocity rescaling (Bussi, Donadio and Parrinello 2007)
``CellRescaling``      NPT, stochastic cell rescaling (Bernetti and Bussi 2020) with CSVR
=====================  ==========================================================================================

Every number is an array leaf: differentiate by it, sweep it by vmap, or give a :class:`Ramp` in its place (but where
``constant`` of its class names it; and ``conserved`` of the logs then has the work of what the ramp changes). A number per
replica is given as an array ``[replicas]``.

Cell rescaling lets the cell diffuse in the free energy of its strain. Written for the matrix h of cell vectors as
columns, with P the instantaneous pressure tensor, beta_T the compressibility, tau the time constant and V_0 the volume at
the start,

    h <- exp(E) h,    E = beta_T / (3 tau V_0) (V (P - P_0) + kT) dt + sqrt(2 kT beta_T / (3 V_0 tau) dt) W,

W a matrix of normal numbers: its stationary density is V^(N-2) exp(-(U + P_0 V) / kT) dh, that of a cell of any shape.
The published mobility has V in the place of V_0, and no kT in the drift. Ours makes the noise the same everywhere, so that
the error by which a move breaks detailed balance, and with it the walk of ``conserved``, vanishes with the timestep.
``shape`` restricts E to its diagonal or to multiples of the unit matrix. The rotation in exp(E) is left out, which
changes nothing that can be measured. Positions go with the cell, velocities against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import check_whole
from leignn_jax.cells import inverse, transformed
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import (
    ACCELERATION,
    BOLTZMANN,
    GIGAPASCAL,
    EnergyModel,
    State,
    System,
    Thermo,
    kinetic_energy,
    move_to,
    normals,
    pressure,
    pressure_tensor,
    temperature,
    volume,
)

_CHAIN = 3
# Yoshida 1990: weights of a fourth-order composition.
_YOSHIDA = (1.3512071919596578, -1.7024143839193153, 1.3512071919596578)
# What random numbers of a step are for; the place of each is part of its key.
_USES = ("friction", "scaling", "scaling by others", "cell")


@struct.dataclass
class Ramp:
    """A number that changes along straight lines: ``values`` [points] at ``times`` [points] fs since the start."""

    times: Any
    values: Any


def value_at(number: Any, time) -> Any:
    """A constant, or a ramp's value at ``time`` [fs]."""
    if isinstance(number, Ramp):
        return jnp.interp(time, jnp.asarray(number.times, time.dtype), jnp.asarray(number.values, time.dtype))
    return jnp.asarray(number, time.dtype)


class Shift(NamedTuple):
    """A part of a step: a number of the state, or ``of`` its memory, changes by an amount that does not depend on it."""

    of: str | tuple[str, int]
    amount: Callable[[State], Any]


class Scaling(NamedTuple):
    """A part of a step: a number of the state, or ``of`` its memory, times exp of what does not depend on it."""

    of: str | tuple[str, int]
    exponent: Callable[[State], Any]


class Parts(NamedTuple):
    """A step in parts that can be undone one by one.

    first: with the forces at the old positions, which stay. drift: without forces. last: with those at the new positions.
    """

    first: list[Shift | Scaling]
    drift: list[Shift | Scaling]
    last: list[Shift | Scaling]


def number_of(state: Any, of: str | tuple[str, int]) -> Any:
    """A field of the state, or one ``(name, place)`` of the lists that its ensemble remembers."""
    return getattr(state, of) if isinstance(of, str) else state.bath[of[0]][of[1]]


def with_number(state: Any, of: str | tuple[str, int], value: Any) -> Any:
    """The state with another value of :func:`number_of`."""
    if isinstance(of, str):
        return state.replace(**{of: value})
    name, place = of
    several = state.bath[name]
    return state.replace(bath={**state.bath, name: [*several[:place], value, *several[place + 1 :]]})


def done(state: State, parts: list[Shift | Scaling]) -> State:
    """The state after these parts, one after the other."""
    for part in parts:
        now = number_of(state, part.of)
        after = now + part.amount(state) if isinstance(part, Shift) else now * jnp.exp(part.exponent(state))
        state = with_number(state, part.of, after)
    return state


class Ensemble(ABC):
    """What surrounds the atoms: a pytree whose leaves are its numbers. Those below, jax-md's, or one's own.

    moves_cell: whether the cell changes. holds_momentum: whether the total momentum stays zero. sees_origin: whether what it
    does depends on where along open directions the structure is. wrapped: another ensemble, around which it is. constant:
    names of settings that can't be a :class:`Ramp`.

    A step is given in what comes before the forces at the new positions, ``begin``, and what comes after them, ``finish``.
    They are apart so that a rollout can have one evaluation of the model in its program, also for the first forces.
    """

    moves_cell: ClassVar[bool] = False
    holds_momentum: ClassVar[bool] = True
    sees_origin: ClassVar[bool] = False
    wrapped: ClassVar[Ensemble | None] = None
    constant: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """A state with the cell of the new positions, these positions [Å], and what ``finish`` must know of before."""

    @abstractmethod
    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """The state after the step, of the one with the forces at the new positions."""

    def settings(self) -> dict[str, Any]:
        """All that it was made with, by name."""
        return vars(self)

    @property
    def words(self) -> tuple[str, ...]:
        """Names of settings that are no numbers."""
        return ("shape",)

    def start(self, system: System, state: State) -> Any:
        """What the ensemble remembers at the start, of a state that is whole but for that: nothing."""
        return ()

    def memory(self, system: System, state: State) -> Any:
        """As :meth:`start`, also where the arguments are traced: for names and shapes of what is remembered."""
        return self.start(system, state)

    def step(self, model: EnergyModel, system: System, state: State, dt) -> State:
        """One step of ``dt`` fs."""
        begun, positions, before = self.begin(system, state, dt)
        return self.finish(model, system, move_to(model, system, begun, positions, begun.cell), dt, before)

    def kT(self, state: State, dt) -> Any:
        """Thermal energy in eV of the bath now, ``[replicas]``; zero where there is none."""
        return jnp.zeros_like(state.energy)

    def stored_energy(self, system: System, state: State, dt) -> Any:
        """Energy in eV held by the bath's own variables; what it has put in by noise is counted in ``exchanged``."""
        return jnp.zeros_like(state.energy)

    def at_end(self, state: State) -> list[str]:
        """Sentences to warn of at the end of a simulation; on the host."""
        return []


class InParts(Ensemble):
    """A step that is done in parts, each of which can be undone: see :mod:`leignn_jax.differentiable.reversible`."""

    @abstractmethod
    def parts(self, system: System, dt) -> Parts:
        """The parts of a step of ``dt`` fs."""

    def damping(self, dt) -> Any:
        """By what exponent velocities shrink in a step, whatever they are; zero where they grow as often."""
        return 0.0

    def sizes(self) -> dict[str, float]:
        """About how large numbers of what it remembers become, of which whole numbers in the place of floats are parts."""
        return {}

    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """All before the new forces."""
        first, drift, _ = self.parts(system, dt)
        moved = done(done(state, first), drift)
        return moved.replace(positions=state.positions), moved.positions, ()

    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """All after them."""
        return done(state, self.parts(system, dt).last)


def _kick(system: System, dt) -> Shift:
    """Velocities change by the forces during ``dt`` fs."""
    return Shift("velocities", lambda s: dt * ACCELERATION * s.forces / system.masses[..., None] * system.mobile)


def _drift(dt) -> Shift:
    return Shift("positions", lambda s: dt * s.velocities)


_COUNT = Shift("step", lambda s: 1)


@struct.dataclass
class NVE(InParts):
    """Constant energy: nothing acts on the atoms but their forces."""

    def parts(self, system: System, dt) -> Parts:
        """Half a kick; drift; half a kick: velocity Verlet."""
        return Parts([_kick(system, 0.5 * dt)], [_drift(dt)], [_kick(system, 0.5 * dt), _COUNT])


@struct.dataclass
class NoseHoover(InParts):
    """Constant temperature by a Nose-Hoover chain: deterministic and time-reversible.

    temperature: K. time_constant: fs, of the chain's oscillation; it can't be a :class:`Ramp`.
    """

    constant: ClassVar[tuple[str, ...]] = ("time_constant",)

    temperature: Any
    time_constant: Any = 100.0

    def start(self, system: System, state: State):
        """Positions and velocities [1/fs] of the three thermostats of the chain, ``[replicas]`` each."""

        def zeros():
            return [jnp.zeros(system.numbers.shape[0], state.cell.dtype) for _ in range(_CHAIN)]

        return {"chain_positions": zeros(), "chain_velocities": zeros()}

    def sizes(self) -> dict[str, float]:
        """Of a chain that turns around for some time, and of one that is far from its temperature [1/fs]."""
        return {"chain_positions": 64.0, "chain_velocities": 1.0}

    def kT(self, state: State, dt):
        """Thermal energy in eV, ``[replicas]``."""
        return _kT(self.temperature, state, dt)

    def parts(self, system: System, dt) -> Parts:
        """Half a step of the chain and half a kick; drift; half a kick and half a step of the chain."""
        chain = self._chain(system, dt)
        kick = _kick(system, 0.5 * dt)
        return Parts([*chain, kick], [_drift(dt)], [kick, _COUNT, *chain])

    def _masses(self, system: System, kT, dtype):
        tau = jnp.broadcast_to(jnp.asarray(self.time_constant, dtype), kT.shape)
        return [system.degrees_of_freedom() * kT * tau**2, *[kT * tau**2] * (_CHAIN - 1)]

    def _chain(self, system: System, dt) -> list[Shift | Scaling]:
        """Half a step of the chain: Martyna et al., Mol. Phys. 87, 1117 (1996), eq. 29 to 34."""

        def push(k):
            def acceleration(state):
                kT = self.kT(state, dt)
                masses, speeds = self._masses(system, kT, kT.dtype), state.bath["chain_velocities"]
                if k == 0:
                    twice = 2 * kinetic_energy(system, state.velocities)
                    return (twice - system.degrees_of_freedom() * kT) / masses[0]
                return (masses[k - 1] * speeds[k - 1] ** 2 - kT) / masses[k]

            return acceleration

        def shift(k, h):
            return Shift(("chain_velocities", k), lambda s: h * push(k)(s))

        def brake(k, h):
            return Scaling(("chain_velocities", k), lambda s: -h * s.bath["chain_velocities"][k + 1])

        last, inner = _CHAIN - 1, range(_CHAIN - 1)
        parts = []
        for weight in _YOSHIDA:
            h = weight * 0.5 * dt
            parts.append(shift(last, 0.5 * h))
            for k in reversed(inner):
                parts += [brake(k, 0.25 * h), shift(k, 0.5 * h), brake(k, 0.25 * h)]
            parts.append(Scaling("velocities", lambda s, h=h: -h * s.bath["chain_velocities"][0][:, None, None]))
            for k in range(_CHAIN):
                parts.append(Shift(("chain_positions", k), lambda s, h=h, k=k: h * s.bath["chain_velocities"][k]))
            for k in inner:
                parts += [brake(k, 0.25 * h), shift(k, 0.5 * h), brake(k, 0.25 * h)]
            parts.append(shift(last, 0.5 * h))
        return parts

    def stored_energy(self, system: System, state: State, dt):
        """Energy of the chain in eV."""
        kT = self.kT(state, dt)
        positions, speeds = state.bath["chain_positions"], state.bath["chain_velocities"]
        masses = self._masses(system, kT, kT.dtype)
        kinetic = sum(0.5 * mass * speed**2 for mass, speed in zip(masses, speeds, strict=True))
        return kinetic + kT * (system.degrees_of_freedom() * positions[0] + sum(positions[1:]))


@struct.dataclass
class Langevin(InParts):
    """Constant temperature by friction and noise on every atom.

    temperature: K. friction: 1/fs.
    """

    temperature: Any
    friction: Any = 0.01
    holds_momentum: ClassVar[bool] = False

    def kT(self, state: State, dt):
        """Thermal energy in eV, ``[replicas]``."""
        return _kT(self.temperature, state, dt)

    def damping(self, dt) -> Any:
        """Friction times timestep, the largest of a ramp."""
        friction = self.friction.values if isinstance(self.friction, Ramp) else self.friction
        # Of what is known while a program is traced this is known too.
        known = not isinstance(friction, jax.core.Tracer)
        return (np.max(np.asarray(friction)) if known else jnp.max(friction)) * dt

    def parts(self, system: System, dt) -> Parts:
        """Half a kick; half a drift, friction and noise, half a drift; half a kick."""

        def slowing(state):
            friction = jnp.broadcast_to(value_at(self.friction, time_of(state, dt)), state.energy.shape)
            return -(friction * dt)[:, None, None]

        def noise(state):
            spread = _root((self.kT(state, dt) * ACCELERATION)[:, None, None] / system.masses[..., None])
            drawn = _noise(state, state.velocities.shape[1:], "friction")
            return _root(-jnp.expm1(2 * slowing(state))) * spread * drawn * system.mobile

        friction = [
            Shift("exchanged", lambda s: -kinetic_energy(system, s.velocities)),
            Scaling("velocities", slowing),
            Shift("velocities", noise),
            Shift("exchanged", lambda s: kinetic_energy(system, s.velocities)),
        ]
        kick, half = _kick(system, 0.5 * dt), _drift(0.5 * dt)
        return Parts([kick], [half, *friction, half], [kick, _COUNT])


@struct.dataclass
class CSVR(Ensemble):
    """Constant temperature by scaling all velocities at random towards the canonical kinetic energy.

    temperature: K. time_constant: fs.
    """

    temperature: Any
    time_constant: Any = 100.0

    def kT(self, state: State, dt):
        """Thermal energy in eV, ``[replicas]``."""
        return _kT(self.temperature, state, dt)

    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """As :class:`NVE`."""
        return NVE().begin(system, state, dt)

    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """Half a kick, then the scaling."""
        kT = self.kT(state, dt)
        return _rescaled(system, NVE().finish(model, system, state, dt), dt, kT, self.time_constant)


@struct.dataclass
class CellRescaling(Ensemble):
    """Constant temperature and pressure by CSVR and stochastic cell rescaling; see the top of this module.

    temperature: K. pressure: GPa, isotropic.
    time_constant, pressure_time_constant: fs, of thermostat and barostat.
    compressibility: 1/GPa, roughly that of the material; only the speed of the cell depends on it.
    shape: "isotropic", "anisotropic" (stretched along x, y and z) or "triclinic" (static).
    every: steps between moves of the cell, each of which takes one more evaluation of the forces (static).
    """

    temperature: Any
    pressure: Any = 0.0
    time_constant: Any = 100.0
    pressure_time_constant: Any = 1000.0
    compressibility: Any = 0.01
    shape: Literal["isotropic", "anisotropic", "triclinic"] = struct.field(pytree_node=False, default="isotropic")
    every: int = struct.field(pytree_node=False, default=10)
    moves_cell: ClassVar[bool] = True

    def start(self, system: System, state: State):
        """The first volume in Å^3, ``[replicas]``; ConfigError for an unknown shape."""
        if self.shape not in ("isotropic", "anisotropic", "triclinic"):
            raise ConfigError(f"shape: {self.shape!r} is not one of isotropic, anisotropic, triclinic.")
        check_whole("every", self.every, 1)
        return {"first_volume": volume(state.cell)}

    def kT(self, state: State, dt):
        """Thermal energy in eV, ``[replicas]``."""
        return _kT(self.temperature, state, dt)

    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """As :class:`NVE`."""
        return NVE().begin(system, state, dt)

    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """As :class:`CSVR`; after every ``every`` steps the cell moves."""
        moved = CSVR(self.temperature, self.time_constant).finish(model, system, state, dt)
        due = moved.step % self.every == 0
        return jax.lax.cond(due, lambda s: self._move_cell(model, system, s, dt), lambda s: s, moved)

    def _move_cell(self, model: EnergyModel, system: System, state: State, dt) -> State:
        """Strain cell, positions and velocities, and count what the bath put in so that the enthalpy can be followed.

        The count is minus kT times the logarithm by which forward and backward probability of the move differ (Bernetti
        and Bussi 2020, eq. 13): the mean of exp(-change of ``conserved`` / kT) is 1.
        """
        kT = self.kT(state, dt)
        unit = jnp.eye(3, dtype=state.cell.dtype)
        noise = _noise(state, (3, 3), "cell")
        drift, amount = self._drift(system, state, kT, dt)
        exponent = drift + _root(2 * kT * amount)[:, None, None] * self._allowed(noise)
        deformation = _exponential(exponent)
        rotation = _rotation_of(deformation) if self.shape == "triclinic" else unit
        strain = transformed(jnp.swapaxes(jnp.broadcast_to(rotation, deformation.shape), 1, 2), deformation)

        across = jnp.swapaxes(strain, 1, 2)
        velocities = transformed(state.velocities, inverse(strain)) * system.mobile
        strained = state.replace(velocities=velocities)
        moved = move_to(model, system, strained, transformed(state.positions, across), transformed(state.cell, across))

        back, _ = self._drift(system, moved, kT, dt)
        back = transformed(transformed(rotation, back), jnp.swapaxes(rotation, -1, -2))
        # Times kT, which may be zero.
        odds = (_squared(exponent + back) - _squared(exponent - drift)) / (4 * amount)
        growth = jnp.log(volume(moved.cell) / volume(state.cell))
        put_in = kT * (1 + system.held_momentum) * growth - odds
        return moved.replace(exchanged=state.exchanged + put_in)

    def _drift(self, system: System, state: State, kT, dt):
        """Mean exponent of a move, ``[replicas, 3, 3]``, and the variance of its elements over 2 kT."""
        time = time_of(state, dt)
        target = value_at(self.pressure, time) / GIGAPASCAL
        mobility = value_at(self.compressibility, time) * GIGAPASCAL / value_at(self.pressure_time_constant, time)
        amount = jnp.broadcast_to(mobility * self.every * dt / 3, kT.shape) / state.bath["first_volume"]
        unit = jnp.eye(3, dtype=kT.dtype)
        excess = pressure_tensor(system, state, kT) - jnp.broadcast_to(target, kT.shape)[:, None, None] * unit
        push = volume(state.cell)[:, None, None] * self._allowed(excess, mean=True) + kT[:, None, None] * unit
        return amount[:, None, None] * push, amount

    def _allowed(self, matrix, mean: bool = False):
        """The part of a matrix along which the cell may move; normal numbers stay normal numbers."""
        unit = jnp.eye(3, dtype=matrix.dtype)
        if self.shape == "triclinic":
            return matrix
        if self.shape == "anisotropic":
            return matrix * unit
        if mean:
            return jnp.trace(matrix, axis1=1, axis2=2)[:, None, None] / 3 * unit
        return matrix[:, :1, :1] / jnp.sqrt(jnp.asarray(3.0, matrix.dtype)) * unit

    def stored_energy(self, system: System, state: State, dt):
        """Pressure times volume in eV, with which energy becomes enthalpy."""
        return value_at(self.pressure, time_of(state, dt)) / GIGAPASCAL * volume(state.cell)


def thermo(ensemble: Ensemble, system: System, state: State, dt) -> Thermo:
    """What is logged of a state."""
    kinetic = kinetic_energy(system, state.velocities)
    periodic = system.pbc.all(-1)
    box = jnp.where(periodic, volume(state.cell), 1.0)
    unit = jnp.eye(3, dtype=state.cell.dtype)
    there = state.replace(cell=jnp.where(periodic[:, None, None], state.cell, unit))
    conserved = state.energy + kinetic + ensemble.stored_energy(system, state, dt) - state.exchanged
    return Thermo(
        state.energy,
        kinetic,
        temperature(system, state.velocities),
        jnp.where(periodic, pressure(system, there), jnp.nan),
        jnp.where(periodic, box, jnp.nan),
        conserved,
    )


def time_of(state: State, dt):
    """fs since the start; a scalar of the state's dtype."""
    return state.step.astype(state.energy.dtype) * dt


def _kT(kelvin, state: State, dt):
    return jnp.broadcast_to(BOLTZMANN * value_at(kelvin, time_of(state, dt)), state.energy.shape)


def _keys(state: State, use: str) -> Any:
    """Keys ``[replicas]`` for one use in this step: noise that is a function of key and step can be drawn again."""
    tag = _USES.index(use)
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, state.step), tag))(state.key)


def _noise(state: State, shape, use: str):
    """Normal numbers ``[replicas, *shape]`` of this step."""
    return normals(_keys(state, use), shape, state.energy.dtype)


def _rescaled(system: System, state: State, dt, kT, time_constant) -> State:
    """Velocities scaled at random, Bussi et al., J. Chem. Phys. 126, 014101 (2007), eq. A7."""
    dtype = state.energy.dtype
    degrees = system.degrees_of_freedom()
    first = _noise(state, (), "scaling")
    # A sum of squares of n normal numbers is twice a Gamma(n / 2) number.
    others = jax.vmap(lambda k, a: jax.random.gamma(k, a, dtype=dtype))(
        _keys(state, "scaling by others"), jnp.maximum(0.5 * (degrees - 1), 1e-3)
    )
    others = jnp.where(degrees > 1, 2 * others, 0.0)
    keep = jnp.exp(-dt / value_at(time_constant, time_of(state, dt)))
    kinetic = kinetic_energy(system, state.velocities)
    ratio = 0.5 * kT / jnp.where(kinetic > 0, kinetic, 1.0)
    scale = keep + (1 - keep) * ratio * (others + first**2) + 2 * _root(keep * (1 - keep) * ratio) * first
    scale = jnp.where(kinetic > 0, jnp.maximum(scale, 0.0), 1.0)
    return state.replace(
        velocities=state.velocities * jnp.sqrt(jnp.where(scale > 0, scale, 1e-12))[:, None, None],
        exchanged=state.exchanged + (scale - 1) * kinetic,
    )


def _exponential(matrix):
    """Of small matrices [..., 3, 3]: four terms, the next being below rounding for strains of a step."""
    unit = jnp.eye(3, dtype=matrix.dtype)
    out = unit
    for k in (4, 3, 2, 1):
        out = unit + transformed(matrix, out) / k
    return out


def _rotation_of(deformation):
    """The rotation R in F = R S with symmetric S, by Higham's iteration, which starts next to the unit matrix."""
    rotation = deformation
    for _ in range(4):
        rotation = 0.5 * (rotation + inverse(jnp.swapaxes(rotation, -1, -2)))
    return rotation


def _root(squared):
    """The square root, of zero with the derivative zero: a bath of 0 K has no noise, and what depends on others no NaN."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _squared(matrix):
    return (matrix**2).sum((-1, -2))
