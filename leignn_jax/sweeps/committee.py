"""Committees: several potentials of one model on a leading axis, whose disagreement tells where they know little."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import ase
import jax
import numpy as np
from flax import struct

from leignn_jax.arguments import check_sequence
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.potential import Potential, Prediction, are_several, check_finite, check_potential, joined
from leignn_jax.properties.second_derivatives import signed_root
from leignn_jax.simulation.model_sums import Adds, without_constants

log = logging.getLogger("leignn_jax")


def committee(potentials: Sequence[Potential]) -> Potential:
    """Potentials of one model as one with the members on the leading axis of its arrays, to vmap over.

    See :func:`committee_predict` and :class:`CommitteeModel`.

    Raises:
        ConfigError: there is none, one is no potential, or they are of different models.
    """
    potentials = [
        check_potential(p, f"potentials[{i}]") for i, p in enumerate(check_sequence("potentials", potentials))
    ]
    for index, potential in enumerate(potentials):
        if is_committee(potential):
            raise ConfigError(f"potentials[{index}] is a committee itself; give the potentials that it was made of.")
    if not potentials:
        raise ConfigError("A committee needs one potential or more.")
    configs = {p.config for p in potentials}
    if len(configs) != 1:
        raise ConfigError("A committee needs members of one model; these differ in their config.")
    if len({p.walls is None for p in potentials}) != 1:
        raise ConfigError("A committee needs members of one model; some of these have walls (with_walls), others none.")
    first = potentials[0]
    numbers = [jax.tree.leaves(p.params) for p in potentials]
    if len(numbers) > 1 and all(all(map(np.array_equal, numbers[0], one)) for one in numbers[1:]):
        log.warning("The members of this committee have the same parameters: they agree everywhere, and doubt nothing.")
    return jax.tree.map(
        lambda *x: np.stack([np.asarray(v) for v in x]),
        first,
        *[p.replace(metadata_json=first.metadata_json) for p in potentials[1:]],
    )


class CommitteePrediction(NamedTuple):
    """What a committee says of a structure: mean and standard deviation over members.

    energy, energy_std: eV. forces, forces_std: ``[atoms, 3]`` eV/Å. stress, stress_std: ``[3, 3]`` eV/Å^3.
    """

    energy: float
    energy_std: float
    forces: np.ndarray
    forces_std: np.ndarray
    stress: np.ndarray
    stress_std: np.ndarray

    @property
    def doubt(self) -> float:
        """eV/Å, the largest disagreement on the force on an atom: the root of the summed variances of its components."""
        return float(np.sqrt((self.forces_std**2).sum(-1)).max())


def _compute_each(members: Potential, graph: Graph) -> Prediction:
    """What each member says, on a leading axis."""
    return jax.vmap(lambda p: p.compute(graph))(members)


_compute_all = jax.jit(_compute_each)


def committee_predict(
    members: Potential, atoms: ase.Atoms | Sequence[ase.Atoms], *, dtype: str = "float32", batch_atoms: int = 1024
) -> CommitteePrediction | list[CommitteePrediction]:
    """Mean and spread of a committee's energy, forces and stress, all members in one compiled program.

    Args:
        members: from :func:`committee`.
        atoms: one structure or a sequence.
        dtype: "float32" or "float64", of the network's arithmetic; reference energies are added in float64.
        batch_atoms: several structures run together up to this number of atoms.

    Raises:
        ConfigError: ``members`` is one potential.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`.
    """
    check_committee(members)
    if are_several(atoms):
        return list(iter_committee(members, atoms, dtype=dtype, batch_atoms=batch_atoms))  # pyright: ignore[reportArgumentType]
    return _predict(members, [members.to_graph(atoms, dtype)], dtype)[0]  # pyright: ignore[reportArgumentType]


def iter_committee(
    members: Potential, frames: Iterable[ase.Atoms], *, dtype: str = "float32", batch_atoms: int = 1024
) -> Iterator[CommitteePrediction]:
    """As :func:`committee_predict` of a sequence, one by one: only the structures of one batch are in memory at a time."""
    check_committee(members)
    for graphs in members.iter_graphs(frames, dtype=dtype, batch_atoms=batch_atoms):
        yield from _predict(members, graphs, dtype)


def is_committee(potential: Potential) -> bool:
    """Whether a potential is several, with the members on a leading axis."""
    return np.ndim(potential.scale) == 1


def check_committee(members: Any) -> Potential:
    """``members``, a committee; ConfigError otherwise."""
    if not is_committee(check_potential(members, "members")):
        raise ConfigError("members: this is one potential; leignn_jax.committee makes one committee of several.")
    return members


def constants_by_number(members: Potential) -> np.ndarray:
    """``[members, 120]`` eV, each member's reference energy by atomic number."""
    table = np.zeros((len(np.asarray(members.scale)), 120))
    table[:, list(members.config.numbers)] = np.asarray(members.reference_energies, np.float64)
    return table


def _predict(members: Potential, graphs: list[Graph], dtype: str) -> list[CommitteePrediction]:
    with jax.enable_x64(dtype == "float64"):
        out = jax.device_get(_compute_all(without_constants(members), joined(graphs)))
    table = constants_by_number(members)
    starts = np.cumsum([0, *(graph.shape[0] for graph in graphs)])
    found = []
    for index, graph in enumerate(graphs):
        rows = slice(starts[index], starts[index + 1])
        constants = table[:, np.asarray(graph.numbers)].sum(1) + np.asarray(members.energy_shift, np.float64)
        energy = np.asarray(out.energy[:, index], np.float64) + constants
        forces, stress = (np.asarray(x, np.float64) for x in (out.forces[:, rows], out.stress[:, index]))
        check_finite(Prediction(float(energy.sum()), forces.sum(0), stress.sum(0), None, None))
        found.append(
            CommitteePrediction(
                float(energy.mean()), float(energy.std()), forces.mean(0), forces.std(0), stress.mean(0), stress.std(0)
            )
        )
    return found


@struct.dataclass
class CommitteeModel(Adds):
    """A committee's mean as an energy model, to simulate with in one program:
    ``leignn.simulate(CommitteeModel(members), ..., max_doubt=0.3)``. A pytree.

    members: from :func:`committee`.
    """

    members: Potential

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.members.cutoff

    def check(self, atoms: ase.Atoms) -> None:
        """ElementError for elements that the members do not know."""
        self.members.check_elements(atoms.numbers)

    def compute(self, graph: Graph) -> Prediction:
        """The mean over members of energy, forces and stress."""
        out = _compute_each(self.members, graph)
        return Prediction(out.energy.mean(0), out.forces.mean(0), out.stress.mean(0), None, None)

    def doubts(self, graph: Graph) -> Any:
        """``[atoms]`` eV/Å, the root of the summed variances of the components of each atom's force over members."""
        return signed_root(_compute_each(self.members, graph).forces.var(0).sum(-1))

    def without_constants(self) -> CommitteeModel:
        """See :func:`leignn_jax.simulation.model_sums.without_constants`."""
        return CommitteeModel(without_constants(self.members))

    def split_constants(self) -> tuple[CommitteeModel, np.ndarray, float]:
        """See :func:`leignn_jax.simulation.model_sums.split_constants`."""
        table = constants_by_number(self.members).mean(0)
        shift = float(np.asarray(self.members.energy_shift, np.float64).mean())
        return self.without_constants(), table, shift
