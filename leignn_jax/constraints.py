"""Which coordinates ASE's constraints leave free; those that hold more than coordinates are refused by name."""

from __future__ import annotations

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian, FixCom, FixedLine, FixedPlane, FixScaled

from leignn_jax.errors import ConfigError

# How far a direction may be off an axis.
_OFF = 1e-6


def free_components(atoms: ase.Atoms, *, center_held: bool = False) -> np.ndarray:
    """``[atoms, 3]`` bool: whether each Cartesian coordinate may change.

    FixAtoms, and FixCartesian, FixScaled, FixedPlane and FixedLine where what they hold is along x, y or z. FixCom holds
    nothing more where ``center_held``, because the total momentum of free atoms is zero anyway.

    Raises:
        ConfigError: any other constraint, by name, with the remedy.
    """
    free = np.ones((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian | FixScaled | FixedPlane | FixedLine):
            held = _held_axes(constraint, atoms)
            if held is None:
                raise _refused(constraint, "holds a direction that is not along x, y or z")
            free[constraint.index] &= ~held
        elif type(constraint) is not FixCom:
            raise _refused(constraint, "is not supported")
    for constraint in atoms.constraints:
        if type(constraint) is FixCom and not (center_held and free.all() and len(atoms) > 1):
            raise _refused(
                constraint,
                "is supported in simulate alone, with free atoms and an ensemble that keeps the momentum zero",
            )
    return free


def _held_axes(constraint, atoms: ase.Atoms) -> np.ndarray | None:
    """``[3]`` bool, the axes along which the constraint's atoms are held; None where it holds other directions."""
    if isinstance(constraint, FixCartesian):
        return constraint.mask
    if isinstance(constraint, FixedLine):
        axis = _axes(constraint.dir)
        return None if axis is None else ~axis
    if isinstance(constraint, FixedPlane):
        return _axes(constraint.dir)
    if constraint.mask.all():
        return constraint.mask
    # A scaled coordinate stays as it is where nothing moves along its reciprocal vector.
    held = np.zeros(3, bool)
    for normal in np.asarray(atoms.cell.reciprocal())[constraint.mask]:
        axis = _axes(normal)
        if axis is None:
            return None
        held |= axis
    return held


def _axes(direction: np.ndarray) -> np.ndarray | None:
    """``[3]`` bool, the axis along which a direction is; None where it is along none."""
    large = np.abs(direction) > _OFF * np.linalg.norm(direction)
    return large if large.sum() == 1 else None


def _refused(constraint, why: str) -> ConfigError:
    return ConfigError(
        f"The constraint {type(constraint).__name__} {why}. Use FixAtoms or FixCartesian, take it off "
        "(atoms.set_constraint()), or run ASE's own optimizers and dynamics with potential.calculator(), which obey it."
    )
