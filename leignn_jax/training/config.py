"""TrainConfig: everything that a training run is told, from YAML or Python, strictly checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from leignn_jax.arguments import MOST_SEED
from leignn_jax.data.readers.units import unit_factors
from leignn_jax.errors import ConfigError
from leignn_jax.models.config import ALL_VARIANTS, PRESETS, ModelConfig, config_class, did_you_mean, preset
from leignn_jax.training.loss import LossKinds, LossWeights
from leignn_jax.training.optimizer import Hyperparameters
from leignn_jax.training.strict_yaml import parse_yaml, read_yaml

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]


class Section(BaseModel):
    """A part of a config: no unknown key, no truth value for a number, nothing that is no finite number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("true and false are no value of this setting")
        return value


class DataSettings(Section):
    """Which frames, and how they come in batches.

    train, validation, test: files or folders that :func:`leignn_jax.data.read_frames` reads.
    validation_fraction: of train, held out at random where there is no validation file.
    split_seed: of that choice. order_seed: of the order of frames in each epoch.
    max_frames: of train, the first ones.
    units: of all files, see :data:`leignn_jax.data.readers.UNITS`.
    keys: other names of energy, forces, stress.
    reference_energies: "fit" by least squares, "isolated" from ``isolated_atoms``, numbers in eV by symbol, or "keep", those
        of ``run.start_from``, for frames computed as those that it was trained on.
    batch_size: frames per batch; None: as many as have about 128 atoms, one to eight. accumulate: batches per update.
    allow: labels to take as they are although they can't be in eV and Å ("positions", "forces", "energy", "stress"), and
        "duplicates", structures that stand in train and in another set; what is not named here stops the training.
    cache: folder for the frames and their neighbours on disk, for sets larger than memory or slow to read. Each file
        becomes a store in a folder of its own, named by the content of the file, cutoff, units and keys, and built again
        where one of these changes or the store is damaged. Batches are the same to the last bit. None: in memory.
    on_device: whether the frames of train stay on the device, where batches are put together without the host; of one
        device. None: where they take at most a quarter of its memory and there is no ``cache``.
    """

    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: Seed = 0
    order_seed: Seed = 0
    max_frames: Count | None = None
    units: str | None = None
    keys: dict[Literal["energy", "forces", "stress"], str] = {}
    reference_energies: Literal["fit", "isolated", "keep"] | dict[str, float] = "fit"
    isolated_atoms: Path | None = None
    batch_size: Count | None = None
    accumulate: Count = 1
    allow: list[Literal["positions", "forces", "energy", "stress", "duplicates"]] = []
    cache: Path | None = None
    on_device: bool | None = None

    @field_validator("units")
    @classmethod
    def _known_units(cls, value: str | None) -> str | None:
        unit_factors(value)
        return value


class LossSettings(Section):
    """Kinds and weights of the loss, see :mod:`leignn_jax.training.loss`; ``final_*`` None keeps the weight.

    stress_weight: where frames of train have a stress; 0 with direct forces, which give none.
    ramp: the weights turn into the final ones between these fractions of the training.
    """

    energy: Literal["l1", "l2", "huber"] = "huber"
    forces: Literal["l1", "l2", "huber", "norm"] = "norm"
    stress: Literal["l1", "l2", "huber"] = "huber"
    force_source: Literal["gradient", "direct"] = "gradient"
    energy_weight: NotNegative = 1.0
    forces_weight: NotNegative = 1.0
    stress_weight: NotNegative = 1.0
    final_energy_weight: NotNegative | None = None
    final_forces_weight: NotNegative | None = None
    final_stress_weight: NotNegative | None = None
    ramp: tuple[Fraction, Fraction] = (0.5, 0.75)
    huber_delta: Positive = 0.01

    @field_validator("ramp")
    @classmethod
    def _ramp_in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("it begins after its end")
        return value

    def kinds(self, stressed: bool) -> LossKinds:
        """The static part, where frames of train have a stress or none has."""
        with_stress = stressed and (self.stress_weight > 0 or bool(self.final_stress_weight))
        return LossKinds(self.energy, self.forces, self.stress, self.force_source, with_stress)


class OptimizerSettings(Section):
    """Numbers of the optimizer, see :class:`leignn_jax.training.optimizer.Hyperparameters`.

    algorithm: "muon" is for matrices, with Adam for the rest: dearer steps, of which fewer are needed
        (``experiments/recipe``). "adam" goes well with the same learning rate.
    schedule: "cosine" over the whole training, or "constant"; warm-up and plateau come on top.
    warmup_epochs: may be a fraction of an epoch; None: two, or a tenth of the training where that is less.
    plateau_patience: epochs; None never.
    weight_decay: of matrices, beside the gradient; where frames are few some of it lowers errors (``experiments/recipe``).
    freeze: patterns of parameters that are not trained.
    """

    algorithm: Literal["adam", "amsgrad", "muon"] = "muon"
    learning_rate: Positive = 5e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NotNegative | None = None
    final_fraction: Fraction = 0.0
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.8
    plateau_patience: Count | None = None
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    clip_norm: Positive = 10.0
    ema_decay: BelowOne = 0.999
    freeze: list[str] = []


