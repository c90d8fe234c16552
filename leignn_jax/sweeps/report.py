"""What a study leaves for people: tables, curves, settings and a page."""

from __future__ import annotations

import csv
import html
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leignn_jax.files import write_atomically
from leignn_jax.plotting import new_figure, save_figure
from leignn_jax.training.report import page, picture, table

log = logging.getLogger("leignn_jax")

# What is written.
REPORTS = ("results.csv", "results.parquet", "history.csv", "curves.png", "settings.png", "report.html")


def write_study(
    out: Path, rows: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
    """results.csv and .parquet, history.csv, curves.png, settings.png and report.html in ``out``.

    Args:
        rows: of each member, best first.
        history: of each member and epoch.
        names: of the settings that the study varies.
    """
    write_atomically(out / "results.csv", _csv(rows).encode())
    write_atomically(out / "history.csv", _csv(history).encode())
    try:
        import pandas

        buffer = io.BytesIO()
        pandas.DataFrame(rows).to_parquet(buffer)
        write_atomically(out / "results.parquet", buffer.getvalue())
    except ImportError:
        log.info("results.parquet needs `pip install pandas pyarrow`; results.csv is the same.")
    images = [picture(save_figure(_curves(history), out / "curves.png"), "Validation loss of every member")]
    settings = [name for name in names if len({str(row[name]) for row in rows}) > 1]
    if settings:
        images.append(picture(save_figure(_settings(rows, settings), out / "settings.png"), "Loss and settings"))

    def show(value):
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    header = list(rows[0])
    body = table([[show(row[k]) for k in header] for row in rows], [h.replace("_", " ") for h in header])
    text = f"<h2>Study</h2><pre>{html.escape((out / 'study.yaml').read_text())}</pre>"
    write_atomically(out / "report.html", page(f"Study {out.name}", [body, *images, text]).encode())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _curves(history: Sequence[Mapping[str, Any]]):
    figure, axes = new_figure(1, width=5)
    for member in sorted({row["member"] for row in history}):
        points = [
            (r["epoch"], r["validation_loss"]) for r in history if r["member"] == member and r.get("validation_loss")
        ]
        if points:
            axes[0].plot(*zip(*points, strict=True), lw=1, alpha=0.7, label=f"member {member}")
    axes[0].set(xlabel="epoch", ylabel="validation loss (no unit)", yscale="log")
    axes[0].grid(alpha=0.3, which="both")
    if 0 < len(axes[0].lines) <= 10:
        axes[0].legend(fontsize=7)
    return figure


def _settings(rows: Sequence[Mapping[str, Any]], names: Sequence[str]):
    figure, axes = new_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(row[name], row["validation_loss"]) for row in rows if row["validation_loss"] is not None]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in points)
        x: list[Any] = [p[0] if numbers else str(p[0]) for p in points]
        axis.plot(x, [p[1] for p in points], "o", ms=4)
        if numbers and x and 0 < 20 * min(x) < max(x):
            axis.set_xscale("log")
        axis.set(xlabel=name, ylabel="validation loss (no unit)", yscale="log")
        axis.grid(alpha=0.3, which="both")
    return figure
