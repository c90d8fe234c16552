"""From the files that a config names to examples ready to batch: read, check, split, take off references."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
from ase.data import atomic_numbers

from leignn_jax.data.batches import (
    Batch,
    BatchPlan,
    Selection,
    Shape,
    check_references,
    epoch_order,
    example,
    frames_of_a_batch,
    in_order,
    plan_batches,
    sizes_of,
)
from leignn_jax.data.distances import Shortest, shortest_distances
from leignn_jax.data.findings import Finding
from leignn_jax.data.label_checks import Examined, compare, examine
from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import Labels
from leignn_jax.data.references import fit_reference_energies, isolated_atom_energies
from leignn_jax.data.statistics import check_labels, find_duplicates
from leignn_jax.data.store import Store, cached_store
from leignn_jax.data.table import FrameTable, tabulate
from leignn_jax.errors import ConfigError, DataError, ElementError
from leignn_jax.progress import count_frames
from leignn_jax.training.config import DataSettings

log = logging.getLogger(__name__)


class Names(Sequence[str]):
    """What frames of a file are called in errors: the file and the frame's number in it."""

    def __init__(self, path: Path, indices: np.ndarray):
        self.path, self.indices = path, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        return f"{self.path}: frame {self.indices[index]}"


class Frames(NamedTuple):
    """Frames of one set: some of those of a file, in memory or in a store on disk.

    path: the file.
    source: all frames of the file, with their labels, or the store that holds them.
    indices: ``[frames]`` which of them make the set.
    table: facts about those.
    """

    path: Path
    source: Sequence[tuple[ase.Atoms, Labels]] | Store
    indices: np.ndarray
    table: FrameTable

    # `len` of a NamedTuple is the number of its fields.
    @property
    def size(self) -> int:
        """How many frames."""
        return len(self.indices)

    @property
    def names(self) -> Names:
        """File and number of each frame."""
        return Names(self.path, self.indices)

    def frame(self, i: int) -> tuple[ase.Atoms, Labels]:
        """Frame i of the set."""
        place = int(self.indices[i])
        return self.source.frame(place) if isinstance(self.source, Store) else self.source[place]

    def take(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Some of them."""
        chosen = np.asarray(indices, np.int64)
        return self._replace(indices=self.indices[chosen], table=self.table.take(chosen))


class Splits(NamedTuple):
    """Sets of a run; ``held_out`` are the numbers of train's frames that became validation, if they did."""

    train: Frames
    validation: Frames
    test: Frames | None
    held_out: list[int]
    hashes: dict[str, str]


def load_frames(
    path: Path, data: DataSettings, cutoff: float, sha256: str | None = None, progress: bool | None = False
) -> Frames:
    """Frames of one file with their labels.

    Args:
        path: a file or folder.
        data: units, keys, and where the cache is.
        cutoff: Å, of the pairs in the cache.
        sha256: of the file, None keeps its frames in memory.
        progress: show how the cache is built; None where there is a terminal or notebook.
    """
    keys = {str(k): v for k, v in data.keys.items()}
    if data.cache is None or sha256 is None:
        source: list[tuple[ase.Atoms, Labels]] | Store = list(iter_labelled(path, units=data.units, keys=keys))
        table = tabulate(source)
    else:
        watch = partial(count_frames, doing=f"Reading {path.name} into the cache", show=progress)
        source = cached_store(data.cache, path, sha256, cutoff, units=data.units, keys=keys, watch=watch)
        table = source.table
    return Frames(path, source, np.arange(len(source)), table)


def load_splits(data: DataSettings, cutoff: float, progress: bool | None = False, with_stress: bool = True) -> Splits:
    """All sets that the settings name, checked by themselves and against each other.

    Labels that look wrong are warned of, and refused where it is certain (:mod:`leignn_jax.data.label_checks`).

    Args:
        data: which.
        cutoff, progress: as in load_frames.
        with_stress: whether stress is trained on; a wrong one is else only warned of.

    Raises:
        ConfigError: no train file.
        DataError: labels that can't be trained on; the same frame in two sets; a set too small.
        ElementError: validation or test holds an element that train lacks.
    """
    if data.train is None:
        raise ConfigError("data.train: name a file of frames to train on.")
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    hashes = {name: hash_path(path) for name, path in files.items() if path is not None}

    def load(name: str, path: Path) -> Frames:
        frames = load_frames(path, data, cutoff, hashes[name], progress)
        check_labels(frames.table, frames.names)
        return frames

    def heed(findings: Sequence[Finding], frames: Frames) -> None:
        _heed(findings, frames.names, data, with_stress)

    train = load("train", data.train)
    examined, of_train = examine(train.frame, train.table), train.table
    heed(examined.findings, train)
    if data.max_frames is not None:
        train = train.take(range(min(data.max_frames, train.size)))
    held_out: list[int] = []
    if data.validation is not None:
        validation = load("validation", data.validation)
        heed(_judge(validation, examined, of_train), validation)
    else:
        count = train.size
        if count < 2:
            raise DataError(f"{data.train}: {count} frame is too few to train and validate on. Add frames.")
        chosen = np.random.default_rng(data.split_seed).permutation(count)
        size = min(max(1, round(data.validation_fraction * count)), count - 1)
        held_out = sorted(int(i) for i in chosen[:size])
        validation = train.take(held_out)
        train = train.take(sorted(int(i) for i in chosen[size:]))
    test = None
    if data.test is not None:
        test = load("test", data.test)
        heed(_judge(test, examined, of_train), test)
    for name, other in (("validation", validation), ("test", test)):
        if other is not None:
            _check_against(train, other, name, data)
    return Splits(train, validation, test, held_out, hashes)


def _judge(other: Frames, train: Examined, of_train: FrameTable) -> list[Finding]:
    """What looks wrong with a set by itself, and against train."""
    return [
        *examine(other.frame, other.table).findings,
        *compare(train, of_train, other.frame, other.table),
    ]


def _heed(findings: Sequence[Finding], names: Names, data: DataSettings, with_stress: bool) -> None:
    """Warn of what looks wrong, and raise DataError for what is certain, not allowed and of use."""
    refused = [
        one
        for one in findings
        if one.certain and one.label not in data.allow and (with_stress or one.label != "stress")
    ]
    if refused:
        said = " ".join(f"{one.text(names)}." for one in refused[:3])
        labels = ",".join(sorted({one.label for one in refused}))
        without = ", leave the stress out (loss.stress_weight=0)" if "stress" in labels else ""
        raise DataError(
            f"{said} Say what the units are (data.units), mend the file or take the frames out{without}, or overrule this "
            f"by data.allow=[{labels}]."
        )
    for one in findings:
        log.warning("%s. Is it right?", one.text(names))


def _check_against(train: Frames, other: Frames, name: str, data: DataSettings) -> None:
    new = sorted(set(other.table.present()) - set(train.table.present()))
    if new and not isinstance(data.reference_energies, dict) and data.reference_energies != "isolated":
        first, found = _first_with(other, new)
        raise ElementError(
            f"{first}: holds {', '.join(found)}, which no frame of train holds: nothing could be learned about it."
        )
    if "duplicates" not in data.allow:
        twice = find_duplicates(train.table, other.table)
        if twice:
            i, j = twice[0]
            raise DataError(
                f"{other.names[j]} is the same structure as {train.names[i]} ({len(twice)} such): the {name} error would "
                "flatter. Take them out of one file, or set data.allow=[duplicates]."
            )


def _first_with(frames: Frames, elements: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the first frame that holds one of these elements, and those that it holds."""
    table = frames.table
    counts = table.counts[:, [table.elements.index(e) for e in elements]]
    first = int(np.argmax(np.isin(table.kind, np.flatnonzero(counts.sum(1)))))
    return frames.names[first], [e for e, n in zip(elements, counts[table.kind[first]], strict=True) if n]


def references_for(train: Frames, data: DataSettings) -> dict[str, float]:
    """Reference energies in eV by symbol as the settings ask; raises DataError or ConfigError."""
    if isinstance(data.reference_energies, dict):
        references = dict(data.reference_energies)
    elif data.reference_energies == "isolated":
        if data.isolated_atoms is None:
            raise ConfigError("data.isolated_atoms: name the file of isolated atoms.")
        frames = load_frames(data.isolated_atoms, data, cutoff=0.0)
        isolated = [frames.frame(i) for i in range(frames.size)]
        without = [name for name, (_, one) in zip(frames.names, isolated, strict=True) if one.energy is None]
        if without:
            raise DataError(f"{without[0]}: has no energy.")
        references = isolated_atom_energies(
            [atoms for atoms, _ in isolated], [one.energy or 0.0 for _, one in isolated]
        )
    else:
        fitted = fit_reference_energies(train.table)
        return {e: fitted.get(e, 0.0) for e in train.table.present()}
    missing = sorted(set(train.table.present()) - references.keys())
    if missing:
        raise DataError(f"There is no reference energy of {missing[0]}, which train holds.")
    return references


def force_scale(train: Frames) -> float:
    """RMS of the force components in eV/Å, the natural scale of a potential (1 where there are no forces)."""
    rms = train.table.forces_rms() or 0.0
    return rms if rms > 1e-6 else 1.0


def shortest_of(train: Frames, cutoff: float) -> Shortest:
    """Shortest distance of each two elements in Å over all frames of the file, also those held out of it."""
    if isinstance(train.source, Store):
        return train.source.shortest
    return shortest_distances((atoms for atoms, _ in train.source), cutoff)


class ExampleSet(NamedTuple):
    """Examples, how many make a batch, and the shapes that their batches take."""

    examples: Sequence[Batch]
    sizes: np.ndarray
    batch_size: int
    plan: BatchPlan

    def shape_of(self, indices: np.ndarray) -> Shape:
        return self.plan.shape_for(self.sizes[indices])


def make_examples(frames: Frames, cutoff: float, references: dict[str, float]) -> tuple[Sequence[Batch], np.ndarray]:
    """One labelled graph per frame, and their sizes [frames, 3]; those of a store are read when they are asked for."""
    if isinstance(frames.source, Store):
        unknown = sorted(set(frames.table.present()) - references.keys())
        if unknown:
            first, _ = _first_with(frames, unknown)
            check_references([atomic_numbers[e] for e in unknown], references, first)
        return Selection(frames.source.with_references(references), frames.indices), frames.source.sizes[frames.indices]
    examples = [example(*frames.frame(i), cutoff, references, name) for i, name in enumerate(frames.names)]
    return examples, sizes_of(examples)


def training_set(
    frames: Frames, cutoff: float, references: dict[str, float], data: DataSettings, epochs: int
) -> ExampleSet:
    """Examples with a plan for every batch of all epochs."""
    examples, sizes = make_examples(frames, cutoff, references)
    batch_size = min(data.batch_size or frames_of_a_batch(sizes[:, 0]), len(examples))
    batches = (epoch_order(len(examples), batch_size, data.order_seed, e) for e in range(epochs))
    return ExampleSet(examples, sizes, batch_size, plan_batches(sizes, batches))


def evaluation_set(frames: Frames, cutoff: float, references: dict[str, float], batch_size: int) -> ExampleSet:
    """Examples with a plan for batches in order, the largest frames first so that batches are of like size."""
    examples, sizes = make_examples(frames, cutoff, references)
    order = np.argsort(-sizes[:, 1], kind="stable")
    sizes = sizes[order]
    plan = plan_batches(sizes, in_order(len(examples), batch_size), max_shapes=2)
    return ExampleSet(Selection(examples, order), sizes, batch_size, plan)


def hash_path(path: Path) -> str:
    """sha256 of a file, or of all files of a folder with their names; FileNotFoundError where there is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
