"""Trajectories: a writer that never holds up the simulation, and a reader of what is on disk at any moment."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time as clock
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import ArrayLike, DTypeLike

from leignn_jax.arguments import check_path
from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.extxyz import extxyz_of
from leignn_jax.files import open_atomically, remove_leftovers, why_not_written
from leignn_jax.simulation import h5md
from leignn_jax.simulation.h5md_checks import wrong_cells, wrong_clock, wrong_system

log = logging.getLogger("leignn_jax")

# Chunks that wait for the disk before the simulation does.
_WAITING = 8


class Trajectory:
    """Frames of one system, read from disk where they are asked for; slices of it are trajectories as well.

    The numbers of frames are those at the time of :func:`read_trajectory`; frames that a running simulation adds later
    are seen by reading again.

    numbers: atomic numbers [atoms]; masses [atoms] amu; pbc: periodic directions [3].
    """

    def __init__(self, layout: h5md.Layout, frames: range):
        self._layout = layout
        self._frames = frames
        self.path = layout.path
        self.numbers, self.masses, self.pbc = layout.system

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int | slice) -> Trajectory:
        """Some of the frames; a single number gives a trajectory of that one frame. IndexError where there is none."""
        if not isinstance(index, slice):
            number = self._frames[index]
            return Trajectory(self._layout, range(number, number + 1))
        return Trajectory(self._layout, self._frames[index])

    def __repr__(self) -> str:
        return f"Trajectory({self.path}, {len(self)} frames, {len(self.numbers)} atoms)"

    @cached_property
    def step(self) -> np.ndarray:
        """Steps since the start of the simulation [frames], int64."""
        return self._need("step")

    @cached_property
    def time(self) -> np.ndarray:
        """fs [frames], float64."""
        return self._need("time")

    @cached_property
    def positions(self) -> np.ndarray:
        """Å [frames, atoms, 3], not wrapped into the cell."""
        return self._need("positions")

    @cached_property
    def velocities(self) -> np.ndarray | None:
        """Å/fs [frames, atoms, 3]; None where they were not written."""
        return self._read("velocities")

    @cached_property
    def forces(self) -> np.ndarray | None:
        """eV/Å [frames, atoms, 3]; None where they were not written."""
        forces = self._read("forces")
        return None if forces is None else forces * np.asarray(h5md.FORCE_UNIT, forces.dtype)

    @cached_property
    def cell(self) -> np.ndarray:
        """Lattice vectors as rows, Å [frames, 3, 3]; zeros where there is no cell."""
        cell = self._read("cell")
        if cell is None:
            return np.zeros((len(self), 3, 3))
        problem = wrong_cells(cell, self.pbc)
        if problem is not None:
            raise FileFormatError(f"{self.path}: {problem}. It is damaged, or not written by leignn_jax.")
        return cell

    @cached_property
    def energy(self) -> np.ndarray | None:
        """Potential energy, eV [frames]; None where it was not written."""
        energy = self._read("energy")
        if energy is not None and not np.isfinite(energy).all():
            frame = int(np.argmin(np.isfinite(energy)))
            raise FileFormatError(
                f"{self.path}: the energy of frame {frame} is {energy[frame]} eV. It is damaged, or not written by "
                "leignn_jax."
            )
        return energy

    def pieces(self) -> Iterator[Trajectory]:
        """The frames in turn, in trajectories of a few MiB each: for files that are larger than the memory."""
        for frames in h5md.slabs(self._layout, self._frames):
            yield Trajectory(self._layout, frames)

    def to_atoms(self, wrap: bool = False) -> list[ase.Atoms]:
        """The frames as structures, with velocities, and energy and forces as results where they were written.

        wrap: put the atoms into the cell along its periodic directions.
        """
        frames = []
        for i in range(len(self)):
            atoms = ase.Atoms(
                self.numbers,
                self.positions[i],
                cell=self.cell[i],
                pbc=self.pbc,
                masses=self.masses,
                info={"step": int(self.step[i]), "time_fs": float(self.time[i])},
            )
            if self.velocities is not None:
                atoms.set_velocities(self.velocities[i] / units.fs)
            if wrap:
                atoms.wrap()
            results: dict[str, Any] = {}
            if self.energy is not None:
                results["energy"] = float(self.energy[i])
            if self.forces is not None:
                results["forces"] = self.forces[i]
            if results:
                atoms.calc = SinglePointCalculator(atoms, **results)
            frames.append(atoms)
        return frames

    def _need(self, name: str) -> np.ndarray:
        values = self._read(name)
        if values is None:
            raise FileFormatError(f"{self.path}: it has no {name}. Damaged? Copy it again.")
        return values

    def _read(self, name: str) -> np.ndarray | None:
        if name not in self._layout.dtypes:
            return None
        backwards = self._frames.step < 0
        frames = self._frames[::-1] if backwards else self._frames
        layout = self._layout
        while True:
            try:
                values = h5md.read_field(layout, name, frames)
                return values[::-1] if backwards else values
            except (FileNotFoundError, h5md.OtherFramesError) as error:
                found: FileNotFoundError | h5md.OtherFramesError = error
            # A running simulation has put parts together since we looked, or one that was resumed has gone on; the frames
            # are the same. It may do so again, and as often as it is faster than we are.
            before, layout = layout, h5md.read_layout(self.path)
            if layout.parts == before.parts:
                if isinstance(found, h5md.OtherFramesError):
                    raise found
                raise FileFormatError(
                    f"{self.path}: a part of it is missing ({found}). Copy the folder "
                    f"{h5md.parts_folder(self.path).name} with it."
                )
            if len(frames) > 0 and layout.frames <= frames[-1]:
                raise FileFormatError(f"{self.path}: it has been cut to {layout.frames} frames. Read it again.")


def read_trajectory(path: str | Path, index: int | slice = slice(None)) -> Trajectory:
    """The frames in a ``trajectory.h5``, also of a simulation that still runs or was killed.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged or no trajectory of this package. Numbers are checked against their checksums where
            they are read, steps and times here.
    """
    # Frames are read when they are asked for, wherever the process has gone to meanwhile.
    layout = h5md.read_layout(check_path("path", path).absolute())
    trajectory = Trajectory(layout, range(layout.frames))
    problem = wrong_clock(trajectory.step, trajectory.time)
    if problem is not None:
        raise FileFormatError(f"{path}: {problem}. It is damaged, or not written by leignn_jax.")
    return trajectory[index]


def write_extxyz(path: str | Path, trajectory: Trajectory, wrap: bool = False) -> None:
    """Write the frames as extended XYZ, by ASE; the file is whole or not there.

    wrap: put the atoms into the cell along its periodic directions.

    Raises:
        SimulationError: the file can't be written.
    """
    path = check_path("path", path)
    try:
        with open_atomically(path) as file:
            for piece in trajectory.pieces():
                file.write(extxyz_of(piece.to_atoms(wrap)).encode())
    except OSError as error:
        raise SimulationError(f"{path}: can't be written: {why_not_written(error)}.") from error


class TrajectoryWriter:
    """Appends frames to ``path`` by a thread, so that the simulation waits for the disk only where it is much faster.

    Frames are on disk, also after a kill, once :meth:`flush` or :meth:`close` has returned; without them once they fill
    a part or are ``flush_seconds`` old. Flush before the state of the simulation is saved: a resumed run then finds every
    frame up to it. :meth:`close` makes one ordinary H5MD file. An error of the thread is raised by the next call.

    path: such as ``trajectory.h5``; parts of an unfinished one are in ``trajectory.parts`` beside it.
    atoms: the system; numbers, masses, periodic directions and, where ``append`` gets none, the cell.
    resume_step: go on with the file there, after dropping the frames of later steps.
    every: steps between frames, of which none may be missing before ``resume_step``; by default those between the last two.
    dtype: of velocities and forces on disk; by default float32, or that of the file there. Positions, which may have gone
        far, are float64, as cells and energies.

    Raises:
        SimulationError: there is a trajectory already and no ``resume_step``, or it is of another system, lacks frames
            before ``resume_step``, or can't be written.
        FileFormatError: the file there is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        atoms: ase.Atoms,
        *,
        resume_step: int | None = None,
        every: int | None = None,
        dtype: DTypeLike | None = None,
        flush_seconds: float = 30.0,
        part_bytes: int = 64 << 20,
    ):
        self.path = Path(path)
        self._atoms = atoms
        self._system = h5md.System.of(atoms)
        chosen = np.dtype(np.float32 if dtype is None else dtype)
        self._dtypes = {"positions": np.dtype(np.float64), "velocities": chosen, "forces": chosen}
        self._flush_seconds = flush_seconds
        self._part_bytes = part_bytes
        try:
            self._layout = self._begin(resume_step, every)
        except OSError as error:
            raise self._disk_error(error) from error
        if self._layout is not None:
            there = {name: found for name, found in self._layout.dtypes.items() if name in self._dtypes}
            for name in there.keys() - {"positions"}:
                if dtype is not None and there[name] != chosen:
                    raise SimulationError(f"{self.path}: holds {there[name]}, not {chosen}. Resume without dtype.")
            self._dtypes |= there
        self._last = self._durable = None if self._layout is None else self._last_step(self._layout)
        self._error: SimulationError | None = None
        self._closed = False
        self._queue: queue.Queue[dict[str, np.ndarray] | threading.Event | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"writer of {self.path.name}", daemon=True)
        self._thread.start()

    @property
    def durable_step(self) -> int | None:
        """The step of the last frame that is on disk; None where there is none."""
        return self._durable

    def append(
        self,
        step: ArrayLike,
        time: ArrayLike,
        positions: ArrayLike,
        velocities: ArrayLike | None = None,
        forces: ArrayLike | None = None,
        cell: ArrayLike | None = None,
        energy: ArrayLike | None = None,
    ) -> None:
        """Add frames; the arrays are copied.

        step [frames]; time [frames] fs; positions [frames, atoms, 3] Å, not wrapped; velocities [frames, atoms, 3] Å/fs;
        forces [frames, atoms, 3] eV/Å; cell [frames, 3, 3] Å; energy [frames] potential energy, eV. Every call gives the
        same ones of those that may be left out.

        Raises:
            SimulationError: shapes or steps do not fit, or earlier frames could not be written.
        """
        self._check()
        fields = self._frames(step, time, positions, velocities, forces, cell, energy)
        if len(fields["step"]) == 0:
            return
        self._last = int(fields["step"][-1])
        self._queue.put(fields)

    def flush(self) -> None:
        """Until every frame so far is on disk; SimulationError where it can't be."""
        self._check()
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        self._check()

    def close(self) -> None:
        """Write what is left, end the thread, and make one file of the parts; SimulationError where frames were lost."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._durable is not None:
            h5md.merge(self.path)
        else:
            h5md.parts_folder(self.path).rmdir()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            self.close()
        except SimulationError as error:
            # What went wrong first is what the user must see.
            if kind is None:
                raise
            log.error("%s", error)

    def _begin(self, resume_step: int | None, every: int | None) -> h5md.Layout | None:
        """What is on disk already; None for a new trajectory."""
        path = self.path
        problem = wrong_system(*self._system)
        if problem is not None:
            raise SimulationError(f"{path}: no trajectory can be written: {problem}.")
        remove_leftovers(path)
        if path.exists():
            if resume_step is None:
                raise SimulationError(
                    f"{path}: there is a trajectory already. Resume it, delete it, or write to another folder."
                )
            layout = h5md.read_layout(path)
            for name, ours, theirs in zip(layout.system._fields, self._system, layout.system, strict=True):
                if not np.array_equal(ours, theirs):
                    raise SimulationError(f"{path}: a trajectory of another system: its {name} differ.")
            layout = h5md.truncate(path, resume_step, every)
            if layout is not None:
                return layout
        elif resume_step is not None and resume_step > 0:
            log.warning("%s: no trajectory to go on with; its first frame comes after step %d.", path, resume_step)
        # Parts without a trajectory were never reported as written.
        shutil.rmtree(h5md.parts_folder(path), ignore_errors=True)
        h5md.parts_folder(path).mkdir(parents=True)
        return None

    def _frames(self, step, time, positions, velocities, forces, cell, energy) -> dict[str, np.ndarray]:
        """The chunk as it goes to disk."""
        steps = np.array(step, np.int64)
        if cell is None and self._atoms.cell.rank > 0:
            cell = np.broadcast_to(self._atoms.cell.array, (*steps.shape, 3, 3))
        given = {
            "time": (time, np.dtype(np.float64)),
            "positions": (positions, self._dtypes["positions"]),
            "velocities": (velocities, self._dtypes["velocities"]),
            "forces": (forces, self._dtypes["forces"]),
            "cell": (cell, np.dtype(np.float64)),
            "energy": (energy, np.dtype(np.float64)),
        }
        given = {name: pair for name, pair in given.items() if pair[0] is not None}
        layout = self._layout
        if layout is None:
            dtypes = {"step": steps.dtype, **{name: dtype for name, (_, dtype) in given.items()}}
            layout = h5md.Layout(self.path, self._system, (), dtypes)
        if layout.dtypes.keys() != {"step", *given}:
            names = sorted(layout.dtypes.keys() ^ {"step", *given})
            raise SimulationError(f"{self.path}: {', '.join(names)} must be in all of its frames or in none.")
        fields = {"step": steps}
        for name, (values, dtype) in given.items():
            scale = h5md.FORCE_UNIT if name == "forces" else 1.0
            fields[name] = np.array(values, dtype) if scale == 1.0 else (np.asarray(values) / scale).astype(dtype)
            expected = (*steps.shape, *layout.frame_shape(name))
            if steps.ndim != 1 or fields[name].shape != expected:
                raise SimulationError(
                    f"{name} has shape {fields[name].shape}, not {expected}: one entry per step of step {steps.shape}."
                )
        before = [] if self._last is None else [self._last]
        wrong = np.flatnonzero(np.diff(np.concatenate([before, steps])) <= 0)
        if len(wrong) > 0:
            raise SimulationError(
                f"{self.path}: steps must grow, but after step {self._last} come {steps.tolist()[:5]}."
            )
        problem = wrong_clock(steps, fields["time"])
        if problem is not None:
            raise SimulationError(f"{self.path}: {problem}.")
        if len(steps) > 0 and self._layout is None:
            # Once it is there, the thread alone changes it, also while frames are made here.
            self._layout = layout
        return fields

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise SimulationError(f"{self.path}: the writer is closed.")

    def _work(self) -> None:
        """The thread: gather chunks, and write them where they fill a part, are old, or someone waits."""
        waiting: list[dict[str, np.ndarray]] = []
        size, oldest = 0, 0.0
        while True:
            try:
                left = max(0.0, oldest + self._flush_seconds - clock.monotonic()) if waiting else None
                item = self._queue.get(timeout=left)
            except queue.Empty:
                item = threading.Event()
            if isinstance(item, dict):
                oldest = oldest if waiting else clock.monotonic()
                waiting.append(item)
                size += sum(array.nbytes for array in item.values())
            if waiting and (not isinstance(item, dict) or size >= self._part_bytes):
                if self._error is None:
                    self._write(waiting, size)
                waiting, size = [], 0
            if isinstance(item, threading.Event):
                item.set()
            if item is None:
                return

    def _write(self, pieces: list[dict[str, np.ndarray]], size: int) -> None:
        try:
            fields = h5md.joined(pieces)
            layout = self._layout
            assert layout is not None
            parts = list(layout.parts)
            # Put small parts together, each with those of its size, so that there are few and each frame is copied a few
            # times at most.
            count = len(fields["step"])
            while (
                parts and parts[-1].frames <= count and size + parts[-1].frames * layout.frame_bytes <= self._part_bytes
            ):
                size += parts[-1].frames * layout.frame_bytes
                count += parts.pop().frames
            absorbed = range(sum(part.frames for part in parts), layout.frames)
            if len(absorbed) > 0:
                before = {name: h5md.read_field(layout, name, absorbed) for name in layout.dtypes}
                fields = h5md.joined([before, fields])
            part = h5md.write_part(layout, fields)
            layout = layout._replace(parts=(*parts, part))
            h5md.commit(layout)
            self._layout = layout
            self._durable = int(fields["step"][-1])
        except OSError as error:
            self._error = self._disk_error(error)
        except Exception as error:
            # Whatever it is, the simulation must learn of it.
            self._error = SimulationError(f"{self.path}: frames can't be written: {error}. {self._remedy()}")
            self._error.__cause__ = error

    def _disk_error(self, error: OSError) -> SimulationError:
        result = SimulationError(f"{self.path}: frames can't be written: {why_not_written(error)}. {self._remedy()}")
        result.__cause__ = error
        return result

    def _remedy(self) -> str:
        durable = getattr(self, "_durable", None)
        if durable is not None:
            kept = f"Frames up to step {durable} are safe"
        else:
            kept = "The frames there are safe" if self.path.exists() else "Nothing is on disk yet"
        return f"{kept}; then resume the run."

    def _last_step(self, layout: h5md.Layout) -> int:
        return int(h5md.read_field(layout, "step", range(layout.frames)[-1:])[0])
