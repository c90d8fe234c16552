"""Targets before and after a fit: a table and a figure of each curve, with units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leignn_jax.fitting.observables import Goal
from leignn_jax.plotting import new_figure, save_figure
from leignn_jax.training.report import picture, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from leignn_jax.fitting.targets import Seen


def plot_target(goal: Goal, before: Seen, after: Seen, title: str) -> Figure:
    """A measured curve with its uncertainty, and what the potential gave before and after."""
    figure, axes = new_figure(1, 4.8, 3.4)
    axis, x = axes[0], goal.x
    low, high = goal.values - goal.uncertainties, goal.values + goal.uncertainties
    axis.fill_between(x, low, high, color="0.8", lw=0, label="measured ± uncertainty")
    axis.plot(x, goal.values, color="0.4", lw=1)
    for seen, color, label in ((before, "C0", "before"), (after, "C3", "after")):
        axis.errorbar(x, seen.values, seen.errors, color=color, lw=1.2, elinewidth=0.5, label=label)
    axis.set(xlabel=goal.of_x, ylabel=goal.of_values, title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def targets_report(
    before: Sequence[tuple[Any, Goal, Seen]], after: Sequence[tuple[Any, Goal, Seen]], out: Path
) -> tuple[list[str], dict[str, Any]]:
    """Parts of report.html, whose figures are written to ``out`` as well, and numbers for metrics.json."""
    rows, images, numbers = [], [], {}
    for (target, goal, first), (_, _, last) in zip(before, after, strict=True):
        name = target.name
        deviations = [float(np.sqrt(seen.loss)) for seen in (first, last)]
        numbers[name] = {
            "observable": goal.of_values,
            "measured": goal.values.tolist(),
            "uncertainty": goal.uncertainties.tolist(),
            **({} if goal.x is None else {goal.of_x: goal.x.tolist()}),
            **{
                when: {"values": np.asarray(seen.values).tolist(), "errors": np.asarray(seen.errors).tolist()}
                for when, seen in (("before", first), ("after", last))
            },
            "deviation_before": deviations[0],
            "deviation_after": deviations[1],
        }
        if goal.x is None:
            shown = [f"{goal.values[0]:.5g} ± {goal.uncertainties[0]:.2g}", *(_number(seen) for seen in (first, last))]
        else:
            shown = ["curve", "", ""]
            figure = plot_target(goal, first, last, name)
            images.append(picture(save_figure(figure, out / f"target_{name}.png"), f"Target {name}"))
        rows.append([name, goal.of_values, *shown, *(f"{d:.3g}" for d in deviations)])
    header = ["target", "", "measured", "before", "after", "deviation before", "after (in uncertainties)"]
    return [table(rows, header), *images], numbers


def _number(seen: Seen) -> str:
    error = float(seen.errors[0])
    return f"{float(seen.values[0]):.5g}" + (f" ± {error:.2g}" if error > 0 else "")
