"""Sums of energy models, ``potential + pair_term + umbrella``; the constants and the checks of what is in a sum.

Each part is given a graph with the pairs within its own cutoff and no others, so that it says of a structure what it says
alone. Energies, forces and stress add up; where one part has no stress (NaN, unless periodic) the sum has none.
"""

from __future__ import annotations

from typing import Any

import ase
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import check_model
from leignn_jax.graph import Graph
from leignn_jax.potential import Potential, Prediction


class Adds:
    """What makes ``a + b`` a :class:`ModelSum`, where one of the two is of a class with this base."""

    def __add__(self, other: Any) -> ModelSum:
        return ModelSum((self, _part(other)))

    def __radd__(self, other: Any) -> ModelSum:
        # The built-in sum() begins with 0.
        return ModelSum((self,) if isinstance(other, int) and other == 0 else (_part(other), self))


@struct.dataclass
class ModelSum(Adds):
    """Several models as one. A pytree; sums of sums are one sum.

    parts: energy models (:class:`leignn_jax.simulation.dynamics.EnergyModel`). Two potentials, of which ``a + b`` knows
        nothing, are added by ``ModelSum((a, b))``.
    """

    parts: tuple[Any, ...]

    def __post_init__(self):
        # Transformations of JAX rebuild it around what is no model.
        if isinstance(self.parts, tuple):
            flat = (one for part in self.parts for one in (part.parts if isinstance(part, ModelSum) else (part,)))
            object.__setattr__(self, "parts", tuple(flat))

    @property
    def cutoff(self) -> float:
        """Å, the largest of the parts."""
        return max(part.cutoff for part in self.parts)

    @property
    def conserves_momentum(self) -> bool:
        """Whether all parts do."""
        return all(getattr(part, "conserves_momentum", True) for part in self.parts)

    def without_constants(self) -> ModelSum:
        """The sum of the parts without reference energies and shifts."""
        return ModelSum(tuple(without_constants(part) for part in self.parts))

    def compute(self, graph: Graph) -> Prediction:
        """The sums of what the parts say; energies of atoms where all parts have them."""
        out = [part.compute(within(graph, part.cutoff)) for part in self.parts]
        each = [getattr(one, "atomic_energies", None) for one in out]
        known: Any = None if any(e is None for e in each) else sum(each)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return Prediction(
            energy=sum(one.energy for one in out),
            forces=sum(one.forces for one in out),
            stress=sum(one.stress for one in out),
            atomic_energies=known,
            direct_forces=None,
        )


def _part(model: Any) -> Any:
    return check_model(model, "What is added to a model")


def within(graph: Graph, cutoff: float) -> Graph:
    """The same graph without the pairs that are farther than ``cutoff`` Å, which become padding."""
    there = graph.pair_mask & ((graph.vectors() ** 2).sum(-1) < cutoff**2)
    lists = graph.lists
    signs = jnp.where(there[lists.neighbor_pairs], lists.neighbor_signs, 0).astype(lists.neighbor_signs.dtype)
    return graph.replace(pair_mask=there, lists=lists.replace(neighbor_signs=signs))


def split_constants(model: Any) -> tuple[Any, np.ndarray, float]:
    """The model without constants; reference energy by atomic number, and energy per structure, eV in float64.

    Added on the device in float32 they would round the rest away; no force depends on them.
    """
    if isinstance(model, Potential):
        network, table = model.split_references()
        return network, table, float(model.energy_shift)
    if hasattr(model, "split_constants"):
        return model.split_constants()
    if isinstance(model, ModelSum):
        parts, tables, shifts = zip(*(split_constants(part) for part in model.parts), strict=True)
        return ModelSum(parts), sum(tables, np.zeros(120)), sum(shifts)
    return model, np.zeros(120), 0.0


def without_constants(model: Any) -> Any:
    """As the first of :func:`split_constants`, also where the numbers are traced."""
    if isinstance(model, Potential):
        zero = jnp.zeros_like(jnp.asarray(model.reference_energies, jnp.float32))
        return model.replace(reference_energies=zero, energy_shift=jnp.zeros(np.shape(model.energy_shift)))
    return model.without_constants() if hasattr(model, "without_constants") else model


def doubts(model: Any, graph: Graph) -> Any:
    """``[atoms]`` eV/Å, how far the members of a committee disagree on the force on each atom; the most doubtful part of a
    sum. None where no part is a committee."""
    if isinstance(model, ModelSum):
        each = [doubts(part, within(graph, part.cutoff)) for part in model.parts]
        known = [one for one in each if one is not None]
        return jnp.stack(known).max(0) if known else None
    return model.doubts(graph) if hasattr(model, "doubts") else None


def has_doubts(model: Any) -> bool:
    """Whether :func:`doubts` of this model is a number."""
    return any(map(has_doubts, model.parts)) if isinstance(model, ModelSum) else hasattr(model, "doubts")


def check_structures_of(model: Any, structures: list[ase.Atoms]) -> None:
    """What a model has to say against structures before anything is computed; an error in words.

    A potential's elements; of other models what their method ``check(atoms)`` raises, where they have one.
    """
    if isinstance(model, ModelSum):
        for part in model.parts:
            check_structures_of(part, structures)
    elif isinstance(model, Potential):
        for atoms in structures:
            model.check_elements(atoms.numbers)
    elif callable(getattr(model, "check", None)):
        for atoms in structures:
            model.check(atoms)
