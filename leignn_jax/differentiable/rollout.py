r"""Rollouts: a simulation as a pure function, ``(model, ensemble, system, state, timestep) -> what was seen``.

The steps are the engine's. Neighbour lists are renewed inside; their indices carry no gradient, and since every pair
enters and leaves smoothly, none is missing. What is observed is the scan's output. Should a list overflow, a number not be
finite or a limit of the engine be broken (a system too hot, an atom too fast or lost in open space), everything that is
returned becomes NaN, and so does every gradient.

Gradients of trajectories grow. In a chaotic system the derivative of a late frame by an early one grows as
exp(lambda t) with the largest Lyapunov exponent lambda (for liquids about 1/ps): beyond a few 1/lambda it is right, and
useless. Damped dynamics (Langevin) and short horizons keep it bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.arguments import (
    MOST_STEPS,
    check_dtype,
    check_flag,
    check_model,
    check_number,
    check_seed,
    check_structures,
    check_whole,
    shown,
)
from leignn_jax.device_neighbors import with_pairs, without_pairs
from leignn_jax.differentiable.reversible import moving_of, over_slots
from leignn_jax.differentiable.reversible import scan as reversible_scan
from leignn_jax.differentiable.taming import clipped, cut, decayed
from leignn_jax.differentiable.trouble import Trouble, no_trouble, watched
from leignn_jax.differentiable.whole_numbers import either
from leignn_jax.errors import ConfigError
from leignn_jax.list_sizes import ListSizes
from leignn_jax.simulation.chunks import LIMITS, centers, check_limits, start_state
from leignn_jax.simulation.dynamics import EnergyModel, State, System, check_reach, make_lists, make_system, move_to
from leignn_jax.simulation.ensembles import Ensemble, InParts
from leignn_jax.simulation.model_sums import check_structures_of, without_constants
from leignn_jax.simulation.settings import check_bath, check_ensemble, check_numbers, make_ensemble

Segment = int | tuple[int, ...] | Literal["sqrt", "recursive"] | None

# Of "recursive": steps of the shortest segment, and the most parts of a longer one. States without the pairs of their lists,
# of which there are as many as parts, are a thousandth of what the reverse pass needs of a step, and each level more costs
# one more forward pass.
_SHORTEST, _PARTS = 10, 5000


class Rollout(NamedTuple):
    """What a rollout gives. A pytree.

    state: after the last step.
    seen: what ``observe`` returned, stacked along a leading axis of steps // every; None without ``observe``.
    valid: bool; where False all other floats are NaN: a neighbour list was too small, or the system broke a limit.
    trouble: what and when in which replica, see :func:`leignn_jax.differentiable.trouble.check`.
    """

    state: State
    seen: Any
    valid: Any
    trouble: Trouble


def start(
    model: EnergyModel,
    atoms: ase.Atoms | list[ase.Atoms],
    ensemble: Ensemble | str,
    *,
    temperature: Any = None,
    pressure: Any = None,
    seed: int = 0,
    skin: float = 0.5,
    dtype: str = "float32",
    sizes: ListSizes | None = None,
) -> tuple[System, State]:
    """System and state to begin with; on the host. Velocities as in :func:`leignn_jax.simulate`.

    Positions are those of ``atoms``; where these are far from the origin, those of
    :func:`leignn_jax.neighbors.near_origin`, and what is seen of the rollout is from there.

    Args:
        model: a potential or another model; energies of a rollout are without the constants of a potential.
        atoms: one structure or several side by side.
        ensemble: of the rollout, an object or a short name (see :func:`leignn_jax.simulation.settings.make_ensemble`).
        temperature: K, of drawn velocities (None: the ensemble's), and of the ensemble where it is a name. pressure: GPa,
            of a name.
        seed: of velocities and noise.
        skin: Å. sizes: of the lists; larger ones where a rollout overflows.
        dtype: "float64" needs ``jax.config.update("jax_enable_x64", True)`` or ``with jax.enable_x64(True)``.

    Raises:
        ConfigError: float64 is asked for but switched off in JAX; no velocities and no temperature; numbers of the ensemble
            out of range.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`.
    """
    if check_dtype(dtype) == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError("float64 is switched off in JAX: call this inside `with jax.enable_x64(True)`.")
    check_model(model, "model")
    structures = check_structures(atoms)
    check_number("skin", skin, positive=True)
    check_seed(seed)
    if sizes is not None and not isinstance(sizes, ListSizes):
        raise ConfigError(f"sizes must be ListSizes, such as state.neighbors.sizes, not {shown(sizes)}.")
    ensemble = make_ensemble(ensemble, temperature, pressure)
    check_ensemble(ensemble, temperature, structures)
    check_structures_of(model, structures)
    model = without_constants(model)
    hold = ensemble.holds_momentum and getattr(model, "conserves_momentum", True)
    system = make_system(structures, np.dtype(dtype), hold_momentum=hold)
    state, _ = start_state(model, system, structures, ensemble, temperature, seed, skin, np.dtype(dtype))
    if sizes is not None:
        old = state.neighbors
        lists = make_lists(
            system.numbers, old.positions, old.cell, system.pbc, model.cutoff, skin, np.dtype(dtype), sizes
        )
        state = state.replace(neighbors=lists)
    return system, state


def rollout(
    model: EnergyModel,
    ensemble: Ensemble | str,
    system: System,
    state: State,
    timestep: Any,
    steps: int,
    *,
    observe: Callable[[System, State], Any] | None = None,
    every: int = 1,
    segment: Segment = None,
    reversible: bool = False,
    truncate: int | None = None,
    decay: Any = None,
    clip: Any = None,
    temperature: Any = None,
    pressure: Any = None,
    max_temperature: float = LIMITS.temperature,
    max_step: float = LIMITS.step,
    max_distance: float = LIMITS.distance,
) -> Rollout:
    """``steps`` steps of ``timestep`` fs; pure, for jit, vmap, grad and jvp.

    Args:
        model: potential or other model, differentiable by its parameters.
        ensemble: that of :func:`start`, or another one that remembers the same and keeps the total momentum where that
            of the start does; differentiable by its numbers.
        system, state: from :func:`start`; differentiable by masses, positions, velocities and cell.
        timestep: fs. steps: a multiple of ``every`` (static).
        observe: what to look at after every ``every`` steps: ``(system, state) -> pytree``, such as those of
            :mod:`leignn_jax.differentiable.observables`.
        segment: None keeps what the reverse pass needs of every step. A number keeps only the states that many
            observations apart and computes the rest again, one segment at a time: memory of ``steps / segment`` states
            and ``segment`` steps, for one more forward pass. "sqrt" is the number that makes both alike. Several numbers,
            (long, ..., short), are segments of segments: memory of as many states as each has parts, for one more forward
            pass each. "recursive" chooses them: about 10 steps, in segments of at most 5,000 parts. States are kept without
            the pairs of their lists, which are found again at the start of every shortest segment.
        reversible: the reverse pass undoes the steps, which are in whole numbers: memory of one step, for one more
            evaluation of the forces; of NVE, Nose-Hoover and Langevin, see :mod:`leignn_jax.differentiable.whole_numbers`.
        truncate: derivatives of what is observed go back so many steps, at most ``every``, and those of the last state.
        decay: they count ``decay`` times as much with every step back, in (0, 1].
        clip: per Å. The adjoint is shrunk until its norm by all positions of a replica is no larger, at every step.
            Each of these three gives a gradient that is biased: see :mod:`leignn_jax.differentiable.taming`.
        temperature, pressure: K and GPa, of an ensemble given by its name.
        max_temperature, max_step, max_distance: as in :func:`leignn_jax.simulate`; beyond them the rollout is not valid.

    Raises:
        ConfigError: steps, every and segment do not fit; the state was started with another ensemble, or with a model of
            a shorter cutoff.
    """
    check_model(model, "model")
    ensemble = make_ensemble(ensemble, temperature, pressure)
    check_call(model, ensemble, system, state, timestep, steps)
    check_whole("every", every, 1, MOST_STEPS)
    if steps % every:
        raise ConfigError(f"steps ({steps}) must be a positive multiple of every ({every}).")
    if observe is not None and not callable(observe):
        raise ConfigError(f"observe must be a function (system, state) -> arrays, not {type(observe).__name__}.")
    check_flag("reversible", reversible)
    if reversible and segment is not None:
        raise ConfigError("segment and reversible are two ways to need less memory: choose one of them.")
    if reversible and not isinstance(ensemble, InParts):
        raise ConfigError(
            f"{type(ensemble).__name__} can't be undone: reversible is for NVE, NoseHoover and Langevin, and for ensembles "
            "of one's own that give their step in parts. Use segment='recursive' (mode 'remat')."
        )
    _check_taming(truncate, decay, clip, every)
    limits = check_limits(max_temperature, max_step, max_distance)
    rounds = steps // every
    lengths, part = segment_lengths(rounds, segment, every), slots_together(segment, every)
    model = without_constants(model)
    # In the state's dtype: a number of float64 would take the state with it.
    kind = state.positions.dtype
    timestep = timestep.astype(kind) if isinstance(timestep, jax.core.Tracer) else np.asarray(timestep, kind)

    def watch(things, trouble, before, after):
        return watched(trouble, things["system"], before, after, things["center"], limits)

    if observe is None:
        look, hoisted = (lambda system, state: None), ()
    else:
        look, hoisted = jax.closure_convert(observe, system, state)

    def see(things, state):
        return look(things["system"], state, *things["hoisted"])

    def tame(things, moving, slot):
        if truncate is not None:
            moving = cut(moving, (slot - 1) % every == every - truncate)
        if decay is not None:
            moving = decayed(moving, jnp.where(slot > 0, things["decay"], 1.0))
        if clip is not None:
            moving = clipped(moving, things["clip"])
        return moving

    things = {
        "model": model,
        "ensemble": ensemble,
        "system": system,
        "timestep": timestep,
        "hoisted": hoisted,
        "center": jax.lax.stop_gradient(centers(system, state.positions)),
        "decay": decay,
        "clip": None if clip is None else jnp.asarray(clip, state.positions.dtype),
    }
    if reversible:
        state, trouble, seen = reversible_scan(tame, watch, things, state, rounds, every, see)
    else:

        def advance(carry, slot):
            before, trouble = carry
            tamed = before.replace(**tame(things, moving_of(before), slot))
            after = _one_step(things, tamed, slot > 0)
            return after, watch(things, trouble, before, after)

        def in_parts(part: int, one, carry, slots):
            (state, trouble), _ = _in_segments(one, _kept(carry), slots, (part,))
            return (state.replace(neighbors=jax.vmap(with_pairs)(state.neighbors)), trouble), None

        scan = jax.lax.scan if part is None else partial(in_parts, part)

        def one_round(carry, number):
            carry = over_slots(advance, carry, number, every, rounds * every, spare=spare > 0, scan=scan)
            return carry, see(things, carry[0])

        spare = -(rounds + 1) % (lengths[0] if lengths else 1)
        numbers = jnp.arange(rounds + 1 + spare)
        begin = (state, no_trouble(state.energy.shape[0]))
        if lengths:
            (state, trouble), seen = _in_segments(one_round, _kept(begin), numbers, lengths)
            state = state.replace(neighbors=jax.vmap(with_pairs)(state.neighbors))
        else:
            (state, trouble), seen = jax.lax.scan(one_round, begin, numbers)
        seen = jax.tree.map(lambda x: x[1 : rounds + 1], seen)

    valid = (trouble.step < 0).all()
    # A product, so that gradients are poisoned as well; a choice would make them zero.
    poison = jnp.where(valid, 1.0, jnp.nan)

    def poisoned(x):
        return x * poison.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    neighbors = state.neighbors
    state, seen = jax.tree.map(poisoned, (state.replace(neighbors=None), seen))
    return Rollout(state.replace(neighbors=neighbors), seen, valid, trouble)


def check_call(model: EnergyModel, ensemble: Ensemble, system: System, state: State, timestep: Any, steps: int) -> None:
    """ConfigError where these are not what a rollout can go on with."""
    if not isinstance(system, System) or not isinstance(state, State):
        raise ConfigError("system and state must be what `start` returns, in this order.")
    check_bath(ensemble, system, state)
    check_numbers(ensemble, system.numbers.shape[0])
    _check_momentum(model, ensemble, system)
    check_reach(model, state.neighbors, "start with a model of that cutoff, such as a sum")
    if not isinstance(timestep, jax.core.Tracer):
        check_number("timestep", timestep, positive=True)
    check_whole("steps", steps, 1, MOST_STEPS)


def _check_momentum(model: EnergyModel, ensemble: Ensemble, system: System) -> None:
    if isinstance(system.held_momentum, jax.core.Tracer) or not np.asarray(system.held_momentum).any():
        return
    if not (ensemble.holds_momentum and getattr(model, "conserves_momentum", True)):
        raise ConfigError(
            f"The state was started with an ensemble that keeps the total momentum, and {type(ensemble).__name__} (or the "
            "model) doesn't: temperatures and pressures would count too few motions. Give `start` the ensemble and the "
            "model of the rollout."
        )


def _check_taming(truncate, decay, clip, every: int) -> None:
    if truncate is not None:
        check_whole("truncate", truncate, 1, MOST_STEPS)
        if truncate > every:
            raise ConfigError(
                f"truncate ({truncate}) is at most every ({every}), so that each observation has steps of its own: "
                "observe less often, or use decay, which fades instead of cutting."
            )
    for name, value, most in (("decay", decay, 1.0), ("clip", clip, math.inf)):
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        check_number(name, value, positive=True)
        if float(value) > most:
            raise ConfigError(f"{name} is {value}, and at most {most:g}.")


def _one_step(things: dict[str, Any], state: State, going) -> State:
    """The state after a step; where not ``going``, with energy and forces of the model at the same positions."""
    model, ensemble, system, timestep = (things[name] for name in ("model", "ensemble", "system", "timestep"))
    begun, positions, before = ensemble.begin(system, state, timestep)
    begun, positions = either(going, (begun, positions), (state, state.positions))
    moved = move_to(model, system, begun, positions, begun.cell)
    return either(going, ensemble.finish(model, system, moved, timestep, before), moved)


def _in_segments(body, kept, numbers, lengths: tuple[int, ...]):
    """A scan in segments of ``lengths[0]``, each in segments of ``lengths[1]`` and so on, of which only starts are kept."""

    @jax.checkpoint
    def part(kept, numbers):
        if lengths[1:]:
            return _in_segments(body, kept, numbers, lengths[1:])
        state, trouble = kept
        whole = state.replace(neighbors=jax.vmap(with_pairs)(state.neighbors))
        carry, seen = jax.lax.scan(body, (whole, trouble), numbers)
        return _kept(carry), seen

    kept, seen = jax.lax.scan(part, kept, numbers.reshape(-1, lengths[0]))
    return kept, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)


def _kept(carry):
    """Of state and trouble, what is kept at the start of a segment."""
    state, trouble = carry
    return state.replace(neighbors=without_pairs(state.neighbors)), trouble


def segment_lengths(rounds: int, segment: Segment, every: int = 1) -> tuple[int, ...]:
    """Observations per segment, from the longest to the shortest; ConfigError where ``segment`` is none of those allowed."""
    if segment is None:
        return ()
    if isinstance(segment, str) and segment == "sqrt":
        return (max(1, math.isqrt(rounds)),)
    if isinstance(segment, str) and segment == "recursive":
        if (part := slots_together(segment, every)) is not None:
            # Rounds are in parts already; as many as those have at most are one segment.
            most = max(1, _PARTS * part // every)
            return () if rounds <= most else (most,)
        shortest = min(rounds, max(1, _SHORTEST // every))
        parts = -(-rounds // shortest)
        if parts == 1:
            return ()
        levels = math.ceil(math.log(parts) / math.log(_PARTS) - 1e-9)
        each = math.ceil(parts ** (1 / levels) - 1e-9)
        return tuple(shortest * each**level for level in reversed(range(levels)))
    given = segment if isinstance(segment, tuple) else (segment,)
    whole = bool(given) and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= rounds for n in given)
    if not whole or any(long % short for long, short in pairwise(given)):
        raise ConfigError(
            f"segment must be 'recursive', 'sqrt', a whole number from 1 to {rounds}, or several of which each is a "
            f"multiple of the next, not {segment!r}."
        )
    return given


def slots_together(segment: Segment, every: int) -> int | None:
    """Steps that are kept together of those of one round, where "recursive" is to have fewer than are between two
    observations; else None."""
    if not (isinstance(segment, str) and segment == "recursive") or every <= _SHORTEST:
        return None
    return max(n for n in range(1, _SHORTEST + 1) if every % n == 0)
