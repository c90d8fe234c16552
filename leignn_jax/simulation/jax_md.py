"""Simulators of jax-md as ensembles: ``JaxMD(jax_md.simulate.nvt_nose_hoover, kT=0.025, tau=100.0)``.

A simulator is a pair of functions, ``(init, apply)``, made from an energy or force function. ``apply`` takes one step and
asks once for forces, at the positions where the step ends. This is what lets it run with the lists, replicas, files and
gradients of this package, which evaluate the model themselves: ``apply`` runs with forces that do not matter yet and tells
the positions; lists, energy, forces and stress are made there; then it runs again, with these forces, and tells the
momenta. What both runs have in common the compiler computes once, what the first makes of its forces never.

A simulator with a barostat asks for the derivative by the box too, before and after its move. It is given a function that
is linear in positions and strain and has the forces and the stress of this package as its slopes. It is run in positions
in Å: in units of the box, jax-md 0.2.29 adds the growth of the box to positions that have grown with it already.

jax-md's unit of time, Å (amu / eV)^1/2 = 10.18 fs, stays in here. Floats are leaves of a pytree, each one number, one per
replica ``[replicas]``, or a :class:`leignn_jax.simulation.ensembles.Ramp`:

==================================  ============================================
``kT``                              eV
``tau``, also of ``..._kwargs``     fs
``gamma``                           1/fs
``pressure``                        GPa
all else                            as jax-md has it
==================================  ============================================

How these compare with the ensembles of this package: ``experiments/jax_md``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import ase.units
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.arguments import did_you_mean
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import (
    ACCELERATION,
    BOLTZMANN,
    GIGAPASCAL,
    EnergyModel,
    State,
    System,
    kinetic_energy,
    volume,
)
from leignn_jax.simulation.ensembles import Ensemble, Ramp, time_of, value_at

log = logging.getLogger("leignn_jax")

# jax-md's unit of time per fs.
_FS = float(ase.units.fs)
_IN_ITS_UNITS = {"tau": _FS, "gamma": 1 / _FS, "pressure": 1 / GIGAPASCAL}
# What the state of this package holds in the place of jax-md's.
_OURS = ("position", "momentum", "force", "mass")
# Those that are told their degrees of freedom, or need not know them.
_HOLDS_ATOMS = ("nve", "nvt_nose_hoover", "nvt_langevin")
_CHAINS = ("chain", "thermostat")
_TAU = 100.0  # fs


@jax.tree_util.register_pytree_node_class
class JaxMD(Ensemble):
    """An ensemble of jax-md, for simulations and rollouts.

    Args:
        simulator: such as ``jax_md.simulate.nve``, ``nvt_nose_hoover``, ``nvt_langevin``, ``npt_nose_hoover``: a function
            ``(energy_or_force, shift, dt, **numbers) -> (init, apply)``. Its ``temp_csvr`` runs too, but somewhat too hot,
            as is told then.
        numbers: its other arguments, in the units at the top of this module. ``tau`` is 100 fs where none is given.

    Raises:
        ConfigError: an argument that the simulator does not know, one that it needs, or true, false or a text
            in the place of a number.
    """

    def __init__(self, simulator: Callable[..., Any], **numbers: Any):
        if not callable(simulator) or len(inspect.signature(simulator).parameters) < 3:
            raise ConfigError(f"simulator must be a function such as jax_md.simulate.nve, not {_name(simulator)}.")
        self.simulator = simulator
        known = _arguments(simulator)
        for name in numbers:
            if name not in known:
                raise ConfigError(f"{_name(simulator)}: unknown argument {name!r}{did_you_mean(name, known)}")
        missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in (*numbers, "tau")]
        if missing:
            raise ConfigError(f"{_name(simulator)}: needs {', '.join(missing)}.")
        if "tau" in known:
            # jax-md's own default is in steps.
            numbers.setdefault("tau", _TAU)
        self.numbers = {name: _number(name, value, known[name].default) for name, value in numbers.items()}

    def tree_flatten(self):
        """Floats and arrays are leaves; whole numbers, texts and the simulator are static."""
        leaves, tree = jax.tree.flatten(self.numbers)
        moving = tuple(not isinstance(x, bool | int | str) for x in leaves)
        still = tuple(None if m else x for x, m in zip(leaves, moving, strict=True))
        return [x for x, m in zip(leaves, moving, strict=True) if m], (self.simulator, tree, moving, still)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """The ensemble of these leaves."""
        simulator, tree, moving, still = static
        rest = iter(leaves)
        made = object.__new__(cls)
        made.simulator = simulator
        made.numbers = jax.tree.unflatten(tree, [next(rest) if m else x for m, x in zip(moving, still, strict=True)])
        return made

    def __repr__(self) -> str:
        return f"JaxMD({', '.join([_name(self.simulator), *(f'{k}={v}' for k, v in self.numbers.items())])})"

    @property
    def moves_cell(self) -> bool:
        """Whether there is a barostat."""
        return "pressure" in _arguments(self.simulator)

    @property
    def holds_momentum(self) -> bool:
        """Whether the total momentum stays zero: not where there is noise on every atom."""
        return _name(self.simulator) != "nvt_langevin"

    @property
    def temperature(self) -> Any:
        """K, of drawn velocities; None where the simulator has no ``kT``."""
        kT = self.numbers.get("kT")
        if isinstance(kT, Ramp):
            return Ramp(kT.times, jnp.asarray(kT.values) / BOLTZMANN)
        return None if kT is None else kT / BOLTZMANN

    def settings(self) -> dict[str, Any]:
        """The simulator's name and its numbers, by name."""
        named = jax.tree_util.tree_flatten_with_path(self.numbers, is_leaf=_is_ramp)[0]
        return {"simulator": _name(self.simulator)} | {".".join(k.key for k in where): x for where, x in named}

    @property
    def words(self) -> tuple[str, ...]:
        """Names of settings that are no numbers."""
        return tuple(name for name, value in self.settings().items() if isinstance(value, bool | str))

    def kT(self, state: State, dt) -> Any:
        """Thermal energy in eV, ``[replicas]``; zero where there is none."""
        kT = value_at(self.numbers.get("kT", 0.0), time_of(state, dt))
        return jnp.broadcast_to(kT.astype(state.energy.dtype), state.energy.shape)

    def start(self, system: System, state: State) -> Any:
        """What jax-md's state holds beside positions, momenta, forces and masses, of every replica; on the host.

        Raises:
            ConfigError: a simulator that asks for forces elsewhere than where its step ends, has no momenta, or can't
                hold atoms.
        """
        name = _name(self.simulator)
        if name not in _HOLDS_ATOMS and bool((system.mobile == 0).any()):
            raise ConfigError(
                f"{name} counts all atoms as free: it can't hold some, nor run beside larger structures. Use one of "
                f"{', '.join(_HOLDS_ATOMS)}, or an ensemble of this package."
            )
        if name == "temp_csvr":
            log.warning(
                "temp_csvr of jax-md counts three degrees of freedom for every atom, also where the total momentum stays "
                "zero: of N atoms the temperature is N/(N-1) times too high, or more. leignn_jax.simulation.ensembles.CSVR "
                "counts them."
            )
        rest = self.memory(system, state)
        degrees = sorted({int(n) for n in system.degrees_of_freedom()})
        for chain in (c for c in _CHAINS if hasattr(rest, c)):
            # jax-md counts three for every atom, also where the total momentum stays zero or atoms are held.
            if len(degrees) > 1:
                raise ConfigError(
                    f"{name}: replicas with {degrees} degrees of freedom can't share a chain. Run them one by one, or use "
                    "an ensemble of this package."
                )
            rest = rest.set(**{chain: getattr(rest, chain).set(degrees_of_freedom=degrees[0])})

        def end(forces):
            return self._apply(system, state.replace(bath=rest), jnp.ones((), state.energy.dtype), forces, None)[0]

        _, moved = jax.jvp(end, (state.forces,), (jnp.ones_like(state.forces),))
        if bool((moved != 0).any()):
            raise ConfigError(
                f"{name} asks for forces elsewhere than at the positions where its step ends: it can't run here. Use it by "
                "leignn.neighbor_list in a loop of your own."
            )
        return rest

    def memory(self, system: System, state: State) -> Any:
        """What :meth:`start` returns, but for what is static in it."""
        leaves, static = self._in_its_units(state, jnp.ones((), state.energy.dtype))

        def made(position, momentum, mass, force, cell, stress, key, leaves):
            numbers = self.tree_unflatten(static, leaves).numbers
            init, _ = self.simulator(_answers(self.moves_cell, (force, stress, cell)), _shift, _FS, **numbers)
            takes = inspect.signature(init).parameters
            if not {"mass", "momenta"} <= takes.keys():
                raise ConfigError(
                    f"{_name(self.simulator)}: its atoms have no momenta; such dynamics is not supported."
                )
            # The box of a barostat; the temperature at which `nve` would draw the momenta that it is given.
            more = {name: value for name, value in {"box": cell.T, "kT": 0.0}.items() if name in takes}
            return init(key, position, mass=mass, momenta=momentum, **more)

        keys = jax.random.key_data(state.key)
        momentum, mass = _momentum(system, state)
        forces = state.forces * system.mobile
        with _without_warnings():
            whole = jax.vmap(made)(state.positions, momentum, mass, forces, state.cell, state.stress, keys, leaves)
        if not all(hasattr(whole, name) for name in _OURS):
            raise ConfigError(f"{_name(self.simulator)}: its state has no position, momentum, force and mass.")
        return _rest(whole)

    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """Where the step ends: a first run of the simulator, whose forces there do not matter."""
        positions, cell, _ = self._apply(system, state, dt, state.forces, None)
        # A replica at rest without forces stays: jax-md's rescaling of velocities divides by its kinetic energy.
        moves = ((state.velocities != 0) | (state.forces != 0)).any((1, 2))[:, None, None]
        return state.replace(cell=cell), jnp.where(moves, positions, state.positions), state.replace(neighbors=None)

    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """A second run from the state before, with the forces where it ends."""
        _, _, after = self._apply(system, before, dt, state.forces, state)
        velocities = after.momentum / system.masses[..., None] * _FS * system.mobile
        moved = state.replace(velocities=velocities, bath=_rest(after), step=state.step + 1)
        return moved.replace(exchanged=state.exchanged + self._given(system, before, moved, dt))

    def _given(self, system: System, before: State, after: State, dt):
        """What noise or rescaling has put in during a step, eV: from momenta less the kicks that came before or after."""

        def kinetic(velocities, *kicks):
            change = sum((0.5 * dt * ACCELERATION * sign * state.forces for sign, state in kicks), 0.0)
            return kinetic_energy(system, velocities + change / system.masses[..., None] * system.mobile)

        if _name(self.simulator) == "nvt_langevin":
            return kinetic(after.velocities, (-1, after)) - kinetic(before.velocities, (1, before))
        if _name(self.simulator) == "temp_csvr":
            return kinetic(after.velocities, (-1, after), (-1, before)) - kinetic(before.velocities)
        return jnp.zeros_like(after.energy)

    def stored_energy(self, system: System, state: State, dt) -> Any:
        """Energy of the bath's own variables in eV; NaN for a simulator of which it is not known."""
        name, bath, kT = _name(self.simulator), state.bath, self.kT(state, dt)
        if name in ("nve", "nvt_langevin", "temp_csvr"):
            return jnp.zeros_like(state.energy)
        if name == "nvt_nose_hoover":
            return _chain_energy(bath.chain, kT)
        if name == "npt_nose_hoover":
            chains = _chain_energy(bath.thermostat, kT) + _chain_energy(bath.barostat, kT)
            pressure = value_at(self.numbers["pressure"], time_of(state, dt)) / GIGAPASCAL
            return chains + 0.5 * bath.box_momentum**2 / bath.box_mass + pressure * volume(state.cell)
        return jnp.full_like(state.energy, jnp.nan)

    def _apply(self, system: System, state: State, dt, forces, moved: State | None):
        """Positions and cells where the step from ``state`` ends, and jax-md's states there."""
        after = state if moved is None else moved
        leaves, static = self._in_its_units(state, dt)

        def one(whole, old, new, leaves):
            numbers = self.tree_unflatten(static, leaves).numbers
            answers = (old, new) if self.moves_cell else (new,)
            _, apply = self.simulator(_answers(self.moves_cell, *answers), _shift, dt * _FS, **numbers)
            end = apply(whole)
            return end.position, end.box.T if self.moves_cell else old[2], end

        momentum, mass = _momentum(system, state)
        old = (state.forces * system.mobile, state.stress, state.cell)
        new = (forces * system.mobile, after.stress, after.cell)
        whole = state.bath.set(position=state.positions, momentum=momentum, force=old[0], mass=mass)
        with _without_warnings():
            positions, cell, end = jax.vmap(one)(whole, old, new, leaves)
        return jnp.where(system.mobile > 0, positions, state.positions), cell, end

    def _in_its_units(self, state: State, dt):
        """Leaves in jax-md's units as arrays ``[replicas]``, and what they are leaves of."""

        def convert(where, x):
            if isinstance(x, bool | int | str):
                return x
            x = value_at(x, time_of(state, dt)) * _IN_ITS_UNITS.get(where[-1].key, 1.0)
            return jnp.broadcast_to(x, state.energy.shape)

        made = object.__new__(type(self))
        made.simulator = self.simulator
        made.numbers = jax.tree_util.tree_map_with_path(convert, self.numbers, is_leaf=_is_ramp)
        return made.tree_flatten()


