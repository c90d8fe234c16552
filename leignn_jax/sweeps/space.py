"""Search spaces: which settings a study varies, and the members that a grid or random draws give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leignn_jax.errors import ConfigError
from leignn_jax.models.config import did_you_mean
from leignn_jax.training.config import RunSettings, Seed, TrainConfig, by_content, in_full, make_config
from leignn_jax.training.loss import METRICS
from leignn_jax.training.strict_yaml import read_yaml

# Each has its own state on the device and its own line of the table.
MOST_MEMBERS = 100_000
_SMALLEST, _LARGEST = 1e-37, 1e18


class Range(BaseModel):
    """Numbers to draw: ``{uniform: [a, b]}``, ``{log_uniform: [a, b]}`` or ``{integers: [a, b]}`` (b included)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = None

    def bounds(self) -> tuple[float, float]:
        """The least and the largest number."""
        return self.uniform or self.log_uniform or self.integers or (0.0, 0.0)

    def draw(self, rng: np.random.Generator, name: str) -> float | int:
        """One number; raises ConfigError where the range is none."""
        given = [x for x in (self.uniform, self.log_uniform, self.integers) if x is not None]
        if len(given) != 1 or not given[0][0] < given[0][1]:
            raise ConfigError(f"space.{name}: give one of uniform, log_uniform, integers as [low, high], low < high.")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ConfigError(f"space.{name}: log_uniform needs positive numbers, not {self.log_uniform[0]}.")
        if not all(_SMALLEST <= abs(x) <= _LARGEST or x == 0 for x in given[0]):
            raise ConfigError(
                f"space.{name}: {list(given[0])} are not within {_SMALLEST:g} and {_LARGEST:g}, where single precision and "
                "whole numbers end."
            )
        if self.integers is not None:
            return int(rng.integers(self.integers[0], self.integers[1], endpoint=True))
        low, high = given[0]
        if self.log_uniform is not None:
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
        return float(rng.uniform(low, high))


class Halving(BaseModel):
    """Successive halving: of all that have come to a rung, one in ``factor`` goes on; the first rung is after
    ``first_epochs``, each other one after ``factor`` times as many as the one before."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    first_epochs: Annotated[int, Field(ge=1)] = 5
    factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> list[int]:
        """Epochs of a training of ``epochs`` after which it is decided."""
        found, rung = [], self.first_epochs
        while rung < epochs:
            found.append(rung)
            rung *= self.factor
        return found


class Evolution(BaseModel):
    """Population-based training: ``every`` so many epochs the worst ``fraction`` of a population, one at least, takes over
    the parameters and settings of members of the best one, whose numbers are then multiplied or divided by ``factor``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: Annotated[int, Field(ge=1)] = 5
    fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    factor: Annotated[float, Field(gt=1)] = 1.25


# The column that says what energy, forces and stress of a shape take.
COST = "microseconds_per_atom"
# Searches whose members are known before the first is trained; and those that ask a sampler of Optuna's for each.
LISTED, ASKED = ("grid", "random", "evolution"), ("tpe", "cmaes", "gp", "qmc", "nsga2")


