"""The compiled programs of a training: a step with the epoch's sums beside it, the evaluation, what ends an epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.data.batches import Batch, prefetch
from leignn_jax.errors import TrainingError
from leignn_jax.potential import Potential
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.dataset import ExampleSet
from leignn_jax.training.loss import LossKinds, LossWeights, metrics
from leignn_jax.training.optimizer import Hyperparameters, Plateau, plateau_step
from leignn_jax.training.parallel import DATA, SWEEP, shard_step
from leignn_jax.training.prepared import Prepared, evaluation_batches, train_batches
from leignn_jax.training.resident import ResidentFrames, take_batch
from leignn_jax.training.step import TrainState, evaluate_step, train_step


class CountedCompiles:
    """A jitted function that counts the shapes it was compiled for, and refuses more than were planned."""

    def __init__(self, function: Callable, planned: int, name: str, donate: tuple[int, ...] = ()):
        # On CPU giving buffers away saves nothing that matters and costs copies: a step took 1.6 times as long.
        self._jitted = jax.jit(function, donate_argnums=donate if jax.default_backend() != "cpu" else ())
        self._compiled: dict[Any, Any] = {}
        self.planned, self.name = planned, name

    def __call__(self, *args):
        key = tuple(x.shape for x in jax.tree.leaves(args))
        if key not in self._compiled:
            if len(self._compiled) >= self.planned:
                raise TrainingError(
                    f"{self.name} would be compiled for a {len(self._compiled) + 1}th shape; {self.planned} were planned. "
                    "This is a bug of leignn_jax: please report it with your data's sizes."
                )
            self._compiled[key] = self._jitted.lower(*args).compile()
        return self._compiled[key](*args)

    @property
    def count(self) -> int:
        return len(self._compiled)

    def memory_bytes(self) -> int | None:
        """The largest scratch memory of the compiled programs, where the backend tells."""
        analyses = [c.memory_analysis() for c in self._compiled.values()]
        sizes = [a.temp_size_in_bytes for a in analyses if a is not None]
        return max(sizes, default=None)

    def total_bytes(self) -> int:
        """The most memory that one of the compiled programs takes on a device, what it is given and gives included."""
        found = [c.memory_analysis() for c in self._compiled.values()]
        sizes = [
            a.temp_size_in_bytes + a.argument_size_in_bytes + a.output_size_in_bytes - a.alias_size_in_bytes
            for a in found
            if a is not None
        ]
        return max(sizes, default=0)


class Programs(NamedTuple):
    """What one model, or many side by side, are trained with; built once for all that have one config but for numbers.

    advance: ``(carry, item) -> (carry, shown)``, see :func:`advance`.
    steps: the same for steps of an epoch whose frames are on the device, see :func:`advance_steps`.
    evaluate: ``(potential, batch, weights)`` to sums of errors, see :func:`leignn_jax.training.step.evaluate_step`.
    after_epoch: steps each plateau and keeps parameters where they are the best, see :func:`after_epoch`.
    take, put: see :func:`take_member`, :func:`put_member`; a place is an argument, so that all have one program.
    """

    advance: CountedCompiles
    steps: CountedCompiles
    evaluate: CountedCompiles
    after_epoch: Callable
    take: Callable
    put: Callable

    @property
    def compiles(self) -> int:
        """How often a program that takes steps was compiled."""
        return self.advance.count + self.steps.count


def make_programs(config: TrainConfig, prepared: Prepared, mesh: Mesh | None, many: bool) -> Programs:
    """The programs of this config on the devices of ``mesh`` (None: one device); ``many`` have a leading axis of members."""
    kinds, algorithm = prepared.kinds(config), config.optimizer.algorithm
    axis = None if mesh is None else DATA
    step = partial(train_step, kinds=kinds, algorithm=algorithm, accumulate=config.data.accumulate, axis=axis)
    stepping: Callable = partial(advance, step=step, many=many, sweep=None if mesh is None else SWEEP)
    if mesh is not None:
        stepping = shard_step(stepping, mesh, members=many)
    sharding = None if mesh is None else NamedSharding(mesh, P(SWEEP) if many else P())
    evaluation = partial(evaluate_members if many else evaluate_step, kinds=kinds)
    return Programs(
        CountedCompiles(stepping, len(prepared.train.plan.shapes), "The train step", donate=(0,)),
        CountedCompiles(
            partial(advance_steps, advance=stepping, shapes=prepared.train.plan.shapes), 1, "The epoch", donate=(0,)
        ),
        CountedCompiles(evaluation, len(prepared.validation.plan.shapes), "The evaluation"),
        jax.jit(jax.vmap(after_epoch) if many else after_epoch, out_shardings=sharding),
        jax.jit(take_member, out_shardings=None if mesh is None else NamedSharding(mesh, P())),
        jax.jit(put_member, out_shardings=sharding),
    )


def advance(carry, item, *, step: Callable, many: bool = False, sweep: str | None = None):
    """One step, with the epoch's sums kept on the device, and what the host looks at two steps later.

    Args:
        carry: the state and the epoch's sums so far; of ``many`` members with a leading axis.
        item: the batch, what this device's process wishes (of several processes: a number that travels with the step, so
            that all learn the largest after the same one without waiting for each other), and what is added to the
            gradient (None: nothing).
        step: a :func:`train_step` with its static arguments bound.
        many: whether there is an axis of members; "failed" is then whether all have.
        sweep: the mesh's axis among whose devices members are divided.
    """
    batch, wish, added = item
    one = partial(_advance_one, step=step)
    if not many:
        carry, shown = one(carry, batch, added)
    else:
        carry, each = jax.vmap(one, in_axes=(0, None, None))(carry, batch, added)
        failed = each["failed"]
        shown = {"loss": jnp.where(failed, jnp.inf, each["loss"]).min(), "failed": failed.all()}
        if sweep is not None:
            shown = {k: jax.lax.pmin(v, sweep) for k, v in shown.items()}
    if wish is not None:
        shown["wish"] = jax.lax.pmax(wish, (DATA, SWEEP))
    return carry, shown


def advance_steps(carry, resident: ResidentFrames, frames, kinds, first, last, *, advance: Callable, shapes):
    """The steps of an epoch from ``first`` to ``last`` in one program, and what the last one showed.

    Args:
        carry: see :func:`advance`.
        resident: the training set.
        frames: ``[steps, graphs]`` or ``[steps, accumulate, graphs]`` int32, see :func:`step_frames`.
        kinds: ``[steps]`` int32, which of the shapes each step takes.
        first, last: int32.
        advance: :func:`advance` with its static arguments bound.
        shapes: of the plan (static).
    """

    def one(number, both):
        def with_shape(shape, carry):
            take = partial(take_batch, resident, shape=shape)
            chosen = frames[number]
            batch = take(chosen) if chosen.ndim == 1 else jax.vmap(take)(chosen)
            # What puts the batch together must not be fused with what reads it: a step rounds as it does by itself.
            carry, batch = jax.lax.optimization_barrier((carry, batch))
            return advance(carry, (batch, None, None))

        return jax.lax.switch(kinds[number], [partial(with_shape, shape) for shape in shapes], both[0])

    shown = {"loss": jnp.zeros((), jnp.float32), "failed": jnp.zeros((), bool)}
    return jax.lax.fori_loop(first, last, one, (carry, shown))


def _advance_one(carry, batch, added, *, step: Callable):
    state, running = carry
    before = state.step
    state, out = step(state, batch, added=added)
    good = state.step > before
    one = {"sums": out["sums"], "loss": out["loss"], "steps": jnp.ones((), jnp.float32)}
    last = {k: out[k] for k in ("gradient_norm", "learning_rate")}
    totals = jax.tree.map(lambda r, x: jnp.where(good, r + x, r), running["totals"], one)
    return (state, {"totals": totals, "last": last}), {"loss": out["loss"], "failed": state.failed_at >= 0}


def evaluate_members(potential: Potential, batch: Batch, weights: LossWeights, *, kinds: LossKinds) -> dict[str, Any]:
    """:func:`evaluate_step` of many on the same batch."""
    return jax.vmap(partial(evaluate_step, kinds=kinds), in_axes=(0, None, 0))(potential, batch, weights)


def after_epoch(plateau: Plateau, hyper: Hyperparameters, validation_loss, epochs, ema, best, better):
    """The plateau so many ``epochs`` on; and ``ema`` where it is ``better``, else ``best`` (both None: nothing is kept)."""
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), ema, best)
    return plateau_step(plateau, hyper, validation_loss, epochs), best


def take_member(tree: Any, place: Any) -> Any:
    """Of all members' arrays those of the one at a place."""
    return jax.tree.map(lambda x: x[place], tree)


