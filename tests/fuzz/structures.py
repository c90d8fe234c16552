"""Structures of every kind, by every call that takes one, and their pairs."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError

from fuzz import damage
from fuzz.cases import EITHER, REFUSE, SAME, Target, Trial
from fuzz.samples import potential, silicon


def _predict(atoms: Any) -> dict[str, Any]:
    answer = potential().predict(atoms)
    return {"energy": answer.energy, "forces": np.sort(np.linalg.norm(answer.forces, axis=1))}


def _predict_several(atoms: Any) -> dict[str, Any]:
    answer = potential().predict([silicon(), atoms])[1]
    return {"energy": answer.energy, "forces": np.sort(np.linalg.norm(answer.forces, axis=1))}


def _calculate(atoms: Any) -> dict[str, Any]:
    calculator = potential().calculator()
    calculator.get_potential_energy(silicon())
    forces = calculator.get_forces(atoms)
    return {"energy": calculator.get_potential_energy(atoms), "forces": np.sort(np.linalg.norm(forces, axis=1))}


def _simulate(atoms: Any) -> dict[str, Any]:
    import leignn_jax as leignn

    # Velocities would be another start.
    run = leignn.simulate(potential(), atoms, steps=0, temperature=0.0, progress=False)
    return {"energy": run.trajectory.energy[0], "forces": np.sort(np.linalg.norm(run.trajectory.forces[0], axis=1))}


def _relax(atoms: Any) -> dict[str, Any]:
    import leignn_jax as leignn

    run = leignn.relax(potential(), atoms, steps=0, dtype="float32", progress=False)
    return {"energy": run.energy, "forces": np.sort(np.linalg.norm(run.atoms.calc.results["forces"], axis=1))}


# The last two compile a program of many seconds for each size of lists.
FACES: list[Callable[[Any], dict[str, Any]]] = [_predict, _predict_several, _calculate] * 3 + [_simulate, _relax]


def _right() -> dict[str, Any]:
    return _predict(silicon())


def _brief(atoms: Any) -> str:
    """Some words on a structure that ASE may have none for."""
    return (
        f"{len(atoms)} atoms, cell {np.asarray(atoms.cell).tolist()}"
        if isinstance(atoms, ase.Atoms)
        else f"{atoms!r:.60}"
    )


def hydrogen() -> ase.Atoms:
    """Four atoms in the open."""
    return ase.Atoms("H4", [[0.0, 0, 0], [0.8, 0, 0], [0, 1.9, 0.1], [0.1, 2.6, 0.3]])


def _set(atoms: ase.Atoms, **arrays: Any) -> ase.Atoms:
    for name, values in arrays.items():
        atoms.arrays[name] = np.asarray(values)
    return atoms


def _one_position(rng: random.Random, value: float) -> ase.Atoms:
    atoms = silicon().copy()
    atoms.positions[rng.randrange(8), rng.randrange(3)] = value
    return atoms


def _squeezed(rng: random.Random) -> ase.Atoms:
    """Atoms nearer to their images than 0.01 Å, or so many of these that no answer can be had."""
    length = rng.choice([0.001, 0.0099, 1e-5])
    return ase.Atoms("Si", cell=rng.choice([[length] * 3, [length, 5.0, 5.0], [5.0, 5.0, length]]), pbc=True)


BAD_STRUCTURES: dict[str, Callable[[random.Random], Any]] = {
    "position not finite": lambda rng: _one_position(rng, rng.choice([np.nan, np.inf, -np.inf])),
    "position beyond all": lambda rng: _one_position(rng, rng.choice([1e300, -1e300, 1e200, 1e30])),
    "atoms at one place": lambda rng: _set(
        a := silicon().copy(), positions=np.vstack([a.positions[:7], a.positions[:1] + rng.choice([0, 1e-9, 1e-4])])
    ),
    "atoms at one place by an image": lambda rng: _set(
        a := silicon().copy(), positions=np.vstack([a.positions[:7], a.positions[:1] + a.cell[0]])
    ),
    "cell of nothing": lambda rng: ase.Atoms("Si", cell=np.zeros((3, 3)), pbc=rng.choice([True, [True, False, False]])),
    "cell flat": lambda rng: ase.Atoms(
        "Si2",
        [[0, 0, 0], [2, 0, 0]],
        cell=[[5, 0, 0], [0, 5, 0], rng.choice([[5, 5, 0], [5, 5, 1e-12], [0, 5, 0]])],
        pbc=True,
    ),
    "cell not finite": lambda rng: ase.Atoms(
        "Si", cell=[[rng.choice([np.nan, np.inf]), 0, 0], [0, 5, 0], [0, 0, 5]], pbc=True
    ),
    "cell tiny": _squeezed,
    "positions a thousand times too small": lambda rng: _set(
        a := silicon().copy(), positions=a.positions / rng.choice([1e3, 1e4, 1e10])
    ),
    "all a thousand times too small": lambda rng: ase.Atoms(
        silicon().numbers, silicon().positions / 1e3, cell=np.asarray(silicon().cell) / 1e3, pbc=True
    ),
    "no atoms": lambda rng: ase.Atoms(cell=[5, 5, 5], pbc=True),
    "unknown element": lambda rng: ase.Atoms(rng.choice(["C8", "SiC", "Og"]), cell=[9, 9, 9], pbc=True),
    "atomic number": lambda rng: _set(silicon().copy(), numbers=[14] * 7 + [rng.choice([0, -1, 119, 200, 10**6])]),
    "no structure": lambda rng: rng.choice(
        [None, "si", 3, {}, np.zeros((8, 3)), damage.ODD, 1.5, ["Si"], [None], (1, 2)]
    ),
}


def _bad_structure(make: Callable[[random.Random], Any]) -> Callable[[random.Random, Path], Trial]:
    def attack(rng: random.Random, folder: Path) -> Trial:
        atoms, face = make(rng), rng.choice(FACES)
        if atoms is None and face is _calculate:
            face = _predict  # ASE's calculators take None for the structure before
        # Without velocities a simulation draws them, whatever the structure.
        return Trial(lambda: face(atoms), REFUSE, what=f"{face.__name__} {_brief(atoms)}")

    return attack


def _far(rng: random.Random) -> ase.Atoms:
    """Whole lattice vectors away, all atoms or one."""
    atoms = silicon().copy()
    length = rng.choice([1e2, 1e3, 1e5, 1e6, 1e8])
    vectors = np.rint(length * rng.choice([1, -1]) * np.array([1, 0.7, -0.3]) / 5.43) @ np.asarray(atoms.cell)
    if rng.random() < 0.5:
        atoms.positions += vectors
    else:
        atoms.positions[rng.randrange(8)] += vectors
    return atoms


def _rotated(rng: random.Random) -> ase.Atoms:
    atoms = silicon().copy()
    turn, _ = np.linalg.qr(np.random.default_rng(rng.randrange(1000)).normal(size=(3, 3)))
    # Reflections too: those make cells left-handed.
    atoms.set_cell(np.asarray(atoms.cell) @ turn, scale_atoms=False)
    atoms.positions = atoms.positions @ turn
    return atoms


def _another_cell(rng: random.Random) -> ase.Atoms:
    """The same lattice by other vectors."""
    atoms = silicon().copy()
    while True:
        whole = np.random.default_rng(rng.randrange(10**6)).integers(-2, 3, size=(3, 3))
        if abs(round(np.linalg.det(whole))) == 1:
            break
    atoms.set_cell(whole @ np.asarray(atoms.cell), scale_atoms=False)
    return atoms


class _Atoms(ase.Atoms):
    """A class of the user's."""


