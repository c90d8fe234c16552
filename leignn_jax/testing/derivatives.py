"""Derivatives: forces and stress against differences of the energy, and the sum of the forces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms

from leignn_jax.errors import LeignnError, StructureError
from leignn_jax.testing.answers import STRESS_FLOOR, Model, Worst, evaluate, force_scale, in_text


def check_forces(
    model: Model,
    atoms: Atoms,
    *,
    step: float = 1e-4,
    samples: int = 24,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> float:
    """Forces are minus the gradient of the energy, by central differences in steps of ``step`` Å.

    At most ``samples`` components are measured, chosen at random. Returns the largest relative deviation.
    """
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    scale = force_scale(expected)
    components = np.random.default_rng(seed).permutation(3 * len(atoms))[:samples]
    for atom, axis in zip(*np.unravel_index(components, (len(atoms), 3)), strict=True):

        def energy(move: float, atom=atom, axis=axis) -> float:
            moved = atoms.copy()
            moved.positions[atom, axis] += move
            return evaluate(model, moved).energy

        slope = _slope(energy, step)
        force = expected.forces[atom, axis]
        what = f"The force on atom {atom} along {'xyz'[axis]} is {force:.8g} eV/Å, the energy's slope is {slope:.8g}"
        worst.add(float(abs(force + slope)) / scale, what)
    return worst.settled()


def check_stress(model: Model, atoms: Atoms, *, step: float = 1e-4, tolerance: float = 1e-5) -> float:
    """The stress times the volume is the energy's derivative by strain, by central differences; it is symmetric.

    Returns the largest relative deviation.

    Raises:
        StructureError: the structure is not periodic in all three directions.
        LeignnError: the model gives no stress.
    """
    if not atoms.pbc.all():
        raise StructureError("A stress needs a structure that is periodic in all three directions.")
    stress = evaluate(model, atoms).stress
    if stress is None:
        raise LeignnError("The model gives no stress for this structure.")
    scale, worst = max(float(np.abs(stress).max()), STRESS_FLOOR), Worst(tolerance)
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

        def energy(change: float, a=a, b=b) -> float:
            strain = np.eye(3)
            strain[a, b] += 0.5 * change
            strain[b, a] += 0.5 * change
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain)
            strained.positions[:] = atoms.positions @ strain
            return evaluate(model, strained).energy

        slope = _slope(energy, step) / atoms.get_volume()
        for value in (stress[a, b], stress[b, a]):
            what = f"The stress {'xyz'[a]}{'xyz'[b]} is {value:.8g} eV/Å^3, the energy's slope by strain {slope:.8g}"
            worst.add(float(abs(value - slope)) / scale, what)
    return worst.settled()


def check_force_sum(model: Model, atoms: Atoms, *, tolerance: float = 1e-6) -> float:
    """The forces add to zero, so that no structure sets itself in motion. Returns their sum over the largest force."""
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    total = expected.forces.sum(axis=0)
    worst.add(
        float(np.abs(total).max()) / force_scale(expected), f"The forces add to {in_text(total)} eV/Å, not to zero"
    )
    return worst.settled()


def _slope(energy: Callable[[float], float], step: float) -> float:
    """The derivative at zero by central differences, exact for polynomials of the fourth order."""
    near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)
