"""What a person sees while training: a progress bar, one line per epoch in a CSV, TensorBoard and wandb on request."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leignn_jax.errors import ConfigError
from leignn_jax.files import write_atomically
from leignn_jax.progress import ProgressBar

if TYPE_CHECKING:
    from leignn_jax.training.config import TrainConfig


class History:
    """One row per epoch, in memory and in a CSV file that grows line by line."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch; the file is rewritten where the row has new columns."""
        columns = self.rows[0].keys() if self.rows else ()
        self.rows.append(row)
        if not columns or not row.keys() <= set(columns):
            self.rewrite()
            return
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)

    def rewrite(self) -> None:
        """The whole file from the rows in memory."""
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())


def open_loggers(config: TrainConfig, closing: contextlib.ExitStack) -> list[Callable[[Mapping[str, Any]], None]]:
    """Functions that take each epoch's row, as the config asks, and to ``closing`` what ends them.

    Raises:
        ConfigError: a package is missing.
    """
    loggers: list[Callable[[Mapping[str, Any]], None]] = []
    if config.run.tensorboard:
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("run.tensorboard needs `pip install tensorboardX`.") from error
        writer = SummaryWriter(str(config.run.out / "tensorboard"))
        closing.callback(writer.close)

        def to_tensorboard(row: Mapping[str, Any]) -> None:
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("epoch", "step"):
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

        loggers.append(to_tensorboard)
    if config.run.wandb is not None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("run.wandb needs `pip install wandb`.") from error
        # A training that goes on logs into the run that it began.
        note = config.run.out / "wandb.txt"
        known = note.read_text().strip() if note.exists() else None
        run = wandb.init(
            project=config.run.wandb,
            dir=str(config.run.out),
            config=config.model_dump(mode="json"),
            id=known,
            resume=None if known is None else "allow",
        )
        write_atomically(note, run.id.encode())
        # Else the next training of this process would log into the same run.
        closing.callback(run.finish)
        loggers.append(lambda row: run.log(dict(row), step=row["step"]))
    return loggers


def summary_line(row: Mapping[str, Any]) -> str:
    """One epoch in one line."""

    def show(name: str, unit: str) -> str:
        parts = [row.get(f"{split}_{name}") for split in ("train", "validation")]
        return "/".join("–" if value is None else f"{value:.1f}" for value in parts) + f" {unit}"

    return (
        f"epoch {row['epoch']:4d}  energy MAE {show('energy_mae_mev_per_atom', 'meV/atom')}  "
        f"forces MAE {show('forces_mae_mev_per_angstrom', 'meV/Å')}  (train/validation)  {row['seconds']:.1f} s"
    )


class TrainingProgress:
    """Steps done, rate and time left in a terminal; a live plot in a notebook; one line per epoch elsewhere."""

    def __init__(self, total: int, show: bool | None, done: int = 0):
        """``total`` steps of which ``done`` are done; ``show`` False is silence."""
        self._style = _style(show)
        self._done = done
        self._bar = ProgressBar("training", total, self._style == "terminal", done=done)
        self._plot: Any = None

    def __enter__(self) -> TrainingProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._bar.__exit__()

    def update(self, shown: Mapping[str, Any] | None = None, steps: int = 1) -> None:
        """So many steps more, and the last one's loss where it is at hand."""
        self._done += steps
        if self._bar.visible:
            self._bar.update(self._done, None if shown is None else f"loss {float(shown['loss']):.4g}")

    def note(self, text: str) -> None:
        """A line beside the bar."""
        self._bar.note(text)
        if self._style in ("lines", "notebook"):
            print(text, file=sys.stderr, flush=True)

    def epoch(self, row: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        """One epoch more, the last of ``rows``."""
        if self._style != "notebook":
            self.note(summary_line(row))
            return
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        from leignn_jax.training.report import learning_curve

        figure = learning_curve(rows)
        if self._plot is None:
            self._plot = display(figure, display_id=True)
        else:
            self._plot.update(figure)


def _style(show: bool | None) -> str:
    if show is False:
        return "none"
    if "ipykernel" in sys.modules:
        return "notebook"
    return "terminal" if sys.stderr.isatty() else "lines"
