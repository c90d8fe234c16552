"""The training loop: from a config to a run folder with potentials, metrics, plots and a report; never losing work.

A run folder::

    config.yaml        every setting            potential.safetensors  best on validation, averaged parameters
    data.json          hashes, split, plan      last.safetensors       after the last step
    metrics.csv        one line per epoch       checkpoints/           to go on from, by orbax
    report.html        with learning_curve.png, parity_*.png; metrics.json: errors on validation and test
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from leignn_jax.data.batches import Batch, collate, epoch_order, in_order, prefetch
from leignn_jax.errors import ConfigError, ElementError, TrainingError
from leignn_jax.files import write_atomically
from leignn_jax.potential import Potential
from leignn_jax.potential_file import load_potential
from leignn_jax.training.checkpoint import Checkpoints, check_room, named_leaves
from leignn_jax.training.config import TrainConfig, dump_config
from leignn_jax.training.dataset import (
    ExampleSet,
    Splits,
    evaluation_set,
    force_scale,
    load_splits,
    references_for,
    training_set,
)
from leignn_jax.training.logs import History, open_loggers, progress_bar
from leignn_jax.training.loss import metrics
from leignn_jax.training.optimizer import plateau_step
from leignn_jax.training.parallel import DATA, make_mesh, place_batch, place_state, shard_step
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
    """

    potential: Potential
    metrics: dict[str, dict[str, float | None]]
    history: list[dict[str, Any]]
    out: Path
    finished: bool


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
    splits = load_splits(data, cutoff, progress)
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
        # New data may come from another code or functional: their own references, the network's energies on top.
        references |= references_for(splits.train, data)
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
    devices. Batches that are stacked are padded alike.
    """
    data = config.data
    devices = 1 if mesh is None else mesh.shape[DATA]
    per_step = data.accumulate * devices
    order = epoch_order(len(prepared.train.examples), data.batch_size, data.order_seed, epoch)
    for step in range(first_step, prepared.steps_per_epoch):
        parts = order[step * per_step : (step + 1) * per_step]
        shape = max((prepared.train.shape_of(part) for part in parts), key=lambda s: s.pairs)
        batches = [collate([prepared.train.examples[i] for i in part], shape) for part in parts]
        if mesh is None:
            yield step, jax.device_put(batches[0] if data.accumulate == 1 else _stack(batches))
            continue
        batch = _stack(batches)
        if data.accumulate > 1:
            batch = jax.tree.map(lambda x: x.reshape(devices, data.accumulate, *x.shape[1:]), batch)
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


def train(config: TrainConfig, *, resume: bool = True, progress: bool | None = None) -> TrainResult:
    """Train a potential; the same call with the same config goes on where an earlier one stopped.

    Args:
        config: from :func:`leignn_jax.training.config.make_config` or ``load_config``.
        resume: go on from the run folder's last checkpoint; False refuses a folder that has one.
        progress: show a progress bar; None where there is a terminal or notebook.

    Raises:
        ConfigError, DataError, ElementError, FileFormatError: see the config and the data.
        TrainingError: the loss became no number (the last good state is kept), the disk is full, or the run folder
            belongs to another config or other data.
    """
    out = config.run.out
    prepared = prepare(config, config.run.devices, progress)
    out.mkdir(parents=True, exist_ok=True)
    has_checkpoint = (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir())
    if has_checkpoint and not resume:
        raise TrainingError(f"{out}: holds a run already. Choose another run.out, or go on with it (resume).")
    _claim(out, config, prepared, has_checkpoint)
    checkpoints = Checkpoints(out / "checkpoints", config.run.keep)
    try:
        return _run(config, prepared, checkpoints, progress)
    finally:
        checkpoints.close()


def _claim(out: Path, config: TrainConfig, prepared: Prepared, has_checkpoint: bool) -> None:
    """Write what the run is, or compare with what the folder says it is."""
    text = dump_config(config)
    data = {"sha256": prepared.splits.hashes, "validation_frames_of_train": prepared.splits.held_out}
    config_file, data_file = out / "config.yaml", out / "data.json"
    if has_checkpoint and config_file.exists() and data_file.exists():
        old = config_file.read_text()
        if old != text:
            lines = [line for line in text.splitlines() if line not in old.splitlines()]
            raise TrainingError(
                f"{out}: its checkpoints are of another config (now different: {'; '.join(x.strip() for x in lines[:5])}). "
                "Give the old settings, or another run.out."
            )
        was = json.loads(data_file.read_text())["sha256"]
        changed = [name for name, value in data["sha256"].items() if was.get(name) != value]
        if changed:
            raise TrainingError(
                f"{out}: the {changed[0]} file has changed since this run began. Bring the old one back, or choose another "
                "run.out."
            )
        return
    plan = prepared.train.plan
    data["plan"] = {
        "shapes": [s._asdict() for s in plan.shapes],
        "share": plan.share,
        "padding": plan.padding,
        "steps_per_epoch": prepared.steps_per_epoch,
    }
    write_atomically(config_file, text.encode())
    write_atomically(data_file, json.dumps(data, indent=1).encode())


def _advance(carry, batch, *, step: Callable):
    """One step, with the epoch's sums kept on the device."""
    state, running = carry
    before = state.step
    state, out = step(state, batch)
    good = state.step > before
    one = {"sums": out["sums"], "loss": out["loss"], "steps": jnp.ones(())}
    last = {k: out[k] for k in ("gradient_norm", "learning_rate")}
    totals = jax.tree.map(lambda r, x: jnp.where(good, r + x, r), running["totals"], one)
    return (state, {"totals": totals, "last": last}), {"loss": out["loss"]}


