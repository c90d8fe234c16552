"""State of a simulation, and energies, forces and stress along it, for one system or many side by side.

Every array has a leading axis of replicas, one where there is one. Integrators work on these arrays as they are; each
replica has its own neighbour list; energy and forces of all replicas come from one graph that joins them, so that they
cost what as many atoms in one system cost. Units at every face are Å, eV, amu, fs and K.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import ase
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from flax import struct
from jaxtyping import Array, Float

from leignn_jax.arguments import check_masses
from leignn_jax.constraints import free_components
from leignn_jax.data.labels import DEFAULT_KEYS
from leignn_jax.device_neighbors import NeighborList, blank_list, lattice_vectors, renewed_each, update_near
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.list_sizes import ListSizes, largest, plan_sizes
from leignn_jax.neighbors import near_origin
from leignn_jax.pair_ops import PairLists

# Å/fs^2 that 1 eV/Å gives to 1 amu; eV per K; GPa per eV/Å^3.
ACCELERATION = float(ase.units.fs**2)
BOLTZMANN = float(ase.units.kB)
GIGAPASCAL = float(1.0 / ase.units.GPa)

REPLICA = "replica"


class EnergyModel(Protocol):
    """What can be simulated: a pytree with a cutoff in Å and a pure function from a graph to energy, forces, stress.

    Atoms that get far come back by whole lattice vectors along periodic directions, and structures start near the origin:
    what a model says must not depend on which image of an atom it sees, nor, unless it has an attribute
    ``conserves_momentum`` that is False, on where along open directions the structure is.

    :mod:`leignn_jax.simulation.own_models` makes one of an energy function. By hand, a field on one component:

    >>> @flax.struct.dataclass
    ... class Field(leignn.simulation.Adds):  # so that potential + Field(...) is a model too
    ...     strength: Any  # eV/Å
    ...     cutoff: float = flax.struct.field(pytree_node=False, default=1.0)
    ...     conserves_momentum: ClassVar[bool] = False
    ...
    ...     def compute(self, graph):
    ...         forces = jnp.zeros_like(graph.positions).at[:, 2].set(self.strength) * graph.atom_mask[:, None]
    ...         energy = -self.strength * graph.sum_atoms(graph.positions[:, 2])
    ...         return leignn.Prediction(energy, forces, jnp.zeros_like(graph.cell), None, None)

    A method ``check(atoms)``, where there is one, is called with every structure before the first step, to raise errors.
    """

    @property
    def cutoff(self) -> float: ...

    def compute(self, graph: Graph) -> Any: ...


@struct.dataclass
class System:
    """What stays as it is while atoms move. A pytree.

    numbers: ``[replicas, atoms]`` int32, 0 for padding.
    masses: ``[replicas, atoms]`` amu, 1 for padding.
    mobile: ``[replicas, atoms, 3]`` 1, or 0 for padding and coordinates that are held.
    pbc: ``[replicas, 3]`` bool.
    held_momentum: ``[replicas]`` 1 where the total momentum is kept at zero and three degrees of freedom are missing.
    """

    numbers: Any
    masses: Any
    mobile: Any
    pbc: Any
    held_momentum: Any

    def degrees_of_freedom(self) -> Float[Array, "replicas"]:
        """Number of velocity components that are free."""
        return self.mobile.sum((-1, -2)) - 3.0 * self.held_momentum


@struct.dataclass
class State:
    """Everything that a simulation changes. A pytree.

    positions: ``[replicas, atoms, 3]`` Å, at most about a cell outside of the cell; see :func:`unwrapped`.
    images: ``[replicas, atoms, 3]`` int32, whole lattice vectors taken off the positions since the start.
    velocities: ``[replicas, atoms, 3]`` Å/fs.
    cell: ``[replicas, 3, 3]`` Å, rows.
    energy: ``[replicas]`` eV. forces: ``[replicas, atoms, 3]`` eV/Å. stress: ``[replicas, 3, 3]`` eV/Å^3, ASE's sign.
    bath: what the ensemble remembers, such as a Nose-Hoover chain.
    exchanged: ``[replicas]`` eV that thermostat and barostat have put in so far.
    key: ``[replicas]`` random keys.
    step: int32, steps done.
    neighbors: lists of all replicas.
    """

    positions: Any
    images: Any
    velocities: Any
    cell: Any
    energy: Any
    forces: Any
    stress: Any
    bath: Any
    exchanged: Any
    key: Any
    step: Any
    neighbors: NeighborList


class Thermo(NamedTuple):
    """Numbers to log, one per replica.

    potential_energy, kinetic_energy: eV, the former without reference energies.
    temperature: K. pressure: GPa, NaN unless periodic. volume: Å^3. conserved: eV, constant but for errors of integration
    where no number of the ensemble is a ramp.
    """

    potential_energy: Any
    kinetic_energy: Any
    temperature: Any
    pressure: Any
    volume: Any
    conserved: Any


# ---------------------------------------------------------------------------------------------------------------- energies


def kinetic_energy(system: System, velocities) -> Float[Array, "replicas"]:
    """``[replicas]`` eV of velocities in Å/fs."""
    return 0.5 * (system.masses[..., None] * velocities**2 * system.mobile).sum((-1, -2)) / ACCELERATION


def temperature(system: System, velocities) -> Float[Array, "replicas"]:
    """``[replicas]`` K, by the degrees of freedom that are there."""
    return 2 * kinetic_energy(system, velocities) / (BOLTZMANN * jnp.maximum(system.degrees_of_freedom(), 1.0))


def volume(cell) -> Float[Array, "replicas"]:
    """``[replicas]`` Å^3."""
    return jnp.abs(jnp.linalg.det(cell))


def pressure_tensor(system: System, state: State, kT) -> Float[Array, "replicas 3 3"]:
    """``[replicas, 3, 3]`` eV/Å^3: kinetic part minus stress.

    Where the total momentum is held at zero, its mean share ``kT`` [eV] is put back, so that an ideal gas has N kT / V.
    """
    weighted = system.masses[..., None] * system.mobile * state.velocities / ACCELERATION
    kinetic = jnp.einsum("rai,raj->rij", weighted, state.velocities, precision="highest")
    held = (system.held_momentum * kT)[:, None, None] * jnp.eye(3, dtype=kinetic.dtype)
    return (kinetic + held) / volume(state.cell)[:, None, None] - state.stress


def pressure(system: System, state: State) -> Float[Array, "replicas"]:
    """``[replicas]`` GPa, with the share of momentum that is held at the present temperature, so that it averages to a
    barostat's target."""
    kT = BOLTZMANN * temperature(system, state.velocities)
    return jnp.trace(pressure_tensor(system, state, kT), axis1=1, axis2=2) / 3 * GIGAPASCAL


