"""An ASE calculator of a potential, which reuses its neighbour list and its compiled program from step to step."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from leignn_jax.arguments import check_atoms, check_dtype, check_number
from leignn_jax.errors import StructureError
from leignn_jax.graph import Graph, bucket
from leignn_jax.neighbors import check_structure, find_pairs, near_origin
from leignn_jax.potential import Potential, check_finite, check_potential, compute


class LEIGNNCalculator(Calculator):
    """Energy [eV], free energy, forces [eV/Å], stress [eV/Å^3, Voigt] and atomic energies of a potential.

    Pairs are listed up to cutoff + skin and used until an atom has moved by half the skin, or cell, elements or
    periodicity change. Array sizes grow, and shrink where one is more than twice what is needed, so that a simulation
    compiles once or a few times.

    One calculator may serve many structures, of any sizes, and many threads, whose calls wait for each other. Copies and
    pickles, such as those for other processes, start with a list of their own.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress", "energies"]

    def __init__(self, potential: Potential, *, dtype: str = "float32", skin: float = 0.5):
        """See :meth:`Potential.calculator`; ``skin`` in Å, 0 makes a new list at every step."""
        super().__init__()
        check_potential(potential)
        self.dtype = np.dtype(check_dtype(dtype))
        self.skin = check_number("skin", skin, least=0)
        self.network, self._references = potential.split_references()
        self._shift = float(potential.energy_shift)
        self._forget()

    def _forget(self) -> None:
        self._listed: ase.Atoms | None = None
        # Å, from the positions of the list's graph to those of the atoms, which may be far from the origin.
        self._offsets = np.zeros((0, 3))
        self._graph: Graph | None = None
        self._sizes = (0, 0, 0)
        # From the check of what has changed to the copy of a result nobody else may come between.
        self._one_at_a_time = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_listed", "_graph", "_sizes", "_one_at_a_time")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True):
        """As ASE's own, for one thread at a time."""
        if atoms is not None:
            check_atoms(atoms)
        with self._one_at_a_time:
            return super().get_property(name, atoms, allow_calculation)

    def calculate(self, atoms: ase.Atoms | None = None, properties=("energy",), system_changes=all_changes):
        """Fill ``results``; raises StructureError and ElementError for structures that can't be computed."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        if atoms is None:
            raise StructureError("The calculator has no structure yet: set it as atoms.calc and ask the atoms.")
        if "stress" in properties and not atoms.pbc.all():
            raise PropertyNotImplementedError("A stress needs a cell that is periodic in all three directions.")
        graph = self._updated_graph(atoms)
        out = compute(self.network, graph)
        count = len(atoms)
        references = self._references[atoms.numbers]
        out = out._replace(forces=out.forces[:count], energy=float(out.energy[0]))
        check_finite(out)
        energy = out.energy + float(references.sum()) + self._shift
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": out.forces,
            "energies": out.atomic_energies[:count] + references,
        }
        if atoms.pbc.all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(out.stress[0])

    def _updated_graph(self, atoms: ase.Atoms) -> Graph:
        if len(atoms) == 0:
            raise StructureError("The structure has no atoms.")
        cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
        check_structure(atoms.positions, cell, pbc)
        if self._graph is None or self._outdated(atoms):
            self.network.check_elements(atoms.numbers)
            near = near_origin(atoms.positions, cell, pbc)
            pairs = find_pairs(near.positions, cell, pbc, self.network.cutoff + self.skin)
            graph = Graph.from_pairs(near.positions, atoms.numbers, cell, pbc, pairs, self.dtype)
            wanted = (bucket(graph.shape[0], 4), bucket(graph.shape[1], 16), bucket(graph.shape[2], 4))
            # A list that shrinks a little keeps the larger program; one that shrinks by half is another system.
            other = any(have > 2 * w for w, have in zip(wanted, self._sizes, strict=True))
            self._sizes = wanted if other else tuple(map(max, wanted, self._sizes))
            # Together, that a structure which was refused leaves the list of the one before as it was.
            self._graph, self._listed, self._offsets = graph.pad(*self._sizes), atoms.copy(), near.offsets(cell)
            return self._graph
        positions = np.zeros_like(self._graph.positions)
        positions[: len(atoms)] = atoms.positions - self._offsets
        return self._graph.replace(positions=positions)

    def _outdated(self, atoms: ase.Atoms) -> bool:
        old = self._listed
        if old is None or len(old) != len(atoms) or not np.array_equal(old.numbers, atoms.numbers):
            return True
        if not np.array_equal(old.pbc, atoms.pbc) or not np.array_equal(old.cell, atoms.cell):
            return True
        moved = np.linalg.norm(atoms.positions - old.positions, axis=1)
        return bool(moved.max() >= 0.5 * self.skin)
