"""What a gradient will cost, before it is computed: memory and time of every mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from leignn_jax.arguments import MOST_STEPS, check_choice, check_whole
from leignn_jax.differentiable.floats import split_floats
from leignn_jax.differentiable.gradients import MODES, value_and_grad
from leignn_jax.differentiable.rollout import Segment, segment_lengths
from leignn_jax.errors import ConfigError

# Steps of the short rollouts that are timed, or as many as segments within segments need.
_STEPS = 20


class Estimate(NamedTuple):
    """Of one mode: ``memory`` bytes of scratch memory as compiled, ``seconds`` of one value and gradient."""

    memory: int
    seconds: float


def estimate(
    loss: Callable[..., Any],
    argument: Any,
    *,
    modes: Sequence[str] = tuple(MODES),
    segment: Segment = "recursive",
    inputs_at_once: int = 8,
    has_aux: bool = False,
    repeats: int = 3,
) -> dict[str, Estimate]:
    """Memory and time of ``value_and_grad(loss, mode)(argument)``, by mode, without computing it.

    Memory is that of the program, which is compiled for it. Time is that of a rollout of some 20 steps with the same loss,
    times as many steps; of "forward" of as many inputs as go side by side, times as many inputs. So it takes two
    compilations for each mode, and then a few times the time of 20 steps. Modes that the ensemble or the loss can't have
    are left out.

    Args:
        loss, segment, inputs_at_once, has_aux: of :func:`leignn_jax.differentiable.value_and_grad`.
        argument: that of the loss.
        modes: those to look at.
        repeats: timed runs, of which the median counts.

    Raises:
        ConfigError: as :func:`value_and_grad` and :func:`rollout`, where no mode can be; a loss that calls no rollout; an
            argument without floats.
    """
    check_whole("repeats", repeats, 1, 1000)
    check_whole("inputs_at_once", inputs_at_once, 1, MOST_STEPS)
    if isinstance(modes, str) or not isinstance(modes, Sequence) or not modes:
        raise ConfigError(f"modes must be several of {', '.join(MODES)}, such as ('reverse', 'remat'), not {modes!r}.")
    for mode in modes:
        check_choice("modes", mode, MODES)
    found, refused = {}, None
    for mode in modes:
        try:
            found[mode] = _of_mode(loss, argument, mode, segment, inputs_at_once, has_aux, repeats)
        except ConfigError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found


def _of_mode(loss, argument, mode, segment, inputs_at_once, has_aux, repeats) -> Estimate:
    whole = value_and_grad(loss, mode, segment=segment, inputs_at_once=inputs_at_once, has_aux=has_aux)
    values, others, join = split_floats(argument)
    if not values:
        raise ConfigError("The argument has no floats to differentiate by.")
    memory = _scratch_memory(whole, argument)
    evaluations = {"whole": 0, "short": 0}

    def short_loss(argument, rollout):
        def shorter(model, ensemble, system, state, timestep, steps, **settings):
            run, length = _shortened(rollout, steps, settings, segment if mode == "remat" else None)
            # Slot 0 evaluates the forces of the start.
            evaluations["whole"] += steps + 1
            evaluations["short"] += length + 1
            return run(model, ensemble, system, state, timestep)

        return loss(argument, shorter)

    batches, given, of_given = 1, argument, short_loss
    if mode == "forward":
        # Only as many inputs as go side by side: the others take as long each.
        flat, restore = ravel_pytree(values)
        few = min(inputs_at_once, flat.shape[0])
        batches, given = flat.shape[0] / few, flat[:few]

        def of_few(start, rollout):
            return short_loss(join(restore(flat.at[:few].set(start)), others), rollout)

        of_given = of_few

    short = value_and_grad(of_given, mode, segment=segment, inputs_at_once=inputs_at_once, has_aux=has_aux)
    seconds = _seconds(short, given, repeats)
    if not evaluations["short"]:
        raise ConfigError(
            "The loss has not called the rollout that it was given, whose steps are what a gradient costs."
        )
    return Estimate(memory, seconds * batches * evaluations["whole"] / evaluations["short"])


def _shortened(rollout: Callable[..., Any], steps: int, settings: dict[str, Any], segment: Segment):
    """A rollout of few steps that returns arrays of the same shapes, and how many steps it does."""
    settings = dict(settings)
    every = settings.get("every", 1)
    rounds = steps // every
    lengths = segment_lengths(rounds, settings.get("segment", segment), every)
    often = min(every, _STEPS)
    few = min(rounds, max(1, _STEPS // often))
    if lengths:
        shortest = min(lengths[-1], max(1, _STEPS // 2 // often))
        few = min(rounds, shortest * 2 ** len(lengths))
        settings["segment"] = tuple(min(few, shortest * 2**level) for level in reversed(range(len(lengths))))
    settings["every"] = often
    if settings.get("truncate") is not None:
        settings["truncate"] = min(settings["truncate"], often)

    def run(model, ensemble, system, state, timestep):
        out = rollout(model, ensemble, system, state, timestep, few * often, **settings)
        again = jnp.arange(rounds) % few
        return out._replace(seen=jax.tree.map(lambda x: x[again], out.seen))

    return run, few * often


def _scratch_memory(function, argument) -> int:
    return function.lower(argument).compile().memory_analysis().temp_size_in_bytes


def _seconds(function, argument, repeats: int) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - begun)
    return float(np.median(times))
