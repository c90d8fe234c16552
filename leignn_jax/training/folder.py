"""The run folder, which the first process alone reads and writes; in the others all of this does nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from leignn_jax.errors import TrainingError
from leignn_jax.files import FolderLock, make_folder, write_atomically
from leignn_jax.potential import Potential
from leignn_jax.potential_file import load_potential
from leignn_jax.processes import is_first
from leignn_jax.training.checkpoint import Checkpoints, check_room, named_leaves
from leignn_jax.training.config import TrainConfig, by_content, dump_config
from leignn_jax.training.logs import History, open_loggers


class RunFolder:
    """One run's folder, claimed for its config and data.

    Args:
        config: of the run.
        data: what data.json says: "sha256" by file, the split, the plan.
        resume: False refuses a folder that has a checkpoint.

    Raises:
        TrainingError: the folder belongs to another config or other data, or must not be gone on with, or another process
            is at work in it.
    """

    def __init__(self, config: TrainConfig, data: Mapping[str, Any], resume: bool):
        self.path, self.mine = config.run.out, is_first()
        if not self.mine:
            return
        make_folder(self.path, TrainingError)
        if (self.path / "ledger").is_dir():
            raise TrainingError(f"{self.path}: holds a study. Choose another run.out.")
        folder = self.path / "checkpoints"
        self._lock = FolderLock(self.path, TrainingError, "training")
        try:
            has_checkpoint = folder.is_dir() and any(folder.iterdir())
            if has_checkpoint and not resume:
                raise TrainingError(
                    f"{self.path}: holds a run already. Choose another run.out, or go on with it (resume)."
                )
            _claim(self.path, config, data, has_checkpoint)
            self._config = config
            self._history = History(self.path / "metrics.csv")
            self._checkpoints = Checkpoints(folder, config.run.keep)
            self._loggers, self._open = [], contextlib.ExitStack()
        except BaseException:
            self._lock.close()
            raise

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint and its meta, None where there is none; see :meth:`Checkpoints.restore`."""
        if not self.mine:
            return None
        check_room(self.path, named_leaves(like))
        return self._checkpoints.restore(like)

    def open_logs(self, histories: Sequence[list[dict[str, Any]]]) -> None:
        """Write metrics.csv with the epochs done by the one member, and open the loggers that the config names."""
        if self.mine:
            # A copy: the caller adds to his own.
            self._history.rows = list(histories[0])
            self._history.rewrite()
            self._loggers = open_loggers(self._config, self._open)

    def log_epoch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add an epoch of the one member to metrics.csv and the loggers."""
        if self.mine:
            self._history.append(rows[0])
            for logger in self._loggers:
                logger(rows[0])

    def save_checkpoint(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        """See :meth:`Checkpoints.save`."""
        if self.mine:
            self._checkpoints.save(number, tree, meta)

    def save_potential(self, name: str, potential: Potential) -> None:
        """Write a potential's file."""
        if self.mine:
            potential.save(self.path / name)

    def best_potential(self, epoch: int) -> Potential | None:
        """The potential best on validation, of this epoch, or the last one where none was yet (0); None in a process that
        is not the first."""
        if not self.mine:
            return None
        best = self.path / "potential.safetensors"
        if epoch and not best.exists():
            raise TrainingError(
                f"{best}: is missing, though epoch {epoch} was the best on validation. Bring it back, or train anew in "
                "another run.out."
            )
        return load_potential(best if epoch else self.path / "last.safetensors")

    def wait(self) -> None:
        """Until everything is on disk."""
        if self.mine:
            self._checkpoints.wait()

    def close(self) -> None:
        if self.mine:
            with contextlib.ExitStack() as stack:
                for part in (self._lock, self._checkpoints, self._open):
                    stack.callback(part.close)


def _claim(out: Path, config: TrainConfig, data: Mapping[str, Any], has_checkpoint: bool) -> None:
    """Write what the run is, or compare with what the folder says it is."""
    text = dump_config(config)
    config_file, data_file = out / "config.yaml", out / "data.json"
    if has_checkpoint and config_file.exists():
        before, now = _settings_in(config_file), by_content(yaml.safe_load(text))
        changed = [name for name in now | before if name not in before or now.get(name) != before[name]]
        if changed:
            said = "; ".join(f"{name}: {now.get(name)}" for name in changed[:5])
            raise TrainingError(
                f"{out}: its checkpoints are of another config (now different: {said}). Give the old settings, or another "
                "run.out."
            )
    was = _hashes_in(data_file) if has_checkpoint and data_file.exists() else {}
    # A folder of an older version does not know all files.
    changed = [name for name, value in data["sha256"].items() if was.get(name, value) != value]
    if changed:
        raise TrainingError(
            f"{out}: the {changed[0]} file has changed since this run began. Bring the old one back, or choose another "
            "run.out."
        )
    write_atomically(config_file, text.encode())
    write_atomically(data_file, json.dumps(data, indent=1).encode())


def _settings_in(file: Path) -> dict[str, Any]:
    """What config.yaml says, by dotted names and without places."""
    try:
        return by_content(yaml.safe_load(file.read_text(errors="replace")))
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"{file}: damaged ({reason}), so that nobody can tell whether its checkpoints are of this config. Bring it "
            "back, or choose another run.out."
        ) from error


def _hashes_in(file: Path) -> dict[str, str]:
    """The sha256 of each data file by its name, as data.json says."""
    try:
        found = json.loads(file.read_bytes())["sha256"]
        if not isinstance(found, dict):
            raise TypeError(f"sha256 is {found!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{file}: damaged ({error}), so that nobody can tell whether the data are those of its checkpoints. Delete "
            "it, if you know that they are; or choose another run.out."
        ) from error
    return found