class StudyConfig(BaseModel):
    """A study: a training and what to vary in it.

    base: a training's config, see :class:`leignn_jax.training.config.TrainConfig`; ``run.out`` is the study's folder.
    space: settings as "section.key", each with a list of choices or a range.
    search: "grid" takes all combinations of lists; "random" draws ``samples`` members; "evolution" draws them too, and
        then the better replace the worse; "tpe", "cmaes", "gp", "qmc", "nsga2" ask a sampler of Optuna's for one trial
        after the other, until there are ``samples``.
    samples: members of a search that is no grid; of all workers together.
    seed: of the draws.
    members_at_once: members trained in one program; more are trained one lot after another, or as places become free.
        None is all, and 8 where a sampler is asked.
    mesh: devices along ("sweep", "data").
    halving: drop those that do badly early; of a sampler's trials.
    evolution: of search "evolution".
    startup: trials before a sampler goes by what was found.
    objectives: columns of the results to make small, such as "validation_loss", "validation_forces_mae_mev_per_angstrom",
        "microseconds_per_atom"; the table is sorted by the first, and several give a front of the best (nsga2, tpe). Where
        the weights of the loss vary, losses can't be compared: take an error.
    storage: where a sampler's trials are kept: a journal's file or a database's URL, which several workers may share, each
        with a ``run.out`` of its own. None is trials.log in the study's folder.
    name: of the study within the storage.
    trials_per_shape: where settings change the model's shape, trials that are trained in one program before the sampler is
        asked for another shape. None is twice ``members_at_once``.
    patience_minutes: a trial of which nothing was heard for so long is another worker's to train.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: dict[str, Any] = {}
    space: dict[str, list[Any] | Range] = {}
    search: Literal["grid", "random", "evolution", "tpe", "cmaes", "gp", "qmc", "nsga2"] = "grid"
    samples: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] = 16
    seed: Seed = 0
    members_at_once: Annotated[int, Field(ge=1)] | None = None
    mesh: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    halving: Halving | None = None
    evolution: Evolution = Evolution()
    startup: Annotated[int, Field(ge=1)] = 10
    objectives: Annotated[list[str], Field(min_length=1)] = ["validation_loss"]
    storage: str | None = None
    name: Annotated[str, Field(min_length=1)] = "study"
    trials_per_shape: Annotated[int, Field(ge=1)] | None = None
    patience_minutes: Annotated[float, Field(gt=0)] = 60.0


def make_study(values: Mapping[str, Any]) -> StudyConfig:
    """A checked study from nested values; raises ConfigError with the nearest known key."""
    if not isinstance(values, Mapping):
        raise ConfigError("A study is sections of keys and values: base, space, search, samples, mesh.")
    for key in values:
        if key not in StudyConfig.model_fields:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, list(StudyConfig.model_fields))}")
    try:
        study = StudyConfig.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}: {problem['msg']}.") from None
    _check_search(study)
    _check_base(study)
    if study.search in ASKED:
        _check_choices(study)
    else:
        members(study)
    return study


def _check_search(study: StudyConfig) -> None:
    """ConfigError where settings of a study don't fit its search."""
    asked = study.search in ASKED
    for name in ("halving", "storage", "trials_per_shape"):
        if getattr(study, name) is not None and not asked:
            raise ConfigError(
                f"{name}: it is for searches that ask for one trial after the other ({', '.join(ASKED)}), not for "
                f"{study.search}."
            )
    makes_use = {
        "startup": asked,
        "patience_minutes": asked,
        "name": asked,
        "evolution": study.search == "evolution",
        "samples": study.search != "grid",
    }
    for name, used in makes_use.items():
        if not used and getattr(study, name) != StudyConfig.model_fields[name].default:
            raise ConfigError(f"{name}: search {study.search} makes no use of it; leave it out.")
    known = ["validation_loss", COST, *(f"validation_{name}" for name in METRICS)]
    for name in study.objectives:
        if name not in known:
            raise ConfigError(f"objectives: {name!r} is no column of the results{did_you_mean(name, known)}")
    if len(study.objectives) > 1:
        if study.search not in ("nsga2", "tpe"):
            raise ConfigError(f"objectives: several are for search nsga2 or tpe, not {study.search}.")
        if study.halving is not None:
            raise ConfigError("halving: it goes by one number; leave it out, or give one objective.")
    if study.halving is not None and study.objectives[0] == COST:
        raise ConfigError(f"halving: {COST} does not change with the epochs; give an error as objective.")
    if study.search == "evolution":
        shapes = [name for name in study.space if not is_number(name)]
        if shapes:
            raise ConfigError(
                f"space.{shapes[0]}: members of search evolution take over each other's parameters, so that they must have "
                "one shape. Put it in base."
            )


def _check_base(study: StudyConfig) -> None:
    """ConfigError where a study's trainings have what a study does in another way."""
    run = study.base.get("run", {})
    if not isinstance(run, Mapping):
        return
    if run.get("devices", 1) != 1:
        raise ConfigError("base.run.devices: a study's devices are mesh: [members side by side, parts of a batch].")
    if "run.seed" in study.space and run.get("start_from") is not None:
        raise ConfigError(
            "space.run.seed: it makes the first parameters, and members that start from a potential (run.start_from) have "
            "those of it: they would all be the same. Vary data.order_seed."
        )
    for name in ("tensorboard", "wandb"):
        if run.get(name):
            raise ConfigError(f"base.run.{name}: members of a study are not logged there; leave it out.")


def place_of(study: StudyConfig) -> Path:
    """The study's folder; what else the base says need not be a config before members add to it."""
    run = study.base.get("run", {})
    return RunSettings(out=run.get("out", RunSettings.model_fields["out"].default)).out


def _check_choices(study: StudyConfig) -> None:
    """ConfigError where a training can't be built with one of the choices, the others being the first ones."""
    _check_space(study)
    for name, choices in study.space.items():
        if isinstance(choices, Range):
            choices.draw(np.random.default_rng(0), name)
    first = {name: some_choice(choices) for name, choices in study.space.items()}
    for name, choices in study.space.items():
        for choice in [first[name]] if isinstance(choices, Range) else choices:
            config_of(study, {**first, name: choice})


