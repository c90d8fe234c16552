"""The train step: ``(state, batch) -> (state, metrics)``, a pure function to jit, vmap and shard."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from leignn_jax.data.batches import Batch
from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential
from leignn_jax.training.loss import LossKinds, LossWeights, errors, loss, loss_terms, metric_sums
from leignn_jax.training.optimizer import (
    Algorithm,
    Hyperparameters,
    Plateau,
    learning_rate,
    loss_weights,
    transformation,
)


@struct.dataclass
class TrainState:
    """Everything that training changes, and the numbers it obeys. A pytree of arrays.

    potential: without reference energies, which the labels lack too; float32.
    ema: running mean of the network's parameters, what is evaluated and saved.
    moments: the optimizer's state.
    step: int32, updates done.
    plateau: see :class:`leignn_jax.training.optimizer.Plateau`.
    hyper: see :class:`leignn_jax.training.optimizer.Hyperparameters`.
    trainable: a tree like the parameters of 0 (frozen) and 1.
    failed_at: int32, the step whose loss or gradient was no finite number, or -1; from then on nothing changes.
    """

    potential: Potential
    ema: Any
    moments: Any
    step: Any
    plateau: Plateau
    hyper: Hyperparameters
    trainable: Any
    failed_at: Any

    def averaged(self) -> Potential:
        """The potential with averaged parameters."""
        return self.potential.replace(params=self.ema)


def start_state(
    potential: Potential, hyper: Hyperparameters, algorithm: Algorithm, freeze: Sequence[str] = ()
) -> TrainState:
    """The state before the first step; raises ConfigError where a pattern of ``freeze`` fits no parameter.

    Args:
        potential: to start from; its reference energies and shift are left out.
        hyper: numbers of the training.
        algorithm: "adam", "amsgrad" or "muon".
        freeze: patterns of parameters to keep as they are, such as ``embedding`` or ``messages_0/*``.
    """
    network, _ = potential.split_references()
    network = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), network)
    params = network.params
    return TrainState(
        potential=network,
        # Copies: the step donates its state, and one buffer can't be given away twice.
        ema=jax.tree.map(jnp.array, params),
        moments=transformation(hyper, algorithm).init(params),
        step=jnp.int32(0),
        plateau=Plateau.start(),
        hyper=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper),
        trainable=_trainable(params, freeze),
        failed_at=jnp.int32(-1),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    kinds: LossKinds,
    algorithm: Algorithm,
    accumulate: int = 1,
    axis: str | None = None,
    added: Any = None,
):
    """One update.

    A loss or gradient that is not finite leaves the state as it was but for ``failed_at``; such a member of a
    population stands still while the others go on.

    Args:
        state: before.
        batch: with ``accumulate > 1`` that many batches on a leading axis, whose gradients are averaged.
        kinds: how errors are measured (static).
        algorithm: of :func:`start_state` (static).
        accumulate: batches per update (static).
        axis: name of a mesh axis over whose devices gradients are averaged, each device having its own batch (static).
        added: the gradient of what the loss has beside frames, a tree like the parameters.

    Returns:
        The state after, and metrics: ``loss``, ``gradient_norm``, ``learning_rate`` and error sums.
    """
    hyper = state.hyper
    weights = loss_weights(hyper, state.step)

    def objective(params, batch):
        return loss(state.potential.replace(params=params), batch, weights, kinds)

    gradient_of = jax.value_and_grad(objective, has_aux=True)
    params = state.potential.params
    if accumulate == 1:
        (value, sums), gradient = gradient_of(params, batch)
    else:

        def add(total, one):
            return jax.tree.map(jnp.add, total, gradient_of(params, one)), None

        shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], batch))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        ((value, sums), gradient), _ = jax.lax.scan(add, zero, batch)
        value, gradient = value / accumulate, jax.tree.map(lambda g: g / accumulate, gradient)
    if axis is not None:
        value, gradient = jax.lax.pmean((value, gradient), axis)
        sums = jax.lax.psum(sums, axis)

    if added is not None:
        gradient = jax.tree.map(jnp.add, gradient, added)
    gradient = jax.tree.map(jnp.multiply, gradient, state.trainable)
    norm = optax.global_norm(gradient)
    rate = learning_rate(hyper, state.plateau, state.step)
    updates, moments = transformation(hyper, algorithm).update(gradient, state.moments, params)
    updates = jax.tree.map(lambda u, t: -rate * t * u, updates, state.trainable)
    new_params = optax.apply_updates(params, updates)
    # The mean forgets its start: a decay of 0.999 would else remember the first parameters for thousands of steps.
    decay = jnp.minimum(hyper.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema, new_params)

    good = jnp.isfinite(value) & jnp.isfinite(norm) & (state.failed_at < 0)
    after = state.replace(
        potential=state.potential.replace(params=new_params), ema=ema, moments=moments, step=state.step + 1
    )
    after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
    failed_at = jnp.where(good | (state.failed_at >= 0), state.failed_at, state.step)
    return after.replace(failed_at=failed_at), {
        "loss": value,
        "gradient_norm": norm,
        "learning_rate": rate,
        "sums": sums,
    }


def evaluate_step(potential: Potential, batch: Batch, weights: LossWeights, *, kinds: LossKinds) -> dict[str, Any]:
    """Sums of errors of one batch, and the parts of its loss, all to be added over batches; nothing is changed."""
    found = errors(potential, batch, kinds)
    return {"sums": metric_sums(batch, *found), "terms": loss_terms(potential, batch, *found, weights, kinds)}


def _trainable(params, freeze: Sequence[str]):
    flat = flatten_dict(params, sep="/")
    for pattern in freeze:
        if not any(_fits(name, pattern) for name in flat):
            raise ConfigError(f"freeze: {pattern!r} fits no parameter. There are: {', '.join(sorted(flat))}.")
    mask = {name: np.float32(not any(_fits(name, p) for p in freeze)) for name in flat}
    return unflatten_dict({k: jnp.asarray(v) for k, v in mask.items()}, sep="/")


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern.rstrip("/") + "/") or fnmatch.fnmatch(name, pattern)
