"""Relaxation: structures taken to the nearest minimum of the energy, or of the enthalpy where the cell may change.

FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), in ASE's order of operations): atoms roll downhill with a
velocity that is turned towards the force, faster and faster, and stop dead where they would go uphill. The cell rolls
along with them. In every step atoms move by dr and then everything is strained,

    r <- (r + dr) (1 + e),    cell <- cell (1 + e),

so that the forces are f on dr and -V (stress + pressure) on e. One unit of e moves atoms at the mean spacing
L = (V / N)^(1/3) by L: the coordinate that FIRE sees is s e with s = sqrt(N) L, its stiffness about L times an elastic
constant, as large as that between atoms whatever the size of the cell.

Many structures of different sizes run side by side in one program, each with a FIRE of its own; one that has arrived
stands still.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import (
    MOST_STEPS,
    check_choice,
    check_dtype,
    check_model,
    check_number,
    check_path,
    check_structures,
    check_whole,
)
from leignn_jax.cells import transformed
from leignn_jax.device_neighbors import NeighborList, update
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.extxyz import extxyz_of
from leignn_jax.files import make_folder, write_atomically
from leignn_jax.interruption import steps_at_once, stop_requests
from leignn_jax.list_sizes import grown
from leignn_jax.progress import ProgressBar, is_shown
from leignn_jax.simulation.dynamics import (
    GIGAPASCAL,
    REPLICA,
    EnergyModel,
    System,
    check_strain,
    evaluate,
    make_lists,
    make_system,
    start_positions,
    structure_of,
    volume,
)
from leignn_jax.simulation.model_sums import check_structures_of, split_constants

log = logging.getLogger("leignn_jax")

Cell = Literal[False, "isotropic", "full"]

# FIRE's numbers as in the paper and in ASE; time in units of Å (amu / eV)^1/2 of atoms of one amu.
_TIMESTEP, _LONGEST_TIMESTEP = 0.1, 1.0
_FASTER, _SLOWER, _MIXING, _LESS_MIXING, _PATIENCE = 1.1, 0.5, 0.1, 0.99, 5
# Å that an atom, or an atom at the mean spacing by the strain, may move in one step.
_LONGEST_STEP = 0.2
# By this factor a volume may grow or shrink: beyond it a potential has lost its way, and lists would grow without end.
_VOLUME_FACTOR = 5.0

_CHUNK_STEPS = 50
_GROWTHS = 20
_GROWTHS_AT_ONCE = 3

RUNNING, CONVERGED, NOT_FINITE, LOST_CELL = 0, 1, 2, 3


class Relaxation(NamedTuple):
    """What a relaxation leaves; lists and arrays with one entry per structure where several were given.

    atoms: the last structure, its energy, forces and stress attached; the start's constraints are kept.
    energy: eV, reference energies included.
    converged: whether forces (and stress) are below what was asked for.
    steps: that were taken.
    reason: why it did not converge, None where it did.
    signal: name of the signal, such as "SIGINT" by Ctrl-C, that asked the relaxation to end; None where none did.
    history: arrays with one value per step from the start on: ``energy`` eV, ``max_force`` eV/Å, ``max_stress`` GPa
        (distance from the pressure asked for, 0 where the cell is held) and ``volume`` Å^3.
    """

    atoms: Any
    energy: Any
    converged: Any
    steps: Any
    reason: Any
    signal: Any
    history: Any


def relax(
    potential: EnergyModel,
    atoms: ase.Atoms | Sequence[ase.Atoms],
    *,
    cell: Cell = False,
    pressure: float = 0.0,
    max_force: float = 0.01,
    max_stress: float = 0.01,
    steps: int = 500,
    optimizer: str = "fire",
    dtype: str = "float64",
    skin: float = 0.5,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Relaxation:
    """Move atoms, and the cell where asked, until forces and stress vanish.

    Args:
        potential: a :class:`leignn_jax.Potential`, or any :class:`leignn_jax.simulation.dynamics.EnergyModel`.
        atoms: one structure, or several of any sizes, which run side by side. Constraints hold atoms as in
            :func:`leignn_jax.constraints.free_components`; where the cell changes, atoms of FixAtoms keep their
            place relative to it.
        cell: False holds it, "isotropic" changes its volume only, "full" its shape too.
        pressure: GPa, of a cell that changes.
        max_force: eV/Å, of the atom with the largest force that is not held.
        max_stress: GPa, of the largest component of stress + pressure ("isotropic": of the mean of the diagonal).
        steps: at most, of each structure.
        optimizer: "fire".
        dtype: "float64" or "float32"; in the latter forces have noise of about 1e-5 eV/Å or more.
        skin: Å, by which neighbour lists reach beyond the cutoff.
        out: a folder for relaxed.extxyz, history.csv and summary.json.
        progress: show a progress bar; None where there is a terminal.

    A structure that does not arrive is no error: ``converged`` is False, ``reason`` says why and a warning is logged.
    The same where SIGTERM or Ctrl-C ends it early: what there is so far is returned and written.

    Raises:
        ConfigError: settings that do not fit together.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
        SimulationError: neighbour lists grow without end; the folder can't be made.
    """
    single = isinstance(atoms, ase.Atoms)
    structures = check_structures(atoms)
    check_model(potential)
    _check_settings(structures, cell, pressure, max_force, max_stress, steps, optimizer, dtype, skin)
    if out is not None:
        make_folder(check_path("out", out), SimulationError)
    check_structures_of(potential, structures)
    model, table, shift = split_constants(potential)
    references = np.array([table[a.numbers].sum() for a in structures]) + shift
    with jax.enable_x64(dtype == "float64"), stop_requests() as stop:
        system = make_system(structures, np.dtype(dtype), hold_momentum=False)
        if cell:
            check_strain(system)
        goal = Goal(*(jnp.asarray(x, dtype) for x in (max_force, max_stress / GIGAPASCAL, pressure / GIGAPASCAL)))
        near, origins = start_positions(model, structures, system.numbers.shape[1])
        state, lines = _descend(
            model, system, structures, near, goal, cell, steps, np.dtype(dtype), skin, progress, stop
        )
        state = jax.device_get(state.replace(neighbors=None))
    result = _result(structures, origins, state, lines, references, cell, stop.signal)
    if out is not None:
        _write(Path(out), result)
    return Relaxation(*(x[0] for x in result)) if single else result


class Goal(NamedTuple):
    """When a structure has arrived: ``max_force`` eV/Å, ``max_stress`` eV/Å^3; and the ``pressure`` eV/Å^3."""

    max_force: Any
    max_stress: Any
    pressure: Any


@struct.dataclass
class FireState:
    """Everything that a relaxation changes. A pytree; all arrays but ``neighbors`` have an axis of replicas.

    positions, cell, energy, forces, stress, neighbors: as in :class:`leignn_jax.simulation.dynamics.State`.
    velocities: ``[replicas, atoms, 3]`` and strain_rate ``[replicas, 3, 3]`` (of s e), in FIRE's unit of time.
    timestep, mixing: ``[replicas]``. downhill: ``[replicas]`` int32, steps since it last went uphill.
    spacing, start_volume: ``[replicas]`` L in Å and Å^3, of the start.
    status: ``[replicas]`` int32. step: ``[replicas]`` int32, steps taken.
    """

    positions: Any
    cell: Any
    energy: Any
    forces: Any
    stress: Any
    neighbors: NeighborList
    velocities: Any
    strain_rate: Any
    timestep: Any
    mixing: Any
    downhill: Any
    spacing: Any
    start_volume: Any
    status: Any
    step: Any


# -------------------------------------------------------------------------------------------------------------- one step


def fire_step(model: EnergyModel, system: System, state: FireState, goal: Goal, cell: Cell) -> FireState:
    """All replicas that are still on their way take one step; pure, for use under jit."""
    force, strain_force = _generalized_forces(system, state, goal, cell)
    velocities, strain_rate = state.velocities, state.strain_rate

    def dot(a, b, c, d):
        return (a * b).sum((1, 2)) + (c * d).sum((1, 2))

    power = dot(force, velocities, strain_force, strain_rate)
    speed2 = dot(velocities, velocities, strain_rate, strain_rate)
    force2 = dot(force, force, strain_force, strain_force)
    resting, down = speed2 == 0, power > 0
    safe = jnp.where(force2 > 0, force2, 1.0)
    turn = state.mixing * jnp.sqrt(jnp.where(down, speed2, 0.0) / safe)
    keep = jnp.where(down, 1 - state.mixing, 0.0)
    velocities = _each(keep) * velocities + _each(turn) * force
    strain_rate = _each(keep) * strain_rate + _each(turn) * strain_force
    patient = down & (state.downhill > _PATIENCE)
    timestep = jnp.where(patient, jnp.minimum(state.timestep * _FASTER, _LONGEST_TIMESTEP), state.timestep)
    mixing = jnp.where(patient, state.mixing * _LESS_MIXING, state.mixing)
    # Atoms at rest at the start have not gone uphill.
    uphill = ~down & ~resting
    timestep = jnp.where(uphill, timestep * _SLOWER, timestep)
    mixing = jnp.where(uphill, _MIXING, mixing)
    downhill = jnp.where(down, state.downhill + 1, 0)

    velocities = velocities + _each(timestep) * force
    strain_rate = strain_rate + _each(timestep) * strain_force
    move, strain = _each(timestep) * velocities, _each(timestep) * strain_rate / _each(strain_scale(system, state))
    longest = jnp.maximum(
        jnp.sqrt((move**2).sum(-1).max(-1)), jnp.abs(strain).max((1, 2)) * state.spacing
    )  # [replicas] Å
    shorter = _each(jnp.minimum(1.0, _LONGEST_STEP / jnp.maximum(longest, 1e-12)))
    deform = jnp.eye(3, dtype=strain.dtype) + shorter * strain
    positions = transformed(state.positions + shorter * move, deform)
    new_cell = transformed(state.cell, deform)

    active = state.status == RUNNING
    positions = jnp.where(_each(active), positions, state.positions)
    new_cell = jnp.where(_each(active), new_cell, state.cell)
    renew = jax.vmap(lambda n, r, c: update(n, r, c, axis=REPLICA), axis_name=REPLICA)
    neighbors = renew(state.neighbors, positions, new_cell)
    energy, forces, stress = evaluate(model, system, neighbors, positions, new_cell)
    after = state.replace(
        positions=positions,
        cell=new_cell,
        energy=energy,
        forces=forces,
        stress=stress,
        velocities=velocities,
        strain_rate=strain_rate,
        timestep=timestep,
        mixing=mixing,
        downhill=downhill,
        step=state.step + 1,
        neighbors=None,
    )
    status = arrival(system, after, goal, cell)
    good = active & ((status == RUNNING) | (status == CONVERGED))
    before = state.replace(neighbors=None)
    kept = jax.tree.map(lambda a, b: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, b), after, before)
    return kept.replace(neighbors=neighbors, status=jnp.where(active, status, state.status))


def arrival(system: System, state: FireState, goal: Goal, cell: Cell):
    """``[replicas]`` int32: still running, converged, or lost."""
    force, stress = residuals(system, state, goal, cell)
    finite = jnp.isfinite(state.energy) & jnp.isfinite(force) & jnp.isfinite(stress)
    status = jnp.where((force <= goal.max_force) & (stress <= goal.max_stress), CONVERGED, RUNNING)
    if cell:
        change = volume(state.cell) / state.start_volume
        status = jnp.where((change > _VOLUME_FACTOR) | (change < 1 / _VOLUME_FACTOR), LOST_CELL, status)
    return jnp.where(finite, status, NOT_FINITE).astype(jnp.int32)


def residuals(system: System, state: FireState, goal: Goal, cell: Cell):
    """Largest force [replicas] eV/Å on an atom that may move, and distance from the pressure [replicas] eV/Å^3."""
    force = jnp.sqrt((_mobile(system, state.forces) ** 2).sum(-1).max(-1))
    if not cell:
        return force, jnp.zeros_like(force)
    return force, jnp.abs(_excess_stress(state, goal, cell)).max((1, 2))


def _generalized_forces(system: System, state: FireState, goal: Goal, cell: Cell):
    force = _mobile(system, state.forces)
    if not cell:
        return force, jnp.zeros_like(state.cell)
    strain_force = -_each(volume(state.cell)) * _excess_stress(state, goal, cell)
    return force, strain_force / _each(strain_scale(system, state))


def _excess_stress(state: FireState, goal: Goal, cell: Cell):
    eye = jnp.eye(3, dtype=state.stress.dtype)
    excess = state.stress + goal.pressure * eye
    if cell == "isotropic":
        excess = jnp.trace(excess, axis1=1, axis2=2)[:, None, None] / 3 * eye
    return excess


def strain_scale(system: System, state: FireState):
    """``[replicas]`` Å by which a strain is as long as the moves of the atoms that go with it."""
    atoms = (system.numbers > 0).sum(-1).astype(state.spacing.dtype)
    return jnp.sqrt(atoms) * state.spacing


def _mobile(system: System, forces):
    return jnp.where(system.mobile > 0, forces, 0.0)


def _each(x):
    return x[:, None, None]


@partial(jax.jit, static_argnames=("cell", "length"))
def fire_chunk(model, system, state, goal, last_step, *, cell, length):
    """Up to ``length`` steps, fewer where all have arrived or a list is full, and their lines of the history.

    The state is not donated: a chunk whose lists overflow is run again from it.
    """

    def going(carry):
        i, state, _ = carry
        active = (state.status == RUNNING) & (state.step < last_step)
        return (i < length) & active.any() & (state.neighbors.overflow == 0).all()

    def one(carry):
        i, state, lines = carry
        state = fire_step(model, system, state, goal, cell)
        line = _line(system, state, goal, cell)
        return i + 1, state, {k: v.at[i].set(line[k]) for k, v in lines.items()}

    line = _line(system, state, goal, cell)
    lines = {k: jnp.zeros((length, *v.shape), v.dtype) for k, v in line.items()}
    return jax.lax.while_loop(going, one, (jnp.int32(0), state, lines))


def _line(system, state, goal, cell):
    force, stress = residuals(system, state, goal, cell)
    return {"energy": state.energy, "max_force": force, "max_stress": stress, "volume": volume(state.cell)}


# ---------------------------------------------------------------------------------------------------------- the way down


@partial(jax.jit, static_argnames="cell")
def fire_start(model, system, neighbors, positions, cell_vectors, goal, *, cell):
    """A state at rest and its line of the history, of ``positions`` [replicas, atoms, 3] and ``cell_vectors``
    [replicas, 3, 3] Å."""
    replicas, dtype = positions.shape[0], positions.dtype
    energy, forces, stress = evaluate(model, system, neighbors, positions, cell_vectors)
    size = volume(cell_vectors)
    atoms = (system.numbers > 0).sum(-1).astype(dtype)
    state = FireState(
        positions=positions,
        cell=cell_vectors,
        energy=energy,
        forces=forces,
        stress=stress,
        neighbors=neighbors,
        velocities=jnp.zeros_like(positions),
        strain_rate=jnp.zeros_like(cell_vectors),
        timestep=jnp.full(replicas, _TIMESTEP, dtype),
        mixing=jnp.full(replicas, _MIXING, dtype),
        downhill=jnp.zeros(replicas, jnp.int32),
        spacing=jnp.where(size > 0, jnp.cbrt(size / atoms), 1.0),
        start_volume=jnp.where(size > 0, size, 1.0),
        status=jnp.zeros(replicas, jnp.int32),
        step=jnp.zeros(replicas, jnp.int32),
    )
    return state.replace(status=arrival(system, state, goal, cell)), _line(system, state, goal, cell)


def _descend(model, system, structures, near, goal, cell, steps, dtype, skin, progress, stop):
    """The last state, and lines of the history [steps, replicas]."""
    positions = jnp.asarray(near, dtype)
    cells = jnp.asarray(np.stack([np.asarray(a.cell) for a in structures]), dtype)

    def lists_at(positions, cells, sizes=None):
        return make_lists(system.numbers, positions, cells, system.pbc, model.cutoff, skin, dtype, sizes)

    state, first = fire_start(model, system, lists_at(positions, cells), positions, cells, goal, cell=cell)
    lines = [jax.tree.map(lambda x: np.asarray(x)[None], jax.device_get(first))]
    done, growths, length = 0, 0, steps_at_once(_CHUNK_STEPS, sum(map(len, structures)))
    with ProgressBar("relaxing", steps, is_shown(progress)) as bar:
        while done < steps and bool((state.status == RUNNING).any()) and not stop.is_set():
            count, after, found = fire_chunk(model, system, state, goal, steps, cell=cell, length=length)
            overflow = int(np.bitwise_or.reduce(np.asarray(after.neighbors.overflow)))
            if overflow:
                growths += 1
                if growths > _GROWTHS:
                    raise SimulationError(
                        f"Neighbour lists grew {_GROWTHS} times within {length} steps: a structure collapses. Start "
                        "from one that is closer to a minimum, or use a potential that knows such densities."
                    )
                # Compiling costs more than a few more pairs: one that has begun to shrink will go on.
                sizes = state.neighbors.sizes
                for _ in range(_GROWTHS_AT_ONCE if cell else 1):
                    sizes = grown(sizes, overflow, system.numbers.shape[1])
                log.info(
                    "Neighbour lists were too small (%s): enlarged to %s, the steps are repeated.", overflow, sizes
                )
                state = state.replace(neighbors=lists_at(state.neighbors.positions, state.neighbors.cell, sizes))
                continue
            state, growths = after, 0
            count = int(count)
            done += count
            lines.append({k: np.asarray(v)[:count] for k, v in jax.device_get(found).items()})
            arrived = int((np.asarray(state.status) != RUNNING).sum())
            bar.update(done, f"force {lines[-1]['max_force'][-1].max():.3g} eV/Å, {arrived} at rest")
    return state, {k: np.concatenate([x[k] for x in lines]) for k in lines[0]}


def _result(structures, origins, state, lines, references, cell, early) -> Relaxation:
    found, reasons, histories = [], [], []
    cells = state.cell if cell else np.stack([np.asarray(a.cell) for a in structures])
    positions = origins.seen(state.positions, 0, cells)
    for r, start in enumerate(structures):
        count, status = len(start), int(state.status[r])
        found.append(structure_of(start, state, r, positions[r, :count], float(references[r]), bool(cell)))
        last = slice(0, int(state.step[r]) + 1)
        history = {k: v[last, r].astype(np.float64) for k, v in lines.items()}
        history["energy"] += references[r]
        history["max_stress"] *= GIGAPASCAL
        histories.append(history)
        reasons.append(_reason(status, int(state.step[r]), history, cell, early))
        if reasons[-1] is not None:
            log.warning("%s did not converge: %s", f"Structure {r}" if len(structures) > 1 else "It", reasons[-1])
    return Relaxation(
        atoms=found,
        energy=np.asarray(state.energy, np.float64) + references,
        converged=np.asarray(state.status) == CONVERGED,
        steps=np.asarray(state.step),
        reason=reasons,
        signal=[early] * len(structures),
        history=histories,
    )


def _reason(status: int, step: int, history, cell: Cell, early: str | None) -> str | None:
    if status == CONVERGED:
        return None
    if status == NOT_FINITE:
        return (
            f"energy, forces or stress are no finite numbers after step {step}: the structure is far from anything the "
            "potential knows. It is left as it was before"
        )
    if status == LOST_CELL:
        return (
            f"after step {step} the volume changes by more than a factor of {_VOLUME_FACTOR:g}: under this pressure the "
            "potential has no minimum nearby. It is left as it was before"
        )
    left = f"force {history['max_force'][-1]:.3g} eV/Å" + (
        f", stress {history['max_stress'][-1]:.3g} GPa" if cell else ""
    )
    why = "out of steps" if early is None else "stopped by a signal"
    return f"{why} after step {step} with {left}; go on from it"


def _write(folder: Path, result: Relaxation) -> None:
    frames = [result.atoms] if isinstance(result.atoms, ase.Atoms) else result.atoms
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["structure", "step", "energy_eV", "max_force_eV_per_A", "max_stress_GPa", "volume_A3"])
    for r, history in enumerate(result.history):
        columns = [history[k].tolist() for k in ("energy", "max_force", "max_stress", "volume")]
        for step, line in enumerate(zip(*columns, strict=True)):
            rows.writerow([r, step, *line])
    facts = [
        {"energy_eV": float(e), "converged": bool(c), "steps": int(s), "reason": why}
        for e, c, s, why in zip(result.energy, result.converged, result.steps, result.reason, strict=True)
    ]
    write_atomically(folder / "relaxed.extxyz", extxyz_of(frames).encode())
    write_atomically(folder / "history.csv", table.getvalue().encode())
    write_atomically(folder / "summary.json", (json.dumps(facts, indent=1) + "\n").encode())


def _check_settings(structures, cell, pressure, max_force, max_stress, steps, optimizer, dtype, skin) -> None:
    check_choice("cell", cell, (False, "isotropic", "full"))
    check_choice("optimizer", optimizer, ("fire",))
    for name, value in (("max_force", max_force), ("max_stress", max_stress), ("skin", skin)):
        check_number(name, value, positive=True)
    if check_number("pressure", pressure) and not cell:
        raise ConfigError("A pressure needs a cell that may change: cell='isotropic' or 'full'.")
    check_whole("steps", steps, 0, MOST_STEPS)
    check_dtype(dtype)
    for index, atoms in enumerate(structures):
        if cell and not atoms.pbc.all():
            raise ConfigError(
                f"Structure {index} is not periodic in all three directions: its cell can't be relaxed; use cell=False."
            )
