r"""The static structure factor ``S(q) = <|sum_i b_i exp(i q . r_i)|^2> / sum_i b_i^2`` at q of a periodic cell.

Only q = 2 pi (h, k, l) cell^-T are seen of a periodic system; at others S(q) would be of its box. It is smooth in the
positions and in the cell as it is: :func:`scattering_intensity` is what both the averages here and
:mod:`leignn_jax.differentiable.observables` compute.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from leignn_jax.analysis.forces import MOST_BINS
from leignn_jax.analysis.statistics import mean_with_error
from leignn_jax.analysis.thermodynamics import volumes
from leignn_jax.analysis.trajectory import as_cells, as_frames, as_pbc
from leignn_jax.arguments import check_number, check_whole, numbers_of
from leignn_jax.errors import ConfigError, DataError
from leignn_jax.pair_ops import AnyArray

MOST_VECTORS = 200_000
# Phases computed at a time.
_BLOCK = 2**21


class StructureFactor(NamedTuple):
    """Averages over frames, of which shells without a vector are left out; S has no unit.

    q: ``[shells]`` 1/Å, mean length of the vectors in each shell.
    value: ``[shells]`` S(q), mean over the vectors of each shell.
    error: ``[shells]`` standard error (1 sigma) from correlated frames; NaN of a single frame.
    counts: ``[shells]`` vectors in each shell, q and -q together once.
    indices: ``[vectors, 3]`` int, (h, k, l).
    lengths: ``[vectors]`` 1/Å, of the mean cell.
    each: ``[vectors]`` S at every vector: peaks of a crystal.
    """

    q: np.ndarray
    value: np.ndarray
    error: np.ndarray
    counts: np.ndarray
    indices: np.ndarray
    lengths: np.ndarray
    each: np.ndarray


def structure_factor(
    positions: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike = True,
    *,
    q_max: float = 10.0,
    bins: int = 100,
    weights: ArrayLike | None = None,
) -> StructureFactor:
    """S(q) of a system periodic in all directions, by vectors and averaged over shells of its length.

    Args:
        positions: ``[frames, atoms, 3]`` Å, wrapped or not.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å; vectors are chosen by the mean cell, and follow it.
        pbc: True, or three of it.
        q_max: 1/Å.
        bins: shells of equal width from 0 to q_max.
        weights: ``[atoms]``, such as neutron scattering lengths or charges; None is 1 for all.

    Raises:
        DataError: no cell, a direction that is not periodic, shapes that don't fit, or weights that are all zero.
        ConfigError: q_max is smaller than the shortest vector, or there would be more than ``MOST_VECTORS``.
    """
    positions = as_frames(positions, "positions")
    frames, atoms = positions.shape[:2]
    if not as_pbc(pbc).all():
        raise DataError(
            "S(q) needs a cell that is periodic in all directions: use distance_distribution for a molecule."
        )
    cells = as_cells(cell, frames)
    volumes(cells, "S(q)")
    weights = np.ones(atoms) if weights is None else numbers_of(weights, "The weights")
    if weights.shape != (atoms,) or not np.isfinite(weights).all() or not weights.any():
        raise DataError(f"The weights must be [{atoms}] finite numbers, one for each atom, and not all zero.")
    q_max, bins = check_number("q_max", q_max, positive=True), check_whole("bins", bins, 1, MOST_BINS)
    mean_cell = cells.mean(axis=0)
    indices = scattering_vectors(mean_cell, q_max)
    lengths = np.linalg.norm(2 * np.pi * indices @ np.linalg.inv(mean_cell).T, axis=1)

    step = max(1, _BLOCK // atoms)
    with jax.enable_x64(True):
        seen = np.stack(
            [
                np.concatenate([_compiled(r, indices[i : i + step], c, weights) for i in range(0, len(indices), step)])
                for r, c in zip(positions, cells, strict=True)
            ]
        )
    shell = np.minimum((lengths * (bins / q_max)).astype(np.int64), bins - 1)
    counts = np.bincount(shell, minlength=bins)
    filled = np.flatnonzero(counts)
    member = (shell[:, None] == filled) / counts[filled]
    series = seen @ member
    error = np.array([mean_with_error(one).error for one in series.T]) if frames > 1 else np.full(len(filled), np.nan)
    return StructureFactor(
        lengths @ member, series.mean(axis=0), error, counts[filled], indices, lengths, seen.mean(axis=0)
    )


def scattering_vectors(cell: np.ndarray, q_max: float) -> np.ndarray:
    """``[vectors, 3]`` int32, (h, k, l) of all q up to q_max but zero, one of q and -q; rows of ``cell`` in Å."""
    cell = np.asarray(cell, np.float64)
    expected = abs(np.linalg.det(cell)) * q_max**3 / (12 * np.pi**2)
    if expected > MOST_VECTORS:
        raise ConfigError(
            f"There are about {expected:.2g} vectors up to q_max = {q_max:g} 1/Å, more than {MOST_VECTORS:,}: lower q_max."
        )
    # |h| = |q . a| / (2 pi) is at most q_max |a| / (2 pi).
    most = np.floor(q_max * np.linalg.norm(cell, axis=1) / (2 * np.pi) * (1 + 1e-12)).astype(int)
    if most.prod(dtype=float) > 100 * MOST_VECTORS:
        raise ConfigError(f"The cell is too flat or too long for vectors up to q_max = {q_max:g} 1/Å: lower q_max.")
    grid = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    h, k, l = grid.T  # noqa: E741
    half = (h > 0) | ((h == 0) & ((k > 0) | ((k == 0) & (l > 0))))
    lengths = np.linalg.norm(2 * np.pi * grid @ np.linalg.inv(cell).T, axis=1)
    kept = grid[half & (lengths <= q_max * (1 + 1e-12))]
    if not len(kept):
        raise ConfigError(
            f"No vector of this cell is as short as q_max = {q_max:g} 1/Å; the shortest is about "
            f"{2 * np.pi / np.linalg.norm(cell, axis=1).max():.3g} 1/Å. Raise q_max or take a larger cell."
        )
    return kept.astype(np.int32)


def scattering_intensity(
    positions: Float[AnyArray, "atoms 3"],
    indices: Int[AnyArray, "vectors 3"],
    cell: Float[AnyArray, "3 3"],
    weights: Float[AnyArray, "atoms"],
) -> Float[Array, "vectors"]:
    """``|sum_i b_i exp(i q . r_i)|^2 / sum_i b_i^2`` of one frame; pure jax, differentiable by positions, cell and weights.

    Args:
        positions: Å.
        indices: (h, k, l) of q.
        cell: Å, rows.
        weights: b, 0 for padding.
    """
    along = jnp.dot(positions, jnp.linalg.inv(cell), precision="highest")
    # Whole turns are taken off each coordinate first: float32 would round large phases.
    along = along - jnp.round(jax.lax.stop_gradient(along))
    phases = 2 * jnp.pi * jnp.dot(jnp.asarray(indices, along.dtype), along.T, precision="highest")
    real, imaginary = (jnp.dot(f(phases), weights, precision="highest") for f in (jnp.cos, jnp.sin))
    return (real**2 + imaginary**2) / (weights**2).sum()


@jax.jit
def _compiled(positions, indices, cell, weights):
    return scattering_intensity(positions, indices, cell, weights)
