"""The training loop: from a config to a run folder with potentials, metrics, plots and a report; never losing work.

A run folder::

    config.yaml        every setting            potential.safetensors  best on validation, averaged parameters
    data.json          hashes, split, plan      last.safetensors       after the last step
    metrics.csv        one line per epoch       checkpoints/           to go on from, by orbax
    report.html        with learning_curve.png, parity_*.png; metrics.json: errors on validation and test
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import leignn_jax
from leignn_jax.data.batches import Batch, collate, epoch_order, in_order, prefetch
from leignn_jax.data.distances import wall_distances
from leignn_jax.errors import ConfigError, ElementError, TrainingError
from leignn_jax.interruption import stop_requests
from leignn_jax.potential import Potential
from leignn_jax.potential_file import find_potential, load_potential
from leignn_jax.training.config import TrainConfig, dump_config
from leignn_jax.training.dataset import (
    ExampleSet,
    Splits,
    evaluation_set,
    force_scale,
    hash_path,
    load_splits,
    references_for,
    shortest_of,
    training_set,
)
from leignn_jax.training.folder import RunFolder
from leignn_jax.training.logs import TrainingProgress
from leignn_jax.training.loss import metrics
from leignn_jax.training.optimizer import plateau_step
from leignn_jax.training.parallel import (
    DATA,
    make_mesh,
    on_own_device,
    own_parts,
    place_batch,
    place_state,
    shard_step,
)
from leignn_jax.training.processes import (
    arrays_from_first,
    check_devices,
    check_same,
    connect,
    from_first,
    together,
)
from leignn_jax.training.step import TrainState, evaluate_step, start_state, train_step

log = logging.getLogger("leignn_jax")

# Steps that the host may run ahead of the device: enough to hide its work, few enough to stop quickly.
_AHEAD = 2


class TrainResult(NamedTuple):
    """What a training leaves.

    potential: the best on validation, averaged parameters.
    metrics: errors on "validation" and "test" in meV/atom, meV/Å, meV/Å^3.
    history: one dict per epoch.
    out: the run folder.
    finished: False where a signal or early end of time stopped it; the same command goes on.
    signal: name of the signal that asked this process to stop, None where none did.
    """

    potential: Potential
    metrics: dict[str, dict[str, float | None]]
    history: list[dict[str, Any]]
    out: Path
    finished: bool
    signal: str | None = None


class Prepared(NamedTuple):
    """Data and model of a run, ready to step."""

    potential: Potential
    train: ExampleSet
    validation: ExampleSet
    splits: Splits
    steps_per_epoch: int


def prepare(config: TrainConfig, devices: int = 1, progress: bool | None = False) -> Prepared:
    """Read and check the data, make the potential to start from, plan the batches of ``devices`` at a time.

    ``progress`` shows how ``data.cache`` is built; None where there is a terminal or notebook.
    """
    data = config.data
    given = None if config.run.start_from is None else load_potential(config.run.start_from)
    cutoff = config.cutoff() if given is None else given.cutoff
    splits = load_splits(data, cutoff, progress, with_stress=config.loss.kinds().with_stress)
    elements = splits.train.table.present()
    if given is not None:
        potential = given
        if config.model:
            raise ConfigError("model: leave it out where run.start_from gives the model.")
        missing = sorted(set(elements) - set(potential.config.elements))
        if missing:
            raise ElementError(
                f"{config.run.start_from} knows {', '.join(potential.config.elements)}; the data hold {missing[0]} too."
            )
        references = dict(zip(potential.config.elements, map(float, potential.reference_energies), strict=True))
        if data.reference_energies != "keep":
            # New data may come from another code or functional: their own references, the network's energies on top.
            references |= references_for(splits.train, data)
        elif float(potential.energy_shift) != 0:
            raise ConfigError(
                f"data.reference_energies: {config.run.start_from} adds a constant to every structure's energy; 'keep' "
                "is not for it. Give reference energies, or fit them."
            )
        table = np.array([references[e] for e in potential.config.elements])
        potential = potential.replace(reference_energies=table, energy_shift=np.zeros(()))
    else:
        references = references_for(splits.train, data)
        potential = Potential.create(
            config.model_for(elements),
            jax.random.key(config.run.seed),
            reference_energies={e: v for e, v in references.items() if e in config.model_for(elements).elements},
            scale=force_scale(splits.train),
        )
    references = dict(zip(potential.config.elements, map(float, potential.reference_energies), strict=True))
    train = training_set(splits.train, cutoff, references, data, config.run.epochs)
    validation = evaluation_set(splits.validation, cutoff, references, data.batch_size)
    if potential.config.repulsion and (given is None or given.walls is not None):
        walls = wall_distances(shortest_of(splits.train, cutoff))
        # What the potential to go on from was trained on stays free too.
        before = potential.wall_distances
        potential = potential.with_walls({k: min(walls.get(k, np.inf), before.get(k, np.inf)) for k in walls | before})
    batches = len(epoch_order(len(train.examples), data.batch_size, data.order_seed, 0))
    per_step = data.accumulate * devices
    if batches < per_step:
        raise ConfigError(
            f"One update takes {per_step} batches (data.accumulate times devices), but an epoch has only {batches} of "
            f"{data.batch_size} frames."
        )
    return Prepared(potential, train, validation, splits, batches // per_step)


def train_batches(
    prepared: Prepared, config: TrainConfig, first_step: int, epoch: int, mesh: Mesh | None = None
) -> Iterator[tuple[int, Batch]]:
    """The batches of one epoch from its step ``first_step`` on: the step's number in the epoch, and what it takes.

    With ``data.accumulate`` the batches of a step are stacked on a leading axis; with a mesh, before it, those of its
    devices. Batches that are stacked are padded alike. Each of several processes makes those of its own devices only.
    """
    data = config.data
    devices = 1 if mesh is None else mesh.shape[DATA]
    own = [0] if mesh is None else own_parts(mesh)
    per_step = data.accumulate * devices
    order = epoch_order(len(prepared.train.examples), data.batch_size, data.order_seed, epoch)
    for step in range(first_step, prepared.steps_per_epoch):
        parts = order[step * per_step : (step + 1) * per_step]
        shape = max((prepared.train.shape_of(part) for part in parts), key=lambda s: s.pairs)
        parts = parts.reshape(devices, data.accumulate, -1)[own].reshape(len(own) * data.accumulate, -1)
        batches = [collate([prepared.train.examples[i] for i in part], shape) for part in parts]
        if mesh is None:
            yield step, jax.device_put(batches[0] if data.accumulate == 1 else _stack(batches))
            continue
        batch = _stack(batches)
        if data.accumulate > 1:
            batch = jax.tree.map(lambda x: x.reshape(len(own), data.accumulate, *x.shape[1:]), batch)
        yield step, place_batch(mesh, batch)


def _stack(batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def evaluation_batches(examples: ExampleSet, batch_size: int) -> Iterator[Batch]:
    """All examples once, on the device."""
    for block in in_order(len(examples.examples), batch_size):
        for indices in block:
            batch = collate([examples.examples[i] for i in indices], examples.shape_of(indices))
            yield jax.device_put(batch)


class CountedCompiles:
    """A jitted function that counts the shapes it was compiled for, and refuses more than were planned."""

    def __init__(self, function: Callable, planned: int, name: str, donate: tuple[int, ...] = ()):
        # On CPU giving buffers away saves nothing that matters and costs copies: a step took 1.6 times as long.
        self._jitted = jax.jit(function, donate_argnums=donate if jax.default_backend() != "cpu" else ())
        self._compiled: dict[Any, Any] = {}
        self.planned, self.name = planned, name

    def __call__(self, *args):
        key = tuple(x.shape for x in jax.tree.leaves(args))
        if key not in self._compiled:
            if len(self._compiled) >= self.planned:
                raise TrainingError(
                    f"{self.name} would be compiled for a {len(self._compiled) + 1}th shape; {self.planned} were planned. "
                    "This is a bug of leignn_jax: please report it with your data's sizes."
                )
            self._compiled[key] = self._jitted.lower(*args).compile()
        return self._compiled[key](*args)

    @property
    def count(self) -> int:
        return len(self._compiled)

    def memory_bytes(self) -> int | None:
        """The largest scratch memory of the compiled programs, where the backend tells."""
        analyses = [c.memory_analysis() for c in self._compiled.values()]
        sizes = [a.temp_size_in_bytes for a in analyses if a is not None]
        return max(sizes, default=None)


class MoreTerms(Protocol):
    """What a loss has beside frames, such as :class:`leignn_jax.fitting.targets.Targets`."""

    def pull(self, potential: Potential, step: int) -> Any:
        """The gradient by the parameters of what is added to the loss of update ``step``."""

    def row(self, potential: Potential) -> dict[str, float]:
        """What an epoch's line says of it; "targets_loss" is added to the validation loss."""
        ...

    def memory(self) -> Any:
        """What a checkpoint holds of it, a pytree of arrays that keep their shapes."""

    def recall(self, memory: Any) -> None:
        """Go on from such a memory."""

    def report(self, potential: Potential, out: Path) -> tuple[list[str], dict[str, Any]]:
        """Of the best potential: parts of report.html, and numbers for metrics.json."""
        ...


