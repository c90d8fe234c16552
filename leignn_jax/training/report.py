"""What a run leaves for a person: learning curve, parity plots, and a page that puts them together."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leignn_jax.files import write_atomically
from leignn_jax.plotting import new_figure, save_figure
from leignn_jax.potential import Potential
from leignn_jax.training.evaluate import Evaluation, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from leignn_jax.training.config import TrainConfig
    from leignn_jax.training.dataset import Splits


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and errors over epochs, train and validation."""
    panels = [
        ("loss", "loss"),
        ("energy_mae_mev_per_atom", "energy MAE (meV/atom)"),
        ("forces_mae_mev_per_angstrom", "forces MAE (meV/Å)"),
        ("stress_mae_mev_per_angstrom3", "stress MAE (meV/Å³)"),
    ]
    there = [
        p for p in panels if any(row.get(f"{s}_{p[0]}") is not None for row in rows for s in ("train", "validation"))
    ]
    figure, axes = new_figure(len(there) or 1)
    for axis, (name, label) in zip(axes, there, strict=False):
        for split, style in (("train", "C0-"), ("validation", "C1-")):
            points = [(r["epoch"], r[f"{split}_{name}"]) for r in rows if r.get(f"{split}_{name}") is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True), style, lw=1.2, label=split, marker="." if len(points) < 10 else None
                )
        axis.set(xlabel="epoch", ylabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    return figure


def parity(evaluation: Evaluation, title: str) -> Figure:
    """Prediction against label for energies, forces and stresses."""
    metrics = evaluation.metrics
    panels = [
        (evaluation.energies, "energy less references", "eV/atom", "energy", "mev_per_atom", "meV/atom"),
        (evaluation.forces, "force component", "eV/Å", "forces", "mev_per_angstrom", "meV/Å"),
        (evaluation.stresses, "stress component", "eV/Å³", "stress", "mev_per_angstrom3", "meV/Å³"),
    ]
    panels = [p for p in panels if len(p[0])]
    figure, axes = new_figure(len(panels) or 1)
    for axis, (table, name, unit, key, suffix, small) in zip(axes, panels, strict=False):
        low, high = float(table.min()), float(table.max())
        edge = 0.05 * (high - low) or 1e-3
        axis.plot([low - edge, high + edge], [low - edge, high + edge], color="0.6", lw=0.8, zorder=0)
        if len(table) > 20000:
            image = axis.hexbin(table[:, 0], table[:, 1], gridsize=80, bins="log", mincnt=1, lw=0.1)
            figure.colorbar(image, ax=axis, label="components per cell")
        else:
            axis.plot(table[:, 0], table[:, 1], ".", ms=3, alpha=0.4, rasterized=True)
        mae, rmse = metrics[f"{key}_mae_{suffix}"], metrics[f"{key}_rmse_{suffix}"]
        axis.set_title(f"MAE {mae:.3g}, RMSE {rmse:.3g} {small}", fontsize=9)
        axis.set(xlabel=f"DFT {name} ({unit})", ylabel=f"predicted ({unit})")
        axis.set_aspect("equal", adjustable="datalim")
        axis.locator_params(nbins=5)
    figure.suptitle(title, fontsize=10)
    return figure


def page(title: str, parts: Sequence[str]) -> str:
    """A self-contained HTML page."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}"
        "td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{background:#f5f5f5;padding:1em;overflow:auto}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{html.escape(str(h))}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(png: bytes, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode()
    return f"<h2>{html.escape(caption)}</h2><img alt='{html.escape(caption)}' src='data:image/png;base64,{data}'>"


def finish_report(
    config: TrainConfig,
    splits: Splits,
    potential: Potential,
    rows: Sequence[Mapping[str, Any]],
    info: Mapping[str, Any],
    *,
    before: Potential | None = None,
    more: tuple[list[str], dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate on validation and test, write metrics.json, the figures and report.html; returns the errors.

    before: whose errors stand beside. more: parts of the page and numbers about what else there is than frames.
    """
    out, direct = config.run.out, config.loss.force_source == "direct"
    images, found = [], {}
    if rows:
        images.append(picture(save_figure(learning_curve(rows), out / "learning_curve.png"), "Learning curve"))
    for name, frames in (("validation", splits.validation), ("test", splits.test)):
        if frames is None:
            continue
        if before is not None:
            old = compare(before, (frames.frame(i) for i in range(frames.size)), direct)
            found[f"{name}_before"] = old.metrics
        evaluation = compare(potential, (frames.frame(i) for i in range(frames.size)), direct)
        found[name] = evaluation.metrics
        title = f"{name}, {frames.size} structures"
        images.append(picture(save_figure(parity(evaluation, title), out / f"parity_{name}.png"), f"Parity: {title}"))
    seconds = float(np.sum([row["seconds"] for row in rows])) if rows else 0.0
    pages, numbers = ([], {}) if more is None else more
    summary = {
        **found,
        **({"targets": numbers} if numbers else {}),
        "run": {**info, "training_seconds": round(seconds, 1), "epochs": len(rows)},
    }
    write_atomically(out / "metrics.json", (json.dumps(summary, indent=1) + "\n").encode())

    def show(value):
        return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value

    names = list(next(iter(found.values()), {}))
    columns = ["error", *(split.replace("_", " ") for split in found)]
    errors = table([[n.replace("_", " "), *(show(found[s][n]) for s in found)] for n in names], columns)
    model = table(list(potential.summary().items()), ["potential", ""])
    facts = table([[k.replace("_", " "), show(v)] for k, v in summary["run"].items()], ["run", ""])
    settings = f"<h2>Settings</h2><pre>{html.escape((out / 'config.yaml').read_text())}</pre>"
    parts = [*pages, errors, *images, "<h2>Potential and run</h2>", model, facts, settings]
    write_atomically(out / "report.html", page(f"Training run {out.name}", parts).encode())
    return found
