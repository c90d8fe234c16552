"""Whether a committee's disagreement tells its errors: correlation, a factor that makes it do so, and how often it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from scipy import special, stats

from leignn_jax.arguments import check_number, check_structures
from leignn_jax.data import read_frames, read_labels
from leignn_jax.errors import DataError
from leignn_jax.plotting import new_figure, plain_ticks
from leignn_jax.potential import Potential
from leignn_jax.sweeps.committee import check_committee, iter_committee

_BINS = 12
# Half-widths, in standard deviations, whose coverage is told.
_WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
# The share of normal errors within one standard deviation.
_ONE = float(special.erf(1 / np.sqrt(2)))


class Calibration(NamedTuple):
    """Spread of a committee's forces against their errors, component by component.

    spread, error: ``[components]`` eV/Å, standard deviation over members, and the mean's deviation from the label.
    correlation: of their ranks, atom by atom (Spearman), of the norms over components.
    factor: by which to multiply spreads so that they are the errors' size: as many errors are then within one of them as
        would be of normal errors, 68 %. A mean over (error / spread)^2 would be that of the few components which symmetry
        holds at next to no spread.
    used_factor: that ``coverage`` was told with.
    coverage: by width, in ``used_factor`` spreads, the share of components whose error is within it.
    expected: the same for normal errors.
    frames: how many there were.
    """

    spread: np.ndarray
    error: np.ndarray
    correlation: float
    factor: float
    used_factor: float
    coverage: dict[float, float]
    expected: dict[float, float]
    frames: int

    def summary(self) -> dict[str, Any]:
        """The numbers, as plain JSON."""
        return {
            "frames": self.frames,
            "components": len(self.error),
            "forces_rmse_mev_per_angstrom": 1e3 * float(np.sqrt((self.error**2).mean())),
            "spread_rms_mev_per_angstrom": 1e3 * float(np.sqrt((self.spread**2).mean())),
            "correlation": self.correlation,
            "factor": self.factor,
            "used_factor": self.used_factor,
            "coverage": {f"{width:g}": share for width, share in self.coverage.items()},
            "expected": {f"{width:g}": share for width, share in self.expected.items()},
        }


def calibrate(
    members: Potential, data: str | Path | Sequence[ase.Atoms], *, factor: float | None = None, dtype: str = "float32"
) -> Calibration:
    """Compare a committee's spread with its true errors on labelled frames that it was not trained on.

    Args:
        members: from :func:`leignn_jax.committee`.
        data: a file that :func:`leignn_jax.read_frames` reads, or frames with forces.
        factor: from other frames, to tell how often the recalibrated spread holds on these; None takes the one found here,
            which fits them better than it will fit others.
        dtype: of the committee's arithmetic.

    Raises:
        ConfigError: ``members`` is no committee.
        DataError: a frame has no forces.
    """
    check_committee(members)
    frames = read_frames(data) if isinstance(data, str | Path) else check_structures(data, "data")
    if factor is not None:
        check_number("factor", factor, positive=True)
    spreads, errors = [], []
    for index, said in enumerate(iter_committee(members, frames, dtype=dtype)):
        spreads.append(said.forces_std)
        forces = read_labels(frames[index], f"frame {index}").forces
        if forces is None:
            raise DataError(f"Frame {index} has no forces: give labelled frames.")
        errors.append(said.forces - forces)
    spread, error = np.concatenate(spreads), np.concatenate(errors)
    by_atom = stats.spearmanr(np.linalg.norm(spread, axis=1), np.linalg.norm(error, axis=1))
    spread, error = spread.ravel(), error.ravel()
    known = spread > 0
    found = float(np.quantile(np.abs(error[known]) / spread[known], _ONE)) if known.any() else float("nan")
    used = found if factor is None else float(factor)
    coverage = {width: float((np.abs(error) <= width * used * spread).mean()) for width in _WIDTHS}
    expected = {width: float(special.erf(width / np.sqrt(2))) for width in _WIDTHS}
    correlation = float(np.asarray(by_atom.statistic))
    return Calibration(spread, error, correlation, found, used, coverage, expected, len(frames))


def calibration_figure(calibration: Calibration) -> Any:
    """Error against spread, in bins of as many components each; and coverage against what normal errors would have."""
    figure, axes = new_figure(2, width=4)
    order = np.argsort(calibration.spread)
    bins = [b for b in np.array_split(order, _BINS) if len(b)]
    x = np.array([np.sqrt((calibration.spread[b] ** 2).mean()) for b in bins])
    y = np.array([np.sqrt((calibration.error[b] ** 2).mean()) for b in bins])
    axes[0].plot(1e3 * x, 1e3 * y, "o-", label="as it is")
    axes[0].plot(1e3 * x * calibration.used_factor, 1e3 * y, "s-", label=f"spread × {calibration.used_factor:.2f}")
    ends = [1e3 * min(x.min(), y.min()), 1e3 * max(x.max(), y.max())]
    axes[0].plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    axes[0].set(xlabel="spread (meV/Å)", ylabel="error (meV/Å)")
    # Over many decades, as where sites of symmetry are among them, numbers in full would stand on each other.
    if ends[1] < 1e3 * ends[0]:
        plain_ticks(axes[0])
    axes[0].set_title(f"rank correlation {calibration.correlation:.2f}", fontsize=9)
    axes[0].legend(fontsize=7)
    expected, found = list(calibration.expected.values()), list(calibration.coverage.values())
    axes[1].plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
    axes[1].plot(expected, found, "o-")
    axes[1].set(xlabel="expected share within (no unit)", ylabel="share within (no unit)")
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    return figure
