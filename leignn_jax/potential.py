"""Potential: a model, its parameters and the energies they add to, as one pytree."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from flax import struct
from jaxtyping import Array, Float

from leignn_jax.arguments import check_atoms, check_dtype, check_mapping, check_number, check_path, check_whole, shown
from leignn_jax.errors import ConfigError, ElementError, LeignnError, StructureError
from leignn_jax.graph import Graph, bucket
from leignn_jax.mapping import derivatives_by
from leignn_jax.models.config import ModelConfig
from leignn_jax.models.leignn import pair_geometry, species_index
from leignn_jax.models.network import init_params, network
from leignn_jax.models.repulsion import seen_share, wall_energy, zbl_energy
from leignn_jax.pair_ops import pair_sum

if TYPE_CHECKING:
    import ase


class Prediction(NamedTuple):
    """What a potential says of a structure or a batch.

    energy: ``[graphs]`` eV (a float from :meth:`Potential.predict`).
    forces: ``[atoms, 3]`` eV/Å, minus the gradient of the energy.
    stress: ``[graphs, 3, 3]`` eV/Å^3, ASE's sign (positive under tension); NaN unless periodic in all directions.
    atomic_energies: ``[atoms]`` eV; of a structure that is divided among devices those of this one's atoms.
    direct_forces: ``[atoms, 3]`` eV/Å of the direct head, or None; likewise.
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
    walls: ``[elements, elements]`` Å, below which two atoms are kept apart if ``config.repulsion``, 0 where there is no
        wall; or None. See :meth:`with_walls`.
    """

    params: Any
    reference_energies: Any
    scale: Any
    energy_shift: Any
    config: ModelConfig = struct.field(pytree_node=False)
    metadata_json: str = struct.field(pytree_node=False, default="{}")
    walls: Any = None

    @classmethod
    def create(
        cls,
        config: ModelConfig,
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
        network(config)  # raises ConfigError where it is of no model
        if not (isinstance(key, jax.Array) and key.shape == () and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
            raise ConfigError(f"key must be a random key, such as jax.random.key(0), not {key!r:.60}.")
        return cls.from_params(
            config, jax.jit(init_params, static_argnums=0)(config, key), reference_energies, scale, metadata=metadata
        )

    @classmethod
    def from_params(
        cls,
        config: ModelConfig,
        params: Any,
        reference_energies: Mapping[str, float] | None = None,
        scale: float = 1.0,
        energy_shift: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> Potential:
        """A potential with these network parameters; the other arguments as in :meth:`create`."""
        network(config)  # raises ConfigError where it is of no model
        reference_energies = check_mapping("reference_energies", reference_energies)
        check_number("scale", scale, least=0)
        check_number("energy_shift", energy_shift)
        for symbol, value in reference_energies.items():
            check_number(f"reference_energies of {symbol}", value)
        unknown = set(reference_energies) - set(config.elements)
        if unknown:
            raise ConfigError(
                f"Reference energies of {sorted(unknown)}, but the model's elements are {config.elements}."
            )
        return cls(
            params=params,
            reference_energies=np.array([reference_energies.get(e, 0.0) for e in config.elements], np.float64),
            scale=np.asarray(scale, np.float64),
            energy_shift=np.asarray(energy_shift, np.float64),
            config=config,
            metadata_json=_as_json("metadata", metadata),
        )

    def with_walls(self, begins: Mapping[tuple[str, str], float]) -> Potential:
        """The same potential with walls that begin at these distances, where its training data end.

        Args:
            begins: Å by two symbols, as :func:`leignn_jax.data.wall_distances` gives them. Elements that the potential does
                not know are left out; two elements that are not named get no wall.

        Raises:
            ConfigError: the model is one without repulsion, or a distance is not positive.
        """
        if not self.config.repulsion:
            raise ConfigError("Walls belong to the repulsion, which this model is without: use repulsion=True.")
        elements = self.config.elements
        table = np.zeros((len(elements), len(elements)))
        for pair, distance in check_mapping("begins", begins).items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ConfigError(f"begins: {pair!r:.60} is not two symbols, such as ('O', 'H').")
            a, b = pair
            if not check_number(f"begins of {a} and {b}", distance) > 0:
                raise ConfigError(f"The wall of {a} and {b} must begin at a positive distance, not {distance} Å.")
            if a in elements and b in elements:
                i, j = elements.index(a), elements.index(b)
                table[i, j] = table[j, i] = distance
        return self.replace(walls=table)

    @property
    def wall_distances(self) -> dict[tuple[str, str], float]:
        """Å by two symbols, the lighter element first, where the walls begin."""
        if self.walls is None:
            return {}
        table, numbers = np.asarray(self.walls, np.float64), self.config.numbers
        # A committee's members share their data.
        table = table.reshape(-1, *table.shape[-2:])[0]
        found = {}
        for i, j in zip(*np.nonzero(np.triu(table)), strict=True):
            lighter, heavier = sorted((numbers[i], numbers[j]))
            found[chemical_symbols[lighter], chemical_symbols[heavier]] = float(table[i, j])
        return found

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
        """Energy of every structure in eV; NaN where a position or the cell is no finite number."""
        return self._of_structures(graph, self.atomic_energies(graph))

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
            energy=self._of_structures(graph, energies),
            forces=graph.forces(gradient),
            stress=stress_of(graph, vectors, gradient),
            atomic_energies=energies,
            direct_forces=direct,
        )

    def direct(self, graph: Graph) -> tuple[Float[Array, "graphs"], Float[Array, "atoms 3"]]:
        """Energies in eV and the forces of the direct head in eV/Å, without any gradient.

        Raises:
            ConfigError: the model has no such head.
        """
        if not self.config.direct_forces:
            raise ConfigError("This model has no direct forces; create it with direct_forces=True.")
        energies, forces = self._network(graph, graph.vectors())
        return self._of_structures(graph, energies + self._references(graph)), cast("Array", forces)

    def features(self, graph: Graph):
        """What the network knows of every atom before it gives its energy, an ``e3nn_jax.IrrepsArray`` ``[atoms, irreps]``.

        Scalars and vectors, ``F x 0e + F x 1o``, and ``2e`` of a model with tensors; of one of higher order every degree it
        has. To build heads on: a dipole is a ``1o``, a polarisability ``0e + 2e`` (docs, "Other properties"). Where an
        energy alone was trained, no head reads the vectors and tensors of the last layer: they are as they came from the
        neighbours. No unit; dtype of the positions; padding has features too, which mean nothing; of a divided structure
        those of own atoms. Pure.

        Raises:
            ConfigError: it is a committee.
        """
        import e3nn_jax

        self._check_single()
        vectors = graph.vectors()
        seen = _seen(graph, vectors, self._begins(graph, vectors.dtype))
        features = network(self.config).apply({"params": self.params}, graph, seen).features
        irreps = e3nn_jax.Irreps([(x.shape[-1], (degree, (-1) ** degree)) for degree, x in enumerate(features)])
        chunks: list[Array | None] = [jnp.swapaxes(x, 1, 2) for x in features]
        return e3nn_jax.from_chunks(irreps, chunks, features[0].shape[:1], features[0].dtype)

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

        rows = derivatives_by(forces, graph.positions, jnp.arange(shape[0] * 3), 16)
        return -rows.reshape(*shape, *shape)

    def _network(self, graph: Graph, vectors):
        """Atomic energies without references, and direct forces, as functions of the pair vectors."""
        self._check_single()
        begins = self._begins(graph, vectors.dtype)
        output = network(self.config).apply({"params": self.params}, graph, _seen(graph, vectors, begins))
        scale = jnp.asarray(self.scale, vectors.dtype)
        energies, direct = scale * output.atomic_energies, output.direct_forces
        if self.config.repulsion:
            distances, _ = pair_geometry(graph, vectors)
            lists = graph.lists
            receivers, senders = graph.numbers[lists.receivers], graph.numbers[lists.senders]
            pair = zbl_energy(distances, receivers, senders)
            if begins is not None:
                pair = pair + wall_energy(distances, begins)
            pair = jnp.where(graph.pair_mask, pair, 0.0)
            half = jnp.full((graph.numbers.shape[0], 1, 1), 0.5, vectors.dtype)
            energies = energies + graph.own(pair_sum(lists, pair[:, None], half)[:, 0, 0])
        return energies, None if direct is None else scale * direct

    def _begins(self, graph: Graph, dtype):
        """``[pairs]`` Å where the wall of each pair begins, 0 where it has none; None where no pair has one."""
        if self.walls is None or not self.config.repulsion:
            return None
        # Of both orders of two elements, that a gradient step leaves them alike. Padding and unknown elements, whose index
        # is the number of elements, get 0.
        walls = jnp.asarray(self.walls, dtype)
        table = jnp.pad(0.5 * (walls + walls.T), (0, 1))
        ends = graph.lists.receivers, graph.lists.senders
        return table[tuple(species_index(self.config, graph.numbers[end]) for end in ends)]

    def _references(self, graph: Graph):
        dtype = graph.positions.dtype
        table = jnp.append(jnp.asarray(self.reference_energies, dtype), 0.0)
        return table[species_index(self.config, graph.own(graph.numbers))]

    def _of_structures(self, graph: Graph, energies):
        """Energy of every structure in eV, ``[graphs]``, of those of its atoms; NaN where a position or the cell is not
        finite.

        Lists have no pairs of an atom whose position is NaN, so that the network takes it for one that is alone. The energy
        becomes NaN here and not on the way: padding points at the first atom and pair, by which a NaN would reach the other
        structures of a batch.
        """
        broken = ~jnp.isfinite(graph.own(graph.positions)).all(-1)
        sums, count = jnp.moveaxis(graph.sum_atoms(jnp.stack([energies, broken.astype(energies.dtype)], -1)), -1, 0)
        finite = (count == 0) & jnp.isfinite(graph.cell).all((1, 2))
        shift = jnp.where(graph.graph_mask, jnp.asarray(self.energy_shift, graph.positions.dtype), 0.0)
        return jnp.where(finite, sums + shift, jnp.nan)

    # --------------------------------------------------------------------------------------------- for people with atoms

    def predict(
        self, atoms: ase.Atoms | Sequence[ase.Atoms], *, dtype: str = "float32", batch_atoms: int = 1024
    ) -> Prediction | list[Prediction]:
        """Energy, forces and stress of one structure or of each of several, as NumPy arrays in float64.

        Args:
            atoms: one structure or a sequence; all images within the cutoff count, wherever atoms and cell are.
            dtype: "float32" or "float64", of the network's arithmetic; reference energies are added in float64.
            batch_atoms: several structures run together up to this number of atoms.

        Raises:
            StructureError, ElementError: see :meth:`Graph.from_ase` and :meth:`check_elements`; for a sequence the
                message names the structure's index.
        """
        if not are_several(atoms):
            return self._predict_batch([self.to_graph(cast("ase.Atoms", atoms), dtype)])[0]
        return list(self.iter_predict(cast("Sequence[ase.Atoms]", atoms), dtype=dtype, batch_atoms=batch_atoms))

    def iter_predict(
        self, frames: Iterable[ase.Atoms], *, dtype: str = "float32", batch_atoms: int = 1024
    ) -> Iterator[Prediction]:
        """As :meth:`predict` of a sequence, one by one: only the structures of one batch are in memory at a time."""
        for graphs in self.iter_graphs(frames, dtype=dtype, batch_atoms=batch_atoms):
            yield from self._predict_batch(graphs)

    def iter_graphs(
        self, frames: Iterable[ase.Atoms], *, dtype: str = "float32", batch_atoms: int = 1024
    ) -> Iterator[list[Graph]]:
        """Graphs of structures, as many at a time as have ``batch_atoms`` atoms together; raises as :meth:`predict`."""
        check_whole("batch_atoms", batch_atoms, 1)
        waiting: list[Graph] = []
        for index, one in enumerate(frames):
            try:
                graph = self.to_graph(one, dtype)
            except LeignnError as error:
                raise type(error)(f"Structure {index}: {error}") from error
            if waiting and sum(g.shape[0] for g in waiting) + graph.shape[0] > batch_atoms:
                yield waiting
                waiting = []
            waiting.append(graph)
        if waiting:
            yield waiting

    def to_graph(self, atoms: ase.Atoms, dtype: str = "float32") -> Graph:
        """The graph of a structure for this potential, checked for unknown elements; raises as :meth:`predict`."""
        check_dtype(dtype)
        self.check_elements(check_atoms(atoms).numbers)
        return Graph.from_ase(atoms, self.cutoff, np.dtype(dtype))

    def _predict_batch(self, graphs: list[Graph]) -> list[Prediction]:
        batch = joined(graphs)
        network, references = self.split_references()
        out = compute(network, batch)
        starts = np.cumsum([0, *(g.shape[0] for g in graphs)])
        predictions = []
        for index, graph in enumerate(graphs):
            rows = slice(starts[index], starts[index + 1])
            add = references[np.asarray(graph.numbers)]
            prediction = Prediction(
                energy=float(out.energy[index]) + float(add.sum()) + float(self.energy_shift),
                forces=out.forces[rows],
                stress=out.stress[index],
                atomic_energies=out.atomic_energies[rows] + add,
                direct_forces=None if out.direct_forces is None else out.direct_forces[rows],
            )
            check_finite(prediction)
            predictions.append(prediction)
        return predictions

    def split_references(self) -> tuple[Potential, np.ndarray]:
        """This potential without constants, and the reference energy by atomic number in float64.

        Total energies of DFT are large beside their differences: added on the device in float32 they would round the
        network's part away.

        Raises:
            ConfigError: it is a committee.
        """
        self._check_single()
        references = np.zeros(120)
        references[list(self.config.numbers)] = np.asarray(self.reference_energies, np.float64)
        zero = np.zeros_like(np.asarray(self.reference_energies))
        return self.replace(reference_energies=zero, energy_shift=np.zeros(())), references

    def _check_single(self) -> None:
        """ConfigError where members are on a leading axis; under vmap over them each is one."""
        if np.ndim(self.scale):
            raise ConfigError(
                "This potential is a committee of several: leignn_jax.committee_predict asks all of them, and "
                "CommitteeModel(it) simulates with their mean."
            )

    def calculator(self, *, dtype: str = "float32", skin: float = 0.5):
        """An ASE calculator: energy, free_energy, forces, stress, energies; see :mod:`leignn_jax.interop.ase_calculator`."""
        from leignn_jax.interop.ase_calculator import LEIGNNCalculator

        return LEIGNNCalculator(self, dtype=dtype, skin=skin)

    def save(self, path: str | Path) -> None:
        """Write the potential to one .safetensors file, whole or not at all; see :mod:`leignn_jax.potential_file`."""
        from leignn_jax.potential_file import save_potential

        save_potential(self, check_path("path", path))

    def export(
        self,
        path: str | Path,
        atoms: ase.Atoms,
        *,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
        room: float = 1.2,
        dtype: str = "float32",
    ) -> None:
        """Write a program that runs with jax alone, for structures like this one; arguments and errors: see
        :func:`leignn_jax.exported.export_potential`."""
        from leignn_jax.exported import export_potential

        export_potential(self, path, atoms, platforms=platforms, room=room, dtype=dtype)

    def check_elements(self, numbers: np.ndarray) -> None:
        """Raise ElementError where an atomic number is not among the potential's elements."""
        unknown = np.flatnonzero(~np.isin(numbers, self.config.numbers))
        if len(unknown):
            number = int(numbers[unknown[0]])
            symbol = chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"of atomic number {number}"
            raise ElementError(
                f"Atom {unknown[0]} is {symbol}, which this potential has not seen; it knows "
                f"{', '.join(self.config.elements)}. Use a potential trained on that element."
            )

    def __repr__(self) -> str:
        # Not all of its numbers, which would fill a notebook.
        c = self.config
        size = f"{c.features} features x {c.layers} layers, cutoff {c.cutoff:g} Å"
        return f"Potential({', '.join(c.elements)}; {size})"

    def summary(self) -> dict[str, str]:
        """What the potential is, in words, for a person."""
        c, walls = self.config, self.wall_distances
        count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.params))
        energies = np.atleast_1d(np.asarray(self.reference_energies, np.float64))
        return {
            "elements": ", ".join(c.elements),
            "size": f"{c.features} features x {c.layers} layers, {count:,} parameters",
            "cutoff": f"{c.cutoff:g} Å per layer",
            "model": c.in_words(),
            "reference energies": ", ".join(
                f"{e} {v:.4f} eV" for e, v in zip(c.elements, energies.reshape(-1, len(c.elements))[0], strict=True)
            ),
            **({"walls below": ", ".join(f"{a}-{b} {d:.2f} Å" for (a, b), d in walls.items())} if walls else {}),
            **{key: value if isinstance(value, str) else _in_words(value) for key, value in self.metadata.items()},
        }

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(k)}</th><td style='text-align:left'>{html.escape(v)}</td></tr>"
            for k, v in self.summary().items()
        )
        return f"<table><caption>Potential</caption>{rows}</table>"