def evaluate(model: EnergyModel, system: System, neighbors: NeighborList, positions, cell):
    """Energy [replicas] eV, forces [replicas, atoms, 3] eV/Å and stress [replicas, 3, 3] eV/Å^3 of all replicas at once."""
    out = model.compute(joined_graph(system, neighbors, positions, cell))
    return out.energy, out.forces.reshape(positions.shape), out.stress


def check_answers(model: EnergyModel, system: System, neighbors: NeighborList, positions, cell) -> None:
    """ConfigError where a model's answers are not of the shapes that a simulation needs."""
    name, atoms = type(model).__name__, positions.shape[0] * positions.shape[1]
    out = jax.eval_shape(lambda m, *where: m.compute(joined_graph(*where)), model, system, neighbors, positions, cell)
    for field, shape in {"energy": cell.shape[:1], "forces": (atoms, 3), "stress": cell.shape}.items():
        answer: Any = getattr(out, field, None)
        if getattr(answer, "shape", None) != shape or not jnp.issubdtype(answer.dtype, jnp.floating):
            given = f"{answer.dtype}{list(answer.shape)}" if hasattr(answer, "shape") else "nothing"
            raise ConfigError(
                f"{name}.compute(graph) must return {field} as real numbers of shape {list(shape)} for this graph of "
                f"{cell.shape[0]} structures and {atoms} atoms, padding included; it returns {given}."
            )


def check_reach(model: EnergyModel, neighbors: NeighborList, remedy: str) -> None:
    """ConfigError where a model's cutoff is beyond that of the lists; of lists that are traced it can't be known."""
    if isinstance(neighbors.cutoff, jax.core.Tracer):
        return
    reach = float(np.asarray(neighbors.cutoff).min())
    if model.cutoff > reach * (1 + 1e-6):
        raise ConfigError(
            f"The model's cutoff is {model.cutoff:g} Å, and the lists hold pairs within {reach:g} Å: {remedy}."
        )


def check_start(model: EnergyModel, system: System, energy, forces) -> None:
    """ConfigError where a model has no finite energy or forces for a structure that a simulation starts with."""
    real = np.asarray(system.numbers) > 0
    bad = real & ~np.isfinite(np.asarray(forces)).all(-1) | ~np.isfinite(np.asarray(energy))[:, None]
    if bad.any():
        replica, atom = np.argwhere(bad)[0]
        which = f"atom {atom}" + (f" of structure {replica}" if len(real) > 1 else "")
        raise ConfigError(
            f"{type(model).__name__} gives no finite energy or force for {which}: look at what it says of the distances and "
            "elements there (atoms that overlap, a root or logarithm of zero), and at its parameters."
        )