def some_choice(choices: list[Any] | Range) -> Any:
    """One of a setting's values."""
    return choices.bounds()[0] if isinstance(choices, Range) else choices[0]


def config_of(study: StudyConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """A member's whole config."""
    return make_config(_set(study.base, settings))


def is_number(name: str) -> bool:
    """Whether a setting, "section.key", becomes an array's leaf."""
    section, _, key = name.partition(".")
    return key in NUMBERS.get(section, frozenset())


def has_shapes(study: StudyConfig) -> bool:
    """Whether members may differ in their model's shape."""
    return not all(is_number(name) for name in study.space)


def _check_space(study: StudyConfig) -> None:
    if not study.space:
        raise ConfigError("space: name at least one setting to vary, such as run.seed: [0, 1, 2, 3].")
    unused = [f"run.{name}" for name in ("devices", "tensorboard", "wandb", "keep", "checkpoint_minutes", "out")]
    wrong = [name for name in study.space if name in (*unused, "data.cache", "data.test")]
    if wrong:
        raise ConfigError(f"space.{wrong[0]}: members can't differ in it; say it once, in the base.")
    empty = [name for name, choices in study.space.items() if choices == []]
    if empty:
        raise ConfigError(f"space.{empty[0]}: an empty list leaves no member; give one value or more.")


def load_study(path: str | Path) -> StudyConfig:
    """The study in a YAML file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such study file.")
    try:
        return make_study(read_yaml(path) or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def checked_study(study: StudyConfig | Mapping[str, Any] | str | Path) -> StudyConfig:
    """The study of a YAML file, of nested settings, or as it is; raises ConfigError."""
    if isinstance(study, str | Path):
        return load_study(study)
    if isinstance(study, Mapping):
        return make_study(study)
    if not isinstance(study, StudyConfig):
        raise ConfigError(f"study must be a YAML file, nested settings or a StudyConfig, not {type(study).__name__}.")
    return study


def members(study: StudyConfig) -> list[tuple[dict[str, Any], TrainConfig]]:
    """All members of a search that knows them: what each varies, and its whole config."""
    _check_space(study)
    if study.search == "grid":
        ranges = [name for name, choices in study.space.items() if isinstance(choices, Range)]
        if ranges:
            raise ConfigError(f"space.{ranges[0]}: a grid needs a list of choices; draw from ranges by search: random.")
        count = math.prod(len(choices) for choices in study.space.values() if isinstance(choices, list))
        if count > MOST_MEMBERS:
            raise ConfigError(
                f"space: a grid of {count:,} members is more than {MOST_MEMBERS:,}; draw some by search: random."
            )
        lists = [choices for choices in study.space.values() if isinstance(choices, list)]
        points = [dict(zip(study.space, point, strict=True)) for point in itertools.product(*lists)]
    else:
        rng = np.random.default_rng(study.seed)
        points = [
            {
                name: choices.draw(rng, name)
                if isinstance(choices, Range)
                else choices[int(rng.integers(len(choices)))]
                for name, choices in study.space.items()
            }
            for _ in range(study.samples)
        ]
    return [(point, config_of(study, point)) for point in points]


def _set(values: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for name, value in point.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise ConfigError(f"space.{name}: write section.key, such as optimizer.learning_rate.")
        if not isinstance(out.get(section, {}), Mapping):
            raise ConfigError(f"base.{section}: {out[section]!r:.60} is no section of keys and values.")
        out[section] = {**out.get(section, {}), key: value}
    return out


# Settings that become array leaves: members that differ in these alone train in one program.
NUMBERS: dict[str, frozenset[str]] = {
    "run": frozenset({"seed"}),
    "optimizer": frozenset(
        {
            "learning_rate",
            "schedule",
            "warmup_epochs",
            "final_fraction",
            "plateau_factor",
            "plateau_patience",
            "beta1",
            "beta2",
            "epsilon",
            "weight_decay",
            "clip_norm",
            "ema_decay",
        }
    ),
    "loss": frozenset(
        {
            "energy_weight",
            "forces_weight",
            "stress_weight",
            "final_energy_weight",
            "final_forces_weight",
            "final_stress_weight",
            "ramp",
            "huber_delta",
        }
    ),
}


def group_key(config: TrainConfig, varied: Collection[str]) -> str:
    """The same for members that one compiled program can train, wherever files lie that are not ``varied`` in the study."""
    values = {name: value for name, value in by_content(in_full(config), keep=varied).items() if not is_number(name)}
    return yaml.safe_dump({**values, "with_stress": config.loss.kinds(stressed=True).with_stress}, sort_keys=True)
