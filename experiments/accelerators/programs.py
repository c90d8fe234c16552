"""The programs whose speed matters, with arguments of real sizes: ``PROGRAMS[name](**settings)`` is a function and its
arguments, settings those of the model."""

from __future__ import annotations

from functools import partial

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

import leignn_jax as leignn
from leignn_jax.data.batches import Shape, collate, example, sizes_of
from leignn_jax.data.labels import read_labels
from leignn_jax.simulation import chunks
from leignn_jax.simulation.ensembles import NVE, CellRescaling, Langevin
from leignn_jax.training.config import make_config
from leignn_jax.training.loss import LossKinds
from leignn_jax.training.step import start_state, train_step

ELEMENTS = ("H", "C", "N", "O")
# Atoms of chignolin and of crambin with its ends, the sizes of the fastest published steps, and two crystals.
SIZES = (138, 1_206, 13_824, 80_000)


def molecule(atoms: int) -> ase.Atoms:
    """Atoms at the density of a folded protein, 0.1 per Å^3, none closer than 0.9 Å, in a box that is not periodic."""
    rng = np.random.default_rng(0)
    side = (atoms / 0.1) ** (1 / 3)
    points: list[np.ndarray] = []
    while len(points) < atoms:
        point = rng.random(3) * side
        if not points or (((np.array(points) - point) ** 2).sum(1) > 0.81).all():
            points.append(point)
    return ase.Atoms(rng.choice(ELEMENTS, atoms, p=[0.5, 0.32, 0.08, 0.1]), points)


def crystal(atoms: int) -> ase.Atoms:
    """Diamond's lattice with 0.1 atoms per Å^3 in four elements, near a cube."""
    cells = atoms // 8
    sides = next(
        (a, b, cells // (a * b))
        for a in range(round(cells ** (1 / 3)), 0, -1)
        if cells % a == 0
        for b in range(round((cells // a) ** 0.5), 0, -1)
        if (cells // a) % b == 0
    )
    made = ase.build.bulk("C", "diamond", a=80.0 ** (1 / 3), cubic=True) * sides
    made.numbers = np.resize([1, 6, 1, 7, 1, 6, 1, 8], len(made))
    made.rattle(0.02, seed=0)
    return made


def structure(atoms: int) -> ase.Atoms:
    return molecule(atoms) if atoms < 10_000 else crystal(atoms)


def potential(preset: str, **settings):
    model = leignn.preset(preset, elements=ELEMENTS, **settings)
    return leignn.Potential.create(
        model, jax.random.key(0), reference_energies=dict.fromkeys(ELEMENTS, -1.0), scale=0.5
    )


def forces(preset: str, atoms: int, **settings):
    model = potential(preset, **settings)
    graph = leignn.Graph.from_ase(structure(atoms), model.cutoff)
    return lambda model, graph: model.compute(graph)[:2], (model, graph)


def steps(preset: str, atoms: int, ensemble, replicas: int = 1, **settings):
    """A chunk of ten steps and a log line; the roofline takes one of its steps."""
    run = chunks.Run(
        potential(preset, **settings), [structure(atoms)] * replicas, ensemble, 1.0, 300.0, 0, 0.5, np.dtype("float32")
    )
    limits = chunks.Limits(*(jnp.float32(x) for x in chunks.LIMITS))
    arguments = run.arguments(run.stopped, np.full(replicas, -1, np.int32), limits, 10)
    return jax.jit(partial(chunks._chunk, log_every=10, logs=1, frames=1)), arguments


def training(preset: str, atoms: int, batch: int, members: int = 0, **settings):
    """A train step with force loss, of one model or of many side by side."""
    frames = []
    for seed in range(batch):
        one = structure(atoms)
        one.rattle(0.02, seed=seed)
        one.calc = SinglePointCalculator(one, energy=0.0, forces=np.zeros((atoms, 3)))
        frames.append(one)
    examples = [example(one, read_labels(one), 5.0, dict.fromkeys(ELEMENTS, -1.0)) for one in frames]
    sizes = sizes_of(examples)
    shape = Shape(int(sizes[:, 0].sum()), int(sizes[:, 1].sum()), int(sizes[:, 2].max()), len(examples))
    config = make_config({"optimizer": {"algorithm": "adam", "warmup_epochs": 0}})
    model = potential(preset, **settings)
    state = start_state(model, config.hyperparameters(10), config.optimizer.algorithm, ())
    step = partial(train_step, kinds=LossKinds(), algorithm=config.optimizer.algorithm)
    if members:
        state = jax.tree.map(lambda x: jnp.stack([x] * members), state)
        step = jax.vmap(step, in_axes=(0, None))
    return step, (state, collate(examples, shape))


PROGRAMS = {
    **{f"forces {preset} {atoms}": partial(forces, preset, atoms) for atoms in SIZES for preset in ("small", "medium")},
    "forces medium 13824, bfloat16 messages": partial(forces, "medium", 13_824, message_dtype="bfloat16"),
    "step nve medium 138": partial(steps, "medium", 138, NVE()),
    "step nve medium 1206": partial(steps, "medium", 1_206, NVE()),
    "step nve small 80000": partial(steps, "small", 80_000, NVE()),
    "step langevin small 21 x 64": partial(steps, "small", 21, Langevin(300.0), replicas=64),
    "step npt medium 13824": partial(steps, "medium", 13_824, CellRescaling(300.0)),
    "training medium 21 x 32": partial(training, "medium", 21, 32),
    "training small 21 x 5 of 16": partial(training, "small", 21, 5, members=16),
}
