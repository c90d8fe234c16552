"""The optimizer, with every number an array: a sweep may give each member its own."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from optax.contrib import MuonDimensionNumbers, muon

from leignn_jax.training.loss import LossWeights

Algorithm = Literal["adam", "amsgrad", "muon"]


@struct.dataclass
class Hyperparameters:
    """Every number of a training that a sweep may vary; all leaves are float32 arrays, scalar for a single run.

    learning_rate: the largest of the schedule.
    warmup_steps: the learning rate grows in a straight line over these steps.
    decay_steps: then it falls along a cosine until this step; infinity never.
    final_fraction: of the learning rate at the end of the cosine.
    plateau_factor: the learning rate is multiplied by this when the validation loss has not fallen ...
    plateau_patience: ... for more than these epochs; infinity never.
    beta1, beta2, epsilon: of Adam; with Muon of what Adam is left.
    weight_decay: decoupled (AdamW), on matrices alone.
    clip_norm: largest global norm of the gradient.
    ema_decay: of the running mean of the parameters that is evaluated and saved.
    weights: of the loss at the start.
    final_weights: of the loss at the end; between the steps ``ramp_start`` and ``ramp_end`` one turns into the other.
    """

    learning_rate: Any
    warmup_steps: Any
    decay_steps: Any
    final_fraction: Any
    plateau_factor: Any
    plateau_patience: Any
    beta1: Any
    beta2: Any
    epsilon: Any
    weight_decay: Any
    clip_norm: Any
    ema_decay: Any
    weights: LossWeights
    final_weights: LossWeights
    ramp_start: Any
    ramp_end: Any


@struct.dataclass
class Plateau:
    """Where reduce-on-plateau stands: the factor reached, the best validation loss, epochs since."""

    factor: Any
    best: Any
    waited: Any

    @classmethod
    def start(cls) -> Plateau:
        return cls(jnp.float32(1.0), jnp.float32(jnp.inf), jnp.float32(0.0))


def plateau_step(plateau: Plateau, hyper: Hyperparameters, validation_loss, epochs=1.0) -> Plateau:
    """Reduce-on-plateau after a validation that comes so many ``epochs`` after the one before."""
    better = validation_loss < plateau.best
    waited = jnp.where(better, 0.0, plateau.waited + epochs)
    reduce = waited > hyper.plateau_patience
    return Plateau(
        factor=jnp.where(reduce, plateau.factor * hyper.plateau_factor, plateau.factor),
        best=jnp.where(better, validation_loss, plateau.best),
        waited=jnp.where(reduce, 0.0, waited),
    )


def learning_rate(hyper: Hyperparameters, plateau: Plateau, step):
    """Warm-up, then cosine, times the plateau's factor."""
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1.0) / jnp.maximum(hyper.warmup_steps, 1.0))
    length = jnp.maximum(hyper.decay_steps - hyper.warmup_steps, 1.0)
    # Infinity over infinity is no number: a schedule without end stays at the start.
    done = jnp.where(jnp.isinf(length), 0.0, jnp.clip((step - hyper.warmup_steps) / length, 0.0, 1.0))
    cosine = hyper.final_fraction + (1.0 - hyper.final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return hyper.learning_rate * warm * cosine * plateau.factor


def loss_weights(hyper: Hyperparameters, step) -> LossWeights:
    """The weights of the loss at a step, between first and final ones."""
    step = jnp.asarray(step, jnp.float32)
    length = jnp.maximum(hyper.ramp_end - hyper.ramp_start, 1.0)
    done = jnp.where(jnp.isinf(hyper.ramp_start), 0.0, jnp.clip((step - hyper.ramp_start) / length, 0.0, 1.0))
    return jax.tree.map(lambda a, b: a + done * (b - a), hyper.weights, hyper.final_weights)


def transformation(hyper: Hyperparameters, algorithm: Algorithm) -> optax.GradientTransformation:
    """Clipping, the algorithm, decoupled weight decay; to be built inside the traced step. The learning rate comes after."""
    adam = {"b1": hyper.beta1, "b2": hyper.beta2, "eps": hyper.epsilon}
    if algorithm == "muon":
        scaled = _muon(hyper)
    else:
        scaled = optax.scale_by_adam(**adam) if algorithm == "adam" else optax.scale_by_amsgrad(**adam)
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip_norm),
        scaled,
        optax.add_decayed_weights(hyper.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    )


def _muon(hyper: Hyperparameters) -> optax.GradientTransformation:
    """Muon for matrices between features, Adam (with Nesterov's step) for all else: embeddings, biases, the last row.

    An update of a matrix has all its singular values alike, and the root mean square of Adam's, 0.2, so that one learning
    rate does for both (K. Jordan et al. 2024; Liu et al., arXiv:2502.16982). Matrices of one shape are one array: a seventh
    of the products, each of many matrices.
    """

    def kinds(arrays):
        together = dict.fromkeys(arrays["matrices"], MuonDimensionNumbers(reduction_axis=1, output_axis=2))
        return {"matrices": together, "others": dict.fromkeys(arrays["others"])}

    scaled = muon(
        1.0,
        adam_b1=hyper.beta1,
        adam_b2=hyper.beta2,
        eps=hyper.epsilon,
        muon_weight_dimension_numbers=kinds,
        consistent_rms=0.2,
    )

    def init(params):
        return scaled.init(_by_shape(params))

    def update(updates, state, params=None):
        found: Any
        # The same numbers on every device; matrices of features are small.
        with jax.default_matmul_precision("highest"):
            found, state = scaled.update(_by_shape(updates), state, None if params is None else _by_shape(params))
        return _as_tree(found, updates), state

    # Muon gives what is to be added; here updates are what is taken off.
    return optax.chain(optax.GradientTransformation(init, update), optax.scale(-1.0))


def _shape_of_matrix(path, array) -> str | None:
    """The shape of a matrix between features in words; None of all else."""
    named = "embedding" in jax.tree_util.keystr(path)
    return None if named or array.ndim != 2 or min(array.shape) == 1 else f"{array.shape[0]} x {array.shape[1]}"


def _by_shape(tree: Any) -> dict[str, dict[str, Any]]:
    """The "matrices" of each shape ``[count, rows, columns]``, and the "others" by where they are in the tree."""
    matrices: dict[str, list[Any]] = {}
    others: dict[str, Any] = {}
    for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        shape = _shape_of_matrix(path, array)
        if shape is None:
            others[jax.tree_util.keystr(path)] = array
        else:
            matrices.setdefault(shape, []).append(array)
    return {"matrices": {shape: jnp.stack(found) for shape, found in matrices.items()}, "others": others}


def _as_tree(arrays: dict[str, dict[str, Any]], like: Any) -> Any:
    """What :func:`_by_shape` put together, as the tree it was."""
    left = {shape: iter(jnp.unstack(found)) for shape, found in arrays["matrices"].items()}

    def one(path, array):
        shape = _shape_of_matrix(path, array)
        return arrays["others"][jax.tree_util.keystr(path)] if shape is None else next(left[shape])

    return jax.tree_util.tree_map_with_path(one, like)
