"""From the files that a config names to examples ready to batch: read, check, split, take off references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np

from leignn_jax.data.batches import Batch, BatchPlan, Shape, epoch_order, example, in_order, plan_batches, sizes_of
from leignn_jax.data.labels import Labels, forces_rms, read_labels
from leignn_jax.data.readers import read_frames
from leignn_jax.data.references import elements_of, fit_reference_energies, isolated_atom_energies
from leignn_jax.data.statistics import check_frames, compare_sets, find_duplicates
from leignn_jax.errors import ConfigError, DataError, ElementError
from leignn_jax.training.config import DataSettings


class Frames(NamedTuple):
    """Frames of one set with their labels and names (file and number)."""

    atoms: list[ase.Atoms]
    labels: list[Labels]
    names: list[str]

    def take(self, indices: Sequence[int]) -> Frames:
        """Some of them."""
        return Frames(
            [self.atoms[i] for i in indices], [self.labels[i] for i in indices], [self.names[i] for i in indices]
        )


class Splits(NamedTuple):
    """Sets of a run; ``held_out`` are the numbers of train's frames that became validation, if they did."""

    train: Frames
    validation: Frames
    test: Frames | None
    held_out: list[int]
    hashes: dict[str, str]


def load_frames(path: Path, data: DataSettings) -> Frames:
    """Frames of one file with checked labels."""
    atoms = read_frames(path, units=data.units)
    names = [f"{path}: frame {i}" for i in range(len(atoms))]
    labels = [
        read_labels(one, name, {str(k): v for k, v in data.keys.items()})
        for one, name in zip(atoms, names, strict=True)
    ]
    if not data.allow_unusual:
        check_frames(atoms, labels, names)
    return Frames(atoms, labels, names)


def load_splits(data: DataSettings) -> Splits:
    """All sets that the settings name, checked against each other.

    Raises:
        ConfigError: no train file.
        DataError: labels that can't be trained on; the same frame in two sets; a set too small.
        ElementError: validation or test holds an element that train lacks.
    """
    if data.train is None:
        raise ConfigError("data.train: name a file of frames to train on.")
    train = load_frames(data.train, data)
    if data.max_frames is not None:
        train = train.take(range(min(data.max_frames, len(train.atoms))))
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    hashes = {name: hash_path(path) for name, path in files.items() if path is not None}
    held_out: list[int] = []
    if data.validation is not None:
        validation = load_frames(data.validation, data)
    else:
        count = len(train.atoms)
        if count < 2:
            raise DataError(f"{data.train}: {count} frame is too few to train and validate on. Add frames.")
        chosen = np.random.default_rng(data.split_seed).permutation(count)
        size = min(max(1, round(data.validation_fraction * count)), count - 1)
        held_out = sorted(int(i) for i in chosen[:size])
        validation = train.take(held_out)
        train = train.take(sorted(int(i) for i in chosen[size:]))
    test = load_frames(data.test, data) if data.test is not None else None
    for name, other in (("validation", validation), ("test", test)):
        if other is not None:
            _check_against(train, other, name, data)
    return Splits(train, validation, test, held_out, hashes)


def _check_against(train: Frames, other: Frames, name: str, data: DataSettings) -> None:
    known = set(elements_of(train.atoms))
    for atoms, label in zip(other.atoms, other.names, strict=True):
        new = set(atoms.get_chemical_symbols()) - known
        if new and not isinstance(data.reference_energies, dict) and data.isolated_atoms is None:
            raise ElementError(
                f"{label}: holds {', '.join(sorted(new))}, which no frame of train holds: nothing could be learned about it."
            )
    if not data.allow_unusual:
        compare_sets(train.labels, other.labels, "train", name)
        twice = find_duplicates(train.atoms, other.atoms)
        if twice:
            i, j = twice[0]
            raise DataError(
                f"{other.names[j]} is the same structure as {train.names[i]} ({len(twice)} such): the {name} error would "
                "flatter. Take them out of one file, or set data.allow_unusual=true."
            )


def references_for(train: Frames, data: DataSettings) -> dict[str, float]:
    """Reference energies in eV by symbol as the settings ask; raises DataError or ConfigError."""
    if isinstance(data.reference_energies, dict):
        references = dict(data.reference_energies)
    elif data.reference_energies == "isolated":
        if data.isolated_atoms is None:
            raise ConfigError("data.isolated_atoms: name the file of isolated atoms.")
        frames = load_frames(data.isolated_atoms, data.model_copy(update={"allow_unusual": True}))
        without = [name for name, one in zip(frames.names, frames.labels, strict=True) if one.energy is None]
        if without:
            raise DataError(f"{without[0]}: has no energy.")
        references = isolated_atom_energies(frames.atoms, [one.energy or 0.0 for one in frames.labels])
    else:
        chosen = [i for i, one in enumerate(train.labels) if one.energy is not None]
        elements = elements_of(train.atoms)
        if not chosen:
            return dict.fromkeys(elements, 0.0)
        fitted = fit_reference_energies(
            [train.atoms[i] for i in chosen], [train.labels[i].energy or 0.0 for i in chosen]
        )
        return {e: fitted.get(e, 0.0) for e in elements}
    missing = sorted(set(elements_of(train.atoms)) - references.keys())
    if missing:
        raise DataError(f"There is no reference energy of {missing[0]}, which train holds.")
    return references


def force_scale(train: Frames) -> float:
    """RMS of the force components in eV/Å, the natural scale of a potential (1 where there are no forces)."""
    rms = forces_rms(train.labels) or 0.0
    return rms if rms > 1e-6 else 1.0


class ExampleSet(NamedTuple):
    """Examples and the shapes that their batches take."""

    examples: list[Batch]
    sizes: np.ndarray
    plan: BatchPlan

    def shape_of(self, indices: np.ndarray) -> Shape:
        return self.plan.shape_for(self.sizes[indices])


def make_examples(frames: Frames, cutoff: float, references: dict[str, float]) -> list[Batch]:
    """One labelled graph per frame."""
    return [
        example(atoms, labels, cutoff, references, name)
        for atoms, labels, name in zip(frames.atoms, frames.labels, frames.names, strict=True)
    ]


def training_set(examples: list[Batch], data: DataSettings, epochs: int) -> ExampleSet:
    """Examples with a plan for every batch of all epochs."""
    sizes = sizes_of(examples)
    batches = [epoch_order(len(examples), data.batch_size, data.order_seed, e) for e in range(epochs)]
    return ExampleSet(examples, sizes, plan_batches(sizes, batches))


def evaluation_set(examples: list[Batch], batch_size: int) -> ExampleSet:
    """Examples with a plan for batches in order, the largest frames first so that batches are of like size."""
    sizes = sizes_of(examples)
    order = np.argsort(-sizes[:, 1], kind="stable")
    examples = [examples[i] for i in order]
    sizes = sizes[order]
    return ExampleSet(examples, sizes, plan_batches(sizes, in_order(len(examples), batch_size), max_shapes=2))


def hash_path(path: Path) -> str:
    """sha256 of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
