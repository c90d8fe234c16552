"""The state of a simulation and the compiled chunks of steps that advance it.

A chunk runs on the device from one saved frame to a later one, neighbour lists renewed inside. The host keeps the state
before it: where a list turns out too small, it is enlarged and the chunk is run again, so that nothing wrong is ever
seen. A replica that breaks a limit stands still from the last good step on and says why; the others go on.

Replicas may be divided among devices: each runs the whole chunk on its own replicas, and all that crosses, once in a log
line, is whether any replica still goes on. One system may be divided too: then each device moves all atoms, which is cheap,
and computes the energies of its own (:mod:`leignn_jax.domains`).
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any, NamedTuple

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.arguments import check_number
from leignn_jax.cells import inverse, transformed
from leignn_jax.device_neighbors import lattice_vectors
from leignn_jax.domains import DEVICES
from leignn_jax.errors import ConfigError, SimulationError, StructureError
from leignn_jax.list_sizes import ListSizes, grown
from leignn_jax.processes import on_host, place
from leignn_jax.simulation.divided import (
    check_domains,
    check_memory,
    device_mesh,
    divided,
    divided_lists,
    evaluate_divided,
    placed,
)
from leignn_jax.simulation.dynamics import (
    Origins,
    State,
    System,
    Thermo,
    check_answers,
    check_start,
    check_strain,
    draw_velocities,
    evaluate,
    joined_graph,
    make_lists,
    make_system,
    start_positions,
    temperature,
    unwrapped,
    with_images,
    without_momentum,
)
from leignn_jax.simulation.ensembles import NVE, NoseHoover, thermo, value_at
from leignn_jax.simulation.model_sums import check_structures_of, doubts, has_doubts, split_constants

log = logging.getLogger("leignn_jax")

_GROWTHS = 20
# Names under which other programs write velocities, each in its units.
_OTHER_VELOCITIES = ("vel", "velo", "velocity", "velocities", "vx")

# Why a replica stands still.
UNSURE = 5
REASONS = {
    1: "energy or positions are no finite numbers",
    2: "it is hotter than max_temperature",
    3: "an atom moved farther than max_step in one step",
    4: "an atom is farther than max_distance from where the system was",
    UNSURE: "the committee's members disagree on a force by more than max_doubt",
}


# Of a state, what a frame is made of.
SAVED = ("positions", "images", "velocities", "forces", "cell", "energy", "step")


class Limits(NamedTuple):
    """What a replica may not exceed: ``temperature`` K, ``step`` Å in one step, ``distance`` Å along open directions;
    ``doubt`` eV/Å of a committee, at logged steps."""

    temperature: Any
    step: Any
    distance: Any
    doubt: Any = math.inf


LIMITS = Limits(temperature=1e4, step=1.0, distance=100.0)


def check_limits(max_temperature: Any, max_step: Any, max_distance: Any, max_doubt: Any = math.inf) -> Limits:
    """Limits of a simulation or a rollout; ConfigError where one is no positive number. Infinity is none."""

    def limit(name, value):
        return value if isinstance(value, float) and value == math.inf else check_number(name, value, positive=True)

    return Limits(
        limit("max_temperature", max_temperature),
        limit("max_step", max_step),
        limit("max_distance", max_distance),
        limit("max_doubt", max_doubt),
    )


class Run:
    """Model, system and state of a simulation, and the chunks that advance it."""

    def __init__(self, potential, structures, ensemble, timestep, kelvin, seed, skin, dtype, devices=1):
        self.structures, self.dtype, self.skin = structures, dtype, skin
        self.mesh = device_mesh(devices, len(structures))
        check_structures_of(potential, structures)
        # Constants are added on the host in float64: on the device in float32 they would round the rest away.
        model, table, shift = split_constants(potential)
        self.references = np.array([table[a.numbers].sum() for a in structures]) + shift
        self.model, self.ensemble = model, ensemble
        # Wells outside of the system take up momentum.
        hold = ensemble.holds_momentum and getattr(model, "conserves_momentum", True)
        self.system = make_system(structures, dtype, hold_momentum=hold)
        self.timestep = jax.device_put(np.asarray(timestep, dtype))
        # The devices among which one system is divided; None where none is.
        self.domains = self.mesh if len(structures) == 1 else None
        if self.domains is not None:
            check_domains(model, structures[0], devices)
        if self.mesh is not None:
            self.model = model = place(NamedSharding(self.mesh, P()), model)
        self.state, self.origins = start_state(
            model, self.system, structures, ensemble, kelvin, seed, skin, dtype, self.domains
        )
        if self.mesh is not None and self.domains is None:
            check_memory(self.state)
        self.center = jax.jit(centers)(self.system, self.state.positions)
        # What no chunk changes, where chunks want it.
        self._still = (self.model, self.ensemble, self.system, self.timestep)
        self.stopped = jax.device_put(np.zeros(len(structures), np.int32))
        self.stopped_at = jax.device_put(np.full(len(structures), -1, np.int32))

    @property
    def sizes(self) -> ListSizes:
        return self.state.neighbors.sizes

    @property
    def listed_at(self) -> tuple[Any, Any]:
        """Positions and cell, one for each replica, where the lists were made; on the host."""
        positions, cell = self.state.neighbors.positions, self.state.neighbors.cell
        if self.domains is None:
            return on_host((positions, cell))
        # Every domain's lists know where all atoms were; each process has the lists of one domain at least.
        return np.asarray(positions.addressable_data(0)), np.asarray(cell.addressable_data(0))

    def relist(self, sizes: ListSizes, positions, cell) -> None:
        """Lists of these sizes, made anew where they were made before, so that renewals come at the same steps.

        Those of stopped replicas are made where these stand: the step that broke them may have made one of no numbers.
        """
        stopped, *here = on_host((self.stopped, self.state.positions, self.state.cell))
        rest = stopped[:, None, None] > 0
        positions, cell = (np.where(rest, now, then) for now, then in zip(here, (positions, cell), strict=True))
        system = self.system
        where = (system.numbers, positions, cell, system.pbc, self.model.cutoff, self.skin, self.dtype)
        self.state = self.state.replace(neighbors=_lists(where, sizes, self.domains))

    def seen(self, positions, images, cell) -> tuple[np.ndarray, np.ndarray]:
        """Positions as the user sees them, in float64, and the cell that they belong to; of states or frames.

        A cell that the ensemble does not move is the one that was given: far out its rounding to float32 would show.
        """
        given = np.stack([np.asarray(atoms.cell) for atoms in self.structures])
        cell = np.asarray(cell, np.float64) if self.ensemble.moves_cell else np.broadcast_to(given, np.shape(cell))
        return self.origins.seen(positions, images, cell), cell

    def advance(self, limits: Limits, last_step: int, log_every: int, logs: int, frames: int):
        """One chunk: its frames and log lines, on the host of every process."""
        shape = {"log_every": log_every, "logs": logs, "frames": frames}
        doomed = np.full(len(self.structures), -1, np.int32)
        chunk = self._chunk(self.stopped, doomed, limits, last_step, shape)
        # Sums over all replicas at once spread what is no number from one to all: those that break alone as well are
        # stopped before they do, and the others go on.
        while len(suspects := self._broken_together(chunk[0], doomed)) > 1:
            fates = {}
            for r in suspects:
                others, stopped = np.arange(len(doomed)) != r, on_host(self.stopped)
                alone = jax.device_put(np.where(others & (stopped == 0), np.int32(1), stopped))
                _, *fate = self._chunk(alone, doomed, limits, last_step, shape)[0]
                stopped, stopped_at = on_host(fate)
                if int(stopped[r]) == 1:
                    fates[r] = int(stopped_at[r])
            if not fates:
                break
            doomed[list(fates)] = list(fates.values())
            chunk = self._chunk(self.stopped, doomed, limits, last_step, shape)
        (self.state, self.stopped, self.stopped_at), frame, logged = chunk
        return on_host((frame, logged))

    def _broken_together(self, after, doomed) -> list[int]:
        """Replicas that were first, and at the same step, to have a number that is none."""
        stopped, at, before = on_host((*after[1:], self.stopped))
        new = (stopped == 1) & (before == 0) & (doomed < 0)
        return np.flatnonzero(new & (at == at[new].min(initial=np.iinfo(np.int32).max))).tolist()

    def arguments(self, stopped, doomed, limits: Limits, last_step: int) -> tuple[Any, ...]:
        """What a chunk from the present state is given."""
        model, ensemble, system, dt = self._still
        carry, last = (self.state, stopped, self.stopped_at), jax.device_put((np.int32(last_step), doomed))
        given = (model, ensemble, system, carry, dt, self.center, limits, *last)
        if self.mesh is None:
            return given
        # Where they lay elsewhere there would be a program for the first chunk, and another for those that follow.
        given = placed(given, self.mesh)
        model, ensemble, system, _, dt, *_ = given
        self._still = (model, ensemble, system, dt)
        return given

    def _chunk(self, stopped, doomed, limits: Limits, last_step: int, shape: dict[str, int]):
        """A chunk from the present state; enlarges lists and runs it again as often as needed."""
        for _ in range(_GROWTHS):
            given = self.arguments(stopped, doomed, limits, last_step)
            after, frame, logged = _chunk(*given, mesh=self.mesh, **shape)
            overflow = _overflow(after[0].neighbors)
            if not overflow:
                return after, frame, logged
            sizes = grown(self.sizes, overflow, self.system.numbers.shape[1])
            log.info("Neighbour lists were too small (%s): enlarged to %s, the chunk is run again.", overflow, sizes)
            self.relist(sizes, *self.listed_at)
        raise SimulationError(
            f"Neighbour lists grew {_GROWTHS} times within one chunk: the system collapses. Look at the last frames; use a "
            "smaller timestep, a gentler barostat, or a potential that knows such densities."
        )


def _lists(where, sizes: ListSizes | None, domains):
    """Lists at ``where``, the first arguments of :func:`make_lists`, on one device or on several."""
    if domains is None:
        return make_lists(*where, sizes=sizes)
    return divided_lists(*where, sizes=sizes, mesh=domains)


def _overflow(neighbors) -> int:
    """Which sizes were too small for any list, of all devices and replicas."""
    return int(np.bitwise_or.reduce(on_host(neighbors.overflow)))


def start_state(
    model, system: System, structures, ensemble, kelvin, seed, skin, dtype, domains=None
) -> tuple[State, Origins]:
    """The state that a simulation begins with, and from where its positions were taken.

    kelvin: of velocities that are not given; None is the ensemble's temperature.
    domains: a mesh of devices among which one system is divided.
    """
    _check_motion(system, structures, ensemble)
    size = system.numbers.shape[1]
    near, origins = start_positions(model, structures, size, sees_origin=ensemble.sees_origin)
    positions = jax.device_put(near.astype(dtype))
    cell = jax.device_put(np.stack([np.asarray(a.cell) for a in structures]).astype(dtype))
    where = (system.numbers, positions, cell, system.pbc, model.cutoff, skin, dtype)
    neighbors = _lists(where, None, domains)
    # The first forces come from these lists: they must hold all pairs.
    while overflow := _overflow(neighbors):
        neighbors = _lists(where, grown(neighbors.sizes, overflow, size), domains)
    velocities = np.zeros((len(structures), size, 3))
    for r, atoms in enumerate(structures):
        velocities[r, : len(atoms)] = atoms.get_velocities() * ase.units.fs
    given = np.array([one.any() for one in velocities])
    kelvin = getattr(ensemble, "temperature", None) if kelvin is None else kelvin
    if not given.all() and kelvin is None:
        which = "The structure" if len(given) == 1 else f"Structure {int(np.argmin(given))}"
        raise ConfigError(f"{which} has no velocities: give a temperature to draw them at.")
    _tell_of_copies(structures, velocities, given, ensemble)
    _tell_of_unread_velocities([atoms for atoms, has in zip(structures, given, strict=True) if not has])
    velocities, keys = _first_velocities(
        system, velocities.astype(dtype), given, None if given.all() else kelvin, jax.random.key(seed)
    )
    if domains is None:
        check_answers(model, system, neighbors, positions, cell)
        energy, forces, stress = jax.jit(evaluate)(model, system, neighbors, positions, cell)
    else:
        energy, forces, stress = evaluate_divided(model, system, neighbors, positions, cell, mesh=domains)
    check_start(model, system, energy, forces)
    state = State(
        positions=positions,
        images=jax.device_put(np.zeros(positions.shape, np.int32)),
        velocities=velocities,
        cell=cell,
        energy=energy,
        forces=forces,
        stress=stress,
        bath=(),
        exchanged=jax.device_put(np.zeros(len(structures), dtype)),
        key=keys,
        step=jax.device_put(np.int32(0)),
        neighbors=neighbors,
    )
    return state.replace(bath=ensemble.start(system, state)), origins


@jax.jit
def _first_velocities(system: System, velocities, given, kelvin, key):
    """Velocities as they are ``given`` [replicas], others drawn at ``kelvin``, without total momentum; and a key for each
    replica's steps. One program: every operation by itself would be compiled too."""
    keys = jax.random.split(key, given.shape[0] + 1)[1:]
    velocities = velocities * system.mobile
    if kelvin is not None:
        drawn = draw_velocities(system, value_at(kelvin, jnp.zeros((), velocities.dtype)), keys)
        velocities = jnp.where(given[:, None, None], velocities, drawn)
    return without_momentum(system, velocities), jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)


