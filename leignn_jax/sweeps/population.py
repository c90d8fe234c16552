"""A population: many train states on a leading axis, one compiled step for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.arguments import check_sequence
from leignn_jax.data.batches import Batch
from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential, check_potential
from leignn_jax.training.loss import LossKinds
from leignn_jax.training.optimizer import plateau_step
from leignn_jax.training.step import TrainState, evaluate_step


class Population(NamedTuple):
    """States of all members and the best of each so far. A pytree whose leaves have the members as leading axis.

    state: see :class:`leignn_jax.training.step.TrainState`.
    best: averaged parameters of each member's best epoch.
    best_loss: ``[members]`` validation loss there.
    best_epoch: ``[members]`` int32, counted from 1; 0 before any.
    """

    state: TrainState
    best: Any
    best_loss: Any
    best_epoch: Any


def stack(states: Sequence[TrainState]) -> TrainState:
    """Several states of one model as one with a leading axis, on the host."""
    return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *states)


def start(states: Sequence[TrainState]) -> Population:
    """The population before its first step."""
    state, count = stack(states), len(states)
    return Population(state, state.ema, np.full(count, np.inf, np.float32), np.zeros(count, np.int32))


def population_step(state: TrainState, batch: Batch, *, step: Callable) -> tuple[TrainState, dict[str, Any]]:
    """One update of every member on the same batch; ``step`` is a :func:`train_step` with its static arguments bound."""
    return jax.vmap(step, in_axes=(0, None))(state, batch)


def population_evaluate(state: TrainState, batch: Batch, *, kinds: LossKinds) -> dict[str, Any]:
    """Error sums of every member's averaged parameters, with the final weights of its loss."""

    def one(state):
        return evaluate_step(state.averaged(), batch, state.hyper.final_weights, kinds=kinds)

    return jax.vmap(one)(state)


def population_epoch(population: Population, validation_loss, epoch) -> Population:
    """After an epoch: step every member's plateau, keep its parameters where they are its best."""
    state = population.state
    state = state.replace(plateau=jax.vmap(plateau_step)(state.plateau, state.hyper, validation_loss))
    alive = state.failed_at < 0
    better = alive & (validation_loss < population.best_loss)

    def choose(new, old):
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

    return Population(
        state=state,
        best=jax.tree.map(choose, state.ema, population.best),
        best_loss=choose(validation_loss, population.best_loss),
        best_epoch=jnp.where(better, epoch, population.best_epoch).astype(jnp.int32),
    )


def member(tree: Any, index: int) -> Any:
    """One member of anything with a leading axis."""
    return jax.tree.map(lambda x: x[index], tree)


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
