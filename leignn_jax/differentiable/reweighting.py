r"""Averages of an equilibrium and their derivatives, without differentiating through time.

A sample are frames x_n of one simulation at temperature and pressure of its own. Averages at other parameters, at another
temperature or pressure, come from the same frames with the weights

    w_n ~ exp(u_n^made - u_n),    u_n = (U(x_n) + P V_n) / kT,

U of the model that is asked about, u^made as the frames were made. Derivatives by the model, kT and P go through the
weights and through the observable itself (Norgaard et al. 2008; Thaler and Zavadlav 2021). Velocities of another
temperature are those of the sample times (kT / kT_made)^1/2.

Frames of several simulations count together as in MBAR (Shirts and Chodera 2008): with N_k frames made with u_k, and free
energies f_k that make it consistent,

    u_n^made = -log sum_k N_k exp(f_k - u_k(x_n)).

The number of frames that still count is the effective sample size (sum w)^2 / sum w^2 (Kish); it says nothing of how much
frames that follow each other have in common, which the standard error by blocks does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import MOST_STEPS, check_model, check_number, check_whole
from leignn_jax.differentiable.rollout import check_call, rollout
from leignn_jax.differentiable.trouble import check
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.list_sizes import grown, largest
from leignn_jax.simulation.dynamics import (
    GIGAPASCAL,
    EnergyModel,
    State,
    System,
    check_reach,
    make_lists,
    move_to,
    volume,
)
from leignn_jax.simulation.ensembles import Ensemble, Ramp
from leignn_jax.simulation.model_sums import without_constants
from leignn_jax.simulation.settings import make_ensemble

_GROWTHS = 20
_BLOCKS = 10
# Iterations of the free energies of several samples, and the change in kT at which they stand.
_ITERATIONS, _SETTLED = 10_000, 1e-10


@struct.dataclass
class Sample:
    """Frames of a simulation in equilibrium, ``[frames, replicas, ...]``. A pytree.

    positions, images, velocities, cell: as in a state. energy: eV, of the model that made them.
    kT: eV, pressure: eV/Å^3 (zero at constant volume), at which they were made, ``[frames, replicas]``.
    made: ``[frames, replicas]``, minus the logarithm of the density that the frames were drawn from.
    system: what was simulated. state: a state to begin lists from. model: what made them; None of several samples.
    bath: what the ensemble remembers after the last frame; none of several samples.
    moves_cell: whether the pressure counts (static). lengths: frames of each of several samples (static).
    """

    positions: Any
    images: Any
    velocities: Any
    cell: Any
    energy: Any
    kT: Any
    pressure: Any
    made: Any
    system: System
    state: State
    model: Any
    bath: Any = ()
    moves_cell: bool = struct.field(pytree_node=False, default=False)
    lengths: tuple[int, ...] = struct.field(pytree_node=False, default=())


class Reweighted(NamedTuple):
    """An average, as a pytree like what ``observe`` gives without its axis of replicas.

    value: the average. error: its standard error, by the scatter of blocks. effective: frames that still count.
    """

    value: Any
    error: Any
    effective: Any


def sample(
    model: EnergyModel,
    ensemble: Ensemble | str,
    system: System,
    state: State,
    timestep: float,
    steps: int,
    *,
    every: int,
    discard: int = 0,
    temperature: Any = None,
    pressure: Any = None,
) -> Sample:
    """Simulate and keep what averages need; on the host, lists that turn out too small are enlarged.

    Args:
        model, ensemble, system, state, timestep, steps: as in :func:`leignn_jax.differentiable.rollout`. The ensemble has
            one constant temperature.
        every: steps between kept frames. discard: steps at the start that are left out, both of which ``steps`` is a
            multiple of.
        temperature, pressure: K and GPa, of an ensemble given by its name.

    Raises:
        ConfigError: steps that do not fit, an ensemble without a constant temperature, or replicas that differ in more than
            their random numbers.
        SimulationError: the simulation broke a limit.
    """
    check_model(model, "model")
    ensemble = make_ensemble(ensemble, temperature, pressure)
    check_call(model, ensemble, system, state, timestep, steps)
    check_whole("every", every, 1, MOST_STEPS)
    check_whole("discard", discard, 0, MOST_STEPS)
    if steps % every or discard % every or discard >= steps:
        raise ConfigError(f"steps ({steps}) and discard ({discard} of them) must be multiples of every ({every}).")
    if steps - discard < 2 * every:
        raise ConfigError("A sample needs two frames or more: take more steps, or a smaller every.")
    if ensemble.wrapped is not None:
        raise ConfigError(
            f"A sample is drawn in equilibrium: {type(ensemble).__name__} changes its bias as it goes. Give the ensemble "
            "that it is around, and the model plus its hills (`model + metadynamics.bias(state.bath)`)."
        )
    if any(isinstance(value, Ramp) for value in ensemble.settings().values()):
        raise ConfigError("A sample is made at one temperature and pressure: give the ensemble numbers, not ramps.")
    if not bool((ensemble.kT(state, timestep) > 0).all()):
        raise ConfigError("A sample needs an ensemble with a temperature, such as nvt, langevin, csvr or npt.")
    bar = np.asarray(ensemble.settings()["pressure"] if ensemble.moves_cell else 0.0) / GIGAPASCAL
    alike = [system.numbers, system.masses, system.mobile, system.pbc, ensemble.kT(state, timestep), bar.reshape(-1)]
    alike += [] if ensemble.moves_cell else [state.cell]
    if not all(bool((x == x[:1]).all()) for x in alike):
        raise ConfigError(
            "The replicas of a sample count together: they must be of the same atoms, of which the same are held, at one "
            "temperature and pressure, in one cell where it is held. Draw a sample of each, and join those of the same "
            "atoms by `pooled`."
        )
    model = without_constants(model)

    for _ in range(_GROWTHS):
        out = _drawn(model, ensemble, system, state, timestep, steps, every)
        overflow = int(np.bitwise_or.reduce(np.asarray(out.state.neighbors.overflow)))
        if not overflow:
            break
        old = state.neighbors
        sizes = grown(old.sizes, overflow, system.numbers.shape[1])
        skin, dtype = float(np.max(old.skin)), state.positions.dtype
        lists = make_lists(system.numbers, old.positions, old.cell, system.pbc, model.cutoff, skin, dtype, sizes)
        state = state.replace(neighbors=lists)
    else:
        raise SimulationError(f"Neighbour lists grew {_GROWTHS} times: the system collapses. Use a smaller timestep.")
    check(out)
    frames = jax.tree.map(lambda x: x[discard // every :], out.seen)
    shape = frames["energy"].shape
    kT = jnp.broadcast_to(ensemble.kT(state, timestep), shape)
    barostat = jnp.broadcast_to(jnp.asarray(bar, kT.dtype), shape)
    made = (frames["energy"] + barostat * volume(frames["cell"])) / kT
    return Sample(
        **frames,
        kT=kT,
        pressure=barostat,
        made=made,
        system=system,
        state=state.replace(bath=()),
        model=model,
        bath=out.state.bath,
        moves_cell=ensemble.moves_cell,
    )


@partial(jax.jit, static_argnames=("steps", "every"))
def _drawn(model, ensemble, system, state: State, timestep, steps: int, every: int):
    """Compiled once for all samples of models and systems that differ in numbers."""

    def observe(_, state: State):
        return {name: getattr(state, name) for name in ("positions", "images", "velocities", "cell", "energy")}

    return rollout(model, ensemble, system, state, timestep, steps, observe=observe, every=every)


def pooled(samples: Sequence[Sample]) -> Sample:
    """Several samples of the same atoms as one, by MBAR; their frames may be of different models, kT and pressures.

    Raises:
        ConfigError: samples of other atoms, other replicas, of constant volume and constant pressure, or pooled already.
        SimulationError: their free energies can't be told from each other's frames.
    """
    joint, reduced = joined(samples)
    counts = np.array([one.energy.size for one in samples], float)
    u = reduced.reshape(len(samples), -1)
    made = -_mixture(mbar(u, counts), u, counts)
    return joint.replace(made=jnp.asarray(made.reshape(reduced.shape[1:]), joint.made.dtype))


def joined(samples: Sequence[Sample]) -> tuple[Sample, np.ndarray]:
    """The frames of all samples in one, and (U_k + P_k V) / kT_k of every sample's model for every frame, float64
    ``[samples, frames of all, replicas]``; raises as :func:`pooled`."""
    if isinstance(samples, Sample) or not isinstance(samples, Sequence):
        raise ConfigError(f"samples must be a list of samples, not {type(samples).__name__}.")
    if not samples or not all(isinstance(one, Sample) for one in samples):
        raise ConfigError("samples must be a list of samples, each from leignn.differentiable.sample.")
    if any(one.model is None for one in samples):
        raise ConfigError("A sample that is pooled already can't be pooled again: give all of its parts at once.")
    first = samples[0]
    for one in samples[1:]:
        if one.moves_cell != first.moves_cell or not np.array_equal(one.system.numbers, first.system.numbers):
            raise ConfigError("Samples that are pooled must be of the same atoms, all at constant volume or none.")
        if not one.moves_cell and not np.allclose(one.cell[0], first.cell[0]):
            raise ConfigError("Samples at constant volume that are pooled must have the same cell.")
    # u_k(x_n): [samples, frames of all, replicas].
    everything = jax.tree.map(
        lambda *x: jnp.concatenate(x), *(tuple(getattr(one, name) for name in _FRAMES) for one in samples)
    )
    # Lists in which the frames of all have room.
    old, size = first.state.neighbors, first.system.numbers.shape[1]
    sizes = largest([one.state.neighbors.sizes for one in samples], size)
    cutoff, skin, dtype = max(one.model.cutoff for one in samples), float(np.max(old.skin)), first.positions.dtype
    lists = make_lists(first.system.numbers, old.positions, old.cell, first.system.pbc, cutoff, skin, dtype, sizes)
    frames = dict(zip(_FRAMES, everything, strict=True))
    lengths = tuple(one.energy.shape[0] for one in samples)
    begin = first.state.replace(neighbors=lists)
    joint = first.replace(**frames, state=begin, model=None, bath=(), lengths=lengths)
    # Of models that differ in numbers one program serves all.
    reduced = [_frames(one.model, joint, _same(one.kT, joint), _same(one.pressure, joint), None)[0] for one in samples]
    return joint, np.stack([np.asarray(u, np.float64) for u in reduced])


def mbar(u: np.ndarray, counts: np.ndarray, free: np.ndarray | None = None) -> np.ndarray:
    """Free energies ``[samples]`` in kT, the first one 0, of reduced energies; Shirts and Chodera 2008, eq. 11.

    Args:
        u: ``[samples, frames]``, of every sample's model for the frames of all. counts: ``[samples]`` frames of each.
        free: to begin with.

    Raises:
        SimulationError: they do not settle.
    """
    free = np.zeros(len(u)) if free is None else np.asarray(free)
    for _ in range(_ITERATIONS):
        new = -_log_sum(-u - _mixture(free, u, counts), 1)
        new -= new[0]
        change, free = np.abs(new - free).max(), new
        if change < _SETTLED:
            return new
    raise SimulationError(
        "The free energies of these samples do not settle: their frames are too far apart, or some energies are no "
        "numbers. Draw samples between them."
    )


def _mixture(free, u, counts):
    """Logarithm of the density that the frames of all are drawn from."""
    return _log_sum(free[:, None] - u + np.log(counts)[:, None], 0)


_FRAMES = ("positions", "images", "velocities", "cell", "energy", "kT", "pressure", "made")


def _same(values, joint: Sample):
    return jnp.broadcast_to(values[0], joint.energy.shape)


def _log_sum(x, axis: int):
    most = x.max(axis, keepdims=True)
    return np.squeeze(most, axis) + np.log(np.exp(x - most).sum(axis))


def reweighted(
    model: EnergyModel,
    sample: Sample,
    observe: Callable[[System, State], Any],
    *,
    kT: Any = None,
    pressure: Any = None,
    least: float = 10.0,
) -> Reweighted:
    """The average of an observable for a model, a temperature and a pressure; differentiable by all three.

    Args:
        model: of which the average is meant; as the one of :func:`sample` but for its numbers.
        sample: from :func:`sample` or :func:`pooled`.
        observe: ``(system, state) -> pytree`` with leaves ``[replicas, ...]``, such as those of
            :mod:`leignn_jax.differentiable.observables`.
        kT: eV. pressure: GPa. None are those of the sample, which frames pooled of several have not in common.
        least: frames that must still count; only where nothing is traced, as an error can't come from a compiled program.
            There look at ``effective``.

    Raises:
        ConfigError: a pressure for a sample of constant volume, or none for one pooled of several; the same of kT; leaves
            without an axis of replicas. In a compiled program an average over frames of several is NaN.
        SimulationError: fewer than ``least`` frames count: draw a new sample with the present model.
    """
    check_model(model, "model")
    if not isinstance(sample, Sample):
        raise ConfigError(f"sample must come from leignn.differentiable.sample, not {type(sample).__name__}.")
    if pressure is not None and not sample.moves_cell:
        raise ConfigError("pressure: the sample is of constant volume; draw one with a barostat.")
    check_number("least", least, positive=True)
    check_reach(model, sample.state.neighbors, "draw the sample with a model of that cutoff, such as a sum")
    model, shape = without_constants(model), sample.energy.shape
    kT = in_common(sample, "kT") if kT is None else jnp.broadcast_to(jnp.asarray(kT, sample.kT.dtype), shape)
    bars = in_common(sample, "pressure") if pressure is None else jnp.asarray(pressure, kT.dtype) / GIGAPASCAL
    bars = jnp.broadcast_to(bars, shape)
    u, seen = _frames(model, sample, kT, bars, observe)
    logs = sample.made - u
    weights = jax.nn.softmax(logs.reshape(-1)).reshape(shape)
    effective = 1.0 / (weights**2).sum()
    if not isinstance(effective, jax.core.Tracer) and not float(effective) >= least:
        raise SimulationError(
            f"Only {float(effective):.1f} of {weights.size} frames still count (least = {least:g}): what is asked is too "
            "far from what the sample was made with. Draw a new sample with the present model, temperature and pressure."
        )

    def average(x):
        if x.shape[:2] != shape:
            raise ConfigError(
                f"observe must return arrays [replicas, ...] with {shape[1]} replicas; one has shape {x.shape[1:]}."
            )
        w = weights.reshape(*shape, *[1] * (x.ndim - 2))
        value = (w * x).sum((0, 1))
        # Of a ratio: the scatter of w (x - value).
        return value, _error(jax.lax.stop_gradient(w * (x - value)), sample.lengths or shape[:1])

    flat, tree = jax.tree.flatten(seen)
    both = [average(x) for x in flat]
    return Reweighted(tree.unflatten([b[0] for b in both]), tree.unflatten([b[1] for b in both]), effective)


def in_common(sample: Sample, name: str):
    """What all frames have in common, "kT" or "pressure", ``[frames, replicas]`` eV or eV/Å^3: ConfigError where they were
    made at several, NaN where that can't be known before the program runs."""
    values = getattr(sample, name)
    alike = jnp.isclose(values, values[0, 0], rtol=1e-6, atol=0.0).all()
    if not isinstance(alike, jax.core.Tracer) and not bool(alike):
        raise ConfigError(
            f"The frames were made at several values of {name}: name the one to average at ({name} of reweighted), or pool "
            "frames of one."
        )
    return jnp.where(alike, values, jnp.nan)


