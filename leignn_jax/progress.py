"""The one progress bar: how much is done, the rate, the time left, and what else there is to say."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Between lines about long work where there is no terminal.
_LINE_SECONDS = 30.0


def is_shown(show: bool | None) -> bool:
    """``show`` itself; for None whether there is a terminal or a notebook to show it in."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules if show is None else show


class ProgressBar:
    """A bar on standard error while it is entered; nothing at all where it is not visible.

    Args:
        doing: what, in a word or two.
        total: of the work, None where it is not known.
        visible: whether it is there; see :func:`is_shown`.
        unit: what is counted, such as "steps"; "bytes" are shown as kB, MB, ...
        done: where an earlier run has left off.
    """

    def __init__(self, doing: str, total: int | None, visible: bool, *, unit: str = "steps", done: int = 0):
        self._bar: Any = None
        if not visible:
            return
        from rich import progress
        from rich.console import Console

        text = progress.TextColumn
        if unit == "bytes":
            counts = progress.DownloadColumn(), progress.TransferSpeedColumn()
        else:
            counts = progress.MofNCompleteColumn(), text(f"{{task.fields[rate]}} {unit}/s")
        self._bar = progress.Progress(
            text("{task.description}"),
            progress.BarColumn(),
            *counts,
            progress.TimeRemainingColumn(),
            text("{task.fields[facts]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(doing, total=total, completed=done, rate="–", facts="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def visible(self) -> bool:
        """Whether anybody sees it: what costs time to say may be left out where not."""
        return self._bar is not None

    @property
    def rate(self) -> float | None:
        """Units per second of late, None before it is known."""
        return None if self._bar is None else self._bar.tasks[0].speed

    def update(self, done: int, facts: str | None = None) -> None:
        """So much is done; ``facts`` stand beside the bar until there are new ones."""
        if self._bar is not None:
            fields = {} if facts is None else {"facts": facts}
            rate = "–" if self.rate is None else f"{self.rate:.3g}"
            self._bar.update(self._task, completed=done, rate=rate, **fields)

    def note(self, text: str) -> None:
        """A line above the bar, which stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)


def count_frames(frames: Iterable[T], doing: str, show: bool | None) -> Iterator[T]:
    """The same frames, counted with their rate: on a terminal as they come, elsewhere in a line now and then."""
    terminal, silent = show is not False and sys.stderr.isatty(), show is False
    started = said = time.monotonic()
    count = 0

    def say() -> None:
        rate = count / max(time.monotonic() - started, 1e-9)
        print(f"{doing}: {count} frames, {rate:.3g} frames/s", file=sys.stderr, flush=True)

    with ProgressBar(doing, None, terminal, unit="frames") as bar:
        for item in frames:
            yield item
            count += 1
            if count % 64 == 0:
                bar.update(count)
            if not (silent or terminal) and time.monotonic() - said > _LINE_SECONDS:
                say()
                said = time.monotonic()
        bar.update(count)
    if not (silent or terminal):
        say()
