"""Arguments of every kind for predictions, simulations, rollouts and relaxations."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, Expect, Target, Trial
from fuzz.samples import potential, silicon


def arguments(
    call: Callable[..., Any], bad: dict[str, list[Any]], expect: Expect = REFUSE
) -> Callable[[random.Random, Path], Trial]:
    """One argument of a call replaced by a value that it can't take."""

    def attack(rng: random.Random, folder: Path) -> Trial:
        name = rng.choice(sorted(bad))
        value = rng.choice(bad[name])
        return Trial(lambda: call(**{name: value}), expect, what=f"{name}={value!r:.80}")

    return attack


_NO_DTYPE = [None, "", "float16", "x", 3, np.float16, [], "int32"]


_NO_MODEL = [None, "si-potential", 3, {}, damage.ODD, len, lambda x: x, [1], np.zeros(3)]


_NO_SEED = [None, "x", 1.5, [], {}, float("nan"), 10**30, -(10**30), 1j, damage.ODD]


_NO_BOOL = ["x", [1, 2], damage.ODD]


_NO_PATH = [3, [], {}, damage.ODD, 1.5]


def _predict_call(**changes: Any) -> Any:
    given: dict[str, Any] = {"atoms": [silicon()], **changes}
    return potential().predict(**given)[0].energy


def _calculator_call(**changes: Any) -> Any:
    return potential().calculator(**changes).get_potential_energy(silicon())


def _simulate_call(**changes: Any) -> Any:
    import leignn_jax as leignn

    given: dict[str, Any] = {
        "potential": potential(),
        "atoms": silicon(),
        "ensemble": "nve",
        "steps": 2,
        "temperature": 300.0,
    }
    run = leignn.simulate(**{**given, "save_every": 1, "log_every": 1, "progress": False, **changes})
    return run.summary["stopped"]


def _ensemble_call(**changes: Any) -> Any:
    from leignn_jax.simulation import ensembles

    kind = {"pressure": "CellRescaling", "friction": "Langevin", "time_constant": "CSVR"}.get(
        next(iter(changes)), "Langevin"
    )
    given = {"temperature": 300.0, **({"pressure": 0.0} if kind == "CellRescaling" else {}), **changes}
    return _simulate_call(ensemble=getattr(ensembles, kind)(**given))


def _relax_call(**changes: Any) -> Any:
    import leignn_jax as leignn

    given: dict[str, Any] = {
        "potential": potential(),
        "atoms": silicon(),
        "steps": 1,
        "dtype": "float32",
        "progress": False,
    }
    return leignn.relax(**{**given, **changes}).steps


_POSITIVE, _COUNT, _NAME = damage.NOT_POSITIVE, damage.NOT_A_COUNT, damage.NOT_A_NAME


_SIMULATE = {
    "potential": _NO_MODEL,
    "atoms": [None, "si", 3, {}, damage.ODD, [None], [silicon(), None], []],
    "ensemble": _NAME,
    "steps": damage.without(_COUNT, 0),
    "timestep": _POSITIVE,
    "temperature": [*damage.without(damage.NOT_A_NUMBER, None), -1, float("inf")],
    "pressure": ["x", 1.0, float("nan"), [], damage.ODD],
    "replicas": [*damage.without(_COUNT, None), 10**9, 10**15],
    "seed": _NO_SEED,
    "out": _NO_PATH,
    "save_every": _COUNT,
    "log_every": [*_COUNT, 2],
    "skin": [*_POSITIVE, 1e9],
    "dtype": _NO_DTYPE,
    "max_temperature": damage.without(_POSITIVE, 0, float("inf")),
    "max_step": damage.without(_POSITIVE, 0, float("inf")),
    "max_distance": damage.without(_POSITIVE, 0, float("inf")),
    "checkpoint_minutes": damage.without(_POSITIVE, 0, float("inf")),
}


_RELAX = {
    "potential": _NO_MODEL,
    "atoms": [None, "si", 3, {}, damage.ODD, [None], [silicon(), None]],
    "cell": ["x", None, 3, "Full", [], damage.ODD],
    "pressure": [*damage.without(damage.NOT_A_NUMBER, None), float("inf")],
    "max_force": _POSITIVE,
    "max_stress": _POSITIVE,
    "steps": damage.without(_COUNT, 0),
    "optimizer": _NAME,
    "dtype": _NO_DTYPE,
    "skin": [*_POSITIVE, 1e9],
    "out": _NO_PATH,
}


_ENSEMBLE = {
    "temperature": [*damage.NOT_A_NUMBER, -1.0, float("inf"), [300.0, 300.0, 300.0]],
    "friction": [*damage.NOT_A_NUMBER, -1.0, float("inf")],
    "pressure": [*damage.NOT_A_NUMBER, float("inf")],
    "time_constant": [*_POSITIVE],
}


@functools.cache
def _started() -> tuple[Any, Any]:
    from leignn_jax import differentiable as run
    from leignn_jax.simulation.ensembles import NVE

    return run.start(potential(), silicon(), NVE(), temperature=300.0)


