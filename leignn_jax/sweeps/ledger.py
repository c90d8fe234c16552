"""A study's ledger: what its members are and what became of them, so that a study that was killed goes on.

In the study's folder::

    study.yaml             what was asked
    ledger/members.json    every member's settings, in the order of their numbers
    ledger/populations.json  of a search: which members began together
    ledger/costs.json      what an evaluation takes, of each group, where they differ
    ledger/lot-LOT.json    best epoch and history of the members of a lot that has ended
    ledger/data.json       sha256 of the data of each group
    ledger/worker.txt      by what a search's worker is known in a storage that it shares
    checkpoints/LOT/       of the lot that is under way
    potentials/NNN.safetensors

Each file is written whole, a lot's after its potentials: what the ledger says is there. A lot's name is a hash of its
members.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from leignn_jax.errors import TrainingError
from leignn_jax.files import FolderLock, make_folder, remove_leftovers, write_atomically
from leignn_jax.potential import Potential
from leignn_jax.processes import from_first, is_first
from leignn_jax.sweeps.report import REPORTS
from leignn_jax.sweeps.space import StudyConfig, config_of, group_key
from leignn_jax.training.checkpoint import Checkpoints, check_room, named_leaves
from leignn_jax.training.config import TrainConfig, by_content, flattened, in_full
from leignn_jax.training.standing import Trained

log = logging.getLogger("leignn_jax")


class Member(NamedTuple):
    """One member: its number, what the study varies of it, its whole config, a hash of that, how many times the study had
    been extended when it came, and the number that the storage of a search gave it."""

    number: int
    settings: dict[str, Any]
    config: TrainConfig
    key: str
    generation: int
    trial: int = -1


class Ledger:
    """A study's folder, held by this process until :meth:`close`; of several processes the first one reads and writes it.

    Args:
        out: the folder.
        study: what was asked.
        points: settings and config of each member; None where a search gives them one after the other.
        resume: False refuses a folder that holds a study.
        extend: whether members may have come to those of the folder's study.

    Raises:
        TrainingError: the folder can't be made, holds another study, or another process has it.
    """

    def __init__(
        self,
        out: Path,
        study: StudyConfig,
        points: Sequence[tuple[dict[str, Any], TrainConfig]] | None,
        resume: bool = True,
        extend: bool = False,
    ):
        self.out, self._folder, self.mine = out, out / "ledger", is_first()
        self.study = study
        self.members: list[Member] = []
        # Of each population of a search the first member's number and the one behind its last, -1 while it is under way.
        self.populations: list[list[int]] = []
        # What an evaluation takes, of each group; measured once.
        self.costs: dict[str, float] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self._lock = None
        if not self.mine:
            return
        make_folder(out, TrainingError)
        self._lock = FolderLock(out, TrainingError, "study")
        try:
            if (out / "data.json").exists():
                raise TrainingError(f"{out}: holds a training. Choose another run.out.")
            self._clear_leftovers()
            self.members = self._claim(study, points, resume, extend)
            self._ended = self._read_ended()
            for name in ("populations", "costs"):
                if (file := self._folder / f"{name}.json").exists():
                    setattr(self, name, _read(file, name, "Bring it back, or choose another run.out"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()

    def cost_of(self, config: TrainConfig) -> float | None:
        """What an evaluation of a member takes, where it was measured."""
        return self.costs.get(_hash(group_key(config, self.study.space)))

    def write_cost(self, config: TrainConfig, cost: float) -> None:
        """Measured for all members of this one's group."""
        self.costs[_hash(group_key(config, self.study.space))] = cost
        write_atomically(self._folder / "costs.json", json.dumps({"costs": self.costs}).encode())

    def share(self) -> None:
        """Tell the other processes what the folder holds; all must call it."""
        members = [[m.number, m.settings, m.key, m.generation, m.trial] for m in self.members]
        members, ended, populations, self.costs = from_first([members, self._ended, self.populations, self.costs])
        if not self.mine:
            self.members = [
                Member(number, settings, config_of(self.study, settings), *others)
                for number, settings, *others in members
            ]
            self._ended, self.populations = ended, populations

    def add(self, number: int, trial: int, settings: dict[str, Any]) -> None:
        """The next member of a search; one that is known already stays."""
        if number < len(self.members):
            return
        config = config_of(self.study, settings)
        self.members.append(Member(number, settings, config, _hash(f"{_key(config, self.study)} {trial}"), 0, trial))
        if self.mine:
            said = [{"key": m.key, "settings": m.settings, "generation": 0, "trial": m.trial} for m in self.members]
            self._write_members(said)

    def write_population(self, first: int, end: int = -1) -> None:
        """A population of a search begins with member ``first``, or is over and ``end`` is the next one's first."""
        if not self.populations or self.populations[-1][0] != first:
            self.populations.append([first, -1])
        self.populations[-1][1] = end
        if self.mine:
            content = json.dumps({"populations": self.populations}).encode()
            write_atomically(self._folder / "populations.json", content)
            if end >= 0:
                shutil.rmtree(self._checkpoints_of(first), ignore_errors=True)

    def _checkpoints_of(self, first: int) -> Path:
        return self.out / "checkpoints" / f"population-{first}"

    def population_keeper(self, first: int, keep: int) -> LotKeeper:
        """Where the loop of a search's population writes its checkpoints."""
        return LotKeeper(self._checkpoints_of(first), self.out, keep)

    def _clear_leftovers(self) -> None:
        """Delete the temporary files of a process that was killed; the folder is this one's now."""
        for name in (*REPORTS, "study.yaml", "best.safetensors", "test.json"):
            remove_leftovers(self.out / name)
        for folder in (self._folder, self.out / "potentials"):
            for found in folder.glob(".*"):
                # A folder, such as .ipynb_checkpoints, is another program's.
                if not found.is_dir():
                    found.unlink()

    def _claim(self, study, points, resume, extend) -> list[Member]:
        asked, file = study.model_dump(mode="json"), self._folder / "members.json"
        keys = [] if points is None else [_key(config, study) for _, config in points]
        if file.exists():
            if not resume:
                raise TrainingError(f"{self.out}: holds a study already. Choose another run.out, or go on with it.")
            old = _read(file, "members", "Bring it back, or choose another run.out")
            before = _read_yaml(self.out / "study.yaml")
            new, known = _settings_of(asked), _settings_of(before)
            changed = sorted(k for k in new | known if new.get(k) != known.get(k))
            fixed = [k for k in changed if k.partition(".")[0] == "evolution"]
            if extend and study.search == "evolution":
                fixed += [k for k in changed if k in ("mesh", "members_at_once")]
            if fixed and extend:
                raise TrainingError(
                    f"{self.out}: the study to extend has other settings ({', '.join(fixed[:5])} differ), by which its "
                    "members would be of two kinds. Give the old ones, or choose another run.out."
                )
            if changed and not extend:
                raise TrainingError(
                    f"{self.out}: holds another study ({', '.join(changed[:5])} differ). Give the old settings, choose "
                    "another run.out, or extend it (--extend) where members have only come to it."
                )
            gone = [m for m in old if m["key"] not in keys]
            if points is None and changed not in ([], ["samples"]):
                raise TrainingError(
                    f"{self.out}: the study to extend has other settings ({', '.join(changed[:5])} differ). A search can "
                    "only grow by samples."
                )
            if gone and points is not None:
                raise TrainingError(
                    f"{self.out}: the study to extend has a member with {_words(gone[0]['settings'])}, which this one has "
                    f"not (different: {', '.join(changed[:5])}). A study can only grow: by choices of its space or samples."
                )
        elif any(self._folder.glob("lot-*.json")):
            # Potentials are found by numbers that only it knows.
            raise TrainingError(f"{file}: it is missing. Bring it back, or choose another run.out.")
        else:
            old = []
        known = {m["key"]: i for i, m in enumerate(old)}
        generation = 1 + max((m["generation"] for m in old), default=-1)
        for (settings, _), key in zip(points or [], keys, strict=True):
            if key not in known:
                known[key] = len(old)
                old.append({"key": key, "settings": settings, "generation": generation})
        write_atomically(self.out / "study.yaml", yaml.safe_dump(asked, sort_keys=False).encode())
        self._write_members(old)
        if points is None:
            return [
                Member(i, m["settings"], config_of(study, m["settings"]), m["key"], 0, m["trial"])
                for i, m in enumerate(old)
            ]
        found = {
            known[key]: Member(known[key], settings, config, key, old[known[key]]["generation"])
            for (settings, config), key in zip(points, keys, strict=True)
        }
        if len(found) < len(points):
            log.warning("%d members are the same as others, and trained once.", len(points) - len(found))
        return [found[number] for number in sorted(found)]

    def _write_members(self, members: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self._folder / "members.json", json.dumps({"members": members}, indent=1).encode())

    def _read_ended(self) -> dict[str, dict[str, Any]]:
        """What the ledger says of every member that has ended, by its key."""
        found: dict[str, dict[str, Any]] = {}
        for file in sorted(self._folder.glob("lot-*.json")):
            found |= _read(file, "members", "Delete it, and its members are trained again")
        return found

    def open_members(self) -> list[Member]:
        """Those that have not ended yet."""
        return [m for m in self.members if m.key not in self._ended]

    def ended(self, member: Member) -> dict[str, Any]:
        """What the ledger says of a member that has ended: best_epoch and history."""
        return self._ended[member.key]

    def potential_file(self, member: Member) -> Path:
        """Where the best potential of a member lies that has ended after a good epoch."""
        return self.out / "potentials" / f"{member.number:03d}.safetensors"

    def end(self, lot: Sequence[Member], trained: Sequence[Trained]) -> None:
        """Write down what became of a lot; its checkpoints are not needed any more."""
        said = {
            member.key: {"best_epoch": one.best_epoch, "history": one.history}
            for member, one in zip(lot, trained, strict=True)
        }
        if self.mine:
            for member, one in zip(lot, trained, strict=True):
                if one.potential is not None:
                    one.potential.save(self.potential_file(member))
            name = _lot_name(lot)
            write_atomically(self._folder / f"lot-{name}.json", json.dumps({"members": said}).encode())
            shutil.rmtree(self.out / "checkpoints" / name, ignore_errors=True)
        self._ended |= said

    def check_data(self, group: str, hashes: Mapping[str, str]) -> None:
        """TrainingError where a data file has changed since a group's first member began."""
        if not self.mine:
            return
        file = self._folder / "data.json"
        known = _read(file, "sha256", "Delete it, if you know that the data are the same") if file.exists() else {}
        name = _hash(group)
        changed = [k for k, v in known.get(name, hashes).items() if hashes.get(k) != v]
        if changed:
            raise TrainingError(
                f"{self.out}: the {changed[0]} file has changed since this study began. Bring the old one back, or choose "
                "another run.out."
            )
        write_atomically(file, json.dumps({"sha256": {**known, name: dict(hashes)}}, indent=1).encode())

    def keeper(self, lot: Sequence[Member], keep: int) -> LotKeeper:
        """Where a lot's loop writes its checkpoints."""
        return LotKeeper(self.out / "checkpoints" / _lot_name(lot), self.out, keep)


