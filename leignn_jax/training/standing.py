"""Where a training stands beside its state, and what it leaves of each member."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from leignn_jax.potential import Potential


class Trained(NamedTuple):
    """A member after its training: the best of its epochs (None where it failed before any) and one row per epoch."""

    potential: Potential | None
    best_epoch: int
    history: list[dict[str, Any]]


@dataclasses.dataclass
class Standing:
    """Where a training stands beside its state: what a checkpoint's meta holds. Lists have one entry per member."""

    epoch: int
    next_step: int
    bests: list[dict[str, Any]]
    histories: list[list[dict[str, Any]]]
    ended: list[bool]

    @classmethod
    def start(cls, members: int) -> Standing:
        bests = [{"loss": math.inf, "epoch": -1} for _ in range(members)]
        return cls(0, 0, bests, [[] for _ in range(members)], [False] * members)
