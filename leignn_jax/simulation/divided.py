"""Replicas divided among devices, each of which runs whole chunks of steps on its own; nothing crosses within a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.errors import ConfigError
from leignn_jax.simulation.biases import Bias
from leignn_jax.simulation.dynamics import State
from leignn_jax.simulation.ensembles import Ramp

# The mesh's axis.
DEVICES = "devices"


def device_mesh(devices: int, replicas: int) -> Mesh | None:
    """The devices among which replicas are divided; None where there is one. ConfigError where they can't be."""
    if devices == 1:
        return None
    there = jax.devices()
    if devices > len(there):
        raise ConfigError(
            f"devices: {devices} were asked for and there are {len(there)} ({there[0].platform}). On CPU, "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones."
        )
    if replicas % devices:
        raise ConfigError(
            f"devices: {replicas} can't be divided among {devices} devices. One system runs on one device; simulate a "
            f"multiple of {devices} replicas."
        )
    return Mesh(np.array(there[:devices]), (DEVICES,))


def on_every_device(mesh: Mesh, tree: Any) -> Any:
    """Arrays copied once to all devices of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


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
    """A chunk's ``steps`` with its arguments' replicas divided along the mesh.

    arguments: of the chunk: model, ensemble, system, (state, stopped, stopped_at), dt, center, limits, last_step, doomed.
    saved, logged: names of what frames and log lines hold.
    """
    model, ensemble, _, (_, stopped, _), *_ = arguments
    count, each, rows = stopped.shape[0], P(DEVICES), P(None, DEVICES)
    of_model = jax.tree.map(lambda x: _lies(x, count) if _is_bias(x) else P(), model, is_leaf=_is_bias)
    fields: dict[str, Any] = dict.fromkeys(State.__dataclass_fields__, each)
    carry = (State(**{**fields, "step": P()}), each, each)
    same = {"step": P(), "moved": P()}
    return jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(of_model, _lies(ensemble, count), each, carry, P(), each, P(), P(), each),
        out_specs=(
            carry,
            {**dict.fromkeys(saved, rows), "stopped": rows, **same},
            {**dict.fromkeys(logged, rows), "stopped": rows, **same},
        ),
        check_vma=False,
    )


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
