"""A scan over steps whose reverse pass undoes them: its memory does not grow with their number.

The way there is in whole numbers (:mod:`leignn_jax.differentiable.whole_numbers`). The reverse pass takes the derivatives
of the ensemble's own step in floats, at the states that undoing meets: they are the gradient of the float trajectory, as
far as rounding to such small units lets the two be the same.

The forces are evaluated once for both. Going back, a turn begins at positions x_n with the velocities that follow the first
part of step n + 1. It takes the forces at x_n and what their derivative needs; undoes that first part, which leaves state
n; takes the derivatives of that part, of what was observed and of the last part of step n, and so has all that depended
on these forces; and undoes step n until the forces before are needed. Where the numbers at the start are missed by more
than rounding of a compiler that breaks the seal may explain, the gradient is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from leignn_jax.differentiable.floats import split_floats
from leignn_jax.differentiable.trouble import Trouble, no_trouble, outgrown
from leignn_jax.differentiable.whole_numbers import (
    back,
    either,
    evaluated,
    floats,
    forward,
    missed,
    partners_back,
    put_aside_after,
    start,
)
from leignn_jax.simulation.dynamics import State
from leignn_jax.simulation.ensembles import done

# Units by which numbers at the start may be missed: in float32 some 1e-4 Å of a box of 20 Å.
_TOLERATED = 1024
# What a model gives, and what a step changes and a gradient passes through.
_ANSWERS = ("energy", "forces", "stress")
_MOVING = ("positions", "velocities", "cell", "energy", "forces", "stress", "bath", "exchanged")


def scan(
    tame: Callable[..., dict[str, Any]],
    watch: Callable[..., Trouble],
    things: dict[str, Any],
    state: State,
    rounds: int,
    every: int,
    observe: Callable[..., Any],
) -> tuple[State, Any, Any]:
    """The state after ``rounds * every`` steps, the trouble on the way, and what was seen after every ``every`` of them.

    Args:
        tame: ``(things, moving, slot) -> moving``, the same numbers before step ``slot``, through which derivatives pass
            changed: see :mod:`leignn_jax.differentiable.taming`.
        watch: ``(things, trouble, before, after) -> trouble``; no gradient passes through it.
        things: model, ensemble (one in parts), system, timestep and what else the functions need; differentiable.
        observe: ``(things, state) -> pytree``; differentiable.
    """
    steps = rounds * every
    values, others, join = split_floats(things)
    # Here, where numbers that are known are no variables yet.
    put_aside = put_aside_after(things["ensemble"], things["timestep"])

    @jax.custom_vjp
    def run(values, others, moving, state):
        return there(values, others, moving, state)[0]

    def there(values, others, moving, state):
        things, state = join(values, others), state.replace(**moving)
        fixed, begun = start(things["ensemble"], things["system"], state, steps, put_aside)

        def one(carry, slot):
            here, state, trouble = carry
            going = slot > 0
            moved, after = forward(lambda v: join(v, others), values, fixed, here, state, going)
            return moved, after, watch(things, trouble, state, after)

        def one_round(carry, number):
            carry = over_slots(one, carry, number, every, steps)
            return carry, observe(things, carry[1])

        first = (begun, floats(fixed, begun.numbers, state), no_trouble(state.energy.shape[0]))
        (here, state, trouble), seen = jax.lax.scan(one_round, first, jnp.arange(rounds + 1))
        trouble = outgrown(trouble, here.kept, state.step)
        out = moving_of(state), state, trouble, jax.tree.map(lambda x: x[1:], seen)
        return out, (values, others, fixed, begun, here, state)

    def undone(kept, cotangents):
        values, others, fixed, begun, here, state = kept
        of_moving, _, _, of_seen = cotangents
        things = join(values, others)
        first, drift, last = things["ensemble"].parts(things["system"], things["timestep"])

        def pulled(function, state, of):
            """Cotangents of values and moving numbers, of those of ``function(things, state)``."""
            _, pull = jax.vjp(lambda v, m: function(join(v, others), state.replace(**m)), values, moving_of(state))
            return pull(of)

        def parts(which, going):
            """The moving numbers after the parts of a step, or the same where not ``going``."""

            def those_after(things, state):
                those = things["ensemble"].parts(things["system"], things["timestep"])[which]
                return moving_of(either(going, done(state, those), state))

            return those_after

        def tamed(slot, going):
            return lambda things, state: either(going, tame(things, moving_of(state), slot), moving_of(state))

        def one(carry, slot, of_seen):
            here, state, of_moving, of_things = carry
            is_last, going = slot == steps, slot > 0
            state, pull_answers = evaluated(lambda v: join(v, others), values, floats(fixed, here.numbers, state))

            here = either(is_last, here, back(fixed, first, here, state))
            state = floats(fixed, here.numbers, state)
            of_first, of_moving = pulled(parts(0, ~is_last), state, of_moving)
            of_tamed, of_moving = pulled(tamed(slot + 1, ~is_last), state, of_moving)

            def with_seen(of):
                return jax.tree.map(jnp.add, of, pulled(observe, state, of_seen))

            of = (of_tamed, of_moving)
            of = with_seen(of) if every == 1 else jax.lax.cond(slot % every == 0, with_seen, lambda of: of, of)

            ended = either(going, back(fixed, last, partners_back(fixed, here), state), here)
            state = floats(fixed, ended.numbers, state)
            of_last, of_moving = pulled(parts(2, going), state, of[1])
            of_answers = tuple(of_moving[name] for name in _ANSWERS)
            of_model, of_positions, of_cell = pull_answers(of_answers)
            of_moving |= {name: jnp.zeros_like(of_moving[name]) for name in _ANSWERS}
            of_moving |= {"positions": of_moving["positions"] + of_positions, "cell": of_moving["cell"] + of_cell}

            here = either(going, back(fixed, drift, ended, state), ended)
            state = floats(fixed, here.numbers, state)
            of_drift, of_moving = pulled(parts(1, going), state, of_moving)
            several = (of_things, of_first, of[0], of_last, of_model, of_drift)
            return here, state, of_moving, jax.tree.map(lambda *of: sum(of), *several)

        def one_round(carry, number_and_seen):
            number, of_seen = number_and_seen
            return over_slots(lambda c, n: one(c, n, of_seen), carry, number, every, steps, reverse=True), None

        zeros = jax.tree.map(jnp.zeros_like, values)
        of_seen = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), of_seen)
        carry = (here, state, of_moving, zeros)
        (here, state, of_moving, of_things), _ = jax.lax.scan(
            one_round, carry, (jnp.arange(rounds + 1), of_seen), reverse=True
        )
        of_tamed, of_moving = pulled(tamed(0, True), state, of_moving)
        of_things = jax.tree.map(jnp.add, of_things, of_tamed)
        poison = jnp.where(missed(begun, here) <= _TOLERATED, 1.0, jnp.nan)
        of_things, of_moving = jax.tree.map(lambda x: x * poison.astype(x.dtype), (of_things, of_moving))
        return of_things, None, of_moving, None

    run.defvjp(there, undone)
    moving, state, trouble, seen = run(values, others, moving_of(state), jax.lax.stop_gradient(state))
    return state.replace(**moving), trouble, seen


def over_slots(
    one: Callable[..., Any],
    carry,
    number,
    every: int,
    last: int,
    *,
    reverse: bool = False,
    spare: bool = False,
    scan: Callable[..., Any] = jax.lax.scan,
):
    """The carry after round ``number``, which ends with slot ``number * every``; those outside of 0 to ``last`` are none.

    spare: there are rounds after that of ``last``. scan: that of the slots, where it is another one.

    Slot n does step n. Slot 0 only takes energy and forces of the start, which belong to the model that is given and not
    to the one that the state was made with: it shares the program's one evaluation, whose compilation is what takes long.
    """
    slots = number * every + jnp.arange(1 - every, 1)
    if every == 1 and not spare:
        return one(carry, slots[0])

    def one_slot(carry, slot):
        there = (slot >= 0) & (slot <= last)
        return jax.lax.cond(there, one, lambda c, _: c, carry, slot), None

    return scan(one_slot, carry, jnp.flip(slots) if reverse else slots)[0]


def moving_of(state: State) -> dict[str, Any]:
    """What a step changes and a gradient passes through, by name."""
    return {name: getattr(state, name) for name in _MOVING}