def _run(config: TrainConfig, prepared: Prepared, checkpoints: Checkpoints, progress: bool | None) -> TrainResult:
    run, out = config.run, config.run.out
    kinds, algorithm = config.loss.kinds(), config.optimizer.algorithm
    hyper = config.hyperparameters(prepared.steps_per_epoch)
    state = start_state(prepared.potential, hyper, algorithm, config.optimizer.freeze)
    mesh = make_mesh(1, run.devices) if run.devices > 1 else None
    step = partial(train_step, kinds=kinds, algorithm=algorithm, accumulate=config.data.accumulate)
    if mesh is None:
        stepping = partial(_advance, step=step)
    else:
        stepping = shard_step(partial(_advance, step=partial(step, axis=DATA)), mesh)
    advance = CountedCompiles(stepping, len(prepared.train.plan.shapes), "The train step", donate=(0,))
    evaluate = CountedCompiles(
        partial(evaluate_step, kinds=kinds), len(prepared.validation.plan.shapes), "The evaluation"
    )
    running = _zero_running(step, state, prepared, config)
    check_room(out, named_leaves((state, running)))

    history = History(out / "metrics.csv")
    epoch = first = 0
    best: dict[str, Any] = {"loss": math.inf, "epoch": -1}
    restored = checkpoints.restore((state, running))
    if restored is not None:
        (state, running), meta = restored
        epoch, first, best = meta["epoch"], meta["next_step"], meta["best"]
        history.rows = meta["history"]
        log.info("Going on from epoch %d, step %d of %s.", epoch, first, out)
    history.rewrite()
    carry = jax.device_put((state, running)) if mesh is None else place_state(mesh, (state, running))
    loggers = open_loggers(config)
    saved = time.monotonic()
    waited = worked = 0.0
    finished = True

    def save(next_epoch: int, next_step: int) -> None:
        (state, _), history_rows = carry, history.rows
        meta = {"epoch": next_epoch, "next_step": next_step, "best": best, "history": history_rows}
        checkpoints.save(int(state.step), carry, meta)

    def last_potential() -> None:
        state = jax.device_get(carry[0])
        _export(prepared.potential, state, config, history.rows).save(out / "last.safetensors")

    with _signals() as stop, progress_bar(run.epochs * prepared.steps_per_epoch, progress) as bar:
        bar.start(epoch * prepared.steps_per_epoch + first)
        while epoch < run.epochs:
            started = time.monotonic()
            inflight: list[Any] = []
            batches = prefetch(train_batches(prepared, config, first, epoch, mesh))
            with contextlib.closing(batches):
                while True:
                    asked = time.monotonic()
                    item = next(batches, None)
                    waited += time.monotonic() - asked
                    if item is None:
                        break
                    number, batch = item
                    carry, shown = advance(carry, batch)
                    inflight.append(shown)
                    if len(inflight) > _AHEAD:
                        bar.update(jax.device_get(inflight.pop(0)))
                    if stop.is_set():
                        finished = False
                    elif time.monotonic() - saved > 60 * run.checkpoint_minutes:
                        if int(carry[0].failed_at) >= 0:
                            break
                        save(epoch, number + 1)
                        saved = time.monotonic()
                    if not finished:
                        first = number + 1
                        break
            for shown in inflight:
                bar.update(jax.device_get(shown))
            jax.block_until_ready(carry)
            seconds = time.monotonic() - started
            worked += seconds
            state, running = carry
            if int(state.failed_at) >= 0:
                _fail(state, prepared, config, last_potential)
            if not finished:
                save(epoch, first)
                break
            frames = prepared.steps_per_epoch * config.data.batch_size * config.data.accumulate * run.devices
            row: dict[str, Any] = {"epoch": epoch + 1, "step": int(state.step)}
            row |= _train_row(jax.device_get(running))
            row |= {"seconds": round(seconds, 3), "frames_per_second": round(frames / seconds, 3)}
            if (epoch + 1) % run.validate_every == 0 or epoch + 1 == run.epochs:
                value, errors = _evaluate(evaluate, state, prepared.validation, config)
                row |= {"validation_loss": value, **{f"validation_{k}": v for k, v in errors.items()}}
                state = state.replace(plateau=plateau_step(state.plateau, state.hyper, jnp.float32(value)))
                if value < best["loss"]:
                    best = {"loss": value, "epoch": epoch + 1}
                    potential = _export(prepared.potential, jax.device_get(state), config, [*history.rows, row])
                    potential.save(out / "potential.safetensors")
            carry = (state, jax.tree.map(jnp.zeros_like, running))
            history.append(row)
            for logger in loggers:
                logger(row)
            bar.epoch(row, history.rows)
            epoch, first = epoch + 1, 0
            if epoch == run.epochs:
                save(epoch, 0)
            if run.early_stop is not None and epoch - best["epoch"] >= run.early_stop:
                save(run.epochs, 0)
                log.info("No better validation loss for %d epochs: stopping at epoch %d.", run.early_stop, epoch)
                break
        checkpoints.wait()
        last_potential()
    best_file = out / "potential.safetensors"
    potential = load_potential(best_file if best_file.exists() else out / "last.safetensors")
    if not finished:
        log.warning("Stopped by a signal after epoch %d, step %d; the same command goes on.", epoch, first)
        return TrainResult(potential, {}, history.rows, out, False)
    from leignn_jax.training.report import finish_report

    info = {
        "compiles": {"train": [advance.count, advance.planned], "evaluate": [evaluate.count, evaluate.planned]},
        "scratch_mib": None if advance.memory_bytes() is None else round((advance.memory_bytes() or 0) / 2**20, 1),
        "waiting_fraction": round(waited / worked, 4) if worked else None,
        "best_epoch": best["epoch"],
        "frames": {"train": len(prepared.train.examples), "validation": len(prepared.validation.examples)},
    }
    found = finish_report(config, prepared.splits, potential, history.rows, info)
    return TrainResult(potential, found, history.rows, out, True)


