"""Labels from a potential instead of a DFT code: what a smaller potential learns from a larger one or a committee."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.arguments import check_number, check_seed, check_structures, check_whole
from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential, check_potential
from leignn_jax.sweeps.committee import is_committee, iter_committee

_MOST = 1_000_000


def label(
    teacher: Potential,
    frames: Sequence[ase.Atoms],
    *,
    copies: int = 0,
    displacement: float = 0.05,
    seed: int = 0,
    most_doubt: float | None = None,
    dtype: str = "float32",
) -> list[ase.Atoms]:
    """Frames with a potential's energy, forces and, in a periodic cell, stress, to train another one on (distillation).

    Differences between the forces of a frame and of its displaced copies are products of the teacher's Hessian with the
    displacements: with ``copies`` the student learns curvatures too, by the loss of forces that it has anyway.

    Args:
        teacher: a potential, or a committee, whose mean is the label.
        frames: structures; labels they have are not kept.
        copies: of each frame, beside it, with displaced atoms.
        displacement: Å, standard deviation of each component of these displacements.
        seed: of the displacements.
        most_doubt: eV/Å; leave out where a committee's doubt is larger
            (:attr:`leignn_jax.sweeps.committee.CommitteePrediction.doubt`).
        dtype: of the teacher's arithmetic.

    Returns:
        Each frame and its copies in turn. ``info["frame"]`` is the frame's number; that of a committee has
        ``info["doubt_eV_per_A"]`` too.

    Raises:
        ConfigError: ``most_doubt`` with one potential, or an argument is not what it must be.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`; the message names the frame, copies counted.
    """
    check_potential(teacher, "teacher")
    frames = check_structures(frames, "frames")
    check_whole("copies", copies, 0, _MOST)
    check_number("displacement (Å)", displacement, positive=True, most=10)
    check_seed(seed)
    several = is_committee(teacher)
    if most_doubt is not None:
        check_number("most_doubt", most_doubt, least=0)
        if not several:
            raise ConfigError("most_doubt: one potential has no doubt; give a committee (leignn_jax.committee).")
    bare = list(_with_copies(frames, copies, displacement, seed))
    said = iter_committee(teacher, bare, dtype=dtype) if several else teacher.iter_predict(bare, dtype=dtype)
    found = []
    for atoms, labels in zip(bare, said, strict=True):
        if several:
            atoms.info["doubt_eV_per_A"] = labels.doubt
            if most_doubt is not None and labels.doubt > most_doubt:
                continue
        stress = {"stress": labels.stress} if np.isfinite(labels.stress).all() else {}
        atoms.calc = SinglePointCalculator(atoms, energy=labels.energy, forces=labels.forces, **stress)
        found.append(atoms)
    return found


def _with_copies(frames: Sequence[ase.Atoms], copies: int, displacement: float, seed: int) -> Iterator[ase.Atoms]:
    """Each frame, without labels, and its displaced copies."""
    rng = np.random.default_rng(seed)
    for i, atoms in enumerate(frames):
        for copy in range(copies + 1):
            shift = displacement * rng.standard_normal(atoms.positions.shape) if copy else 0.0
            yield ase.Atoms(
                numbers=atoms.numbers,
                positions=atoms.positions + shift,
                cell=atoms.cell,
                pbc=atoms.pbc,
                info={"frame": i},
            )
