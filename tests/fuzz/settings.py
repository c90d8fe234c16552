"""Settings: of trainings, studies and models, as values, YAML, overrides and words on the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import yaml
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, REFUSE, SAME, Expect, Target, Trial
from fuzz.own_files import potential, silicon

# ------------------------------------------------------------------------------------------- what each setting may be


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

# Written down anew, not taken from the package. Seeds of jax.random.key are of 32 bits or 64; those of NumPy not negative.
TRAINING: dict[str, Kind] = {
    "recipe": name("default", "published"),
    "data.validation_fraction": real(0, 1, open_low=True, open_high=True, good=[0.1, 0.5]),
    "data.split_seed": count(0, [0, 5]),
    "data.order_seed": count(0, [0, 5]),
    "data.max_frames": maybe(count(1, [3])),
    "data.batch_size": count(1, [2]),
    "data.accumulate": count(1, [2]),
    "data.allow_unusual": TRUTH,
    "data.units": maybe(name("eV/angstrom", "kcal/mol/angstrom", "hartree/bohr")),
    "loss.energy": name("l1", "l2", "huber"),
    "loss.forces": name("l1", "l2", "huber", "norm"),
    "loss.energy_weight": real(0, good=[0, 2.5]),
    "loss.forces_weight": real(0, good=[1, 2.5]),
    "loss.final_energy_weight": maybe(real(0, good=[1.5])),
    "loss.huber_delta": _POSITIVE(good=[0.1]),
    "optimizer.algorithm": name("adam", "amsgrad"),
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
    if key == "run.seed" and value == -1 and not isinstance(value, bool):
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
    import jax

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


# --------------------------------------------------------------------------- YAML

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


def _load(text: bytes, folder: Path, study: bool = False) -> Any:
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
    return _load(_CONFIG.encode(), right)


def _no_yaml(rng: random.Random, folder: Path) -> Trial:
    text = rng.choice(_NO_YAML)
    return Trial(lambda: _load(text.encode(), folder), REFUSE, what=f"{text:.60}")


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
    return Trial(lambda: _load(change(_CONFIG), folder), SAME, lambda: _right_config(folder))


def _yaml_bytes(rng: random.Random, folder: Path) -> Trial:
    """Damaged YAML may be another config; it must not be anything worse."""
    how = rng.choice(sorted(damage.BYTES))
    text = damage.BYTES[how](rng, _CONFIG.encode())
    return Trial(lambda: _load(text, folder), ANYTHING, what=how)


# --------------------------------------------------------------------------- studies


def _study(changed: dict[str, Any], **base: Any) -> dict[str, Any]:
    space = {"optimizer.learning_rate": [1e-3, 1e-2], "run.seed": [0, 1]}
    return {"base": {"data": {"train": "frames.extxyz"}, **base}, "space": space, **changed}


_NO_STUDIES: list[Any] = [
    None,
    3,
    [],
    "x",
    {},
    {"space": {}},
    _study({"space": None}),
    _study({"space": []}),
    _study({"space": {"x": [1]}}),
    _study({"space": {"run.seed": 3}}),
    _study({"space": {"run.seed": []}}),
    _study({"space": {"run.seed": {}}}),
    _study({"space": {"run.seed": "abc"}}),
    _study({"space": {"run.epochz": [1]}}),
    _study({"space": {"run.seed": [None]}}),
    _study({"space": {"run.seed": ["x"]}}),
    _study({"space": {"run.seed": [[1]]}}),
    _study({"space": {"": [1]}}),
    _study({"space": {"run.": [1]}}),
    _study({"space": {".seed": [1]}}),
    _study({"space": {"run.seed.x": [1]}}),
    _study({"space": {1: [1]}}),
    _study({"samples": 0}),
    _study({"samples": -1}),
    _study({"samples": 1.5}),
    _study({"samples": "x"}),
    _study({"search": "all"}),
    _study({"search": "random", "samples": 10**12}),
    _study({"search": "random", "seed": -1}),
    _study({"seed": "x", "search": "random"}),
    _study({"members_at_once": 0}),
    _study({"members_at_once": -3}),
    _study({"mesh": 3}),
    _study({"mesh": [0, 1]}),
    _study({"mesh": [1]}),
    _study({"mesh": [1, 1, 1]}),
    _study({"mesh": ["a", "b"]}),
    _study({"sampels": 3}),
    _study({"base": 3}),
    _study({"base": None}),
    _study({"base": {"run": 3}}),
    _study({"base": {"runn": {}}}),
    _study({"base": []}),
    _study({"space": {f"run.seed{i}": list(range(100)) for i in range(9)}}),
    _study(
        {
            "space": {
                k: list(range(1, 1000))
                for k in ("run.seed", "run.epochs", "data.batch_size", "optimizer.clip_norm", "loss.energy_weight")
            }
        }
    ),
    *(
        _study({"search": "random", "space": {"optimizer.learning_rate": r}})
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
    text = yaml.safe_dump(_study({})).encode()
    how = rng.choice(sorted(damage.BYTES))
    return Trial(lambda: _load(damage.BYTES[how](rng, text), folder, study=True), ANYTHING, what=how)


def _study_value(rng: random.Random, folder: Path) -> Trial:
    """Any value for any setting as one of a study's choices."""
    from leignn_jax.sweeps.space import make_study, members

    key = rng.choice([k for k in sorted(TRAINING) if "." in k])
    value = rng.choice([*STRANGE, *TRAINING[key].good])
    expect = allowed(TRAINING[key], value, key)

    def use() -> Any:
        import jax

        ((_, config),) = members(make_study(_study({"space": {key: [value]}})))
        jax.random.key(config.run.seed)
        np.random.default_rng(config.data.order_seed), np.random.default_rng(config.data.split_seed)
        section, _, field = key.partition(".")
        return config.model_dump(mode="json")[section][field]

    return Trial(use, expect or SAME.giving(value), what=f"{key}: [{value!r:.60}]")


