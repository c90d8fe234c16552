"""A study: train all members of a search space, as few compiled programs as their shapes allow.

The study's folder (``base.run.out``)::

    study.yaml      what was asked          results.csv, results.parquet   one row per member, best first
    history.csv     member x epoch          potentials/NNN.safetensors     best epoch of each member
    best.safetensors                        curves.png, settings.png, report.html
    test.json       errors of the best one on data.test
    ledger/         what has ended          checkpoints/                   of what is under way
    trials.log      Optuna's journal of a search

"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml
from jax.sharding import Mesh

from leignn_jax.arguments import check_flag, check_whole
from leignn_jax.errors import ConfigError
from leignn_jax.files import write_atomically
from leignn_jax.potential import Potential
from leignn_jax.potential_file import load_potential
from leignn_jax.processes import (
    bytes_from_first,
    check_devices,
    check_same,
    connect,
    from_first,
    is_first,
    together,
    versions,
)
from leignn_jax.sweeps.committee import committee
from leignn_jax.sweeps.cost import microseconds_per_atom
from leignn_jax.sweeps.ledger import Ledger, Member
from leignn_jax.sweeps.places import Evolution, Places
from leignn_jax.sweeps.report import write_study
from leignn_jax.sweeps.space import ASKED, COST, StudyConfig, checked_study, group_key, has_shapes, members, place_of
from leignn_jax.sweeps.trials import Trials
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.evaluate import evaluate
from leignn_jax.training.loop import Loop
from leignn_jax.training.parallel import make_mesh
from leignn_jax.training.prepared import Prepared, files_of, named_files, prepare
from leignn_jax.training.programs import Programs, make_programs

log = logging.getLogger("leignn_jax")

# Members of a search that are trained side by side where the study does not say how many.
ASKED_AT_ONCE = 8


class StudyResult(NamedTuple):
    """What a study found.

    rows: one dict per member that has ended, best first: its number, settings, metrics, best epoch, whether it diverged.
    potentials: of each row, averaged parameters of its best epoch; None where it diverged before any.
    out: the study's folder.
    compiles: programs compiled for training by this call, of each group.
    finished: False where a signal stopped it; the same call goes on.
    signal: name of the signal that asked this process to stop, None where none did.
    test: errors of the best member on ``data.test`` of the base, in meV/atom, meV/Å, meV/Å^3; None without one, or where
        the study has not ended.
    """

    rows: list[dict[str, Any]]
    potentials: list[Potential | None]
    out: Path
    compiles: list[int]
    finished: bool = True
    signal: str | None = None
    test: dict[str, float | None] | None = None

    @property
    def best(self) -> Potential:
        """The member best by the study's first objective; ConfigError where none has ended well."""
        if not self.potentials:
            why = "other workers have all its trials" if self.finished else "it was stopped: the same call goes on"
            raise ConfigError(f"No member of the study has ended here; {why}.")
        found = self.potentials[0]
        if found is None:
            raise ConfigError("Every member of the study diverged: lower the learning rates.")
        return found

    def committee(self, count: int) -> Potential:
        """The ``count`` best members of the best one's shape, see :func:`leignn_jax.sweeps.committee.committee`; ConfigError
        where there are fewer."""
        config = self.best.config
        alike = [p for p in self.potentials if p is not None and p.config == config]
        check_whole("count", count, 1)
        if len(alike) < count:
            raise ConfigError(f"count: {count} members are asked for; {len(alike)} have the best one's shape.")
        return committee(alike[:count])


def sweep(
    study: StudyConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = True,
    extend: bool = False,
    progress: bool | None = None,
) -> StudyResult:
    """Train every member of a study; members that differ in numbers alone train side by side in one program.

    A member sees the batches that it would see alone (``data.order_seed`` decides them; ``run.seed`` its first
    parameters) and ends with the same parameters to rounding. One whose loss is no number stands still from then on and
    is reported, while the rest go on. The same call with the same study goes on where an earlier one stopped, however it
    did, and ends as if it had not been.

    With several processes (``jax.distributed.initialize`` or :func:`leignn_jax.processes.join_processes` before)
    every one makes this call, with the same study and data, and ``mesh`` counts all their devices. The first one alone
    reads and writes the folder and shows progress; all return the same result.

    Args:
        study: a YAML file, nested settings, or a checked StudyConfig.
        resume: go on with what the study's folder holds; False refuses a folder that has a study.
        extend: go on though members have come to the folder's study (choices of its space, samples); these alone are
            trained.
        progress: show progress; None where it can be seen.

    Raises:
        ConfigError, DataError: see the study and the data.
        TrainingError: the study's folder can't be made, holds another study or is worked on by another process, the data
            have changed, or the disk is full.
        ProcessError: processes differ, or one of them failed.
    """
    check_flag("resume", resume)
    check_flag("extend", extend)
    study = checked_study(study)
    connect()
    with together():
        sweep_devices, data_devices = study.mesh
        sizes = f"make mesh [N, M] with N x M = {jax.device_count()}"
        check_devices(sweep_devices * data_devices, f"mesh {sweep_devices} x {data_devices}", sizes)
        points = None if study.search in ASKED else members(study)
    check_same({"the study": yaml.safe_dump(study.model_dump(mode="json")), **versions()})
    with together():
        ledger = Ledger(place_of(study), study, points, resume, extend)
    try:
        ledger.share()
        run = _run_listed if points is not None else _run_asked
        done = run(study, ledger, progress if ledger.mine else False)
        if not done.finished:
            log.warning("Stopped by a signal; the same command goes on.")
        return _result(study, ledger, done)
    finally:
        ledger.close()