def _read_only(rng: random.Random) -> ase.Atoms:
    atoms = silicon().copy()
    for name in ("positions", "numbers"):
        values = np.asfortranarray(atoms.arrays[name])
        values.flags.writeable = False
        atoms.arrays[name] = values
    return atoms


def _with_luggage(rng: random.Random) -> ase.Atoms:
    atoms = silicon().copy()
    atoms.info |= {"x": damage.ODD, 1: 2, "energy": "high"}
    atoms.set_tags(range(8))
    atoms.set_initial_charges([1e9] * 8)
    atoms.arrays["forces"] = np.full((8, 3), np.nan)
    return atoms


SAME_STRUCTURES: dict[str, Callable[[random.Random], ase.Atoms]] = {
    "far": _far,
    "rotated": _rotated,
    "another cell": _another_cell,
    "moved": lambda rng: _set(a := silicon().copy(), positions=a.positions + [rng.uniform(-9, 9) for _ in range(3)]),
    "other order": lambda rng: silicon()[rng.sample(range(8), 8)],
    "wrapped": lambda rng: (a := silicon().copy(), a.wrap())[0],
    "float32": lambda rng: _set(a := silicon().copy(), positions=a.positions.astype(np.float32)),
    "big endian": lambda rng: _set(
        a := silicon().copy(),
        positions=a.positions.astype(">f8"),
        numbers=a.numbers.astype(rng.choice([">i4", "i1", "u2", "i8"])),
    ),
    "read-only": _read_only,
    "own class": lambda rng: _Atoms(silicon()),
    "luggage": _with_luggage,
    "copied and pickled": lambda rng: rng.choice([copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])(silicon()),
}


