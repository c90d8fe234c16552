"""Gives cases to workers, ends those that hang, starts new ones for those that died, and counts."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuzz.cases import BAD, CLASSES, targets

_TESTS = Path(__file__).parents[1]
# Seconds of processor time that imports may take.
_START = 60.0
# How many times longer than it computes a case may take on a busy machine.
_PATIENCE = 10.0


class Worker:
    """A process that answers cases."""

    def __init__(self, seed: int):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")]),
            "JAX_PLATFORMS": "cpu",
            "MPLBACKEND": "agg",
            # Programs are used once or twice: what counts is how soon they are there.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(_TESTS.parent / ".jax_cache"))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by end)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Without a buffer, in which a second line would wait unseen.
            bufsize=0,
            stderr=self._errors,
            env=environment,
        )
        if not self._line(_START):
            raise RuntimeError(f"A worker does not start: {self._last_words()}")

    def _line(self, seconds: float) -> str | None:
        """The next line, empty where the process is gone; None where it has computed for longer than this."""
        out = self._process.stdout
        assert out is not None
        # By the processor's time, so that a busy machine does not look like a hang; one that waits for ever ends too.
        end, begun = time.monotonic() + _PATIENCE * seconds, self._computed()
        while time.monotonic() < end and self._computed() - begun < seconds:
            if select.select([out], [], [], 0.2)[0]:
                return out.readline().decode()
        return None

    def _computed(self) -> float:
        """Seconds of processor time that the process has taken."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-600:].decode(errors="replace")

    def ask(self, identity: str, seconds: float) -> dict[str, Any]:
        """What came of a case; the worker is gone where that is a crash or a hang."""
        stream = self._process.stdin
        assert stream is not None
        begun = time.monotonic()
        stream.write(f"{json.dumps(identity)}\n".encode())
        line, what = self._line(seconds), ""
        if line and isinstance(said := json.loads(line), str):
            what, line = said, self._line(seconds)
        taken = round(time.monotonic() - begun, 2)
        if line:
            found = json.loads(line)
            if found["class"] not in CLASSES:
                raise RuntimeError(f"{identity} can't be made: {found['words']}")
            return {**found, "seconds": taken}
        found = {"case": identity, "what": what, "seconds": taken}
        if line is None:
            self.end()
            return {**found, "class": "hung", "words": f"over {seconds:g} s"}
        # The end of its answers comes a moment before its own.
        code = self._process.wait(60.0)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.end()
        return {**found, "class": "crashed", "words": name}

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def run(
    cases: Sequence[str], *, seed: int = 0, workers: int = 1, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """What came of these cases, in their order; ``tell`` hears of each as it ends."""
    known = targets()
    left = iter(list(enumerate(cases)))
    found: list[dict[str, Any]] = [{}] * len(cases)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        worker = None
        try:
            while True:
                with lock:
                    place, identity = next(left, (None, ""))
                if place is None:
                    return
                if worker is None or not worker.alive:
                    worker = Worker(seed)
                one = worker.ask(identity, known[identity.split(":")[0]].seconds)
                with lock:
                    found[place] = one
                    tell(one)
        except BaseException as error:
            failures.append(error)
        finally:
            if worker is not None and worker.alive:
                worker.end()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Classes by target, as Markdown."""
    by_target: dict[str, Counter[str]] = {}
    for one in found:
        by_target.setdefault(one["case"].split(":")[0], Counter())[one["class"]] += 1
    lines = [f"| target | cases | {' | '.join(CLASSES)} |", f"|---|{'---:|' * (len(CLASSES) + 1)}"]
    total: Counter[str] = sum(by_target.values(), Counter())
    for name, counts in [*by_target.items(), ("**all**", total)]:
        lines.append(f"| {name} | {counts.total()} | {' | '.join(str(counts[c] or '') for c in CLASSES)} |")
    return "\n".join(lines)


def failures(found: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each case that came to no good end, and how to run it alone."""
    return [
        f"{one['case']}  {one['class']}: {one['words']}  [{one.get('what', '')}]  python tests/fuzz {one['case']}"
        for one in found
        if one["class"] in BAD
    ]
