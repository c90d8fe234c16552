"""Gradients of many replicas: their mean and its standard error in one program, divided among devices.

Each device takes its replicas a few at a time and keeps running means and squares, so that memory does not grow with
their number; only these sums cross between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from leignn_jax.arguments import MOST_STEPS, check_choice, check_whole
from leignn_jax.differentiable.floats import split_floats, zero_of
from leignn_jax.differentiable.gradients import MODES, Mode, value_and_grad
from leignn_jax.differentiable.rollout import Segment
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import State, System

_REPLICAS = "replicas"


class MeanGradient(NamedTuple):
    """Means over replicas and their standard errors. A pytree.

    value, value_error: in the loss's unit. gradient, gradient_error: pytrees like the argument, per unit of its numbers.
    values: ``[replicas]`` of each; those of rollouts that were not valid are NaN, and so are then the means.
    """

    value: Any
    value_error: Any
    gradient: Any
    gradient_error: Any
    values: Any


def each_replica(system: System, state: State) -> tuple[System, State]:
    """System and state of n replicas as n of one, stacked along a leading axis: for :func:`mean_value_and_grad`.

    Raises:
        ConfigError: something in the state is not one per replica.
    """
    if not isinstance(system, System) or not isinstance(state, State):
        raise ConfigError("system and state must be what `start` returns, in this order.")
    count = state.energy.shape[0]

    def one_each(x):
        if jnp.ndim(x) == 0 or x.shape[0] != count:
            raise ConfigError(
                f"each_replica: an array of shape {list(jnp.shape(x))} of the ensemble's memory is not one per replica "
                f"({count})."
            )
        return x[:, None]

    apart = jax.tree.map(one_each, state.replace(step=None))
    return jax.tree.map(one_each, system), apart.replace(step=jnp.full(count, state.step))


def mean_value_and_grad(
    loss: Callable[..., Any],
    mode: Mode = "reverse",
    *,
    segment: Segment = "recursive",
    inputs_at_once: int = 8,
    at_once: int = 1,
    devices: Sequence[Any] | None = None,
) -> Callable[[Any, Any], MeanGradient]:
    """A function of an argument and replicas: the loss and its gradient by the argument, mean and error; compiled.

    >>> system, state = run.start(potential, [atoms] * 16, ensemble, temperature=300.0, seed=0)
    >>> def loss(potential, replica, rollout):
    ...     return rollout(potential, ensemble, *replica, 1.0, 100).state.energy[0]
    >>> found = run.mean_value_and_grad(loss)(potential, run.each_replica(system, state))

    Args:
        loss: ``(argument, replica, rollout) -> scalar``, as in :func:`leignn_jax.differentiable.value_and_grad`; ``replica``
            is one entry of the replicas.
        mode, segment, inputs_at_once: as there.
        at_once: replicas side by side on each device. More than one pays where one does not fill the device.
        devices: among which replicas are divided; None is as many of ``jax.devices()`` as their number can be divided by.

    Raises:
        ConfigError: as :func:`value_and_grad`; fewer than two replicas; a number of them that can't be divided.
    """
    check_choice("mode", mode, MODES)
    if not callable(loss):
        raise ConfigError(f"loss must be a function of argument, replica and rollout, not {type(loss).__name__}.")
    check_whole("inputs_at_once", inputs_at_once, 1, MOST_STEPS)
    check_whole("at_once", at_once, 1, MOST_STEPS)
    if devices is not None and (not isinstance(devices, Sequence) or isinstance(devices, str) or not devices):
        raise ConfigError("devices must be a list of devices, such as jax.devices(), or None.")

    def of_one(values, others, join, replica):
        def of_floats(values, rollout):
            return loss(join(values, others), replica, rollout)

        return value_and_grad(of_floats, mode, segment=segment, inputs_at_once=inputs_at_once)(values)

    @jax.jit
    def mean_value_and_gradient(argument, replicas):
        count = _count(replicas)
        mesh = _mesh(count, devices)
        share = count // mesh.size
        if share % at_once:
            raise ConfigError(f"at_once ({at_once}) must divide the {share} replicas of each device.")
        values, others, join = split_floats(argument)

        def on_device(values, others, replicas):
            batches = jax.tree.map(lambda x: x.reshape(share // at_once, at_once, *x.shape[1:]), replicas)

            def one_batch(sums, number_and_batch):
                number, batch = number_and_batch
                found = jax.vmap(partial(of_one, values, others, join))(batch)
                return _merged(sums, number * at_once, found), found[0]

            shape = jax.eval_shape(partial(of_one, values, others, join), jax.tree.map(lambda x: x[0], replicas))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
            numbers = jnp.arange(share // at_once)
            (mean, squares), each = jax.lax.scan(one_batch, (zeros, zeros), (numbers, batches))
            whole = jax.tree.map(lambda x: jax.lax.pmean(x, _REPLICAS), mean)
            apart = jax.tree.map(lambda q, x, m: q + share * (x - m) ** 2, squares, mean, whole)
            error = jax.tree.map(lambda q: jnp.sqrt(jax.lax.psum(q, _REPLICAS) / (count * (count - 1))), apart)
            return whole, error, each.reshape(-1)

        shared = jax.shard_map(
            on_device, mesh=mesh, in_specs=(P(), P(), P(_REPLICAS)), out_specs=(P(), P(), P(_REPLICAS)), check_vma=False
        )
        (value, gradient), (value_error, gradient_error), each = shared(values, others, replicas)
        no_gradient = [zero_of(x) for x in others]
        return MeanGradient(value, value_error, join(gradient, no_gradient), join(gradient_error, no_gradient), each)

    return mean_value_and_gradient


def _count(replicas: Any) -> int:
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(replicas)}
    if len(sizes) != 1 or sizes == {()}:
        raise ConfigError("Every array of replicas needs a leading axis of their number: see `each_replica`.")
    count = sizes.pop()[0]
    if count < 2:
        raise ConfigError(f"A mean and its error need two replicas or more, not {count}.")
    return count


def _mesh(count: int, devices: Sequence[Any] | None) -> Mesh:
    if devices is None:
        devices = jax.devices()[: math.gcd(count, jax.device_count())]
    if count % len(devices):
        raise ConfigError(f"{count} replicas can't be divided among {len(devices)} devices.")
    return Mesh(np.array(devices), (_REPLICAS,))


def _merged(sums, before, found):
    """Means and sums of squared deviations of ``before`` numbers, and of a batch of them along the leading axis too."""
    mean, squares = sums
    more = jax.tree.leaves(found)[0].shape[0]

    def merge(mean, squares, x):
        here = x.mean(0)
        share = jnp.asarray(more / (before + more), x.dtype)
        apart = ((x - here) ** 2).sum(0) + (here - mean) ** 2 * before * share
        return mean + (here - mean) * share, squares + apart

    both = jax.tree.map(merge, mean, squares, found)
    return jax.tree.transpose(jax.tree.structure(mean), jax.tree.structure((0, 0)), both)
