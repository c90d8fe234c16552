"""Several devices: a mesh with the axes "sweep" (members of a population) and "data" (batches of one update)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.errors import ConfigError
from leignn_jax.processes import place

SWEEP, DATA = "sweep", "data"


def make_mesh(sweep: int = 1, data: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of ``sweep * data`` devices, all hosts' together; raises ConfigError where there are fewer.

    Args:
        sweep: devices among which the members of a population are divided.
        data: devices among which the batches of one update are divided.
        devices: to take; None is ``jax.devices()``.
    """
    devices = list(jax.devices() if devices is None else devices)
    if sweep * data > len(devices):
        raise ConfigError(
            f"A mesh of {sweep} x {data} needs {sweep * data} devices; there are {len(devices)} ({devices[0].platform}). On "
            "CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones."
        )
    return Mesh(np.array(devices[: sweep * data]).reshape(sweep, data), (SWEEP, DATA))


def place_state(mesh: Mesh, state: Any, *, members: bool = False) -> Any:
    """Copy a state to the mesh: its members divided along "sweep", or whole on every device."""
    return place(NamedSharding(mesh, P(SWEEP) if members else P()), state)


def own_parts(mesh: Mesh) -> list[int]:
    """Positions along "data" at which this process has devices, ascending; with one process all of them."""
    me = jax.process_index()
    return [i for i, column in enumerate(mesh.devices.T) if any(device.process_index == me for device in column)]


def place_batch(mesh: Mesh, parts: Any) -> Any:
    """Copy batches, stacked on a leading axis, to their devices.

    The leading axis is as long as :func:`own_parts`: each of several processes makes and hands over its own parts only.
    """
    sharding = NamedSharding(mesh, P(DATA))
    position = {part: i for i, part in enumerate(own_parts(mesh))}

    def place(x: np.ndarray) -> jax.Array:
        def part(index) -> np.ndarray:
            return x[position[index[0].start or 0]][None]

        return jax.make_array_from_callback((mesh.shape[DATA], *x.shape[1:]), sharding, part)

    return jax.tree.map(lambda x: place(np.asarray(x)), parts)


def place_answers(mesh: Mesh, answer: int) -> jax.Array:
    """``[devices]`` int32 on the mesh's devices: on each what its process says."""
    sharding = NamedSharding(mesh, P((DATA, SWEEP)))
    return jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.full(1, answer, np.int32))


def on_own_device(tree: Any) -> Any:
    """What is whole on every device of a mesh, as it lies on this process's first one; nothing is copied."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def shard_step(step: Callable, mesh: Mesh, *, members: bool = False) -> Callable:
    """``step(carry, item) -> (carry, seen)`` on a mesh, where ``step`` averages over the axis "data" itself.

    What is seen is the same on every device. The carry is whole on every device, or with ``members`` divided along
    "sweep". An item is a batch, whose parts lie on a leading axis (:func:`place_batch`), what each device's process says
    (:func:`place_answers`, or None), and what is the same for all. Every device runs the step on its own part; only
    gradients cross, so no gather of a graph ever does.
    """
    state, item = P(SWEEP) if members else P(), (P(DATA), P((DATA, SWEEP)), P())

    def local(carry, item):
        *parts, same = item
        return step(carry, (*jax.tree.map(lambda x: x[0], parts), same))

    return jax.shard_map(local, mesh=mesh, in_specs=(state, item), out_specs=(state, P()), check_vma=False)
