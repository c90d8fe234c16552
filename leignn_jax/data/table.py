"""FrameTable: one line of numbers per frame, all that checks, reference energies and the search for duplicates need.

It is made in one pass, so that frames need not be in memory together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.data.labels import Labels
from leignn_jax.errors import DataError


class FrameTable(NamedTuple):
    """Facts about each frame of a set.

    kind: ``[frames]`` int32, the frame's composition, a row of ``counts``.
    counts: ``[kinds, elements]`` int32, atoms of each element.
    elements: symbols of the columns of ``counts``, by atomic number.
    energy: ``[frames]`` float64, eV, NaN where there is none.
    forces_square: ``[frames]`` float64, eV^2/Å^2, sum of the squares of all force components, NaN where there are none.
    stressed: ``[frames]`` bool, whether it has a stress.
    fingerprint: ``[frames, 32]`` uint8, see :func:`fingerprint`.
    """

    kind: np.ndarray
    counts: np.ndarray
    elements: tuple[str, ...]
    energy: np.ndarray
    forces_square: np.ndarray
    stressed: np.ndarray
    fingerprint: np.ndarray

    @property
    def atoms(self) -> np.ndarray:
        """``[frames]`` int, atoms of each frame."""
        return self.counts.sum(1)[self.kind]

    def take(self, indices: Sequence[int] | np.ndarray) -> FrameTable:
        """Some of the frames."""
        i = np.asarray(indices, np.int64)
        return self._replace(
            kind=np.asarray(self.kind[i]),
            energy=np.asarray(self.energy[i]),
            forces_square=np.asarray(self.forces_square[i]),
            stressed=np.asarray(self.stressed[i]),
            fingerprint=np.asarray(self.fingerprint[i]),
        )

    def present(self) -> tuple[str, ...]:
        """Symbols of the elements in these frames, by atomic number."""
        return tuple(self.elements[k] for k in np.flatnonzero(self.counts[np.unique(self.kind)].sum(0)))

    def forces_rms(self) -> float | None:
        """Root mean square of all force components in eV/Å; None where no frame has forces."""
        there = np.isfinite(self.forces_square)
        if not there.any():
            return None
        return float(np.sqrt(self.forces_square[there].sum() / (3 * self.atoms[there].sum())))


class Compositions:
    """Different compositions numbered as they come."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, int] = {}

    def kind_of(self, numbers: np.ndarray) -> int:
        """The number of a frame's composition; ``numbers`` [atoms] are atomic numbers, DataError where one is not."""
        known = (numbers >= 1) & (numbers < len(chemical_symbols))
        if not known.all():
            atom = int(np.argmin(known))
            raise DataError(f"the atomic number of atom {atom} is {numbers[atom]}, not an element.")
        return self._kinds.setdefault(
            np.trim_zeros(np.bincount(numbers), "b").astype("<i4").tobytes(), len(self._kinds)
        )

    def table(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Elements and ``[kinds, elements]`` counts of all compositions so far."""
        rows = [np.frombuffer(key, "<i4") for key in self._kinds]
        present = sorted({int(z) for row in rows for z in np.flatnonzero(row)})
        place = {z: k for k, z in enumerate(present)}
        counts = np.zeros((len(rows), len(present)), np.int32)
        for kind, row in enumerate(rows):
            for z in np.flatnonzero(row):
                counts[kind, place[int(z)]] = row[z]
        return tuple(chemical_symbols[z] for z in present), counts


def fingerprint(atoms: ase.Atoms) -> bytes:
    """The same 32 bytes for frames with the same atoms at the same places, to 1e-4 Å."""
    digest = hashlib.sha256(atoms.numbers.astype(np.int32).tobytes())
    for values in (atoms.positions, np.asarray(atoms.cell)):
        digest.update((np.round(values, 4) + 0.0).tobytes())
    digest.update(np.asarray(atoms.pbc).tobytes())
    return digest.digest()


def forces_square(labels: Labels) -> float:
    """Sum of the squares of a frame's force components in eV^2/Å^2, NaN where it has none."""
    return np.nan if labels.forces is None else float((labels.forces**2).sum())


def tabulate(frames: Iterable[tuple[ase.Atoms, Labels]]) -> FrameTable:
    """The table of labelled frames."""
    compositions = Compositions()
    kinds, energies, squares, stressed, prints = [], [], [], [], []
    for atoms, labels in frames:
        kinds.append(compositions.kind_of(atoms.numbers))
        energies.append(np.nan if labels.energy is None else labels.energy)
        squares.append(forces_square(labels))
        stressed.append(labels.stress is not None)
        prints.append(fingerprint(atoms))
    elements, counts = compositions.table()
    return FrameTable(
        kind=np.array(kinds, np.int32),
        counts=counts,
        elements=elements,
        energy=np.array(energies, np.float64),
        forces_square=np.array(squares, np.float64),
        stressed=np.array(stressed, bool),
        fingerprint=np.frombuffer(b"".join(prints), np.uint8).reshape(-1, 32),
    )
