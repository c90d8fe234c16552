"""How near atoms of each two elements come in a set of frames."""

from __future__ import annotations

from collections.abc import Iterable

import ase
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.errors import LeignnError
from leignn_jax.graph import Graph

Shortest = dict[tuple[str, str], float]


class ShortestDistances:
    """The shortest distance of every two elements over graphs that are added one by one."""

    def __init__(self) -> None:
        self._squares = np.full((len(chemical_symbols),) * 2, np.inf)

    def add(self, graph: Graph) -> None:
        """One structure, unpadded or padded, with NumPy arrays; images count."""
        real = np.asarray(graph.pair_mask)
        receivers, senders = (np.asarray(x)[real] for x in (graph.lists.receivers, graph.lists.senders))
        positions = np.asarray(graph.positions, np.float64)
        shifts = np.asarray(graph.shifts, np.float64)[real] @ np.asarray(graph.cell[0], np.float64)
        squares = ((positions[senders] + shifts - positions[receivers]) ** 2).sum(-1)
        numbers = np.asarray(graph.numbers)
        np.minimum.at(self._squares, (numbers[receivers], numbers[senders]), squares)

    def result(self) -> Shortest:
        """Å by two symbols, the lighter element first; elements never seen within the cutoff of each other are left out."""
        squares = np.minimum(self._squares, self._squares.T)
        return {
            (chemical_symbols[i], chemical_symbols[j]): float(np.sqrt(squares[i, j]))
            for i, j in zip(*np.nonzero(np.isfinite(np.triu(squares)) & (np.triu(squares) > 0)), strict=True)
        }


def wall_distances(shortest: Shortest) -> Shortest:
    """Where walls below these distances begin, in Å by two symbols; for :meth:`leignn_jax.Potential.with_walls`.

    A tenth nearer, since a trajectory sees rarer distances than its training data.
    """
    return {elements: 0.9 * distance for elements, distance in shortest.items()}


def shortest_distances(frames: Iterable[ase.Atoms], cutoff: float = 5.0) -> Shortest:
    """The shortest distance in Å of every two elements, such as ``{("H", "O"): 0.93}``; images count.

    Args:
        frames: structures.
        cutoff: Å; what is farther apart everywhere is left out.

    Raises:
        LeignnError: as :meth:`Graph.from_ase`, with the frame's number.
    """
    found = ShortestDistances()
    for index, atoms in enumerate(frames):
        try:
            found.add(Graph.from_ase(atoms, cutoff, np.float64))
        except LeignnError as error:
            raise type(error)(f"Frame {index}: {error}") from error
    return found.result()