def joined_graph(system: System, neighbors: NeighborList, positions, cell) -> Graph:
    """One graph of all replicas; or of this device's part, where one system is divided among devices."""
    if neighbors.domain is not None:
        here: NeighborList = jax.tree.map(lambda x: x[0], neighbors)
        return here.graph(positions[0], cell[0])
    replicas, atoms = system.numbers.shape
    pairs = neighbors.pair_mask.shape[1]
    lists = neighbors.lists
    first_atom = (jnp.arange(replicas, dtype=jnp.int32) * atoms)[:, None]
    first_pair = (jnp.arange(replicas, dtype=jnp.int32) * pairs)[:, None, None]

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    return Graph(
        positions=flat(positions),
        numbers=flat(system.numbers),
        graph_index=jnp.repeat(jnp.arange(replicas, dtype=jnp.int32), atoms),
        cell=cell,
        pbc=system.pbc,
        graph_mask=jnp.ones(replicas, bool),
        shifts=flat(neighbors.shifts),
        pair_mask=flat(neighbors.pair_mask),
        lists=PairLists(
            receivers=flat(lists.receivers + first_atom),
            senders=flat(lists.senders + first_atom),
            neighbors=flat(lists.neighbors + first_atom[..., None]),
            neighbor_pairs=flat(lists.neighbor_pairs + first_pair),
            neighbor_signs=flat(lists.neighbor_signs),
        ),
    )


def move_to(model: EnergyModel, system: System, state: State, positions, cell) -> State:
    """The state at other positions and cell, with lists renewed where needed, and energy, forces and stress there.

    Atoms that have gone far are taken back by whole lattice vectors where their list is renewed, and these are counted.
    """
    renew = jax.vmap(lambda n, r, c: update_near(n, r, c, axis=REPLICA), axis_name=REPLICA)
    neighbors, taken = renew(state.neighbors, positions, cell)
    positions = positions - lattice_vectors(taken, cell)
    energy, forces, stress = evaluate(model, system, neighbors, positions, cell)
    return state.replace(
        positions=positions,
        images=state.images + taken,
        cell=cell,
        energy=energy,
        forces=forces,
        stress=stress,
        neighbors=neighbors,
    )


def unwrapped(state: State) -> Float[Array, "replicas atoms 3"]:
    """Positions in Å along the atoms' ways since the start; where they have gone far rounded as their dtype is."""
    return state.positions + lattice_vectors(state.images, state.cell)


def displacement(start: State, state: State) -> Float[Array, "replicas atoms 3"]:
    """Å that the atoms have gone from ``start`` to ``state``; rounded by the way they went, not by where they are."""
    between = state.positions - start.positions + lattice_vectors(state.images - start.images, state.cell)
    return between + lattice_vectors(start.images, state.cell - start.cell)


def with_images(state: State, images) -> State:
    """The same state with its positions less other whole lattice vectors, ``images`` [replicas, atoms, 3] int32."""
    return state.replace(positions=state.positions - lattice_vectors(images - state.images, state.cell), images=images)


# ------------------------------------------------------------------------------------------------------------------- start


def make_system(structures: list[ase.Atoms], dtype: Any, *, hold_momentum: bool = True) -> System:
    """Arrays of these structures, padded to the largest, held where their constraints say.

    Raises:
        ConfigError: a constraint that :func:`free_components` refuses, or a mass that is no positive number.
    """
    size = max(len(a) for a in structures)
    numbers = np.zeros((len(structures), size), np.int32)
    masses, mobile = np.ones((len(structures), size)), np.zeros((len(structures), size, 3))
    held = np.zeros(len(structures))
    for r, atoms in enumerate(structures):
        count = len(atoms)
        numbers[r, :count], masses[r, :count] = atoms.numbers, check_masses(atoms)
        free = free_components(atoms, center_held=hold_momentum)
        mobile[r, :count] = free
        held[r] = float(hold_momentum and free.all() and count > 1)
    system = System(
        numbers=numbers,
        masses=masses.astype(dtype),
        mobile=mobile.astype(dtype),
        pbc=np.stack([np.asarray(a.pbc, bool) for a in structures]),
        held_momentum=held.astype(dtype),
    )
    return jax.device_put(system)


def check_strain(system: System) -> None:
    """ConfigError where an atom is held along some axes only, which a cell that changes its shape would not respect."""
    held = np.asarray(system.mobile).sum(-1)
    r, atom = np.unravel_index(np.argmax((held > 0) & (held < 3)), held.shape)
    if 0 < held[r, atom] < 3:
        raise ConfigError(
            f"Atom {atom} of structure {r} is held along some axes only, and the cell may change: hold it with FixAtoms, "
            "which keeps its place relative to the cell, or keep the cell."
        )


