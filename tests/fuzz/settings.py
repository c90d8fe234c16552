"""Settings of trainings: as values, overrides and YAML."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.build
import ase.io
import jax
import numpy as np
import yaml
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, REFUSE, SAME, Expect, Target, Trial


class Kind(NamedTuple):
    """What a setting may be: ``fits`` says so of any value, ``good`` are some that do."""

    fits: Callable[[Any], bool]
    good: list[Any]


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def real(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False, good: list) -> Kind:
    def fits(x: Any) -> bool:
        if not _real(x) or x < low or x > high:
            return False
        return not (open_low and x == low) and not (open_high and x == high)

    return Kind(fits, good)


def count(low: int, good: list[int]) -> Kind:
    return Kind(lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= low, good)


def name(*names: str) -> Kind:
    return Kind(lambda x: isinstance(x, str) and x in names, list(names))


def maybe(kind: Kind) -> Kind:
    return Kind(lambda x: x is None or kind.fits(x), [*kind.good, None])


TRUTH = Kind(lambda x: isinstance(x, bool), [True, False])


WORD = Kind(lambda x: isinstance(x, str) and x != "", ["a.extxyz"])


_POSITIVE = functools.partial(real, 0, open_low=True)


_FRACTION = functools.partial(real, 0, 1)


_ALLOWED = ("positions", "forces", "energy", "stress", "duplicates")

# Written down anew, not taken from the package. Seeds of jax.random.key are of 32 bits or 64; those of NumPy not negative.
TRAINING: dict[str, Kind] = {
    "recipe": name("default", "published"),
    "data.validation_fraction": real(0, 1, open_low=True, open_high=True, good=[0.1, 0.5]),
    "data.split_seed": count(0, [0, 5]),
    "data.order_seed": count(0, [0, 5]),
    "data.max_frames": maybe(count(2, [3])),
    "data.batch_size": count(1, [2]),
    "data.accumulate": count(1, [2]),
    "data.allow": Kind(
        lambda x: isinstance(x, list) and all(isinstance(one, str) and one in _ALLOWED for one in x), [["forces"], []]
    ),
    "data.units": maybe(name("eV/angstrom", "kcal/mol/angstrom", "hartree/bohr")),
    "loss.energy": name("l1", "l2", "huber"),
    "loss.forces": name("l1", "l2", "huber", "norm"),
    "loss.energy_weight": real(0, good=[0, 2.5]),
    "loss.forces_weight": real(0, good=[1, 2.5]),
    "loss.final_energy_weight": maybe(real(0, good=[1.5])),
    "loss.huber_delta": _POSITIVE(good=[0.1]),
    "optimizer.algorithm": name("adam", "amsgrad", "muon"),
    "optimizer.learning_rate": _POSITIVE(good=[1e-3, 1]),
    "optimizer.schedule": name("cosine", "constant"),
    "optimizer.warmup_epochs": real(0, good=[0, 0.5]),
    "optimizer.final_fraction": _FRACTION(good=[0, 0.5, 1]),
    "optimizer.plateau_factor": real(0, 1, open_low=True, open_high=True, good=[0.5]),
    "optimizer.plateau_patience": maybe(count(1, [5])),
    "optimizer.epsilon": _POSITIVE(good=[1e-6]),
    "optimizer.weight_decay": real(0, good=[0, 1e-2]),
    "optimizer.clip_norm": _POSITIVE(good=[5]),
    "optimizer.ema_decay": real(0, 1, open_high=True, good=[0, 0.9]),
    "run.seed": count(0, [0, 7]),
    "run.epochs": count(1, [1]),
    "run.early_stop": maybe(count(1, [2])),
    "run.validate_every": count(1, [2]),
    "run.checkpoint_minutes": real(0, good=[0, 0.5]),
    "run.keep": count(2, [3]),
    "run.devices": count(1, [1]),
    "run.tensorboard": TRUTH,
    "model.features": Kind(lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 2 and x % 2 == 0, [4, 8]),
    "model.layers": count(1, [1, 2]),
    "model.num_radial": count(2, [4]),
    "model.cutoff": _POSITIVE(good=[3, 4.5]),
    "model.preset": name("small", "medium", "large", "published"),
    "model.variant": name("leignn", "vanilla", "vanilla_nmu"),
    "model.radial_basis": name("bessel", "gaussian", "bernstein"),
    "model.repulsion": TRUTH,
    "model.direct_forces": TRUTH,
    "model.global_nodes": TRUTH,
    "model.elements": Kind(lambda x: isinstance(x, list) and x == ["Cu"], [["Cu"]]),
}


# Larger than any machine has room or time for.
_HUGE = {"model.features", "model.layers", "model.num_radial", "model.cutoff", "run.devices"}


STRANGE: list[Any] = [
    None,
    "",
    "x",
    "1",
    "1.5",
    "nan",
    "inf",
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    0.5,
    1.0,
    1.5,
    -0.0,
    1e-320,
    1e300,
    10**9,
    10**30,
    -(10**30),
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    {"x": {"y": []}},
    "yes",
    "\0",
    "\ud83d\ude00",
    "a" * 10_000,
    [[[]]],
    [None],
    "../../..",
    "Adam",
    "l2 ",
]


def _as_number(value: Any) -> Any:
    """YAML reads 1e-3 as a word: numbers in words are numbers."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value) if "." in value or "e" in value.lower() or "n" in value.lower() else int(value)
    return value