# --------------------------------------------------------------------------- models


def _model_value(rng: random.Random, folder: Path) -> Trial:
    """Any value for any field of a model; the model is made."""
    import jax

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
            lambda: leignn.preset("small", variant=wrong),
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


# --------------------------------------------------------------------------- command line


@functools.cache
def _files() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz.template."))
    potential().save(folder / "p.safetensors")
    ase.io.write(folder / "s.extxyz", silicon(), format="extxyz")
    ase.io.write(folder / "frames.extxyz", copper(4, seed=4), format="extxyz")
    (folder / "junk").write_bytes(b"\0\xff junk")
    (folder / "empty").write_bytes(b"")
    (folder / "config.yaml").write_text("data: {train: nothing.extxyz}\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(_study({})))
    return folder


class Told(Exception):
    """The command line's errors in words."""


def command(words: list[str]) -> str:
    """What a command prints; Told where it ends with an error in words."""
    from leignn_jax import cli

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(words)
    except SystemExit as end:
        code = end.code
    if code in (0, None):
        return out.getvalue()
    said = err.getvalue() or out.getvalue()
    if code not in (1, 2) or "Traceback" in said or not said.strip():
        raise RuntimeError(f"exit code {code}: {said[:200]!r}")
    raise Told(said.strip())


_BAD_NUMBERS = ["-1", "nan", "inf", "x", "", "1e400", "-5", "0", "1.5.5", "١", "1e-400"]
_BAD_COUNTS = ["-1", "x", "1.5", "", "nan", "-99999999999999999999"]
_MD = [
    "md",
    "p.safetensors",
    "s.extxyz",
    "--steps",
    "2",
    "--out",
    "md",
    "--quiet",
    "--save-every",
    "1",
    "--log-every",
    "1",
    "--temperature",
    "300",
]
_RELAX = ["relax", "p.safetensors", "s.extxyz", "--out", "relaxed", "--steps", "2", "--quiet"]

# Options that take other values than these: verb, option, values.
_BAD_OPTIONS: list[tuple[list[str], str, list[str]]] = [
    (_MD, "--steps", _BAD_COUNTS),
    (_MD, "--timestep", _BAD_NUMBERS),
    (_MD, "--temperature", [x for x in _BAD_NUMBERS if x not in ("0", "1e-400")]),
    (_MD, "--pressure", ["1", "nan", "x"]),
    (_MD, "--replicas", [*_BAD_COUNTS, "0", "1000000000"]),
    (_MD, "--save-every", [*_BAD_COUNTS, "0"]),
    (_MD, "--log-every", [*_BAD_COUNTS, "0", "3"]),
    (_MD, "--seed", ["x", "1.5", "99999999999999999999999999", "-99999999999999999999999999"]),
    (_MD, "--dtype", ["float16", "", "x", "float32 ", "int"]),
    (_MD, "--ensemble", ["", "nvee", "x", "npt-foo", "\0"]),
    (_RELAX, "--cell", ["", "x", "fulll"]),
    (_RELAX, "--pressure", ["nan", "x", "inf"]),
    (_RELAX, "--max-force", _BAD_NUMBERS),
    (_RELAX, "--max-stress", [*_BAD_NUMBERS]),
    (_RELAX, "--steps", _BAD_COUNTS),
    (_RELAX, "--dtype", ["float16", ""]),
    (["data", "inspect", "frames.extxyz"], "--cutoff", [*_BAD_NUMBERS, "1e9"]),
    (["data", "inspect", "frames.extxyz"], "--batch-size", [*_BAD_COUNTS, "0"]),
    (["data", "inspect", "frames.extxyz"], "--units", ["x", "", "eV"]),
    (["data", "inspect", "frames.extxyz"], "--against", ["nothing", "junk", "empty", "."]),
    (["evaluate", "p.safetensors", "s.extxyz"], "--units", ["x", "", "eV"]),
    (["evaluate", "p.safetensors", "s.extxyz"], "--dtype", ["x", "", "float16"]),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--steps", [*_BAD_COUNTS, "0", "3"]),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--repeats", [*_BAD_COUNTS, "0"]),
    (
        ["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"],
        "--atoms",
        [*_BAD_COUNTS, "0", "99999999999"],
    ),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--dtype", ["x", ""]),
    (["train", "config.yaml"], "--out", ["junk"]),
]


