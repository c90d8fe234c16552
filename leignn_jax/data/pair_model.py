"""A linear model of pairs and densities, fitted to some frames in a second: what labels are judged by, not a potential.

The energy is a sum over pairs of smooth functions of the distance, one per two elements, and over atoms of the square root
of a density of neighbours, as in Finnis and Sinclair, Phil. Mag. A 50, 45 (1984). All coefficients enter linearly, so that
forces, stress and energy are one matrix each, and what is fitted to forces alone foretells energies and stresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ase
import numpy as np
from scipy import sparse

from leignn_jax.neighbors import Pairs, find_pairs

_FUNCTIONS = 14  # radial functions of a pair of elements
_DECAYS = (1.5, 3.0)  # of the densities, 1/Å at the usual distances
_RIDGE = 1e-6


class Basis(NamedTuple):
    """What the functions are of.

    elements: atomic numbers.
    cutoff: Å.
    nearest: ``[elements, elements]`` Å, where the functions of each two elements begin.
    """

    elements: tuple[int, ...]
    cutoff: float
    nearest: np.ndarray

    @property
    def size(self) -> int:
        """How many coefficients."""
        n = len(self.elements)
        return n * (n + 1) // 2 * _FUNCTIONS + n * len(_DECAYS)


class Features(NamedTuple):
    """One frame: the derivative of each label by each coefficient.

    energy: ``[size]``.
    forces: ``[3 atoms, size]``.
    virial: ``[9, size]``, of volume times stress (ASE's sign).
    """

    energy: np.ndarray
    forces: np.ndarray
    virial: np.ndarray


class ForceModel(NamedTuple):
    """A basis and its ``[size]`` coefficients."""

    basis: Basis
    coefficients: np.ndarray


class _Term(NamedTuple):
    """Some functions: their columns, their energies, the pairs that hold them and the slopes ``[rows, columns]`` there."""

    columns: slice
    energy: np.ndarray
    rows: np.ndarray
    slopes: np.ndarray


def features(atoms: ase.Atoms, basis: Basis) -> Features:
    """Energy, forces and virial of one frame as matrices on the coefficients; elements must be those of ``basis``."""
    pairs, vectors = _pairs(atoms, basis)
    count, atom_count = len(pairs.distances), len(atoms)
    energy, slopes = np.zeros(basis.size), np.zeros((count, basis.size))
    for term in _terms(atoms, pairs, basis):
        energy[term.columns] += term.energy
        slopes[term.rows, term.columns] += term.slopes
    u = vectors / pairs.distances[:, None]
    # +1 on the receiver, which a growing energy pulls to the sender, -1 on the sender.
    ends = np.concatenate([pairs.receivers, pairs.senders])
    signs = np.repeat([1.0, -1.0], count)
    forces = np.empty((atom_count, 3, basis.size))
    for axis in range(3):
        data = signs * np.tile(u[:, axis], 2)
        to_atoms = sparse.csr_matrix((data, (ends, np.tile(np.arange(count), 2))), shape=(atom_count, count))
        forces[:, axis] = to_atoms @ slopes
    virial = (vectors[:, :, None] * u[:, None, :]).reshape(-1, 9).T @ slopes
    return Features(energy, forces.reshape(3 * atom_count, basis.size), virial)


def model_forces(atoms: ase.Atoms, model: ForceModel) -> np.ndarray:
    """``[atoms, 3]`` eV/Å, what the features times the coefficients are, without the matrix."""
    basis, coefficients = model
    pairs, vectors = _pairs(atoms, basis)
    pull = np.zeros(len(pairs.distances))
    for term in _terms(atoms, pairs, basis):
        pull[term.rows] += term.slopes @ coefficients[term.columns]
    pull = (pull / pairs.distances)[:, None] * vectors
    out = np.empty((len(atoms), 3))
    for axis in range(3):
        out[:, axis] = np.bincount(pairs.receivers, pull[:, axis], len(atoms))
        out[:, axis] -= np.bincount(pairs.senders, pull[:, axis], len(atoms))
    return out


def _pairs(atoms: ase.Atoms, basis: Basis) -> tuple[Pairs, np.ndarray]:
    pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), basis.cutoff)
    shifts = pairs.shifts @ np.asarray(atoms.cell)
    return pairs, atoms.positions[pairs.senders] + shifts - atoms.positions[pairs.receivers]


def _terms(atoms: ase.Atoms, pairs: Pairs, basis: Basis) -> Iterator[_Term]:
    n, r, kinds = len(atoms), pairs.distances, len(basis.elements)
    place = np.searchsorted(basis.elements, atoms.numbers)
    one, other = place[pairs.receivers], place[pairs.senders]
    kind = np.minimum(one, other) * kinds + np.maximum(one, other)
    start = 0
    for a in range(kinds):
        for b in range(a, kinds):
            rows = np.flatnonzero(kind == a * kinds + b)
            if len(rows):
                values, slopes = _radial(r[rows], basis.nearest[a, b], basis.cutoff)
                yield _Term(slice(start, start + _FUNCTIONS), values.sum(0), rows, slopes)
            start += _FUNCTIONS
    ends = np.concatenate([pairs.receivers, pairs.senders])
    length = basis.cutoff / 5.0
    for decay in _DECAYS:
        end = np.maximum(1 - r / basis.cutoff, 1e-9)
        value = np.exp(-decay * (r / length - 2.5)) * end**2
        slope = -value * (decay / length + 2 / (basis.cutoff * end))
        density = np.bincount(ends, np.concatenate([value, value]), minlength=n)
        root = np.sqrt(np.maximum(density, 1e-12))
        for k in range(kinds):
            mine = (place == k) & (density > 0)
            share = np.where(mine, 0.5 / root, 0.0)
            by_pair = (share[pairs.receivers] + share[pairs.senders]) * slope
            rows = np.flatnonzero(by_pair)
            yield _Term(slice(start, start + 1), np.array([root[mine].sum()]), rows, by_pair[rows, None])
            start += 1


def _radial(r: np.ndarray, nearest: float, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians of log r times a smooth end: values and derivatives, [pairs, functions]."""
    centers = np.linspace(np.log(0.8 * nearest), np.log(cutoff), _FUNCTIONS)
    width = centers[1] - centers[0]
    t = (np.log(r)[:, None] - centers) / width
    end = 1 - r / cutoff
    gauss = np.exp(-0.5 * t**2)
    values = gauss * end[:, None] ** 2
    slopes = -gauss * (t / (width * r[:, None]) * end[:, None] ** 2 + 2 * end[:, None] / cutoff)
    return values, slopes


def make_basis(frames: Sequence[ase.Atoms], cutoff: float) -> Basis:
    """Functions for the elements and distances of these frames."""
    elements = tuple(int(z) for z in np.unique(np.concatenate([a.numbers for a in frames])))
    nearest = np.full((len(elements),) * 2, cutoff / 3)
    for atoms in frames[:: max(1, len(frames) // 60)]:
        pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), cutoff)
        i, j = (np.searchsorted(elements, atoms.numbers[x]) for x in (pairs.receivers, pairs.senders))
        np.minimum.at(nearest, (i, j), pairs.distances)
        np.minimum.at(nearest, (j, i), pairs.distances)
    return Basis(elements, cutoff, nearest)


def fit_forces(frames: Sequence[Features], forces: Sequence[np.ndarray]) -> np.ndarray:
    """``[size]`` coefficients by least squares of the forces ``[atoms, 3]`` in eV/Å.

    Frames count by their own size of forces, so that a few with huge ones don't rule; those that the rest contradicts are
    weighted down, so that a wrong frame does not teach the model that it is right.
    """
    labels = [f.ravel() for f in forces]
    squares = np.array([np.mean(f**2) for f in labels])
    # Of frames that are not at rest, whose forces are noise, and without the few largest.
    kept = squares[squares <= np.quantile(squares, 0.95)]
    usual = max(float(np.median(squares)), 0.1 * float(kept.mean())) or max(float(squares.max()), 1e-12)
    scale = np.array([1 / (f.size * (square + usual)) for f, square in zip(labels, squares, strict=True)])
    weight = np.ones(len(labels))
    coefficients = np.zeros(frames[0].forces.shape[1])
    for _ in range(4):
        left, right = np.zeros((len(coefficients),) * 2), np.zeros(len(coefficients))
        for x, f, w in zip(frames, labels, weight * scale, strict=True):
            left += w * (x.forces.T @ x.forces)
            right += w * (x.forces.T @ f)
        size = np.sqrt(np.diag(left))
        size[size < 1e-9 * size.max(initial=1e-300)] = np.inf
        scaled = left / size / size[:, None] + _RIDGE * np.eye(len(size))
        coefficients = np.linalg.solve(scaled, right / size) / size
        missed = np.array([np.sum((f - x.forces @ coefficients) ** 2) for x, f in zip(frames, labels, strict=True)])
        ratio = missed * scale
        weight = 1 / (1 + (ratio / (2 * max(float(np.median(ratio)), 1e-9))) ** 2)
    return coefficients
