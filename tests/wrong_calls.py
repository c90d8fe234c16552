"""Public calls, each with one argument at a time that can't be; run by test_arguments.py in a process of its own.

Prints every one that was answered by anything but an error in words, or slowly, and how many there were.
"""

import sys
import time

import ase.build
import jax
import numpy as np

import leignn_jax as leignn
from leignn_jax.errors import LeignnError
from leignn_jax.simulation.ensembles import NVE, Langevin

run = leignn.differentiable
silicon = ase.build.bulk("Si")
config = leignn.preset("small", elements=("Si",), features=4, layers=1, num_radial=3, cutoff=3.0)
potential = leignn.Potential.create(config, jax.random.key(0))
system, state = run.start(potential, silicon, NVE(), temperature=300.0)

THINGS = [None, "x", b"x", 1j, object(), np.zeros((2, 2)), lambda: 0]
NUMBERS = [*THINGS, True, float("nan"), -1, {}, []]
COUNTS = [*NUMBERS, 1.5, 10**18]
SIGNED = [*THINGS, True, float("nan"), {}, []]
NOT_NONE = [x for x in NUMBERS if x is not None]
STRUCTURES = [*THINGS, 3, True, {}, [None], ["x"], ase.Atoms(), ase.Atoms("X")]
MODELS = [*THINGS, 3, True, {}, []]
SEEDS = [*COUNTS, 2**32]
NAMES = [*(x for x in THINGS if not isinstance(x, str)), 3, "x", {}, []]
FILES = [*(x for x in THINGS if not isinstance(x, str)), 3, {}, [], "a\0b"]
FLAGS = [None, "x", 3, [], np.zeros(2)]

