"""The cutoff: how much energy, forces and their derivative jump while a pair crosses it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms

from leignn_jax.errors import LeignnError, StructureError
from leignn_jax.neighbors import find_pairs
from leignn_jax.testing.answers import Model, Worst, evaluate


class CutoffJumps(NamedTuple):
    """The largest jumps between neighbouring steps while a pair crosses the cutoff, see :func:`cutoff_jumps`.

    energy: eV.
    forces: eV/Å, of any component.
    derivative: eV/Å^2, of any force component by the pair's distance; where the forces jump, that jump over the step.
    typical: three floats, how much each of them changes in a typical step.
    places: three floats, Å, the distance of the pair at each jump.
    """

    energy: float
    forces: float
    derivative: float
    typical: tuple[float, float, float]
    places: tuple[float, float, float]


def cutoff_jumps(
    model: Model,
    atoms: Atoms,
    *,
    cutoff: float | None = None,
    atom: int | None = None,
    step: float = 1e-4,
    points: int = 40,
) -> CutoffJumps:
    """Pull one atom through the cutoff of another in small steps and measure how much energy and forces jump.

    A jump is how much the change in one step differs from the mean of the changes before and after it: zero but for the
    third derivative where the quantity is continuous, however steep it is.

    Args:
        model: as everywhere here; float64.
        atoms: a dimer or any other structure with two atoms within 1.5 cutoffs of each other; a crystal with one atom
            is doubled in every direction.
        cutoff: Å; the model's ``cutoff`` if not given.
        atom: the atom to pull; if not given, one of the two whose distance is nearest to the cutoff.
        step: Å.
        points: number of distances, half of them on each side of the cutoff.

    Raises:
        StructureError: no second atom is within 1.5 cutoffs.
        LeignnError: the cutoff is not known, or the points are fewer than 12.
    """
    cutoff = _cutoff(model, cutoff)
    if points < 12:
        raise LeignnError(f"Jumps need at least 12 points, not {points}.")
    if len(atoms) == 1 and atoms.pbc.any():
        atoms = atoms.repeat(tuple(2 if periodic else 1 for periodic in atoms.pbc))
    pulled = pair_to_pull(atoms, cutoff, atom)
    if pulled is None:
        of = "" if atom is None else f" of atom {atom}"
        raise StructureError(
            f"No other atom is within 1.5 cutoffs{of}: bring two atoms closer than {1.5 * cutoff:g} Å."
        )
    index, origin, direction = pulled

    distances = cutoff + step * (np.arange(points) - (points - 1) / 2)
    energies, forces = np.zeros(points), np.zeros((points, 3 * len(atoms)))
    for k, distance in enumerate(distances):
        moved = atoms.copy()
        moved.positions[index] = origin + distance * direction
        values = evaluate(model, moved)
        energies[k], forces[k] = values.energy, values.forces.ravel()

    middles = 0.5 * (distances[1:] + distances[:-1])
    noise = 16 * np.finfo(float).eps
    force_noise = noise * np.abs(forces).max()
    jumps = (
        _jump(energies[:, None], distances, 1, noise * np.abs(energies).max()),
        _jump(forces, distances, 1, force_noise),
        # A kink lies inside a step and its slope between both sides': compare the steps around it.
        _jump(np.diff(forces, axis=0) / step, middles, 2, force_noise / step),
    )
    sizes, typical, places = zip(*jumps, strict=True)
    return CutoffJumps(*sizes, typical, places)


def check_cutoff_smoothness(
    model: Model,
    atoms: Atoms,
    *,
    cutoff: float | None = None,
    atom: int | None = None,
    step: float = 1e-4,
    points: int = 40,
    tolerance: float = 10.0,
) -> float:
    """Energy, forces and the forces' derivative are continuous while an atom crosses the cutoff of another.

    Arguments and errors as in :func:`cutoff_jumps`, which gives the jumps of a model that is not smooth. Returns the
    largest jump, in units of what the same quantity changes in a typical step; ``tolerance`` is in that unit.
    """
    jumps = cutoff_jumps(model, atoms, cutoff=cutoff, atom=atom, step=step, points=points)
    worst = Worst(tolerance)
    found = (
        ("energy", jumps.energy, "eV"),
        ("forces", jumps.forces, "eV/Å"),
        ("derivative of the forces", jumps.derivative, "eV/Å^2"),
    )
    for (name, jump, unit), typical, place in zip(found, jumps.typical, jumps.places, strict=True):
        worst.add(
            jump / typical if jump else 0.0,
            f"While a pair crosses the cutoff, the {name} jumps by {jump:.3g} {unit} at {place:.5f} Å; in a typical "
            f"step of {step:g} Å it changes by {typical:.3g} {unit}",
        )
        worst.settled()  # so that a jump of the energy is not reported as one of its derivatives
    return worst.settled()


def _cutoff(model: Model, cutoff: float | None) -> float:
    cutoff = cutoff if cutoff is not None else getattr(model, "cutoff", None)
    if cutoff is None:
        raise LeignnError("The model has no attribute cutoff: give cutoff= in Å.")
    return float(cutoff)


def pair_to_pull(atoms: Atoms, cutoff: float, atom: int | None) -> tuple[int, np.ndarray, np.ndarray] | None:
    """An atom, the place of another one and the direction from there to it; of all pairs the nearest to the cutoff."""
    pairs = find_pairs(atoms.positions, atoms.cell.array, np.asarray(atoms.pbc), 1.5 * cutoff)
    usable = pairs.receivers != pairs.senders
    if atom is not None:
        usable &= (pairs.receivers == atom) | (pairs.senders == atom)
    if not usable.any():
        return None
    p = int(np.argmin(np.where(usable, np.abs(pairs.distances - cutoff), np.inf)))
    receiver, sender = int(pairs.receivers[p]), int(pairs.senders[p])
    offset = pairs.shifts[p] @ atoms.cell.array
    vector = atoms.positions[sender] + offset - atoms.positions[receiver]
    direction = vector / np.linalg.norm(vector)
    if atom == receiver:
        return receiver, atoms.positions[sender] + offset, -direction
    return sender, atoms.positions[receiver] - offset, direction


def _jump(values: np.ndarray, places: np.ndarray, gap: int, noise: float) -> tuple[float, float, float]:
    """Largest difference of a step from the mean of its neighbours, the typical step, where; ``values`` [points, n]."""
    steps = values[gap:] - values[:-gap]
    unlike = np.abs(steps[gap:-gap] - 0.5 * (steps[: -2 * gap] + steps[2 * gap :])).max(axis=1)
    k = int(np.argmax(unlike))
    typical = max(float(np.quantile(np.abs(steps).max(axis=1), 0.75)), float(noise))
    return float(unlike[k]), typical, float(0.5 * (places[k + gap] + places[k + 2 * gap]))
