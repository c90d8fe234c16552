"""A study: train all members of a search space, as few compiled programs as their shapes allow.

The study's folder (``base.run.out``)::

    study.yaml      what was asked          results.csv, results.parquet   one row per member, best first
    history.csv     member x epoch          potentials/NNN.safetensors     best epoch of each member
    best.safetensors                        curves.png, settings.png, report.html
"""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from leignn_jax.data.batches import prefetch
from leignn_jax.errors import ConfigError, TrainingError
from leignn_jax.files import make_folder, write_atomically
from leignn_jax.plotting import new_figure, save_figure
from leignn_jax.potential import Potential
from leignn_jax.sweeps.population import (
    Population,
    population_epoch,
    population_evaluate,
    population_step,
    start,
)
from leignn_jax.sweeps.space import StudyConfig, group_key, load_study, make_study, members
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.logs import TrainingProgress
from leignn_jax.training.loop import CountedCompiles, Prepared, evaluation_batches, prepare, train_batches
from leignn_jax.training.loss import metrics
from leignn_jax.training.parallel import DATA, make_mesh, place_state, shard_step
from leignn_jax.training.report import page, picture, table
from leignn_jax.training.step import start_state, train_step

log = logging.getLogger("leignn_jax")


class StudyResult(NamedTuple):
    """What a study found.

    rows: one dict per member, best first: its number, settings, metrics, best epoch, and whether it diverged.
    potentials: of each row, averaged parameters of its best epoch; None where it diverged before any.
    out: the study's folder.
    compiles: programs compiled for training, of each group.
    """

    rows: list[dict[str, Any]]
    potentials: list[Potential | None]
    out: Path
    compiles: list[int]

    @property
    def best(self) -> Potential:
        """The member best on validation."""
        found = self.potentials[0] if self.potentials else None
        if found is None:
            raise ConfigError("Every member of the study diverged: lower the learning rates.")
        return found


