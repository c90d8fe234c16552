"""``leignn_jax.train``: a training from a config, a YAML file or a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leignn_jax.arguments import check_flag, check_sequence
from leignn_jax.errors import ConfigError
from leignn_jax.training.config import TrainConfig, load_config, make_config
from leignn_jax.training.loop import TrainResult
from leignn_jax.training.loop import train as train_config


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    progress: bool | None = None,
) -> TrainResult:
    """Train a potential, or go on with a run that was stopped; see :func:`leignn_jax.training.loop.train`.

    Args:
        config: a YAML file, nested settings such as ``{"data": {"train": "frames.extxyz"}}``, or a checked TrainConfig.
        overrides: ``"section.key=value"`` on top.
        resume: False refuses a run folder that holds a run.
        progress: show progress; None where it can be seen.
    """
    if isinstance(overrides, str) or not all(isinstance(one, str) for one in check_sequence("overrides", overrides)):
        raise ConfigError('overrides must be a list of "section.key=value".')
    check_flag("resume", resume)
    if isinstance(config, str | Path):
        config = load_config(config, overrides)
    elif isinstance(config, Mapping):
        config = make_config(config, overrides)
    elif not isinstance(config, TrainConfig):
        raise ConfigError(
            f"config must be a YAML file, nested settings or a TrainConfig, not {type(config).__name__}. A few words do: "
            '{"data": {"train": "frames.extxyz"}}.'
        )
    elif overrides:
        config = make_config(config.model_dump(), overrides)
    return train_config(config, resume=resume, progress=progress)
