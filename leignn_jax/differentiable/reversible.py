"""A scan over steps whose reverse pass undoes them: its memory does not grow with their number.

The way there is in whole numbers (:mod:`leignn_jax.differentiable.whole_numbers`). The reverse pass takes the derivatives
of the ensemble's own step in floats, at the states that undoing meets: they are the gradient of the float trajectory, as
far as rounding to such small units lets the two be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from leignn_jax.differentiable.floats import split_floats
from leignn_jax.differentiable.trouble import Trouble, no_trouble, outgrown
from leignn_jax.differentiable.whole_numbers import backward, floats, forward, put_aside_after, start
from leignn_jax.simulation.dynamics import State

# What a step changes and a gradient passes through.
_MOVING = ("positions", "velocities", "cell", "energy", "forces", "stress", "bath", "exchanged")


def scan(
    advance: Callable[..., State],
    watch: Callable[..., Trouble],
    things: dict[str, Any],
    state: State,
    rounds: int,
    every: int,
    observe: Callable[..., Any],
) -> tuple[State, Any, Any]:
    """The state after ``rounds * every`` steps, the trouble on the way, and what was seen after every ``every`` of them.

    Args:
        advance: ``(things, state, slot) -> state`` after a step in floats; in slot 0 with energy and forces of the same
            positions.
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
        model, ensemble, system, timestep = (things[name] for name in ("model", "ensemble", "system", "timestep"))
        fixed, here = start(system, state, steps, put_aside)

        def one(carry, slot):
            here, state, trouble = carry
            going = slot > 0
            moved, after = forward(model, ensemble, system, fixed, here, state, timestep, going)
            return moved, after, watch(things, trouble, state, after)

        def one_round(carry, number):
            carry = over_slots(one, carry, number, every, steps)
            return carry, observe(things, carry[1])

        begin = (here, floats(fixed, here.numbers, state), no_trouble(state.energy.shape[0]))
        (here, state, trouble), seen = jax.lax.scan(one_round, begin, jnp.arange(rounds + 1))
        trouble = outgrown(trouble, here.kept, state.step)
        out = moving_of(state), state, trouble, jax.tree.map(lambda x: x[1:], seen)
        return out, (values, others, fixed, here, state)

    def back(kept, cotangents):
        values, others, fixed, here, state = kept
        of_moving, _, _, of_seen = cotangents
        things = join(values, others)
        model, ensemble, system, timestep = (things[name] for name in ("model", "ensemble", "system", "timestep"))

        def one(carry, slot):
            here, state, of_moving, of_things = carry
            going = slot > 0
            here, before = backward(model, ensemble, system, fixed, here, state, timestep, going)

            def step(values, moving):
                return moving_of(advance(join(values, others), before.replace(**moving), slot))

            _, pull = jax.vjp(step, values, moving_of(before))
            more, of_moving = pull(of_moving)
            return here, before, of_moving, jax.tree.map(jnp.add, of_things, more)

        def one_round(carry, number_and_seen):
            number, of_seen = number_and_seen
            here, state, of_moving, of_things = carry

            def look(values, moving):
                return observe(join(values, others), state.replace(**moving))

            _, pull = jax.vjp(look, values, moving_of(state))
            more, of_look = pull(of_seen)
            carry = (here, state, *jax.tree.map(jnp.add, (of_moving, of_things), (of_look, more)))
            return over_slots(one, carry, number, every, steps, reverse=True), None

        zeros = jax.tree.map(jnp.zeros_like, values)
        of_seen = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x]), of_seen)
        carry = (here, state, of_moving, zeros)
        (_, _, of_moving, of_things), _ = jax.lax.scan(
            one_round, carry, (jnp.arange(rounds + 1), of_seen), reverse=True
        )
        return of_things, None, of_moving, None

    run.defvjp(there, back)
    moving, state, trouble, seen = run(values, others, moving_of(state), jax.lax.stop_gradient(state))
    return state.replace(**moving), trouble, seen


def over_slots(one: Callable[..., Any], carry, number, every: int, last: int, *, reverse: bool = False, spare=False):
    """The carry after round ``number``, which ends with slot ``number * every``; those outside of 0 to ``last`` are none.

    spare: there are rounds after that of ``last``.

    Slot n does step n. Slot 0 only takes energy and forces of the start, which belong to the model that is given and not
    to the one that the state was made with: it shares the program's one evaluation, whose compilation is what takes long.
    """
    slots = number * every + jnp.arange(1 - every, 1)
    if every == 1 and not spare:
        return one(carry, slots[0])

    def one_slot(carry, slot):
        there = (slot >= 0) & (slot <= last)
        return jax.lax.cond(there, one, lambda c, _: c, carry, slot), None

    return jax.lax.scan(one_slot, carry, slots, reverse=reverse)[0]


def moving_of(state: State) -> dict[str, Any]:
    """What a step changes and a gradient passes through, by name."""
    return {name: getattr(state, name) for name in _MOVING}
