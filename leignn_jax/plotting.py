"""Figures that belong to no window and files that are whole: what every plot of the package is made with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leignn_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(columns: int, width: float = 3.6, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure of panels side by side that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def save_figure(figure: Figure, path: Path) -> bytes:
    """Write a PNG atomically and return it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return buffer.getvalue()