def _in_files(words: list[str], folder: Path) -> Callable[[], str]:
    shutil.copytree(_files(), folder, dirs_exist_ok=True)
    return lambda: command(words)


def _option(rng: random.Random, folder: Path) -> Trial:
    words, option, values = rng.choice(_BAD_OPTIONS)
    value = rng.choice(values)
    if option in words:
        at = words.index(option)
        words = [*words[:at], *words[at + 2 :]]
    words = [
        *words,
        rng.choice([f"{option}={value}"] if value.startswith("-") else [f"{option}={value}", option]),
        value,
    ]
    if words[-2] != option:
        words.pop()
    return Trial(_in_files(words, folder), REFUSE, what=" ".join(words))


def _file_argument(rng: random.Random, folder: Path) -> Trial:
    """A file of another kind, or none, in the place of one."""
    words = list(
        rng.choice(
            [
                _MD,
                _RELAX,
                ["evaluate", "p.safetensors", "s.extxyz"],
                ["info", "p.safetensors"],
                ["data", "inspect", "frames.extxyz"],
                ["train", "config.yaml"],
                ["sweep", "study.yaml"],
                ["bench", "p.safetensors", "s.extxyz"],
            ]
        )
    )
    place = rng.choice([i for i, w in enumerate(words) if "." in w])
    wrong = rng.choice(
        [
            "nothing",
            "junk",
            "empty",
            ".",
            "/",
            "",
            "a\0b",
            "x" * 5000,
            "frames.extxyz/x",
            "study.yaml",
            "/dev/null",
            "sii",
            "~",
            "s.extxyz@0",
        ]
    )
    if wrong == "study.yaml" and words[0] == "sweep":
        wrong = "junk"
    words[place] = wrong
    return Trial(_in_files(words, folder), REFUSE, what=" ".join(words)[:100])