def train(
    config: TrainConfig,
    *,
    resume: bool = True,
    progress: bool | None = None,
    more: Callable[[Potential], MoreTerms] | None = None,
) -> TrainResult:
    """Train a potential; the same call with the same config goes on where an earlier one stopped.

    With several processes (``jax.distributed.initialize`` or :func:`leignn_jax.training.processes.join_processes` before)
    every one makes this call, with the same config and data, and ``run.devices`` counts all their devices. The first one
    alone reads and writes the run folder and shows progress; all return the same result.

    Args:
        config: from :func:`leignn_jax.training.config.make_config` or ``load_config``.
        resume: go on from the run folder's last checkpoint; False refuses a folder that has one.
        progress: show a progress bar; None where there is a terminal or notebook.
        more: of the potential to start from, makes what the loss has beside frames; one process on one device only.

    Raises:
        ConfigError, DataError, ElementError, FileFormatError: see the config and the data.
        TrainingError: the loss became no number (the last good state is kept), the disk is full, the run folder
            belongs to another config or other data, or processes differ or one of them failed.
    """
    connect()
    with together():
        check_devices(config.run.devices)
        prepared = prepare(config, config.run.devices, progress)
        terms = None if more is None else more(prepared.potential)
    check_same(_what_processes_share(config, prepared))
    with together():
        folder = RunFolder(config, _data_of_run(prepared), resume)
    try:
        run = _Run(config, prepared, folder, terms)
        finished = run.go(progress if folder.mine else False)
        return run.result(finished)
    finally:
        folder.close()