def sweep(study: StudyConfig | Mapping[str, Any] | str | Path, *, progress: bool | None = None) -> StudyResult:
    """Train every member of a study; members that differ in numbers alone train side by side in one program.

    A member sees the batches that it would see alone (``data.order_seed`` decides them; ``run.seed`` its first
    parameters) and ends with the same parameters to rounding. One whose loss is no number stands still from then on and
    is reported, while the rest go on.

    Args:
        study: a YAML file, nested settings, or a checked StudyConfig.
        progress: show progress; None where it can be seen.

    Raises:
        ConfigError, DataError: see the study and the data; several processes (``jax.distributed``).
        TrainingError: the study's folder can't be made.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"A study runs in one process, not in {jax.process_count()}: its members share the devices of one host. Start "
            "it without jax.distributed, or divide its space into one study for each host."
        )
    if isinstance(study, str | Path):
        study = load_study(study)
    elif isinstance(study, Mapping):
        study = make_study(study)
    elif not isinstance(study, StudyConfig):
        raise ConfigError(f"study must be a YAML file, nested settings or a StudyConfig, not {type(study).__name__}.")
    everyone = members(study)
    out = everyone[0][1].run.out
    make_folder(out, TrainingError)
    write_atomically(out / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False).encode())
    groups: dict[str, list[int]] = {}
    for number, (_, config) in enumerate(everyone):
        groups.setdefault(group_key(config), []).append(number)
    log.info("%d members in %d groups.", len(everyone), len(groups))
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    found: dict[int, Potential | None] = {}
    compiles = []
    for numbers in groups.values():
        configs = [everyone[i][1] for i in numbers]
        group = _train_group(study, configs, progress)
        compiles.append(group.compiles)
        for place, number in enumerate(numbers):
            rows.append({"member": number, **everyone[number][0], **group.rows[place]})
            found[number] = group.potentials[place]
            history += [{"member": number, **row} for row in group.history[place]]
    rows.sort(key=lambda row: (math.inf if row["validation_loss"] is None else row["validation_loss"], row["member"]))
    potentials = [found[row["member"]] for row in rows]
    result = StudyResult(rows, potentials, out, compiles)
    _write(result, study, history)
    return result


class _Group(NamedTuple):
    rows: list[dict[str, Any]]
    potentials: list[Potential | None]
    history: list[list[dict[str, Any]]]
    compiles: int


def _train_group(study: StudyConfig, configs: Sequence[TrainConfig], progress: bool | None) -> _Group:
    """Members of one shape, lot by lot."""
    config = configs[0]
    sweep_devices, data_devices = study.mesh
    prepared = prepare(config, data_devices, progress)
    lot = min(study.members_at_once or len(configs), len(configs))
    # All lots have one size, so that one program serves them; the last is filled up with copies.
    lot = -(-lot // sweep_devices) * sweep_devices
    mesh = make_mesh(sweep_devices, data_devices) if sweep_devices * data_devices > 1 else None
    kinds, algorithm = config.loss.kinds(), config.optimizer.algorithm
    step = partial(
        train_step,
        kinds=kinds,
        algorithm=algorithm,
        accumulate=config.data.accumulate,
        axis=None if mesh is None else DATA,
    )
    many = partial(population_step, step=step)
    if mesh is not None:
        many = shard_step(partial(_only_state, step=many), mesh, members=True)
    else:
        many = partial(_only_state, step=many)
    shapes = len(prepared.train.plan.shapes)
    advance = CountedCompiles(many, shapes, "The population's step", donate=(0,))
    evaluate = CountedCompiles(
        partial(population_evaluate, kinds=kinds), len(prepared.validation.plan.shapes), "The population's evaluation"
    )
    rows, potentials, history = [], [], []
    for first in range(0, len(configs), lot):
        mine = configs[first : first + lot]
        filled = [*mine, *[mine[-1]] * (lot - len(mine))]
        part = _train_lot(prepared, filled, advance, evaluate, mesh, progress)
        rows += part.rows[: len(mine)]
        potentials += part.potentials[: len(mine)]
        history += part.history[: len(mine)]
    return _Group(rows, potentials, history, advance.count)


def _only_state(state, batch, *, step):
    return step(state, batch)[0]


def _train_lot(
    prepared: Prepared, configs: Sequence[TrainConfig], advance, evaluate, mesh, progress: bool | None
) -> _Group:
    config, count = configs[0], len(configs)
    steps = prepared.steps_per_epoch
    starts = [_start(prepared, one, steps) for one in configs]
    population = start([state for _, state in starts])
    if mesh is not None:
        state = place_state(mesh, population.state, members=True)
        population = Population(state, *(place_state(mesh, x, members=True) for x in population[1:]))
    else:
        population = jax.device_put(population)
    after_epoch = jax.jit(population_epoch, donate_argnums=0)
    history: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    with TrainingProgress(config.run.epochs * steps, progress) as bar:
        for epoch in range(config.run.epochs):
            begun = time.monotonic()
            state = population.state
            for number, batch in prefetch(train_batches(prepared, config, 0, epoch, mesh)):
                state = advance(state, batch)
                if number % 8 == 7:
                    # The host must not run far ahead of the device.
                    jax.block_until_ready(state.step)
                bar.update()
            total = None
            for batch in prefetch(evaluation_batches(prepared.validation, config.data.batch_size)):
                sums = evaluate(state, batch if mesh is None else place_state(mesh, batch))
                total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            total = jax.device_get(total)
            losses = np.asarray(total["loss"] / total["graphs"], np.float32)
            population = after_epoch(population._replace(state=state), losses, np.int32(epoch + 1))
            seconds = time.monotonic() - begun
            failed = np.asarray(population.state.failed_at)
            for i in range(count):
                errors = metrics(jax.tree.map(lambda x, i=i: x[i], total["sums"]))
                history[i].append(
                    {
                        "epoch": epoch + 1,
                        "validation_loss": float(losses[i]) if np.isfinite(losses[i]) else None,
                        **{f"validation_{k}": v for k, v in errors.items()},
                        "diverged_at_step": int(failed[i]) if failed[i] >= 0 else None,
                        "seconds": round(seconds, 3),
                    }
                )
            bar.note(f"epoch {epoch + 1}: best validation loss {np.nanmin(losses):.4g}, {(failed >= 0).sum()} diverged")
    host = jax.device_get(population)
    rows, potentials = [], []
    for i, (potential, _) in enumerate(starts):
        best = int(host.best_epoch[i])
        row = dict(history[i][best - 1]) if best else dict.fromkeys(history[i][-1])
        row = {k: v for k, v in row.items() if k not in ("seconds", "epoch")}
        row |= {"best_epoch": best, "diverged_at_step": history[i][-1]["diverged_at_step"]}
        rows.append(row)
        facts = {"trained_on": str(config.data.train), "epoch": best, "validation_loss": row["validation_loss"]}
        params = jax.tree.map(lambda x, i=i: np.asarray(x[i]), host.best)
        potentials.append(potential.replace(params=params, metadata_json=json.dumps(facts)) if best else None)
    return _Group(rows, potentials, history, 0)


def _start(prepared: Prepared, config: TrainConfig, steps: int):
    """A member's potential and state: the group's data, its own seed and numbers."""
    potential = prepared.potential
    if config.run.start_from is None:
        fresh = Potential.create(potential.config, jax.random.key(config.run.seed))
        potential = potential.replace(params=fresh.params)
    hyper = config.hyperparameters(steps)
    return potential, start_state(potential, hyper, config.optimizer.algorithm, config.optimizer.freeze)


# ------------------------------------------------------------------------------------------------------------ the folder


def _write(result: StudyResult, study: StudyConfig, history: Sequence[Mapping[str, Any]]) -> None:
    out = result.out
    write_atomically(out / "results.csv", _csv(result.rows).encode())
    write_atomically(out / "history.csv", _csv(history).encode())
    try:
        import pandas

        buffer = io.BytesIO()
        pandas.DataFrame(result.rows).to_parquet(buffer)
        write_atomically(out / "results.parquet", buffer.getvalue())
    except ImportError:
        log.info("results.parquet needs `pip install pandas pyarrow`; results.csv is the same.")
    for row, potential in zip(result.rows, result.potentials, strict=True):
        if potential is not None:
            potential.save(out / "potentials" / f"{row['member']:03d}.safetensors")
    images = [picture(save_figure(_curves(history), out / "curves.png"), "Validation loss of every member")]
    settings = [name for name in study.space if len({str(row[name]) for row in result.rows}) > 1]
    if settings:
        images.append(picture(save_figure(_settings(result.rows, settings), out / "settings.png"), "Loss and settings"))
    if result.potentials and result.potentials[0] is not None:
        result.potentials[0].save(out / "best.safetensors")

    def show(value):
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    header = list(result.rows[0])
    body = table([[show(row[k]) for k in header] for row in result.rows], [h.replace("_", " ") for h in header])
    text = f"<h2>Study</h2><pre>{html.escape((out / 'study.yaml').read_text())}</pre>"
    write_atomically(out / "report.html", page(f"Study {out.name}", [body, *images, text]).encode())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _curves(history: Sequence[Mapping[str, Any]]):
    figure, axes = new_figure(1, width=5)
    for member in sorted({row["member"] for row in history}):
        points = [(r["epoch"], r["validation_loss"]) for r in history if r["member"] == member and r["validation_loss"]]
        if points:
            axes[0].plot(*zip(*points, strict=True), lw=1, alpha=0.7, label=f"member {member}")
    axes[0].set(xlabel="epoch", ylabel="validation loss (no unit)", yscale="log")
    axes[0].grid(alpha=0.3, which="both")
    if len({row["member"] for row in history}) <= 10:
        axes[0].legend(fontsize=7)
    return figure


def _settings(rows: Sequence[Mapping[str, Any]], names: Sequence[str]):
    figure, axes = new_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(row[name], row["validation_loss"]) for row in rows if row["validation_loss"] is not None]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in points)
        x: list[Any] = [p[0] if numbers else str(p[0]) for p in points]
        axis.plot(x, [p[1] for p in points], "o", ms=4)
        if numbers and x and 0 < 20 * min(x) < max(x):
            axis.set_xscale("log")
        axis.set(xlabel=name, ylabel="validation loss (no unit)", yscale="log")
        axis.grid(alpha=0.3, which="both")
    return figure
