"""What a model answers, checked for form and finite numbers, and the largest deviation between answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from leignn_jax.errors import LeignnError, StructureError

# Below these, deviations are not relative to the model's own numbers any more: a relaxed crystal has forces of 1e-15.
FORCE_FLOOR = 0.01
STRESS_FLOOR = 1e-4

Model = Callable[[Atoms], Any]


class PropertyViolation(AssertionError):
    """A model lacks a property that it must have; ``deviation`` is what was measured, in the check's own measure."""

    def __init__(self, message: str, deviation: float = float("nan")):
        super().__init__(message)
        self.deviation = deviation


class Values(NamedTuple):
    """A model's answer in float64: energy, forces [atoms, 3], stress [3, 3] or None, direct forces or None."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    direct_forces: np.ndarray | None

    def of_atoms(self, atoms: np.ndarray, energy: float | None = None) -> Values:
        """The same for atoms in another order or number."""
        return Values(
            self.energy if energy is None else energy,
            self.forces[atoms],
            self.stress,
            None if self.direct_forces is None else self.direct_forces[atoms],
        )


def evaluate(model: Model, atoms: Atoms) -> Values:
    return values_of(model(atoms), len(atoms))


def values_of(answer: Any, atoms: int) -> Values:
    """Check shapes, which are the model's interface, and that numbers are finite, which is a property."""
    energy = np.asarray(answer.energy, np.float64)
    if energy.size != 1:
        raise LeignnError(f"The model's energy must be one number, not an array of shape {energy.shape}.")
    vectors = {}
    for name in ("forces", "direct_forces"):
        value = getattr(answer, name, None)
        if value is None and name == "direct_forces":
            vectors[name] = None
            continue
        vectors[name] = np.asarray(value, np.float64)
        if vectors[name].shape != (atoms, 3):
            raise LeignnError(f"The model's {name} must have the shape {(atoms, 3)}, not {vectors[name].shape}.")
    stress = getattr(answer, "stress", None)
    if stress is not None:
        stress = np.asarray(stress, np.float64)
        if stress.shape != (3, 3):
            raise LeignnError(f"The model's stress must have the shape (3, 3), not {stress.shape}.")
        if np.isnan(stress).all():
            stress = None
    for name, value in (("energy", energy), *vectors.items(), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            raise PropertyViolation(f"The model's {name} of a structure with {atoms} atoms is not finite.")
    return Values(float(energy.reshape(())), vectors["forces"], stress, vectors["direct_forces"])


def force_scale(values: Values) -> float:
    return max(float(np.abs(values.forces).max()), FORCE_FLOOR)


def differences(expected: Values, got: Values) -> Iterator[tuple[str, float, str, float]]:
    """Quantity, difference, unit and the number that the difference is relative to."""
    scale = force_scale(expected)
    yield "energy per atom", abs(got.energy - expected.energy) / len(expected.forces), "eV", scale
    yield "force", float(np.abs(got.forces - expected.forces).max()), "eV/Å", scale
    for name, a, b in (
        ("direct force", expected.direct_forces, got.direct_forces),
        ("stress", expected.stress, got.stress),
    ):
        if (a is None) != (b is None):
            raise LeignnError(f"The model gives a {name} for one of two equal structures only.")
        if a is not None and b is not None:
            largest = float(np.abs(a).max())
            if name == "stress":
                yield name, float(np.abs(b - a).max()), "eV/Å^3", max(largest, STRESS_FLOOR)
            else:
                yield name, float(np.abs(b - a).max()), "eV/Å", max(largest, FORCE_FLOOR)


class Worst:
    """The largest relative deviation so far and what it is of."""

    def __init__(self, tolerance: float):
        self.tolerance, self.relative, self.what = tolerance, 0.0, ""

    def add(self, relative: float, what: str) -> None:
        """Take note of a deviation."""
        if relative > self.relative:
            self.relative, self.what = float(relative), what

    def compare(self, what: str, expected: Values, got: Values) -> None:
        """Take note of all differences of two answers."""
        for name, difference, unit, scale in differences(expected, got):
            self.add(difference / scale, f"{what} the {name} is off by {difference:.3g} {unit}")

    def settled(self) -> float:
        """The largest deviation; raises PropertyViolation where that is above the tolerance."""
        if self.relative > self.tolerance:
            raise PropertyViolation(
                f"{self.what}: relative deviation {self.relative:.3g}, tolerance {self.tolerance:g}.", self.relative
            )
        return self.relative


def need_periodic(atoms: Atoms, what: str) -> None:
    if not atoms.pbc.any():
        raise StructureError(f"{what} needs a structure that is periodic in at least one direction.")


def in_text(vector: np.ndarray) -> str:
    return "(" + ", ".join(f"{x:.3g}" for x in vector) + ")"
