"""Normal modes of molecules, and of crystals at the centre of their zone, in the harmonic approximation.

Force constants are exact second derivatives of the energy, no displacements and no step to choose, unless
``displacement`` is given; see :mod:`leignn_jax.properties.second_derivatives` for when it should be.
"""

from __future__ import annotations

from typing import NamedTuple

import ase
import ase.units
import jax
import numpy as np

from leignn_jax.arguments import check_atoms, check_masses
from leignn_jax.constraints import free_components
from leignn_jax.errors import ConfigError
from leignn_jax.properties.second_derivatives import (
    INVERSE_CM,
    TERAHERTZ,
    check_displacement,
    check_finite,
    check_smooth,
    checked_derivatives,
    first_of_elements,
    graph_of,
)
from leignn_jax.simulation.dynamics import EnergyModel


class NormalModes(NamedTuple):
    """Normal modes of a structure.

    frequencies: ``[modes]`` cm^-1 in ascending order, imaginary ones as negative numbers; rigid motions are not among
        them.
    vectors: ``[modes, atoms, 3]`` displacements, each of length one.
    rigid: ``[0, 3, 5 or 6]`` cm^-1, frequencies along translations and rotations, which would be zero at a minimum.
    """

    frequencies: np.ndarray
    vectors: np.ndarray
    rigid: np.ndarray

    @property
    def energies(self) -> np.ndarray:
        """``[modes]`` eV, Planck's constant times frequency."""
        return self.frequencies / INVERSE_CM * 1e12 * ase.units._hplanck / ase.units._e

    @property
    def zero_point_energy(self) -> float:
        """eV, half a quantum of every real mode."""
        return float(self.energies[self.frequencies > 0].sum() / 2)


def normal_modes(
    potential: EnergyModel,
    atoms: ase.Atoms,
    *,
    rigid: bool | None = None,
    displacement: float | None = None,
    dtype: str = "float64",
) -> NormalModes:
    """Normal modes of a molecule, or of a crystal at the centre of its zone.

    Args:
        potential: a :class:`leignn_jax.Potential` or another EnergyModel.
        atoms: relaxed (see :func:`leignn_jax.relax`), with its masses. Constraints hold atoms as in
            :func:`leignn_jax.constraints.free_components`.
        rigid: whether the energy is the same after translation (and rotation, without periodicity), so that these
            motions are taken out of the modes; never done where atoms are held. None asks the model
            (``conserves_momentum``).
        displacement: Å, for central differences of forces; None is exact derivatives.
        dtype: "float64" or "float32".

    Raises:
        ConfigError: a wrong dtype, or a constraint that holds more than coordinates.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`; second derivatives that are not finite.
    """
    free = free_components(check_atoms(atoms))
    check_displacement(displacement)
    masses = check_masses(atoms)
    if not free.any():
        raise ConfigError("All atoms are held: there is nothing that vibrates.")
    moving, columns = np.flatnonzero(free.any(1)), np.flatnonzero(free)
    graph = graph_of(potential, atoms, dtype)
    with jax.enable_x64(dtype == "float64"):
        checked = first_of_elements(atoms.numbers[moving])
        found = jax.device_get(checked_derivatives(potential, graph, moving, checked, displacement))
    rows = np.asarray(found[0], np.float64).reshape(3 * len(moving), free.size)[free[moving].ravel()]
    hessian = rows[:, columns]
    check_finite(hessian)
    check_smooth(found[0], found[1], moving, checked, displacement)
    size = len(columns)
    root = np.sqrt(np.repeat(masses, 3))[columns]
    weighted = hessian / root / root[:, None]
    weighted = 0.5 * (weighted + weighted.T)
    basis = np.zeros((size, 0))
    if rigid is None:
        rigid = getattr(potential, "conserves_momentum", True)
    if rigid and free.all():
        basis = _rigid_motions(atoms, root)
    # The orthogonal complement of the rigid motions.
    others = np.linalg.svd(basis)[0][:, basis.shape[1] :] if basis.shape[1] else np.eye(size)
    squares, modes = np.linalg.eigh(others.T @ weighted @ others)
    vectors = np.zeros((len(squares), free.size))
    moves = ((others @ modes) / root[:, None]).T
    vectors[:, columns] = moves / np.linalg.norm(moves, axis=1, keepdims=True)
    along = np.linalg.eigvalsh(basis.T @ weighted @ basis) if basis.shape[1] else np.zeros(0)
    unit = TERAHERTZ * INVERSE_CM
    return NormalModes(_signed_root(squares) * unit, vectors.reshape(-1, len(atoms), 3), _signed_root(along) * unit)


def _rigid_motions(atoms: ase.Atoms, root: np.ndarray) -> np.ndarray:
    """Orthonormal mass-weighted translations and, where nothing is periodic, rotations: ``[3 atoms, 3 to 6]``."""
    away = atoms.positions - atoms.get_center_of_mass()
    motions = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        motions += [np.cross(axis, away) for axis in np.eye(3)]
    weighted = np.stack([m.ravel() * root for m in motions], 1)
    left, size, _ = np.linalg.svd(weighted, full_matrices=False)
    # A straight molecule has two rotations, an atom none; a relaxation leaves it bent by up to a hundredth of an Å.
    return left[:, size > 1e-2 * size[0] / np.sqrt(len(atoms))]


def _signed_root(squares: np.ndarray) -> np.ndarray:
    return np.sign(squares) * np.sqrt(np.abs(squares))