_NO_COMMANDS = [
    ["x"],
    ["trian"],
    ["train"],
    ["train", "a", "b"],
    ["train", "=1"],
    ["train", "run.epochs=1"],
    ["train", "config.yaml", "run.epochz=1"],
    ["train", "config.yaml", "--processes", "2"],
    ["train", "--train", "nothing.extxyz", "--out", ""],
    ["train", "--train", ""],
    ["train", "config.yaml", "run.out="],
    ["train", "--coordinator", "x", "config.yaml"],
    ["md"],
    ["md", "p.safetensors"],
    ["--x"],
    ["data"],
    ["data", "x"],
    ["data", "get", "nothing-at-all"],
    ["data", "get", "../x"],
    ["data", "get", ""],
    ["info"],
    ["info", "--json"],
    ["info", "p.safetensors", "--json", "."],
    ["info", "p.safetensors", "--json", "nowhere/\0"],
    ["info", "p.safetensors", "--json", "junk/x"],
    ["evaluate", "p.safetensors"],
    ["evaluate", "p.safetensors", "frames.extxyz"],
    ["evaluate", "p.safetensors", "s.extxyz"],
    ["evaluate", "p.safetensors", "s.extxyz", "--direct"],
    ["sweep"],
    ["sweep", "config.yaml"],
    ["sweep", "study.yaml", "x"],
    [*_MD, "--resume"],
    [*_MD[:6], "junk", "--temperature", "3"],
    [*_MD, "x"],
    ["relax", "p.safetensors", "frames.extxyz", "--out", "o"],
    ["relax", "p.safetensors", "s.extxyz", "--out", "junk"],
    ["bench", "p.safetensors", "frames.extxyz"],
    ["quickstart", "--out", "junk"],
    ["quickstart", "x"],
    ["", ""],
    ["-"],
    ["--"],
    ["md", "--", "--"],
    ["data", "inspect", "s.extxyz", "--plot", "junk/x.png"],
]


def _no_command(rng: random.Random, folder: Path) -> Trial:
    words = rng.choice(_NO_COMMANDS)
    return Trial(_in_files(list(words), folder), REFUSE, what=" ".join(words)[:100])


def _right_command(rng: random.Random, folder: Path) -> Trial:
    """Words that are right; what they print must not depend on names of files."""
    name = rng.choice(["p@1.safetensors", "p \u00fc.safetensors", "p.x", "-p.safetensors"])
    words = ["info", f"./{name}"]
    use = _in_files(words, folder)
    (folder / "p.safetensors").rename(folder / name)
    return Trial(use, SAME, lambda: _info(folder / "right"), what=" ".join(words))


def _info(folder: Path) -> str:
    potential().save(folder / "p.safetensors")
    return command(["info", str(folder / "p.safetensors")])


TARGETS = [
    Target("train config", {"value": _training_value, "typo": _typo, "no config": _no_config}, 6),
    Target("overrides", {"value": _override, "no override": _no_override}, 4),
    Target("YAML", {"none": _no_yaml, "same": _same_yaml, "bytes": _yaml_bytes}, 3),
    Target("study", {"none": _no_study, "value": _study_value, "bytes": _study_bytes}, 3),
    Target("model config", {"value": _model_value, "preset": _preset, "create": _create}, 4),
    Target(
        "command line",
        {"option": _option, "file": _file_argument, "no command": _no_command, "right": _right_command},
        4,
        40.0,
        (Told,),
    ),
]
