"""Batches: labelled graphs of few padded shapes, in an order that the seed and the step alone decide.

A batch is a random choice of frames. The sums of their atoms and pairs vary, and every new shape would be a new
compilation, so :func:`plan_batches` looks at every batch of the whole training ahead and chooses at most three shapes
that waste least.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import ase
import numpy as np
from ase.data import chemical_symbols
from flax import struct

from leignn_jax.data.labels import Labels
from leignn_jax.data.references import reference_energy
from leignn_jax.errors import DataError, ElementError, LeignnError
from leignn_jax.graph import Graph

T = TypeVar("T")


@struct.dataclass
class Batch:
    """Graphs with their labels. A pytree; weights are 0 at padding and where a frame has no such label.

    graph: the structures.
    energy: ``[graphs]`` eV, reference energies taken off.
    forces: ``[atoms, 3]`` eV/Å.
    stress: ``[graphs, 3, 3]`` eV/Å^3.
    energy_weight: ``[graphs]``.
    forces_weight: ``[atoms]``.
    stress_weight: ``[graphs]``.
    """

    graph: Graph
    energy: Any
    forces: Any
    stress: Any
    energy_weight: Any
    forces_weight: Any
    stress_weight: Any


class Shape(NamedTuple):
    """Array sizes of a padded batch."""

    atoms: int
    pairs: int
    neighbors: int
    graphs: int


def example(
    atoms: ase.Atoms,
    labels: Labels,
    cutoff: float,
    references: dict[str, float],
    name: str = "frame",
    weight: float = 1.0,
) -> Batch:
    """A batch of one frame, unpadded, in float32; the energy less its references is formed in float64.

    Raises:
        ElementError: an element without reference energy; names the frame.
        LeignnError: as :meth:`Graph.from_ase`, with the frame's name.
    """
    check_references(np.unique(atoms.numbers), references, name)
    try:
        graph = Graph.from_ase(atoms, cutoff, np.float32)
    except LeignnError as error:
        raise type(error)(f"{name}: {error}") from error
    return labelled(graph, labels, references, weight)


def check_references(numbers: Iterable[int], references: dict[str, float], name: str) -> None:
    """Raise ElementError where an atomic number has no reference energy; ``name`` is the frame's."""
    unknown = sorted({int(z) for z in numbers} - {chemical_symbols.index(e) for e in references})
    if unknown:
        raise ElementError(
            f"{name}: holds {chemical_symbols[unknown[0]]}, but the potential's elements are {', '.join(references)}. "
            "Train on frames of all elements, or name them in model.elements."
        )


def labelled(graph: Graph, labels: Labels, references: dict[str, float], weight: float = 1.0) -> Batch:
    """The unpadded graph of one frame with its labels, in float32; every element of it stands in ``references``."""
    count = len(graph.numbers)
    energy = 0.0 if labels.energy is None else labels.energy - reference_energy(graph.numbers, references)
    return Batch(
        graph=graph,
        energy=np.array([energy], np.float32),
        forces=np.zeros((count, 3), np.float32) if labels.forces is None else labels.forces.astype(np.float32),
        stress=(np.zeros((3, 3)) if labels.stress is None else labels.stress).astype(np.float32)[None],
        energy_weight=np.array([0.0 if labels.energy is None else weight], np.float32),
        forces_weight=np.full(count, 0.0 if labels.forces is None else weight, np.float32),
        stress_weight=np.array([0.0 if labels.stress is None else weight], np.float32),
    )


def collate(examples: Sequence[Batch], shape: Shape) -> Batch:
    """Several batches in one, padded to ``shape``; raises StructureError where they do not fit."""
    graph = Graph.batch([e.graph for e in examples]).pad(*shape)

    def join(get, size):
        values = np.concatenate([get(e) for e in examples])
        out = np.zeros((size, *values.shape[1:]), values.dtype)
        out[: len(values)] = values
        return out

    return Batch(
        graph=graph,
        energy=join(lambda e: e.energy, shape.graphs),
        forces=join(lambda e: e.forces, shape.atoms),
        stress=join(lambda e: e.stress, shape.graphs),
        energy_weight=join(lambda e: e.energy_weight, shape.graphs),
        forces_weight=join(lambda e: e.forces_weight, shape.atoms),
        stress_weight=join(lambda e: e.stress_weight, shape.graphs),
    )


def sizes_of(examples: Sequence[Batch]) -> np.ndarray:
    """``[frames, 3]`` atoms, pairs and neighbours of each example."""
    return np.array([e.graph.shape[:3] for e in examples])


class Selection(Sequence[T]):
    """Some items of a sequence in another order, taken from it when asked for."""

    def __init__(self, items: Sequence[T], indices: np.ndarray):
        self.items, self.indices = items, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        return self.items[int(self.indices[index])]


