"""``leignn_jax.fit``: a potential fitted to DFT frames and to measured numbers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from leignn_jax.fitting.config import FitConfig
from leignn_jax.fitting.targets import Targets
from leignn_jax.training.api import checked_config
from leignn_jax.training.train import TrainResult, train


def fit(
    config: FitConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    progress: bool | None = None,
) -> TrainResult:
    """Train on frames and targets, or go on with a fit that was stopped; a run folder as :func:`leignn_jax.train` leaves.

    Its metrics.csv has each target's deviation by epoch, its report.html what simulations of their own give before and
    after, beside the errors on frames before and after.

    Args:
        config: a YAML file, nested settings or a :class:`leignn_jax.fitting.config.FitConfig`.
        overrides: ``"section.key=value"`` on top.
        resume: False refuses a run folder that holds a run.
        progress: show progress; None where it can be seen.

    Raises:
        ConfigError: unknown or unfit settings, a target that its structure can't have.
        FileFormatError: a curve's file whose columns or range do not fit.
        TrainingError: as :func:`leignn_jax.train`; a target's simulation broke down.
        SimulationError: no minimum was found.
    """
    checked = checked_config(config, overrides, resume, FitConfig)
    return train(checked, resume=resume, progress=progress, more=partial(Targets, checked.targets))
