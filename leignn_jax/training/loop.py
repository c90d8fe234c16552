"""The training loop, for one model or many side by side, never losing work: steps, epochs, checkpoints, signals, processes.

What is trained are members, each with its config. One alone has no axis; many lie on a leading axis of every array and take
their steps in one program, on the same batches. Everything else here is the same for both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from leignn_jax.data.batches import prefetch
from leignn_jax.interruption import stop_requests
from leignn_jax.potential import Potential
from leignn_jax.processes import arrays_from_first, from_first, on_host, together
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.logs import TrainingProgress
from leignn_jax.training.loss import combine, metrics
from leignn_jax.training.members import first_state, first_states
from leignn_jax.training.parallel import DATA, on_own_device, place_answers, place_state
from leignn_jax.training.prepared import Prepared, failure_of_step, resident_frames, step_frames, train_batches
from leignn_jax.training.programs import CountedCompiles, Programs, evaluate, no_sums, train_row
from leignn_jax.training.protocols import Change, Keeper, MoreTerms, Tuner
from leignn_jax.training.standing import Standing, Trained
from leignn_jax.training.step import start_state

log = logging.getLogger("leignn_jax")

# Steps that the host may run ahead of the device: enough to hide its work, few enough to stop quickly.
AHEAD = 2
# Steps on frames that are on the device go together for so long, after which the host looks up.
_PIECE_SECONDS = 1.0
# What a process may wish after a step; of several processes the largest wish is done by all.
_NOTHING, _CHECKPOINT, _STOP = range(3)


class Loop:
    """A training under way: its state on the devices, where it stands, its programs and its folder.

    What several processes decide (stop, checkpoint, best epoch, early stop, failure) follows from numbers that all have
    alike: what a step returns, and each epoch's rows, which are the first process's.

    Args:
        configs: of each member; they differ in numbers alone (:data:`leignn_jax.sweeps.space.NUMBERS`).
        prepared: data and model.
        programs: from :func:`leignn_jax.training.programs.make_programs` with the same ``mesh`` and ``many``.
        folder: to go on from and to write to.
        mesh: devices; None is one.
        many: whether members have an axis; without it there is one.
        more: what the loss has beside frames; of one model alone.
        tuner: what gives places to other members; of many.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        prepared: Prepared,
        programs: Programs,
        folder: Keeper,
        mesh: Mesh | None = None,
        *,
        many: bool = False,
        more: MoreTerms | None = None,
        tuner: Tuner | None = None,
    ):
        self.configs, self.config, self.prepared, self.programs = list(configs), configs[0], prepared, programs
        self.folder, self.mesh, self.many, self.more, self.tuner = folder, mesh, many, more, tuner
        self.alone = jax.process_count() == 1
        # What a step is told of this process's wish, made once: no transfer at each step.
        self.wishes = [None, None, None]
        if mesh is not None and not self.alone:
            self.wishes = [place_answers(mesh, wish) for wish in (_NOTHING, _CHECKPOINT, _STOP)]
        with together():
            carry, best = self._start()
            restored = folder.restore(self._kept(carry, best))
        self.standing = Standing.start(len(configs))
        meta = from_first(None if restored is None else restored[1])
        if meta is not None:
            self.standing = Standing.read(meta, folder.path)
            log.info("Going on from epoch %d, step %d of %s.", meta["epoch"], meta["next_step"], folder.path)
        with together():
            folder.open_logs(self.standing.histories)
        if tuner is not None and meta is not None:
            self.configs = tuner.recall(self.standing.tuner)
        elif tuner is not None:
            tuner.begin(self.standing)
            self.standing.tuner = tuner.memory()
        if restored is not None:
            carry, best = self._recalled(restored[0])
        self.carry, self.best = self._place(arrays_from_first((carry, best)))
        self.saved = time.monotonic()
        self.waited = self.worked = 0.0
        possible = self.alone and mesh is None and more is None
        self.resident = resident_frames(prepared, self.config, possible)
        self.piece = 1
        self.signal: str | None = None

    def _start(self) -> tuple[Any, Any]:
        """State and sums before the first step; and the best parameters of each of many."""
        if self.many:
            state, running = first_states(self.configs, self.prepared)
            return (state, running), state.ema
        optimizer, hyper = self.config.optimizer, self.config.hyperparameters(self.prepared.steps_per_epoch)
        state = start_state(self.prepared.potential, hyper, optimizer.algorithm, optimizer.freeze)
        return (state, no_sums(state, self.prepared, self.config)), None

    def _kept(self, carry: Any, best: Any) -> Any:
        """What a checkpoint holds."""
        return (carry, *([best] if self.many else []), *([self.more.memory()] if self.more is not None else []))

    def _recalled(self, kept: Any) -> tuple[Any, Any]:
        carry, *others = kept
        if self.more is not None:
            self.more.recall(others[-1])
        return carry, others[0] if self.many else None

    def _place(self, tree: Any) -> Any:
        return jax.device_put(tree) if self.mesh is None else place_state(self.mesh, tree, members=self.many)

    def _each(self, tree: Any) -> list[Any]:
        """What is on the host, member by member."""
        if not self.many:
            return [tree]
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(self.configs))]

    @property
    def stepping(self) -> CountedCompiles:
        """The program that takes the steps."""
        return self.programs.advance if self.resident is None else self.programs.steps

    def go(self, progress: bool | None) -> bool:
        """Train to the end; False where a signal stopped it before."""
        steps, standing = self.prepared.steps_per_epoch, self.standing
        left = self.config.run.epochs - standing.epoch if self.tuner is None else self.tuner.epochs_left(standing)
        done = standing.epoch * steps + standing.next_step
        with stop_requests() as stop, TrainingProgress((standing.epoch + left) * steps, progress, done) as bar:
            finished = True
            while finished and not all(standing.ended):
                started, first = time.monotonic(), standing.next_step
                finished = self._steps(stop, bar)
                seconds = time.monotonic() - started
                self.worked += seconds
                if finished:
                    self._close_epoch(steps - first, seconds, bar)
            with together():
                self.folder.wait()
                self._save_last()
            self.signal = stop.signal
        return finished

    def _steps(self, stop: threading.Event, bar: TrainingProgress) -> bool:
        """The steps left of an epoch; False, after a checkpoint, where a process was asked to stop before their end."""
        standing, wish = self.standing, _NOTHING
        inflight: list[tuple[Any, int]] = []

        def look(shown, count) -> int:
            shown = jax.device_get(shown)
            bar.update(shown, count)
            return _STOP if shown["failed"] else int(shown.get("wish", _NOTHING))

        advances = self.advances(stop)
        with contextlib.closing(advances):
            for shown, count in advances:
                standing.next_step += count
                inflight.append((shown, count))
                wish = self._wish(stop) if self.alone else _NOTHING
                if len(inflight) > (AHEAD if self.resident is None else 0):
                    wish = max(wish, look(*inflight.pop(0)))
                if wish == _STOP:
                    break
                if wish == _CHECKPOINT:
                    self._save()
                    wish = _NOTHING
        wish = max([wish, *(look(*shown) for shown in inflight)])
        failed = self._all_failed()
        with together():
            if failed and not self.many:
                self._fail()
        if wish != _NOTHING:
            self._save()
        # Where all of many have failed, the rest of the epoch would change nothing.
        return wish != _STOP or (self.many and failed)

    def _wish(self, stop: threading.Event) -> int:
        """What this process would do after the next step."""
        if stop.is_set():
            return _STOP
        if self.folder.mine and time.monotonic() - self.saved > 60 * self.config.run.checkpoint_minutes:
            # Once: with several processes the steps that are under way would ask again.
            self.saved = time.monotonic()
            return _CHECKPOINT
        return _NOTHING

    def _all_failed(self) -> bool:
        return bool((on_host(self.carry[0].failed_at) >= 0).all())

    def advances(self, stop: threading.Event) -> Generator[tuple[Any, int], None, None]:
        """Take the steps left of an epoch: what the last of them shows, and how many they were since the one before."""
        return self._by_batches(stop) if self.resident is None else self._by_pieces()

    def _by_batches(self, stop: threading.Event) -> Generator[tuple[Any, int], None, None]:
        """One step after another, on batches that the host makes ahead."""
        standing = self.standing
        batches = prefetch(train_batches(self.prepared, self.config, standing.next_step, standing.epoch, self.mesh))
        with contextlib.closing(batches):
            while True:
                before = time.monotonic()
                item = next(batches, None)
                self.waited += time.monotonic() - before
                if item is None:
                    return
                number, batch = item
                wish = None if self.alone else self.wishes[self._wish(stop)]
                self.carry, shown = self.programs.advance(self.carry, (batch, wish, self._pull(number)))
                yield shown, 1

    def _by_pieces(self) -> Generator[tuple[Any, int], None, None]:
        """As many steps at once as take a second or so, on frames that are on the device."""
        standing, steps = self.standing, self.prepared.steps_per_epoch
        frames, kinds = jax.device_put(step_frames(self.prepared, self.config, standing.epoch))
        first = standing.next_step
        while first < steps:
            last = min(first + self.piece, steps)
            before, compiled = time.monotonic(), self.programs.steps.count
            self.carry, shown = self.programs.steps(
                self.carry, self.resident, frames, kinds, np.int32(first), np.int32(last)
            )
            jax.block_until_ready(shown)
            seconds = time.monotonic() - before
            if self.programs.steps.count == compiled:
                wanted = int((last - first) * _PIECE_SECONDS / max(seconds, 1e-6))
                self.piece = max(1, min(2 * self.piece, wanted))
            yield shown, last - first
            first = last

    def _pull(self, number: int) -> Any:
        """What is added to the gradient of an epoch's step."""
        if self.more is None:
            return None
        return self.more.pull(self.carry[0].potential, self.standing.epoch * self.prepared.steps_per_epoch + number)

    def _close_epoch(self, steps: int, seconds: float, bar: TrainingProgress) -> None:
        """Evaluate, and write down what the epoch brought, whose last ``steps`` took so many seconds."""
        run, (state, running), epoch = self.config.run, self.carry, self.standing.epoch + 1
        with together():
            ends = any(epoch - began == run.epochs for began in self.standing.began)
            judged = self.tuner is not None and self.tuner.judges(self.standing)
            found = self.evaluated() if epoch % run.validate_every == 0 or ends or judged else None
        trained, found = on_host(((state.step, state.failed_at, running), found))
        with together():
            rows = self._rows(steps, seconds, trained, found)
        rows = from_first(rows)
        with together():
            self._record(rows)
            if self.many:
                losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
                bar.note(f"epoch {rows[0]['epoch']}: best validation loss {min(losses, default=math.nan):.4g}")
            else:
                bar.epoch(rows[0], self.standing.histories[0])
        if self.tuner is not None:
            for change in self.tuner.decide(self.standing, self._trained):
                self._change(change)
            self.standing.tuner = self.tuner.memory()
        if all(self.standing.ended):
            self._save()

    def _rows(self, steps: int, seconds: float, trained: Any, found: Any) -> list[dict[str, Any]]:
        """The line of the epoch, of each member, from the sums of its steps and of its evaluation (None without one)."""
        data = self.config.data
        devices = 1 if self.mesh is None else self.mesh.shape[DATA]
        frames = steps * self.prepared.train.batch_size * data.accumulate * devices
        rows = []
        for (step, failed_at, sums), began in zip(self._each(trained), self.standing.began, strict=True):
            row = {"epoch": self.standing.epoch + 1 - began, "step": int(step), **train_row(sums)}
            row |= {"seconds": round(seconds, 3), "frames_per_second": round(frames / seconds, 3)}
            if self.many:
                row["diverged_at_step"] = None if failed_at < 0 else int(failed_at)
            rows.append(row)
        if found is not None:
            for row, one in zip(rows, self._each(found), strict=True):
                row["validation_loss"] = float(combine(one["terms"]))
                row |= {f"validation_{k}": v for k, v in metrics(one["sums"]).items()}
            if self.more is not None:
                rows[0] |= self.more.row(self.carry[0].averaged())
                rows[0]["validation_loss"] += rows[0]["targets_loss"]
        return rows

    def evaluated(self) -> Any:
        """Sums of loss and errors on validation with averaged parameters, on the devices."""
        state, mesh = self.carry[0], self.mesh
        examples = self.prepared.validation
        if mesh is None or not self.many:
            return evaluate(self.programs.evaluate, on_own_device(state), examples, lambda batch: batch)
        return evaluate(self.programs.evaluate, state, examples, lambda batch: place_state(mesh, batch))

    def _record(self, rows: list[dict[str, Any]]) -> None:
        run, standing, (state, running) = self.config.run, self.standing, self.carry
        standing.epoch, standing.next_step = standing.epoch + 1, 0
        going = [not ended for ended in standing.ended]
        for i in np.flatnonzero(going):
            standing.histories[i].append(rows[i])
        if "validation_loss" in rows[0]:
            losses = np.array([row["validation_loss"] for row in rows], np.float32)
            better = np.array([
                going[i] and row.get("diverged_at_step") is None and row["validation_loss"] < standing.bests[i]["loss"]
                for i, row in enumerate(rows)
            ])  # fmt: skip
            for i in np.flatnonzero(better):
                standing.bests[i] = {"loss": rows[i]["validation_loss"], "epoch": rows[i]["epoch"]}
            past = np.array([standing.epochs_judged(i) for i in range(len(rows))], np.float32)
            losses, better, past = (x if self.many else x[0] for x in (losses, better, past))
            ema = state.ema if self.many else None
            plateau, self.best = self.programs.after_epoch(
                state.plateau, state.hyper, losses, past, ema, self.best, better
            )
            state = state.replace(plateau=plateau)
            if not self.many and better:
                self.folder.save_potential("potential.safetensors", self.export(state.ema))
        self.carry = (state, self._place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), running)))
        self.folder.log_epoch(rows)
        for i, row in enumerate(rows):
            waited = row["epoch"] - standing.bests[i]["epoch"] if "validation_loss" in row else 0
            stops = run.early_stop is not None and waited >= run.early_stop
            if row.get("diverged_at_step") is not None or stops or row["epoch"] == run.epochs:
                standing.ended[i] = True
        if all(standing.ended) and rows[0]["epoch"] < run.epochs and self.tuner is None:
            log.info("Nothing gets better any more: stopping at epoch %d.", standing.epoch)

    def _change(self, change: Change) -> None:
        """Give a place to another member. All processes must call it."""
        place, config = np.int32(change.place), change.config
        if change.source is None:
            state = first_state(config, self.prepared)
            self.standing.begin(change.place)
            self.best = self.programs.put(self.best, state.ema, place)
        else:
            hyper = config.hyperparameters(self.prepared.steps_per_epoch)
            state = on_host(self.programs.take(self.carry[0], np.int32(change.source)))
            state = state.replace(hyper=jax.tree.map(np.float32, hyper))
        self.carry = (self.programs.put(self.carry[0], jax.tree.map(np.asarray, state), place), self.carry[1])
        self.configs[change.place] = config

    def _trained(self, place: int) -> Trained:
        """What a place's member has come to. All processes must call it."""
        return self._found(place, on_host(self.programs.take(self.best, np.int32(place))))

    def _save(self) -> None:
        """A checkpoint, unless all that is trained has failed: the last good one must stay. All processes must call it."""
        if self._all_failed():
            return
        kept = on_host(self._kept(self.carry, self.best))
        with together():
            # After the same step, a checkpoint with its epoch evaluated is another than one without.
            number = self.standing.epoch * (self.prepared.steps_per_epoch + 1) + self.standing.next_step
            self.folder.save_checkpoint(number, kept, dataclasses.asdict(self.standing))
        self.saved = time.monotonic()

    def _save_last(self) -> None:
        if not self.many:
            self.folder.save_potential("last.safetensors", self.export(self.carry[0].ema))

    def export(self, params: Any, member: int = 0) -> Potential:
        """A member's potential with these parameters, its reference energies and the facts of its training."""
        config, rows = self.configs[member], self.standing.histories[member]
        row = rows[-1] if rows else {}
        if self.many:
            row = next((r for r in rows if r["epoch"] == self.standing.bests[member]["epoch"]), {})
        validation = {k: v for k, v in row.items() if k.startswith("validation_") and v is not None}
        facts = {
            "trained_on": str(config.data.train),
            "recipe": config.recipe,
            "seed": config.run.seed,
            "epoch": row.get("epoch", 0),
            **validation,
        }
        params = jax.tree.map(np.asarray, params)
        return self.prepared.potential.replace(params=params, metadata_json=json.dumps(facts))

    def members(self) -> list[Trained]:
        """What became of each of many."""
        return [self._found(i, params) for i, params in enumerate(self._each(on_host(self.best)))]

    def _found(self, member: int, params: Any) -> Trained:
        epoch = self.standing.bests[member]["epoch"]
        return Trained(self.export(params, member) if epoch else None, epoch, self.standing.histories[member])

    def _fail(self) -> None:
        """Save the last good parameters and say which batch broke the training."""
        self._save_last()
        kept = self.folder.path / "last.safetensors"
        raise failure_of_step(self.prepared, self.config, int(self.carry[0].failed_at), kept)
