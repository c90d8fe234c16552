"""Radial distribution functions g(r) of periodic systems and h(r) of molecules, on the host.

g_ab(r) = V / (N_a N_b 4 pi r^2) <sum over i in a, j in b and all images of delta(r - r_ij)>, i itself left out but not
its images. Divided by N_a N_b also where a = b, so a unit cell and its supercell give the same curve; the total is
g(r) = sum_ab c_a c_b g_ab(r), c_a = N_a / N. This is the convention of LAMMPS, of ASE from 3.27 and of Fu et al.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from leignn_jax.analysis.forces import MOST_BINS
from leignn_jax.analysis.trajectory import as_cells, as_frames, as_numbers, as_pbc
from leignn_jax.arguments import check_number, check_whole, numbers_of, shown
from leignn_jax.errors import ConfigError, DataError, StructureError
from leignn_jax.neighbors import find_pairs


class RadialDistribution(NamedTuple):
    """Averages over frames; g has no unit.

    r: ``[bins]`` Å, centres of the bins.
    edges: ``[bins + 1]`` Å.
    total: ``[bins]`` g(r) of all atoms.
    pairs: ``[kinds]`` of ``(first, second)`` chemical symbols in the order of atomic numbers, each pair once.
    partial: ``[kinds, bins]`` g_ab(r).
    neighbors: ``[kinds, bins]`` mean number of atoms of the second element in the bin around an atom of the first.
    composition: number of atoms of each symbol.
    """

    r: np.ndarray
    edges: np.ndarray
    total: np.ndarray
    pairs: tuple[tuple[str, str], ...]
    partial: np.ndarray
    neighbors: np.ndarray
    composition: dict[str, int]

    def of(self, first: str, second: str) -> np.ndarray:
        """g_ab(r) ``[bins]`` of two elements in either order."""
        return self.partial[self._kind(first, second)[0]]

    def coordination(self, first: str, second: str) -> np.ndarray:
        """Mean number of ``second`` within each upper edge of the bins around one atom of ``first``, ``[bins]``."""
        kind, turned = self._kind(first, second)
        counts = np.cumsum(self.neighbors[kind])
        return counts * self.composition[second] / self.composition[first] if turned else counts

    def _kind(self, first: str, second: str) -> tuple[int, bool]:
        for pair, turned in (((first, second), False), ((second, first), True)):
            if pair in self.pairs:
                return self.pairs.index(pair), turned
        raise ConfigError(f"There is no pair {first}-{second}: there are {', '.join('-'.join(p) for p in self.pairs)}.")


class DistanceDistribution(NamedTuple):
    """h(r), averaged over frames.

    r: ``[bins]`` Å, centres of the bins.
    edges: ``[bins + 1]`` Å.
    density: ``[bins]`` 1/Å, its integral over the bins is 1.
    outside: share of the distances that are r_max or longer; they are not in ``density``.
    """

    r: np.ndarray
    edges: np.ndarray
    density: np.ndarray
    outside: float


def radial_distribution(
    positions: ArrayLike,
    numbers: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike = True,
    *,
    r_max: float = 6.0,
    bins: int = 500,
    volume: float | None = None,
) -> RadialDistribution:
    """Total and partial g(r), averaged over frames, with all images in any cell: triclinic, or smaller than r_max.

    The defaults are those of Fu et al. for water and LiPS (arXiv 2210.07237), so that :func:`rdf_mae` is theirs; few
    frames look better with fewer bins.

    Args:
        positions: ``[frames, atoms, 3]`` Å, wrapped or not.
        numbers: ``[atoms]`` atomic numbers.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å, rows are lattice vectors.
        pbc: ``[3]`` bool or one for all.
        r_max: Å.
        bins: of equal width from 0 to r_max.
        volume: Å^3 to normalise by; None is the volume of each frame's cell, vacuum included.

    Raises:
        DataError: shapes that don't fit, positions that are not finite, or no volume to normalise by.
        StructureError: a frame whose atoms overlap or whose cell is singular, with its number.
        ConfigError: r_max or bins out of range.
    """
    positions = as_frames(positions, "positions")
    counter = PairCounter(numbers, positions.shape[1], pbc, r_max, bins, volume)
    cells = as_cells(cell, len(positions))
    partial, neighbors = np.zeros((len(counter.kinds), bins)), np.zeros((len(counter.kinds), bins))
    total = np.zeros(bins)
    for i, (frame, lattice) in enumerate(zip(positions, cells, strict=True)):
        try:
            counts = counter.count(frame, lattice)
        except StructureError as error:
            raise StructureError(f"Frame {i}: {error}") from error
        whole, parts = counter.normalise(counts, lattice)
        total, partial = total + whole, partial + parts
        neighbors = neighbors + counts / counter.sizes[counter.kinds[:, 0], None]
    count = len(positions)
    return counter.distribution(total / count, partial / count, neighbors / count)


def distance_distribution(
    positions: ArrayLike, *, r_max: float = 10.0, bins: int = 500, select: ArrayLike | None = None
) -> DistanceDistribution:
    """h(r): how the distances between all pairs of atoms are distributed, averaged over frames; no cell, no images.

    As Fu et al. (arXiv 2210.07237) for molecules, defaults included: a histogram whose integral up to r_max is 1.

    Args:
        positions: ``[frames, atoms, 3]`` Å, of two atoms or more.
        r_max: Å.
        bins: of equal width from 0 to r_max.
        select: ``[atoms]`` bool, atoms that count; None is all.

    Raises:
        DataError: fewer than two atoms, or all distances are longer than r_max.
    """
    from scipy.spatial.distance import pdist

    positions = as_frames(positions, "positions")
    if select is not None:
        select = np.asarray(select)
        if select.dtype != bool or select.shape != positions.shape[1:2]:
            raise DataError(f"select must be bool [{positions.shape[1]}], one for each atom, not {shown(select)}.")
        positions = positions[:, select]
    if positions.shape[1] < 2:
        raise DataError("A distribution of distances needs two atoms.")
    edges = _edges(r_max, bins)
    counts, seen = np.zeros(bins), 0
    for frame in positions:
        distances = pdist(frame)
        counts += np.histogram(distances[distances < r_max], edges)[0]
        seen += len(distances)
    inside = counts.sum()
    if not inside:
        raise DataError(f"No two atoms are closer than r_max = {r_max} Å: raise it.")
    return DistanceDistribution(_centres(edges), edges, counts / (inside * np.diff(edges)), 1 - float(inside / seen))


def rdf_mae(first: Any, second: Any, edges: Any) -> Any:
    """``integral of |first - second| dr`` over the bins: Å for g(r), no unit for h(r).

    Fu et al. (arXiv 2210.07237) call it the RDF MAE; their code takes the mean of ``|difference|`` times r_max, which is
    the same up to r_max. It grows with the noise of each bin, hence with finer bins: compare like with like.

    Args:
        first, second: ``[..., bins]`` arrays of NumPy or jax.
        edges: ``[bins + 1]`` Å.

    Returns:
        ``[...]``.

    Raises:
        DataError: the curves have not one value for each bin.
    """
    first, second, edges = (x if hasattr(x, "shape") else numbers_of(x, "A curve") for x in (first, second, edges))
    for curve in (first, second):
        if edges.ndim != 1 or curve.ndim == 0 or curve.shape[-1] + 1 != len(edges):
            values = curve.shape[-1] if curve.ndim else 0
            raise DataError(
                f"A curve of {values} values does not fit {edges.size} edges of bins: compute both curves with "
                "the same r_max and bins."
            )
    return (abs(first - second) * (edges[1:] - edges[:-1])).sum(-1)


class PairCounter:
    """Counts of pairs per element pair and bin for the frames of one system; kinds are element pairs, each once."""

    def __init__(self, numbers: ArrayLike, atoms: int, pbc: ArrayLike, r_max: float, bins: int, volume: float | None):
        numbers = as_numbers(numbers, atoms)
        elements, self._species, self.sizes = np.unique(numbers, return_inverse=True, return_counts=True)
        first, second = np.triu_indices(len(elements))
        self.kinds = np.column_stack([first, second])
        self._table = np.zeros((len(elements), len(elements)), np.int64)
        self._table[first, second] = self._table[second, first] = np.arange(len(first))
        self.symbols = [chemical_symbols[z] for z in elements]
        self.edges = _edges(r_max, bins)
        self._pbc = as_pbc(pbc)
        self._shells = 4 / 3 * np.pi * np.diff(self.edges**3)
        self._volume = None if volume is None else check_number("volume", volume, positive=True)

    def count(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Ordered pairs (first element, second element) of one frame, ``[kinds, bins]``."""
        bins = len(self._shells)
        pairs = find_pairs(positions, cell, self._pbc, float(self.edges[-1]))
        kind = self._table[self._species[pairs.receivers], self._species[pairs.senders]]
        bin_ = np.minimum((pairs.distances * (bins / self.edges[-1])).astype(np.int64), bins - 1)
        counts = np.bincount(kind * bins + bin_, minlength=len(self.kinds) * bins).reshape(len(self.kinds), bins)
        same = self.kinds[:, 0] == self.kinds[:, 1]
        return np.where(same[:, None], 2.0, 1.0) * counts

    def normalise(self, counts: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Total ``[bins]`` and partial ``[kinds, bins]`` g(r) of one frame."""
        volume = self._volume if self._volume is not None else abs(np.linalg.det(cell))
        if volume < 1e-9:
            raise DataError(
                "The cell has no volume, so g(r) has no norm. Give `volume`, or use distance_distribution for a molecule."
            )
        first, second = self.kinds.T
        density = volume / self._shells
        partial = counts * density / (self.sizes[first] * self.sizes[second])[:, None]
        both = np.where(first == second, 1.0, 2.0)[:, None]
        return (both * counts).sum(axis=0) * density / self.sizes.sum() ** 2, partial

    def distribution(self, total: np.ndarray, partial: np.ndarray, neighbors: np.ndarray) -> RadialDistribution:
        """The averages as the public tuple."""
        pairs = tuple((self.symbols[i], self.symbols[j]) for i, j in self.kinds)
        composition = {s: int(n) for s, n in zip(self.symbols, self.sizes, strict=True)}
        return RadialDistribution(_centres(self.edges), self.edges, total, pairs, partial, neighbors, composition)


def _edges(r_max: float, bins: int) -> np.ndarray:
    r_max = check_number("r_max", r_max, positive=True)
    return np.linspace(0.0, r_max, check_whole("bins", bins, 1, MOST_BINS) + 1)


def _centres(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[1:] + edges[:-1])
