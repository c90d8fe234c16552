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

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from leignn_jax.errors import LeignnError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.neighbors import find_pairs
from leignn_jax.potential import Potential, Prediction, compute

# Below these, deviations are not relative to the model's own numbers any more: a relaxed crystal has forces of 1e-15.
FORCE_FLOOR = 0.01
STRESS_FLOOR = 1e-4

# Pairs: a graph padded to less costs next to nothing.
SMALL_GRAPH = 4096

Model = Callable[[Atoms], Any]


class PropertyViolation(AssertionError):
    """A model lacks a property that it must have; ``deviation`` is what was measured, in the check's own measure."""

    def __init__(self, message: str, deviation: float = float("nan")):
        super().__init__(message)
        self.deviation = deviation


class PotentialModel:
    """What :func:`as_model` returns: a callable from ``ase.Atoms`` to a Prediction of NumPy arrays."""

    def __init__(self, potential: Potential, dtype: Any = np.float64):
        self.potential = potential
        self.cutoff = potential.cutoff
        self.dtype: Any = np.dtype(dtype)
        self._network, self._references = potential.split_references()
        self._sizes: list[tuple[int, int, int, int]] = []

    def __call__(self, atoms: Atoms) -> Prediction:
        """Energy (float, eV), forces [atoms, 3], stress [3, 3] (NaN unless periodic), atomic energies [atoms]."""
        return self.of_graph(self._padded(self.graph(atoms)), atoms.numbers)

    def graph(self, atoms: Atoms) -> Graph:
        """The structure's graph, unpadded."""
        self.potential.check_elements(atoms.numbers)
        return Graph.from_ase(atoms, self.cutoff, self.dtype)

    def of_graph(self, graph: Graph, numbers: np.ndarray) -> Prediction:
        """What the potential says of the first structure of a graph, whose atoms have these atomic numbers."""
        out, size, add = compute(self._network, graph), len(numbers), self._references[numbers]
        return Prediction(
            energy=float(out.energy[0] + add.sum() + self.potential.energy_shift),
            forces=out.forces[:size],
            stress=out.stress[0],
            atomic_energies=out.atomic_energies[:size] + add,
            direct_forces=None if out.direct_forces is None else out.direct_forces[:size],
        )

    def _padded(self, graph: Graph) -> Graph:
        """Padded to sizes used before if they aren't much larger, as compiling takes longer than some padding costs."""
        graph = graph.pad_to_bucket()
        for sizes in self._sizes:
            fits = all(have <= size for have, size in zip(graph.shape, sizes, strict=True))
            if fits and sizes[1] <= max(2 * graph.shape[1], SMALL_GRAPH):
                return graph.pad(*sizes)
        self._sizes.append(graph.shape)
        return graph


def as_model(potential: Potential, dtype: Any = np.float64) -> PotentialModel:
    """The potential as a callable from ``ase.Atoms`` to a Prediction of NumPy arrays, compiled for few sizes.

    Args:
        potential: what to run.
        dtype: of the arithmetic, results are float64; float64 works without ``jax_enable_x64``.

    Raises:
        ElementError: when called, for an element that the potential does not know.
        StructureError: when called, for a structure without an energy.
    """
    return PotentialModel(potential, dtype)


# ----------------------------------------------------------------------------------------------------------- symmetries