class _Done(NamedTuple):
    """Programs compiled, of each group; whether it came to the end; the signal by which this process was asked to stop."""

    compiles: list[int]
    finished: bool = True
    signal: str | None = None


def _result(study: StudyConfig, ledger: Ledger, done: _Done) -> StudyResult:
    """What the ledger holds, and at the end the report. All processes must call it."""
    rows, potentials, history = _table(ledger)
    test = None
    with together():
        # A worker that came too late has no trial of its own.
        if rows and done.finished and ledger.mine:
            if (best := potentials[0]) is not None:
                best.save(ledger.out / "best.safetensors")
                test = _tested(best, ledger.members[rows[0]["member"]].config)
                if test is not None:
                    write_atomically(ledger.out / "test.json", (json.dumps(test, indent=1) + "\n").encode())
            write_study(ledger.out, rows, history, list(study.space), study.objectives[0])
    return StudyResult(rows, potentials, ledger.out, *done, from_first(test))


def _tested(best: Potential, config: TrainConfig) -> dict[str, float | None] | None:
    """Errors of the best member on the test file, of which no member has seen anything."""
    data = config.data
    if data.test is None:
        return None
    direct = config.loss.force_source == "direct"
    return evaluate(best, data.test, units=data.units, keys=dict(data.keys), direct=direct).metrics


def _run_asked(study: StudyConfig, ledger: Ledger, progress: bool | None) -> _Done:
    """Population after population of a search, each of one shape, until there are no more trials."""
    with together():
        trials = Trials(study, ledger.out) if ledger.mine else None
    size = lot_size(study, study.members_at_once or ASKED_AT_ONCE)
    most = population_trials(study, size)
    mesh, groups = group_mesh(study), {}
    while True:
        first, end = ledger.populations[-1] if ledger.populations else (0, 0)
        first = end if end >= 0 else first
        places = Places(study, ledger, trials, first, size, most)
        configs = places.fill()
        if not configs:
            break
        with together():
            ledger.write_population(first)
        name = group_key(configs[0], study.space)
        if name not in groups:
            groups[name] = _make_group(study, ledger, name, configs[0], mesh, progress)
        prepared, programs = groups[name]
        places.cost = ledger.cost_of(configs[0])
        with together():
            keeper = ledger.population_keeper(first, configs[0].run.keep)
        try:
            loop = Loop(configs, prepared, programs, keeper, mesh, many=True, tuner=places)
            finished = loop.go(progress)
        finally:
            keeper.close()
        if not finished:
            return _Done([programs.compiles for _, programs in groups.values()], False, loop.signal)
        with together():
            ledger.write_population(first, places.next)
    return _Done([programs.compiles for _, programs in groups.values()])


def _run_listed(study: StudyConfig, ledger: Ledger, progress: bool | None) -> _Done:
    """The members of a grid or of random draws, lot by lot."""
    # Those that came later make groups of their own: what they are divided into must not depend on what has ended.
    groups: dict[tuple[int, str], list[Member]] = {}
    for member in ledger.members:
        groups.setdefault((member.generation, group_key(member.config, study.space)), []).append(member)
    log.info("%d members in %d groups.", len(ledger.members), len(groups))
    still_open = {member.number for member in ledger.open_members()}
    compiles, finished, signal = [], True, None
    for (_, name), group in groups.items():
        size = lot_size(study, len(group))
        lots = [group[first : first + size] for first in range(0, len(group), size)]
        # Lots of another size than before, where that has changed, may have members that have ended beside open ones.
        lots = [lot for lot in lots if any(member.number in still_open for member in lot)]
        if not lots:
            compiles.append(0)
            continue
        done, finished, signal = _train_group(study, ledger, name, lots, size, progress)
        compiles.append(done)
        if not finished:
            break
    return _Done(compiles, finished, signal)


def group_mesh(study: StudyConfig) -> Mesh | None:
    """The devices that train a study's members; None is one."""
    sweep_devices, data_devices = study.mesh
    return make_mesh(sweep_devices, data_devices) if sweep_devices * data_devices > 1 else None


def population_trials(study: StudyConfig, size: int) -> int:
    """Trials of a search's population of ``size`` before the next one begins, perhaps of another shape."""
    return study.trials_per_shape or (2 * size if has_shapes(study) else study.samples)