def _error(parts, lengths: Sequence[int]):
    """The standard error of the sum of ``[frames, replicas, ...]``, of blocks of frames, each replica and each of several
    samples of these ``lengths`` for itself: what they differ in for good is no noise."""
    variance, first = 0.0, 0
    for frames in lengths:
        blocks = min(_BLOCKS, frames)
        ends = [first + n * frames // blocks for n in range(blocks + 1)]
        sums = jnp.stack([parts[a:b].sum(0) for a, b in pairwise(ends)])
        sums = sums.reshape(-1, *parts.shape[2:])
        variance += sums.shape[0] * sums.var(0, ddof=1)
        first += frames
    return jnp.sqrt(variance)


def _frames(model: EnergyModel, sample: Sample, kT, pressure, observe):
    """(U + P V) / kT and what is observed of every frame, ``[frames, replicas, ...]``; NaN where a list was too small."""
    hoisted: Any = ()
    if observe is not None:
        # An observable that the system can't have says so where the system is no tracer.
        jax.eval_shape(partial(observe, sample.system), sample.state)
        # What it holds of numbers that are differentiated becomes an argument; where it holds none, the next call with
        # the same function finds the program of this one.
        converted, hoisted = jax.closure_convert(observe, sample.system, sample.state)
        observe = converted if hoisted or not _has_hash(observe) else observe
    return _frame_by_frame(model, sample, kT, pressure, hoisted, observe=observe)


def _has_hash(function: Callable) -> bool:
    try:
        hash(function)
    except TypeError:
        return False
    return True


@partial(jax.jit, static_argnames="observe")
def _frame_by_frame(model: EnergyModel, sample: Sample, kT, pressure, hoisted, *, observe):
    system = sample.system
    scale = jnp.sqrt(kT / sample.kT)[:, :, None, None]

    def one(neighbors, frame):
        positions, images, velocities, cell, kT, pressure = frame
        state = sample.state.replace(neighbors=neighbors, images=images, velocities=velocities)
        state = move_to(model, system, state, positions, cell)
        poison = jnp.where((state.neighbors.overflow == 0).all(), 1.0, jnp.nan).astype(positions.dtype)
        reduced = poison * (state.energy + pressure * volume(cell)) / kT
        return state.neighbors, (reduced, None if observe is None else observe(system, state, *hoisted))

    frames = (sample.positions, sample.images, sample.velocities * scale, sample.cell, kT, pressure)
    return jax.lax.scan(jax.checkpoint(one), sample.state.neighbors, frames)[1]
