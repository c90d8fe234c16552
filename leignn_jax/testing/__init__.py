"""Physical properties that an energy model must have, as checks to run on your own model in pytest or a notebook.

A model is any callable ``model(atoms)`` that takes an ``ase.Atoms`` and returns an object with ``energy`` (eV),
``forces`` [atoms, 3] (eV/Å), ``stress`` [3, 3] (eV/Å^3, None or NaN where there is none) and, if it has them,
``direct_forces`` [atoms, 3]; :func:`as_model` makes one of a :class:`leignn_jax.Potential`. Every check raises
:class:`PropertyViolation` where the property does not hold and else returns the largest deviation that it measured.

Deviations are relative: those of forces to the largest force component (or to 0.01 eV/Å where all are smaller), those
of the energy per atom to the same times 1 Å, those of the stress to its largest component (or to 1e-4 eV/Å^3). The
tolerances are for models that compute in float64; in float32 give 1e-3 or so, and skip the finite differences of
:func:`check_forces`, :func:`check_stress` and :func:`check_cutoff_smoothness`.

>>> model = as_model(potential)
>>> check_all(model, atoms)
{'extensivity': 9.9e-15, ...}
"""

from __future__ import annotations

from collections.abc import Callable

from ase import Atoms

from leignn_jax.testing.answers import Model, PropertyViolation, evaluate
from leignn_jax.testing.cutoff import CutoffJumps, check_cutoff_smoothness, cutoff_jumps, pair_to_pull
from leignn_jax.testing.derivatives import check_force_sum, check_forces, check_stress
from leignn_jax.testing.models import PotentialModel, as_model, check_padding
from leignn_jax.testing.symmetries import (
    check_extensivity,
    check_permutation,
    check_rotation,
    check_translation,
    check_wrapping,
    random_rotations,
)

__all__ = [
    "CutoffJumps",
    "Model",
    "PotentialModel",
    "PropertyViolation",
    "as_model",
    "check_all",
    "check_cutoff_smoothness",
    "check_extensivity",
    "check_force_sum",
    "check_forces",
    "check_padding",
    "check_permutation",
    "check_rotation",
    "check_stress",
    "check_translation",
    "check_wrapping",
    "cutoff_jumps",
    "random_rotations",
]


def check_all(model: Model, atoms: Atoms, *, cutoff: float | None = None, seed: int = 0) -> dict[str, float]:
    """Run every check that applies, with its usual tolerance.

    Periodic structures are also wrapped, repeated and (three directions, a model with stress) strained; padding is
    checked where the model is made by :func:`as_model`, the cutoff where it is known and two atoms are near it.

    Args:
        model: see the module.
        atoms: one structure; atoms moved off their ideal places show more.
        cutoff: Å; the model's ``cutoff`` if not given.
        seed: of all random choices.

    Returns:
        The deviation that each check returned, by its name without ``check_``.

    Raises:
        PropertyViolation: once all checks have run, with the messages of all that failed.
    """
    checks: dict[str, Callable[[], float | None]] = {}
    if atoms.pbc.any():
        # First, as its largest structure makes a program that the others can use.
        checks["extensivity"] = lambda: check_extensivity(model, atoms)
        checks["wrapping"] = lambda: check_wrapping(model, atoms, seed=seed)
    checks["rotation"] = lambda: check_rotation(model, atoms, seed=seed)
    checks["translation"] = lambda: check_translation(model, atoms, seed=seed)
    checks["permutation"] = lambda: check_permutation(model, atoms, seed=seed)
    checks["forces"] = lambda: check_forces(model, atoms, seed=seed)
    checks["force_sum"] = lambda: check_force_sum(model, atoms)
    if atoms.pbc.all():
        checks["stress"] = lambda: None if evaluate(model, atoms).stress is None else check_stress(model, atoms)
    reach = cutoff if cutoff is not None else getattr(model, "cutoff", None)
    crystal_of_one = len(atoms) == 1 and atoms.pbc.any()
    if reach is not None and (crystal_of_one or pair_to_pull(atoms, float(reach), None) is not None):
        checks["cutoff_smoothness"] = lambda: check_cutoff_smoothness(model, atoms, cutoff=float(reach))
    if isinstance(model, PotentialModel):
        checks["padding"] = lambda: check_padding(model, atoms)

    deviations, violations = {}, []
    for name, check in checks.items():
        try:
            deviation = check()
        except PropertyViolation as violation:
            deviation = violation.deviation
            violations.append(f"{name}: {violation}")
        if deviation is not None:
            deviations[name] = deviation
    if violations:
        raise PropertyViolation(
            f"{len(violations)} of {len(deviations)} properties do not hold.\n" + "\n".join(violations),
            max(deviations.values()),
        )
    return deviations
