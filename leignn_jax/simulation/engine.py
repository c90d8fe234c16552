"""The engine: from a potential and a structure to a trajectory; see :mod:`leignn_jax.simulation.chunks` for the steps."""

from __future__ import annotations

import json
import logging
import time as clock
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import jax
import numpy as np

from leignn_jax.arguments import (
    MOST_STEPS,
    check_dtype,
    check_flag,
    check_model,
    check_number,
    check_path,
    check_seed,
    check_structures,
    check_whole,
)
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.files import make_folder
from leignn_jax.interruption import steps_at_once, stop_requests
from leignn_jax.processes import check_devices, check_same, connect, is_first, largest, on_host, together, versions
from leignn_jax.progress import ProgressBar, is_shown
from leignn_jax.simulation.chunks import LIMITS, REASONS, SAVED, UNSURE, Limits, Run, check_limits, line_of
from leignn_jax.simulation.dynamics import EnergyModel, State, structure_of
from leignn_jax.simulation.ensembles import Ensemble
from leignn_jax.simulation.folder import SimulationFolder, digest_of, ensemble_numbers, run_settings
from leignn_jax.simulation.model_sums import has_doubts
from leignn_jax.simulation.settings import check_ensemble, make_ensemble
from leignn_jax.simulation.thermo import column, read_thermo
from leignn_jax.simulation.trajectory import read_trajectory

log = logging.getLogger("leignn_jax")

