"""What decides between the epochs of a population who goes on: places filled by a search's next trials, and evolution."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from leignn_jax.processes import from_first, together
from leignn_jax.sweeps.ledger import Ledger, Member
from leignn_jax.sweeps.space import COST, Range, StudyConfig, config_of, is_number
from leignn_jax.sweeps.trials import Trials
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.protocols import Change
from leignn_jax.training.standing import Standing, Trained

log = logging.getLogger("leignn_jax")


class Places:
    """A population of a search: who has trained long enough, diverged or done badly at a rung gives way to the next trial.

    See :class:`leignn_jax.training.protocols.Tuner`.

    Args:
        study: what is searched.
        ledger: what becomes of its members is written there.
        trials: where they are asked for; None in processes that are not the first.
        first: the number of its first member.
        size: places.
        most: trials for this population.
    """

    def __init__(self, study: StudyConfig, ledger: Ledger, trials: Trials | None, first: int, size: int, most: int):
        self.study, self.ledger, self.trials = study, ledger, trials
        self.next, self.last = first, first + most
        self.numbers: list[int | None] = [None] * size
        # The settings that all members have alike, since they decide the shape; and what its evaluation takes.
        self.fixed: dict[str, Any] = {}
        self.cost: float | None = None

    def fill(self) -> list[TrainConfig]:
        """Ask for as many members as there are places; the first decides the shape of all. Their configs, the last one's
        for places that stay empty; none where there are no more trials. All processes must call it."""
        for place in range(len(self.numbers)):
            number = self.numbers[place] = self._ask()
            if number is None:
                break
            self._fix(self.ledger.members[number])
        members = [self.ledger.members[n] for n in self.numbers if n is not None]
        return [m.config for m in members] + [m.config for m in members[-1:]] * (len(self.numbers) - len(members))

    def _fix(self, member: Member) -> None:
        self.fixed = {name: value for name, value in member.settings.items() if not is_number(name)}

    def _ask(self) -> int | None:
        """The number of the next member; None where there is none."""
        if self.next >= self.last:
            return None
        with together():
            trial = None if self.trials is None else self.trials.ask(self.next, self.fixed)
        told = from_first(None if trial is None else [trial.number, trial.settings])
        if told is None:
            self.last = self.next
            return None
        with together():
            self.ledger.add(self.next, told[0], told[1])
        self.next += 1
        return self.next - 1

    def begin(self, standing: Standing) -> None:
        standing.ended[:] = [number is None for number in self.numbers]

    def judges(self, standing: Standing) -> bool:
        return any(standing.epoch + 1 - began in self._rungs(place) for place, began in enumerate(standing.began))

    def _rungs(self, place: int) -> list[int]:
        """Epochs after which a place's member may have to give way."""
        number, halving = self.numbers[place], self.study.halving
        return [] if halving is None or number is None else halving.rungs(self.ledger.members[number].config.run.epochs)

    def decide(self, standing: Standing, trained: Callable[[int], Trained]) -> list[Change]:
        taken = [(place, number) for place, number in enumerate(self.numbers) if number is not None]
        with together():
            dropped = self._halve(standing, taken)
        for place in from_first(dropped):
            standing.ended[place] = True
        changes = []
        for place, number in taken:
            if not standing.ended[place]:
                continue
            member, one = self.ledger.members[number], trained(place)
            with together():
                self.ledger.end([member], [one])
                self._tell(member, one, place in dropped)
            self.numbers[place] = self._ask()
            if (new := self.numbers[place]) is not None:
                changes.append(Change(place, self.ledger.members[new].config))
        return changes

    def _halve(self, standing: Standing, taken: list[tuple[int, int]]) -> list[int]:
        """Report what all have come to, and then the places of those that do badly at a rung."""
        dropped = []
        if self.trials is None:
            return []
        epochs = {place: standing.histories[place][-1]["epoch"] for place, _ in taken}
        for place, number in taken:
            best = standing.bests[place]["epoch"]
            goal = next(
                (r.get(self.study.objectives[0]) for r in standing.histories[place] if r["epoch"] == best), None
            )
            self.trials.report(self.ledger.members[number].trial, epochs[place], goal)
        for place, number in taken:
            rungs = self._rungs(place)
            if epochs[place] in rungs and not standing.ended[place]:
                trial, rung = self.ledger.members[number].trial, rungs.index(epochs[place])
                if not self.trials.goes_on(trial, epochs[place], rung):
                    dropped.append(place)
        return dropped

    def _tell(self, member: Member, one: Trained, dropped: bool) -> None:
        if self.trials is None:
            return
        best = next((row for row in one.history if row["epoch"] == one.best_epoch), None)
        diverged = one.history[-1].get("diverged_at_step") is not None
        said = {"member": member.number, "epochs": len(one.history), "diverged": diverged}
        row = {**(best or {}), COST: self.cost}
        values = [float(row[name]) for name in self.study.objectives if row.get(name) is not None]
        if dropped or diverged or len(values) < len(self.study.objectives):
            # Of one objective what it had come to counts; of several there would be none.
            self.trials.end(member.trial, "pruned" if len(self.study.objectives) == 1 else "fail", None, said)
        else:
            self.trials.end(member.trial, "complete", values, said)

    def memory(self) -> Any:
        return {"numbers": self.numbers, "next": self.next, "last": self.last}

    def recall(self, memory: Any) -> list[TrainConfig]:
        self.numbers, self.next, self.last = memory["numbers"], memory["next"], memory["last"]
        some = next((n for n in self.numbers if n is not None), self.next - 1)
        self._fix(self.ledger.members[some])
        return [self.ledger.members[some if n is None else n].config for n in self.numbers]

    def epochs_left(self, standing: Standing) -> int:
        epochs, waiting = self.ledger.members[0].config.run.epochs, self.last - self.next
        taken = [
            epochs - (standing.epoch - standing.began[place]) for place, n in enumerate(self.numbers) if n is not None
        ]
        rounds = -(-waiting // len(self.numbers))
        return max(taken, default=0) + rounds * epochs


class Evolution:
    """Population-based training: the better replace the worse, with settings that differ a little.

    It follows from the losses and the study's seed alone. Of the places only the first so many hold ``members``: the others
    fill a lot up. See :class:`leignn_jax.training.protocols.Tuner`.
    """

    def __init__(self, study: StudyConfig, settings: list[dict[str, Any]], members: int):
        self.study, self.settings, self.members = study, settings, members

    def begin(self, standing: Standing) -> None:
        """Nothing: all members are there."""

    def judges(self, standing: Standing) -> bool:
        return (standing.epoch + 1) % self.study.evolution.every == 0

    def decide(self, standing: Standing, trained: Callable[[int], Trained]) -> list[Change]:
        told, places = self.study.evolution, range(self.members)
        for place in range(len(self.settings)):
            if standing.histories[place][-1]["epoch"] == standing.epoch:
                standing.histories[place][-1]["settings"] = self.settings[place]
        if standing.epoch % told.every or all(standing.ended):
            return []

        def loss(place: int) -> float:
            row = standing.histories[place][-1]
            goal = row.get(self.study.objectives[0])
            value = math.inf if goal is None else float(goal)
            return value if math.isfinite(value) and row["diverged_at_step"] is None else math.inf

        order = sorted(places, key=lambda place: (loss(place), place))
        # Of two members or three one, too.
        some = min(max(1, int(len(order) * told.fraction)), len(order) // 2)
        best, worst = order[:some], order[len(order) - some :]
        rng = np.random.default_rng([self.study.seed, standing.epoch])
        changes = []
        for place in worst:
            source = best[int(rng.integers(len(best)))]
            if not loss(source) < loss(place):
                continue
            self.settings[place] = {
                name: perturbed(self.settings[source][name], choices, told.factor, rng)
                for name, choices in self.study.space.items()
            }
            standing.histories[place][-1]["copied"] = source
            standing.ended[place] = False
            changes.append(Change(place, config_of(self.study, self.settings[place]), source))
        return changes

    def memory(self) -> Any:
        return self.settings

    def recall(self, memory: Any) -> list[TrainConfig]:
        self.settings = memory
        return [config_of(self.study, settings) for settings in memory]

    def epochs_left(self, standing: Standing) -> int:
        return config_of(self.study, self.settings[0]).run.epochs - standing.epoch


def perturbed(value: Any, choices: Range | list[Any], factor: float, rng: np.random.Generator) -> Any:
    """A setting beside this one: a range's number times or divided by ``factor`` (a whole number by one more or less at
    least), within the range; of choices one of the neighbours."""
    up = bool(rng.integers(2))
    if not isinstance(choices, Range):
        return choices[min(max(choices.index(value) + (1 if up else -1), 0), len(choices) - 1)]
    low, high = choices.bounds()
    scaled = value * factor if up else value / factor
    if choices.integers is not None:
        scaled = max(math.ceil(scaled), value + 1) if up else min(math.floor(scaled), value - 1)
    return min(max(scaled, low), high)
