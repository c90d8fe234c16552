"""The engine: from a potential and a structure to a trajectory, in compiled chunks of steps.

A chunk runs on the device from one saved frame to a later one, neighbour lists renewed inside. The host keeps the state
before it: where a list turns out too small, it is enlarged and the chunk is run again, so that nothing wrong is ever
seen. A replica that breaks a limit stands still from the last good step on and says why; the others go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
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

from leignn_jax.device_neighbors import ListSizes, grown
from leignn_jax.errors import ConfigError, SimulationError, StructureError
from leignn_jax.files import make_folder, why_not_written, write_atomically
from leignn_jax.interruption import stop_requests
from leignn_jax.models.config import did_you_mean
from leignn_jax.potential import Potential
from leignn_jax.simulation.dynamics import (
    ACCELERATION,
    EnergyModel,
    State,
    System,
    draw_velocities,
    evaluate,
    make_lists,
    make_system,
    padded_positions,
    temperature,
    without_momentum,
)
from leignn_jax.simulation.ensembles import (
    CSVR,
    NVE,
    CellRescaling,
    Ensemble,
    Langevin,
    NoseHoover,
    Ramp,
    thermo,
    value_at,
)
from leignn_jax.simulation.progress import simulation_progress
from leignn_jax.simulation.state import load_state, save_state
from leignn_jax.simulation.thermo import ThermoLog, column, read_thermo
from leignn_jax.simulation.trajectory import TrajectoryWriter, read_trajectory

log = logging.getLogger("leignn_jax")

# Steps of a chunk: enough that the host's work between chunks does not count.
_CHUNK_STEPS = 200
_GROWTHS = 20

# Why a replica stands still.
REASONS = {
    1: "energy or positions are no finite numbers",
    2: "it is hotter than max_temperature",
    3: "an atom moved farther than max_step in one step",
    4: "an atom is farther than max_distance from where the system was",
}


class Limits(NamedTuple):
    """What a replica may not exceed: ``temperature`` K, ``step`` Å in one step, ``distance`` Å along open directions."""

    temperature: Any
    step: Any
    distance: Any


class Frames(NamedTuple):
    """Saved frames of one system: ``step`` [frames], ``time`` [frames] fs, ``positions``, ``velocities`` and ``forces``
    [frames, atoms, 3] in Å, Å/fs and eV/Å, ``cell`` [frames, 3, 3] Å, ``energy`` [frames] eV."""

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
        run = _Run(potential, structures, ensemble, timestep, kelvin, seed, skin, np.dtype(dtype))
        limits = Limits(*(jnp.asarray(x, dtype) for x in (max_temperature, max_step, max_distance)))
        folder = None if out is None else _Folder(Path(out), run, save_every, log_every, single, resume)
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


class _Run:
    """Model, system and state of a simulation, and the chunks that advance it."""

    def __init__(self, potential, structures, ensemble, timestep, kelvin, seed, skin, dtype):
        self.structures, self.dtype, self.skin = structures, dtype, skin
        self.references = np.zeros(len(structures))
        model = potential
        if isinstance(potential, Potential):
            for atoms in structures:
                potential.check_elements(atoms.numbers)
            # Constants are added on the host in float64: on the device in float32 they would round the rest away.
            model, table = potential.split_references()
            self.references = np.array([table[a.numbers].sum() for a in structures]) + float(potential.energy_shift)
        self.model, self.ensemble = model, ensemble
        # Wells outside of the system take up momentum.
        hold = ensemble.holds_momentum and getattr(model, "conserves_momentum", True)
        self.system = make_system(structures, dtype, hold_momentum=hold)
        self.timestep = jnp.asarray(timestep, dtype)
        self.state = start_state(model, self.system, structures, ensemble, kelvin, seed, skin, dtype)
        self.center = _centers(self.system, self.state.positions)
        self.stopped = jnp.zeros(len(structures), jnp.int32)
        self.stopped_at = jnp.full(len(structures), -1, jnp.int32)

    @property
    def sizes(self) -> ListSizes:
        return self.state.neighbors.sizes

    def relist(self, sizes: ListSizes, positions, cell) -> None:
        """Lists of these sizes, made anew where they were made before, so that renewals come at the same steps.

        Those of stopped replicas are made where these stand: the step that broke them may have made one of no numbers.
        """
        rest = self.stopped[:, None, None] > 0
        positions = jnp.where(rest, self.state.positions, positions)
        cell = jnp.where(rest, self.state.cell, cell)
        system = self.system
        neighbors = make_lists(
            system.numbers, positions, cell, system.pbc, self.model.cutoff, self.skin, self.dtype, sizes
        )
        self.state = self.state.replace(neighbors=neighbors)

    def advance(self, limits: Limits, last_step: int, log_every: int, logs: int, frames: int):
        """One chunk: its frames and log lines."""
        shape = {"log_every": log_every, "logs": logs, "frames": frames}
        doomed = np.full(len(self.structures), -1, np.int32)
        chunk = self._chunk(self.stopped, doomed, limits, last_step, shape)
        # Sums over all replicas at once spread what is no number from one to all: those that break alone as well are
        # stopped before they do, and the others go on.
        while len(suspects := self._broken_together(chunk[0], doomed)) > 1:
            fates = {}
            for r in suspects:
                others = np.arange(len(doomed)) != r
                alone = jnp.where(others & (self.stopped == 0), 1, self.stopped)
                _, stopped, stopped_at = self._chunk(alone, doomed, limits, last_step, shape)[0]
                if int(stopped[r]) == 1:
                    fates[r] = int(stopped_at[r])
            if not fates:
                break
            doomed[list(fates)] = list(fates.values())
            chunk = self._chunk(self.stopped, doomed, limits, last_step, shape)
        (self.state, self.stopped, self.stopped_at), frame, logged = chunk
        return jax.device_get((frame, logged))

    def _broken_together(self, after, doomed) -> list[int]:
        """Replicas that were first, and at the same step, to have a number that is none."""
        stopped, at = np.asarray(after[1]), np.asarray(after[2])
        new = (stopped == 1) & (np.asarray(self.stopped) == 0) & (doomed < 0)
        return np.flatnonzero(new & (at == at[new].min(initial=np.iinfo(np.int32).max))).tolist()

    def _chunk(self, stopped, doomed, limits: Limits, last_step: int, shape: dict[str, int]):
        """A chunk from the present state; enlarges lists and runs it again as often as needed."""
        for _ in range(_GROWTHS):
            after, frame, logged = _chunk(
                self.model,
                self.ensemble,
                self.system,
                (self.state, stopped, self.stopped_at),
                self.timestep,
                self.center,
                limits,
                jnp.int32(last_step),
                jnp.asarray(doomed),
                **shape,
            )
            overflow = int(np.bitwise_or.reduce(np.asarray(after[0].neighbors.overflow)))
            if not overflow:
                return after, frame, logged
            sizes = grown(self.sizes, overflow, self.system.numbers.shape[1])
            log.info("Neighbour lists were too small (%s): enlarged to %s, the chunk is run again.", overflow, sizes)
            self.relist(sizes, self.state.neighbors.positions, self.state.neighbors.cell)
        raise SimulationError(
            f"Neighbour lists grew {_GROWTHS} times within one chunk: the system collapses. Look at the last frames; use a "
            "smaller timestep, a gentler barostat, or a potential that knows such densities."
        )


def start_state(model, system: System, structures, ensemble, kelvin, seed, skin, dtype) -> State:
    size = system.numbers.shape[1]
    positions = jnp.asarray(padded_positions(structures, size), dtype)
    cell = jnp.asarray(np.stack([np.asarray(a.cell) for a in structures]), dtype)
    where = (system.numbers, positions, cell, system.pbc, model.cutoff, skin, dtype)
    neighbors = make_lists(*where)
    # The first forces come from these lists: they must hold all pairs.
    while overflow := int(np.bitwise_or.reduce(np.asarray(neighbors.overflow))):
        neighbors = make_lists(*where, grown(neighbors.sizes, overflow, size))
    keys = jax.random.split(jax.random.key(seed), len(structures) + 1)
    velocities = np.zeros((len(structures), size, 3))
    for r, atoms in enumerate(structures):
        velocities[r, : len(atoms)] = atoms.get_velocities() * ase.units.fs
    given = np.array([one.any() for one in velocities])
    if not given.all() and kelvin is None:
        which = "The structure" if len(given) == 1 else f"Structure {int(np.argmin(given))}"
        raise ConfigError(f"{which} has no velocities: give a temperature to draw them at.")
    velocities = jnp.asarray(velocities, dtype) * system.mobile[..., None]
    if not given.all():
        drawn = draw_velocities(system, value_at(kelvin, jnp.zeros((), dtype)), keys[1:])
        velocities = jnp.where(given[:, None, None], velocities, drawn)
    energy, forces, stress = jax.jit(evaluate)(model, system, neighbors, positions, cell)
    return State(
        positions=positions,
        velocities=without_momentum(system, velocities),
        cell=cell,
        energy=energy,
        forces=forces,
        stress=stress,
        bath=ensemble.start(system, cell),
        exchanged=jnp.zeros(len(structures), dtype),
        key=jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys[1:]),
        step=jnp.int32(0),
        neighbors=neighbors,
    )


def _centers(system: System, positions):
    weights = (system.numbers > 0).astype(positions.dtype)[..., None]
    return (weights * positions).sum(1) / weights.sum(1)


@partial(jax.jit, static_argnames=("log_every", "logs", "frames"))
def _chunk(model, ensemble, system, before, dt, center, limits, last_step, doomed, *, log_every, logs, frames):
    """``frames`` frames of ``logs`` log lines of ``log_every`` steps each, or fewer where ``last_step`` comes first.

    doomed: ``[replicas]`` int32, the step at which a replica is stopped because its next one is known to break; or -1.
    The state is not donated: a chunk whose lists overflow is run again from it.
    """

    def one(_, carry):
        state, stopped, stopped_at = carry
        due = (stopped == 0) & (doomed == state.step)
        stopped, stopped_at = jnp.where(due, 1, stopped), jnp.where(due, state.step, stopped_at)

        # Nothing moves a stopped replica, so that its lists last and it can't break again.
        def rest(x):
            return jnp.where((stopped > 0)[:, None, None], 0.0, x)

        still = state.replace(velocities=rest(state.velocities), forces=rest(state.forces), stress=rest(state.stress))
        after = ensemble.step(model, system, still, dt)
        reason = _broken(system, state, after, center, limits)
        good = (reason == 0) & (stopped == 0)
        stopped_at = jnp.where((stopped == 0) & (reason > 0), state.step, stopped_at)
        stopped = jnp.where(stopped == 0, reason, stopped)

        def keep(new, old):
            return jnp.where(good.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        # Lists are never wrong wherever they were made, and need no selection.
        fields = ("positions", "velocities", "cell", "energy", "forces", "stress", "bath", "exchanged")
        kept = {name: jax.tree.map(keep, getattr(after, name), getattr(state, name)) for name in fields}
        return after.replace(**kept), stopped, stopped_at

    def line(carry, _, end):
        state, stopped, _ = carry
        # Lines and frames come at multiples of log_every and of log_every * logs, wherever a chunk begins.
        due = jnp.minimum((state.step // log_every + 1) * log_every, jnp.minimum(end, last_step))
        count = jnp.where((stopped == 0).any(), jnp.maximum(due - state.step, 0), 0)
        carry = jax.lax.fori_loop(0, count, one, carry)
        state = carry[0]
        numbers = thermo(ensemble, system, state, dt)
        return carry, {"step": state.step, "moved": count > 0, "stopped": carry[1], **numbers._asdict()}

    def frame(carry, _):
        start = carry[0].step
        end = (start // (log_every * logs) + 1) * log_every * logs
        carry, lines = jax.lax.scan(partial(line, end=end), carry, None, length=logs)
        state = carry[0]
        saved = {name: getattr(state, name) for name in ("positions", "velocities", "forces", "cell", "energy", "step")}
        return carry, ({**saved, "moved": state.step > start, "stopped": carry[1]}, lines)

    after, (saved, lines) = jax.lax.scan(frame, before, None, length=frames)
    lines = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lines)
    return after, saved, lines


def _broken(system: System, before: State, after: State, center, limits: Limits):
    """Why a replica can't go on, 0 where it can: ``[replicas]`` int32, see ``REASONS``."""
    real = (system.numbers > 0)[..., None]
    finite = jnp.isfinite(after.energy) & jnp.isfinite(jnp.where(real, after.positions, 0.0)).all((1, 2))
    finite &= jnp.isfinite(jnp.where(real, after.velocities, 0.0)).all((1, 2))
    # A strain moves far atoms far: only what goes beyond it counts.
    unit, solid = jnp.eye(3, dtype=after.cell.dtype), system.pbc.all(-1)[:, None, None]
    stretch = jnp.linalg.solve(jnp.where(solid, before.cell, unit), jnp.where(solid, after.cell, unit))
    moved = jnp.where(real, after.positions - before.positions @ stretch, 0.0)
    fast = (moved**2).sum(-1).max(-1) > limits.step**2
    away = jnp.where(real & ~system.pbc[:, None], after.positions - center[:, None], 0.0)
    far = (away**2).sum(-1).max(-1) > limits.distance**2
    hot = temperature(system, after.velocities) > limits.temperature
    reason = jnp.where(far, 4, 0)
    reason = jnp.where(fast, 3, reason)
    reason = jnp.where(hot, 2, reason)
    return jnp.where(finite, reason, 1).astype(jnp.int32)