def _data_of_run(prepared: Prepared) -> dict[str, Any]:
    """What data.json says."""
    plan = prepared.train.plan
    return {
        "sha256": prepared.splits.hashes,
        "validation_frames_of_train": prepared.splits.held_out,
        "plan": {
            "shapes": [s._asdict() for s in plan.shapes],
            "share": plan.share,
            "padding": plan.padding,
            "steps_per_epoch": prepared.steps_per_epoch,
        },
    }


def _what_processes_share(config: TrainConfig, prepared: Prepared) -> dict[str, str]:
    """What must be the same in all processes that train together."""
    start = config.run.start_from
    others = {
        "isolated_atoms": config.data.isolated_atoms,
        "start_from": None if start is None else find_potential(start),
    }
    hashes = prepared.splits.hashes | {name: hash_path(path) for name, path in others.items() if path is not None}
    return {
        "versions": f"leignn_jax {leignn_jax.__version__}, jax {jax.__version__}",
        "the config": dump_config(config),
        **{f"the {name} file": f"sha256 {value}" for name, value in hashes.items()},
    }


def _advance(carry, item, *, step: Callable):
    """One step, with the epoch's sums kept on the device, and what the host looks at two steps later.

    ``item`` is the batch, whether this device's process was asked to stop (with several processes: the answer travels
    with the step, so that all learn it after the same one without waiting for each other), and what is added to the
    gradient (None: nothing).
    """
    (state, running), (batch, asked, added) = carry, item
    before = state.step
    state, out = step(state, batch, added=added)
    good = state.step > before
    one = {"sums": out["sums"], "loss": out["loss"], "steps": jnp.ones(())}
    last = {k: out[k] for k in ("gradient_norm", "learning_rate")}
    totals = jax.tree.map(lambda r, x: jnp.where(good, r + x, r), running["totals"], one)
    shown = {"loss": out["loss"], "failed": state.failed_at >= 0}
    if asked is not None:
        shown["stop"] = jax.lax.psum(asked, DATA) > 0
    return (state, {"totals": totals, "last": last}), shown


