"""``leignn_jax.train``: a training from a config, a YAML file or a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leignn_jax.arguments import check_flag, check_sequence
from leignn_jax.errors import ConfigError
from leignn_jax.training.config import TrainConfig, load_config, make_config
from leignn_jax.training.train import TrainResult
from leignn_jax.training.train import train as train_config


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    progress: bool | None = None,
) -> TrainResult:
    """Train a potential, or go on with a run that was stopped; see :func:`leignn_jax.training.train.train`.

    Args:
        config: a YAML file, nested settings such as ``{"data": {"train": "frames.extxyz"}}``, or a checked TrainConfig.
        overrides: ``"section.key=value"`` on top.
        resume: False refuses a run folder that holds a run.
        progress: show progress; None where it can be seen.
    """
    return train_config(checked_config(config, overrides, resume), resume=resume, progress=progress)


def checked_config(config: Any, overrides: Sequence[str], resume: bool, kind: type[TrainConfig] = TrainConfig) -> Any:
    """The config of these arguments, of a ``kind`` with more sections; ConfigError where one is not what it must be."""
    if isinstance(overrides, str) or not all(isinstance(one, str) for one in check_sequence("overrides", overrides)):
        raise ConfigError('overrides must be a list of "section.key=value".')
    check_flag("resume", resume)
    if isinstance(config, str | Path):
        return load_config(config, overrides, kind)
    if isinstance(config, Mapping):
        return make_config(config, overrides, kind)
    if not isinstance(config, kind):
        raise ConfigError(
            f"config must be a YAML file, nested settings or a {kind.__name__}, not {type(config).__name__}. A few words "
            'do: {"data": {"train": "frames.extxyz"}}.'
        )
    if config.recipe != "default" and any(one.startswith("recipe=") for one in overrides):
        raise ConfigError(
            f"recipe: this config has been made with the recipe {config.recipe}; make it anew with another."
        )
    # As it was said: what was not is for the recipe to say.
    return make_config(config.model_dump(exclude_unset=True), overrides, kind)