def check_rotation(model: Model, atoms: Atoms, *, samples: int = 4, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Rotated and reflected structures have the same energy; forces, direct forces and stress turn along.

    Every second sample is a reflection. Returns the largest relative deviation.
    """
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    for sample, matrix in enumerate(random_rotations(samples, seed)):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ matrix.T)
        turned.positions[:] = atoms.positions @ matrix.T
        target = _Values(
            expected.energy,
            expected.forces @ matrix.T,
            None if expected.stress is None else matrix @ expected.stress @ matrix.T,
            None if expected.direct_forces is None else expected.direct_forces @ matrix.T,
        )
        kind = "reflection" if sample % 2 else "rotation"
        worst.compare(f"After a {kind} (sample {sample})", target, _evaluate(model, turned))
    return worst.settled()


def check_translation(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Moving all atoms by the same vector, up to 5 Å long in each direction, changes nothing.

    Returns the largest relative deviation.
    """
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    for shift in np.random.default_rng(seed).uniform(-5, 5, (samples, 3)):
        moved = atoms.copy()
        moved.positions[:] = atoms.positions + shift
        worst.compare(f"After moving all atoms by {_text(shift)} Å", expected, _evaluate(model, moved))
    return worst.settled()


def check_wrapping(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """Moving single atoms by up to three lattice vectors changes nothing. Returns the largest relative deviation.

    Raises:
        StructureError: the structure is periodic in no direction.
    """
    _need_periodic(atoms, "Wrapping")
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    for sample, shifts in enumerate(np.random.default_rng(seed).integers(-3, 4, (samples, len(atoms), 3))):
        moved = atoms.copy()
        moved.positions[:] = atoms.positions + (shifts * atoms.pbc) @ atoms.cell.array
        worst.compare(
            f"After moving atoms by whole lattice vectors (sample {sample})", expected, _evaluate(model, moved)
        )
    return worst.settled()


def check_permutation(model: Model, atoms: Atoms, *, samples: int = 3, seed: int = 0, tolerance: float = 1e-6) -> float:
    """The order of the atoms changes the order of the forces alone. Returns the largest relative deviation."""
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    rng = np.random.default_rng(seed)
    for sample in range(samples):
        order = rng.permutation(len(atoms)) if sample else np.arange(len(atoms))[::-1]
        target = expected.of_atoms(order)
        what = "In the reverse order of atoms" if sample == 0 else f"In another order of atoms (sample {sample})"
        worst.compare(what, target, _evaluate(model, atoms[order]))
    return worst.settled()


def check_padding(
    potential: Potential | PotentialModel, atoms: Atoms, *, dtype: Any = np.float64, tolerance: float = 1e-9
) -> float:
    """How far a :class:`leignn_jax.Graph` is padded changes no number beyond rounding.

    Compared with the unpadded graph: one padded as :func:`as_model` does, and a far larger one, of odd sizes and with
    room for two more structures. ``dtype`` is that of the arithmetic. Returns the largest relative deviation.
    """
    model = potential if isinstance(potential, PotentialModel) else PotentialModel(potential, dtype)
    graph = model.graph(atoms)
    size, pairs, neighbors, _ = graph.shape
    expected, worst = _values(model.of_graph(graph, atoms.numbers), size), _Worst(tolerance)
    worst.compare("Padded to the next bucket", expected, _evaluate(model, atoms))
    sizes = (2 * size + 5, 2 * pairs + 9, neighbors + 64, 3)
    what = "Padded to {} atoms, {} pairs, {} neighbours and {} structures".format(*sizes)
    worst.compare(what, expected, _values(model.of_graph(graph.pad(*sizes), atoms.numbers), size))
    return worst.settled()


def check_extensivity(model: Model, atoms: Atoms, *, tolerance: float = 1e-6) -> float:
    """A supercell has the energy of its cells together, every copy of an atom the same force, and the stress stays.

    Supercells are (2, 1, 1) and (2, 2, 2), along the periodic directions alone. Returns the largest relative deviation.

    Raises:
        StructureError: the structure is periodic in no direction.
    """
    _need_periodic(atoms, "Extensivity")
    pbc = np.asarray(atoms.pbc)
    repeats = [np.where(pbc, 2, 1), np.where(np.arange(3) == np.argmax(pbc), 2, 1)]
    # The largest first: as_model pads the smaller ones to its program.
    answers = [(repeat, _evaluate(model, atoms.repeat(repeat.tolist()))) for repeat in repeats]
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    for repeat, got in answers[::-1]:
        copies = int(repeat.prod())
        target = expected.of_atoms(np.tile(np.arange(len(atoms)), copies), energy=copies * expected.energy)
        worst.compare(f"In a {'x'.join(map(str, repeat))} supercell", target, got)
    return worst.settled()


# ---------------------------------------------------------------------------------------------------------- derivatives


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
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    scale = _force_scale(expected)
    components = np.random.default_rng(seed).permutation(3 * len(atoms))[:samples]
    for atom, axis in zip(*np.unravel_index(components, (len(atoms), 3)), strict=True):

        def energy(move: float, atom=atom, axis=axis) -> float:
            moved = atoms.copy()
            moved.positions[atom, axis] += move
            return _evaluate(model, moved).energy

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
    stress = _evaluate(model, atoms).stress
    if stress is None:
        raise LeignnError("The model gives no stress for this structure.")
    scale, worst = max(float(np.abs(stress).max()), STRESS_FLOOR), _Worst(tolerance)
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

        def energy(change: float, a=a, b=b) -> float:
            strain = np.eye(3)
            strain[a, b] += 0.5 * change
            strain[b, a] += 0.5 * change
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain)
            strained.positions[:] = atoms.positions @ strain
            return _evaluate(model, strained).energy

        slope = _slope(energy, step) / atoms.get_volume()
        for value in (stress[a, b], stress[b, a]):
            what = f"The stress {'xyz'[a]}{'xyz'[b]} is {value:.8g} eV/Å^3, the energy's slope by strain {slope:.8g}"
            worst.add(float(abs(value - slope)) / scale, what)
    return worst.settled()


def check_force_sum(model: Model, atoms: Atoms, *, tolerance: float = 1e-6) -> float:
    """The forces add to zero, so that no structure sets itself in motion. Returns their sum over the largest force."""
    expected, worst = _evaluate(model, atoms), _Worst(tolerance)
    total = expected.forces.sum(axis=0)
    worst.add(
        float(np.abs(total).max()) / _force_scale(expected), f"The forces add to {_text(total)} eV/Å, not to zero"
    )
    return worst.settled()


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
    pulled = _pair_to_pull(atoms, cutoff, atom)
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
        values = _evaluate(model, moved)
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
    worst = _Worst(tolerance)
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


# ------------------------------------------------------------------------------------------------------------------ all


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
        checks["stress"] = lambda: None if _evaluate(model, atoms).stress is None else check_stress(model, atoms)
    reach = cutoff if cutoff is not None else getattr(model, "cutoff", None)
    crystal_of_one = len(atoms) == 1 and atoms.pbc.any()
    if reach is not None and (crystal_of_one or _pair_to_pull(atoms, float(reach), None) is not None):
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


# -------------------------------------------------------------------------------------------------------------- helpers


def random_rotations(count: int, seed: int = 0) -> np.ndarray:
    """Orthogonal matrices ``[count, 3, 3]``, uniformly distributed; every second one has determinant -1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    wanted = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    return q * (wanted * np.linalg.det(q))[:, None, None]


class _Values(NamedTuple):
    """A model's answer in float64: energy, forces [atoms, 3], stress [3, 3] or None, direct forces or None."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    direct_forces: np.ndarray | None

    def of_atoms(self, atoms: np.ndarray, energy: float | None = None) -> _Values:
        """The same for atoms in another order or number."""
        return _Values(
            self.energy if energy is None else energy,
            self.forces[atoms],
            self.stress,
            None if self.direct_forces is None else self.direct_forces[atoms],
        )


def _evaluate(model: Model, atoms: Atoms) -> _Values:
    return _values(model(atoms), len(atoms))


def _values(answer: Any, atoms: int) -> _Values:
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
    return _Values(float(energy.reshape(())), vectors["forces"], stress, vectors["direct_forces"])


def _force_scale(values: _Values) -> float:
    return max(float(np.abs(values.forces).max()), FORCE_FLOOR)


def _differences(expected: _Values, got: _Values) -> Iterator[tuple[str, float, str, float]]:
    """Quantity, difference, unit and the number that the difference is relative to."""
    scale = _force_scale(expected)
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


def _slope(energy: Callable[[float], float], step: float) -> float:
    """The derivative at zero by central differences, exact for polynomials of the fourth order."""
    near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)


