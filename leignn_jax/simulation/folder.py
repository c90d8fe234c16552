"""The files of a simulation: trajectories, logs, the state to go on from, and what is written at its end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.errors import SimulationError
from leignn_jax.files import make_folder, why_not_written, write_atomically
from leignn_jax.list_sizes import ListSizes
from leignn_jax.simulation.chunks import Run
from leignn_jax.simulation.dynamics import ACCELERATION, EnergyModel, System
from leignn_jax.simulation.ensembles import Ensemble, Ramp
from leignn_jax.simulation.state import load_state, save_state
from leignn_jax.simulation.thermo import ThermoLog
from leignn_jax.simulation.trajectory import TrajectoryWriter


class SimulationFolder:
    """The files of a simulation."""

    def __init__(self, path: Path, run: Run, save_every: int, log_every: int, single: bool, resume: bool):
        self.path, self.resumed = path, resume
        names = [path] if single else [path / f"replica_{r:03d}" for r in range(len(run.structures))]
        for part in names:
            make_folder(part, SimulationError)
        self.parts = names
        self.writers: list[TrajectoryWriter] = []
        self.logs: list[ThermoLog] = []
        self._state_file = path / "state.safetensors"
        settings = _settings(run, save_every, log_every)
        step = None
        if resume:
            step = self._load(run, settings)
        elif any((path / name).exists() for name in ("state.safetensors", "state.previous.safetensors")):
            raise SimulationError(f"{path}: holds a simulation already. Resume it, or choose another folder.")
        try:
            for atoms, part in zip(run.structures, names, strict=True):
                self.writers.append(TrajectoryWriter(part / "trajectory.h5", atoms, resume_step=step))
                self.logs.append(ThermoLog(part / "thermo.csv", resume_step=step))
        except BaseException:
            self.close()
            raise
        self._settings = settings

    def append(self, r: int, frame: dict[str, np.ndarray], row: dict[str, np.ndarray]) -> None:
        """Frames and log lines of replica ``r``."""
        if len(frame["step"]):
            self.writers[r].append(**frame)
        if len(row["step"]):
            self.logs[r].append(row)

    def checkpoint(self, run: Run) -> None:
        """A state from which the simulation can go on, after all frames before it."""
        for writer in self.writers:
            writer.flush()
        save_state(self._state_file, _restartable(run), {**self._settings, "sizes": run.sizes._asdict()})

    def finish(self, run: Run, summary: dict[str, Any], final: list[ase.Atoms]) -> None:
        """The last state, summary and structures."""
        self.checkpoint(run)
        self.close()
        try:
            for atoms, part in zip(final, self.parts, strict=True):
                text = io.StringIO()
                ase.io.write(text, atoms, format="extxyz")
                write_atomically(part / "final.extxyz", text.getvalue().encode())
            write_atomically(self.path / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        except OSError as error:
            raise SimulationError(
                f"{self.path}: the last structure can't be written: {why_not_written(error)}; trajectory and state are "
                "safe. Then resume the run."
            ) from error

    def close(self) -> None:
        """End all writers, also where one of them fails; the first failure is raised."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close)
            self.writers = []

    def _load(self, run: Run, settings: dict[str, Any]) -> int:
        try:
            tree, meta = load_state(self._state_file, _restartable(run))
        except FileNotFoundError:
            raise SimulationError(f"{self.path}: there is no state to resume from. Start without resume.") from None
        for name, value in settings.items():
            # Folders of older versions do not say on how many devices; there was one.
            before = meta.get(name, 1 if name == "devices" else None)
            if before != value:
                raise SimulationError(
                    f"{self.path}: was run with {name} = {before}, not {value}. Resume with the same settings."
                )
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


def _settings(run: Run, save_every: int, log_every: int) -> dict[str, Any]:
    """What a resumed simulation must have in common with its start."""
    return {
        "ensemble": type(run.ensemble).__name__,
        "ensemble_numbers": json.loads(json.dumps(_numbers(run.ensemble))),
        "timestep": float(run.timestep),
        "save_every": save_every,
        "log_every": log_every,
        "dtype": str(run.dtype),
        "devices": 1 if run.mesh is None else run.mesh.size,
        "skin": run.skin,
        "held_atoms": _held(run.system),
        "atomic_numbers": np.asarray(run.system.numbers).tolist() if run.system.numbers.size < 10000 else None,
        "acceleration": ACCELERATION,
        "potential (sha256 of its numbers)": _digest(run.model),
    }


def _numbers(ensemble: Ensemble) -> dict[str, Any]:
    numbers = {name: jax.tree.map(lambda x: np.asarray(x).tolist(), v) for name, v in ensemble.settings().items()}
    numbers = {name: vars(v) if isinstance(v, Ramp) else v for name, v in numbers.items()}
    inside = ensemble.wrapped
    return numbers if inside is None else numbers | {"around": {type(inside).__name__: _numbers(inside)}}


def _held(system: System) -> list[list[int]]:
    """Replica, atom and axis of every coordinate that is held."""
    real = np.asarray(system.numbers)[..., None] > 0
    return np.argwhere(real & (np.asarray(system.mobile) == 0)).tolist()


def _digest(model: EnergyModel) -> str:
    digest = hashlib.sha256(repr(model.cutoff).encode())
    for leaf in jax.tree.leaves(model):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