def _start_call(**changes: Any) -> Any:
    from leignn_jax import differentiable as run
    from leignn_jax.simulation.ensembles import NVE

    given: dict[str, Any] = {"model": potential(), "atoms": silicon(), "ensemble": NVE(), "temperature": 300.0}
    _, state = run.start(**{**given, **changes})
    return np.asarray(state.positions)


def _rollout_call(**changes: Any) -> Any:
    from leignn_jax import differentiable as run
    from leignn_jax.simulation.ensembles import NVE

    system, state = _started()
    given: dict[str, Any] = {
        "model": potential(),
        "ensemble": NVE(),
        "system": system,
        "state": state,
        "timestep": 1.0,
        "steps": 2,
    }
    return bool(run.rollout(**{**given, **changes}).valid)


def _blown_up(rng: random.Random, folder: Path) -> Trial:
    """Steps too long for any potential are said to be invalid."""
    timestep = rng.choice([500.0, 2000.0, 1e5, 1e300, float("nan")])
    return Trial(lambda: _rollout_call(timestep=timestep), EITHER.giving(False), what=f"{timestep:g} fs")


def _other_ensemble(rng: random.Random, folder: Path) -> Trial:
    """The state of one ensemble in another's steps."""
    from leignn_jax.simulation import ensembles

    kind = rng.choice(["NoseHoover", "CellRescaling", "CSVR"])
    other = getattr(ensembles, kind)(temperature=300.0, **({"pressure": 0.0} if kind == "CellRescaling" else {}))
    # A bath that keeps nothing may take the state of another.
    return Trial(lambda: _rollout_call(ensemble=other), REFUSE if kind == "NoseHoover" else ANYTHING, what=kind)


def _by_name(rng: random.Random, folder: Path) -> Trial:
    """A short name where an object may stand, and the other way round."""
    from leignn_jax.simulation.ensembles import Langevin

    right = np.asarray(_start_call(ensemble=Langevin(300.0)))
    return Trial(lambda: _start_call(ensemble="langevin"), SAME.giving(right))


def _gradient_call(**changes: Any) -> Any:
    from leignn_jax import differentiable as run

    given: dict[str, Any] = {"loss": lambda x, rollout: x**2, "mode": "forward", **changes}
    return run.value_and_grad(**given)(1.5)[1]


_ROLLOUT = {
    "model": _NO_MODEL,
    "ensemble": damage.without(_NAME, None),
    "system": [None, "x", 3, {}, damage.ODD],
    "state": [None, "x", 3, {}, damage.ODD],
    "timestep": [None, "x", [], {}, damage.ODD, [1.0, 2.0]],
    "steps": _COUNT,
    "every": [*_COUNT, 3],
    "segment": ["x", 0, -1, 1.5, 10**9, [], damage.ODD],
    "observe": ["x", 3, damage.ODD],
}


_START = {
    "model": _NO_MODEL,
    "atoms": [None, "si", 3, {}, damage.ODD, [None], []],
    "ensemble": _NAME,
    "temperature": [*damage.NOT_A_NUMBER, -1.0, float("inf")],
    "seed": _NO_SEED,
    "skin": [*_POSITIVE, 1e9],
    "dtype": [*_NO_DTYPE, "float64"],
    "sizes": ["x", 3, damage.ODD],
}


_GRADIENT = {
    "loss": [None, 3, "x", damage.ODD],
    "mode": _NAME,
    "inputs_at_once": [0, -1, 1.5, "x", None],
}


def _evaluate_call(**changes: Any) -> Any:

    import leignn_jax as leignn

    atoms = silicon().copy()
    atoms.calc = SinglePointCalculator(atoms, energy=-40.0, forces=np.zeros((8, 3)))
    first, second = changes.pop("potential", potential()), changes.pop("data", [atoms])
    return leignn.evaluate(first, second, **changes).metrics["structures"]


_EVALUATE = {
    "potential": _NO_MODEL,
    "data": [None, "nothing.extxyz", 3, {}, damage.ODD, [], [None], [silicon()], [3]],
    "units": ["x", 3, []],
    "dtype": _NO_DTYPE,
}


TARGETS = [
    Target("predict", {"arguments": arguments(_predict_call, {"dtype": _NO_DTYPE, "batch_atoms": _COUNT})}, 1, 45.0),
    Target(
        "calculator",
        {"arguments": arguments(_calculator_call, {"dtype": _NO_DTYPE, "skin": [*damage.without(_POSITIVE, 0), 1e9]})},
        1,
        45.0,
    ),
    Target(
        "simulate",
        {"arguments": arguments(_simulate_call, _SIMULATE), "ensemble": arguments(_ensemble_call, _ENSEMBLE)},
        4,
        60.0,
    ),
    Target("relax", {"arguments": arguments(_relax_call, _RELAX)}, 2, 60.0),
    Target("start", {"arguments": arguments(_start_call, _START), "by name": _by_name}, 2, 60.0),
    Target(
        "rollout",
        {
            "arguments": arguments(_rollout_call, _ROLLOUT),
            "blown up": _blown_up,
            "another ensemble": _other_ensemble,
            "gradient": arguments(_gradient_call, _GRADIENT),
        },
        3,
        60.0,
    ),
    Target("evaluate", {"arguments": arguments(_evaluate_call, _EVALUATE)}, 1, 45.0),
]