@dataclasses.dataclass
class _Standing:
    """Where a training stands beside its state: what a checkpoint's meta holds."""

    epoch: int = 0
    next_step: int = 0
    best: dict[str, Any] = dataclasses.field(default_factory=lambda: {"loss": math.inf, "epoch": -1})
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class _Run:
    """A training under way: its state on the devices, where it stands, its programs and its folder.

    What several processes decide (stop, best epoch, early stop, failure) follows from numbers that all have alike: what
    a step returns, and each epoch's row, which is the first process's.
    """

    def __init__(self, config: TrainConfig, prepared: Prepared, folder: RunFolder, more: MoreTerms | None):
        self.config, self.prepared, self.folder, self.more = config, prepared, folder, more
        kinds, algorithm = config.loss.kinds(), config.optimizer.algorithm
        devices = config.run.devices
        self.mesh = make_mesh(1, devices) if devices > 1 else None
        self.alone = jax.process_count() == 1
        # What a step is told of whether this process was asked to stop, made once: no transfer at each step.
        self.asked = (None, None)
        if self.mesh is not None and not self.alone:
            mine = np.ones(len(own_parts(self.mesh)), np.int32)
            self.asked = place_batch(self.mesh, (0 * mine, mine))
        step = partial(train_step, kinds=kinds, algorithm=algorithm, accumulate=config.data.accumulate)
        if self.mesh is None:
            stepping = partial(_advance, step=step)
        else:
            stepping = shard_step(partial(_advance, step=partial(step, axis=DATA)), self.mesh)
        self.advance = CountedCompiles(stepping, len(prepared.train.plan.shapes), "The train step", donate=(0,))
        self.evaluate = CountedCompiles(
            partial(evaluate_step, kinds=kinds), len(prepared.validation.plan.shapes), "The evaluation"
        )
        with together():
            hyper = config.hyperparameters(prepared.steps_per_epoch)
            state = start_state(prepared.potential, hyper, algorithm, config.optimizer.freeze)
            carry = (state, _zero_running(state, prepared, config))
            restored = folder.restore(self._kept(carry))
        self.standing = _Standing()
        meta = from_first(None if restored is None else {k: restored[1][k] for k in dataclasses.asdict(self.standing)})
        if meta is not None:
            self.standing = _Standing(**meta)
            log.info("Going on from epoch %d, step %d of %s.", meta["epoch"], meta["next_step"], folder.path)
        with together():
            folder.open_logs(self.standing.history)
        if restored is not None:
            carry = restored[0]
            if more is not None:
                carry, memory = carry
                more.recall(memory)
        self.carry = self._place(arrays_from_first(carry))
        self.saved = time.monotonic()
        self.waited = self.worked = 0.0
        self.signal: str | None = None

    def _kept(self, carry: Any) -> Any:
        """What a checkpoint holds."""
        return carry if self.more is None else (carry, self.more.memory())

    def _place(self, tree: Any) -> Any:
        return jax.device_put(tree) if self.mesh is None else place_state(self.mesh, tree)

    def go(self, progress: bool | None) -> bool:
        """Train to the end; False where a signal stopped it before."""
        epochs, steps, standing = self.config.run.epochs, self.prepared.steps_per_epoch, self.standing
        done = standing.epoch * steps + standing.next_step
        with stop_requests() as stop, TrainingProgress(epochs * steps, progress, done) as bar:
            finished = True
            while finished and standing.epoch < epochs:
                started = time.monotonic()
                finished = self._steps(stop, bar)
                seconds = time.monotonic() - started
                self.worked += seconds
                if finished:
                    self._close_epoch(seconds, bar)
            with together():
                self.folder.wait()
                self._save_last()
            self.signal = stop.signal
        return finished

    def _steps(self, stop: threading.Event, bar: TrainingProgress) -> bool:
        """The steps left of an epoch; False, after a checkpoint, where a process was asked to stop before their end."""
        standing, ended, trouble = self.standing, False, None
        inflight: list[Any] = []

        def look(shown) -> bool:
            shown = jax.device_get(shown)
            bar.update(shown)
            return bool(shown["failed"]) or bool(shown.get("stop"))

        batches = prefetch(train_batches(self.prepared, self.config, standing.next_step, standing.epoch, self.mesh))
        with contextlib.closing(batches):
            while not ended:
                before = time.monotonic()
                item = next(batches, None)
                self.waited += time.monotonic() - before
                if item is None:
                    break
                number, batch = item
                self.carry, shown = self.advance(self.carry, (batch, self.asked[stop.is_set()], self._pull(number)))
                standing.next_step = number + 1
                inflight.append(shown)
                if len(inflight) > _AHEAD:
                    ended = look(inflight.pop(0))
                if self.alone and stop.is_set():
                    ended = True
                elif self.folder.mine and time.monotonic() - self.saved > 60 * self.config.run.checkpoint_minutes:
                    try:
                        self._save()
                    except TrainingError as error:
                        # Raised when all have stopped: who went on would wait for this process without end.
                        trouble = error
                        stop.set()
        for shown in inflight:
            ended |= look(shown)
        jax.block_until_ready(self.carry)
        with together():
            if trouble is not None:
                raise trouble
            if int(self.carry[0].failed_at) >= 0:
                self._fail()
            if ended:
                self._save()
        return not ended

    def _pull(self, number: int) -> Any:
        """What is added to the gradient of an epoch's step."""
        if self.more is None:
            return None
        return self.more.pull(self.carry[0].potential, self.standing.epoch * self.prepared.steps_per_epoch + number)

    def _close_epoch(self, seconds: float, bar: TrainingProgress) -> None:
        """Evaluate, and write down what the epoch brought."""
        with together():
            row = self._row(seconds)
        row = from_first(row)
        with together():
            self._record(row)
            bar.epoch(row, self.standing.history)

    def _row(self, seconds: float) -> dict[str, Any]:
        run, data, (state, running) = self.config.run, self.config.data, self.carry
        epoch = self.standing.epoch + 1
        frames = self.prepared.steps_per_epoch * data.batch_size * data.accumulate * run.devices
        row: dict[str, Any] = {"epoch": epoch, "step": int(state.step)}
        row |= _train_row(jax.device_get(running))
        row |= {"seconds": round(seconds, 3), "frames_per_second": round(frames / seconds, 3)}
        if epoch % run.validate_every == 0 or epoch == run.epochs:
            value, errors = _evaluate(self.evaluate, on_own_device(state), self.prepared.validation, self.config)
            row |= {"validation_loss": value, **{f"validation_{k}": v for k, v in errors.items()}}
            if self.more is not None:
                row |= self.more.row(state.averaged())
                row["validation_loss"] += row["targets_loss"]
        return row

    def _record(self, row: dict[str, Any]) -> None:
        run, standing, (state, running) = self.config.run, self.standing, self.carry
        standing.history.append(row)
        standing.epoch, standing.next_step = standing.epoch + 1, 0
        if "validation_loss" in row:
            value = row["validation_loss"]
            plateau, hyper = jax.device_get((state.plateau, state.hyper))
            state = state.replace(plateau=self._place(plateau_step(plateau, hyper, np.float32(value))))
            if value < standing.best["loss"]:
                standing.best = {"loss": value, "epoch": standing.epoch}
                self.folder.save_potential("potential.safetensors", self._export(state))
        self.carry = (state, self._place(jax.tree.map(np.zeros_like, jax.device_get(running))))
        self.folder.log_epoch(row)
        if run.early_stop is not None and standing.epoch - standing.best["epoch"] >= run.early_stop:
            log.info("No better validation loss for %d epochs: stopping at epoch %d.", run.early_stop, standing.epoch)
            standing.epoch = run.epochs
        if standing.epoch == run.epochs:
            self._save()

    def _save(self) -> None:
        """A checkpoint, unless the training has failed: its last good one must stay."""
        step, failed_at = jax.device_get((self.carry[0].step, self.carry[0].failed_at))
        if failed_at < 0:
            # After the same step, a checkpoint with its epoch evaluated is another than one without.
            self.folder.save_checkpoint(
                int(step) + self.standing.epoch, self._kept(self.carry), dataclasses.asdict(self.standing)
            )
            self.saved = time.monotonic()

    def _save_last(self) -> None:
        self.folder.save_potential("last.safetensors", self._export(self.carry[0]))

    def _export(self, state: TrainState) -> Potential:
        """The averaged potential with its reference energies and the facts of its training."""
        config, rows = self.config, self.standing.history
        row = rows[-1] if rows else {}
        validation = {k: v for k, v in row.items() if k.startswith("validation_") and v is not None}
        facts = {
            "trained_on": str(config.data.train),
            "recipe": config.recipe,
            "seed": config.run.seed,
            "epoch": row.get("epoch", 0),
            **validation,
        }
        params = jax.tree.map(np.asarray, state.ema)
        return self.prepared.potential.replace(params=params, metadata_json=json.dumps(facts))

    def _fail(self) -> None:
        """Save the last good parameters and say which batch broke the training."""
        self._save_last()
        step, data, prepared = int(self.carry[0].failed_at), self.config.data, self.prepared
        epoch, number = divmod(step, prepared.steps_per_epoch)
        order = epoch_order(len(prepared.train.examples), data.batch_size, data.order_seed, epoch)
        per_step = data.accumulate * self.config.run.devices
        frames = order[number * per_step : (number + 1) * per_step].ravel()
        names = [prepared.splits.train.names[i] for i in frames]
        shown = "; ".join(names[:10]) + ("; ..." if len(names) > 10 else "")
        raise TrainingError(
            f"Loss or gradient was no finite number at step {step + 1} (epoch {epoch + 1}), on {shown}. The parameters "
            f"before it are kept in {self.folder.path / 'last.safetensors'}. Look at these frames, or lower "
            "optimizer.learning_rate or optimizer.clip_norm, and start in another run.out."
        )

    def result(self, finished: bool) -> TrainResult:
        """The best potential and, at the end, the report; the first process's in all."""
        config, prepared, standing, folder = self.config, self.prepared, self.standing, self.folder
        with together():
            mine = folder.best_potential()
        start = prepared.potential if mine is None else mine
        metadata = from_first(start.metadata_json)
        potential = start.replace(params=arrays_from_first(start.params), metadata_json=metadata)
        if not finished:
            log.warning(
                "Stopped by a signal after epoch %d, step %d; the same command goes on.",
                standing.epoch,
                standing.next_step,
            )
            return TrainResult(potential, {}, standing.history, folder.path, False, self.signal)
        found: dict[str, dict[str, float | None]] = {}
        with together():
            if folder.mine:
                from leignn_jax.training.report import finish_report

                before = None if self.more is None else prepared.potential
                more = None if self.more is None else self.more.report(potential, folder.path)
                found = finish_report(
                    config, prepared.splits, potential, standing.history, self._facts(), before=before, more=more
                )
        return TrainResult(potential, from_first(found), standing.history, folder.path, True)

    def _facts(self) -> dict[str, Any]:
        """What the report says of the run."""
        scratch, prepared = self.advance.memory_bytes(), self.prepared
        return {
            "compiles": {
                "train": [self.advance.count, self.advance.planned],
                "evaluate": [self.evaluate.count, self.evaluate.planned],
            },
            "scratch_mib": None if scratch is None else round(scratch / 2**20, 1),
            "waiting_fraction": round(self.waited / self.worked, 4) if self.worked else None,
            "best_epoch": self.standing.best["epoch"],
            "frames": {"train": len(prepared.train.examples), "validation": len(prepared.validation.examples)},
        }


