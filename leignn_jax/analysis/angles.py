"""Distribution of bond angles, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from leignn_jax.analysis.forces import MOST_BINS
from leignn_jax.analysis.trajectory import as_cells, as_frames, as_numbers, as_pbc, element
from leignn_jax.arguments import check_number, check_whole, shown
from leignn_jax.errors import ConfigError, DataError, StructureError
from leignn_jax.neighbors import find_pairs


class AngleDistribution(NamedTuple):
    """How angles between bonds are distributed, averaged over frames.

    angle: ``[bins]`` degrees, centres of the bins.
    edges: ``[bins + 1]`` degrees, from 0 to 180.
    density: ``[bins]`` 1/degree, its integral is 1; divided by sin(angle) a gas without bonds would be flat.
    mean: degrees.
    angles: mean number of angles in a frame.
    """

    angle: np.ndarray
    edges: np.ndarray
    density: np.ndarray
    mean: float
    angles: float


def angle_distribution(
    positions: ArrayLike,
    numbers: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike = True,
    *,
    r_max: float,
    kind: tuple[str, str, str] | None = None,
    bins: int = 180,
) -> AngleDistribution:
    """P(angle) between the bonds of each atom to all neighbours closer than ``r_max``, images included, each angle once.

    Args:
        positions: ``[frames, atoms, 3]`` Å, wrapped or not.
        numbers: ``[atoms]`` atomic numbers.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å; zeros for molecules, with pbc False.
        pbc: ``[3]`` bool or one for all.
        r_max: Å, length of a bond; the first minimum of g(r) is a good one.
        kind: symbols (end, center, end), such as ("H", "O", "H"); None is all.
        bins: of equal width from 0 to 180 degrees.

    Raises:
        DataError: shapes that don't fit, or no atom has two neighbours.
        ElementError: a symbol that is not there.
        StructureError: a frame whose atoms overlap or whose cell is singular, with its number.
    """
    positions = as_frames(positions, "positions")
    numbers, pbc = as_numbers(numbers, positions.shape[1]), as_pbc(pbc)
    r_max, bins = check_number("r_max", r_max, positive=True), check_whole("bins", bins, 1, MOST_BINS)
    if kind is not None and (not isinstance(kind, tuple | list) or len(kind) != 3):
        raise ConfigError(f"kind must be three symbols, such as ('H', 'O', 'H'), not {shown(kind)}.")
    wanted = None if kind is None else tuple(element(symbol, numbers) for symbol in kind)
    edges = np.linspace(0.0, 180.0, bins + 1)
    counts, total = np.zeros(bins), 0.0
    for i, (frame, lattice) in enumerate(zip(positions, as_cells(cell, len(positions)), strict=True)):
        try:
            found = frame_angles(frame, numbers, lattice, pbc, r_max, wanted)
        except StructureError as error:
            raise StructureError(f"Frame {i}: {error}") from error
        counts += np.histogram(found, edges)[0]
        total += found.sum()
    seen = counts.sum()
    if not seen:
        of = "" if kind is None else f" {'-'.join(kind)}"
        raise DataError(f"There is no angle{of}: no atom has two such neighbours within r_max = {r_max:g} Å. Raise it.")
    centres = 0.5 * (edges[1:] + edges[:-1])
    return AngleDistribution(centres, edges, counts / (seen * np.diff(edges)), total / seen, seen / len(positions))


def frame_angles(
    positions: np.ndarray,
    numbers: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    r_max: float,
    kind: tuple[int, ...] | None,
) -> np.ndarray:
    """All angles of one frame in degrees, ``[angles]``; ``kind`` are atomic numbers (end, center, end)."""
    pairs = find_pairs(positions, cell, pbc, r_max)
    vectors = positions[pairs.senders] + pairs.shifts @ cell - positions[pairs.receivers]
    center = np.concatenate([pairs.receivers, pairs.senders])
    other, vectors = np.concatenate([pairs.senders, pairs.receivers]), np.concatenate([vectors, -vectors])
    if kind is not None:
        kept = (numbers[center] == kind[1]) & np.isin(numbers[other], (kind[0], kind[2]))
        center, other, vectors = center[kept], other[kept], vectors[kept]
    order = np.argsort(center, kind="stable")
    center, other, vectors = center[order], other[order], vectors[order]
    # Each bond with all later ones of the same center.
    ends = np.searchsorted(center, center, side="right")
    later = ends - np.arange(len(center)) - 1
    first = np.repeat(np.arange(len(center)), later)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later)
    if kind is not None:
        a, b = numbers[other[first]], numbers[other[second]]
        kept = ((a == kind[0]) & (b == kind[2])) | ((a == kind[2]) & (b == kind[0]))
        first, second = first[kept], second[kept]
    u, v = vectors[first], vectors[second]
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), (u * v).sum(axis=1)))
