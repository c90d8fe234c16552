"""Which frames are worth a DFT calculation: those of which a committee is least sure, and of those alike one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ase
import numpy as np

from leignn_jax.arguments import check_number, check_structures, check_whole
from leignn_jax.errors import ConfigError
from leignn_jax.neighbors import find_pairs
from leignn_jax.potential import Potential
from leignn_jax.sweeps.committee import check_committee, iter_committee

# A smooth histogram of distances: its points, and the width of each distance's bump, of the cutoff.
_POINTS, _WIDTH = 24, 0.04
# Frames looked at for each that is chosen.
_SHORTLIST = 5
# Distance of two fingerprints that differ by rounding; those of frames that differ by a hundredth of an Å are 1e-3 apart.
_ALIKE = 1e-6
_MOST = 1_000_000


class Selection(NamedTuple):
    """Frames that were chosen, the most doubtful first.

    indices: ``[chosen]``, their numbers in the pool.
    doubts: ``[pool]`` eV/Å, see :attr:`leignn_jax.sweeps.committee.CommitteePrediction.doubt`.
    distances: ``[chosen]``, from each to the nearest of those chosen before or known (no unit); infinity for the first.
    """

    indices: np.ndarray
    doubts: np.ndarray
    distances: np.ndarray


def select(
    members: Potential,
    pool: Sequence[ase.Atoms],
    count: int,
    *,
    known: Sequence[ase.Atoms] = (),
    least_doubt: float = 0.0,
    dtype: str = "float32",
) -> Selection:
    """Choose frames to label, from a trajectory or any other pool.

    The ``5 count`` most doubtful frames are looked at. The first to be chosen is the most doubtful of them, or where some
    are known the farthest from these; each next one is the farthest from all that are chosen or known (farthest-first),
    where the distance of two frames is that of :func:`fingerprints`. So a frame's neighbours in time are not chosen beside
    it.

    Args:
        members: from :func:`leignn_jax.committee`.
        pool: frames to choose from.
        count: how many; fewer are chosen where fewer are doubtful enough.
        known: frames that are labelled already, not to be chosen again.
        least_doubt: eV/Å below which a frame is not worth it.
        dtype: of the committee's arithmetic.

    Raises:
        ConfigError: ``members`` is no committee, or one of a single potential, or an argument is not what it must be.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`; the message names the frame.
    """
    if np.size(check_committee(members).scale) < 2:
        raise ConfigError(
            "members: one potential has no doubt; give a committee of two at least (leignn_jax.committee)."
        )
    pool = check_structures(pool, "pool")
    known = [] if isinstance(known, tuple | list) and not known else check_structures(known, "known")
    check_whole("count", count, 1, _MOST)
    check_number("least_doubt", least_doubt, least=0)
    doubts = np.array([said.doubt for said in iter_committee(members, pool, dtype=dtype)])
    order = np.argsort(-doubts, kind="stable")[: _SHORTLIST * count]
    order = order[doubts[order] >= least_doubt]
    if len(order) == 0:
        return Selection(np.zeros(0, int), doubts, np.zeros(0))
    elements = members.config.numbers
    points = fingerprints([pool[i] for i in order], elements, members.cutoff)
    nearest = np.full(len(order), np.inf)
    for other in fingerprints(known, elements, members.cutoff):
        nearest = np.minimum(nearest, np.linalg.norm(points - other, axis=1))
    new = nearest > _ALIKE
    order, points, nearest = order[new], points[new], nearest[new]
    chosen, distances = [], []
    place = int(np.argmax(nearest)) if len(order) else 0
    for _ in range(min(count, len(order))):
        chosen.append(int(order[place]))
        distances.append(float(nearest[place]))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[place], axis=1))
        place = int(np.argmax(nearest))
        if nearest[place] <= _ALIKE:
            # What is left is the same as something chosen.
            break
    return Selection(np.array(chosen, int), doubts, np.array(distances))


def fingerprints(frames: Iterable[ase.Atoms], elements: Sequence[int], cutoff: float) -> np.ndarray:
    """``[frames, pairs of elements * 24]``: how many neighbours an atom of one element has of another at each distance up
    to ``cutoff`` Å, smoothed; the same for a frame however it is turned, shifted, ordered or repeated."""
    elements = list(elements)
    kinds = [(a, b) for i, a in enumerate(elements) for b in elements[i:]]
    grid = np.linspace(0.0, cutoff, _POINTS)
    found = []
    for atoms in frames:
        if len(atoms) == 0:
            raise ConfigError("fingerprints: a frame has no atoms.")
        pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), atoms.pbc, cutoff)
        numbers = np.sort(np.stack([atoms.numbers[pairs.receivers], atoms.numbers[pairs.senders]]), axis=0)
        one = np.zeros((len(kinds), _POINTS))
        for row, kind in enumerate(kinds):
            distances = pairs.distances[(numbers == np.sort(kind)[:, None]).all(0)]
            # Nothing jumps where a pair comes within the cutoff.
            weights = 0.5 * (1 + np.cos(np.pi * distances / cutoff))
            bumps = np.exp(-0.5 * ((grid[:, None] - distances) / (_WIDTH * cutoff)) ** 2)
            one[row] = bumps @ weights / len(atoms)
        found.append(one.ravel())
    return np.array(found).reshape(-1, len(kinds) * _POINTS)