def _seen(graph: Graph, vectors, begins):
    """Pair vectors as the network sees them: as they are down to where walls begin."""
    if begins is None:
        return vectors
    distances, _ = pair_geometry(graph, vectors)
    return seen_share(distances, begins)[:, None] * vectors


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_json(name: str, values: Any) -> str:
    try:
        return json.dumps(check_mapping(name, values))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} must be plain JSON, text, numbers, lists and dicts: {error}.") from error


def are_several(atoms: Any) -> bool:
    """Whether these are structures, and not one."""
    return (
        isinstance(atoms, Iterable)
        and not isinstance(atoms, str | Path | bytes | Mapping)
        and not hasattr(atoms, "positions")
    )


def joined(graphs: list[Graph]) -> Graph:
    """Graphs as one, padded to sizes that few programs are compiled for."""
    return Graph.batch(graphs).pad_to_bucket().pad(graphs=bucket(len(graphs), 1))


def check_potential(value: Any, name: str = "potential") -> Potential:
    """The argument, a trained or untrained Potential; ConfigError where it is something else."""
    if not isinstance(value, Potential):
        remedy = "; leignn_jax.load_potential reads files" if isinstance(value, str | Path) else ""
        raise ConfigError(f"{name} must be a Potential, not {shown(value)}{remedy}.")
    return value


