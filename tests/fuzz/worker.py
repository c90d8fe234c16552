"""Runs cases in this process, one after another, and says what came of each, a line of JSON for a line of JSON.

Run as ``python -m fuzz.worker SEED`` with ``tests`` on the path.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.cases import Target, difference, targets, trial_of

# Beyond what the imported packages take.
MEMORY = 4 << 30


def outcome(identity: str, seed: int, known: dict[str, Target], tell: Callable[[str], None]) -> dict[str, Any]:
    """What comes of a case: its class, and words; ``tell`` hears what it is before it is tried."""
    from leignn_jax.errors import LeignnError

    told = (LeignnError, FileNotFoundError, FileExistsError, *known[identity.split(":")[0]].told)
    with tempfile.TemporaryDirectory(prefix="fuzz.") as place, contextlib.chdir(place):
        try:
            trial = trial_of(identity, seed, Path(place), known)
        except Exception:
            # The fuzzer's own mistake, which must not look like the package's.
            return {"case": identity, "class": "not made", "words": traceback.format_exc()}
        found: dict[str, Any] = {"case": identity, "what": trial.what}
        tell(trial.what)
        try:
            numbers = trial.use()
        except told as error:
            words = str(error)
            if len(words.split()) < 3:
                return {**found, "class": "raw", "words": f"says only {words!r}"}
            return {**found, "class": "told" if trial.expect.refuse else "refused", "words": words[:400]}
        except BaseException as error:
            frame = next(
                (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "leignn_jax" in f.filename), None
            )
            where = "" if frame is None else f" ({Path(frame.filename).name}: {frame.name})"
            return {**found, "class": "raw", "words": f"{type(error).__name__}: {str(error)[:200]}{where}"}
        if not trial.expect.accept:
            return {**found, "class": "wrong", "words": " ".join(f"accepted: {numbers!r:.200}".split())}
        right = trial.unbroken() if trial.expect.numbers is None else trial.expect.numbers
        apart = difference(numbers, right, trial.expect.tolerance)
        return {**found, "class": "right" if apart is None else "wrong", "words": apart or ""}


def limit_memory(size: int) -> None:
    """Let this process take so many bytes more than it has now, leave no core, and no file of more than a GiB.

    Of data, not of addresses: LMDB maps a TiB.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def main(seed: int) -> None:
    """Answer until the other side is gone."""
    # What libraries print must not mix with answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    known = targets()
    limit_memory(MEMORY)

    def say(one: Any) -> None:
        print(json.dumps(one), file=answers, flush=True)

    say("ready")
    for done, line in enumerate(sys.stdin):
        say(outcome(json.loads(line), seed, known, say))
        if done % 100 == 99:
            gc.collect()


if __name__ == "__main__":
    main(int(sys.argv[1]))
