"""What a case is, what it must come to, and which cases there are."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# How a case can end. "right": accepted with the right numbers; "told": an error in words, where one is allowed; "wrong":
# accepted with other numbers; "refused": an error where there is nothing wrong; "crashed": the process died; "hung": over
# its time; "raw": an exception that is not made for people.
CLASSES = ("right", "told", "wrong", "refused", "crashed", "hung", "raw")
BAD = CLASSES[2:]


class Expect(NamedTuple):
    """What a use must come to.

    accept, refuse: which of both is allowed.
    numbers: what an accepted one must give; None is what the unbroken thing gives. A list of dicts under "any of" is a
        choice.
    tolerance: relative, and absolute by the same number.
    """

    accept: bool
    refuse: bool
    numbers: Any = None
    tolerance: float = 1e-6

    def giving(self, numbers: Any) -> Expect:
        """The same where an accepted one gives these numbers."""
        return self._replace(numbers=numbers)

    def within(self, tolerance: float) -> Expect:
        """The same with this tolerance."""
        return self._replace(tolerance=tolerance)


REFUSE, SAME, EITHER = Expect(False, True), Expect(True, False), Expect(True, True)


class AnyOf(NamedTuple):
    """Several right answers."""

    choices: Sequence[Any]


class Anything:
    """Whatever comes: what must hold is that nothing worse than an error in words happens."""

    def __repr__(self) -> str:
        return "anything"


ANYTHING = EITHER.giving(Anything())


class Trial(NamedTuple):
    """A broken thing, ready to be used: ``use`` gives its numbers or raises; ``unbroken`` gives those that are right."""

    use: Callable[[], Any]
    expect: Expect
    unbroken: Callable[[], Any] = lambda: None
    what: str = ""


class Target(NamedTuple):
    """One kind of thing and the ways to break it, by name; each makes a trial in an empty folder.

    share: how many of its cases come in one round of all targets. seconds: that one may compute. told: exceptions that are
        words there beside the package's own.
    """

    name: str
    attacks: Mapping[str, Callable[[random.Random, Path], Trial]]
    share: int = 3
    seconds: float = 30.0
    told: tuple[type[BaseException], ...] = ()


_ROOMS = (
    "data_text",
    "data_arrays",
    "data_libraries",
    "labels",
    "potentials",
    "own_files",
    "trajectories",
    "settings",
    "studies",
    "command_line",
    "structures",
    "calls",
    "analyses",
)


def targets() -> dict[str, Target]:
    """All targets by name; names, also those of attacks, are words that a shell takes as they are."""
    found = [one for room in _ROOMS for one in importlib.import_module(f"fuzz.{room}").TARGETS]
    return {
        _word(one.name): one._replace(name=_word(one.name), attacks={_word(k): v for k, v in one.attacks.items()})
        for one in found
    }


def _word(name: str) -> str:
    return name.replace(" ", "-")


def identities(count: int, known: Mapping[str, Target]) -> Iterator[str]:
    """The first ``count`` cases, "target:attack:number": in turn of every target, each time its next attacks."""
    turn = given = 0
    while True:
        for target in known.values():
            names = list(target.attacks)
            for place in range(turn * target.share, (turn + 1) * target.share):
                if given == count:
                    return
                yield f"{target.name}:{names[place % len(names)]}:{place // len(names)}"
                given += 1
        turn += 1


def trial_of(identity: str, seed: int, folder: Path, known: Mapping[str, Target]) -> Trial:
    """The trial of a case in this folder; the same numbers at random for the same seed and identity."""
    name, attack, _ = identity.split(":")
    return known[name].attacks[attack](random.Random(f"{seed}:{identity}"), folder)


def difference(found: Any, right: Any, tolerance: float, place: str = "") -> str | None:
    """Where two nests of dicts, sequences, arrays and words differ, None where they don't."""
    if isinstance(right, Anything):
        return None
    if isinstance(right, AnyOf):
        all_of_them = [difference(found, one, tolerance, place) for one in right.choices]
        return None if None in all_of_them else all_of_them[0] if all_of_them else "nothing is right"
    if isinstance(right, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(right):
            return f"{place}: keys {sorted(map(str, found)) if isinstance(found, Mapping) else found!r:.80}"
        return next((d for k in right if (d := difference(found[k], right[k], tolerance, f"{place}.{k}"))), None)
    if isinstance(right, list | tuple) and not _is_numbers(right):
        if not isinstance(found, list | tuple) or len(found) != len(right):
            return (
                f"{place}: {len(found) if isinstance(found, list | tuple) else found!r:.80} entries, not {len(right)}"
            )
        pairs = enumerate(zip(found, right, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, tolerance, f"{place}[{i}]"))), None)
    if type(right) in (int, float) and type(found) in (int, float):
        near = (
            found == right or abs(found - right) <= tolerance * (1 + abs(right)) or (found != found and right != right)
        )
        return None if near else f"{place}: {found} instead of {right}"
    if right is None or isinstance(right, str | bool):
        return None if found is right or (type(found) is type(right) and found == right) else f"{place}: {found!r:.80}"
    try:
        a, b = np.asarray(found), np.asarray(right)
        if a.shape != b.shape or a.dtype.kind not in "iufbc":
            return f"{place}: shape {a.shape} {a.dtype}, not {b.shape}"
        close = np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    except (TypeError, ValueError):
        return f"{place}: {found!r:.80}"
    if close.all():
        return None
    at = tuple(int(i) for i in np.argwhere(~close)[0])
    return f"{place}{list(at)}: {a[at]} instead of {b[at]}"


def _is_numbers(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
