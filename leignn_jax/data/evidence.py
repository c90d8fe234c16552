"""What labelled frames say about the units and signs of their own labels: pure estimates, each with its precision.

=============  ======================================================================================================
distances      the nearest neighbour of an atom over the sum of the covalent radii: 0.8 to 1.1 in molecules and solids
stiffness      of the shortest bonds: the force along a bond falls with its length by k, and k r^3 is about 40 eV Å for
               bonds with hydrogen and 14 to 140 for all others, after R. M. Badger, J. Chem. Phys. 2, 128 (1934)
work           the energy difference of two similar frames is minus the mean force times the displacement, exact to
               third order; for a strain, volume times mean stress times the strain
model          energies and stresses as a linear model fitted to the forces foretells them (pair_model.py)
bulk           curvature of the energy over the volume of frames that differ in nothing else, B r^3 about 8 eV
=============  ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.data import covalent_radii

from leignn_jax.data.labels import Labels
from leignn_jax.data.pair_model import Features
from leignn_jax.neighbors import Pairs, completed_lattice, find_pairs

Sample = Sequence[tuple[ase.Atoms, Labels]]

_NOBLE = (2, 10, 18, 36, 54, 86)
_CUTOFF = 10.0  # Å, for nearest neighbours, also where lengths are 1.89 times too large
_MOVED = 0.6  # usual lengths; farther apart two frames are not similar
_STRAINED = 0.15
_DISTANCES = 2000  # that are compared of clusters of many atoms


class Ratio(NamedTuple):
    """A quantity over what it should be.

    value: 1 where all is right; negative with a wrong sign.
    sigma: of its natural logarithm.
    count: from how many bonds, pairs of frames or frames.
    """

    value: float
    sigma: float
    count: int


def robust_ratio(labelled: np.ndarray, expected: np.ndarray, least: float) -> Ratio | None:
    """``labelled`` over ``expected``, the median over the half with the larger ``expected``.

    None where there are fewer than 16, or signs agree too rarely for a statement. ``least``: the smallest sigma.
    """
    there = np.isfinite(labelled) & np.isfinite(expected) & (np.abs(expected) > 1e-9) & (labelled != 0)
    labelled, expected = labelled[there], expected[there]
    if len(expected) < 16:
        return None
    large = np.argsort(-np.abs(expected), kind="stable")[: len(expected) // 2]
    ratios = labelled[large] / expected[large]
    agreement = float(np.mean(ratios > 0))
    # By chance half agree: three standard deviations of that, and never below four in five.
    needed = max(0.8, 0.5 + 1.5 / np.sqrt(len(large)))
    if max(agreement, 1 - agreement) < min(needed, 1.0):
        return None
    sign = 1.0 if agreement > 0.5 else -1.0
    logs = np.log(np.abs(ratios[ratios * sign > 0]))
    middle = float(np.median(logs))
    spread = 1.48 * float(np.median(np.abs(logs - middle)))
    # A ratio of noisy numbers is biased by about its spread, however many there are.
    return Ratio(sign * float(np.exp(middle)), max(least, 0.6 * spread), len(large))


class Bond(NamedTuple):
    """Bonds of one two elements: their atomic numbers, median length in Å, stiffness in eV/Å^2, correlation, number."""

    elements: tuple[int, int]
    length: float
    stiffness: float
    correlation: float
    count: int


class Shell(NamedTuple):
    """One frame's pairs, their distances in sums of covalent radii, and ``[atoms]`` the shortest of each atom."""

    pairs: Pairs
    reduced: np.ndarray
    nearest: np.ndarray


def shell(atoms: ase.Atoms) -> Shell:
    """Pairs up to 10 Å or about 100 neighbours."""
    pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), _cutoff(atoms))
    radii = covalent_radii[atoms.numbers]
    reduced = pairs.distances / (radii[pairs.receivers] + radii[pairs.senders])
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, pairs.receivers, reduced)
    np.minimum.at(nearest, pairs.senders, reduced)
    return Shell(pairs, reduced, nearest)