def compute(potential: Potential, graph: Graph) -> Prediction:
    """:meth:`Potential.compute` compiled once per shape, its results as float64 NumPy arrays on the host."""
    # x64 only for this call and only where asked for: the process's setting stays as the user left it.
    with jax.enable_x64(graph.positions.dtype == np.float64):
        out = jax.device_get(_compute(potential, graph))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), out)


@jax.jit
def _compute(potential: Potential, graph: Graph) -> Prediction:
    return potential.compute(graph)


def check_finite(prediction: Prediction) -> None:
    """Raise StructureError where a potential answers with NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(prediction.forces).all(axis=1))
    if len(bad) or not np.isfinite(prediction.energy):
        where = f"atom {bad[0]}" if len(bad) else "the energy"
        raise StructureError(
            f"The potential gives no finite number for {where}: the structure is far from anything it was trained on, or "
            "its parameters are damaged."
        )


def _strain_gradient(graph: Graph, vectors, gradient):
    outer = vectors[:, :, None] * gradient[:, None, :]
    return graph.sum_pairs(0.5 * (outer + jnp.swapaxes(outer, 1, 2)))


def stress_of(graph: Graph, vectors, gradient):
    """``[graphs, 3, 3]`` eV/Å^3 from the gradient of the energy by the pair vectors; NaN unless periodic."""
    volume = jnp.abs(jnp.linalg.det(graph.cell))
    periodic = graph.pbc.all(axis=1) & (volume > 0)
    volume = jnp.where(periodic, volume, 1.0)
    stress = _strain_gradient(graph, vectors, gradient) / volume[:, None, None]
    return jnp.where(periodic[:, None, None], stress, jnp.nan)
