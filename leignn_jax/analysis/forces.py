"""How large forces are: distributions of their magnitudes, and how far apart two of them are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from leignn_jax.arguments import check_number, check_whole, numbers_of
from leignn_jax.errors import DataError

# Of a histogram: more are a mistake, and memory.
MOST_BINS = 1_000_000


class ForceDistribution(NamedTuple):
    """Magnitudes of force vectors.

    magnitude: ``[bins]`` eV/Å, centres of the bins.
    edges: ``[bins + 1]`` eV/Å.
    density: ``[bins]`` 1/(eV/Å); its integral is the share of forces within the edges.
    mean, rms, largest: eV/Å, of all magnitudes, within the edges or not.
    """

    magnitude: np.ndarray
    edges: np.ndarray
    density: np.ndarray
    mean: float
    rms: float
    largest: float


class ForceDistance(NamedTuple):
    """How far two distributions of force magnitudes are apart; 0 where they are the same.

    wasserstein: eV/Å, the mean distance by which magnitudes must move to turn one distribution into the other.
    histogram: no unit, ``integral of |p - q|`` over the bins, 2 where they share nothing.
    """

    wasserstein: float
    histogram: float


def force_distribution(forces: ArrayLike, *, f_max: float | None = None, bins: int = 200) -> ForceDistribution:
    """Distribution of the lengths of force vectors.

    Args:
        forces: ``[..., 3]`` eV/Å, frames and atoms in any shape.
        f_max: last edge in eV/Å; None is just above the largest force. Give it to compare curves.
        bins: of equal width from 0.
    """
    magnitudes = _magnitudes(forces)
    largest = float(magnitudes.max())
    if f_max is None:
        f_max = largest * (1 + 1e-9) or 1.0
    f_max = check_number("f_max", f_max, positive=True)
    edges = np.linspace(0.0, f_max, check_whole("bins", bins, 1, MOST_BINS) + 1)
    density = np.histogram(magnitudes, edges)[0] / (len(magnitudes) * np.diff(edges))
    rms = float(np.sqrt(np.mean(magnitudes**2)))
    return ForceDistribution(0.5 * (edges[1:] + edges[:-1]), edges, density, float(magnitudes.mean()), rms, largest)


def force_distance(first: ArrayLike, second: ArrayLike, *, bins: int = 200) -> ForceDistance:
    """Wasserstein-1 distance, from the samples, and integral of ``|difference|`` of histograms of all forces.

    Args:
        first, second: ``[..., 3]`` eV/Å; need not have the same number of vectors.
        bins: of the histograms, from 0 to the largest force of both.
    """
    from scipy.stats import wasserstein_distance

    a, b = _magnitudes(first), _magnitudes(second)
    f_max = max(a.max(), b.max()) * (1 + 1e-9) or 1.0
    p, q = (force_distribution(x, f_max=f_max, bins=bins) for x in (first, second))
    difference = np.sum(np.abs(p.density - q.density) * np.diff(p.edges))
    return ForceDistance(float(wasserstein_distance(a, b)), float(difference))


def _magnitudes(forces: ArrayLike) -> np.ndarray:
    forces = numbers_of(forces, "The forces")
    if forces.ndim < 2 or forces.shape[-1] != 3 or forces.size == 0:
        raise DataError(f"Forces must be [..., 3], not {list(forces.shape)}.")
    magnitudes = np.linalg.norm(forces.reshape(-1, 3), axis=1)
    if not np.isfinite(magnitudes).all():
        raise DataError(f"{int(np.sum(~np.isfinite(magnitudes)))} of {len(magnitudes)} forces are not finite.")
    return magnitudes