def nearest_ratio(frames: Sequence[ase.Atoms], shells: Sequence[Shell]) -> Ratio | None:
    """Median over atoms of the distance to the nearest neighbour in sums of covalent radii, over 0.97.

    Noble gases, which form no bonds, don't count. None where half of the atoms have no neighbour.
    """
    bonded = [one.nearest[~np.isin(a.numbers, _NOBLE)] for a, one in zip(frames, shells, strict=True)]
    values = np.concatenate(bonded) if bonded else np.zeros(0)
    far = ~np.isfinite(values)
    if 2 * far.sum() >= len(values):
        return None
    logs = np.log(values[~far] / 0.97)
    # Atoms on their way apart are of all distances, those of another unit are not.
    spread = 1.48 * float(np.median(np.abs(logs - np.median(logs))))
    return Ratio(float(np.exp(np.median(logs))), max(0.11, 1.5 * spread), len(values))


def _cutoff(atoms: ase.Atoms) -> float:
    """10 Å, less where that many atoms would be too many neighbours."""
    if atoms.pbc.all():
        # About 100 neighbours are more than enough to hold the nearest.
        return min(_CUTOFF, float((100 * abs(atoms.cell.volume) / len(atoms) / 4.2) ** (1 / 3)))
    return _CUTOFF


def bonds(sample: Sample, shells: Sequence[Shell], scale: float) -> list[Bond]:
    """How the force along the shortest bonds changes with their length, per two elements.

    Args:
        sample: frames with forces.
        shells: of these.
        scale: length that 1 Å seems to have in these positions.
    """
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for (atoms, labels), (pairs, reduced, near) in zip(sample, shells, strict=True):
        if labels.forces is None:
            continue
        i, j = pairs.receivers, pairs.senders
        short = (reduced <= 1.05 * near[i]) | (reduced <= 1.05 * near[j])
        rows = np.flatnonzero(short & (reduced > 0.7 * scale) & (reduced < 1.35 * scale))
        i, j = i[rows], j[rows]
        vectors = atoms.positions[j] + pairs.shifts[rows] @ np.asarray(atoms.cell) - atoms.positions[i]
        along = 0.5 * np.sum((labels.forces[j] - labels.forces[i]) * vectors, axis=1) / pairs.distances[rows]
        # One element pair at a time, lighter first.
        kinds = np.sort(np.stack([atoms.numbers[i], atoms.numbers[j]], axis=1), axis=1)
        for kind in np.unique(kinds, axis=0):
            mine = (kinds == kind).all(axis=1)
            key = (int(kind[0]), int(kind[1]))
            found.setdefault(key, []).append(np.stack([pairs.distances[rows][mine], along[mine]]))
    return [bond for key, parts in sorted(found.items()) if (bond := _bond(key, np.concatenate(parts, axis=1)))]


def _bond(key: tuple[int, int], values: np.ndarray) -> Bond | None:
    length, force = values
    low, high = np.quantile(length, [0.02, 0.98])
    few, many = np.quantile(force, [0.02, 0.98])
    kept = (length >= low) & (length <= high) & (force >= few) & (force <= many)
    length, force = length[kept], force[kept]
    if len(length) < 10 or np.std(length) < 1e-3 * np.mean(length) or not np.std(force):
        return None
    slope = float(np.polyfit(length, force, 1)[0])
    correlation = float(np.corrcoef(length, force)[0, 1])
    return Bond(key, float(np.median(length)), -slope, -correlation, len(length))