class LotKeeper:
    """The checkpoints of one lot; see :class:`leignn_jax.training.protocols.Keeper`."""

    def __init__(self, folder: Path, out: Path, keep: int):
        self.path, self.mine = out, is_first()
        if self.mine:
            self._checkpoints = Checkpoints(folder, keep)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        if not self.mine:
            return None
        check_room(self.path, named_leaves(like))
        return self._checkpoints.restore(like)

    def open_logs(self, histories: Sequence[list[dict[str, Any]]]) -> None:
        """Nothing: histories are in the checkpoints."""

    def log_epoch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing, as above."""

    def save_checkpoint(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        if self.mine:
            self._checkpoints.save(number, tree, meta)

    def save_potential(self, name: str, potential: Potential) -> None:
        """Nothing: the best parameters of members are in the checkpoints too."""

    def wait(self) -> None:
        if self.mine:
            self._checkpoints.wait()

    def close(self) -> None:
        if self.mine:
            self._checkpoints.close()


def _key(config: TrainConfig, study: StudyConfig) -> str:
    """A hash of all settings but where the study and the files lie that all members have."""
    return _hash(json.dumps(by_content(in_full(config), keep=study.space), sort_keys=True))


def _settings_of(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study's settings by dotted names, wherever its files and folders lie."""
    rest = flattened({key: value for key, value in study.items() if key != "base"})
    return rest | {f"base.{key}": value for key, value in by_content(study.get("base") or {}).items()}


def _lot_name(lot: Sequence[Member]) -> str:
    return _hash("".join(member.key for member in lot))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _read(file: Path, name: str, remedy: str) -> Any:
    """What one of the ledger's files holds under this name; TrainingError where it is damaged."""
    try:
        return json.loads(file.read_bytes())[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(f"{file}: damaged ({error}). {remedy}.") from error


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(errors="replace")) or {}
    except (OSError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{file}: damaged ({reason}). Bring it back, or choose another run.out.") from error
