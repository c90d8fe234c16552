"""What a set of frames is like, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import covalent_radii

from leignn_jax.data.labels import Labels, forces_rms
from leignn_jax.data.references import elements_of, fit_reference_energies, reference_energy
from leignn_jax.errors import DataError
from leignn_jax.neighbors import find_pairs


class Outlier(NamedTuple):
    """A frame unlike the others: its number, and why."""

    frame: int
    reason: str


class Statistics(NamedTuple):
    """Facts about a set of frames.

    frames, atoms: how many, in all.
    atoms_per_frame, neighbors_per_atom: smallest, mean, largest; neighbours within the cutoff.
    elements: atoms of each element.
    compositions: number of different chemical formulas.
    reference_energies: eV by symbol, least squares.
    energy_spread: eV/atom, standard deviation of the energy per atom less its references; None without energies.
    forces_rms, forces_max: eV/Å, of components; None without forces.
    stress_rms: eV/Å^3; None without stresses.
    energies, forces, stresses: frames that have each label.
    periodic: frames periodic in some direction.
    shortest_distance: Å, between any two atoms.
    outliers: frames to look at.
    duplicates: pairs of frames of the set with the same atoms at the same places.
    """

    frames: int
    atoms: int
    atoms_per_frame: tuple[int, float, int]
    neighbors_per_atom: tuple[int, float, int]
    elements: dict[str, int]
    compositions: int
    reference_energies: dict[str, float]
    energy_spread: float | None
    forces_rms: float | None
    forces_max: float | None
    stress_rms: float | None
    energies: int
    forces: int
    stresses: int
    periodic: int
    shortest_distance: float
    outliers: list[Outlier]
    duplicates: list[tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self._asdict(), "outliers": [o._asdict() for o in self.outliers]}


def describe(frames: Sequence[ase.Atoms], labels: Sequence[Labels], cutoff: float = 5.0) -> Statistics:
    """Statistics of labelled frames; ``cutoff`` in Å for the neighbours."""
    counts, shortest = [], np.inf
    for atoms in frames:
        pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), cutoff)
        counts.append(np.bincount(np.concatenate([pairs.receivers, pairs.senders]), minlength=len(atoms)))
        shortest = min(shortest, float(np.min(pairs.distances, initial=np.inf)))
    neighbors = np.concatenate(counts)
    sizes = np.array([len(atoms) for atoms in frames])
    with_energy = [i for i, one in enumerate(labels) if one.energy is not None]
    references, residuals = {}, np.zeros(0)
    if with_energy:
        chosen, energies = [frames[i] for i in with_energy], [labels[i].energy or 0.0 for i in with_energy]
        references = fit_reference_energies(chosen, energies)
        residuals = np.array(
            [(e - reference_energy(a, references)) / len(a) for a, e in zip(chosen, energies, strict=True)]
        )
    forces = [one.forces for one in labels if one.forces is not None]
    flat = np.concatenate([f.ravel() for f in forces]) if forces else np.zeros(0)
    stresses = [one.stress for one in labels if one.stress is not None]
    elements = Counter(s for atoms in frames for s in atoms.get_chemical_symbols())
    return Statistics(
        frames=len(frames),
        atoms=int(sizes.sum()),
        atoms_per_frame=_range(sizes),
        neighbors_per_atom=_range(neighbors),
        elements={e: elements[e] for e in elements_of(frames)},
        compositions=len({atoms.get_chemical_formula() for atoms in frames}),
        reference_energies=references,
        energy_spread=float(residuals.std()) if len(residuals) else None,
        forces_rms=forces_rms(labels),
        forces_max=float(np.abs(flat).max()) if forces else None,
        stress_rms=float(np.sqrt(np.mean(np.square(stresses)))) if stresses else None,
        energies=len(with_energy),
        forces=len(forces),
        stresses=len(stresses),
        periodic=sum(bool(atoms.pbc.any()) for atoms in frames),
        shortest_distance=shortest,
        outliers=find_outliers(frames, labels),
        duplicates=find_duplicates(frames),
    )


def _range(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(values.mean()), int(values.max())


def fingerprint(atoms: ase.Atoms) -> str:
    """The same for frames with the same atoms at the same places, to 1e-4 Å."""
    digest = hashlib.sha256(atoms.numbers.astype(np.int32).tobytes())
    for values in (atoms.positions, np.asarray(atoms.cell)):
        digest.update((np.round(values, 4) + 0.0).tobytes())
    digest.update(np.asarray(atoms.pbc).tobytes())
    return digest.hexdigest()


def find_duplicates(frames: Sequence[ase.Atoms], others: Sequence[ase.Atoms] | None = None) -> list[tuple[int, int]]:
    """Frames that stand twice in ``frames``, or in ``frames`` and in ``others``: their numbers."""
    seen: dict[str, int] = {}
    if others is None:
        pairs = []
        for i, atoms in enumerate(frames):
            first = seen.setdefault(fingerprint(atoms), i)
            if first != i:
                pairs.append((first, i))
        return pairs
    for i, atoms in enumerate(frames):
        seen.setdefault(fingerprint(atoms), i)
    found = [(seen.get(fingerprint(atoms)), i) for i, atoms in enumerate(others)]
    return [(i, j) for i, j in found if i is not None]


# Beyond these a label is of another unit or of a calculation gone wrong: no chemistry that a potential is trained on
# has forces of this size on average.
_FORCES_RMS = 40.0  # eV/Å
_ENERGY_SPREAD = 20.0  # eV/atom
_FORCES_RATIO = 30.0  # of a frame's force RMS to the set's median, and of one set's to another's
_BOND = (0.35, 4.0)  # shortest distance over the sum of the covalent radii, median of the frames


def find_outliers(frames: Sequence[ase.Atoms], labels: Sequence[Labels]) -> list[Outlier]:
    """Frames whose forces or energies are far from those of the rest."""
    found = []
    rms = np.array([np.nan if one.forces is None else np.sqrt((one.forces**2).mean()) for one in labels])
    there = np.isfinite(rms)
    if there.any():
        usual = float(np.median(rms[there]))
        for i in np.flatnonzero(there & (rms > _FORCES_RATIO * max(usual, 0.05))):
            found.append(Outlier(int(i), f"force RMS {rms[i]:.3g} eV/Å, the set's median is {usual:.3g}"))
    with_energy = [i for i, one in enumerate(labels) if one.energy is not None]
    if len(with_energy) > 3:
        chosen, energies = [frames[i] for i in with_energy], [labels[i].energy or 0.0 for i in with_energy]
        per_atom = np.array([e / len(a) for a, e in zip(chosen, energies, strict=True)])
        kinds = [a.get_chemical_formula(empirical=True) for a in chosen]
        for kind in set(kinds):
            mine = np.flatnonzero([k == kind for k in kinds])
            if len(mine) < 4:
                continue
            middle = float(np.median(per_atom[mine]))
            spread = float(np.median(np.abs(per_atom[mine] - middle)))
            far = np.abs(per_atom[mine] - middle) > max(1000 * spread, _ENERGY_SPREAD)
            for i in mine[far]:
                found.append(
                    Outlier(with_energy[i], f"energy {per_atom[i]:.6g} eV/atom, the median of {kind} is {middle:.6g}")
                )
    return sorted(found)


def check_frames(frames: Sequence[ase.Atoms], labels: Sequence[Labels], names: Sequence[str]) -> None:
    """Refuse labels that can't be what they claim: another unit, a calculation gone wrong, nothing to train on.

    Args:
        frames: structures, Å.
        labels: of each frame.
        names: what to call each frame, its file and number.

    Raises:
        DataError: names the frame and says what to do.
    """
    advice = "Check the units (data.units), take the frame out, or set data.allow_unusual=true."
    if all(one.energy is None and one.forces is None for one in labels):
        raise DataError(f"{names[0]}: no energy and no forces in any frame. Are they under other names (data.keys)?")
    some_forces = [i for i, one in enumerate(labels) if one.forces is not None]
    missing = [i for i, one in enumerate(labels) if one.forces is None and len(frames[i]) > 1]
    if some_forces and missing:
        raise DataError(
            f"{names[missing[0]]}: has no forces, but {len(some_forces)} other frames have. Take it out of the file, or "
            "name the forces by data.keys."
        )
    outliers = find_outliers(frames, labels)
    if outliers:
        raise DataError(f"{names[outliers[0].frame]}: {outliers[0].reason}. {advice}")
    if some_forces:
        rms = forces_rms(labels) or 0.0
        if rms > _FORCES_RMS:
            raise DataError(f"{names[some_forces[0]]}: the forces' RMS over the set is {rms:.4g} eV/Å. {advice}")
    with_energy = [i for i, one in enumerate(labels) if one.energy is not None]
    if len(with_energy) > 1:
        chosen, energies = [frames[i] for i in with_energy], [labels[i].energy or 0.0 for i in with_energy]
        references = fit_reference_energies(chosen, energies)
        residuals = [(e - reference_energy(a, references)) / len(a) for a, e in zip(chosen, energies, strict=True)]
        if np.std(residuals) > _ENERGY_SPREAD:
            raise DataError(
                f"{names[with_energy[0]]}: energies per atom scatter by {np.std(residuals):.4g} eV over the set. {advice}"
            )
    ratios = [r for atoms in frames[:: max(1, len(frames) // 50)] if (r := _bond_ratio(atoms)) is not None]
    if ratios and not _BOND[0] < np.median(ratios) < _BOND[1]:
        raise DataError(
            f"{names[0]}: atoms are {np.median(ratios):.3g} covalent bond lengths apart: positions don't seem to be in Å. "
            f"{advice}"
        )


def compare_sets(train: Sequence[Labels], others: Sequence[Labels], train_name: str, other_name: str) -> None:
    """Refuse a validation or test set whose forces are of another unit than those of train (DataError)."""

    a, b = forces_rms(train), forces_rms(others)
    if a and b and not 1 / _FORCES_RATIO < b / a < _FORCES_RATIO:
        raise DataError(
            f"{other_name}: the forces' RMS is {b:.4g} eV/Å, but {a:.4g} in {train_name}. Check the units of both, or set "
            "data.allow_unusual=true."
        )


def _bond_ratio(atoms: ase.Atoms) -> float | None:
    """Shortest distance in units of the covalent bond length, None for a lone atom."""
    if len(atoms) < 2:
        return None
    pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), 8.0)
    if not len(pairs.receivers):
        return float("inf")
    bonds = covalent_radii[atoms.numbers[pairs.receivers]] + covalent_radii[atoms.numbers[pairs.senders]]
    return float(np.min(pairs.distances / bonds))