class _Worst:
    """The largest relative deviation so far and what it is of."""

    def __init__(self, tolerance: float):
        self.tolerance, self.relative, self.what = tolerance, 0.0, ""

    def add(self, relative: float, what: str) -> None:
        """Take note of a deviation."""
        if relative > self.relative:
            self.relative, self.what = float(relative), what

    def compare(self, what: str, expected: _Values, got: _Values) -> None:
        """Take note of all differences of two answers."""
        for name, difference, unit, scale in _differences(expected, got):
            self.add(difference / scale, f"{what} the {name} is off by {difference:.3g} {unit}")

    def settled(self) -> float:
        """The largest deviation; raises PropertyViolation where that is above the tolerance."""
        if self.relative > self.tolerance:
            raise PropertyViolation(
                f"{self.what}: relative deviation {self.relative:.3g}, tolerance {self.tolerance:g}.", self.relative
            )
        return self.relative


def _need_periodic(atoms: Atoms, what: str) -> None:
    if not atoms.pbc.any():
        raise StructureError(f"{what} needs a structure that is periodic in at least one direction.")


def _cutoff(model: Model, cutoff: float | None) -> float:
    cutoff = cutoff if cutoff is not None else getattr(model, "cutoff", None)
    if cutoff is None:
        raise LeignnError("The model has no attribute cutoff: give cutoff= in Å.")
    return float(cutoff)


def _pair_to_pull(atoms: Atoms, cutoff: float, atom: int | None) -> tuple[int, np.ndarray, np.ndarray] | None:
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


def _text(vector: np.ndarray) -> str:
    return "(" + ", ".join(f"{x:.3g}" for x in vector) + ")"