def _tell_of_unread_velocities(structures) -> None:
    names = sorted({name for atoms in structures for name in _OTHER_VELOCITIES if name in atoms.arrays})
    if names:
        log.warning(
            "Velocities are drawn: those in the column %s are not read, as they may be in any unit. Give them by "
            "atoms.set_velocities, or as a column momenta in ASE's units.",
            ", ".join(names),
        )


def _tell_of_copies(structures, velocities, given, ensemble) -> None:
    if not isinstance(ensemble.wrapped or ensemble, NVE | NoseHoover):
        return
    starts = [
        (a.numbers.tobytes(), a.positions.tobytes(), v.tobytes()) for a, v in zip(structures, velocities, strict=True)
    ]
    known = [start for start, has in zip(starts, given, strict=True) if has]
    if len(set(known)) < len(known):
        log.warning(
            "Replicas begin at the same positions with the same velocities, and %s draws no random numbers: they will be "
            "copies of each other. Take the velocities out (atoms.set_velocities of zeros), so that each draws its own.",
            type(ensemble).__name__,
        )


def _check_motion(system: System, structures, ensemble) -> None:
    """ConfigError where nothing can move, or not as the ensemble moves it; StructureError for velocities of no numbers."""
    mobile = np.asarray(system.mobile)
    for r, atoms in enumerate(structures):
        name = "The structure" if len(structures) == 1 else f"Structure {r}"
        if not mobile[r].any():
            raise ConfigError(f"{name}: its constraints hold every atom, so that nothing can move. Free some of them.")
        wrong = np.flatnonzero(~np.isfinite(atoms.get_velocities()).all(1))
        if len(wrong):
            raise StructureError(
                f"{name}: atom {wrong[0]} has a velocity that is no number. Take velocities out of the file, or draw them "
                "anew (atoms.set_velocities)."
            )
    if ensemble.moves_cell:
        check_strain(system)