class RunSettings(Section):
    """Where and how long.

    out: the run folder.
    seed: of the first parameters.
    start_from: a potential to go on from (fine-tuning), a file or the name of a bundled one; its model is kept.
    epochs: of training. validate_every: epochs.
    early_stop: epochs without a better validation loss after which the next validation stops the training; None never.
    checkpoint_minutes: between checkpoints; keep: how many.
    devices: among which the batches of one update are divided; each takes ``data.batch_size`` frames.
    tensorboard, wandb: log there too (each needs its package); wandb is the project's name.
    """

    out: Path = Path("run")
    seed: Seed = 0
    start_from: Path | None = None
    epochs: Count = 100
    early_stop: Count | None = None
    validate_every: Count = 1
    checkpoint_minutes: NotNegative = 2.0
    keep: Annotated[int, Field(ge=2)] = 2
    devices: Count = 1
    tensorboard: bool = False
    wandb: str | None = None


class TrainConfig(Section):
    """A training run: data, model (a preset's name, a variant's, and any field of its config), loss, optimizer, run.

    recipe: what is not said comes from "default" or from "published", the recipe of arXiv:2311.02869 (direct forces,
    AMSGrad, learning rate 5e-4 reduced on plateaus).
    """

    recipe: Literal["default", "published"] = "default"
    data: DataSettings = DataSettings()
    model: dict[str, Any] = {}
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings = RunSettings()

    def model_for(self, elements: Sequence[str]) -> ModelConfig:
        """The model's config; elements of the data where the config names none."""
        settings = dict(self.model)
        name = settings.pop("preset", "medium")
        variant = settings.pop("variant", None)
        settings.setdefault("elements", tuple(elements))
        missing = sorted(set(elements) - set(settings["elements"]))
        if missing:
            raise ConfigError(f"model.elements lacks {missing[0]}, which the data hold.")
        return preset(name, variant=variant, **settings)

    def cutoff(self) -> float:
        """The model's cutoff in Å, whatever the elements of the data."""
        return self.model_for(self.model.get("elements", ("H",))).cutoff

    def hyperparameters(self, steps_per_epoch: int) -> Hyperparameters:
        """The numbers of the training as arrays' worth of floats."""
        o, loss = self.optimizer, self.loss
        total = float(self.run.epochs * steps_per_epoch)
        warmup = min(2.0, 0.1 * self.run.epochs) if o.warmup_epochs is None else o.warmup_epochs
        first = LossWeights(loss.energy_weight, loss.forces_weight, loss.stress_weight, loss.huber_delta)

        def final(value, start):
            return start if value is None else value

        last = LossWeights(
            final(loss.final_energy_weight, first.energy),
            final(loss.final_forces_weight, first.forces),
            final(loss.final_stress_weight, first.stress),
            loss.huber_delta,
        )
        return Hyperparameters(
            learning_rate=o.learning_rate,
            warmup_steps=warmup * steps_per_epoch,
            decay_steps=total if o.schedule == "cosine" else math.inf,
            final_fraction=o.final_fraction,
            plateau_factor=o.plateau_factor,
            plateau_patience=math.inf if o.plateau_patience is None else float(o.plateau_patience),
            beta1=o.beta1,
            beta2=o.beta2,
            epsilon=o.epsilon,
            weight_decay=o.weight_decay,
            clip_norm=o.clip_norm,
            ema_decay=o.ema_decay,
            weights=first,
            final_weights=last,
            ramp_start=loss.ramp[0] * total,
            ramp_end=loss.ramp[1] * total,
        )


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {
        "model": {"preset": "published"},
        "loss": {
            "energy": "l1",
            "forces": "norm",
            "force_source": "direct",
            "energy_weight": 0.001,
            "forces_weight": 0.999,
            "stress_weight": 0.0,
        },
        "optimizer": {
            "algorithm": "amsgrad",
            "learning_rate": 5e-4,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "plateau_factor": 0.8,
            "plateau_patience": 5,
            "weight_decay": 0.01,
            "clip_norm": 100.0,
            "ema_decay": 0.999,
        },
    },
}