def allowed(kind: Kind, value: Any, key: str = "") -> Expect | None:
    """None where a value is as it should be; else what is allowed of a use of it."""
    # Whole numbers end where those of the device do.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**9 and kind.fits(value):
        return ANYTHING
    if key.endswith("seed") and isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 2**32:
        return ANYTHING
    if kind.fits(value):
        return ANYTHING if key in _HUGE and _real(value) and value > 1000 else None
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and _real(value)
        and float(value).is_integer()
        and kind.fits(int(value))
    ):
        return ANYTHING
    if isinstance(value, str) and value and kind.fits(_as_number(value)):
        return ANYTHING
    # What one may say for true and false is YAML's and pydantic's matter.
    return ANYTHING if kind is TRUTH and value in (0, 1, "1", "yes", 1.0, "x"[:0]) and value != "" else REFUSE


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@functools.cache
def _data() -> Path:
    path = Path(tempfile.mkdtemp(prefix="fuzz.template.")) / "frames.extxyz"
    ase.io.write(path, copper(8, seed=4), format="extxyz")
    return path


def _use_training(values: Any, overrides: list[str] | None = None, key: str = "") -> Any:
    """What a training makes of its settings before it compiles anything; the setting in question."""

    from leignn_jax.training.config import make_config
    from leignn_jax.training.dataset import load_splits

    config = make_config(values, overrides or [])
    config.hyperparameters(10)
    jax.random.key(config.run.seed)
    if key.startswith("data."):
        load_splits(config.data.model_copy(update={"train": _data(), "units": None}), 4.0)
        np.random.default_rng(config.data.order_seed)
    found = config.model_dump(mode="json")
    for part in key.split(".") if key else []:
        found = found[part]
    return found if key else "a config"


def _training_value(rng: random.Random, folder: Path) -> Trial:
    """Any value for any setting."""
    key = rng.choice(sorted(TRAINING))
    value = rng.choice([*STRANGE, *TRAINING[key].good])
    right = value
    expect = allowed(TRAINING[key], value, key) or SAME.giving(right)
    return Trial(lambda: _use_training(_nested(key, value), key=key), expect, what=f"{key}={value!r:.60}")


def _override(rng: random.Random, folder: Path) -> Trial:
    """The same as section.key=value."""
    key = rng.choice(sorted(TRAINING))
    value = rng.choice([*TRAINING[key].good, *STRANGE])
    text = rng.choice(
        [
            yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n..."),
            str(value),
        ]
    )
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return Trial(lambda: _use_training({}, [f"{key}={text}"], key), REFUSE, what=f"{key}={text:.60}")
    expect = allowed(TRAINING[key], read, key) or SAME.giving(read)
    return Trial(lambda: _use_training({}, [f"{key}={text}"], key), expect, what=f"{key}={text:.60}")


_NO_OVERRIDES = [
    "a",
    "=",
    "=1",
    "run",
    "run.epochs",
    "run..epochs=1",
    ".=1",
    "run.epochs.x=1",
    "run.epochs=[",
    "run.epochs={",
    "run.=1",
    "run.epochz=3",
    "runn.epochs=3",
    "run.epochs=1\0",
    "run.epochs=!!python/name:os.system",
    "run.epochs=&a [*a]",
    "model=3",
    "data=x",
    "run=null",
    "data=[1]",
    "a.b.c.d.e=1",
    "x" * 100_000,
    "run.epochs=" + "[" * 50_000,
    ".".join(["a"] * 50_000) + "=1",
    "run.epochs: 3=4",
    "\ud83d\ude00=1",
    "run.epochs =3",
    "optimizer.learning_rate=1e-3x",
    "data.keys={1: 2}",
    "data.keys.energy=[1]",
]


