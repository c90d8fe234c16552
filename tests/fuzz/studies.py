"""Settings of studies and of models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from fuzz import damage
from fuzz.cases import ANYTHING, REFUSE, SAME, Target, Trial
from fuzz.samples import potential, silicon
from fuzz.settings import STRANGE, TRAINING, Kind, allowed, load


def study(changed: dict[str, Any], **base: Any) -> dict[str, Any]:
    space = {"optimizer.learning_rate": [1e-3, 1e-2], "run.seed": [0, 1]}
    return {"base": {"data": {"train": "frames.extxyz"}, **base}, "space": space, **changed}


_NO_STUDIES: list[Any] = [
    None,
    3,
    [],
    "x",
    {},
    {"space": {}},
    study({"space": None}),
    study({"space": []}),
    study({"space": {"x": [1]}}),
    study({"space": {"run.seed": 3}}),
    study({"space": {"run.seed": []}}),
    study({"space": {"run.seed": {}}}),
    study({"space": {"run.seed": "abc"}}),
    study({"space": {"run.epochz": [1]}}),
    study({"space": {"run.seed": [None]}}),
    study({"space": {"run.seed": ["x"]}}),
    study({"space": {"run.seed": [[1]]}}),
    study({"space": {"": [1]}}),
    study({"space": {"run.": [1]}}),
    study({"space": {".seed": [1]}}),
    study({"space": {"run.seed.x": [1]}}),
    study({"space": {1: [1]}}),
    study({"samples": 0}),
    study({"samples": -1}),
    study({"samples": 1.5}),
    study({"samples": "x"}),
    study({"search": "all"}),
    study({"search": "random", "samples": 10**12}),
    study({"search": "random", "seed": -1}),
    study({"seed": "x", "search": "random"}),
    study({"members_at_once": 0}),
    study({"members_at_once": -3}),
    study({"mesh": 3}),
    study({"mesh": [0, 1]}),
    study({"mesh": [1]}),
    study({"mesh": [1, 1, 1]}),
    study({"mesh": ["a", "b"]}),
    study({"sampels": 3}),
    study({"base": 3}),
    study({"base": None}),
    study({"base": {"run": 3}}),
    study({"base": {"runn": {}}}),
    study({"base": []}),
    study({"space": {f"run.seed{i}": list(range(100)) for i in range(9)}}),
    study(
        {
            "space": {
                k: list(range(1, 1000))
                for k in ("run.seed", "run.epochs", "data.batch_size", "optimizer.clip_norm", "loss.energy_weight")
            }
        }
    ),
    *(
        study({"search": "random", "space": {"optimizer.learning_rate": r}})
        for r in (
            {"uniform": [1, 0]},
            {"uniform": [0.1]},
            {"uniform": 1},
            {"uniform": ["a", "b"]},
            {"uniform": [0, float("nan")]},
            {"uniform": [0.1, float("inf")]},
            {"log_uniform": [0, 1]},
            {"log_uniform": [-1, 1]},
            {"uniform": [0.1, 1], "integers": [1, 2]},
            {"integers": [1, 10**30]},
            {"integers": [1.5, 2]},
            {"normal": [0, 1]},
            {"uniform": [-1e308, 1e308]},
            {"log_uniform": [1e-320, 1e308]},
        )
    ),
]


def _no_study(rng: random.Random, folder: Path) -> Trial:
    from leignn_jax.sweeps.space import make_study

    value = rng.choice(_NO_STUDIES)
    return Trial(lambda: make_study(value).model_dump(mode="json"), REFUSE, what=repr(value)[:120])


def _study_bytes(rng: random.Random, folder: Path) -> Trial:
    text = yaml.safe_dump(study({})).encode()
    how = rng.choice(sorted(damage.BYTES))
    return Trial(lambda: load(damage.BYTES[how](rng, text), folder, study=True), ANYTHING, what=how)


def _study_value(rng: random.Random, folder: Path) -> Trial:
    """Any value for any setting as one of a study's choices."""
    from leignn_jax.sweeps.space import make_study, members

    key = rng.choice([k for k in sorted(TRAINING) if "." in k])
    value = rng.choice([*STRANGE, *TRAINING[key].good])
    expect = allowed(TRAINING[key], value, key)

    def use() -> Any:

        ((_, config),) = members(make_study(study({"space": {key: [value]}})))
        jax.random.key(config.run.seed)
        np.random.default_rng(config.data.order_seed), np.random.default_rng(config.data.split_seed)
        section, _, field = key.partition(".")
        return config.model_dump(mode="json")[section][field]

    return Trial(use, expect or SAME.giving(value), what=f"{key}: [{value!r:.60}]")


