"""Data and model of a training, ready to step, and the batches of its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from leignn_jax.data.batches import Batch, collate, epoch_order, in_order
from leignn_jax.data.distances import wall_distances
from leignn_jax.errors import ConfigError, ElementError, TrainingError
from leignn_jax.potential import Potential
from leignn_jax.potential_file import find_potential, load_potential
from leignn_jax.training.config import TrainConfig
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
from leignn_jax.training.loss import LossKinds
from leignn_jax.training.parallel import DATA, own_parts, place_batch
from leignn_jax.training.resident import ResidentFrames, join_frames, resident_bytes

# Of a device's memory, for frames that stay there; and that of a device which does not tell, bytes.
_MOST_OF_DEVICE, _MEMORY = 0.25, 4 * 2**30


class Prepared(NamedTuple):
    """Data and model of a run, ready to step."""

    potential: Potential
    train: ExampleSet
    validation: ExampleSet
    splits: Splits
    steps_per_epoch: int

    def kinds(self, config: TrainConfig) -> LossKinds:
        """What the loss is of: of stress only where frames of train have one."""
        return config.loss.kinds(stressed=bool(self.splits.train.table.stressed.any()))

    def order(self, config: TrainConfig, epoch: int) -> np.ndarray:
        """Frame numbers of the batches of an epoch, ``[batches, frames]``.

        Beyond ``run.epochs``, where places of a search are filled anew, those of the epochs before come again: shapes are
        planned for them.
        """
        epoch %= config.run.epochs
        return epoch_order(len(self.train.examples), self.train.batch_size, config.data.order_seed, epoch)


def prepare(config: TrainConfig, devices: int = 1, progress: bool | None = False) -> Prepared:
    """Read and check the data, make the potential to start from, plan the batches of ``devices`` at a time.

    ``progress`` shows how ``data.cache`` is built; None where there is a terminal or notebook.
    """
    data = config.data
    given = None if config.run.start_from is None else load_potential(config.run.start_from)
    if given is not None and np.ndim(given.scale):
        raise ConfigError(f"run.start_from: {config.run.start_from} is a committee; start from one of its members.")
    if given is not None and config.loss.force_source == "direct" and not given.config.direct_forces:
        raise ConfigError(
            f"loss.force_source is direct, but {config.run.start_from} has no such head: set it to gradient."
        )
    cutoff = config.cutoff() if given is None else given.cutoff
    splits = load_splits(data, cutoff, progress, with_stress=config.loss.kinds(stressed=True).with_stress)
    elements = splits.train.table.present()
    if given is not None:
        potential = given
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
    validation = evaluation_set(splits.validation, cutoff, references, train.batch_size)
    if potential.config.repulsion and (given is None or given.walls is not None):
        walls = wall_distances(shortest_of(splits.train, cutoff))
        # What the potential to go on from was trained on stays free too.
        before = potential.wall_distances
        potential = potential.with_walls({k: min(walls.get(k, np.inf), before.get(k, np.inf)) for k in walls | before})
    batches = len(epoch_order(len(train.examples), train.batch_size, data.order_seed, 0))
    per_step = data.accumulate * devices
    if batches < per_step:
        raise ConfigError(
            f"One update takes {per_step} batches (data.accumulate times devices), but an epoch has only {batches} of "
            f"{train.batch_size} frames."
        )
    return Prepared(potential, train, validation, splits, batches // per_step)


def files_of(config: TrainConfig, prepared: Prepared) -> dict[str, str]:
    """sha256 of the files that a training reads, by what they are: in all processes, and when it goes on, the same."""
    start = config.run.start_from
    others = {
        "isolated_atoms": config.data.isolated_atoms,
        "start_from": None if start is None else find_potential(start),
    }
    return prepared.splits.hashes | {name: hash_path(path) for name, path in others.items() if path is not None}


def named_files(hashes: Mapping[str, str]) -> dict[str, str]:
    """What :func:`files_of` gave, as processes are told in what they differ."""
    return {f"the {name} file": f"sha256 {value}" for name, value in hashes.items()}


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
    order = prepared.order(config, epoch)
    for step in range(first_step, prepared.steps_per_epoch):
        parts = order[step * per_step : (step + 1) * per_step]
        shape = max((prepared.train.shape_of(part) for part in parts), key=prepared.train.plan.shapes.index)
        parts = parts.reshape(devices, data.accumulate, -1)[own].reshape(len(own) * data.accumulate, -1)
        batches = [collate([prepared.train.examples[i] for i in part], shape) for part in parts]
        if mesh is None:
            yield step, jax.device_put(batches[0] if data.accumulate == 1 else _stack(batches))
            continue
        batch = _stack(batches)
        if data.accumulate > 1:
            batch = jax.tree.map(lambda x: x.reshape(len(own), data.accumulate, *x.shape[1:]), batch)
        yield step, place_batch(mesh, batch)


def failure_of_step(prepared: Prepared, config: TrainConfig, step: int, kept: Path) -> TrainingError:
    """What to raise where one of all steps gave no finite number: it names its frames, of all devices, and where the last
    good parameters are ``kept``."""
    epoch, number = divmod(step, prepared.steps_per_epoch)
    order = prepared.order(config, epoch)
    per_step = config.data.accumulate * config.run.devices
    names = [prepared.splits.train.names[i] for i in order[number * per_step : (number + 1) * per_step].ravel()]
    shown = "; ".join(names[:10]) + ("; ..." if len(names) > 10 else "")
    return TrainingError(
        f"Loss or gradient was no finite number at step {step + 1} (epoch {epoch + 1}), on {shown}. The parameters before "
        f"it are kept in {kept}. Look at these frames, or lower optimizer.learning_rate or optimizer.clip_norm, and start "
        "in another run.out."
    )


def step_frames(prepared: Prepared, config: TrainConfig, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers of every step of an epoch, ``[steps, graphs]``, with ``data.accumulate`` ``[steps, accumulate,
    graphs]``, and which of the plan's shapes its batches take, ``[steps]``; int32. One device's."""
    data, shapes = config.data, prepared.train.plan.shapes
    steps = prepared.steps_per_epoch
    order = prepared.order(config, epoch)
    parts = order[: steps * data.accumulate].astype(np.int32)
    kinds = np.array([shapes.index(prepared.train.shape_of(part)) for part in parts], np.int32)
    kinds = kinds.reshape(steps, data.accumulate).max(1)
    return parts if data.accumulate == 1 else parts.reshape(steps, data.accumulate, -1), kinds


