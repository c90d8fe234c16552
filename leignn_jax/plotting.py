"""Figures that belong to no window and files that are whole: what every plot of the package is made with."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leignn_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(columns: int, width: float = 3.6, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure of panels side by side that belongs to no window; a notebook shows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _shown_figure()(figsize=(width * columns, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def plain_ticks(axes: Any) -> None:
    """Both axes logarithmic with ticks as plain numbers, which don't run into each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: Path) -> bytes:
    """Write a PNG atomically and return it."""
    png = _png(figure)
    write_atomically(path, png)
    return png


@functools.cache
def _shown_figure() -> type[Figure]:
    """Of matplotlib's own figures a notebook shows a line of text as long as no pyplot has been used in it."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            return _png(self)

    return ShownFigure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
