"""The files of a simulation: trajectories, logs, the state to go on from, and what is written at its end.

Of several processes the first alone reads and writes them, and tells the others what it read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.errors import SimulationError
from leignn_jax.extxyz import extxyz_of
from leignn_jax.files import FolderLock, make_folder, why_not_written, write_atomically
from leignn_jax.list_sizes import ListSizes
from leignn_jax.potential import Potential
from leignn_jax.processes import arrays_from_first, from_first, is_first, on_host, together
from leignn_jax.simulation.chunks import Run
from leignn_jax.simulation.dynamics import ACCELERATION, System
from leignn_jax.simulation.ensembles import Ensemble, Ramp
from leignn_jax.simulation.state import load_state, save_state
from leignn_jax.simulation.thermo import ThermoLog
from leignn_jax.simulation.trajectory import TrajectoryWriter


class SimulationFolder:
    """The files of a simulation; all processes must make it, and call what it does.

    settings: of :func:`run_settings`; a simulation that is resumed must have the same.
    """

    def __init__(self, path: Path, run: Run, settings: dict[str, Any], single: bool, resume: bool):
        self.path, self.resumed, self.settings = path, resume, settings
        self.parts = [path] if single else [path / f"replica_{r:03d}" for r in range(len(run.structures))]
        self.writers: list[TrajectoryWriter] = []
        self.logs: list[ThermoLog] = []
        self._state_file = path / "state.safetensors"
        self._lock: FolderLock | None = None
        try:
            with together():
                if is_first():
                    self._prepare(resume)
            step = self._load(run) if resume else None
            stopped_at = on_host(run.stopped_at)
            with together():
                if is_first():
                    for atoms, part, at in zip(run.structures, self.parts, stopped_at, strict=True):
                        # Files of a replica that has stopped end there.
                        last = step if step is None or at < 0 else min(step, int(at))
                        file, every = part / "trajectory.h5", settings["save_every"]
                        self.writers.append(TrajectoryWriter(file, atoms, resume_step=last, every=every))
                        self.logs.append(ThermoLog(part / "thermo.csv", resume_step=last))
        except BaseException:
            self.close()
            raise

    def append(self, new: Iterable[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> None:
        """Frames and log lines of each replica."""
        with together():
            if is_first():
                for writer, log, (frame, row) in zip(self.writers, self.logs, new, strict=True):
                    if len(frame["step"]):
                        writer.append(**frame)
                    if len(row["step"]):
                        log.append(row)

    def checkpoint(self, run: Run) -> None:
        """A state from which the simulation can go on, after all frames before it."""
        tree = on_host(_restartable(run))
        with together():
            if is_first():
                for part in (*self.writers, *self.logs):
                    part.flush()
                save_state(self._state_file, tree, {**self.settings, "sizes": run.sizes._asdict()})

    def finish(self, run: Run, summary: dict[str, Any], final: list[ase.Atoms]) -> None:
        """The last state, summary and structures."""
        self.checkpoint(run)
        with together():
            self.close()
            if is_first():
                self._write_end(summary, final)

    def _prepare(self, resume: bool) -> None:
        for part in self.parts:
            make_folder(part, SimulationError)
        self._lock = FolderLock(self.path, SimulationError, "simulation")
        if not resume and any((self.path / f"state{name}.safetensors").exists() for name in ("", ".previous")):
            raise SimulationError(f"{self.path}: holds a simulation already. Resume it, or choose another folder.")

    def _write_end(self, summary: dict[str, Any], final: list[ase.Atoms]) -> None:
        try:
            for atoms, part in zip(final, self.parts, strict=True):
                write_atomically(part / "final.extxyz", extxyz_of([atoms]).encode())
            write_atomically(self.path / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        except OSError as error:
            raise SimulationError(
                f"{self.path}: the last structure can't be written: {why_not_written(error)}; trajectory and state are "
                "safe. Then resume the run."
            ) from error

    def close(self) -> None:
        """End all writers, also where one of them fails; the first failure is raised."""
        with contextlib.ExitStack() as stack:
            if self._lock is not None:
                stack.callback(self._lock.close)
            for writer in reversed(self.writers):
                stack.callback(writer.close)
            self.writers = []

    def _load(self, run: Run) -> int:
        """Put the run where the last state is; the number of its step."""
        tree, meta = _restartable(run), {}
        with together():
            if is_first():
                tree, meta = self._read(tree)
        tree, meta = arrays_from_first(tree), from_first(meta)
        # The user's coordinates may need more digits than the simulation's.
        run.origins = tree.pop("origins")
        tree = jax.tree.map(jnp.asarray, tree)
        # JSON has no tuples.
        sizes: Any = {name: tuple(x) if isinstance(x, list) else x for name, x in meta["sizes"].items()}
        sizes = ListSizes(**sizes)
        run.state, run.stopped, run.stopped_at = tree["state"], tree["stopped"], tree["stopped_at"]
        run.center = tree["center"]
        run.relist(sizes, tree["list_positions"], tree["list_cell"])
        return int(run.state.step)

    def _read(self, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The last state, and what was noted with it; SimulationError where it is of a simulation with other settings."""
        try:
            return load_state(self._state_file, like, self._check_settings)
        except FileNotFoundError:
            left = any((part / "trajectory.h5").exists() for part in self.parts)
            remedy = "Delete trajectory.h5 and thermo.csv of a start that failed, and start" if left else "Start"
            raise SimulationError(f"{self.path}: there is no state to resume from. {remedy} without resume.") from None

    def _check_settings(self, meta: dict[str, Any]) -> None:
        for name, value in self.settings.items():
            # Folders of older versions do not say on how many devices, where there was one, nor some other things.
            unsaid = {"devices": 1, "model": value, "cells (sha256)": value, "replicas": value}
            before = meta.get(name, unsaid.get(name))
            if before != value:
                raise SimulationError(
                    f"{self.path}: was run with {name} = {before}, not {value}. Resume with the same settings."
                )