def resident_frames(prepared: Prepared, config: TrainConfig, possible: bool) -> ResidentFrames | None:
    """The training set on the device where ``data.on_device`` asks for it, or leaves it open and it takes a small part of
    the memory; else None.

    Args:
        prepared, config: of the training.
        possible: whether one device takes the steps, and nothing but frames decides them.

    Raises:
        ConfigError: it is asked for, but not possible.
    """
    wanted = config.data.on_device
    if wanted and not possible:
        raise ConfigError(
            "data.on_device: frames can't stay on the device where several devices train, or where a fit's targets pull at "
            "every step. Leave it out."
        )
    # A store is for frames that need not fit into memory, and to join them takes three times theirs.
    if wanted is False or not possible or (wanted is None and config.data.cache is not None):
        return None
    stats = jax.local_devices()[0].memory_stats() or {}
    room = _MOST_OF_DEVICE * stats.get("bytes_limit", _MEMORY)
    if wanted is None and resident_bytes(prepared.train.sizes) > room:
        return None
    return jax.device_put(join_frames(prepared.train.examples))


def _stack(batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def evaluation_batches(examples: ExampleSet) -> Iterator[Batch]:
    """All examples once, on the device."""
    for block in in_order(len(examples.examples), examples.batch_size):
        for indices in block:
            batch = collate([examples.examples[i] for i in indices], examples.shape_of(indices))
            yield jax.device_put(batch)
