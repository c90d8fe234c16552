"""What a gradient will cost, before it is computed: memory and time of every mode from one step."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.arguments import MOST_STEPS, check_model, check_whole
from leignn_jax.differentiable.rollout import Segment, check_call, segment_lengths
from leignn_jax.simulation.dynamics import EnergyModel, State, System
from leignn_jax.simulation.ensembles import Ensemble, InParts
from leignn_jax.simulation.model_sums import without_constants
from leignn_jax.simulation.settings import make_ensemble


class Estimate(NamedTuple):
    """Of one mode: ``memory`` bytes kept for the reverse pass, ``seconds`` of one gradient, both from one step."""

    memory: int
    seconds: float


def estimate(
    model: EnergyModel,
    ensemble: Ensemble | str,
    system: System,
    state: State,
    timestep: float,
    steps: int,
    *,
    inputs: int = 1,
    segment: Segment = "recursive",
    repeats: int = 3,
    temperature: Any = None,
    pressure: Any = None,
) -> dict[str, Estimate]:
    """Memory and time of a gradient through ``steps`` steps, by mode; takes the time of a few steps and two compilations.

    Args:
        model, ensemble, system, state, timestep, steps: of the rollout.
        inputs: numbers to differentiate by, which is what forward mode's time depends on.
        segment: of mode "remat".
        repeats: timed steps, of which the median counts.
        temperature, pressure: K and GPa, of an ensemble given by its name.

    Raises:
        ConfigError: as :func:`rollout`.
    """
    check_model(model, "model")
    ensemble = make_ensemble(ensemble, temperature, pressure)
    check_call(ensemble, system, state, timestep, steps)
    check_whole("inputs", inputs, 1, MOST_STEPS)
    check_whole("repeats", repeats, 1, 1000)
    # Parts of each level, and steps of the shortest segment.
    lengths = (steps, *segment_lengths(steps, segment))
    parts = sum(-(-long // short) for long, short in pairwise(lengths))
    model = without_constants(model)

    def step(model: Any, moving):
        after = ensemble.step(model, system, state.replace(**moving), timestep)
        return {name: getattr(after, name) for name in moving}

    moving = {name: getattr(state, name) for name in ("positions", "velocities", "forces", "cell")}

    def kept(model, moving):
        return jax.vjp(step, model, moving)[1]

    residuals = _bytes(jax.eval_shape(kept, model, moving)) - _bytes(model)
    carried = _bytes(jax.tree.map(jnp.asarray, state.replace(key=None)))

    def backward(model, moving):
        out, pull = jax.vjp(step, model, moving)
        return pull(jax.tree.map(jnp.ones_like, out))

    forward_seconds = _seconds(jax.jit(step), model, moving, repeats)
    both_seconds = _seconds(jax.jit(backward), model, moving, repeats)
    per_step = max(residuals, 0) + carried
    # There in whole numbers, undone, and the derivative of the step between.
    undone = Estimate(per_step + 4 * carried, steps * (both_seconds + 2 * forward_seconds))
    return {
        "reverse": Estimate(steps * per_step, steps * both_seconds),
        "remat": Estimate(
            parts * carried + lengths[-1] * per_step, steps * (both_seconds + (len(lengths) - 1) * forward_seconds)
        ),
        **({"reversible": undone} if isinstance(ensemble, InParts) else {}),
        "forward": Estimate(2 * carried, steps * forward_seconds * (1 + 2 * inputs)),
    }


def _bytes(tree) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def _seconds(function, model, moving, repeats: int) -> float:
    jax.block_until_ready(function(model, moving))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(model, moving))
        times.append(time.perf_counter() - begun)
    return float(np.median(times))