def _no_override(rng: random.Random, folder: Path) -> Trial:
    word = rng.choice(_NO_OVERRIDES)
    return Trial(lambda: _use_training({}, [word]), REFUSE, what=f"{word:.60}")


def _no_config(rng: random.Random, folder: Path) -> Trial:
    """Values that are no config."""
    value = rng.choice(
        [
            None,
            3,
            [],
            "x",
            [{}],
            damage.ODD,
            {1: 2},
            {None: 1},
            {"data": 3},
            {"run": []},
            {"model": "small"},
            {("a", "b"): 1},
            {"": 1},
        ]
    )
    return Trial(lambda: _use_training(value), REFUSE, what=repr(value)[:60])


def _typo(rng: random.Random, folder: Path) -> Trial:
    key = rng.choice(sorted(TRAINING))
    place = rng.randrange(len(key))
    wrong = rng.choice([key[:place] + key[place + 1 :], key[:place] + "_" + key[place:], key.upper()])
    value = TRAINING[key].good[0]
    return Trial(
        lambda: _use_training(_nested(wrong, value)), REFUSE if wrong not in TRAINING else ANYTHING, what=wrong
    )


_CONFIG = """data: {train: frames.extxyz, batch_size: 3}
model:
  preset: small
  features: 8
run: {out: here, epochs: 7}
optimizer:
  learning_rate: 1e-3
"""


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


_NO_YAML = [
    "run: {epochs: 3",
    "run:\n\tepochs: 3\n",
    "run: {epochs: 3, epochs: 4}",
    "run: {epochs: 3}\nrun: {seed: 1}\n",
    "- a\n- b\n",
    "3",
    "run: !!python/object/apply:os.system ['false']\n",
    "run: &a {out: *a}\n",
    "? {a: 1}\n: 2\n",
    "? [1, 2]\n: 2\n",
    _BOMB,
    "run: {epochs: " + "[" * 20_000 + "}",
    "%YAML 9.9\n---\nrun: {}\n",
    "run: {epochs: 3}\n---\nrun: {epochs: 4}\n",
    "run: {epochs: 2024-01-01}",
    "run: {<<: [1]}\n",
    "run: {epochs: 0o7x}",
    "data: {train: }\nrunn: {}\n",
    "run: {epochs: ١٢}",
    "run: {out: 3}\nmodel: {elements: [NO]}\n",
    "run: {epochs: .inf}",
    "model: {elements: Si}",
    "'': 3",
]


def load(text: bytes, folder: Path, study: bool = False) -> Any:
    path = folder / "config.yaml"
    path.write_bytes(text)
    if study:
        from leignn_jax.sweeps.space import load_study

        return load_study(path).model_dump(mode="json")
    from leignn_jax.training.config import load_config

    return load_config(path).model_dump(mode="json")


def _right_config(folder: Path) -> Any:
    right = folder / "right"
    right.mkdir(exist_ok=True)
    return load(_CONFIG.encode(), right)


def _no_yaml(rng: random.Random, folder: Path) -> Trial:
    text = rng.choice(_NO_YAML)
    return Trial(lambda: load(text.encode(), folder), REFUSE, what=f"{text:.60}")


def _same_yaml(rng: random.Random, folder: Path) -> Trial:
    change: Callable[[str], bytes] = rng.choice(
        [
            lambda t: ("\ufeff" + t).encode(),
            lambda t: t.replace("\n", "\r\n").encode(),
            lambda t: ("# \u4e2d\n" + t + "\n\n").encode(),
            lambda t: (t + "loss: {}\n").encode(),
            lambda t: t.replace("1e-3", "0.001").encode(),
            lambda t: t.removesuffix("\n").encode(),
        ]
    )
    return Trial(lambda: load(change(_CONFIG), folder), SAME, lambda: _right_config(folder))


def _yaml_bytes(rng: random.Random, folder: Path) -> Trial:
    """Damaged YAML may be another config; it must not be anything worse."""
    how = rng.choice(sorted(damage.BYTES))
    text = damage.BYTES[how](rng, _CONFIG.encode())
    return Trial(lambda: load(text, folder), ANYTHING, what=how)


TARGETS = [
    Target("train config", {"value": _training_value, "typo": _typo, "no config": _no_config}, 6),
    Target("overrides", {"value": _override, "no override": _no_override}, 4),
    Target("YAML", {"none": _no_yaml, "same": _same_yaml, "bytes": _yaml_bytes}, 3),
]