def _restartable(run: Run) -> dict[str, Any]:
    """All arrays from which a simulation goes on bit for bit; lists are made again where they were made."""
    positions, cell = run.listed_at
    return {
        "state": run.state.replace(neighbors=None),
        "origins": run.origins,
        "list_positions": positions,
        "list_cell": cell,
        "stopped": run.stopped,
        "stopped_at": run.stopped_at,
        "center": run.center,
    }


def run_settings(run: Run, save_every: int, log_every: int, single: bool) -> dict[str, Any]:
    """What a resumed simulation must have in common with its start."""
    return {
        "ensemble": type(run.ensemble).__name__,
        "ensemble_numbers": json.loads(json.dumps(ensemble_numbers(run.ensemble))),
        "timestep": float(run.timestep),
        "save_every": save_every,
        "log_every": log_every,
        # Whose files lie in folders of their own.
        "replicas": None if single else len(run.structures),
        "dtype": str(run.dtype),
        "devices": 1 if run.mesh is None else run.mesh.size,
        "skin": run.skin,
        "held_atoms": _held(run.system),
        "atomic_numbers": np.asarray(run.system.numbers).tolist() if run.system.numbers.size < 10000 else None,
        "acceleration": ACCELERATION,
        "potential (sha256 of its numbers)": digest_of(run.model, repr(run.model.cutoff)),
        "model": _in_words(run.model),
        # Where the ensemble moves the cell it is in the state.
        "cells (sha256)": None if run.ensemble.moves_cell else digest_of([a.cell.array for a in run.structures]),
    }


def _in_words(model: Any) -> str:
    """Of a model made of models the classes, functions and what else of it is no array: the same in every process."""
    if isinstance(model, Potential):
        return "Potential"
    if is_dataclass(model) and not isinstance(model, type):
        inside = [f"{field.name}={_in_words(getattr(model, field.name))}" for field in fields(model)]
        return f"{type(model).__name__}({', '.join(inside)})"
    if isinstance(model, list | tuple):
        return f"[{', '.join(_in_words(one) for one in model)}]"
    if isinstance(model, dict):
        return f"{{{', '.join(f'{key}: {_in_words(one)}' for key, one in model.items())}}}"
    if isinstance(model, FunctionType):
        # Two functions of one name, such as lambdas, differ in the names or the numbers that they use.
        code = model.__code__
        used = [one for one in code.co_consts if isinstance(one, int | float | str)]
        return f"{model.__qualname__} of {[*code.co_names, *used]}"
    if isinstance(model, str | int | float) or model is None:
        return repr(model)
    return "number" if isinstance(model, np.ndarray | jax.Array | np.generic) else type(model).__name__


def ensemble_numbers(ensemble: Ensemble) -> dict[str, Any]:
    """What an ensemble was made with, as plain JSON."""
    numbers = {name: jax.tree.map(lambda x: np.asarray(x).tolist(), v) for name, v in ensemble.settings().items()}
    numbers = {name: vars(v) if isinstance(v, Ramp) else v for name, v in numbers.items()}
    inside = ensemble.wrapped
    return numbers if inside is None else numbers | {"around": {type(inside).__name__: ensemble_numbers(inside)}}


def _held(system: System) -> list[list[int]]:
    """Replica, atom and axis of every coordinate that is held."""
    real = np.asarray(system.numbers)[..., None] > 0
    return np.argwhere(real & (np.asarray(system.mobile) == 0)).tolist()


def digest_of(tree: Any, text: str = "") -> str:
    """sha256 of the arrays of a pytree, after that of a text."""
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