def structure_of(start: ase.Atoms, state: Any, r: int, positions, constant: float, moves_cell: bool) -> ase.Atoms:
    """Replica r of a state as a structure: a copy of ``start`` at ``positions`` [atoms, 3] Å, and cell where that moves,
    with energy plus ``constant`` eV, forces and stress in its calculator where they are finite numbers. What stands in its
    info or arrays under a label's name was of the start and is left out."""
    atoms, count = start.copy(), len(start)
    atoms.calc = None
    for name in (name for names in DEFAULT_KEYS.values() for name in names):
        atoms.info.pop(name, None)
        atoms.arrays.pop(name, None)
    if moves_cell:
        atoms.set_cell(np.asarray(state.cell[r], float))
    atoms.set_positions(positions, apply_constraint=False)
    energy, forces = float(state.energy[r]) + constant, np.asarray(state.forces[r, :count], float)
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": forces}
    if atoms.pbc.all():
        results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(state.stress[r], float))
    if all(np.isfinite(value).all() for value in results.values()):
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


class Origins(NamedTuple):
    """Where structures are from which a simulation starts near the origin: what a user sees is positions + these, float64.

    images: ``[replicas, atoms, 3]`` int64, whole lattice vectors. center: ``[replicas, 1, 3]`` Å.
    """

    images: np.ndarray
    center: np.ndarray

    def seen(self, positions, images, cell) -> np.ndarray:
        """``[..., replicas, atoms, 3]`` Å of positions, images and cell of a :class:`State`; on the host."""
        whole = self.images + np.asarray(images)
        return np.asarray(positions, np.float64) + (whole @ np.asarray(cell, np.float64) + self.center)


def start_positions(
    model: EnergyModel, structures: list[ase.Atoms], atoms: int, *, sees_origin: bool = False
) -> tuple[np.ndarray, Origins]:
    """``[replicas, atoms, 3]`` Å in float64, near the origin, and from where they were taken; padding lies at the origin.

    sees_origin: something else than the model depends on where along open directions the structures are.

    Raises:
        StructureError: as :func:`leignn_jax.neighbors.check_structure`.
    """
    positions, images = np.zeros((len(structures), atoms, 3)), np.zeros((len(structures), atoms, 3), np.int64)
    center = np.zeros((len(structures), 1, 3))
    anywhere = getattr(model, "conserves_momentum", True) and not sees_origin
    for r, one in enumerate(structures):
        cell, count = np.asarray(one.cell), slice(len(one))
        near = near_origin(one.positions, cell, np.asarray(one.pbc, bool))
        if not anywhere:
            near = near._replace(center=np.zeros(3))
        positions[r, count] = one.positions - near.offsets(cell)
        images[r, count], center[r] = near.images, near.center
    return positions, Origins(images, center)


def make_lists(
    numbers, positions, cell, pbc, cutoff: float, skin: float, dtype: Any, sizes: ListSizes | None = None
) -> NeighborList:
    """Lists of all replicas, of one size; on the host. Arguments with a leading axis of replicas."""
    numbers, positions, cell, pbc = (np.asarray(x) for x in (numbers, positions, cell, pbc))
    if sizes is None:
        real = numbers > 0
        each = zip(positions, cell, pbc, real, strict=True)
        sizes = largest([plan_sizes(r[m], c, p, cutoff + skin) for r, c, p, m in each], numbers.shape[1])
    several = [
        blank_list(r, c, p, n, cutoff, skin, sizes=sizes, dtype=dtype)
        for r, c, p, n in zip(positions, cell, pbc, numbers, strict=True)
    ]
    return renewed_each(jax.tree.map(lambda *x: np.stack(x), *several))


def draw_velocities(system: System, kelvin, key) -> Float[Array, "replicas atoms 3"]:
    """Velocities in Å/fs from the Maxwell-Boltzmann distribution at ``kelvin``, without total momentum where it is held."""
    spread = jnp.sqrt(BOLTZMANN * jnp.asarray(kelvin, system.masses.dtype) * ACCELERATION)
    noise = normals(key, (*system.masses.shape[1:], 3), system.masses.dtype)
    velocities = jnp.broadcast_to(spread, system.masses.shape[:1])[:, None, None] * noise
    velocities = velocities / jnp.sqrt(system.masses)[..., None] * system.mobile
    return without_momentum(system, velocities)


def without_momentum(system: System, velocities) -> Float[Array, "replicas atoms 3"]:
    """Velocities less that of the centre of mass, in replicas whose total momentum is held."""
    weights = system.masses[..., None] * system.mobile
    center = (weights * velocities).sum(1, keepdims=True) / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
    return velocities - system.held_momentum[:, None, None] * center * system.mobile


def normals(key, shape: tuple[int, ...], dtype) -> Float[Array, "replicas ..."]:
    """Normal numbers for every replica from its own key: ``[replicas, *shape]``, the same as for that replica alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(key)
