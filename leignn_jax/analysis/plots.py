"""One figure per observable. Each takes one result or a mapping from labels to results to compare, returns a matplotlib
figure that belongs to no window, and writes nothing (``leignn_jax.plotting.save_figure`` does)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from leignn_jax.analysis.forces import ForceDistribution
from leignn_jax.analysis.rdf import DistanceDistribution, RadialDistribution
from leignn_jax.analysis.spectra import DensityOfStates
from leignn_jax.analysis.thermodynamics import GPA, ThermoLog
from leignn_jax.analysis.transport import FS_PER_PS, Diffusivity, TimeCurve
from leignn_jax.errors import ConfigError
from leignn_jax.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


def plot_rdf(
    curves: RadialDistribution | Mapping[str, RadialDistribution], pairs: Sequence[tuple[str, str]] | None = None
) -> Figure:
    """g(r) of element pairs, one panel each (all pairs of the first curve by default); a single element gets one panel.

    Raises:
        ConfigError: nothing to plot, or a pair that a curve does not have.
    """
    curves = _labelled(curves)
    shown = next(iter(curves.values())).pairs if pairs is None else tuple(pairs)
    figure, axes = new_figure(len(shown))
    for axis, (a, b) in zip(axes, shown, strict=True):
        axis.axhline(1.0, color="0.6", lw=0.8, zorder=0)
        for i, (label, curve) in enumerate(curves.items()):
            axis.plot(curve.r, curve.of(a, b), _style(i), lw=1.2, label=label)
        axis.set(xlabel="r (Å)", ylabel=f"g(r) {a}-{b}", ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    return _finish(figure, axes, curves)


def plot_distances(curves: DistanceDistribution | Mapping[str, DistanceDistribution]) -> Figure:
    """h(r) of molecules."""
    curves = _labelled(curves)
    figure, axes = new_figure(1, width=4.5)
    for i, (label, curve) in enumerate(curves.items()):
        axes[0].plot(curve.r, curve.density, _style(i), lw=1.2, label=label)
    axes[0].set(xlabel="r (Å)", ylabel="h(r) (1/Å)", ylim=(0, None), xlim=(0, None))
    axes[0].grid(alpha=0.3)
    return _finish(figure, axes, curves)


def plot_msd(
    curves: TimeCurve | Mapping[str, TimeCurve],
    elements: Sequence[str] | None = None,
    fits: Diffusivity | Mapping[str, Diffusivity] | None = None,
    *,
    log: bool = False,
) -> Figure:
    """Mean squared displacement over lag time, one panel per element.

    Args:
        curves: from :func:`leignn_jax.analysis.mean_squared_displacement`.
        elements: chemical symbols; None is all of the first curve.
        fits: from :func:`leignn_jax.analysis.diffusivity`, by the labels of the curves; a line over each fit's window.
            With fits there must be one element, the one that was fitted.
        log: both axes.
    """
    curves = _labelled(curves)
    lines = _labelled(fits) if fits is not None else {}
    shown = next(iter(curves.values())).elements if elements is None else tuple(elements)
    if lines and len(shown) != 1:
        raise ConfigError(f"fits belong to one element, but there are {', '.join(shown)}: name it in `elements`.")
    figure, axes = new_figure(len(shown))
    for axis, symbol in zip(axes, shown, strict=True):
        for i, (label, curve) in enumerate(curves.items()):
            start = 1 if log else 0
            axis.plot(curve.time[start:] / FS_PER_PS, curve.of(symbol)[start:], _style(i), lw=1.2, label=label)
        for i, (label, fit) in enumerate(lines.items()):
            time = np.linspace(fit.window[0], fit.window[1], 50) / FS_PER_PS
            text = f"{label} D = {_with_error(fit.value, fit.error)} Å²/ps".strip()
            axis.plot(
                time, 2 * fit.dimensions * fit.value * time + fit.intercept, "k" + "-:"[i % 2], lw=0.8, label=text
            )
        axis.set(xlabel="lag time (ps)", ylabel=f"MSD {symbol} (Å²)")
        if log:
            axis.set(xscale="log", yscale="log")
        else:
            axis.set(xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3, which="both")
    return _finish(figure, axes, curves, always=bool(lines))


def plot_vdos(
    curves: DensityOfStates | Mapping[str, DensityOfStates],
    *,
    per_element: bool = False,
    wavenumber_max: float | None = None,
) -> Figure:
    """Vibrational density of states over wavenumber, with THz on top; ``per_element`` gives each element a panel."""
    curves = _labelled(curves)
    first = next(iter(curves.values()))
    kinds = list(first.elements) if per_element else ["total"]
    figure, axes = new_figure(len(kinds), width=3.6 if per_element else 4.8)
    factor = first.frequency[-1] / first.wavenumber[-1]
    for axis, kind in zip(axes, kinds, strict=True):
        for i, (label, curve) in enumerate(curves.items()):
            if per_element and kind not in curve.elements:
                raise ConfigError(f"{label!r} has no {kind}: it has {', '.join(curve.elements)}.")
            density = curve.per_element[curve.elements.index(kind)] if per_element else curve.total
            axis.plot(curve.wavenumber, density, _style(i), lw=1.2, label=label)
        name = f"VDOS {kind}" if per_element else "VDOS"
        axis.set(xlabel="wavenumber (cm⁻¹)", ylabel=f"{name} (states per cm⁻¹)", xlim=(0, wavenumber_max))
        axis.set_ylim(bottom=0)
        axis.secondary_xaxis("top", functions=(lambda x: x * factor, lambda x: x / factor)).set_xlabel(
            "frequency (THz)"
        )
        axis.grid(alpha=0.3)
    return _finish(figure, axes, curves)


def plot_forces(curves: ForceDistribution | Mapping[str, ForceDistribution], *, log: bool = False) -> Figure:
    """Distribution of force magnitudes; ``log`` shows the tail."""
    curves = _labelled(curves)
    figure, axes = new_figure(1, width=4.5)
    for i, (label, curve) in enumerate(curves.items()):
        axes[0].stairs(curve.density, curve.edges, ls=_style(i)[2:], color=_style(i)[:2], lw=1.2, label=label)
    axes[0].set(xlabel="|F| (eV/Å)", ylabel="density (Å/eV)", xlim=(0, None))
    if log:
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)
    axes[0].grid(alpha=0.3)
    return _finish(figure, axes, curves)


def plot_thermo(logs: ThermoLog | Mapping[str, ThermoLog]) -> Figure:
    """Temperature, potential energy, change of total energy and, where all have it, pressure over time."""
    logs = _labelled(logs)
    panels = [
        ("temperature (K)", lambda x: x.temperature),
        ("potential energy (eV)", lambda x: x.potential_energy),
        ("change of total energy (eV)", lambda x: x.total_energy - x.total_energy[0]),
    ]
    if all(log.pressure is not None for log in logs.values()):
        panels.append(("pressure (GPa)", lambda x: x.pressure * GPA))
    figure, axes = new_figure(len(panels))
    for axis, (name, values) in zip(axes, panels, strict=True):
        for i, (label, log) in enumerate(logs.items()):
            axis.plot(log.time / FS_PER_PS, values(log), _style(i), lw=1.0, label=label)
        axis.set(xlabel="time (ps)", ylabel=name)
        axis.grid(alpha=0.3)
    return _finish(figure, axes, logs)


def _labelled(results: T | Mapping[str, T]) -> dict[str, Any]:
    curves = dict(results) if isinstance(results, Mapping) else {"": results}
    if not curves:
        raise ConfigError("There is nothing to plot: the mapping of curves is empty.")
    return curves


def _with_error(value: float, error: float) -> str:
    """A number to the first digit of its error; without error to three digits."""
    if not (np.isfinite(error) and error > 0):
        return f"{value:.3g}"
    digits = max(0, -int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _style(index: int) -> str:
    """Colours that differ, and dashes so that curves on each other are both seen."""
    return f"C{index % 10}" + ("-", "--", ":", "-.")[index % 4]


def _finish(figure: Figure, axes: Any, curves: Mapping[str, Any], *, always: bool = False) -> Figure:
    if always or list(curves) != [""]:
        axes[-1].legend(fontsize=8)
    return figure
