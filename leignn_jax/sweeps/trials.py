"""Trials of a search: asked of Optuna's samplers, told to its storage, which several workers may share.

Whatever was asked, reported and decided stands in the storage, in the order in which it happened. A worker that was killed
and goes on from a checkpoint asks for its trials again and is given the same ones; what it reports or decides a second
time changes nothing. So it comes to where it was, and on from there as if it had not been killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leignn_jax.errors import ConfigError, LeignnError, TrainingError
from leignn_jax.files import write_atomically
from leignn_jax.sweeps.space import Range, StudyConfig
from leignn_jax.training.config import by_content

log = logging.getLogger("leignn_jax")

# What Optuna takes as it is among choices; others are given to it as JSON.
_PLAIN = (bool, int, float, str, type(None))


class Trial(NamedTuple):
    """One member of a search: its number in the storage, and what the search chose for it."""

    number: int
    settings: dict[str, Any]


def _worker_of(out: Path) -> str:
    """By what a worker's trials are known in a storage that it shares: drawn once, and kept wherever its folder comes to
    lie."""
    file = out / "ledger" / "worker.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, f"{uuid.uuid4().hex}\n".encode())
    return file.read_text().strip()


class Trials:
    """The trials of one worker in a storage.

    Args:
        study: what is searched.
        out: the worker's folder; its trials are known by it, and the storage lies in it where none is named.

    Raises:
        ConfigError: Optuna or what a sampler needs is not installed.
        TrainingError: the storage can't be reached, or holds another study of this name.
    """

    def __init__(self, study: StudyConfig, out: Path):
        optuna = _optuna()
        self._config, self._own = study, study.storage is None
        self._worker = "" if self._own else _worker_of(out)
        self.where = str(out / "trials.log") if study.storage is None else study.storage
        # By this worker's clock, of trials whose own worker has not been heard of.
        self._first_met: dict[int, float] = {}
        with _reachable(self.where):
            storage = _storage(self.where)
            self._study = optuna.create_study(
                storage=storage,
                study_name=study.name,
                directions=["minimize"] * len(study.objectives),
                load_if_exists=True,
            )
        self._check_same()

    def _check_same(self) -> None:
        """Whose trials these are is written down by the first worker, and compared by the others."""
        asked = self._config.model_dump(mode="json")
        # What each worker may have as it likes, and where it has its files.
        for name in ("storage", "members_at_once", "mesh", "samples", "trials_per_shape", "patience_minutes"):
            asked.pop(name)
        asked["base"] = by_content(asked["base"])
        known = self._study.user_attrs.get("study")
        if known is None:
            self._study.set_user_attr("study", asked)
            return
        known = {**known, "base": by_content(known["base"])}
        changed = [
            k for k in sorted(known.keys() | asked.keys()) if known.get(k) != json.loads(json.dumps(asked.get(k)))
        ]
        if changed:
            raise TrainingError(
                f"{self.where}: its study {self._config.name!r} is another one ({', '.join(changed)} differ). Give the old "
                "settings, another name, or another storage."
            )

    # ------------------------------------------------------------------------------------------------------------- asking

    def ask(self, nth: int, fixed: Mapping[str, Any]) -> Trial | None:
        """This worker's trial number ``nth``, from 0; None where the study has as many as it wants.

        Args:
            nth: how many trials this worker has asked for before.
            fixed: settings that are chosen already.
        """
        from optuna.samplers import PartialFixedSampler

        own = self._own_trials()
        if nth < len(own):
            return Trial(own[nth].number, self._settings(own[nth].user_attrs["asked"]))
        self._give_up_lost()
        if self._counted() >= self._config.samples:
            return None
        # A new one for each, so that what it draws depends on nothing but what stands in the storage.
        sampler = _sampler(self._config, nth, "" if self._own else self._worker)
        wanted = {k: _plain(v) for k, v in fixed.items()}
        lost = self._lost_one(wanted)
        wanted = wanted if lost is None else lost.params
        with _reachable(self.where), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.sampler = PartialFixedSampler(wanted, sampler) if wanted else sampler
            trial = self._study.ask()
            if lost is not None:
                trial.set_user_attr("instead_of", lost.number)
            for name, choices in self._config.space.items():
                _suggest(trial, name, choices)
            trial.set_user_attr("asked", trial.params)
            trial.set_user_attr("seen", time.time())
            # Last: from now on it is this worker's.
            trial.set_user_attr("worker", self._worker)
        return Trial(trial.number, self._settings(trial.params))

    def _own_trials(self) -> list[Any]:
        with _reachable(self.where):
            return [t for t in self._study.get_trials(deepcopy=False) if self._mine(t)]

    def _mine(self, trial: Any) -> bool:
        """Whether this worker asked for a trial: all in a storage of its own, wherever its folder has come to lie."""
        worker = trial.user_attrs.get("worker")
        return worker is not None if self._own else worker == self._worker

    def _counted(self) -> int:
        """Trials of all workers but those that failed for want of their worker."""
        with _reachable(self.where):
            return sum("lost" not in t.user_attrs for t in self._study.get_trials(deepcopy=False))

    def _lost_one(self, wanted: Mapping[str, Any]) -> Any:
        """A trial that was given up as lost and has these settings, to be asked again; None where there is none."""
        with _reachable(self.where):
            found = self._study.get_trials(deepcopy=False)
        again = {t.user_attrs.get("instead_of") for t in found if "lost" not in t.user_attrs}
        whole = self._config.space.keys()
        for trial in found:
            fits = trial.params.keys() == whole and all(trial.params[name] == value for name, value in wanted.items())
            if fits and "lost" in trial.user_attrs and trial.number not in again:
                return trial
        return None

    def _settings(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, choices in self._config.space.items():
            value = asked[name]
            if not isinstance(choices, Range):
                value = next(c for c in choices if _plain(c) == value and type(_plain(c)) is type(value))
            found[name] = value
        return found

    # ------------------------------------------------------------------------------------------------------------ telling

    def report(self, number: int, epoch: int, goal: float | None) -> None:
        """A trial is alive; and the objective of its best epoch up to this one, where there is one alone."""
        found = self._frozen(number)
        if found.state.is_finished():
            return
        with _reachable(self.where):
            live = self._live(found)
            if goal is not None and epoch not in found.intermediate_values and len(self._config.objectives) == 1:
                live.report(goal, epoch)
            live.set_user_attr("seen", time.time())

    def goes_on(self, number: int, epoch: int, rung: int) -> bool:
        """Whether a trial is among the best of all that came to this rung, of which one in ``halving.factor`` goes on.

        It is decided once: a worker that comes here again is told the same.
        """
        found = self._frozen(number)
        name = f"rung {rung}"
        if name in found.user_attrs:
            return bool(found.user_attrs[name])
        if epoch not in found.intermediate_values:
            # Without a loss; or given up as lost, so that another worker trains it.
            return False
        with _reachable(self.where):
            others = [
                t.intermediate_values[epoch]
                for t in self._study.get_trials(deepcopy=False)
                if epoch in t.intermediate_values
            ]
        assert self._config.halving is not None
        best = sorted(others)[: max(1, len(others) // self._config.halving.factor)]
        good = found.intermediate_values[epoch] <= best[-1]
        with _reachable(self.where):
            self._live(found).set_user_attr(name, good)
        return good

    def end(self, number: int, state: str, values: Sequence[float] | None, said: Mapping[str, Any]) -> None:
        """A trial is over: "complete" with its objectives, "pruned" or "fail" without; ``said`` is kept beside it."""
        from optuna.trial import TrialState

        found = self._frozen(number)
        if found.state.is_finished():
            if "lost" in found.user_attrs:
                log.warning("Trial %d was given up as lost by another worker; it is not counted.", number)
            return
        with _reachable(self.where):
            for name, value in said.items():
                self._live(found).set_user_attr(name, value)
            self._study.tell(number, values, state=TrialState[state.upper()])

    def _frozen(self, number: int) -> Any:
        with _reachable(self.where):
            return self._study.get_trials(deepcopy=False)[number]

    def _live(self, frozen: Any) -> Any:
        from optuna.trial import Trial as Live

        return Live(self._study, frozen._trial_id)

    def _give_up_lost(self) -> None:
        """Trials that no worker has been seen at for long are failures, and are asked again (:meth:`_lost_one`)."""
        from optuna.trial import TrialState

        with _reachable(self.where):
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            for trial in running:
                worker, seen = trial.user_attrs.get("worker"), trial.user_attrs.get("seen")
                # Not the storage's own start, which is in local time of whichever host asked.
                since = self._first_met.setdefault(trial.number, time.time()) if seen is None else seen
                late = time.time() - since > 60 * self._config.patience_minutes
                if self._mine(trial) or not (late or self._own):
                    continue
                log.warning("Trial %d of %s is given up as lost and asked again.", trial.number, worker or "nobody")
                self._live(trial).set_user_attr("lost", True)
                self._study.tell(trial.number, state=TrialState.FAIL)


def _optuna() -> Any:
    try:
        # Its progress bars, which are not used, warn in a notebook without widgets.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna
    except ImportError:
        raise ConfigError("search: it needs Optuna: `pip install 'leignn-jax[search]'`.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(where: str) -> Any:
    """A journal in a file, or a database by its URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" not in where:
        return JournalStorage(JournalFileBackend(where))
    from sqlalchemy.pool import NullPool

    # A training asks seldom; between its questions no connection stays open.
    return RDBStorage(where, engine_kwargs={"poolclass": NullPool})


