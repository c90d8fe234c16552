"""Checkpoints by orbax: the whole state, with a hash that tells a damaged one, and a way back to the one before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leignn_jax.errors import TrainingError
from leignn_jax.files import FolderLock, digest, why_not_written

log = logging.getLogger("leignn_jax")

# A checkpoint and its replacement must fit beside each other, with room for logs and potentials.
_ROOM = 3


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree on the host, by their path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one run folder, the newest ``keep`` of them; of several processes the first alone uses them.

    Orbax writes to a temporary folder and renames it, so that a process killed at any moment leaves the last complete
    checkpoint; arrays are copied before :meth:`save` returns, and written by a thread.
    """

    def __init__(self, folder: Path, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder, TrainingError, "training")
        if self._lock.held:
            _clear_leftovers(self.folder)
        # The process that makes this object writes alone: orbax must not wait for others.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(me, {me}, "leignn") if jax.process_count() > 1 else None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=False,
            multiprocessing_options=alone or ocp.options.MultiprocessingOptions(),
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._lock.close()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TrainingError(
                f"{self.folder}: its checkpoints can't be listed, the description of one is damaged ({reason}). Take that "
                "one away, or start a new run."
            ) from error

    def save(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        """Write ``tree`` and ``meta`` (plain JSON) as checkpoint ``number``; TrainingError where the disk is full.

        Numbers grow as a run goes on; one that is there already is the same and stays.
        """
        arrays = named_leaves(tree)
        check_room(self.folder, arrays)
        meta = {**meta, "sha256": digest(arrays)}
        meta["meta_sha256"] = _hash_of(meta)
        ocp = self._ocp
        with self._told():
            # It is there already when a run stops right after one.
            if number not in self._manager.all_steps():
                args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
                self._manager.save(number, args=args)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as a tree like ``like``, and its meta; None where there is none.

        Raises:
            TrainingError: there are checkpoints, but none can be read, or they are of another model.
        """
        ocp = self._ocp
        arrays = named_leaves(like)
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems = []
        for step in steps:
            try:
                found = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(arrays), meta=ocp.args.JsonRestore())
                )
                state, meta = found["state"], found["meta"]
                # Checkpoints of earlier versions have no hash of their meta.
                said = meta.pop("meta_sha256", None)
                whole = digest({k: np.asarray(v) for k, v in state.items()}) == meta["sha256"]
                if not whole or said not in (None, _hash_of(meta)):
                    raise ValueError("its checksum does not fit its content")
            except Exception as error:
                # Anything at all may come out of a damaged file.
                problems.append(f"{step} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
                log.warning("Checkpoint %s is damaged; trying the one before.", problems[-1])
                continue
            for bad in steps[: steps.index(step)]:
                self._manager.delete(bad)
            leaves, structure = jax.tree_util.tree_flatten_with_path(like)
            values = [np.asarray(state[jax.tree_util.keystr(path)]) for path, _ in leaves]
            return jax.tree_util.tree_unflatten(structure, values), meta
        if problems:
            raise TrainingError(f"{self.folder}: no checkpoint can be read: {'; '.join(problems)}. Start a new run.")
        return None

    def wait(self) -> None:
        """Until everything is on disk."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        try:
            with self._told():
                self._manager.wait_until_finished()
                self._manager.close()
        finally:
            self._lock.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """TrainingError where the disk is full, or a quota is used up, of which :func:`check_room` sees nothing."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            found = error if isinstance(error, OSError) else _in_its_text(error)
            if found is None:
                raise
            raise TrainingError(
                f"{self.folder}: a checkpoint can't be written: {why_not_written(found)}. The run goes on from the one "
                "before."
            ) from error


def _in_its_text(error: Exception) -> OSError | None:
    """The system's error that TensorStore, which writes the arrays for orbax, tells by its number."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


def _hash_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _clear_leftovers(folder: Path) -> None:
    """Delete the temporary folders of a process that was killed."""
    for found in folder.glob("*.orbax-checkpoint-tmp*"):
        log.info("%s: removed, left by a run that was killed.", found)
        shutil.rmtree(found, ignore_errors=True)


def check_room(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """TrainingError where the disk has no room for another checkpoint."""
    need = _ROOM * sum(a.nbytes for a in arrays.values()) + (1 << 20)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise TrainingError(
            f"{folder}: {free / 2**20:.0f} MiB free on the disk, {need / 2**20:.0f} MiB needed for a checkpoint. Free some "
            "space; the run goes on from its last checkpoint."
        )