def centers(system: System, positions):
    """``[replicas, 3]`` Å, the middle of each system, from which ``Limits.distance`` counts."""
    weights = (system.numbers > 0).astype(positions.dtype)[..., None]
    return (weights * positions).sum(1) / weights.sum(1)


@partial(jax.jit, static_argnames=("mesh", "log_every", "logs", "frames"))
def _chunk(
    model, ensemble, system, before, dt, center, limits, last_step, doomed, *, mesh=None, log_every, logs, frames
):
    """``frames`` frames of ``logs`` log lines of ``log_every`` steps each, or fewer where ``last_step`` comes first.

    doomed: ``[replicas]`` int32, the step at which a replica is stopped because its next one is known to break; or -1.
    mesh: devices among which replicas are divided, or None.
    The state is not donated: a chunk whose lists overflow is run again from it.
    """
    arguments = (model, ensemble, system, before, dt, center, limits, last_step, doomed)
    steps = partial(_steps, log_every=log_every, logs=logs, frames=frames, axis=None if mesh is None else DEVICES)
    if mesh is None:
        return steps(*arguments)
    return divided(steps, mesh, arguments, SAVED, _line_names(model))(*arguments)


def _steps(model, ensemble, system, before, dt, center, limits, last_step, doomed, *, log_every, logs, frames, axis):
    """:func:`_chunk` of the replicas of one device; ``axis`` is that of all devices, None where there is one."""

    def one(_, carry):
        state, stopped, stopped_at = carry
        due = (stopped == 0) & (doomed == state.step)
        stopped, stopped_at = jnp.where(due, 1, stopped), jnp.where(due, state.step, stopped_at)

        # Nothing moves a stopped replica, so that its lists last and it can't break again.
        def rest(x):
            return jnp.where((stopped > 0)[:, None, None], 0.0, x)

        still = state.replace(velocities=rest(state.velocities), forces=rest(state.forces), stress=rest(state.stress))
        after = ensemble.step(model, system, still, dt)
        reason = broken(system, state, after, center, limits)
        good = (reason == 0) & (stopped == 0)
        stopped_at = jnp.where((stopped == 0) & (reason > 0), state.step, stopped_at)
        stopped = jnp.where(stopped == 0, reason, stopped)

        def keep(new, old):
            return jnp.where(good.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        # Lists are never wrong wherever they were made, and need no selection; positions are by the images of the list.
        state = with_images(state, after.images)
        fields = ("positions", "velocities", "cell", "energy", "forces", "stress", "bath", "exchanged")
        kept = {name: jax.tree.map(keep, getattr(after, name), getattr(state, name)) for name in fields}
        return after.replace(**kept), stopped, stopped_at

    def line(carry, _, end):
        state, stopped, _ = carry
        # Lines and frames come at multiples of log_every and of log_every * logs, wherever a chunk begins.
        due = jnp.minimum((state.step // log_every + 1) * log_every, jnp.minimum(end, last_step))
        going = (stopped == 0).any()
        if axis is not None:
            going = jax.lax.pmax(going.astype(jnp.int32), axis) > 0
        count = jnp.where(going, jnp.maximum(due - state.step, 0), 0)
        state, stopped, stopped_at = jax.lax.fori_loop(0, count, one, carry)
        said = {
            "step": state.step,
            "moved": count > 0,
            "stopped": stopped,
            **line_of(model, ensemble, system, state, dt),
        }
        if "doubt" in said:
            # The line that says so is logged; a chunk that ends between lines has one more.
            unsure = (stopped == 0) & (said["doubt"] > limits.doubt) & (state.step % log_every == 0)
            stopped = jnp.where(unsure, UNSURE, stopped)
            stopped_at = jnp.where(unsure, state.step, stopped_at)
        return (state, stopped, stopped_at), said

    def frame(carry, _):
        start = carry[0].step
        end = (start // (log_every * logs) + 1) * log_every * logs
        carry, lines = jax.lax.scan(partial(line, end=end), carry, None, length=logs)
        state = carry[0]
        saved = {name: getattr(state, name) for name in SAVED}
        return carry, ({**saved, "moved": state.step > start, "stopped": carry[1]}, lines)

    after, (saved, lines) = jax.lax.scan(frame, before, None, length=frames)
    lines = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lines)
    return after, saved, lines


def _line_names(model) -> tuple[str, ...]:
    return (*Thermo._fields, "doubt") if has_doubts(model) else Thermo._fields


def line_of(model, ensemble, system: System, state: State, dt) -> dict[str, Any]:
    """The numbers of a log line, ``[replicas]`` each: those of :func:`thermo`, and a committee's ``doubt`` eV/Å."""
    found = thermo(ensemble, system, state, dt)._asdict()
    if has_doubts(model):
        each = doubts(model, joined_graph(system, state.neighbors, state.positions, state.cell))
        real = system.numbers > 0
        found["doubt"] = jnp.where(real, each.reshape(real.shape), 0.0).max(1)
    return found


def broken(system: System, before: State, after: State, center, limits: Limits):
    """Why a replica can't go on, 0 where it can: ``[replicas]`` int32, see ``REASONS``."""
    real = (system.numbers > 0)[..., None]
    finite = jnp.isfinite(after.energy) & jnp.isfinite(jnp.where(real, after.positions, 0.0)).all((1, 2))
    finite &= jnp.isfinite(jnp.where(real, after.velocities, 0.0)).all((1, 2))
    # A strain moves far atoms far: only what goes beyond it counts.
    unit, solid = jnp.eye(3, dtype=after.cell.dtype), system.pbc.all(-1)[:, None, None]
    stretch = transformed(inverse(jnp.where(solid, before.cell, unit)), jnp.where(solid, after.cell, unit))
    ahead = lattice_vectors(after.images - before.images, after.cell)
    moved = jnp.where(real, after.positions - transformed(before.positions, stretch) + ahead, 0.0)
    fast = (moved**2).sum(-1).max(-1) > limits.step**2
    away = jnp.where(real & ~system.pbc[:, None], unwrapped(after) - center[:, None], 0.0)
    far = (away**2).sum(-1).max(-1) > limits.distance**2
    hot = temperature(system, after.velocities) > limits.temperature
    reason = jnp.where(far, 4, 0)
    reason = jnp.where(fast, 3, reason)
    reason = jnp.where(hot, 2, reason)
    return jnp.where(finite, reason, 1).astype(jnp.int32)