def _zero_running(state: TrainState, prepared: Prepared, config: TrainConfig):
    """The epoch's sums before its first step."""
    _, batch = next(train_batches(prepared, config, 0, 0))
    if config.data.accumulate > 1:
        batch = jax.tree.map(lambda x: x[0], batch)
    # A step's sums are those of an evaluation, which is traced in a third of the time.
    evaluate = partial(evaluate_step, kinds=config.loss.kinds())
    sums = jax.eval_shape(evaluate, state.potential, batch, state.hyper.final_weights)["sums"]
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    last = {name: jnp.zeros(()) for name in ("gradient_norm", "learning_rate")}
    return {"totals": {"sums": sums, "loss": jnp.zeros(()), "steps": jnp.zeros(())}, "last": last}


def _train_row(running) -> dict[str, Any]:
    totals, last = running["totals"], running["last"]
    return {
        "learning_rate": float(last["learning_rate"]),
        "gradient_norm": float(last["gradient_norm"]),
        "train_loss": float(totals["loss"]) / max(float(totals["steps"]), 1.0),
        **{f"train_{k}": v for k, v in metrics(totals["sums"]).items()},
    }


def _evaluate(evaluate: CountedCompiles, state: TrainState, examples: ExampleSet, config: TrainConfig):
    """Loss and metrics with averaged parameters; the loss with the final weights, so that epochs can be compared."""
    potential, weights = state.averaged(), state.hyper.final_weights
    total = None
    for batch in prefetch(evaluation_batches(examples, config.data.batch_size)):
        found = evaluate(potential, batch, weights)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    total = jax.device_get(total)
    return float(total["loss"]) / float(total["graphs"]), metrics(total["sums"])
