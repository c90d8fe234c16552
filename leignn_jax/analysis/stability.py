"""When a simulation with a learned potential stops being physical, by the criteria of Fu et al.

Source: X. Fu et al., "Forces are not Enough", arXiv 2210.07237, and the evaluation notebook published with it. There a
condensed system is unstable from the first window of 1 ps whose RDF differs from the reference by more than a
threshold, in the measure of :func:`leignn_jax.analysis.rdf_mae` up to 6 Å in 500 bins: for water the largest of the
O-O, H-H and H-O curves with the threshold 3.0 Å, for LiPS the curve of all atoms with 1.0 Å. A molecule is unstable
from the first frame in which a bond is 0.5 Å longer or shorter than its mean length in the reference trajectory.
Beside these stands a criterion of our own, by the shortest distance of each two elements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike

from leignn_jax.analysis.rdf import PairCounter, RadialDistribution, rdf_mae
from leignn_jax.analysis.trajectory import as_cells, as_frames, as_numbers, as_pbc, check_timestep
from leignn_jax.arguments import check_number, numbers_of, shown
from leignn_jax.errors import ConfigError, DataError, StructureError
from leignn_jax.neighbors import check_structure, find_pairs

WATER_THRESHOLD = 3.0  # Å, of the worst element pair
LIPS_THRESHOLD = 1.0  # Å, of the curve of all atoms
BOND_THRESHOLD = 0.5  # Å
DISTANCE_TOLERANCE = 0.1  # of the shortest distance


class Instability(NamedTuple):
    """Where a simulation broke first.

    time: fs after the first frame; of a window, its beginning.
    frame: its number, from 0.
    value: what broke the limit, Å; inf where positions are not finite or atoms sit on each other.
    limit: the threshold, Å.
    cause: in words, with the element pair or the bond.
    """

    time: float
    frame: int
    value: float
    limit: float
    cause: str


def rdf_instability(
    positions: ArrayLike,
    numbers: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    timestep: float,
    reference: RadialDistribution,
    *,
    threshold: float,
    window: float = 1000.0,
    partial: bool = True,
) -> Instability | None:
    """The first window whose g(r) is further than ``threshold`` from the reference, or None.

    Windows slide by one frame and are full; each is averaged. A frame with positions or a cell that are not finite, or
    with atoms on each other, is unstable by itself. Nothing is computed after the first instability.

    Args:
        positions: ``[frames, atoms, 3]`` Å; may hold NaN after the explosion.
        numbers: ``[atoms]`` atomic numbers.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å.
        pbc: ``[3]`` bool.
        timestep: fs between frames.
        reference: from :func:`leignn_jax.analysis.radial_distribution` of a trusted trajectory; its bins are used.
        threshold: Å; ``WATER_THRESHOLD`` and ``LIPS_THRESHOLD`` are the paper's for these two systems.
        window: fs.
        partial: judge by the worst element pair, as the paper does for water; False is the curve of all atoms, as for
            LiPS.

    Raises:
        DataError: other elements than in the reference, or a trajectory shorter than the window.
        StructureError: the first frame is already no structure.
    """
    positions = as_frames(positions, "positions", finite=False)
    frames = len(positions)
    cells = as_cells(cell, frames)
    numbers = as_numbers(numbers, positions.shape[1])
    pbc = as_pbc(pbc)
    if not isinstance(reference, RadialDistribution):
        raise ConfigError(f"reference must be what radial_distribution gives, not {shown(reference)}.")
    edges = reference.edges
    counter = PairCounter(numbers, len(numbers), pbc, float(edges[-1]), len(edges) - 1, None)
    pairs = counter.distribution(reference.total, reference.partial, reference.neighbors).pairs
    if pairs != reference.pairs:
        raise DataError(
            f"The trajectory has the element pairs {_names(pairs)}, the reference {_names(reference.pairs)}: give the "
            "reference of this system."
        )
    timestep, threshold = check_timestep(timestep), check_number("threshold", threshold, positive=True)
    window = check_number("window", window, positive=True)
    length = max(1, round(window / timestep))
    if frames < length:
        raise DataError(
            f"The trajectory of {frames} frames is shorter than the window of {length} frames ({window:g} fs): simulate "
            "longer or take a shorter window."
        )
    check_structure(positions[0], cells[0], pbc)
    target = reference.partial if partial else reference.total[None]
    names = ["-".join(pair) for pair in pairs] if partial else ["all atoms"]
    recent: deque[np.ndarray] = deque(maxlen=length)
    for frame in range(frames):
        try:
            counts = counter.count(positions[frame], cells[frame])
        except StructureError as error:
            if frame == 0:
                raise
            return Instability(frame * timestep, frame, float("inf"), threshold, f"frame {frame} is broken: {error}")
        total, parts = counter.normalise(counts, cells[frame])
        recent.append(parts if partial else total[None])
        if len(recent) < length:
            continue
        errors = rdf_mae(np.mean(recent, axis=0), target, edges)
        worst = int(np.argmax(errors))
        if errors[worst] > threshold:
            start = frame - length + 1
            cause = f"g(r) of {names[worst]} over {length} frames from frame {start} is off by {errors[worst]:.3g} Å"
            return Instability(start * timestep, start, float(errors[worst]), threshold, cause)
    return None


def bond_instability(
    positions: ArrayLike,
    numbers: ArrayLike,
    timestep: float,
    reference: ArrayLike,
    *,
    threshold: float = BOND_THRESHOLD,
    slack: float = 0.6,
) -> Instability | None:
    """The first frame in which a bond of a molecule is off its reference length by more than ``threshold``, or None.

    Bonds are those of the first reference frame: pairs closer than the sum of their covalent radii and ``slack``. The
    paper's notebook takes them from the first simulated frame by ASE's neighbour list, whose skin makes the slack 0.6 Å.

    Args:
        positions: ``[frames, atoms, 3]`` Å, the molecule whole (unwrapped); may hold NaN after the explosion.
        numbers: ``[atoms]`` atomic numbers.
        timestep: fs between frames.
        reference: ``[atoms, 3]`` Å, equilibrium positions, or ``[frames, atoms, 3]``, whose mean lengths count.
        threshold: Å.
        slack: Å.

    Raises:
        DataError: shapes that don't fit, or a reference without bonds.
    """
    positions = as_frames(positions, "positions", finite=False)
    reference = numbers_of(reference, "The reference")
    reference = as_frames(reference[None] if reference.ndim == 2 else reference, "reference")
    numbers = as_numbers(numbers, reference.shape[1])
    if positions.shape[1:] != reference.shape[1:]:
        raise DataError(f"The trajectory has {positions.shape[1]} atoms, the reference {reference.shape[1]}.")
    timestep, threshold = check_timestep(timestep), check_number("threshold", threshold, positive=True)
    bonds = find_bonds(reference[0], numbers, slack=slack)
    if not len(bonds):
        raise DataError("The reference has no bonds: is it a molecule, and are its positions in Å?")
    lengths = _lengths(reference, bonds).mean(axis=0)
    deviations = np.abs(_lengths(positions, bonds) - lengths)
    # Written so that NaN breaks the limit too.
    broken = ~(deviations <= threshold)
    frames = np.flatnonzero(broken.any(axis=1))
    if not len(frames):
        return None
    frame = int(frames[0])
    values = np.where(np.isfinite(deviations[frame]), deviations[frame], np.inf)
    worst = int(np.argmax(values))
    i, j = (int(k) for k in bonds[worst])
    cause = (
        f"bond {chemical_symbols[numbers[i]]}{i}-{chemical_symbols[numbers[j]]}{j} of {lengths[worst]:.3f} Å is off by "
        f"{values[worst]:.3g} Å in frame {frame}"
    )
    return Instability(frame * timestep, frame, float(values[worst]), threshold, cause)


def distance_instability(
    positions: ArrayLike,
    numbers: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    timestep: float,
    shortest: Mapping[tuple[str, str], float],
    *,
    tolerance: float = DISTANCE_TOLERANCE,
) -> Instability | None:
    """The first frame in which two atoms are nearer than their elements ever were in trusted frames, or None.

    A few atoms that a potential draws together hardly show in an RDF, of which they are one pair in ten thousand; this
    sees one pair in one frame.

    Args:
        positions: ``[frames, atoms, 3]`` Å; may hold NaN after the explosion.
        numbers: ``[atoms]`` atomic numbers.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å.
        pbc: ``[3]`` bool.
        timestep: fs between frames.
        shortest: Å by two symbols, as :func:`leignn_jax.data.shortest_distances` gives them for the trusted frames.
            Elements that are not named together are not judged.
        tolerance: part of the shortest distance by which a pair may be nearer: more frames see rarer distances.

    Raises:
        ConfigError: a timestep or tolerance that makes no sense.
        StructureError: the first frame is already no structure.
    """
    positions = as_frames(positions, "positions", finite=False)
    cells = as_cells(cell, len(positions))
    numbers = as_numbers(numbers, positions.shape[1])
    pbc = as_pbc(pbc)
    timestep, tolerance = check_timestep(timestep), check_number("tolerance", tolerance, least=0.0)
    if tolerance >= 1:
        raise ConfigError(f"tolerance is a part of the shortest distance, below 1, not {tolerance:g}.")
    limits = np.zeros((len(chemical_symbols),) * 2)
    if not isinstance(shortest, Mapping):
        raise ConfigError(f"shortest must be distances by two elements, not {shown(shortest)}.")
    for pair, distance in shortest.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(symbol in chemical_symbols[1:] for symbol in pair)):
            raise ConfigError(f"shortest: {pair!r} is no pair of elements, such as ('H', 'O').")
        i, j = (chemical_symbols.index(symbol) for symbol in pair)
        distance = check_number(f"shortest of {pair[0]}-{pair[1]}", distance, positive=True)
        limits[i, j] = limits[j, i] = (1 - tolerance) * distance
    check_structure(positions[0], cells[0], pbc)
    for frame, (here, box) in enumerate(zip(positions, cells, strict=True)):
        try:
            check_structure(here, box, pbc)
            pairs = find_pairs(here, box, pbc, max(float(limits.max()), 1e-3))
        except StructureError as error:
            cause = f"frame {frame} is broken: {error}"
            return Instability(frame * timestep, frame, float("inf"), float("nan"), cause)
        limit = limits[numbers[pairs.receivers], numbers[pairs.senders]]
        short = limit - pairs.distances
        if len(short) and short.max() > 0:
            k = int(np.argmax(short))
            i, j = int(pairs.receivers[k]), int(pairs.senders[k])
            cause = (
                f"{chemical_symbols[numbers[i]]}{i} and {chemical_symbols[numbers[j]]}{j} are {pairs.distances[k]:.3f} Å "
                f"apart in frame {frame}, nearer than {limit[k]:.3f} Å"
            )
            return Instability(frame * timestep, frame, float(pairs.distances[k]), float(limit[k]), cause)
    return None


def find_bonds(positions: ArrayLike, numbers: ArrayLike, *, slack: float = 0.6) -> np.ndarray:
    """Pairs ``[bonds, 2]`` int of a molecule closer than the sum of their covalent radii and ``slack`` (Å), i < j.

    Args:
        positions: ``[atoms, 3]`` Å.
        numbers: ``[atoms]`` atomic numbers.
        slack: Å.
    """
    slack = check_number("slack", slack, least=0.0)
    positions = numbers_of(positions, "The positions")
    radii = covalent_radii[as_numbers(numbers, len(positions))]
    pairs = find_pairs(positions, np.zeros((3, 3)), np.zeros(3, bool), float(2 * radii.max() + slack))
    near = pairs.distances < radii[pairs.receivers] + radii[pairs.senders] + slack
    return np.column_stack([pairs.receivers, pairs.senders])[near].astype(np.int64)


def _lengths(positions: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """``[frames, bonds]`` Å."""
    return np.linalg.norm(positions[:, bonds[:, 0]] - positions[:, bonds[:, 1]], axis=-1)


def _names(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join("-".join(p) for p in pairs)
