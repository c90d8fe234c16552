"""What a training loop is given: where it writes what must not be lost, and what a loss may have beside frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from leignn_jax.potential import Potential


class MoreTerms(Protocol):
    """What a loss has beside frames, such as :class:`leignn_jax.fitting.targets.Targets`."""

    def pull(self, potential: Potential, step: int) -> Any:
        """The gradient by the parameters of what is added to the loss of update ``step``."""

    def row(self, potential: Potential) -> dict[str, float]:
        """What an epoch's line says of it; "targets_loss" is added to the validation loss."""
        ...

    def memory(self) -> Any:
        """What a checkpoint holds of it, a pytree of arrays that keep their shapes."""

    def recall(self, memory: Any) -> None:
        """Go on from such a memory."""

    def report(self, potential: Potential, out: Any) -> tuple[list[str], dict[str, Any]]:
        """Of the best potential: parts of report.html, and numbers for metrics.json."""
        ...


class Keeper(Protocol):
    """Where a loop writes what must not be lost, such as :class:`leignn_jax.training.folder.RunFolder`; in processes that
    are not the first it does nothing."""

    path: Any
    mine: bool

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint, a tree like ``like``, and its meta; None where there is none."""

    def open_logs(self, histories: Sequence[list[dict[str, Any]]]) -> None:
        """Write down the epochs done, a list of rows for each member."""

    def log_epoch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add an epoch, a row for each member."""

    def save_checkpoint(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        """Keep arrays and plain JSON under a number that grows; TrainingError where the disk is full."""

    def save_potential(self, name: str, potential: Potential) -> None:
        """Write a potential's file."""

    def wait(self) -> None:
        """Until everything is on disk."""
