"""Committees: several potentials of one model on a leading axis, whose disagreement tells where they know little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from leignn_jax.arguments import check_sequence
from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential, check_potential


def committee(potentials: Sequence[Potential]) -> Potential:
    """Potentials of one model as one with the members on the leading axis of its arrays, to vmap over.

    See :func:`committee_predict`.
    """
    potentials = [
        check_potential(p, f"potentials[{i}]") for i, p in enumerate(check_sequence("potentials", potentials))
    ]
    if not potentials:
        raise ConfigError("A committee needs one potential or more.")
    configs = {p.config for p in potentials}
    if len(configs) != 1:
        raise ConfigError("A committee needs members of one model; these differ in their config.")
    first = potentials[0]
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


@jax.jit
def _compute_all(members: Potential, graph):
    return jax.vmap(lambda p: p.compute(graph))(members)


def committee_predict(members: Potential, atoms, *, dtype: str = "float32") -> CommitteePrediction:
    """Mean and spread of a committee's energy, forces and stress for one ``ase.Atoms``, in one compiled program.

    Args:
        members: from :func:`committee`.
        atoms: the structure.
        dtype: of the arithmetic; reference energies are added in float64.
    """
    check_potential(members, "members")
    if np.ndim(members.scale) != 1:
        raise ConfigError("members: this is one potential; leignn_jax.committee makes one committee of several.")
    graph = members.to_graph(atoms, dtype).pad_to_bucket()
    zero = members.replace(
        reference_energies=np.zeros_like(np.asarray(members.reference_energies)),
        energy_shift=np.zeros_like(np.asarray(members.energy_shift)),
    )
    with jax.enable_x64(dtype == "float64"):
        out = jax.device_get(_compute_all(zero, graph))
    count = len(atoms)
    places = [members.config.numbers.index(int(z)) for z in atoms.numbers]
    references = np.asarray(members.reference_energies, np.float64)[:, places].sum(1) + np.asarray(members.energy_shift)
    energy = np.asarray(out.energy[:, 0], np.float64) + references
    forces = np.asarray(out.forces[:, :count], np.float64)
    stress = np.asarray(out.stress[:, 0], np.float64)
    return CommitteePrediction(
        float(energy.mean()),
        float(energy.std()),
        forces.mean(0),
        forces.std(0),
        stress.mean(0),
        stress.std(0),
    )
