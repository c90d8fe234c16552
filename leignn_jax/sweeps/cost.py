"""What a model's evaluation takes: the price of accuracy in a study of several shapes."""

from __future__ import annotations

import statistics
import time

import jax

from leignn_jax.training.prepared import Prepared, evaluation_batches

_TURNS = 7


def microseconds_per_atom(prepared: Prepared) -> float:
    """Time of energy, forces and stress of a batch of validation frames by one model, over its atoms: what a step of
    dynamics costs beside its neighbour list. The median of seven, compiling left out."""
    batch = next(evaluation_batches(prepared.validation))
    network, _ = prepared.potential.split_references()
    evaluate = jax.jit(lambda potential, graph: potential.compute(graph))
    jax.block_until_ready(evaluate(network, batch.graph))
    taken = []
    for _ in range(_TURNS):
        begun = time.perf_counter()
        jax.block_until_ready(evaluate(network, batch.graph))
        taken.append(time.perf_counter() - begun)
    atoms = int(jax.device_get(batch.graph.numbers > 0).sum())
    return 1e6 * statistics.median(taken) / atoms