def _model_value(rng: random.Random, folder: Path) -> Trial:
    """Any value for any field of a model; the model is made."""

    import leignn_jax as leignn

    fields = {
        k.removeprefix("model."): v
        for k, v in TRAINING.items()
        if k.startswith("model.") and k.split(".")[1] not in ("preset", "variant")
    }
    fields["elements"] = Kind(lambda x: isinstance(x, tuple), [("Cu",)])
    key = rng.choice(sorted(fields))
    value = rng.choice([*STRANGE, 10**6, 1 << 40, 1 << 62])
    expect = allowed(fields[key], value, f"model.{key}") or SAME.giving(value)
    if key == "elements" and value in ([], ()):
        expect = ANYTHING
    if key == "features" and value == 2:
        expect = ANYTHING

    def use() -> Any:
        base: dict[str, Any] = {"elements": ("Cu",), "features": 4, "layers": 1, "num_radial": 4, "cutoff": 3.0}
        config = leignn.LEIGNNConfig(**{**base, key: value})
        if key in ("features", "layers", "num_radial") and value not in base.values():
            leignn.Potential.create(config, jax.random.key(0))
        return getattr(config, key)

    return Trial(use, expect, what=f"{key}={value!r:.60}")


def _preset(rng: random.Random, folder: Path) -> Trial:
    import leignn_jax as leignn

    wrong = rng.choice(damage.NOT_A_NAME)
    do: Callable[[], Any] = rng.choice(
        [
            lambda: leignn.preset(wrong),
            lambda: leignn.preset("small", variant="" if wrong is None else wrong),
            lambda: leignn.LEIGNNConfig.from_dict(wrong if not isinstance(wrong, dict) else {"a": 1}),
        ]
    )
    return Trial(do, REFUSE, what=repr(wrong)[:60])


def _create(rng: random.Random, folder: Path) -> Trial:
    """References, scales, metadata and walls that are none."""
    made = potential()

    def again(**changes: Any) -> Any:
        import leignn_jax as leignn

        arguments = {"config": made.config, "params": made.params, **changes}
        found = leignn.Potential.from_params(**arguments)
        return found.predict(silicon()).energy

    nan = float("nan")
    changes = rng.choice(
        [
            {"reference_energies": x}
            for x in ({"Xx": 1.0}, {"Si": "x"}, {"Si": nan}, {"Si": None}, 3, [1.0], {"Si": [1.0]}, {1: 1.0})
        ]
        + [{"scale": x} for x in damage.NOT_A_NUMBER if x is not None]
        + [{"metadata": x} for x in ([1], "x", {"a": damage.ODD}, {"a": {1, 2}}, {"a": b"x"}, 3)]
        + [{"energy_shift": x} for x in ("x", nan, [1.0, 2.0], damage.ODD)]
        + [{"config": x} for x in ("small", None, {}, damage.ODD)]
    )
    return Trial(
        lambda: again(**changes),
        ANYTHING if "metadata" in changes and changes["metadata"] == [1] else REFUSE,
        what=repr(changes)[:80],
    )


TARGETS = [
    Target("study", {"none": _no_study, "value": _study_value, "bytes": _study_bytes}, 3),
    Target("model config", {"value": _model_value, "preset": _preset, "create": _create}, 4),
]