def put_member(tree: Any, one: Any, place: Any) -> Any:
    """All members' arrays with those of one at a place."""
    return jax.tree.map(lambda x, new: x.at[place].set(new), tree, one)


def no_sums(state: TrainState, prepared: Prepared, config: TrainConfig):
    """An epoch's sums of one model before its first step."""
    _, batch = next(train_batches(prepared, config, 0, 0))
    if config.data.accumulate > 1:
        batch = jax.tree.map(lambda x: x[0], batch)
    # A step's sums are those of an evaluation, which is traced in a third of the time.
    evaluate = partial(evaluate_step, kinds=prepared.kinds(config))
    sums = jax.eval_shape(evaluate, state.potential, batch, state.hyper.final_weights)["sums"]
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    last = {name: jnp.zeros((), jnp.float32) for name in ("gradient_norm", "learning_rate")}
    zero = jnp.zeros((), jnp.float32)
    return {"totals": {"sums": sums, "loss": zero, "steps": zero}, "last": last}


def train_row(running) -> dict[str, Any]:
    """What an epoch's line says of its sums, which lie on the host."""
    totals, last = running["totals"], running["last"]
    return {
        "learning_rate": float(last["learning_rate"]),
        "gradient_norm": float(last["gradient_norm"]),
        "train_loss": float(totals["loss"]) / max(float(totals["steps"]), 1.0),
        **{f"train_{k}": v for k, v in metrics(totals["sums"]).items()},
    }


def evaluate(program: CountedCompiles, state: TrainState, examples: ExampleSet, place: Callable) -> Any:
    """Sums of loss and errors with averaged parameters over all examples, where the state lies; the loss with the final
    weights, so that epochs can be compared. ``place`` copies a batch there."""
    potential, weights = state.averaged(), state.hyper.final_weights
    total = None
    for batch in prefetch(evaluation_batches(examples)):
        found = program(potential, place(batch), weights)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total