CALLS = {
    potential.predict: (
        {"atoms": silicon},
        {"atoms": [x for x in STRUCTURES if not isinstance(x, dict)], "dtype": NAMES},
    ),
    potential.calculator: ({}, {"dtype": NAMES, "skin": NUMBERS}),
    potential.save: ({}, {"path": FILES}),
    potential.with_walls: ({}, {"begins": [3, "x", [1], {"Si": 1.0}, {("Si", "Si"): "x"}, {("Si", "Si"): -1}]}),
    leignn.Potential.create: (
        {"config": config, "key": jax.random.key(0)},
        {
            "config": MODELS,
            "key": [*THINGS, 3, True, {}, []],
            "scale": SIGNED,
            "reference_energies": ["x", 3, {"Si": "x"}, {"Xx": 1.0}, [1.0]],
            "metadata": ["x", 3, [1.0]],
        },
    ),
    leignn.Graph.from_ase: ({"atoms": silicon, "cutoff": 3.0}, {"atoms": STRUCTURES, "cutoff": NUMBERS}),
    leignn.Graph.batch: ({}, {"graphs": [*THINGS, 3, [], [None]]}),
    leignn.preset: (
        {"name": "small"},
        {
            "name": NAMES,
            "variant": [x for x in NAMES if x is not None],
            "elements": [None, "Si", 3, [3], ["si"], ["Si", "Si"], [None]],
            **{name: [*COUNTS, 10**9] for name in ("features", "layers", "num_radial", "envelope_exponent")},
            **{name: [*NUMBERS, 1e9] for name in ("cutoff", "norm_floor")},
            **dict.fromkeys(("global_nodes", "smooth_cutoff", "direct_forces", "repulsion", "remat"), FLAGS),
            **dict.fromkeys(("radial_basis", "envelope", "update", "message_dtype", "matmul_precision"), NAMES),
        },
    ),
    leignn.load_potential: ({}, {"path_or_name": [*FILES, "x"]}),
    leignn.read_frames: ({}, {"path": [*FILES, "x"]}),
    leignn.train: (
        {"config": {"data": {"train": "none.extxyz"}}},
        {
            "config": [
                *THINGS,
                3,
                True,
                [],
                {"data": 3},
                {"data": {"train": 3}},
                {"run": {"seed": -1}},
                {"run": {"epochs": 1e30}},
            ],
            "overrides": [*THINGS, 3, [3], "x"],
            "resume": FLAGS,
        },
    ),
    leignn.sweep: (
        {},
        {
            "study": [
                *THINGS,
                3,
                True,
                [],
                {"space": 3},
                {"base": 3},
                {"space": {"run.seed": list(range(400))} | {"data.split_seed": list(range(400))}},
            ]
        },
    ),
    leignn.evaluate: (
        {"potential": potential, "data": silicon},
        {"potential": MODELS, "data": STRUCTURES, "dtype": NAMES},
    ),
    leignn.committee: ({}, {"potentials": [*THINGS, 3, [], [None], {}]}),
    leignn.committee_predict: (
        {"members": leignn.committee([potential, potential]), "atoms": silicon},
        {"members": [*MODELS, potential], "atoms": STRUCTURES, "dtype": NAMES},
    ),
    leignn.calibrate: (
        {"members": leignn.committee([potential, potential]), "data": [silicon]},
        {"members": [*MODELS, potential], "data": [3, None, [], [silicon], ["x"]], "factor": NOT_NONE, "dtype": NAMES},
    ),
    leignn.select: (
        {"members": leignn.committee([potential, potential]), "pool": [silicon], "count": 1},
        {
            "members": [*MODELS, potential],
            "pool": STRUCTURES,
            "count": COUNTS,
            "known": STRUCTURES,
            "least_doubt": [*THINGS, True, float("nan"), -1],
            "dtype": NAMES,
        },
    ),
    leignn.label: (
        {"teacher": leignn.committee([potential, potential]), "frames": [silicon]},
        {
            "teacher": MODELS,
            "frames": STRUCTURES,
            "copies": COUNTS,
            "displacement": NUMBERS,
            "seed": SEEDS,
            "most_doubt": [*THINGS[1:], True, float("nan"), -1],
            "dtype": NAMES,
        },
    ),
    leignn.neighbor_list: (
        {"potential": potential, "numbers": silicon.numbers},
        {
            "potential": MODELS,
            "numbers": [*THINGS, 3, True, [[14]], [1.5]],
            "skin": NUMBERS,
            "box": ["x", [1, 2]],
            "pbc": [[True] * 2],
        },
    ),
    leignn.simulate: (
        {"potential": potential, "atoms": silicon, "ensemble": "nvt", "temperature": 300.0, "steps": 1},
        {
            "potential": MODELS,
            "atoms": STRUCTURES,
            "ensemble": [*THINGS, 3, True, {}, NVE, "nvtt"],
            "steps": COUNTS,
            "save_every": COUNTS,
            "log_every": COUNTS,
            "replicas": [*(x for x in COUNTS if x is not None), 0, 10**9],
            "seed": SEEDS,
            "dtype": NAMES,
            "out": [x for x in FILES if x is not None],
            "resume": [*FLAGS, True],
            "temperature": [*NUMBERS, [1.0, 2.0]],
            "pressure": ["x", 1.0],
            **dict.fromkeys(
                ("timestep", "skin", "max_temperature", "max_step", "max_distance", "checkpoint_minutes"), NUMBERS
            ),
        },
    ),
    leignn.relax: (
        {"potential": potential, "atoms": silicon},
        {
            "potential": MODELS,
            "atoms": STRUCTURES,
            "cell": [None, "x", 0, True, np.zeros(2)],
            "steps": COUNTS,
            "optimizer": NAMES,
            "dtype": NAMES,
            "out": [x for x in FILES if x is not None],
            "pressure": [*SIGNED, 1.0],
            **dict.fromkeys(("max_force", "max_stress", "skin"), NUMBERS),
        },
    ),
    run.start: (
        {"model": potential, "atoms": silicon, "ensemble": Langevin(300.0), "temperature": 300.0},
        {
            "model": MODELS,
            "atoms": STRUCTURES,
            "ensemble": [
                *THINGS,
                3,
                True,
                {},
                NVE,
                "nvtt",
                Langevin("hot"),
                Langevin([1.0, 2.0]),
                Langevin(None, None),
            ],
            "temperature": [x for x in NUMBERS if x is not None],
            "seed": SEEDS,
            "skin": NUMBERS,
            "dtype": [*NAMES, "float64"],
        },
    ),
    run.rollout: (
        {"model": potential, "ensemble": NVE(), "system": system, "state": state, "timestep": 1.0, "steps": 1},
        {
            "model": MODELS,
            "ensemble": [*THINGS, 3, True, {}, NVE, "nvt"],
            "system": [*THINGS, state],
            "state": [*THINGS, system],
            "timestep": NUMBERS,
            "steps": COUNTS,
            "every": COUNTS,
            "segment": [x for x in COUNTS if x is not None],
            "observe": [x for x in NUMBERS if x is not None and not callable(x)],
            **dict.fromkeys(("max_temperature", "max_step", "max_distance"), NUMBERS),
        },
    ),
    run.estimate: (
        {"loss": lambda x, rollout: x, "argument": 1.0},
        {
            "loss": [x for x in MODELS if not callable(x)],
            "modes": [*[x for x in NAMES if x is not None], (), [None], ["reverse", "no"]],
            "inputs_at_once": COUNTS,
            "has_aux": FLAGS,
            "repeats": COUNTS,
        },
    ),
    run.value_and_grad: (
        {"loss": lambda x, rollout: x},
        {"loss": [x for x in MODELS if not callable(x)], "mode": NAMES, "inputs_at_once": COUNTS, "has_aux": FLAGS},
    ),
    run.mean_value_and_grad: (
        {"loss": lambda x, replica, rollout: x},
        {
            "loss": [x for x in MODELS if not callable(x)],
            "mode": NAMES,
            "inputs_at_once": COUNTS,
            "at_once": COUNTS,
            "devices": ["cpu", (), 1, True, {}],
        },
    ),
    run.each_replica: (
        {"system": system, "state": state},
        {"system": [*THINGS, state], "state": [*THINGS, system]},
    ),
    leignn.properties.vibrations.normal_modes: (
        {"potential": potential, "atoms": silicon},
        {"potential": MODELS, "atoms": STRUCTURES, "displacement": NOT_NONE, "dtype": NAMES},
    ),
    leignn.properties.phonons.phonons: (
        {"potential": potential, "atoms": silicon},
        {
            "potential": MODELS,
            "atoms": STRUCTURES,
            "supercell": [x for x in COUNTS if x is not None],
            "displacement": NOT_NONE,
            "dtype": NAMES,
        },
    ),
    leignn.properties.elasticity.elastic_constants: (
        {"potential": potential, "atoms": silicon},
        {"potential": MODELS, "atoms": STRUCTURES, "strain": NOT_NONE, "dtype": NAMES},
    ),
}