@contextlib.contextmanager
def _reachable(where: str) -> Iterator[None]:
    """TrainingError where a storage can't be used."""
    try:
        yield
    except LeignnError:
        raise
    except (OSError, ImportError, RuntimeError, ValueError, KeyError) as error:
        problem: Exception = error
    except Exception as error:
        # Those of databases have no common base.
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy"):
            raise
        problem = error
    else:
        return
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    if isinstance(problem.__cause__, ModuleNotFoundError):
        reason = f"the Python module {problem.__cause__.name}, the driver of such databases, is not installed"
    raise TrainingError(
        f"{where}: the search's storage can't be used ({reason}). Give a file on a disk that every worker sees, or a "
        "database's URL; the same command goes on from the last checkpoint."
    ) from problem


def _sampler(study: StudyConfig, nth: int, worker: str) -> Any:
    """The sampler of a worker's trial number ``nth``; workers that share a storage draw each its own numbers."""
    from optuna import samplers

    needs = {"cmaes": ("cmaes",), "gp": ("torch", "scipy")}.get(study.search, ())
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"search: {study.search} needs {missing[0]}: `pip install {missing[0]}`, or take tpe.")
    seed = int.from_bytes(hashlib.sha256(f"{study.seed} {nth} {worker}".encode()).digest()[:4], "little")
    with warnings.catch_warnings():
        # That some of these may change.
        warnings.simplefilter("ignore")
        if study.search == "tpe":
            # Members side by side would else be drawn alike.
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=study.startup)
        if study.search == "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=study.startup, warn_independent_sampling=False)
        if study.search == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=study.startup)
        if study.search == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, study.startup))
        # Its sequence is counted in the storage and scrambled by the study's own seed; choices are drawn beside it.
        beside = samplers.RandomSampler(seed=seed)
        return samplers.QMCSampler(
            seed=study.seed, scramble=True, independent_sampler=beside, warn_independent_sampling=False
        )


def _suggest(trial: Any, name: str, choices: Range | list[Any]) -> None:
    if not isinstance(choices, Range):
        trial.suggest_categorical(name, [_plain(choice) for choice in choices])
    elif choices.integers is not None:
        trial.suggest_int(name, *choices.integers)
    else:
        trial.suggest_float(name, *choices.bounds(), log=choices.log_uniform is not None)


def _plain(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else json.dumps(value)
