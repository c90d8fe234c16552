"""The engine: from a potential and a structure to a trajectory; see :mod:`leignn_jax.simulation.chunks` for the steps."""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.errors import ConfigError, SimulationError, StructureError
from leignn_jax.files import make_folder
from leignn_jax.interruption import stop_requests
from leignn_jax.models.config import did_you_mean
from leignn_jax.simulation.chunks import REASONS, SAVED, Limits, Run
from leignn_jax.simulation.dynamics import EnergyModel
from leignn_jax.simulation.ensembles import (
    CSVR,
    NVE,
    CellRescaling,
    Ensemble,
    Langevin,
    NoseHoover,
    Ramp,
    thermo,
)
from leignn_jax.simulation.folder import SimulationFolder
from leignn_jax.simulation.progress import simulation_progress
from leignn_jax.simulation.thermo import column, read_thermo
from leignn_jax.simulation.trajectory import read_trajectory

log = logging.getLogger("leignn_jax")

# Steps of a chunk: enough that the host's work between chunks does not count.
_CHUNK_STEPS = 200


class Frames(NamedTuple):
    """Saved frames of one system: ``step`` [frames], ``time`` [frames] fs, ``positions``, ``velocities`` and ``forces``
    [frames, atoms, 3] in Å, Å/fs and eV/Å, ``cell`` [frames, 3, 3] Å, ``energy`` [frames] eV. Positions are not wrapped;
    they, cell and energy are float64."""

    step: np.ndarray
    time: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray
    cell: np.ndarray
    energy: np.ndarray


class Simulation(NamedTuple):
    """What a simulation leaves; lists have one entry per replica where several were given or asked for.

    atoms: the last structure, with velocities.
    trajectory: saved frames: :class:`Frames`, or a :class:`leignn_jax.simulation.trajectory.Trajectory` where it was
        written to a folder.
    thermo: arrays by name and unit, one value per logged step: ``step``, ``time_fs``, ``potential_energy_eV``,
        ``kinetic_energy_eV``, ``temperature_K``, ``pressure_GPa``, ``volume_A3``, ``conserved_eV``.
    summary: facts: steps, speed, renewals of lists, ``stopped``, why it ended early (None where it did not), and
        ``signal``, the name of the signal that asked it to end (None where none did).
    """

    atoms: Any
    trajectory: Any
    thermo: Any
    summary: dict[str, Any]


def make_ensemble(name: str, temperature: Any = None, pressure: Any = None) -> Ensemble:
    """The ensemble of a short name; ConfigError where a number is missing or too many are given.

    Args:
        name: "nve", "nvt" or "nose-hoover", "langevin", "csvr", "npt" (isotropic), "npt-anisotropic", "npt-triclinic".
        temperature: K, a number, a Ramp or one per replica. pressure: GPa.
    """
    makers = {
        "nvt": NoseHoover,
        "nose-hoover": NoseHoover,
        "langevin": Langevin,
        "csvr": CSVR,
        "npt": CellRescaling,
        "npt-anisotropic": partial(CellRescaling, shape="anisotropic"),
        "npt-triclinic": partial(CellRescaling, shape="triclinic"),
    }
    key = name.lower()
    if key == "nve":
        return NVE()
    if key not in makers:
        raise ConfigError(f"ensemble: {name!r} is not known{did_you_mean(key, ['nve', *makers])}")
    if temperature is None:
        raise ConfigError(f"ensemble {name}: give a temperature in K.")
    if key.startswith("npt"):
        return makers[key](temperature=temperature, pressure=0.0 if pressure is None else pressure)
    if pressure is not None:
        raise ConfigError(f"ensemble {name} has no pressure; use npt.")
    return makers[key](temperature=temperature)


