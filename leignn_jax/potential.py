"""Potential: a model, its parameters and the energies they add to, as one pytree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from leignn_jax.errors import ConfigError, ElementError
from leignn_jax.graph import Graph
from leignn_jax.models.config import LEIGNNConfig
from leignn_jax.models.leignn import LEIGNN, init_params, pair_geometry, species_index
from leignn_jax.models.repulsion import zbl_energy
from leignn_jax.pair_ops import pair_divergence, pair_sum

if TYPE_CHECKING:
    import ase


class Prediction(NamedTuple):
    """What a potential says of a structure or a batch.

    energy: ``[graphs]`` eV (a float from :meth:`Potential.predict`).
    forces: ``[atoms, 3]`` eV/Å, minus the gradient of the energy.
    stress: ``[graphs, 3, 3]`` eV/Å^3, ASE's sign (positive under tension); NaN unless periodic in all directions.
    atomic_energies: ``[atoms]`` eV.
    direct_forces: ``[atoms, 3]`` eV/Å of the direct head, or None.
    """

    energy: Any
    forces: Any
    stress: Any
    atomic_energies: Any
    direct_forces: Any


@struct.dataclass
class Potential:
    """An interatomic potential. A pytree: vmap over it, differentiate by it, pass it through jit.

    params: the network's parameters.
    reference_energies: ``[elements]`` eV, energy of one atom of each element that the network's output adds to.
    scale: eV, what the network's output is multiplied by.
    energy_shift: eV per structure, a constant added last.
    config: the model's shape (static).
    metadata_json: facts about the training, JSON text (static); see :attr:`metadata`.
    """

    params: Any
    reference_energies: Any
    scale: Any
    energy_shift: Any
    config: LEIGNNConfig = struct.field(pytree_node=False)
    metadata_json: str = struct.field(pytree_node=False, default="{}")

    @classmethod
    def create(
        cls,
        config: LEIGNNConfig,
        key: jax.Array,
        *,
        reference_energies: Mapping[str, float] | None = None,
        scale: float = 1.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> Potential:
        """An untrained potential.

        Args:
            config: the model; must name its elements.
            key: ``jax.random.key(seed)``.
            reference_energies: eV per atom by symbol, zero where none is given.
            scale: eV; the force RMS of the data times 1 Å is a good one.
            metadata: facts to keep with the potential; plain JSON types.
        """
        return cls.from_params(
            config, jax.jit(init_params, static_argnums=0)(config, key), reference_energies, scale, metadata=metadata
        )

    @classmethod
    def from_params(
        cls,
        config: LEIGNNConfig,
        params: Any,
        reference_energies: Mapping[str, float] | None = None,
        scale: float = 1.0,
        energy_shift: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> Potential:
        """A potential with these network parameters; the other arguments as in :meth:`create`."""
        reference_energies = dict(reference_energies or {})
        unknown = set(reference_energies) - set(config.elements)
        if unknown:
            raise ConfigError(f"Reference energies of {sorted(unknown)}, but the model's elements are {config.elements}.")
        return cls(
            params=params,
            reference_energies=np.array([reference_energies.get(e, 0.0) for e in config.elements], np.float64),
            scale=np.asarray(scale, np.float64),
            energy_shift=np.asarray(energy_shift, np.float64),
            config=config,
            metadata_json=json.dumps(dict(metadata or {})),
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """Facts about the training data and the training."""
        return json.loads(self.metadata_json)

    @property
    def cutoff(self) -> float:
        """Å, the distance up to which a :class:`Graph` for this potential must list all pairs."""
        return self.config.cutoff

    # ------------------------------------------------------------------------------------------- pure functions of a graph

    def atomic_energies(self, graph: Graph) -> Float[Array, "atoms"]:
        """Energy of every atom in eV, reference energies included, zero for padding."""
        energies, _ = self._network(graph, graph.vectors())
        return energies + self._references(graph)

    def energy(self, graph: Graph) -> Float[Array, "graphs"]:
        """Energy of every structure in eV."""
        return graph.sum_atoms(self.atomic_energies(graph)) + self._shift(graph)

    def energy_and_forces(self, graph: Graph) -> tuple[Float[Array, "graphs"], Float[Array, "atoms 3"]]:
        """Energies in eV and forces, minus their gradient, in eV/Å."""
        prediction = self.compute(graph)
        return prediction.energy, prediction.forces

    def compute(self, graph: Graph) -> Prediction:
        """Everything the potential says of a graph; what isn't used is not computed under ``jax.jit``.

        One reverse pass to the pair vectors gives both forces and stress: the force on an atom sums the gradients of its
        pairs, the strain derivative of a structure sums vector times gradient.
        """
        vectors = graph.vectors()

        def total(vectors):
            energies, direct = self._network(graph, vectors)
            return energies.sum(), (energies, direct)

        gradient, (energies, direct) = jax.grad(total, has_aux=True)(vectors)
        energies = energies + self._references(graph)
        return Prediction(
            energy=graph.sum_atoms(energies) + self._shift(graph),
            forces=-pair_divergence(graph.lists, gradient),
            stress=_stress(graph, vectors, gradient),
            atomic_energies=energies,
            direct_forces=direct,
        )

    def strain_gradient(self, graph: Graph) -> Float[Array, "graphs 3 3"]:
        """Derivative of the energy by a symmetric strain of positions and cell, in eV; defined for molecules too."""
        vectors = graph.vectors()
        gradient = jax.grad(lambda v: self._network(graph, v)[0].sum())(vectors)
        return _strain_gradient(graph, vectors, gradient)

    def hessian(self, graph: Graph) -> Float[Array, "atoms 3 atoms 3"]:
        """Second derivatives of the total energy by the positions, eV/Å^2; 16 columns at a time."""
        shape = graph.positions.shape

        def forces(positions):
            return self.energy_and_forces(graph.replace(positions=positions))[1]

        def column(direction):
            return -jax.jvp(forces, (graph.positions,), (direction.reshape(shape),))[1]

        size = shape[0] * 3
        directions = jnp.eye(size, dtype=graph.positions.dtype)
        rows = jax.lax.map(column, directions, batch_size=min(16, size))
        return rows.reshape(*shape, *shape)

    def _network(self, graph: Graph, vectors):
        """Atomic energies without references, and direct forces, as functions of the pair vectors."""
        output = LEIGNN(self.config).apply({"params": self.params}, graph, vectors)
        scale = jnp.asarray(self.scale, vectors.dtype)
        energies, direct = scale * output.atomic_energies, output.direct_forces
        if self.config.repulsion:
            distances, _ = pair_geometry(graph, vectors)
            lists = graph.lists
            pair = zbl_energy(distances, graph.numbers[lists.receivers], graph.numbers[lists.senders])
            pair = jnp.where(graph.pair_mask, pair, 0.0)
            half = jnp.full((graph.numbers.shape[0], 1, 1), 0.5, vectors.dtype)
            energies = energies + pair_sum(lists, pair[:, None], half)[:, 0, 0]
        return energies, None if direct is None else scale * direct

    def _references(self, graph: Graph):
        dtype = graph.positions.dtype
        table = jnp.append(jnp.asarray(self.reference_energies, dtype), 0.0)
        return table[species_index(self.config, graph.numbers)]

    def _shift(self, graph: Graph):
        return jnp.where(graph.graph_mask, jnp.asarray(self.energy_shift, graph.positions.dtype), 0.0)

    # --------------------------------------------------------------------------------------------- for people with atoms

    def check_elements(self, numbers: np.ndarray) -> None:
        """Raise ElementError where an atomic number is not among the potential's elements."""
        known = np.isin(numbers, self.config.numbers)
        if not known.all():
            from ase.data import chemical_symbols

            first = int(np.flatnonzero(~known)[0])
            raise ElementError(
                f"Atom {first} is {chemical_symbols[int(numbers[first])]}, which this potential has not seen; it knows "
                f"{', '.join(self.config.elements)}. Use a potential trained on that element."
            )


def _strain_gradient(graph: Graph, vectors, gradient):
    outer = vectors[:, :, None] * gradient[:, None, :]
    outer = 0.5 * (outer + jnp.swapaxes(outer, 1, 2))
    if graph.num_graphs == 1:
        return outer.sum(0)[None]
    of_graph = graph.graph_index[graph.lists.receivers] == jnp.arange(graph.num_graphs)[:, None]
    return jnp.einsum("gp,pxy->gxy", of_graph.astype(outer.dtype), outer, precision="highest")


def _stress(graph: Graph, vectors, gradient):
    volume = jnp.abs(jnp.linalg.det(graph.cell))
    periodic = graph.pbc.all(axis=1) & (volume > 0)
    volume = jnp.where(periodic, volume, 1.0)
    stress = _strain_gradient(graph, vectors, gradient) / volume[:, None, None]
    return jnp.where(periodic[:, None, None], stress, jnp.nan)
