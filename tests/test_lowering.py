"""What the hot programs become on TPU and GPU, read without either: only operations that are fast there, in float32.

Lowering is for the platform that is named and needs no device. Renewals of neighbour lists, which sort and which happen
once in ten steps or so, are functions of their own and not looked at.
"""

from collections import Counter
from functools import partial

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.batches import Shape, collate, example, sizes_of
from leignn_jax.data.labels import read_labels
from leignn_jax.properties.second_derivatives import second_derivatives
from leignn_jax.simulation import chunks
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover
from leignn_jax.training.config import make_config
from leignn_jax.training.loss import LossKinds
from leignn_jax.training.step import start_state, train_step

PLATFORMS = ("tpu", "cuda", "rocm")

SLOW = {"scatter", "select_and_scatter", "sort", "triangular_solve", "cholesky", "fft", "infeed", "outfeed"}


def operations(traced, platform: str):
    """Every operation that runs of a traced program lowered for a platform, functions it calls included."""
    module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {str(f.attributes["sym_name"]).strip('"'): f for f in module.body.operations}

    def walk(operation):
        for region in operation.regions:
            for block in region:
                for one in block:
                    name = one.operation.name
                    yield one.operation
                    yield from walk(one.operation)
                    called = str(one.attributes["callee"]).lstrip("@") if name == "func.call" else "renewed"
                    if not called.startswith("renewed"):
                        yield from walk(functions[called])

    yield from walk(functions["main"])


def check(traced, platform: str) -> Counter:
    """No slow operation, no library, no float64, no product of fewer digits; how often there is which operation."""
    found = Counter()
    for one in operations(traced, platform):
        name = one.name.removeprefix("stablehlo.")
        found[name] += 1
        assert name not in SLOW, one.location
        if name == "custom_call":
            # Which axis lies innermost; that is a hint and no call.
            assert "LayoutConstraint" in str(one.attributes["call_target_name"]), one.location
        if name == "dot_general":
            assert "HIGHEST" in str(one.attributes["precision_config"]), one.location
        assert not any("f64" in str(x.type) for x in one.results), one.location
    return found


def potential(**settings):
    model = leignn.preset("small", elements=("Cu",), features=16, **settings)
    return leignn.Potential.create(model, jax.random.key(0), reference_energies={"Cu": -1.0}, scale=0.5)


@pytest.fixture(scope="module")
def crystal():
    atoms = ase.build.bulk("Cu", cubic=True) * 2
    atoms.rattle(0.05, seed=0)
    return atoms


def of_potential(atoms, graphs: int, **settings):
    model = potential(**settings)
    graph = leignn.Graph.batch([leignn.Graph.from_ase(atoms, model.cutoff)] * graphs)
    return jax.jit(lambda model, graph: model.compute(graph)[:3]).trace(model, graph)


def of_hessian(atoms):
    model = potential()
    graph = leignn.Graph.from_ase(atoms, model.cutoff)
    return jax.jit(second_derivatives).trace(model, graph, np.arange(3))


def of_training(members: int, **settings):
    kinds = LossKinds(with_stress=True)
    config = make_config({"optimizer": {"warmup_epochs": 0}, "loss": {"stress_weight": 0.5}})
    examples = [example(a, read_labels(a), 5.0, {"Cu": -1.0}) for a in copper(4, sizes=((1, 1, 1), (2, 1, 1)))]
    sizes = sizes_of(examples)
    shape = Shape(int(sizes[:, 0].sum()), int(sizes[:, 1].sum()), int(sizes[:, 2].max()), len(examples))
    state = start_state(potential(**settings), config.hyperparameters(10), config.optimizer.algorithm, ())
    step = partial(train_step, kinds=kinds, algorithm=config.optimizer.algorithm)
    if members:
        state = jax.tree.map(lambda x: jnp.stack([x] * members), state)
        step = jax.vmap(step, in_axes=(0, None))
    return jax.jit(step).trace(state, collate(examples, shape))


def of_simulation(atoms, ensemble, replicas: int):
    run = chunks.Run(potential(), [atoms] * replicas, ensemble, 1.0, 300.0, 0, 0.5, np.dtype("float32"))
    limits = chunks.Limits(*(jnp.float32(x) for x in chunks.LIMITS))
    given = run.arguments(run.stopped, np.full(replicas, -1, np.int32), limits, 10)
    return chunks._chunk.trace(*given, log_every=10, logs=1, frames=1)


def of_rollout(atoms):
    model = potential()
    run = leignn.differentiable
    system, state = run.start(model, atoms, NVE(), temperature=300.0)

    def loss(velocities, rollout):
        out = rollout(model, NVE(), system, state.replace(velocities=velocities), 1.0, 20)
        return (out.state.positions**2).mean()

    return run.value_and_grad(loss).trace(state.velocities)


PROGRAMS = {
    "energy, forces, stress": lambda atoms: of_potential(atoms, 1),
    "of a batch": lambda atoms: of_potential(atoms, 3),
    "with tensors": lambda atoms: of_potential(atoms, 1, tensor_features=8),
    "of higher order": lambda atoms: of_potential(atoms, 1, variant="higher_order"),
    "hessian": of_hessian,
    "training": lambda _: of_training(0),
    "training of 4 members": lambda _: of_training(4),
    "training with tensors": lambda _: of_training(0, tensor_features=8),
    "training of higher order": lambda _: of_training(0, variant="higher_order"),
    "nve": lambda atoms: of_simulation(atoms, NVE(), 1),
    "nvt": lambda atoms: of_simulation(atoms, NoseHoover(300.0), 1),
    "csvr": lambda atoms: of_simulation(atoms, CSVR(300.0), 1),
    "langevin, 4 replicas": lambda atoms: of_simulation(atoms, Langevin(300.0), 4),
    "npt": lambda atoms: of_simulation(atoms, CellRescaling(300.0), 1),
    "npt, triclinic": lambda atoms: of_simulation(atoms, CellRescaling(300.0, shape="triclinic"), 1),
    "reverse": of_rollout,
}


# Of programs that differ little one is enough for every day.
ALIKE = ("training", "training with tensors", "with tensors", "of higher order", "nve", "nvt", "csvr", "npt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in PROGRAMS]
)
def test_operations_that_are_fast_on_accelerators(name, crystal):
    traced = PROGRAMS[name](crystal)
    counts = [check(traced, platform) for platform in PLATFORMS]
    assert counts[0]["gather"]
    assert counts[0]["dot_general"]