def simulate(
    potential: EnergyModel,
    atoms: ase.Atoms | Sequence[ase.Atoms],
    ensemble: Ensemble | str = "nve",
    *,
    steps: int,
    timestep: float = 1.0,
    temperature: Any = None,
    pressure: Any = None,
    replicas: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    save_every: int = 100,
    log_every: int = 10,
    skin: float = 0.5,
    dtype: str = "float32",
    max_temperature: float = 1e4,
    max_step: float = 1.0,
    max_distance: float = 100.0,
    checkpoint_minutes: float = 1.0,
    progress: bool | None = None,
) -> Simulation:
    """Molecular dynamics of one structure, of replicas of it, or of several structures side by side.

    Args:
        potential: a :class:`leignn_jax.Potential`, or any :class:`leignn_jax.simulation.dynamics.EnergyModel`.
        atoms: one structure or several. Their velocities are taken where they have any, else drawn at ``temperature``.
            Atoms in FixAtoms constraints are held.
        ensemble: a short name (see :func:`make_ensemble`) or an object of :mod:`leignn_jax.simulation.ensembles`.
        steps: in all; a resumed simulation goes on up to that many.
        timestep: fs.
        temperature: K, of the ensemble where it is a name, and of drawn velocities. pressure: GPa.
        replicas: copies of one structure, each with its own random numbers; None is one, without an axis of replicas.
        seed: of velocities and noise. Replica r has the same random numbers whatever the number of replicas and the sizes
            of the others.
        out: a folder for trajectory.h5, thermo.csv, state.safetensors and summary.json (in replica_000, ... where there
            are replicas); None keeps everything in memory.
        resume: go on with the simulation in ``out``, bit for bit.
        save_every, log_every: steps between frames and between logged lines; the former a multiple of the latter.
        skin: Å, by which neighbour lists reach beyond the cutoff.
        dtype: "float32" or "float64".
        max_temperature, max_step, max_distance: K; Å in one step; Å from the start along open directions. A replica
            that exceeds one stops there.
        checkpoint_minutes: between states from which a killed simulation can go on.
        progress: show a progress bar; None where there is a terminal.

    Raises:
        ConfigError: settings that do not fit together.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
        SimulationError: the folder can't be used, the disk is full, or lists grow without end.
    """
    _check_settings(steps, timestep, save_every, log_every, dtype, skin, resume, out)
    if out is not None:
        make_folder(Path(out), SimulationError)
    single = hasattr(atoms, "positions") and replicas is None
    structures = [cast("ase.Atoms", atoms)] if hasattr(atoms, "positions") else list(cast("Sequence[ase.Atoms]", atoms))
    if not structures:
        raise ConfigError("atoms: give one structure or more.")
    if replicas is not None:
        if len(structures) != 1:
            raise ConfigError("replicas: give one structure, or several structures without replicas.")
        if replicas < 1:
            raise ConfigError(f"replicas must be one or more, not {replicas!r}.")
        structures = structures * replicas
    empty = [r for r, one in enumerate(structures) if len(one) == 0]
    if empty:
        raise StructureError(f"Structure {empty[0]} has no atoms.")
    if isinstance(ensemble, str):
        ensemble = make_ensemble(ensemble, temperature, pressure)
    elif pressure is not None:
        raise ConfigError("pressure: give it to the ensemble, which is an object here.")
    _check_numbers(ensemble, temperature, len(structures))
    kelvin = temperature if temperature is not None else getattr(ensemble, "temperature", None)
    if ensemble.moves_cell and not all(a.pbc.all() for a in structures):
        raise ConfigError("A changing cell needs a structure that is periodic in all three directions.")
    with jax.enable_x64(dtype == "float64"):
        run = Run(potential, structures, ensemble, timestep, kelvin, seed, skin, np.dtype(dtype))
        limits = Limits(*(jnp.asarray(x, dtype) for x in (max_temperature, max_step, max_distance)))
        folder = None if out is None else SimulationFolder(Path(out), run, save_every, log_every, single, resume)
        try:
            return _simulate(run, folder, limits, steps, save_every, log_every, checkpoint_minutes, progress, single)
        finally:
            if folder is not None:
                folder.close()