# Steps of a chunk at most: enough that the host's work between chunks does not count.
_CHUNK_STEPS = 200
# Steps of a chunk at most where frames or log lines are far apart: within one nothing is saved and no signal obeyed.
_SPLIT_STEPS = 500
# More atoms than run in one program, of all replicas; more log lines than are kept on the device.
_MOST_ATOMS = 10_000_000
_MOST_LINES = 100_000


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

    atoms: the last structure, with velocities, and with energy, forces and stress in its calculator.
    trajectory: saved frames: :class:`Frames`, or a :class:`leignn_jax.simulation.trajectory.Trajectory` where it was
        written to a folder; then None, as ``thermo``, in all processes but the first.
    thermo: arrays by name and unit, one value per logged step: ``step``, ``time_fs``, ``potential_energy_eV``,
        ``kinetic_energy_eV``, ``temperature_K``, ``pressure_GPa``, ``volume_A3``, ``conserved_eV``; of a committee
        ``doubt_eV_per_A``.
    summary: facts: steps, speed, renewals of lists, ``stopped``, why it ended early (None where it did not), and
        ``signal``, the name of the signal that asked it to end (None where none did).
    bath: what the ensemble remembers at the end, arrays ``[replicas, ...]``, such as the hills of metadynamics.
    """

    atoms: Any
    trajectory: Any
    thermo: Any
    summary: dict[str, Any]
    bath: Any = ()


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
    max_temperature: float = LIMITS.temperature,
    max_step: float = LIMITS.step,
    max_distance: float = LIMITS.distance,
    max_doubt: float = LIMITS.doubt,
    devices: int = 1,
    checkpoint_minutes: float = 1.0,
    progress: bool | None = None,
) -> Simulation:
    """Molecular dynamics of one structure, of replicas of it, or of several structures side by side.

    With several processes (``jax.distributed.initialize`` or :func:`leignn_jax.processes.join_processes` before) every one
    makes this call with the same arguments, and ``devices`` counts all their devices. The first one alone reads and writes
    ``out`` and shows progress.

    Args:
        potential: a :class:`leignn_jax.Potential`, or any :class:`leignn_jax.simulation.dynamics.EnergyModel`.
        atoms: one structure or several. Their velocities are taken where they have any, else drawn at ``temperature``.
            Total momentum is taken out of them but under Langevin dynamics or where atoms are held. Masses are those of the
            structure (``atoms.set_masses``). Constraints hold atoms as in
            :func:`leignn_jax.constraints.free_components`.
        ensemble: a short name (see :func:`make_ensemble`) or an object of :mod:`leignn_jax.simulation.ensembles`
            or a :class:`leignn_jax.simulation.jax_md.JaxMD`.
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
        max_doubt: eV/Å; of a committee (:class:`leignn_jax.sweeps.committee.CommitteeModel`), by how far its members may
            disagree on the force on an atom. It is looked at and logged every ``log_every`` steps; a replica that exceeds
            it stops there, and its last structure is one to label.
        devices: among which replicas, or several structures, are divided, as many on each: nothing crosses within a step.
            One system is divided by its atoms (:mod:`leignn_jax.domains`). Sums of fewer replicas, or in parts, round
            otherwise, so that trajectories part from those of one device as chaos has it.
        checkpoint_minutes: between states from which a killed simulation can go on; a signal is obeyed, and a state
            written, every 500 steps at least, and on a CPU the sooner the larger the system.
        progress: show a progress bar; None where there is a terminal.

    Raises:
        ConfigError: settings that do not fit together.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
        SimulationError: the folder can't be used, the disk is full, or lists grow without end.
        ProcessError: processes differ, or one of them failed.
    """
    connect()
    with together():
        _check_settings(steps, timestep, save_every, log_every, skin, seed, resume, out, checkpoint_minutes)
        check_dtype(dtype)
        check_model(potential)
        check_whole("devices", devices, 1)
        check_devices(devices, "devices", f"give devices={jax.device_count()}")
        single = isinstance(atoms, ase.Atoms) and replicas is None
        structures = _replicated(check_structures(atoms), replicas)
        ensemble = make_ensemble(ensemble, temperature, pressure)
        check_ensemble(ensemble, temperature, structures)
        limits = check_limits(max_temperature, max_step, max_distance, max_doubt)
        if max_doubt != LIMITS.doubt and not has_doubts(potential):
            raise ConfigError(
                "max_doubt: it is for a committee (leignn_jax.sweeps.committee.CommitteeModel), whose members may disagree."
            )
        if out is not None and is_first():
            make_folder(check_path("out", out), SimulationError)
    if jax.process_count() > 1:
        given = {
            "temperature": temperature,
            "steps": steps,
            "timestep": timestep,
            "save_every": save_every,
            "dtype": dtype,
            "log_every": log_every,
            "skin": skin,
            "seed": seed,
            "limits": limits,
            "out": out is None,
            "resume": resume,
        }
        check_same(_what_processes_share(potential, structures, ensemble, given))
    with jax.enable_x64(dtype == "float64"):
        run = Run(potential, structures, ensemble, timestep, temperature, seed, skin, np.dtype(dtype), devices)
        limits = jax.device_put(Limits(*(np.asarray(x, dtype) for x in limits)))
        settings = {} if out is None else run_settings(run, save_every, log_every, single)
        folder = None if out is None else SimulationFolder(Path(out), run, settings, single, resume)
        try:
            return _simulate(run, folder, limits, steps, save_every, log_every, checkpoint_minutes, progress, single)
        finally:
            if folder is not None:
                folder.close()


def _what_processes_share(potential, structures, ensemble, given: dict[str, Any]) -> dict[str, str]:
    """What must be the same in all processes that simulate together."""
    arrays = [(a.numbers, a.positions, a.cell.array, a.pbc, a.get_velocities(), a.get_masses()) for a in structures]
    return {
        **versions(),
        "the structure": f"sha256 {digest_of(arrays)}",
        "the potential": f"sha256 {digest_of(potential, repr(potential.cutoff))}",
        "the ensemble": f"{type(ensemble).__name__} {json.dumps(ensemble_numbers(ensemble))}",
        **{name: str(value) for name, value in given.items()},
    }


def _replicated(given: list[ase.Atoms], replicas: int | None) -> list[ase.Atoms]:
    if replicas is None:
        return given
    if len(given) != 1:
        raise ConfigError("replicas: give one structure, or several structures without replicas.")
    check_whole("replicas", replicas, 1, _MOST_ATOMS // len(given[0]))
    return given * replicas


def _check_settings(steps, timestep, save_every, log_every, skin, seed, resume, out, checkpoint_minutes) -> None:
    check_whole("steps", steps, 0, MOST_STEPS)
    check_whole("save_every", save_every, 1, MOST_STEPS)
    check_whole("log_every", log_every, 1, MOST_STEPS)
    if save_every % log_every:
        raise ConfigError(f"save_every ({save_every}) must be a multiple of log_every ({log_every}).")
    if save_every // log_every > _MOST_LINES:
        raise ConfigError(
            f"log_every: {save_every // log_every:,} lines between two frames are too many to keep; log less often, or save "
            "more often."
        )
    check_number("timestep", timestep, positive=True)
    check_number("skin", skin, positive=True)
    check_number("checkpoint_minutes", checkpoint_minutes, least=0)
    check_seed(seed)
    check_flag("resume", resume)
    if resume and out is None:
        raise ConfigError("resume: name the folder (out) of the simulation to go on with.")


# -------------------------------------------------------------------------------------------------------------- the run


def _simulate(run: Run, folder, limits, steps, save_every, log_every, checkpoint_minutes, progress, single):
    kept: list[list[dict[str, np.ndarray]]] = [[] for _ in run.structures]
    lines: list[list[dict[str, np.ndarray]]] = [[] for _ in run.structures]
    first = int(run.state.step)
    spans, logs, most = _chunk_of(save_every, log_every, sum(map(len, run.structures)))
    wanted = partial(_wanted, save_every=save_every, last=steps, span=log_every * logs)
    logged = partial(_is_due, every=log_every, last=steps)
    began = saved = clock.monotonic()
    measured: tuple[float, int] | None = None
    interrupted: str | None = None
    if folder is None or not folder.resumed:
        _store(run, folder, kept, lines, _present(run), _present_line(run), wanted, logged)
        if folder is not None:
            # Killed at any moment from here on it can go on.
            folder.checkpoint(run)
    shown = is_first() and is_shown(progress)
    with stop_requests() as stop, ProgressBar("simulating", steps, shown, done=first) as bar:
        asked = 0
        while int(run.state.step) < steps and not (on_host(run.stopped) > 0).all() and not asked:
            frame, line = run.advance(limits, min(steps, int(run.state.step) + most), log_every, logs, spans)
            _store(run, folder, kept, lines, frame, line, wanted, logged)
            if bar.visible:
                bar.update(int(run.state.step), _facts(run, float(frame["energy"][-1].mean()), bar.rate))
            if measured is None:
                measured = (clock.monotonic(), int(run.state.step))
            # What any process wishes all do.
            asked, due = largest(stop.is_set(), clock.monotonic() - saved > 60 * checkpoint_minutes)
            if folder is not None and due:
                folder.checkpoint(run)
                saved = clock.monotonic()
        interrupted = stop.signal
    done = int(run.state.step)
    summary = _summary(run, done, steps, first, began, measured, interrupted)
    if asked and done < steps and is_first():
        remedy = "" if folder is None else "; resume (--resume) goes on from there"
        log.warning("Stopped by a signal at step %d of %d%s.", done, steps, remedy)
    state = on_host(run.state.replace(neighbors=None))
    for words in run.ensemble.at_end(state):
        log.warning(words)
    final = _final_atoms(run, state)
    trajectory: list[Any]
    numbers: list[Any]
    if folder is not None:
        folder.finish(run, summary, final)
        trajectory = [read_trajectory(p / "trajectory.h5") if is_first() else None for p in folder.parts]
        numbers = [read_thermo(p / "thermo.csv") if is_first() else None for p in folder.parts]
    else:
        trajectory = [Frames(**{k: np.concatenate([p[k] for p in parts]) for k in Frames._fields}) for parts in kept]
        numbers = [{column(k): np.concatenate([p[k] for p in parts]) for k in parts[0]} for parts in lines]
    if single:
        return Simulation(final[0], trajectory[0], numbers[0], summary, state.bath)
    return Simulation(final, trajectory, numbers, summary, state.bath)


def _chunk_of(save_every: int, log_every: int, atoms: int) -> tuple[int, int, int]:
    """Spans of a chunk, log lines of each, and steps at most: a span ends with a frame or, where these are far apart, in
    between; where log lines are too, the chunk does."""
    lines, most = save_every // log_every, steps_at_once(_SPLIT_STEPS, atoms)
    fitting = max(1, most // log_every)
    logs = lines if lines <= fitting else max(n for n in range(1, fitting + 1) if lines % n == 0)
    return max(1, steps_at_once(_CHUNK_STEPS, atoms) // (logs * log_every)), logs, most


def _is_due(step, *, every: int, last: int):
    return (step % every == 0) | (step == last)


def _wanted(step, stopped, stopped_at, *, save_every: int, last: int, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of a replica's frames at the ends of spans are kept, and their steps: those that are due, and the one at which
    a committee came to doubt, wherever it is."""
    unsure = (stopped == UNSURE) & (stopped_at > (step - 1) // span * span)
    kept = ((stopped == 0) & _is_due(step, every=save_every, last=last)) | unsure
    return kept, np.where(unsure, stopped_at, step)


def _facts(run: Run, energy: float, rate: float | None) -> str:
    """What stands beside the progress bar: ``energy`` eV, ``rate`` in steps per second."""
    speed = "" if rate is None else f"{rate * float(run.timestep) * 86400e-6:.3g} ns/day, "
    return f"{speed}{energy:.6g} eV"


def _present(run: Run):
    """The state as a chunk of one frame."""
    state = run.state
    saved = {name: getattr(state, name) for name in SAVED}
    one = jax.tree.map(lambda x: np.asarray(x)[None], on_host(saved))
    return {**one, "moved": np.ones(1, bool), "stopped": np.zeros((1, len(run.structures)), np.int32)}


def _present_line(run: Run):
    numbers = jax.jit(line_of)(run.model, run.ensemble, run.system, run.state, run.timestep)
    one = jax.tree.map(lambda x: np.asarray(x)[None], on_host(numbers))
    stopped = np.zeros((1, len(run.structures)), np.int32)
    return {**one, "step": np.zeros(1, np.int32), "moved": np.ones(1, bool), "stopped": stopped}


def _store(run: Run, folder, kept, lines, frame, line, wanted, logged) -> None:
    """Give frames and lines that are new, of replicas that have not stopped, to the folder or to memory."""
    # All processes have a part in it; what is new the first alone asks for.
    new = _new(run, frame, line, wanted, logged, on_host(run.stopped_at))
    if folder is None:
        for r, (one, row) in enumerate(new):
            kept[r].append(one)
            lines[r].append(row)
    else:
        folder.append(new)


def _new(
    run: Run, frame, line, wanted, logged, stopped_at
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Of each replica its new frames and log lines, where they are ``wanted`` and ``logged``."""
    dt = float(run.timestep)
    positions, cell = run.seen(frame["positions"], frame["images"], frame["cell"])
    for r, atoms in enumerate(run.structures):
        chosen, step = wanted(frame["step"], frame["stopped"][:, r], stopped_at[r])
        chosen = frame["moved"] & chosen
        step = step[chosen].astype(np.int64)
        count = len(atoms)
        one = {
            "step": step,
            "time": step * dt,
            "positions": positions[chosen, r, :count],
            **{k: frame[k][chosen, r, :count] for k in ("velocities", "forces")},
            "cell": cell[chosen, r],
            "energy": frame["energy"][chosen, r].astype(np.float64) + run.references[r],
        }
        chosen = line["moved"] & (line["stopped"][:, r] == 0) & logged(line["step"])
        row = {"step": line["step"][chosen].astype(np.int64)}
        row["time"] = row["step"] * dt
        for name in ("potential_energy", "kinetic_energy", "temperature", "pressure", "volume", "conserved"):
            row[name] = line[name][chosen, r].astype(np.float64)
        if "doubt" in line:
            row["doubt"] = line["doubt"][chosen, r].astype(np.float64)
        for name in ("potential_energy", "conserved"):
            row[name] = row[name] + run.references[r]
        yield one, row


def _final_atoms(run: Run, state: State) -> list[ase.Atoms]:
    """The last structures; ``state`` is the run's on the host."""
    final = []
    positions, _ = run.seen(state.positions, state.images, state.cell)
    for r, start in enumerate(run.structures):
        count, constant = len(start), float(run.references[r])
        atoms = structure_of(start, state, r, positions[r, :count], constant, run.ensemble.moves_cell)
        atoms.set_velocities(np.asarray(state.velocities[r, :count], float) / ase.units.fs)
        final.append(atoms)
    return final


def _summary(run: Run, done, steps, first, began, measured, interrupted) -> dict[str, Any]:
    seconds = clock.monotonic() - began
    stopped = [
        None if not code else f"step {int(at)}: {REASONS[int(code)]}"
        for code, at in zip(*on_host((run.stopped, run.stopped_at)), strict=True)
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
        "devices": 1 if run.mesh is None else run.mesh.size,
        "seconds": round(seconds, 3),
        "steps_per_second": None if speed is None else round(speed, 3),
        "ns_per_day": None if speed is None else round(speed * float(run.timestep) * 86400e-6, 4),
        "list_renewals": int(on_host(run.state.neighbors.renewals).max()),
        "list_sizes": run.sizes._asdict(),
        "resumed_at": first or None,
    }
