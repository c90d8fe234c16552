"""What a person sees while training: a progress bar, one line per epoch in a CSV, TensorBoard and wandb on request."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from leignn_jax.errors import ConfigError
from leignn_jax.files import write_atomically

if TYPE_CHECKING:
    from leignn_jax.training.config import TrainConfig


T = TypeVar("T")


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


def open_loggers(config: TrainConfig) -> list[Callable[[Mapping[str, Any]], None]]:
    """Functions that take each epoch's row, as the config asks; ConfigError where a package is missing."""
    loggers: list[Callable[[Mapping[str, Any]], None]] = []
    if config.run.tensorboard:
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("run.tensorboard needs `pip install tensorboardX`.") from error
        writer = SummaryWriter(str(config.run.out / "tensorboard"))

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
        run = wandb.init(project=config.run.wandb, dir=str(config.run.out), config=config.model_dump(mode="json"))
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


class ProgressBar:
    """Steps done, rate and time left in a terminal; a live plot in a notebook; one line per epoch elsewhere."""

    def __init__(self, total: int, style: str):
        self.style = style
        self._plot: Any = None
        self._bar: Any = None
        if style == "terminal":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} steps/s"),
                TimeRemainingColumn(),
                TextColumn("loss {task.fields[loss]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("training", total=total, rate="–", loss="–")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, done: int) -> None:
        """Begin at a step other than the first."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def update(self, shown: Mapping[str, Any] | None = None) -> None:
        """One step more, and its loss where it is at hand."""
        if self._bar is not None:
            speed = self._bar.tasks[0].speed
            fields = {} if shown is None else {"loss": f"{float(shown['loss']):.4g}"}
            self._bar.update(self._task, advance=1, rate="–" if speed is None else f"{speed:.3g}", **fields)

    def note(self, text: str) -> None:
        """A line beside the bar."""
        if self.style == "terminal":
            self._bar.console.print(text, highlight=False)
        elif self.style in ("lines", "notebook"):
            print(text, file=sys.stderr, flush=True)

    def epoch(self, row: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        """One epoch more."""
        if self.style == "terminal":
            self._bar.console.print(summary_line(row), highlight=False)
        elif self.style == "lines":
            print(summary_line(row), file=sys.stderr, flush=True)
        elif self.style == "notebook":
            from IPython.display import display  # pyright: ignore[reportMissingImports]

            from leignn_jax.training.report import learning_curve

            figure = learning_curve(rows)
            if self._plot is None:
                self._plot = display(figure, display_id=True)
            else:
                self._plot.update(figure)


def progress_bar(total: int, show: bool | None) -> ProgressBar:
    """The kind of progress that fits where the process runs; ``show`` False is none."""
    return ProgressBar(total, _style(show))


def _style(show: bool | None) -> str:
    if show is False:
        return "none"
    if "ipykernel" in sys.modules:
        return "notebook"
    return "terminal" if sys.stderr.isatty() else "lines"


# Between lines about long work where there is no terminal.
_LINE_SECONDS = 30.0


def count_frames(frames: Iterable[T], doing: str, show: bool | None) -> Iterator[T]:
    """The same frames, counted with their rate: on a terminal as they come, elsewhere in a line now and then."""
    style = _style(show)
    started = said = time.monotonic()
    count = 0

    def line() -> str:
        return f"{doing}: {count} frames, {count / max(time.monotonic() - started, 1e-9):.3g} frames/s"

    if style == "terminal":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(line(), total=None)
            for item in frames:
                yield item
                count += 1
                if count % 64 == 0:
                    bar.update(task, description=line())
            bar.update(task, description=line(), total=count, completed=count)
        return
    for item in frames:
        yield item
        count += 1
        if style != "none" and time.monotonic() - said > _LINE_SECONDS:
            print(line(), file=sys.stderr, flush=True)
            said = time.monotonic()
    if style != "none":
        print(line(), file=sys.stderr, flush=True)