def stiffness_ratio(found: Sequence[Bond]) -> tuple[Ratio, Bond] | None:
    """k r^3 over what is usual, with the bond that says so best; None where no force follows the length of a bond."""
    clear = [b for b in found if b.count >= 50 and abs(b.correlation) > 0.5]
    if not clear:
        return None
    with_hydrogen = [b for b in clear if b.elements[0] == 1 and b.elements[1] > 1 and abs(b.correlation) > 0.7]
    if with_hydrogen:
        best = max(with_hydrogen, key=lambda b: b.count)
        return Ratio(best.stiffness * best.length**3 / 40.0, 0.3, best.count), best
    values = np.array([b.stiffness * b.length**3 for b in clear])
    count = np.array([b.count for b in clear])
    # Weighted median.
    order = np.argsort(values)
    middle = order[int(np.searchsorted(np.cumsum(count[order]), count.sum() / 2))]
    bond, ratio = clear[int(middle)], float(values[middle]) / 45.0
    # Relaxed structures have soft bonds by accident, since they have no forces: a hint at most.
    sigma = 2.5 if abs(ratio) < 0.2 and abs(bond.correlation) < 0.8 else 0.7
    return Ratio(ratio, sigma, bond.count if sigma < 1 else 0), bond


class Works(NamedTuple):
    """Pairs of similar frames: ``[pairs]`` numbers of both, energy difference (eV), work of forces and of stress (eV),
    displacement (RMS, Å) and strain (largest component)."""

    first: np.ndarray
    second: np.ndarray
    energy: np.ndarray
    of_forces: np.ndarray
    of_stress: np.ndarray
    moved: np.ndarray
    strained: np.ndarray