CALLS |= {
    leignn.simulation.PairEnergy: (
        {"function": lambda params, r: r, "params": {}, "cutoff": 3.0},
        {"function": [x for x in MODELS if not callable(x)], "cutoff": NUMBERS, "onset": [*NOT_NONE, 4.0]},
    ),
    leignn.simulation.AtomEnergy: (
        {"function": lambda params, z, vectors, zs, weights: 0.0, "params": {}, "cutoff": 3.0},
        {"function": MODELS, "cutoff": NUMBERS},
    ),
    leignn.simulation.collective_variables.Angle: (
        {"first": 0, "second": 1, "third": 2},
        {"first": [*NUMBERS, 1.5, 1]},
    ),
    leignn.simulation.collective_variables.Coordination: (
        {"first": [0], "second": [1], "radius": 2.0},
        {"first": [*THINGS, 3, True, {}, [], [0, 0], [-1]], "power": [*COUNTS[:-1], 3]},
    ),
    run.thermodynamic_integration: (
        {"model_at": lambda c: potential, "couplings": [0.0, 1.0], "samples": []},
        {"model_at": [x for x in MODELS if not callable(x)], "couplings": [*NUMBERS, [1.0, 0.0]], "samples": NUMBERS},
    ),
    run.free_energies: ({}, {"samples": [*NUMBERS, [None], system]}),
    run.pooled: ({}, {"samples": [*NUMBERS, [None], system]}),
}

tried = wrong = 0
for call, (good, bad) in CALLS.items():
    for name, values in bad.items():
        for value in values:
            tried += 1
            began = time.monotonic()
            try:
                call(**{**good, name: value})
                answer = "accepted"
            except (LeignnError, FileNotFoundError):
                answer = None
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            # Generous: the machine may have other work.
            if answer is None and time.monotonic() - began > 10:
                answer = f"took {time.monotonic() - began:.0f} s"
            if answer is not None:
                print(f"{call.__qualname__}, {name}={value!r:.40}: {answer}", flush=True)
                wrong += 1
print(tried, "calls,", wrong, "not in words")
sys.exit(wrong > 0)
