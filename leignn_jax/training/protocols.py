"""What a training loop is given: where it writes what must not be lost, and what a loss may have beside frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from leignn_jax.potential import Potential
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.standing import Standing, Trained


class Change(NamedTuple):
    """A place of a population for a member with another config: one that begins, or one that goes on with the parameters
    and everything else that the member at ``source`` has learned."""

    place: int
    config: TrainConfig
    source: int | None = None


class Tuner(Protocol):
    """What decides after every epoch which members of a population go on, such as
    :class:`leignn_jax.sweeps.places.Places`. Of several processes each has one, and all must decide alike."""

    def begin(self, standing: Standing) -> None:
        """Before the first step."""

    def judges(self, standing: Standing) -> bool:
        """Whether it will decide by validation errors after the epoch under way, which must then be validated."""
        ...

    def decide(self, standing: Standing, trained: Callable[[int], Trained]) -> list[Change]:
        """After an epoch: end members (``standing.ended``), write down what became of those that ended, and fill places
        anew. ``trained`` gives what a place's member has come to."""
        ...

    def memory(self) -> Any:
        """What a checkpoint holds of it, plain JSON."""

    def recall(self, memory: Any) -> list[TrainConfig]:
        """Go on from such a memory; the configs of the places."""
        ...

    def epochs_left(self, standing: Standing) -> int:
        """About how many epochs are still to come."""
        ...


class MoreTerms(Protocol):
    """What a loss has beside frames, such as :class:`leignn_jax.fitting.targets.Targets`."""

    def files(self) -> dict[str, str]:
        """sha256 of the files that it goes by, by what they are."""
        ...

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