def _number(name: str, value: Any, default: Any) -> Any:
    """A number as a leaf: whole ones are static only where they count something, such as the links of a chain."""
    if isinstance(value, dict):
        return {key: _number(key, one, None) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return np.asarray(value)
    if isinstance(value, bool | str) and not isinstance(default, type(value)):
        raise ConfigError(f"{name}: must be a number, not {value!r:.60}.")
    counts = isinstance(default, int) or name.startswith("chain_") or name == "sy_steps"
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and not counts else value


def _shift(R, dR, **_):
    return R + dR


def _answers(barostat: bool, *answers):
    """A function that gives these answers, (forces, stress, cell) each, one after another as it is asked.

    Without a barostat it gives forces; with one an energy, linear in positions and strain.
    """
    waiting = list(answers)

    def energy(R, perturbation=1.0, **_):
        force, stress, cell = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        slope = jnp.abs(jnp.linalg.det(cell)) * jnp.trace(stress)
        return slope * (perturbation - 1.0) - (force * (R - jax.lax.stop_gradient(R))).sum()

    return energy if barostat else (lambda R, **_: answers[0][0])


def _momentum(system: System, state: State):
    """Momenta in jax-md's units and masses, ``[replicas, atoms, 3]`` and ``[replicas, atoms, 1]``."""
    mass = system.masses[..., None]
    return state.velocities / _FS * mass * system.mobile, mass


def _chain_energy(chain, kT):
    """Of chains [replicas, length], eV; Martyna et al., Mol. Phys. 87, 1117 (1996)."""
    kinetic = 0.5 * (chain.momentum**2 / chain.mass).sum(-1)
    return kinetic + kT * (chain.degrees_of_freedom * chain.position[:, 0] + chain.position[:, 1:].sum(-1))


def _rest(whole):
    return whole.set(**dict.fromkeys(_OURS))


@contextmanager
def _without_warnings():
    """jax-md sums in float64 also where JAX has none, which warns and sums in float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
        yield


def _is_ramp(x) -> bool:
    return isinstance(x, Ramp)


def _name(simulator) -> str:
    while isinstance(simulator, functools.partial):
        simulator = simulator.func
    return getattr(simulator, "__name__", type(simulator).__name__)


def _arguments(simulator) -> dict[str, inspect.Parameter]:
    """What a simulator takes after energy, shift and timestep."""
    parameters = list(inspect.signature(simulator).parameters.values())[3:]
    return {p.name: p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