def make_config(values: Mapping[str, Any], overrides: Sequence[str] = (), kind: type[TrainConfig] = TrainConfig) -> Any:
    """A checked config from nested values and ``section.key=value`` overrides; of a ``kind`` with more sections.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong kind or out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError("A config is sections of keys and values, such as `data: {train: frames.extxyz}`.")
    values = _merge({}, values)
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign or not path:
            raise ConfigError(f"{override!r}: write section.key=value, such as optimizer.learning_rate=1e-3.")
        try:
            nested: Any = parse_yaml(text)
        except ConfigError as error:
            raise ConfigError(f"{override!r}: the value is not readable as YAML; quote it. ({error})") from error
        for key in reversed(path.split(".")):
            nested = {key: nested}
        values = _merge(values, nested)
    recipe = values.get("recipe", "default")
    if isinstance(recipe, str) and recipe in RECIPES:
        said = dict(RECIPES[recipe])
        if isinstance(values.get("run"), Mapping) and values["run"].get("start_from") is not None:
            said.pop("model", None)
        values = _merge(said, values)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind)) from None
    if config.run.start_from is None:
        _check_model(config)
    elif config.model:
        raise ConfigError("model: leave it out where run.start_from gives the model.")
    if config.data.reference_energies == "keep" and config.run.start_from is None:
        raise ConfigError('data.reference_energies: "keep" needs run.start_from, a potential to keep them of.')
    if config.data.isolated_atoms is not None and config.data.reference_energies != "isolated":
        raise ConfigError(
            "data.isolated_atoms: the file is used with data.reference_energies=isolated; set that, or leave the file out."
        )
    if config.loss.force_source == "direct" and config.loss.kinds(stressed=True).with_stress:
        raise ConfigError("loss: direct forces give no stress; set loss.stress_weight to 0.")
    return config


def load_config(path: str | Path, overrides: Sequence[str] = (), kind: type[TrainConfig] = TrainConfig) -> Any:
    """The config in a YAML file; paths in it are relative to the working directory."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file.")
    try:
        return make_config(read_yaml(path) or {}, overrides, kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def in_full(config: TrainConfig) -> dict[str, Any]:
    """The config with every value said: of the model too, whose presets may be others in another version, unless it is that
    of ``run.start_from``."""
    values = config.model_dump(mode="json")
    if config.run.start_from is not None:
        return values
    model = dataclasses.asdict(config.model_for(config.model.get("elements", ("H",))))
    # Where the config names none they are of the data, by which a run is known too.
    del model["elements"]
    return {**values, "model": {**values["model"], **model}}


def dump_config(config: TrainConfig) -> str:
    """The config as YAML, every value said."""
    return yaml.safe_dump(in_full(config), sort_keys=False)


# Where files lie; a run or a study is known by what they hold, which hashes tell.
_PLACES = ("data.train", "data.validation", "data.test", "data.isolated_atoms", "run.start_from")
_OWN_PLACES = ("run.out", "data.cache")


def by_content(values: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
    """Settings by dotted name, the same wherever files and folders lie: of a file no more than whether there is one.

    keep: files that stay as they are.
    """
    flat = flattened(values)
    return {k: v is not None if k in _PLACES and k not in keep else v for k, v in flat.items() if k not in _OWN_PLACES}


def flattened(values: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as one dict by dotted names."""
    if not isinstance(values, Mapping):
        return {name: values}
    return {
        k: v for key, one in values.items() for k, v in flattened(one, f"{name}.{key}" if name else str(key)).items()
    }


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def _check_model(config: TrainConfig) -> None:
    settings = dict(config.model)
    elements = settings.pop("elements", ("H",))
    known = ["preset", "variant", *config_class(settings.get("variant")).__dataclass_fields__]
    for key in settings:
        if key not in known:
            raise ConfigError(f"model: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        made = config.model_copy(update={"model": {**settings, "elements": elements}}).model_for(tuple(elements))
    except TypeError as error:
        raise ConfigError(f"model: {error}. Presets: {list(PRESETS)}; variants: {list(ALL_VARIANTS)}.") from error
    if config.loss.force_source == "direct" and not made.direct_forces:
        raise ConfigError("loss.force_source is direct, but the model has no such head: set model.direct_forces=true.")


def _explain(error: ValidationError, kind: type[TrainConfig]) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(
                f"unknown key {place!r}{did_you_mean(str(problem['loc'][-1]), _keys_at(kind, problem['loc']))}"
            )
        elif problem["type"] == "union_tag_invalid":
            facts = problem.get("ctx", {})
            known = [word.strip(" '") for word in facts["expected_tags"].split(",")]
            tag = facts["tag"]
            lines.append(f"{place}: {tag!r} is none of {', '.join(known)}{did_you_mean(tag, known)}")
        elif problem["type"] == "missing":
            lines.append(f"{place} is missing.")
        else:
            lines.append(f"{place} = {problem['input']!r}: {problem['msg']}.")
    return " ".join(lines)


def _keys_at(kind: type[Section], place: Sequence[int | str]) -> list[str]:
    """The keys of the section in which the last part of ``place`` stands; of kinds of sections, the part names the kind."""
    found = [kind]
    for part in place[:-1]:
        if isinstance(part, str) and len(found) == 1:
            found = _sections_in(found[0].model_fields[part].annotation)
        elif isinstance(part, str):
            found = [one for one in found if part in get_args(one.model_fields["observable"].annotation)]
    return list(found[0].model_fields)


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]
