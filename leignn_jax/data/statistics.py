"""What a set of frames is like, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ase
import numpy as np

from leignn_jax.data.findings import Finding
from leignn_jax.data.labels import Labels
from leignn_jax.data.references import fit_reference_energies, residual_energies
from leignn_jax.data.table import FrameTable, tabulate
from leignn_jax.errors import DataError
from leignn_jax.neighbors import find_pairs


class Outlier(NamedTuple):
    """A frame unlike the others: its number, why, and by which label."""

    frame: int
    reason: str
    label: str


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
    table = tabulate(zip(frames, labels, strict=True))
    references = fit_reference_energies(table)
    residuals = residual_energies(table, references)
    residuals = residuals[np.isfinite(residuals)]
    forces = [one.forces for one in labels if one.forces is not None]
    flat = np.concatenate([f.ravel() for f in forces]) if forces else np.zeros(0)
    stresses = [one.stress for one in labels if one.stress is not None]
    of_each = table.counts[table.kind].sum(0)
    return Statistics(
        frames=len(frames),
        atoms=int(sizes.sum()),
        atoms_per_frame=_range(sizes),
        neighbors_per_atom=_range(neighbors),
        elements={e: int(n) for e, n in zip(table.elements, of_each, strict=True)},
        compositions=len(table.counts),
        reference_energies=references,
        energy_spread=float(residuals.std()) if len(residuals) else None,
        forces_rms=table.forces_rms(),
        forces_max=float(np.abs(flat).max()) if forces else None,
        stress_rms=float(np.sqrt(np.mean(np.square(stresses)))) if stresses else None,
        energies=len(residuals),
        forces=len(forces),
        stresses=len(stresses),
        periodic=sum(bool(atoms.pbc.any()) for atoms in frames),
        shortest_distance=shortest,
        outliers=find_outliers(table),
        duplicates=find_duplicates(table),
    )


def _range(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(values.mean()), int(values.max())


def find_duplicates(table: FrameTable, other: FrameTable | None = None) -> list[tuple[int, int]]:
    """Frames that stand twice in ``table``, or in ``table`` and in ``other``: their numbers."""
    prints = _sortable(table.fingerprint)
    order = np.argsort(prints, kind="stable")
    ordered = prints[order]
    wanted = prints if other is None else _sortable(other.fingerprint)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    first = order[place]
    found = ordered[place] == wanted
    if other is None:
        found &= first != np.arange(len(first))
    return [(int(first[j]), int(j)) for j in np.flatnonzero(found)]


def _sortable(prints: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(prints).view("S32").ravel()


# Beyond these a label is of another unit or of a calculation gone wrong: no chemistry that a potential is trained on
# has forces of this size on average.
_MANY = 50  # frames, among which one may be called strange for certain
_FORCES_RMS = 40.0  # eV/Å
_ENERGY_SPREAD = 20.0  # eV/atom
_FORCES_RATIO = 30.0  # of a frame's force RMS to nearly all others', and of one set's to another's


def find_outliers(table: FrameTable) -> list[Outlier]:
    """Frames whose forces or energies are far from those of the rest."""
    found = []
    rms = np.sqrt(table.forces_square / (3 * table.atoms))
    there = np.isfinite(rms)
    if there.any():
        # Not the median: crystals at rest and melts stand in one set, and one in twenty frames may be of another kind.
        usual = float(np.quantile(rms[there], 0.95 if there.sum() >= 40 else 0.6, method="lower"))
        for i in np.flatnonzero(there & (rms > _FORCES_RATIO * max(usual, 0.05))):
            found.append(Outlier(int(i), f"force RMS {rms[i]:.3g} eV/Å, hardly another has {usual:.3g}", "forces"))
    per_atom = table.energy / table.atoms
    with_energy = np.flatnonzero(np.isfinite(per_atom))
    # Compositions in lowest terms: energies per atom of a cell and of its supercell are one kind.
    reduced = table.counts // np.gcd.reduce(table.counts, axis=1, keepdims=True)
    formula, of_kind = np.unique(reduced, axis=0, return_inverse=True)
    formula_of = of_kind.reshape(-1)[table.kind]
    # Sorted by formula, so that each is looked at once however many there are.
    with_energy = with_energy[np.argsort(formula_of[with_energy], kind="stable")]
    starts = np.flatnonzero(np.diff(formula_of[with_energy], prepend=-1))
    for mine in np.split(with_energy, starts[1:]):
        if len(mine) < 4:
            continue
        middle = float(np.median(per_atom[mine]))
        spread = float(np.median(np.abs(per_atom[mine] - middle)))
        far = np.abs(per_atom[mine] - middle) > max(1000 * spread, _ENERGY_SPREAD)
        for i in mine[far]:
            kind = _formula(table.elements, formula[formula_of[i]])
            reason = f"energy {per_atom[i]:.6g} eV/atom, the median of {kind} is {middle:.6g}"
            found.append(Outlier(int(i), reason, "energy"))
    return sorted(found)


def _formula(elements: Sequence[str], counts: np.ndarray) -> str:
    symbols = [e for e, count in zip(elements, counts, strict=True) for _ in range(count)]
    return ase.Atoms(symbols).get_chemical_formula()


def check_labels(table: FrameTable, names: Sequence[str]) -> None:
    """Refuse frames without labels, or with forces in some of them only.

    Args:
        table: of the frames.
        names: what to call each frame, its file and number.

    Raises:
        DataError: names the frame and says what to do.
    """
    with_forces = np.isfinite(table.forces_square)
    if not np.isfinite(table.energy).any() and not with_forces.any():
        raise DataError(f"{names[0]}: no energy and no forces in any frame. Are they under other names (data.keys)?")
    missing = np.flatnonzero(~with_forces & (table.atoms > 1))
    if with_forces.any() and len(missing):
        raise DataError(
            f"{names[missing[0]]}: has no forces, but {with_forces.sum()} other frames have. Take it out of the file, or "
            "name the forces by data.keys."
        )


def find_extremes(table: FrameTable) -> list[Finding]:
    """Labels larger than any that a potential is trained on, of single frames or of the set."""
    found = []
    outliers = find_outliers(table)
    for label in dict.fromkeys(one.label for one in outliers):
        mine = [one for one in outliers if one.label == label]
        frames = tuple(one.frame for one in mine)
        # Of few frames, one may be the only one that is not at rest.
        strong = np.sqrt(table.forces_square[list(frames)] / (3 * table.atoms[list(frames)]))
        many = len(table.kind) >= _MANY or (label == "forces" and bool((strong > _FORCES_RMS).any()))
        found.append(Finding(label, f"{label} unlike the other frames'", mine[0].reason, None, frames, many))
    rms = table.forces_rms()
    if rms is not None and rms > _FORCES_RMS and not found:
        found.append(Finding("forces", "forces are too large", f"their RMS is {rms:.4g} eV/Å", None, (), True))
    with_energy = np.isfinite(table.energy)
    if with_energy.sum() > 1:
        spread = residual_energies(table, fit_reference_energies(table))[with_energy].std()
        if spread > _ENERGY_SPREAD:
            evidence = f"per atom and less references they scatter by {spread:.4g} eV"
            found.append(Finding("energy", "energies scatter too much", evidence, None, (), True))
    return found


def compare_forces(train: FrameTable, other: FrameTable) -> list[Finding]:
    """Forces of another set that are of another size altogether than those of train."""
    a, b = train.forces_rms(), other.forces_rms()
    if not a or not b or 1 / _FORCES_RATIO < b / a < _FORCES_RATIO:
        return []
    evidence = f"their RMS is {b:.4g} eV/Å, but {a:.4g} in train"
    return [Finding("forces", f"forces are {b / a:.3g} times those of train", evidence, b / a, (), True)]
