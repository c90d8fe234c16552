"""What a study leaves for people: tables, curves, settings and a page."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leignn_jax.files import write_atomically
from leignn_jax.plotting import new_figure, plain_ticks, save_figure
from leignn_jax.sweeps.space import COST
from leignn_jax.training.report import page, picture, table

log = logging.getLogger("leignn_jax")

# What is written.
REPORTS = (
    *("results.csv", "results.parquet", "history.csv", "curves.png", "settings.png", "coordinates.png"),
    *("importance.png", "front.png", "report.html"),
)
_FORCES = "validation_forces_mae_mev_per_angstrom"


def write_study(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    goal: str = "validation_loss",
) -> None:
    """results.csv and .parquet, history.csv, report.html and its figures in ``out``.

    Args:
        rows: of each member, best first.
        history: of each member and epoch.
        names: of the settings that the study varies.
        goal: the column by which members are compared.
    """
    write_atomically(out / "results.csv", _csv(rows).encode())
    write_atomically(out / "history.csv", _csv(history).encode())
    try:
        import pandas

        frame = pandas.DataFrame(rows)
        for name in frame.columns:
            values = [row[name] for row in rows if row[name] is not None]
            alike = _is_number(values) or len({type(value) for value in values}) == 1
            if not alike or any(isinstance(value, Mapping) for value in values):
                # Numbers beside texts are no column of parquet's.
                frame[name] = [
                    row[name] if row[name] is None or isinstance(row[name], str) else json.dumps(row[name])
                    for row in rows
                ]
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        write_atomically(out / "results.parquet", buffer.getvalue())
    except ImportError:
        log.info("results.parquet needs `pip install pandas pyarrow`; results.csv is the same.")
    images = [picture(save_figure(_curves(history, goal), out / "curves.png"), "Every member")]
    settings = [name for name in names if len({str(row[name]) for row in rows}) > 1]
    if settings:
        images.append(picture(save_figure(_settings(rows, settings, goal), out / "settings.png"), "Loss and settings"))
        figure = _coordinates(rows, settings, goal)
        if figure is not None:
            images.append(picture(save_figure(figure, out / "coordinates.png"), "Every member, best in dark"))
        figure = _importance(rows, settings, goal)
        if figure is not None:
            images.append(picture(save_figure(figure, out / "importance.png"), "Which settings decide"))
    if len({row.get(COST) for row in rows} - {None}) > 1 and any(row.get(_FORCES) is not None for row in rows):
        images.append(picture(save_figure(_front(rows), out / "front.png"), "Accuracy and cost"))

    def show(value):
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    header = list(rows[0])
    full = max(row["epochs"] for row in rows)
    price = f"<p>{len(rows)} members, {sum(row['epochs'] for row in rows)} epochs in all; the longest had {full}.</p>"
    body = table([[show(row[k]) for k in header] for row in rows], [h.replace("_", " ") for h in header])
    text = f"<h2>Study</h2><pre>{html.escape((out / 'study.yaml').read_text())}</pre>"
    write_atomically(out / "report.html", page(f"Study {out.name}", [price, body, *images, text]).encode())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _curves(history: Sequence[Mapping[str, Any]], goal: str):
    figure, axes = new_figure(1, width=5)
    for member in sorted({row["member"] for row in history}):
        points = [(r["epoch"], r[goal]) for r in history if r["member"] == member and r.get(goal)]
        if points:
            axes[0].plot(*zip(*points, strict=True), lw=1, alpha=0.7, label=f"member {member}")
    axes[0].set(xlabel="epoch", ylabel=_with_unit(goal), yscale="log")
    axes[0].grid(alpha=0.3, which="both")
    if 0 < len(axes[0].lines) <= 10:
        axes[0].legend(fontsize=7)
    return figure


def _settings(rows: Sequence[Mapping[str, Any]], names: Sequence[str], goal: str):
    figure, axes = new_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(row[name], row[goal]) for row in rows if row[goal] is not None]
        numbers = _is_number([x for x, _ in points])
        x: list[Any] = [p[0] if numbers else str(p[0]) for p in points]
        axis.plot(x, [p[1] for p in points], "o", ms=4)
        if numbers and x and _in_log(x):
            axis.set_xscale("log")
        axis.set(xlabel=name, ylabel=_with_unit(goal), yscale="log")
        axis.grid(alpha=0.3, which="both")
    return figure


def _with_unit(column: str) -> str:
    """A column's name as a plot's label."""
    for end, unit in (("_mev_per_atom", "meV/atom"), ("_mev_per_angstrom3", "meV/Å³"), ("_mev_per_angstrom", "meV/Å")):
        if column.endswith(end):
            return f"{column.removesuffix(end).replace('_', ' ')} ({unit})"
    return "energy and forces (µs per atom)" if column == COST else f"{column.replace('_', ' ')} (no unit)"


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def _in_log(values: Sequence[Any]) -> bool:
    return 0 < 20 * min(values) < max(values)


def _coordinates(rows: Sequence[Mapping[str, Any]], names: Sequence[str], goal: str):
    """A line for each member through its settings and its loss; None where fewer than two have one."""
    rows = [row for row in rows if row[goal] is not None]
    if len(rows) < 2:
        return None
    columns = [*names, goal]
    figure, axes = new_figure(1, width=1.6 * len(columns) + 2)
    heights, places = [], range(len(columns))
    for place, name in zip(places, columns, strict=True):
        values = [row[name] for row in rows]
        if _is_number(values):
            numbers = np.log10(values) if _in_log(values) else np.asarray(values, float)
            low, high = float(numbers.min()), float(numbers.max())
            heights.append((numbers - low) / ((high - low) or 1.0))
            shown = zip(heights[-1], values, strict=True)
            ends = {height: f"{value:.3g}" for height, value in shown if len(set(values)) <= 6 or height in (0.0, 1.0)}
        else:
            choices = sorted({str(value) for value in values})
            spread = {choice: i / max(len(choices) - 1, 1) for i, choice in enumerate(choices)}
            heights.append(np.array([spread[str(value)] for value in values]))
            ends = {height: choice for choice, height in spread.items()}
        axes[0].axvline(place, color="0.7", lw=0.8, zorder=0)
        for height, text in ends.items():
            axes[0].annotate(text, (place, height), (3, 0), textcoords="offset points", fontsize=7, va="center")
    lines, order = np.array(heights).T, heights[-1]
    for i in np.argsort(-order):
        axes[0].plot(
            places, lines[i], lw=1.2, alpha=0.8, color=(order[i] * 0.85, order[i] * 0.85, 0.35 + 0.5 * order[i])
        )
    axes[0].set_xticks(places, [name.replace(".", ".\n") for name in columns], fontsize=7)
    axes[0].set_yticks([])
    axes[0].set(xlim=(-0.2, len(columns) - 0.4))
    return figure


def _importance(rows: Sequence[Mapping[str, Any]], names: Sequence[str], goal: str):
    """How much of what tells good members from others each setting explains (PED-ANOVA of Optuna); None without Optuna, or
    where there are too few members."""
    rows = [row for row in rows if row[goal] is not None and math.isfinite(row[goal])]
    if len(rows) < 8:
        return None
    try:
        # Its progress bars, which are not used, warn in a notebook without widgets.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna
    except ImportError:
        log.info("importance.png needs `pip install 'leignn-jax[search]'`.")
        return None
    settings = {}
    for name in names:
        values = [row[name] for row in rows]
        if _is_number(values) and len(set(values)) > 1:
            kind = optuna.distributions.FloatDistribution(min(values), max(values), log=_in_log(values))
            settings[name] = (kind, [float(value) for value in values])
        else:
            texts = [json.dumps(value) for value in values]
            settings[name] = (optuna.distributions.CategoricalDistribution(sorted(set(texts))), texts)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for i, row in enumerate(rows):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: values[i] for name, (_, values) in settings.items()},
                distributions={name: kind for name, (kind, _) in settings.items()},
                value=row[goal],
            )
        )
    with warnings.catch_warnings():
        # That it may change.
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure, axes = new_figure(1, width=5)
    axes[0].barh(list(found)[::-1], list(found.values())[::-1])
    axes[0].set(xlabel="importance (no unit)", title="What tells the best tenth from the rest")
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of these points no other one beats in both numbers, the first number ascending."""
    found, best = [], math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            found.append(i)
            best = points[i][1]
    return found


def _front(rows: Sequence[Mapping[str, Any]]):
    points = [(row[COST], row[_FORCES]) for row in rows if row.get(COST) is not None and row.get(_FORCES) is not None]
    figure, axes = new_figure(1, width=5)
    axes[0].plot(*zip(*points, strict=True), "o", ms=4, color="0.6", label="members")
    best = [points[i] for i in front(points)]
    axes[0].plot(*zip(*best, strict=True), "o-", ms=5, label="not beaten in both")
    axes[0].set(xlabel=_with_unit(COST), ylabel=_with_unit(_FORCES))
    plain_ticks(axes[0])
    axes[0].grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=7)
    return figure
