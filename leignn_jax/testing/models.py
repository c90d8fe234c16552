"""A potential as a model to check: a callable from ``ase.Atoms``, compiled for few sizes; and what padding changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from leignn_jax.graph import Graph
from leignn_jax.potential import Potential, Prediction, check_potential, compute
from leignn_jax.testing.answers import Worst, evaluate, values_of

# Pairs: a graph padded to less costs next to nothing.
SMALL_GRAPH = 4096


class PotentialModel:
    """What :func:`as_model` returns: a callable from ``ase.Atoms`` to a Prediction of NumPy arrays."""

    def __init__(self, potential: Potential, dtype: Any = np.float64):
        self.potential = potential
        self.cutoff = potential.cutoff
        self.dtype: Any = np.dtype(dtype)
        self._network, self._references = potential.split_references()
        self._sizes: list[tuple[int, int, int, int]] = []

    def __call__(self, atoms: Atoms) -> Prediction:
        """Energy (float, eV), forces [atoms, 3], stress [3, 3] (NaN unless periodic), atomic energies [atoms]."""
        return self.of_graph(self._padded(self.graph(atoms)), atoms.numbers)

    def graph(self, atoms: Atoms) -> Graph:
        """The structure's graph, unpadded."""
        self.potential.check_elements(atoms.numbers)
        return Graph.from_ase(atoms, self.cutoff, self.dtype)

    def of_graph(self, graph: Graph, numbers: np.ndarray) -> Prediction:
        """What the potential says of the first structure of a graph, whose atoms have these atomic numbers."""
        out, size, add = compute(self._network, graph), len(numbers), self._references[numbers]
        return Prediction(
            energy=float(out.energy[0] + add.sum() + self.potential.energy_shift),
            forces=out.forces[:size],
            stress=out.stress[0],
            atomic_energies=out.atomic_energies[:size] + add,
            direct_forces=None if out.direct_forces is None else out.direct_forces[:size],
        )

    def _padded(self, graph: Graph) -> Graph:
        """Padded to sizes used before if they aren't much larger, as compiling takes longer than some padding costs."""
        graph = graph.pad_to_bucket()
        for sizes in self._sizes:
            fits = all(have <= size for have, size in zip(graph.shape, sizes, strict=True))
            if fits and sizes[1] <= max(2 * graph.shape[1], SMALL_GRAPH):
                return graph.pad(*sizes)
        self._sizes.append(graph.shape)
        return graph


def as_model(potential: Potential, dtype: Any = np.float64) -> PotentialModel:
    """The potential as a callable from ``ase.Atoms`` to a Prediction of NumPy arrays, compiled for few sizes.

    Args:
        potential: what to run.
        dtype: of the arithmetic, results are float64; float64 works without ``jax_enable_x64``.

    Raises:
        ElementError: when called, for an element that the potential does not know.
        StructureError: when called, for a structure without an energy.
    """
    return PotentialModel(check_potential(potential), dtype)


def check_padding(
    potential: Potential | PotentialModel, atoms: Atoms, *, dtype: Any = np.float64, tolerance: float = 1e-9
) -> float:
    """How far a :class:`leignn_jax.Graph` is padded changes no number beyond rounding.

    Compared with the unpadded graph: one padded as :func:`as_model` does, and a far larger one, of odd sizes and with
    room for two more structures. ``dtype`` is that of the arithmetic. Returns the largest relative deviation.
    """
    model = potential if isinstance(potential, PotentialModel) else PotentialModel(potential, dtype)
    graph = model.graph(atoms)
    size, pairs, neighbors, _ = graph.shape
    expected, worst = values_of(model.of_graph(graph, atoms.numbers), size), Worst(tolerance)
    worst.compare("Padded to the next bucket", expected, evaluate(model, atoms))
    sizes = (2 * size + 5, 2 * pairs + 9, neighbors + 64, 3)
    what = "Padded to {} atoms, {} pairs, {} neighbours and {} structures".format(*sizes)
    worst.compare(what, expected, values_of(model.of_graph(graph.pad(*sizes), atoms.numbers), size))
    return worst.settled()
