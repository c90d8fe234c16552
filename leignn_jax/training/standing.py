"""Where a training stands beside its state, and what it leaves of each member."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from leignn_jax.errors import TrainingError
from leignn_jax.potential import Potential


class Trained(NamedTuple):
    """A member after its training: the best of its epochs (None where it failed before any) and one row per epoch."""

    potential: Potential | None
    best_epoch: int
    history: list[dict[str, Any]]


@dataclasses.dataclass
class Standing:
    """Where a training stands beside its state: what a checkpoint's meta holds. Lists have one entry per member.

    epoch, next_step: epochs done, and steps of the next one.
    bests: loss and epoch of the best so far, epoch 0 where there is none. histories: one row per epoch.
    ended: whether it trains no more.
    began: the epoch after which it came; its own epochs count from there.
    tuner: what :meth:`leignn_jax.training.protocols.Tuner.memory` said.
    """

    epoch: int
    next_step: int
    bests: list[dict[str, Any]]
    histories: list[list[dict[str, Any]]]
    ended: list[bool]
    began: list[int]
    tuner: Any

    @classmethod
    def start(cls, members: int) -> Standing:
        everyone = range(members)
        return cls(0, 0, [_no_best() for _ in everyone], [[] for _ in everyone], [False] * members, [0] * members, None)

    @classmethod
    def read(cls, meta: Mapping[str, Any], where: Any) -> Standing:
        """Of a checkpoint's meta in the folder ``where``; TrainingError where an older version wrote it."""
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in meta]:
            raise TrainingError(
                f"{where}: its checkpoint is of another version of leignn_jax (it has no {missing[0]}). Go on with that "
                "version, or start in another run.out."
            )
        return cls(**{name: meta[name] for name in names})

    def epochs_judged(self, place: int) -> int:
        """How many epochs the last validation of a place's member judges: all since the one before it."""
        validated = (row["epoch"] for row in reversed(self.histories[place]) if row.get("validation_loss") is not None)
        last, before = next(validated, 0), next(validated, 0)
        return last - before

    def begin(self, place: int) -> None:
        """Another member begins at this place."""
        self.bests[place], self.histories[place] = _no_best(), []
        self.ended[place], self.began[place] = False, self.epoch


def _no_best() -> dict[str, Any]:
    return {"loss": math.inf, "epoch": 0}