# -------------------------------------------------------------------------------------------------------------- the run


def _simulate(run: _Run, folder, limits, steps, save_every, log_every, checkpoint_minutes, progress, single):
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
    final = [_final_atoms(run, r) for r in range(len(run.structures))]
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


def _present(run: _Run):
    """The state as a chunk of one frame."""
    state = run.state
    saved = {name: getattr(state, name) for name in ("positions", "velocities", "forces", "cell", "energy", "step")}
    one = jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(saved))
    return {**one, "moved": np.ones(1, bool), "stopped": np.zeros((1, len(run.structures)), np.int32)}


def _present_line(run: _Run):
    numbers = jax.jit(thermo)(run.ensemble, run.system, run.state, run.timestep)
    one = jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(numbers._asdict()))
    stopped = np.zeros((1, len(run.structures)), np.int32)
    return {**one, "step": np.zeros(1, np.int32), "moved": np.ones(1, bool), "stopped": stopped}


def _store(run: _Run, folder, kept, lines, frame, line) -> None:
    """Give frames and lines that are new, of replicas that have not stopped, to the folder or to memory."""
    dt = float(run.timestep)
    for r, atoms in enumerate(run.structures):
        chosen = frame["moved"] & (frame["stopped"][:, r] == 0)
        step = frame["step"][chosen].astype(np.int64)
        count = len(atoms)
        one = {
            "step": step,
            "time": step * dt,
            **{k: frame[k][chosen, r, :count] for k in ("positions", "velocities", "forces")},
            "cell": frame["cell"][chosen, r],
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


def _final_atoms(run: _Run, r: int) -> ase.Atoms:
    state, count = run.state, len(run.structures[r])
    atoms = run.structures[r].copy()
    atoms.calc = None
    if run.ensemble.moves_cell:
        atoms.set_cell(np.asarray(state.cell[r], float))
    atoms.set_positions(np.asarray(state.positions[r, :count], float), apply_constraint=False)
    atoms.set_velocities(np.asarray(state.velocities[r, :count], float) / ase.units.fs)
    return atoms


def _summary(run: _Run, done, steps, first, began, measured, interrupted) -> dict[str, Any]:
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


class _Folder:
    """The files of a simulation."""

    def __init__(self, path: Path, run: _Run, save_every: int, log_every: int, single: bool, resume: bool):
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

    def checkpoint(self, run: _Run) -> None:
        """A state from which the simulation can go on, after all frames before it."""
        for writer in self.writers:
            writer.flush()
        save_state(self._state_file, _restartable(run), {**self._settings, "sizes": run.sizes._asdict()})

    def finish(self, run: _Run, summary: dict[str, Any], final: list[ase.Atoms]) -> None:
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

    def _load(self, run: _Run, settings: dict[str, Any]) -> int:
        try:
            tree, meta = load_state(self._state_file, _restartable(run))
        except FileNotFoundError:
            raise SimulationError(f"{self.path}: there is no state to resume from. Start without resume.") from None
        for name, value in settings.items():
            if meta.get(name) != value:
                raise SimulationError(
                    f"{self.path}: was run with {name} = {meta.get(name)}, not {value}. Resume with the same settings."
                )
        tree = jax.tree.map(jnp.asarray, tree)
        sizes = meta["sizes"]
        sizes = ListSizes(**{**sizes, "bins": tuple(sizes["bins"]), "reach": tuple(sizes["reach"])})
        run.state, run.stopped, run.stopped_at = tree["state"], tree["stopped"], tree["stopped_at"]
        run.center = tree["center"]
        run.relist(sizes, tree["list_positions"], tree["list_cell"])
        return int(run.state.step)


def _restartable(run: _Run) -> dict[str, Any]:
    """All arrays from which a simulation goes on bit for bit; lists are made again where they were made."""
    neighbors = run.state.neighbors
    return {
        "state": run.state.replace(neighbors=None),
        "list_positions": neighbors.positions,
        "list_cell": neighbors.cell,
        "stopped": run.stopped,
        "stopped_at": run.stopped_at,
        "center": run.center,
    }


def _settings(run: _Run, save_every: int, log_every: int) -> dict[str, Any]:
    """What a resumed simulation must have in common with its start."""
    numbers = {name: jax.tree.map(lambda x: np.asarray(x).tolist(), v) for name, v in vars(run.ensemble).items()}
    numbers = {name: vars(v) if isinstance(v, Ramp) else v for name, v in numbers.items()}
    return {
        "ensemble": type(run.ensemble).__name__,
        "ensemble_numbers": json.loads(json.dumps(numbers)),
        "timestep": float(run.timestep),
        "save_every": save_every,
        "log_every": log_every,
        "dtype": str(run.dtype),
        "skin": run.skin,
        "held_atoms": np.argwhere((np.asarray(run.system.numbers) > 0) & (np.asarray(run.system.mobile) == 0)).tolist(),
        "atomic_numbers": np.asarray(run.system.numbers).tolist() if run.system.numbers.size < 10000 else None,
        "acceleration": ACCELERATION,
        "potential (sha256 of its numbers)": _digest(run.model),
    }


def _digest(model: EnergyModel) -> str:
    digest = hashlib.sha256(repr(model.cutoff).encode())
    for leaf in jax.tree.leaves(model):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
