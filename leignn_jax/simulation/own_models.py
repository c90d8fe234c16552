r"""Your own energy as a model to simulate with, to minimise and to differentiate: a JAX function or a Flax module.

=====================  ===================================================================================================
``PairEnergy``         ``function(params, r)`` or ``function(params, r, z1, z2)``: the energy of two atoms
``AtomEnergy``         ``function(params, z, vectors, zs, weights)``: the energy of an atom among its neighbours
``GraphEnergy``        ``function(params, graph, vectors)``: the energy of every atom of a graph, for message passing
=====================  ===================================================================================================

A Flax module stands in the place of the function; ``params`` is what its ``init`` returned. Forces and stress come from one
gradient by the pair vectors. Every number in ``params`` is a leaf: differentiate by it, vmap over it.

>>> def morse(params, r):
...     return params["depth"] * ((1 - jnp.exp(-params["width"] * (r - params["r0"]))) ** 2 - 1)
>>> model = PairEnergy(morse, {"depth": 0.3, "width": 1.6, "r0": 2.9}, cutoff=6.0)
>>> leignn.simulate(model, atoms, "nvt", temperature=300.0, steps=1000)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from leignn_jax.arguments import check_number
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.pair_ops import pair_sum
from leignn_jax.potential import Prediction, stress_of
from leignn_jax.simulation.model_sums import Adds

# Of the cutoff, where the switch begins if nothing is said.
_ONSET = 0.9


class _OwnModel(Adds):
    """A model whose class says what ``energies(graph, vectors)`` of all atoms are."""

    function: Any
    params: Any
    cutoff: float

    def compute(self, graph: Graph) -> Prediction:
        """Energy, forces and stress of every structure."""
        vectors = graph.vectors()

        def total(vectors):
            each = graph.own(self.energies(graph, vectors))
            return each.sum(), each

        gradient, each = jax.grad(total, has_aux=True)(vectors)
        return Prediction(
            energy=graph.sum_atoms(each),
            forces=graph.forces(gradient),
            stress=stress_of(graph, vectors, gradient),
            atomic_energies=each,
            direct_forces=None,
        )

    def energies(self, graph: Graph, vectors) -> Any:
        """``[atoms]`` eV, zero for padding."""
        raise NotImplementedError

    def _apply(self, *arguments) -> Any:
        function: Any = self.function.apply if isinstance(self.function, nn.Module) else self.function
        return function(self.params, *arguments)


@struct.dataclass
class PairEnergy(_OwnModel):
    """The sum over all pairs, each counted once, of a function of the distance; a pair's energy is shared by its atoms.

    function: ``(params, r) -> energy`` in eV of one distance in Å, scalars both; or ``(params, r, z1, z2)`` with the two
        atomic numbers, the smaller one first (static). A Flax module is called the same way; what takes ``*args`` gets r.
    params: any pytree.
    cutoff: Å (static).
    onset: Å (static), from where the energy is taken to zero by ``1 - 10 s^3 + 15 s^4 - 6 s^5``, s from 0 here to 1 at the
        cutoff: energy, force and slope of the force go on smoothly. None is nine tenths of the cutoff; the cutoff itself
        leaves the function as it is, for one that ends there by itself. Cut anywhere else, energy is not conserved.

    Raises:
        ConfigError: no function of two or four arguments, a cutoff or onset out of range, or (when it is used) a function
            that gives anything but one number.
    """

    function: Any = struct.field(pytree_node=False)
    params: Any
    cutoff: float = struct.field(pytree_node=False)
    onset: float | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        _check(self, (2, 4), "(params, r) or (params, r, z1, z2)")
        if self.onset is not None:
            check_number(f"{_name(self)}: onset", self.onset, positive=True, most=self.cutoff)

    def energies(self, graph: Graph, vectors) -> Any:
        """``[atoms]`` eV, zero for padding."""
        squared = (vectors**2).sum(-1)
        there = graph.pair_mask & (squared > 0) & (squared < self.cutoff**2)
        # Padding is computed at a distance where functions behave, and left out.
        distances = jnp.sqrt(jnp.where(there, squared, (0.5 * self.cutoff) ** 2))
        elements = ()
        if _count(self.function) == 4:
            ends = graph.numbers[graph.lists.receivers], graph.numbers[graph.lists.senders]
            elements = jnp.minimum(*ends), jnp.maximum(*ends)
        pairs = jax.vmap(lambda r, *z: _one_number(self, self._apply(r, *z)))(distances, *elements)
        pairs = jnp.where(there, pairs * switch(distances, self.onset, self.cutoff), 0.0)
        half = jnp.full((graph.numbers.shape[0], 1, 1), 0.5, pairs.dtype)
        return pair_sum(graph.lists, pairs[:, None], half)[:, 0, 0]


@struct.dataclass
class AtomEnergy(_OwnModel):
    """The sum over all atoms of a function of an atom's neighbours.

    function: ``(params, z, vectors, zs, weights) -> energy`` in eV of one atom (static), with ``z`` its atomic number,
        ``vectors`` [neighbors, 3] Å to its neighbours, all images within the cutoff, ``zs`` [neighbors] their atomic
        numbers, and ``weights`` [neighbors]: 1, going smoothly to 0 from ``onset`` to the cutoff as in
        :class:`PairEnergy`, and 0 for padding, whose vectors are not zero and whose numbers are the atom's own. Multiply
        what is taken from a neighbour by its weight: then energies and forces are smooth at the cutoff, and padding does
        not count. A Flax module is called the same way.
    params: any pytree. cutoff: Å (static). onset: Å (static), None is nine tenths of the cutoff.

    Raises:
        ConfigError: as :class:`PairEnergy`.
    """

    function: Any = struct.field(pytree_node=False)
    params: Any
    cutoff: float = struct.field(pytree_node=False)
    onset: float | None = struct.field(pytree_node=False, default=None)

    def __post_init__(self):
        _check(self, (5,), "(params, z, vectors, zs, weights)")
        if self.onset is not None:
            check_number(f"{_name(self)}: onset", self.onset, positive=True, most=self.cutoff)

    def energies(self, graph: Graph, vectors) -> Any:
        """``[atoms]`` eV, zero for padding."""
        lists = graph.lists
        signs = lists.neighbor_signs
        around = signs[..., None].astype(vectors.dtype) * vectors[lists.neighbor_pairs]
        squared = (around**2).sum(-1)
        there = (signs != 0) & graph.pair_mask[lists.neighbor_pairs] & (squared > 0) & (squared < self.cutoff**2)
        aside = jnp.array([0.5 * self.cutoff, 0.0, 0.0], vectors.dtype)
        around = jnp.where(there[..., None], around, aside)
        distances = jnp.sqrt((around**2).sum(-1))
        weights = jnp.where(there, switch(distances, self.onset, self.cutoff), 0.0)
        numbers = jnp.where(there, graph.numbers[lists.neighbors], graph.numbers[:, None])
        # Padding is computed as the first atom is, and left out: roots and logarithms of nothing have no slope.
        atoms = (
            jnp.where(graph.atom_mask.reshape(-1, *[1] * (x.ndim - 1)), x, x[:1])
            for x in (jnp.asarray(graph.numbers), around, numbers, weights)
        )
        each = jax.vmap(lambda *atom: _one_number(self, self._apply(*atom)))(*atoms)
        return jnp.where(graph.atom_mask, each, 0.0)


@struct.dataclass
class GraphEnergy(_OwnModel):
    """The sum over all atoms of energies that a function of the whole graph gives, such as a message-passing network.

    function: ``(params, graph, vectors) -> [atoms]`` eV (static), or an object with ``atomic_energies``, of a
        :class:`leignn_jax.Graph` and its pair vectors [pairs, 3] Å from receiver to sender, by which it is differentiated:
        distances must come from these. Pairs may be up to a skin farther than the cutoff, and padding has vectors of zero:
        mask both (``graph.pair_mask``), as ``leignn_jax.models`` does. A Flax module is called the same way.
    params: any pytree. cutoff: Å (static).

    Raises:
        ConfigError: as :class:`PairEnergy`.
    """

    function: Any = struct.field(pytree_node=False)
    params: Any
    cutoff: float = struct.field(pytree_node=False)

    def __post_init__(self):
        _check(self, (3,), "(params, graph, vectors)")

    def energies(self, graph: Graph, vectors) -> Any:
        """``[atoms]`` eV, zero for padding."""
        each = self._apply(graph, vectors)
        each = getattr(each, "atomic_energies", each)
        if jnp.shape(each) != graph.numbers.shape:
            raise ConfigError(
                f"{_name(self)} must return one energy for each of {graph.numbers.shape[0]} atoms, not an array of shape "
                f"{list(jnp.shape(each))}."
            )
        return jnp.where(graph.atom_mask, each, 0.0)


def switch(distances, onset: float | None, cutoff: float):
    """1 up to ``onset``, then 1 - 10 s^3 + 15 s^4 - 6 s^5 down to 0 at the cutoff; both in Å."""
    onset = _ONSET * cutoff if onset is None else onset
    if onset >= cutoff:
        return jnp.ones_like(distances)
    s = jnp.clip((distances - onset) / (cutoff - onset), 0.0, 1.0)
    return 1 - s**3 * (10 - 15 * s + 6 * s**2)


def _check(model, counts: tuple[int, ...], signature: str) -> None:
    check_number(f"{type(model).__name__}: cutoff", model.cutoff, positive=True)
    function = model.function
    if not callable(function) or isinstance(function, type):
        given = f"the class {function.__name__}" if isinstance(function, type) else type(function).__name__
        raise ConfigError(f"{type(model).__name__}: function must be one of {signature}, not {given}.")
    if _count(function) not in (None, *counts):
        raise ConfigError(f"{_name(model)} takes {_count(function)} arguments; it must be a function of {signature}.")


def _count(function: Callable[..., Any]) -> int | None:
    """How many arguments a function takes, of a module those of its call and its parameters; None where any."""
    module = isinstance(function, nn.Module)
    try:
        signature = inspect.signature(type(function).__call__ if module else function)  # pyright: ignore[reportAttributeAccessIssue]
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # Of a module `self` stands where the parameters do.
    needed = [p for p in signature.parameters.values() if p.kind in kinds and p.default is inspect.Parameter.empty]
    return None if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) else len(needed)


def _one_number(model, value):
    if jnp.shape(value) != ():
        raise ConfigError(f"{_name(model)} must return one number, not an array of shape {list(jnp.shape(value))}.")
    return value


def _name(model) -> str:
    function = model.function
    return f"{type(model).__name__} of {getattr(function, '__name__', type(function).__name__)}"