def _check_settings(steps, timestep, save_every, log_every, dtype, skin, resume, out) -> None:
    if steps < 0 or save_every < 1 or log_every < 1:
        raise ConfigError("steps must be zero or more, save_every and log_every one or more.")
    if save_every % log_every:
        raise ConfigError(f"save_every ({save_every}) must be a multiple of log_every ({log_every}).")
    if not (np.isfinite(timestep) and timestep > 0):
        raise ConfigError(f"timestep must be a positive number of fs, not {timestep!r}.")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype must be 'float32' or 'float64', not {dtype!r}.")
    if not (np.isfinite(skin) and skin > 0):
        raise ConfigError(f"skin must be a positive number of Å, not {skin!r}.")
    if resume and out is None:
        raise ConfigError("resume: name the folder (out) of the simulation to go on with.")


def _check_numbers(ensemble: Ensemble, kelvin: Any, replicas: int) -> None:
    """ConfigError where a number of the ensemble is out of range or one per replica is of another length."""
    zero = ("temperature", "friction")
    for name, value in {**vars(ensemble), "temperature of the start": kelvin}.items():
        if value is None or isinstance(value, str):
            continue
        where = f"{type(ensemble).__name__}, {name}"
        ramp = isinstance(value, Ramp)
        numbers = np.asarray(value.values if ramp else value, float)
        if ramp and (numbers.ndim != 1 or numbers.shape != np.shape(value.times) or (np.diff(value.times) < 0).any()):
            raise ConfigError(f"{where}: a ramp needs as many values as times, and times that grow.")
        if not ramp and numbers.shape not in ((), (replicas,)):
            raise ConfigError(
                f"{where}: has shape {numbers.shape}; give one number, or one for each of {replicas} replicas."
            )
        least = -np.inf if name == "pressure" else 0.0
        allowed = numbers >= least if name.startswith(zero) else numbers > least
        if isinstance(ensemble, NoseHoover) and name == "temperature":
            allowed = numbers > 0
        if not (np.isfinite(numbers) & allowed).all():
            raise ConfigError(f"{where}: {numbers.tolist()} is out of range.")


# -------------------------------------------------------------------------------------------------------------- the run


def _simulate(run: Run, folder, limits, steps, save_every, log_every, checkpoint_minutes, progress, single):
    kept: list[list[dict[str, np.ndarray]]] = [[] for _ in run.structures]
    lines: list[list[dict[str, np.ndarray]]] = [[] for _ in run.structures]
    first = int(run.state.step)
    frames = max(1, _CHUNK_STEPS // save_every)
    began = saved = clock.monotonic()
    measured: tuple[float, int] | None = None
    interrupted: str | None = None
    if folder is None or not folder.resumed:
        _store(run, folder, kept, lines, _present(run), _present_line(run))
        if folder is not None:
            # Killed at any moment from here on it can go on.
            folder.checkpoint(run)
    with stop_requests() as stop, simulation_progress(steps, float(run.timestep), progress) as bar:
        bar.update(first, run.state)
        while int(run.state.step) < steps and not bool((run.stopped > 0).all()) and not stop.is_set():
            frame, line = run.advance(limits, steps, log_every, save_every // log_every, frames)
            _store(run, folder, kept, lines, frame, line)
            bar.update(int(run.state.step), run.state)
            if measured is None:
                measured = (clock.monotonic(), int(run.state.step))
            if folder is not None and clock.monotonic() - saved > 60 * checkpoint_minutes:
                folder.checkpoint(run)
                saved = clock.monotonic()
        interrupted = stop.signal
    done = int(run.state.step)
    summary = _summary(run, done, steps, first, began, measured, interrupted)
    if interrupted is not None and done < steps:
        remedy = "" if folder is None else "; resume (--resume) goes on from there"
        log.warning("Stopped by a signal at step %d of %d%s.", done, steps, remedy)
    final = _final_atoms(run)
    if folder is not None:
        folder.finish(run, summary, final)
        trajectory = [read_trajectory(p / "trajectory.h5") for p in folder.parts]
        numbers: list[Any] = [read_thermo(p / "thermo.csv") for p in folder.parts]
    else:
        trajectory = [Frames(**{k: np.concatenate([p[k] for p in parts]) for k in Frames._fields}) for parts in kept]
        numbers = [{column(k): np.concatenate([p[k] for p in parts]) for k in parts[0]} for parts in lines]
    if single:
        return Simulation(final[0], trajectory[0], numbers[0], summary)
    return Simulation(final, trajectory, numbers, summary)


def _present(run: Run):
    """The state as a chunk of one frame."""
    state = run.state
    saved = {name: getattr(state, name) for name in SAVED}
    one = jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(saved))
    return {**one, "moved": np.ones(1, bool), "stopped": np.zeros((1, len(run.structures)), np.int32)}


def _present_line(run: Run):
    numbers = jax.jit(thermo)(run.ensemble, run.system, run.state, run.timestep)
    one = jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(numbers._asdict()))
    stopped = np.zeros((1, len(run.structures)), np.int32)
    return {**one, "step": np.zeros(1, np.int32), "moved": np.ones(1, bool), "stopped": stopped}


