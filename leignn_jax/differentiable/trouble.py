"""What went wrong first in each replica of a rollout, and when; kept along the way at the cost of three whole numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.errors import SimulationError
from leignn_jax.list_sizes import OVERFLOW_BIN, OVERFLOW_GRID, OVERFLOW_NEIGHBORS, OVERFLOW_PAIRS
from leignn_jax.simulation.chunks import REASONS, Limits, broken
from leignn_jax.simulation.dynamics import State, System

_LISTS = {
    OVERFLOW_BIN: "atoms in a bin",
    OVERFLOW_NEIGHBORS: "neighbors of an atom",
    OVERFLOW_PAIRS: "pairs",
    OVERFLOW_GRID: "bins, as the cell has changed",
}
_OUTGROWN = max(REASONS) + 1
_WORDS = REASONS | {_OUTGROWN: "a number outgrew the whole numbers in which steps are undone"}


class Trouble(NamedTuple):
    """Of each replica, ``[replicas]`` int32. A pytree.

    step: of the state in which there was trouble first; -1 where there was none.
    reason: 0, or why it could not go on, as in :data:`leignn_jax.simulation.chunks.REASONS`.
    overflow: 0, or the bits of what its list had no room for, as in :class:`leignn_jax.device_neighbors.NeighborList`.
    """

    step: Any
    reason: Any
    overflow: Any


def no_trouble(replicas: int) -> Trouble:
    """Before the first step."""
    zero = jnp.zeros(replicas, jnp.int32)
    return Trouble(zero - 1, zero, zero)


def watched(trouble: Trouble, system: System, before: State, after: State, center, limits: Limits) -> Trouble:
    """With what a step brought; no gradient passes through it."""
    before, after = jax.lax.stop_gradient((before, after))
    reason = broken(system, before, after, center, limits)
    return _first(trouble, after.step, reason, after.neighbors.overflow)


def outgrown(trouble: Trouble, kept, step) -> Trouble:
    """With steps that can't be undone where not ``kept``, which is known at the end only."""
    reason = jnp.where(kept, 0, _OUTGROWN).astype(jnp.int32)
    return _first(trouble, step, jnp.broadcast_to(reason, trouble.reason.shape), jnp.zeros_like(trouble.overflow))


def _first(trouble: Trouble, step, reason, overflow) -> Trouble:
    now = (trouble.step < 0) & ((reason != 0) | (overflow != 0))
    return Trouble(*(jnp.where(now, new, old) for new, old in zip((step, reason, overflow), trouble, strict=True)))


def explained(trouble: Trouble) -> str | None:
    """In words: the replica, the step, the list or the limit, and the remedy; None where all went well. On the host."""
    step, reason, overflow = (np.asarray(x) for x in trouble)
    bad = np.flatnonzero(step >= 0)
    if not len(bad):
        return None
    # The earliest is the cause of what follows.
    r = int(bad[np.argmin(step[bad])])
    others = f" ({len(bad)} of {len(step)} replicas had trouble.)" if len(bad) > 1 else ""
    where = f"Replica {r}, step {int(step[r])}: "
    if overflow[r]:
        full = ", ".join(word for bit, word in _LISTS.items() if overflow[r] & bit)
        remedy = (
            f"Start with larger lists: start(..., sizes=grown(state.neighbors.sizes, {int(overflow[r])}, atoms)), with "
        )
        return f"{where}its neighbour list has no room for {full}. {remedy}grown of leignn_jax.list_sizes.{others}"
    remedy = "Use a smaller timestep or another start, or, where it is meant to be so, a wider limit."
    if reason[r] == _OUTGROWN:
        remedy = "Take fewer steps or mode 'remat'."
    return f"{where}{_WORDS[int(reason[r])]}. {remedy}{others}"


def check(rollout: Any) -> None:
    """Raise where a rollout is not valid, on the host; a compiled program can only return NaN.

    Args:
        rollout: what :func:`leignn_jax.differentiable.rollout` gave, from outside of jit.

    Raises:
        SimulationError: names the replica, the step, the list or limit, and what to do.
    """
    words = explained(rollout.trouble)
    if words is not None:
        raise SimulationError(words)
