"""SIGTERM and Ctrl-C as a request to stop at the next good moment, and how far apart these are."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

# Atoms times steps that a CPU computes between two looks at the host: 3 to 15 s of a small model.
_ON_CPU = 50_000


class StopRequest(threading.Event):
    """Set by a signal; ``signal`` is its name, such as "SIGINT", None before and where another process was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.signal: str | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """An event that SIGTERM and a first Ctrl-C set instead of killing; a second Ctrl-C interrupts at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def steps_at_once(most: int, atoms: int) -> int:
    """Steps of a compiled chunk of so many atoms, after which the bar moves and a signal is obeyed: at most ``most``, and on
    a CPU fewer of a large system."""
    return most if jax.default_backend() != "cpu" else max(1, min(most, _ON_CPU // max(1, atoms)))


def exit_code(name: str | None) -> int:
    """What a process that a signal has stopped exits with: 128 and the signal's number; 143, SIGTERM's, without a name."""
    return 128 + (signal.SIGTERM if name is None else signal.Signals[name])
