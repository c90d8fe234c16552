"""Symmetries: what must not change, or turn along, when a structure is moved, turned, wrapped, reordered or repeated."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from leignn_jax.testing.answers import Model, Values, Worst, evaluate, in_text, need_periodic


def check_rotation(model: Model, atoms: Atoms, *, samples: int = 4, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Rotated and reflected structures have the same energy; forces, direct forces and stress turn along.

    Every second sample is a reflection. Returns the largest relative deviation.
    """
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    for sample, matrix in enumerate(random_rotations(samples, seed)):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ matrix.T)
        turned.positions[:] = atoms.positions @ matrix.T
        target = Values(
            expected.energy,
            expected.forces @ matrix.T,
            None if expected.stress is None else matrix @ expected.stress @ matrix.T,
            None if expected.direct_forces is None else expected.direct_forces @ matrix.T,
        )
        kind = "reflection" if sample % 2 else "rotation"
        worst.compare(f"After a {kind} (sample {sample})", target, evaluate(model, turned))
    return worst.settled()


def check_translation(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Moving all atoms by the same vector, up to 5 Å long in each direction, changes nothing.

    Returns the largest relative deviation.
    """
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    for shift in np.random.default_rng(seed).uniform(-5, 5, (samples, 3)):
        moved = atoms.copy()
        moved.positions[:] = atoms.positions + shift
        worst.compare(f"After moving all atoms by {in_text(shift)} Å", expected, evaluate(model, moved))
    return worst.settled()


def check_wrapping(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Moving single atoms by up to three lattice vectors changes nothing. Returns the largest relative deviation.

    Raises:
        StructureError: the structure is periodic in no direction.
    """
    need_periodic(atoms, "Wrapping")
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    for sample, shifts in enumerate(np.random.default_rng(seed).integers(-3, 4, (samples, len(atoms), 3))):
        moved = atoms.copy()
        moved.positions[:] = atoms.positions + (shifts * atoms.pbc) @ atoms.cell.array
        worst.compare(
            f"After moving atoms by whole lattice vectors (sample {sample})", expected, evaluate(model, moved)
        )
    return worst.settled()


def check_permutation(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """The order of the atoms changes the order of the forces alone. Returns the largest relative deviation."""
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    rng = np.random.default_rng(seed)
    for sample in range(samples):
        order = rng.permutation(len(atoms)) if sample else np.arange(len(atoms))[::-1]
        target = expected.of_atoms(order)
        what = "In the reverse order of atoms" if sample == 0 else f"In another order of atoms (sample {sample})"
        worst.compare(what, target, evaluate(model, atoms[order]))
    return worst.settled()


def check_extensivity(model: Model, atoms: Atoms, *, tolerance: float = 1e-6) -> float:
    """A supercell has the energy of its cells together, every copy of an atom the same force, and the stress stays.

    Supercells are (2, 1, 1) and (2, 2, 2), along the periodic directions alone. Returns the largest relative deviation.

    Raises:
        StructureError: the structure is periodic in no direction.
    """
    need_periodic(atoms, "Extensivity")
    pbc = np.asarray(atoms.pbc)
    repeats = [np.where(pbc, 2, 1), np.where(np.arange(3) == np.argmax(pbc), 2, 1)]
    # The largest first: as_model pads the smaller ones to its program.
    answers = [(repeat, evaluate(model, atoms.repeat(repeat.tolist()))) for repeat in repeats]
    expected, worst = evaluate(model, atoms), Worst(tolerance)
    for repeat, got in answers[::-1]:
        copies = int(repeat.prod())
        target = expected.of_atoms(np.tile(np.arange(len(atoms)), copies), energy=copies * expected.energy)
        worst.compare(f"In a {'x'.join(map(str, repeat))} supercell", target, got)
    return worst.settled()


def random_rotations(count: int, seed: int = 0) -> np.ndarray:
    """Orthogonal matrices ``[count, 3, 3]``, uniformly distributed; every second one has determinant -1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    wanted = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    return q * (wanted * np.linalg.det(q))[:, None, None]
