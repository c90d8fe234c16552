"""What a study will take, before it is begun: groups, programs, memory and time, from its first steps."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential
from leignn_jax.sweeps.space import (
    ASKED,
    Range,
    StudyConfig,
    checked_study,
    config_of,
    group_key,
    is_number,
    members,
    some_choice,
)
from leignn_jax.sweeps.study import ASKED_AT_ONCE, group_mesh, lot_size, population_trials
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.loop import AHEAD, Loop
from leignn_jax.training.prepared import prepare
from leignn_jax.training.programs import make_programs


class GroupPlan(NamedTuple):
    """Of members that share their programs.

    settings: those of the study's space that all of them have alike.
    members: how many there are. lots: how many times a population of ``at_once`` is trained.
    compiles: programs that take steps.
    memory: bytes on each device: what is kept there and what a step needs besides, as compiled.
    seconds: reading the data, compiling and training, of all lots; of which ``compiling`` and ``reading``.
    """

    settings: dict[str, Any]
    members: int
    at_once: int
    lots: int
    compiles: int
    memory: int
    seconds: float
    compiling: float
    reading: float


class Costs(NamedTuple):
    """Seconds of ``compiling``, of a ``step`` and of an ``evaluation``; bytes of ``memory`` on a device."""

    compiling: float
    step: float
    evaluation: float
    memory: int


class Unkept:
    """Keeps nothing; see :class:`leignn_jax.training.protocols.Keeper`."""

    path, mine = Path("nowhere"), False

    def restore(self, like: Any) -> None:
        return None

    def open_logs(self, histories: Any) -> None: ...

    def log_epoch(self, rows: Any) -> None: ...

    def save_checkpoint(self, number: int, tree: Any, meta: dict[str, Any]) -> None: ...

    def save_potential(self, name: str, potential: Potential) -> None: ...

    def wait(self) -> None: ...


def plan_sweep(study: StudyConfig | Mapping[str, Any] | str | Path, *, progress: bool | None = None) -> list[GroupPlan]:
    """Plan a study: compile each group's programs and take a few steps, which are not kept; nothing is written.

    Time is that of the steps measured, times as many; early stops are not foreseen, and checkpoints not counted.

    Args:
        study: a YAML file, nested settings, or a checked StudyConfig.
        progress: show how ``data.cache`` is built; None where it can be seen.

    Raises:
        ConfigError, DataError: as :func:`leignn_jax.sweep`.
    """
    study = checked_study(study)
    if study.search in ASKED:
        return _plan_search(study, progress)
    groups: dict[str, list[tuple[dict[str, Any], TrainConfig]]] = {}
    for settings, config in members(study):
        groups.setdefault(group_key(config, study.space), []).append((settings, config))
    return [_plan_group(study, group, progress) for group in groups.values()]


def _plan_search(study: StudyConfig, progress: bool | None) -> list[GroupPlan]:
    """A group for each shape that may be asked for, as if all came equally often; of halving the epochs that are to be
    expected, of other early ends none."""
    shapes = {name: choices for name, choices in study.space.items() if not is_number(name)}
    ranges = [name for name, choices in shapes.items() if isinstance(choices, Range)]
    if ranges:
        raise ConfigError(f"space.{ranges[0]}: a range of shapes can't be planned; give a list of choices.")
    first = {name: some_choice(choices) for name, choices in study.space.items()}
    points = [dict(zip(shapes, point, strict=True)) for point in itertools.product(*shapes.values())]
    size = lot_size(study, study.members_at_once or ASKED_AT_ONCE)
    trials = math.ceil(study.samples / len(points))
    found = []
    for point in points:
        config = config_of(study, {**first, **point})
        epochs = config.run.epochs
        if study.halving is not None:
            ends = [0, *study.halving.rungs(epochs), epochs]
            epochs = sum((b - a) / study.halving.factor**i for i, (a, b) in enumerate(itertools.pairwise(ends)))
        one = _plan_group(study, [(point, config)] * size, progress)
        training = (one.seconds - one.reading - one.compiling) * epochs / config.run.epochs
        seconds = one.reading + one.compiling + training * trials / size
        lots = math.ceil(trials / population_trials(study, size))
        found.append(one._replace(settings=point, members=trials, lots=lots, seconds=seconds))
    return found


def _plan_group(
    study: StudyConfig, group: list[tuple[dict[str, Any], TrainConfig]], progress: bool | None
) -> GroupPlan:
    begun = time.monotonic()
    configs = [config for _, config in group]
    config, mesh, size = configs[0], group_mesh(study), lot_size(study, len(configs))
    lots = math.ceil(len(configs) / size)
    prepared = prepare(config, study.mesh[1], progress)
    programs = make_programs(config, prepared, mesh, many=True)
    lot = [configs[min(i, len(configs) - 1)] for i in range(size)]
    loop = Loop(lot, prepared, programs, Unkept(), mesh, many=True)
    reading = time.monotonic() - begun
    cost = measure(loop)
    epochs = config.run.epochs
    training = (
        epochs * prepared.steps_per_epoch * cost.step + math.ceil(epochs / config.run.validate_every) * cost.evaluation
    )
    first = group[0][0]
    return GroupPlan(
        settings={k: v for k, v in first.items() if all(one[k] == v for one, _ in group)},
        members=len(configs),
        at_once=size,
        lots=lots,
        compiles=loop.stepping.planned,
        memory=cost.memory,
        seconds=reading + cost.compiling + lots * training,
        compiling=cost.compiling,
        reading=reading,
    )


def measure(loop: Loop, seconds: float = 2.0) -> Costs:
    """What a training takes, from so many seconds of its first steps, which it is not to go on from."""
    begun = time.monotonic()
    compiling, steps, inflight = 0.0, 0, []
    with contextlib.closing(loop.advances(threading.Event())) as advances:
        while time.monotonic() - begun - compiling < seconds:
            before, compiled = time.monotonic(), loop.stepping.count
            found = next(advances, None)
            if found is None:
                break
            inflight.append(found[0])
            if loop.stepping.count > compiled:
                jax.block_until_ready(inflight)
                compiling += time.monotonic() - before
                continue
            steps += found[1]
            # As far behind as the loop looks.
            jax.block_until_ready(inflight[:-AHEAD])
            inflight = inflight[-AHEAD:]
        jax.block_until_ready(inflight)
    taken = time.monotonic() - begun - compiling
    evaluations = []
    for _ in range(2):
        before = time.monotonic()
        jax.block_until_ready(loop.evaluated())
        evaluations.append(time.monotonic() - before)
    first, evaluation = evaluations
    memory = max(loop.stepping.total_bytes(), loop.programs.evaluate.total_bytes())
    return Costs(compiling + max(first - evaluation, 0.0), taken / max(steps, 1), evaluation, memory)


def plan_table(groups: list[GroupPlan]) -> str:
    """The plan as CSV, a line for each group and one for all."""
    lines = ["members,at once,lots,programs,MiB per device,minutes,of which compiling,settings"]
    for one in groups:
        settings = "; ".join(f"{k}={v}" for k, v in one.settings.items())
        counts = f"{one.members},{one.at_once},{one.lots},{one.compiles},{one.memory / 2**20:.0f}"
        lines.append(f'{counts},{one.seconds / 60:.1f},{one.compiling / 60:.1f},"{settings}"')
    memory = max(one.memory for one in groups) / 2**20
    counts = f"{sum(one.members for one in groups)},,{sum(one.lots for one in groups)}"
    seconds, compiling = sum(one.seconds for one in groups), sum(one.compiling for one in groups)
    times = f"{seconds / 60:.1f},{compiling / 60:.1f}"
    lines.append(f"{counts},{sum(one.compiles for one in groups)},{memory:.0f},{times},all")
    return "\n".join(lines)