def lot_size(study: StudyConfig, count: int) -> int:
    """Members that are trained side by side, of ``count`` of one shape. All lots have one size, so that one program serves
    them; the last is filled up with copies."""
    sweep_devices = study.mesh[0]
    return -(-min(study.members_at_once or count, count) // sweep_devices) * sweep_devices


def _train_group(
    study: StudyConfig,
    ledger: Ledger,
    name: str,
    lots: Sequence[Sequence[Member]],
    size: int,
    progress: bool | None,
) -> tuple[int, bool, str | None]:
    """Train members of one shape, lot by lot: how many programs were compiled, whether it came to the end, and the signal
    by which this process was asked to stop."""
    mesh = group_mesh(study)
    prepared, programs = _make_group(study, ledger, name, lots[0][0].config, mesh, progress)
    for lot in lots:
        finished, signal = _train_lot(study, ledger, lot, size, prepared, programs, mesh, progress)
        if not finished:
            return programs.compiles, False, signal
    return programs.compiles, True, None


def _make_group(
    study: StudyConfig, ledger: Ledger, name: str, config: TrainConfig, mesh: Mesh | None, progress: bool | None
) -> tuple[Prepared, Programs]:
    """Data and programs of members of one shape. All processes must call it."""
    with together():
        prepared = prepare(config, study.mesh[1], progress)
    files = files_of(config, prepared)
    check_same(named_files(files))
    with together():
        ledger.check_data(name, files)
        if ledger.mine and ledger.cost_of(config) is None and (COST in study.objectives or has_shapes(study)):
            ledger.write_cost(config, microseconds_per_atom(prepared))
    ledger.costs = from_first(ledger.costs)
    return prepared, make_programs(config, prepared, mesh, many=True)


def _train_lot(
    study: StudyConfig,
    ledger: Ledger,
    lot: Sequence[Member],
    size: int,
    prepared: Prepared,
    programs: Programs,
    mesh: Mesh | None,
    progress: bool | None,
) -> tuple[bool, str | None]:
    """Train members side by side and enter them in the ledger; whether it came to the end, and this process's signal."""
    filled = [*lot, *[lot[-1]] * (size - len(lot))]
    with together():
        keeper = ledger.keeper(lot, lot[0].config.run.keep)
    try:
        settings = [member.settings for member in filled]
        tuner = Evolution(study, settings, len(lot)) if study.search == "evolution" else None
        loop = Loop([m.config for m in filled], prepared, programs, keeper, mesh, many=True, tuner=tuner)
        if not loop.go(progress):
            return False, loop.signal
    finally:
        keeper.close()
    trained = loop.members()[: len(lot)]
    with together():
        ledger.end(lot, trained)
    return True, None


def _table(ledger: Ledger) -> tuple[list[dict[str, Any]], list[Potential | None], list[dict[str, Any]]]:
    """Rows of all members that have ended, best first, their potentials, and rows of all their epochs; all processes must
    call it."""
    still_open = {member.number for member in ledger.open_members()}
    found, history = [], []
    for member in ledger.members:
        if member.number in still_open:
            continue
        said = ledger.ended(member)
        potential = _potential_from_first(ledger.potential_file(member)) if said["best_epoch"] else None
        epochs = [_of_epoch(row) for row in said["history"]]
        best = next((r for r in epochs if r["epoch"] == said["best_epoch"]), dict.fromkeys(epochs[-1]))
        # Evolution changes settings; those that made the best epoch count.
        settings = member.settings | {k: best[k] for k in member.settings if best.get(k) is not None}
        # Without a loss where it diverged before an epoch was validated.
        row = {"member": member.number, **settings, "validation_loss": None}
        row |= {k: v for k, v in best.items() if k.startswith("validation_")}
        row |= {"best_epoch": said["best_epoch"], "epochs": len(epochs)}
        row |= {"diverged_at_step": epochs[-1]["diverged_at_step"]}
        cost = ledger.cost_of(member.config)
        row |= {} if cost is None else {COST: cost}
        found.append((row, potential))
        history += [{"member": member.number, **one} for one in epochs]
    goal = ledger.study.objectives[0]
    found.sort(key=lambda one: (one[1] is None, _or_infinity(one[0].get(goal)), one[0]["member"]))
    # A member that diverged before it was validated lacks columns.
    columns = dict.fromkeys([*(name for row, _ in found for name in row), goal])
    return (
        [{name: row.get(name) for name in columns} for row, _ in found],
        [potential for _, potential in found],
        history,
    )


def _potential_from_first(path: Path) -> Potential:
    """The potential of a file that the first process has, in every process."""
    with together():
        content = path.read_bytes() if is_first() else b""
    if jax.process_count() == 1:
        return load_potential(path)
    content = bytes_from_first(content)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        return load_potential(copy)


def _of_epoch(row: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's row with None where a loss is no number, and settings that were its own as columns."""
    flat = {k: v for k, v in row.items() if k != "settings"} | row.get("settings", {})
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
