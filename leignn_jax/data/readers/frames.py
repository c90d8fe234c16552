"""frame: one labelled structure from numbers; what every structure that was read must be."""

from __future__ import annotations

import ase
import numpy as np
import numpy.typing as npt
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols, covalent_radii
from scipy.spatial import cKDTree

from leignn_jax.data.labels import DEFAULT_KEYS
from leignn_jax.errors import DataError

HEAVIEST = len(chemical_symbols) - 1
# Beyond these, float64 has no digits left for a bond, or no atom is so heavy: Å, Å, u.
_FARTHEST, _WIDEST, _MOST_MASS = 1e10, 1e6, 1e4
# Å: no two nuclei are nearer at rest; or at all; most neighbours are nearer than the third.
_NEAREST, _OVERLAP, _NEIGHBOUR = 0.65, 0.3, 3.5
# Of the sum of covalent radii: no bond is shorter than the first; those of real structures are within the other two.
_SQUEEZED, _SHORTEST_BOND, _LONGEST_BOND = 0.5, 0.7, 2.0


def frame(numbers, positions, *, cell=None, pbc=None, energy=None, forces=None, stress=None, info=None) -> ase.Atoms:
    """One labelled structure; arguments in Å, eV, eV/Å, eV/Å^3, None where there is no such label."""
    atoms = ase.Atoms(
        numbers=np.asarray(numbers, int),
        positions=np.asarray(positions, np.float64),
        cell=None if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        pbc=cell is not None if pbc is None else np.broadcast_to(pbc, 3),
        info=info,
    )
    labels = {"energy": energy, "forces": forces, "stress": stress}
    labels = {name: value for name, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def check_structure(atoms: ase.Atoms) -> None:
    """Raise DataError where elements, positions, cell, masses or momenta can't be those of a structure; names the atom."""
    _check_atoms("atomic number", atoms.numbers, _are_elements(atoms.numbers), "an element")
    _check_atoms("position", atoms.positions, (np.abs(atoms.positions) <= _FARTHEST).all(1), f"within {_FARTHEST:g} Å")
    if not (np.abs(np.asarray(atoms.cell)) <= _WIDEST).all():
        raise DataError(f"the cell is {np.asarray(atoms.cell).tolist()}, not finite or wider than {_WIDEST:g} Å.")
    flat = np.flatnonzero(atoms.pbc & ~np.asarray(atoms.cell).any(axis=1))
    if len(flat):
        raise DataError(
            f"it is periodic along vector {flat[0]} of the cell, which is zero. Give the cell, or say pbc=F."
        )
    shapes = {"masses": (), "momenta": (3,), "initial_magmoms": None, "initial_charges": None}
    for name, row in shapes.items():
        array = atoms.arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind not in "iuf":
            raise DataError(f"{name} are no numbers but {array.dtype}.")
        if row is not None and array.shape != (len(atoms), *row):
            raise DataError(f"{name} of shape {array.shape} for {len(atoms)} atoms.")
        _check_atoms(name, array, np.isfinite(array.reshape(len(atoms), -1)).all(1), "finite")
    if "masses" in atoms.arrays:
        masses = atoms.arrays["masses"]
        _check_atoms(
            "mass", masses, np.logical_and(masses > 0, masses <= _MOST_MASS), f"between 0 and {_MOST_MASS:g} u"
        )
    _check_swapped(atoms)


def _are_elements(numbers: np.ndarray) -> np.ndarray:
    return (numbers >= 1) & (numbers <= HEAVIEST)


def _check_atoms(what: str, values: np.ndarray, right: npt.ArrayLike, must: str) -> None:
    if not np.all(right):
        atom = int(np.argmin(right))
        raise DataError(f"the {what} of atom {atom} is {values[atom]}, not {must}.")


def _check_swapped(atoms: ase.Atoms) -> None:
    """Positions that overlap and sum to nothing, as forces do, beside forces that lie like atoms, are each other's."""
    results = {} if atoms.calc is None else atoms.calc.results
    forces = next((s[k] for k in DEFAULT_KEYS["forces"] for s in (results, atoms.arrays) if s.get(k) is not None), None)
    if forces is None or len(atoms) < 2 or np.shape(forces) != (len(atoms), 3) or not _are_finite(forces):
        return
    forces = np.asarray(forces, np.float64)
    near, bonds = _nearest(atoms.positions, atoms.numbers)
    found = near.min()
    squeezed = bonds.min() < _SQUEEZED
    if not squeezed and found > _NEAREST:
        return
    other, lying = _nearest(forces, atoms.numbers)
    if squeezed and lying.min() > _SHORTEST_BOND and np.median(lying) < _LONGEST_BOND:
        raise DataError(_swapped(found, other.min()))
    if found > _NEAREST or (found > _OVERLAP and not (_balanced(atoms.positions) and not _balanced(forces))):
        return
    if other.min() > _NEAREST and np.median(other) < _NEIGHBOUR:
        raise DataError(_swapped(found, other.min()))


def _swapped(found: float, other: float) -> str:
    return (
        f"positions and forces look swapped: as positions are read, two atoms are {found:.2f} Å apart, while the forces "
        f"lie like atoms, {other:.2f} and more apart. Are their columns named rightly?"
    )


def _are_finite(values: npt.ArrayLike) -> bool:
    array = np.asarray(values)
    return array.dtype.kind in "iuf" and bool((np.abs(array) < _FARTHEST).all())


def _balanced(vectors: np.ndarray) -> bool:
    """Whether vectors ``[atoms, 3]`` sum to nothing."""
    return bool(np.abs(np.sum(vectors, axis=0)).max() < 1e-2 * np.abs(vectors).max())


def _nearest(points: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point ``[points, 3]`` to its nearest other, and the same over the sum of both covalent radii."""
    distances, others = cKDTree(points).query(points, k=2)
    radii = covalent_radii[numbers]
    return distances[:, 1], distances[:, 1] / (radii + radii[others[:, 1]])