def _store(run: Run, folder, kept, lines, frame, line) -> None:
    """Give frames and lines that are new, of replicas that have not stopped, to the folder or to memory."""
    dt = float(run.timestep)
    positions, cell = run.seen(frame["positions"], frame["images"], frame["cell"])
    for r, atoms in enumerate(run.structures):
        chosen = frame["moved"] & (frame["stopped"][:, r] == 0)
        step = frame["step"][chosen].astype(np.int64)
        count = len(atoms)
        one = {
            "step": step,
            "time": step * dt,
            "positions": positions[chosen, r, :count],
            **{k: frame[k][chosen, r, :count] for k in ("velocities", "forces")},
            "cell": cell[chosen, r],
            "energy": frame["energy"][chosen, r].astype(np.float64) + run.references[r],
        }
        chosen = line["moved"] & (line["stopped"][:, r] == 0)
        row = {"step": line["step"][chosen].astype(np.int64)}
        row["time"] = row["step"] * dt
        for name in ("potential_energy", "kinetic_energy", "temperature", "pressure", "volume", "conserved"):
            row[name] = line[name][chosen, r].astype(np.float64)
        for name in ("potential_energy", "conserved"):
            row[name] = row[name] + run.references[r]
        if folder is None:
            kept[r].append(one)
            lines[r].append(row)
        else:
            folder.append(r, one, row)


def _final_atoms(run: Run) -> list[ase.Atoms]:
    state, final = run.state, []
    positions, cell = run.seen(state.positions, state.images, state.cell)
    for r, start in enumerate(run.structures):
        atoms = start.copy()
        atoms.calc = None
        if run.ensemble.moves_cell:
            atoms.set_cell(cell[r])
        atoms.set_positions(positions[r, : len(atoms)], apply_constraint=False)
        atoms.set_velocities(np.asarray(state.velocities[r, : len(atoms)], float) / ase.units.fs)
        final.append(atoms)
    return final


def _summary(run: Run, done, steps, first, began, measured, interrupted) -> dict[str, Any]:
    seconds = clock.monotonic() - began
    stopped = [
        None if not code else f"step {int(at)}: {REASONS[int(code)]}"
        for code, at in zip(np.asarray(run.stopped), np.asarray(run.stopped_at), strict=True)
    ]
    for r, why in enumerate(stopped):
        if why is not None:
            log.warning("%sstopped at %s.", f"Replica {r} " if len(stopped) > 1 else "The simulation ", why)
    speed = None
    if measured is not None and done > measured[1]:
        speed = (done - measured[1]) / (clock.monotonic() - measured[0])
    return {
        "steps": done,
        "finished": done >= steps and not any(stopped),
        "stopped": stopped if len(stopped) > 1 else stopped[0],
        "signal": interrupted,
        "atoms": [len(a) for a in run.structures],
        "timestep_fs": float(run.timestep),
        "dtype": str(run.dtype),
        "device": jax.devices()[0].device_kind,
        "seconds": round(seconds, 3),
        "steps_per_second": None if speed is None else round(speed, 3),
        "ns_per_day": None if speed is None else round(speed * float(run.timestep) * 86400e-6, 4),
        "list_renewals": int(np.asarray(run.state.neighbors.renewals).max()),
        "list_sizes": run.sizes._asdict(),
        "resumed_at": first or None,
    }