def works(sample: Sample, scale: float) -> Works:
    """Each frame with the most similar one of the same atoms, where that is similar enough; ``scale`` as in bonds."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for i, (atoms, labels) in enumerate(sample):
        if labels.energy is not None:
            groups.setdefault((atoms.numbers.tobytes(), atoms.pbc.tobytes()), []).append(i)
    rows = []
    for members in groups.values():
        if len(members) < 2:
            continue
        nearest = _most_similar([sample[i][0] for i in members])
        done = set()
        for a, b in enumerate(nearest):
            pair = (min(a, int(b)), max(a, int(b)))
            if pair not in done:
                done.add(pair)
                i, j = members[pair[0]], members[pair[1]]
                rows.append((i, j, *_work(sample[i], sample[j])))
    values = np.array(rows, np.float64).reshape(-1, 7)
    values = values[(values[:, 5] < _MOVED * scale) & (values[:, 6] < _STRAINED)]
    first, second, *others = values.T
    return Works(first.astype(int), second.astype(int), *others)


def _most_similar(frames: Sequence[ase.Atoms]) -> np.ndarray:
    """For each frame the number of the one most like it; all have the same atoms."""
    first = frames[0]
    if first.pbc.any():
        lattices = [completed_lattice(np.asarray(a.cell), a.pbc) for a in frames]
        places = [np.linalg.solve(c.T, a.positions.T).T.ravel() for a, c in zip(frames, lattices, strict=True)]
        length = abs(np.linalg.det(lattices[0])) ** (1 / 3)
        cells = [c.ravel() / length * np.sqrt(len(first)) for c in lattices]
    else:
        if len(first) * (len(first) - 1) // 2 > _DISTANCES:
            # As many of a large cluster's tell as well which frame is like which.
            one, other = np.random.default_rng(0).integers(len(first), size=(2, _DISTANCES))
        else:
            one, other = np.triu_indices(len(first), 1)
        places = [np.linalg.norm(a.positions[one] - a.positions[other], axis=1) for a in frames]
        cells = [np.zeros(0)] * len(frames)
    place, cell = np.array(places), np.array(cells)
    wrap = np.tile(first.pbc, len(first)) if first.pbc.any() else np.zeros(place.shape[1], bool)
    best = np.empty(len(frames), int)
    for i in range(len(frames)):
        away = place - place[i]
        away -= np.round(away) * wrap
        square = (away**2).sum(1) + ((cell - cell[i]) ** 2).sum(1)
        # The same structure twice says nothing.
        square[square < 1e-12] = np.inf
        best[i] = int(np.argmin(square))
    return best


def _work(one: tuple[ase.Atoms, Labels], other: tuple[ase.Atoms, Labels]) -> tuple[float, ...]:
    """Energy difference, work of forces and of stress, RMS displacement, strain."""
    (a, of_a), (b, of_b) = one, other
    nothing = float("nan")
    energy = nothing if of_a.energy is None or of_b.energy is None else of_b.energy - of_a.energy
    if not a.pbc.any():
        centered_a, centered_b = a.positions - a.positions.mean(0), b.positions - b.positions.mean(0)
        u, _, vt = np.linalg.svd(centered_b.T @ centered_a)
        u[:, -1] *= np.sign(np.linalg.det(u @ vt))
        turn = u @ vt
        moved = centered_b @ turn - centered_a
        work = nothing
        if of_a.forces is not None and of_b.forces is not None:
            work = -0.5 * float(np.sum((of_a.forces + of_b.forces @ turn) * moved))
        return energy, work, 0.0, float(np.sqrt((moved**2).sum(1).mean())), 0.0
    cell_a, cell_b = (completed_lattice(np.asarray(x.cell), x.pbc) for x in (a, b))
    moved = np.linalg.solve(cell_b.T, b.positions.T).T - np.linalg.solve(cell_a.T, a.positions.T).T
    moved -= np.round(moved) * a.pbc
    moved -= moved.mean(0)
    work = nothing
    if of_a.forces is not None and of_b.forces is not None:
        work = -0.5 * float(np.sum(of_a.forces * (moved @ cell_a)) + np.sum(of_b.forces * (moved @ cell_b)))
    forward = np.linalg.solve(cell_a, cell_b)
    strain_a, strain_b = forward - np.eye(3), np.eye(3) - np.linalg.inv(forward)
    of_stress = nothing
    if of_a.stress is not None and of_b.stress is not None and a.pbc.all():
        of_stress = 0.5 * float(
            abs(np.linalg.det(cell_a)) * np.sum(of_a.stress * strain_a)
            + abs(np.linalg.det(cell_b)) * np.sum(of_b.stress * strain_b)
        )
    size = float(np.sqrt(((moved @ cell_a) ** 2).sum(1).mean()))
    return energy, work, of_stress, size, float(np.abs(strain_a).max())


def force_work_ratio(found: Works) -> Ratio | None:
    """Work of the forces over the energy difference, in pairs of frames of one cell."""
    same = found.strained < 1e-6
    return robust_ratio(found.of_forces[same], found.energy[same], 0.15)


def stress_work_ratio(found: Works) -> Ratio | None:
    """Work of the stress over the energy difference less the work of the forces, where that is the smaller part."""
    work = np.nan_to_num(found.of_forces)
    mainly = (found.strained > 1e-4) & (np.abs(work) < 0.5 * np.abs(found.energy))
    return robust_ratio(found.of_stress[mainly], (found.energy - work)[mainly], 0.15)


def _steady(values: Sequence[np.ndarray]) -> bool:
    """Whether models of the two halves of a set foretell the same, which forces need not determine."""
    one, other = (x.ravel() for x in values)
    size = np.linalg.norm(one), np.linalg.norm(other)
    return bool(one @ other > 0.8 * size[0] * size[1] and 0.5 * size[0] < size[1] < 2 * size[0])


def model_energy_ratio(
    sample: Sample, features: Sequence[Features], coefficients: np.ndarray, halves: Sequence[np.ndarray]
) -> Ratio | None:
    """Energies foretold from the forces over those labelled, both less a share per element; None where models of two halves
    of the set foretell others."""
    rows = [i for i, (_, labels) in enumerate(sample) if labels.energy is not None]
    elements = np.unique(np.concatenate([sample[i][0].numbers for i in rows])) if rows else np.zeros(0)
    if len(rows) < 8 + len(elements):
        return None
    atoms = np.array([len(sample[i][0]) for i in rows])
    shares = np.array([(sample[i][0].numbers[:, None] == elements).mean(0) for i in rows])
    labelled = np.array([sample[i][1].energy for i in rows], np.float64) / atoms
    rng = np.random.default_rng(0)

    def rest(values: np.ndarray) -> np.ndarray:
        centered = values - values.mean()
        return centered - shares @ np.linalg.lstsq(shares, centered, rcond=1e-8)[0]

    one, other = rng.integers(0, len(rows), (2, 4 * len(rows)))

    def foretell(model: np.ndarray) -> np.ndarray:
        return rest(np.array([features[i].energy @ model for i in rows]) / atoms)

    if not _steady([foretell(model) for model in halves]):
        return None
    labelled, foretold = rest(labelled), foretell(coefficients)
    ratio = robust_ratio(foretold[one] - foretold[other], labelled[one] - labelled[other], 0.8)
    return None if ratio is None else ratio._replace(count=len(rows) // 2)


def model_stress_ratio(
    sample: Sample, features: Sequence[Features], coefficients: np.ndarray, halves: Sequence[np.ndarray]
) -> Ratio | None:
    """Stresses foretold from the forces over those labelled; None where models of two halves of the set foretell others."""
    kept = [
        (atoms, labels.stress.ravel(), x)
        for (atoms, labels), x in zip(sample, features, strict=True)
        if labels.stress is not None and atoms.pbc.all()
    ]
    if len(kept) < 4:
        return None
    diagonal = np.eye(3).ravel()

    def whole(model: np.ndarray) -> np.ndarray:
        return np.array([(x.virial @ model) / abs(np.linalg.det(atoms.cell)) for atoms, _, x in kept])

    def shear(stress: np.ndarray) -> np.ndarray:
        return stress - np.outer(stress @ diagonal, diagonal) / 3

    labelled = np.array([stress for _, stress, _ in kept])
    # A pressure is hard to foretell from forces, the rest of the stress is easier.
    parts = (lambda x: x, shear)
    steady = [part for part in parts if _steady([part(whole(model)) for model in halves])]
    found = [robust_ratio(part(whole(coefficients)).ravel(), part(labelled).ravel(), 0.6) for part in steady]
    clear = [ratio for ratio in found if ratio is not None]
    return min(clear, key=lambda one: one.sigma)._replace(count=len(labelled) // 2) if clear else None


def bulk_ratio(sample: Sample) -> Ratio | None:
    """Curvature of the energy over the logarithm of the volume, in series of frames that differ in volume alone.

    It is the bulk modulus times the volume; per atom of the volume of r^3 it is about 8 eV in solids from lithium to
    tungsten. r is the distance to the nearest neighbour.
    """
    series: dict[tuple, list[int]] = {}
    for i, (atoms, labels) in enumerate(sample):
        if labels.energy is not None and atoms.pbc.all() and len(atoms) > 1:
            lengths = atoms.cell.lengths()
            shape = np.round(np.concatenate([lengths / lengths[0], atoms.cell.angles() / 90]), 2)
            places = np.round(atoms.get_scaled_positions() - atoms.get_scaled_positions()[0], 1) % 1.0
            key = (atoms.numbers.tobytes(), shape.tobytes(), places.tobytes())
            series.setdefault(key, []).append(i)
    values = []
    for members in series.values():
        volumes = np.array([sample[i][0].cell.volume for i in members])
        if len(np.unique(np.round(np.log(volumes), 3))) < 4 or np.ptp(np.log(volumes)) < 0.03:
            continue
        energies = np.array([sample[i][1].energy for i in members])
        x = np.log(volumes) - np.log(volumes).mean()
        fit = np.polyfit(x, energies, 2)
        missed = energies - np.polyval(fit, x)
        if np.std(missed) > 0.15 * np.std(energies):
            continue
        middle = sample[members[int(np.argsort(volumes)[len(volumes) // 2])]][0]
        pairs = find_pairs(middle.positions, np.asarray(middle.cell), middle.pbc, _cutoff(middle))
        values.append(2 * fit[0] / middle.cell.volume * float(pairs.distances.min()) ** 3 / 8.0)
    return Ratio(float(np.median(values)), 0.8, len(values)) if values else None