def _same_structure(make: Callable[[random.Random], ase.Atoms]) -> Callable[[random.Random, Path], Trial]:
    def attack(rng: random.Random, folder: Path) -> Trial:
        atoms, face = make(rng), rng.choice(FACES)
        return Trial(lambda: face(atoms), SAME.within(3e-4), _right, f"{face.__name__} {_brief(atoms)}")

    return attack


def _odd_but_legal(rng: random.Random, folder: Path) -> Trial:
    """An atom far from others, in the open: the energy is that of the parts."""
    atoms = hydrogen()
    distance = rng.choice([10.0, 1e3, 1e5, 5e5, 1e7, 1e30])
    atoms.positions[3] += distance * np.array(rng.choice([[1, 0, 0], [0, -1, 0.5], [1, 1, 1]]))
    face = rng.choice([_predict, _calculate, _predict_several])

    def parts() -> dict[str, Any]:
        first, second = _predict(hydrogen()[:3]), _predict(hydrogen()[3:])
        return {"energy": first["energy"] + second["energy"], "forces": np.sort([*first["forces"], *second["forces"]])}

    return Trial(lambda: face(atoms), EITHER.within(3e-4), parts, f"{face.__name__} {distance:g} Å")


STRUCTURES = {
    **{f"bad {name}": _bad_structure(make) for name, make in BAD_STRUCTURES.items()},
    **{f"same {name}": _same_structure(make) for name, make in SAME_STRUCTURES.items()},
    "an atom far away": _odd_but_legal,
}


def _brute(positions: np.ndarray, cell: np.ndarray, pbc: Sequence[bool], cutoff: float) -> dict[str, Any]:
    """All pairs, once, by looking at every image that may matter."""
    heights = np.ones(3)
    if np.any(pbc):
        full = cell.copy()
        periodic = cell[np.asarray(pbc)]
        if len(periodic) < 3:
            full[~np.asarray(pbc)] = np.linalg.svd(periodic, full_matrices=True)[2][len(periodic) :]
        heights = 1 / np.linalg.norm(np.linalg.inv(full), axis=0)
        fractional = positions @ np.linalg.inv(full)
        spread = np.ptp(fractional, axis=0)
        reach = [int(np.ceil(cutoff / h + s)) + 1 if p else 0 for h, s, p in zip(heights, spread, pbc, strict=True)]
    else:
        reach = [0, 0, 0]
    distances = []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        apart = np.linalg.norm(positions[None] + np.array(shift) @ cell - positions[:, None], axis=-1)
        distances.append(apart[(apart < cutoff) & (apart > 1e-9)])
    return {"distances": np.sort(np.concatenate(distances))[::2]}