# ------------------------------------------------------------------------------------------------------------------- order


# More frames make a step dearer by more than they make it better (experiments/recipe, Frames of a step).
_ATOMS_OF_A_BATCH = 128


def frames_of_a_batch(atoms: np.ndarray) -> int:
    """How many frames are a good batch where they have so many ``atoms [frames]``: about 128 atoms, one to eight frames."""
    return int(np.clip(round(_ATOMS_OF_A_BATCH / atoms.mean()), 1, 8))


def epoch_order(frames: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """``[batches, batch_size]`` frame numbers of one epoch; what does not fill a batch waits for another epoch's luck."""
    batch_size = min(batch_size, frames)
    order = np.random.default_rng([seed, epoch]).permutation(frames)
    batches = frames // batch_size
    return order[: batches * batch_size].reshape(batches, batch_size)


def in_order(frames: int, batch_size: int) -> list[np.ndarray]:
    """Frame numbers of the batches of an evaluation, every frame once, as blocks ``[batches, size]``."""
    full = frames // batch_size * batch_size
    blocks = [np.arange(full).reshape(-1, batch_size), np.arange(full, frames)[None]]
    return [block for block in blocks if block.size]


# -------------------------------------------------------------------------------------------------------------------- plan


class BatchPlan(NamedTuple):
    """The shapes of all batches.

    shapes: from small to large, each compiled once.
    share: how many of all batches have each shape.
    padding: part of all pair entries that is padding.
    """

    shapes: tuple[Shape, ...]
    share: tuple[float, ...]
    padding: float

    def shape_for(self, sizes: np.ndarray) -> Shape:
        """The first shape that holds frames of ``sizes`` [frames, 3]."""
        need = _totals(sizes[None])[0]
        for shape in self.shapes:
            if (need <= np.array(shape[:3])).all():
                return shape
        raise DataError(
            f"A batch of {need[0]} atoms, {need[1]} pairs and {need[2]} neighbours fits none of the planned shapes "
            f"{self.shapes}: the data changed after planning."
        )


# A further shape is a further compilation: it must save this part of all padded entries.
_WORTH = 0.1


def plan_batches(sizes: np.ndarray, batches: Iterable[np.ndarray], max_shapes: int = 3) -> BatchPlan:
    """Choose at most ``max_shapes`` padded shapes for these batches, by least padding.

    Args:
        sizes: ``[frames, 3]`` from :func:`sizes_of`.
        batches: frame numbers of every batch that will ever be asked for, in blocks ``[batches, size]``.
        max_shapes: at least 1.
    """
    graphs, parts = 0, []
    for block in batches:
        graphs = max(graphs, block.shape[1])
        parts.append(_totals(sizes[block]))
    totals = np.concatenate(parts)
    # Rounded, so that no two shapes have as many.
    pairs = _eights(totals[:, 1])
    cuts = np.unique(np.quantile(pairs, np.linspace(0.05, 1.0, 20), method="higher"))
    best, best_cost = (cuts[-1],), float(len(pairs) * _round(totals.max(0), graphs).pairs)
    single = best_cost
    for first in range(len(cuts) - 1):
        for second in range(first, len(cuts) - 1):
            chosen = tuple(sorted({cuts[first], cuts[second], cuts[-1]}))
            if len(chosen) > max_shapes:
                continue
            place = np.searchsorted(chosen, pairs)
            cost = float(sum((place == k).sum() * c for k, c in enumerate(chosen)))
            if cost + _WORTH * single * (len(chosen) - len(best)) < best_cost:
                best, best_cost = chosen, cost
    place = np.searchsorted(best, pairs)
    shapes = []
    for k in range(len(best)):
        largest = totals[place <= k].max(0)
        shapes.append(_round(largest, graphs))
    padded = np.array([shapes[k].pairs for k in place])
    return BatchPlan(
        shapes=tuple(shapes),
        share=tuple(float((place == k).mean()) for k in range(len(best))),
        padding=float(1 - totals[:, 1].sum() / padded.sum()),
    )


def _totals(sizes: np.ndarray) -> np.ndarray:
    """Atoms and pairs summed, neighbours the largest, over the frames of each batch."""
    return np.concatenate([sizes[..., :2].sum(1), sizes[..., 2:].max(1)], axis=1)


def _round(total: np.ndarray, graphs: int) -> Shape:
    atoms, pairs, neighbors = (int(x) for x in total)
    return Shape(atoms, _eights(pairs), neighbors, graphs)


def _eights(pairs):
    """Multiples of 8 that are no smaller."""
    return -(-pairs // 8) * 8


# ---------------------------------------------------------------------------------------------------------------- prefetch


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, made ahead by a thread, so that the device does not wait for the host."""
    waiting: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    thread = threading.Thread(target=work, name="leignn-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
