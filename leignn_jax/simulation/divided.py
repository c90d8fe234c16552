"""Simulations on several devices.

Replicas are divided among them: each device runs whole chunks of steps on its own, and nothing crosses within a step. One
system is divided by its atoms (:mod:`leignn_jax.domains`): every device has the whole state and moves all atoms alike, and
each has the pairs and computes the energies of its own; forces are summed over all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.device_neighbors import NeighborList, blank_list, renewed_each
from leignn_jax.domains import DEVICES
from leignn_jax.errors import ConfigError
from leignn_jax.list_sizes import ListSizes, plan_sizes
from leignn_jax.potential import Potential
from leignn_jax.processes import place
from leignn_jax.simulation.biases import Bias
from leignn_jax.simulation.dynamics import State, System, evaluate
from leignn_jax.simulation.ensembles import Ramp
from leignn_jax.simulation.model_sums import ModelSum
from leignn_jax.simulation.own_models import AtomEnergy, PairEnergy
from leignn_jax.simulation.simple_models import LennardJones

# What reaches beyond an atom's neighbours by its graph's methods alone.
_DIVISIBLE = (Potential, PairEnergy, AtomEnergy, LennardJones, Bias)


def device_mesh(devices: int, replicas: int) -> Mesh | None:
    """The devices of a simulation; None where there is one. ConfigError where replicas can't be divided among them."""
    if devices == 1:
        return None
    there = jax.devices()
    if devices > len(there):
        raise ConfigError(
            f"devices: {devices} were asked for and there are {len(there)} ({there[0].platform}). On CPU, "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones."
        )
    if replicas > 1 and replicas % devices:
        raise ConfigError(
            f"devices: {replicas} replicas can't be divided among {devices} devices. Simulate one system, or a multiple of "
            f"{devices} replicas."
        )
    return Mesh(np.array(there[:devices]), (DEVICES,))


def check_domains(model: Any, atoms: ase.Atoms, devices: int) -> None:
    """ConfigError where one system can't be divided among so many devices, or not with this model."""
    if len(atoms) < devices:
        raise ConfigError(
            f"devices: {len(atoms)} atoms can't be divided among {devices} devices; take at most {len(atoms)}."
        )
    for part in model.parts if isinstance(model, ModelSum) else (model,):
        if not isinstance(part, _DIVISIBLE):
            names = ", ".join(one.__name__ for one in _DIVISIBLE)
            raise ConfigError(
                f"devices: {type(part).__name__} may read atoms of other devices, so that one system can't be divided with "
                f"it ({names} and their sums can). Take one device, or replicas."
            )


def divided_lists(
    numbers, positions, cell, pbc, cutoff: float, skin: float, dtype: Any, sizes: ListSizes | None, mesh: Mesh
) -> NeighborList:
    """The lists of one system's domains, the first axis that of devices; arguments as of
    :func:`leignn_jax.simulation.dynamics.make_lists`."""
    (numbers,), (positions,), (cell,), (pbc,) = (np.asarray(x) for x in (numbers, positions, cell, pbc))
    sizes = sizes or plan_sizes(positions, cell, pbc, cutoff + skin, mesh.size)
    before = blank_list(positions, cell, pbc, numbers, cutoff, skin, sizes=sizes, dtype=dtype)
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (mesh.size, *x.shape)), before)
    return _renew_divided(place(NamedSharding(mesh, P(DEVICES)), copies), mesh=mesh)


@partial(jax.jit, static_argnames="mesh")
def _renew_divided(neighbors: NeighborList, *, mesh: Mesh) -> NeighborList:
    each = P(DEVICES)
    return jax.shard_map(renewed_each, mesh=mesh, in_specs=each, out_specs=each, check_vma=False)(neighbors)


@partial(jax.jit, static_argnames="mesh")
def evaluate_divided(model: Any, system: System, neighbors: NeighborList, positions, cell, *, mesh: Mesh):
    """:func:`leignn_jax.simulation.dynamics.evaluate` of one system that is divided among devices."""
    specs = (P(), P(), P(DEVICES), P(), P())
    return jax.shard_map(evaluate, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        model, system, neighbors, positions, cell
    )


def check_memory(state: State) -> None:
    """ConfigError where what the ensemble remembers is not one per replica."""
    count = state.energy.shape[0]
    for where, x in jax.tree_util.tree_flatten_with_path(state.bath)[0]:
        if jnp.ndim(x) == 0 or x.shape[0] != count:
            raise ConfigError(
                f"devices: the ensemble's memory{jax.tree_util.keystr(where)} of shape {list(jnp.shape(x))} is not one per "
                "replica and can't be divided among devices. Take one device."
            )


def divided(steps: Callable[..., Any], mesh: Mesh, arguments, saved: Sequence[str], logged: Sequence[str]):
    """A chunk's ``steps`` with its arguments' replicas, or the lists of its one system, divided along the mesh.

    saved, logged: names of what frames and log lines hold.
    """
    given, rows, same = _specs(arguments), P(None, DEVICES), {"step": P(), "moved": P()}
    frames: Any = {**dict.fromkeys(saved, rows), "stopped": rows, **same}
    lines: Any = {**dict.fromkeys(logged, rows), "stopped": rows, **same}
    if _count(arguments) == 1:
        frames = lines = P()
    _, _, _, carry, *_ = given
    return jax.shard_map(steps, mesh=mesh, in_specs=given, out_specs=(carry, frames, lines), check_vma=False)


def placed(arguments, mesh: Mesh):
    """A chunk's arguments where :func:`divided` wants them; those that are there already, as a chunk leaves them, stay."""

    def one(spec, tree):
        return place(NamedSharding(mesh, spec), tree)

    return jax.tree.map(one, _specs(arguments), arguments, is_leaf=lambda x: isinstance(x, P))


def _count(arguments) -> int:
    """How many replicas there are in a chunk's arguments."""
    _, _, _, (_, stopped, _), *_ = arguments
    return stopped.shape[0]


def _specs(arguments):
    """Of a chunk's arguments what is divided along the mesh; a prefix of them.

    arguments: model, ensemble, system, (state, stopped, stopped_at), dt, center, limits, last_step, doomed.
    """
    model, ensemble, *_ = arguments
    count, each = _count(arguments), P(DEVICES)
    fields: dict[str, Any] = dict.fromkeys(State.__dataclass_fields__, P() if count == 1 else each)
    if count == 1:
        return (*[P()] * 3, (State(**{**fields, "neighbors": each}), P(), P()), *[P()] * 5)
    state = State(**{**fields, "step": P()})
    of_model = jax.tree.map(lambda x: _lies(x, count) if _is_bias(x) else P(), model, is_leaf=_is_bias)
    return (of_model, _lies(ensemble, count), each, (state, each, each), P(), each, P(), P(), each)


def _is_bias(part: Any) -> bool:
    return isinstance(part, Bias)


def _is_ramp(part: Any) -> bool:
    return isinstance(part, Ramp)


def _lies(tree: Any, replicas: int) -> Any:
    """Where numbers of an ensemble or a bias lie: those that are one per replica with these, all others on every device.

    What a collective variable holds is never one per replica, whatever its length: it is mapped over them.
    """

    def lies(where, x):
        of_variable = any(getattr(key, "name", None) == "variable" for key in where)
        alone = of_variable or _is_ramp(x) or jnp.ndim(x) == 0 or jnp.shape(x)[0] != replicas
        return P() if alone else P(DEVICES)

    return jax.tree_util.tree_map_with_path(lies, tree, is_leaf=_is_ramp)