def _pairs(rng: random.Random, folder: Path) -> Trial:
    """Cells of any shape, any periodicity, atoms anywhere, against all images one by one."""
    from leignn_jax.graph import Graph
    from leignn_jax.neighbors import find_pairs

    numbers = np.random.default_rng(rng.randrange(10**6))
    count = rng.choice([1, 2, 3, 7])
    cell = np.eye(3) * rng.uniform(2.5, 6) + numbers.normal(size=(3, 3)) * rng.choice([0, 0.5, 1.0])
    if abs(np.linalg.det(cell)) < 8:
        cell = np.eye(3) * 4.0
    if rng.random() < 0.3:
        cell[2] *= -1
    pbc = np.array([rng.random() < 0.6 for _ in range(3)])
    positions = numbers.uniform(-2, 3, size=(count, 3)) @ cell
    if rng.random() < 0.3:
        cell = np.where(pbc[:, None], cell, 0.0)
    cutoff = rng.choice([1.0, 3.0, 5.0])
    right = _brute(positions, cell, pbc, cutoff)
    face = rng.choice(["find_pairs", "Graph"])

    def use() -> dict[str, Any]:
        if face == "find_pairs":
            return {"distances": np.sort(find_pairs(positions, cell, pbc, cutoff).distances)}
        graph = Graph.from_ase(ase.Atoms(f"Si{count}", positions, cell=cell, pbc=pbc), cutoff, np.float64)
        vectors = np.linalg.norm(
            graph.positions[graph.lists.senders]
            + graph.shifts @ graph.cell[0]
            - graph.positions[graph.lists.receivers],
            axis=1,
        )
        return {"distances": np.sort(vectors[graph.pair_mask])}

    overlap = len(right["distances"]) and right["distances"][0] < 0.02
    return Trial(
        use, EITHER if overlap else SAME, lambda: right, f"{face} {count} atoms, cutoff {cutoff:g}, pbc {pbc.tolist()}"
    )


def _no_cutoff(rng: random.Random, folder: Path) -> Trial:
    from leignn_jax.graph import Graph
    from leignn_jax.neighbors import find_pairs

    wrong = rng.choice([*damage.NOT_POSITIVE, 1e9, 1e300, 1e5])
    atoms = silicon()
    use = rng.choice(
        [
            lambda: find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc), wrong),
            lambda: Graph.from_ase(atoms, wrong),
        ]
    )
    return Trial(use, REFUSE, what=f"cutoff {wrong!r:.40}")


def _no_arrays(rng: random.Random, folder: Path) -> Trial:
    from leignn_jax.neighbors import find_pairs

    good: dict[str, Any] = {
        "positions": silicon().positions,
        "cell": np.asarray(silicon().cell),
        "pbc": np.ones(3, bool),
    }
    name = rng.choice(sorted(good))
    good[name] = rng.choice(
        [
            None,
            "x",
            [],
            {},
            np.zeros((2, 2)),
            np.zeros(7),
            good[name].astype(complex) + 1j,
            np.array(["x"] * 3),
            damage.ODD,
            3,
        ]
    )
    return Trial(lambda: find_pairs(**good, cutoff=3.0), REFUSE, what=f"{name}={good[name]!r:.60}")


_BY_ASE = (PropertyNotImplementedError,)


TARGETS = [
    Target("structures", STRUCTURES, 8, 45.0, _BY_ASE),
    Target("pairs", {"legal": _pairs, "cutoff": _no_cutoff, "arrays": _no_arrays}, 3),
]