def _zero_running(step, state: TrainState, prepared: Prepared, config: TrainConfig):
    """The epoch's sums before its first step."""
    _, batch = next(train_batches(prepared, config, 0, 0))
    _, out = jax.eval_shape(step, state, batch)
    zero = {"sums": out["sums"], "loss": out["loss"], "steps": jax.ShapeDtypeStruct((), jnp.float32)}
    last = {k: out[k] for k in ("gradient_norm", "learning_rate")}
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), {"totals": zero, "last": last})


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


def _fail(state: TrainState, prepared: Prepared, config: TrainConfig, last_potential: Callable[[], None]) -> None:
    """Save the last good parameters and say which batch broke the training."""
    last_potential()
    step, data = int(state.failed_at), config.data
    epoch, number = divmod(step, prepared.steps_per_epoch)
    order = epoch_order(len(prepared.train.examples), data.batch_size, data.order_seed, epoch)
    per_step = data.accumulate * config.run.devices
    frames = order[number * per_step : (number + 1) * per_step].ravel()
    names = [prepared.splits.train.names[i] for i in frames]
    shown = "; ".join(names[:10]) + ("; ..." if len(names) > 10 else "")
    raise TrainingError(
        f"Loss or gradient was no finite number at step {step + 1} (epoch {epoch + 1}), on {shown}. The parameters before "
        f"it are kept in {config.run.out / 'last.safetensors'}. Look at these frames, or lower optimizer.learning_rate or "
        "optimizer.clip_norm, and start in another run.out."
    )


def _export(start: Potential, state: TrainState, config: TrainConfig, rows: list[dict[str, Any]]) -> Potential:
    """The averaged potential with its reference energies and the facts of its training."""
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
    return start.replace(params=params, metadata_json=json.dumps(facts))


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and a first Ctrl-C set instead of killing; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
