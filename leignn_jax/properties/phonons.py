"""Phonons of crystals in the harmonic approximation.

Force constants are exact second derivatives of the energy, no displacements and no step to choose. Those between one
cell and a supercell are taken, and

    D_ij(q) = (m_i m_j)^-1/2 sum_j' Phi_ij' sum_S w_S exp(i q . (r_j' + S - r_i)),

with j' all atoms of the supercell that are copies of j, and S the supercell vectors for which j' is nearest to i, sharing
the weight where there are several. At wave vectors that fit the supercell D is exact; in between it is as good as the
supercell is large. A model whose energy has global nodes couples all atoms of a supercell: its force constants depend on
the supercell's size.

Where the energy has a kink at symmetric sites (see :mod:`leignn_jax.properties.second_derivatives`) ``displacement`` helps.

The functions of arrays (``force_constants``, ``dynamical_matrix``, ``frequencies``) are pure: they run under jit and vmap
and can be differentiated by the potential's parameters, in float64 under ``jax.enable_x64()``. A single frequency has no
derivative where modes are degenerate, nor where it is zero (there 0 is returned); sums and other symmetric functions of
degenerate frequencies have one, and it is right.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from leignn_jax.arguments import (
    check_array,
    check_atoms,
    check_masses,
    check_model,
    check_number,
    check_whole,
    shown,
)
from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.mapping import map_in_batches
from leignn_jax.properties.second_derivatives import (
    TERAHERTZ,
    check_displacement,
    check_finite,
    check_invariant,
    check_smooth,
    checked_derivatives,
    first_of_elements,
    graph_of,
    second_derivatives,
    signed_root,
)
from leignn_jax.simulation.dynamics import EnergyModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Å by which distances to images may differ and still count as equal.
_EQUAL = 1e-4
# In a supercell; its second derivatives are kept, 9 numbers for each atom of the cell.
_MOST_ATOMS = 1_000_000


@struct.dataclass
class Crystal:
    """A cell inside its supercell: all that phonons need but the force constants. A pytree.

    graph: of the supercell, whose atoms are the cell's, copy after copy, the first copy in front.
    masses: ``[cell]`` amu.
    owner: ``[supercell]`` int32, the atom of the cell that each is a copy of.
    vectors: ``[cell, supercell, images, 3]`` Å, from an atom of the cell to the nearest images of one of the supercell.
    weights: ``[cell, supercell, images]``, 1 divided by their number, 0 for padding.
    """

    graph: Graph
    masses: Any
    owner: Any
    vectors: Any
    weights: Any


@struct.dataclass
class Phonons:
    """Phonons of a crystal; from :func:`phonons`.

    atoms: the cell. supercell: how often it is repeated along each vector.
    crystal: see :class:`Crystal`.
    force_constants: ``[cell, 3, supercell, 3]`` eV/Å^2, the sum rule obeyed.
    """

    atoms: Any = struct.field(pytree_node=False)
    supercell: tuple[int, int, int] = struct.field(pytree_node=False)
    crystal: Crystal
    force_constants: Any

    def frequencies(self, q: Any) -> np.ndarray:
        """``[..., modes]`` THz in ascending order, imaginary ones as negative numbers, at ``q`` [..., 3] in units of the
        reciprocal cell; ConfigError for others."""
        q = check_array("q", q, (..., 3)).astype(float)
        if not q.size or not np.isfinite(q).all():
            raise ConfigError("q must be one wave vector or more, of finite numbers.")
        with jax.enable_x64(True):
            flat = _frequencies(self.crystal.replace(graph=None), self.force_constants, self._wave_vectors(q))
            return np.asarray(flat).reshape(*q.shape[:-1], -1)

    def _wave_vectors(self, q: np.ndarray) -> np.ndarray:
        return 2 * np.pi * q.reshape(-1, 3) @ np.asarray(self.atoms.cell.reciprocal())

    def band_structure(self, path: str | None = None, points: int = 200) -> Bands:
        """Frequencies along a path of special points ("GXWKGL"; None is ASE's for this lattice), ``points`` in all.

        Raises:
            ConfigError: a point that this lattice is without.
        """
        check_whole("points", points, 2)
        if path is not None and (not isinstance(path, str) or not path):
            raise ConfigError(f"path must be names of special points, such as 'GXWKGL', not {shown(path)}.")
        try:
            line = self.atoms.cell.bandpath(path, npoints=points)
        except KeyError as error:
            lattice = self.atoms.cell.get_bravais_lattice()
            raise ConfigError(
                f"{path!r}: the cell's lattice ({lattice.longname}) has no point {error}; it has "
                f"{', '.join(lattice.get_special_points())}. Is another lattice meant? A relaxation may leave a cell a "
                "little off it: relax it isotropically, or set the cell by hand."
            ) from error
        distance, ticks, labels = line.get_linear_kpoint_axis()
        return Bands(line.kpts, distance, self.frequencies(line.kpts), ticks, list(labels))

    def density_of_states(
        self, grid: tuple[int, int, int] = (16, 16, 16), *, width: float = 0.1, points: int = 400
    ) -> PhononDensity:
        """States per THz and cell, from wave vectors on a grid (off the centre), each state a Gaussian of ``width`` THz.

        The integral is the number of modes, three per atom of the cell.
        """
        check_number("width", width, positive=True)
        check_whole("points", points, 2)
        steps = [(np.arange(n) + 0.5) / n for n in _three("grid", grid)]
        q = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
        found = self.frequencies(q).ravel()
        axis = np.linspace(found.min() - 5 * width, found.max() + 5 * width, points)
        # Counted in narrow bins first, so that the sum over Gaussians does not grow with the grid.
        counts, edges = np.histogram(
            found, bins=max(points, int(np.ceil((found.max() - found.min()) / width * 20)) + 1)
        )
        middle = 0.5 * (edges[1:] + edges[:-1])
        shape = np.exp(-0.5 * ((axis[:, None] - middle) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return PhononDensity(axis, shape @ counts / len(q))

    def to_phonopy(self):
        """A ``phonopy.Phonopy`` of this cell, supercell and force constants, for what phonopy can do beyond; needs phonopy.

        Raises:
            ImportError: phonopy is not installed.
        """
        from phonopy import Phonopy  # pyright: ignore[reportMissingImports]
        from phonopy.structure.atoms import PhonopyAtoms  # pyright: ignore[reportMissingImports]

        cell = PhonopyAtoms(
            numbers=self.atoms.numbers,
            cell=np.asarray(self.atoms.cell),
            scaled_positions=self.atoms.get_scaled_positions(),
            masses=self.atoms.get_masses(),
        )
        other = Phonopy(cell, supercell_matrix=np.diag(self.supercell), primitive_matrix=np.eye(3))
        ours = _repeated(self.atoms, self.supercell)
        away = other.supercell.scaled_positions[:, None] - ours.get_scaled_positions()
        away -= np.round(away)
        place = (away**2).sum(-1).argmin(1)  # our atom that each of theirs is
        rows = place[other.primitive.p2s_map]
        constants = np.asarray(self.force_constants).transpose(0, 2, 1, 3)
        other.force_constants = np.ascontiguousarray(constants[rows][:, place])
        return other


class Bands(NamedTuple):
    """Phonons along a path: ``q`` [points, 3] in units of the reciprocal cell, ``distance`` [points] 1/Å (ASE's, without
    2 pi), ``frequencies`` [points, modes] THz, and the special points' ``ticks`` [special] 1/Å and ``labels``."""

    q: np.ndarray
    distance: np.ndarray
    frequencies: np.ndarray
    ticks: np.ndarray
    labels: list[str]


class PhononDensity(NamedTuple):
    """Density of phonon states: ``frequency`` [points] THz, ``density`` [points] states per THz and cell."""

    frequency: np.ndarray
    density: np.ndarray


def phonons(
    potential: EnergyModel,
    atoms: ase.Atoms,
    *,
    supercell: int | tuple[int, int, int] | None = None,
    displacement: float | None = None,
    dtype: str = "float64",
) -> Phonons:
    """Phonons of a crystal from second derivatives of the energy of a supercell.

    Args:
        potential: a :class:`leignn_jax.Potential` or another EnergyModel.
        atoms: the cell, best a primitive one, relaxed (see :func:`leignn_jax.relax`); periodic in three directions.
        supercell: repetitions along each vector. None is as many as make the supercell twice the cutoff high in each
            direction: a start. Converge frequencies with it.
        displacement: Å, for central differences of forces; None is exact derivatives.
        dtype: "float64" or "float32".

    Raises:
        ConfigError: a structure that is not periodic, constraints, repetitions below one, a wrong dtype; a model whose
            energy depends on where the structure is.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`; second derivatives that are not finite.
    """
    check_displacement(displacement)
    crystal, repeats = crystal_in_supercell(potential, atoms, supercell, dtype)
    with jax.enable_x64(dtype == "float64"):
        cell = np.arange(len(atoms))
        checked = first_of_elements(atoms.numbers)
        found = jax.device_get(checked_derivatives(potential, crystal.graph, cell, checked, displacement))
        constants = np.asarray(_sum_rule(found[0]), np.float64)
    check_finite(constants)
    check_smooth(found[0], found[1], cell, checked, displacement)
    return Phonons(atoms=_without_extras(atoms), supercell=repeats, crystal=crystal, force_constants=constants)


def crystal_in_supercell(
    potential: EnergyModel,
    atoms: ase.Atoms,
    supercell: int | tuple[int, int, int] | None = None,
    dtype: str = "float64",
) -> tuple[Crystal, tuple[int, int, int]]:
    """The geometry that the pure functions below take, and the repetitions; on the host, arguments as :func:`phonons`."""
    check_model(potential)
    check_invariant(potential)
    if not check_atoms(atoms).pbc.all():
        raise ConfigError("Phonons need a structure that is periodic in three directions; see normal_modes for others.")
    if atoms.constraints:
        raise ConfigError(
            "Phonons of a crystal with constraints are not defined: remove them (atoms.set_constraint())."
        )
    if supercell is None:
        heights = 1 / np.linalg.norm(np.asarray(atoms.cell.reciprocal()), axis=1)
        supercell = tuple(int(n) for n in np.ceil(2 * potential.cutoff / heights - 1e-9))  # pyright: ignore
    repeats = _three("supercell", supercell)
    if math.prod(repeats) * len(atoms) > _MOST_ATOMS:
        raise ConfigError(f"supercell: {repeats} are more than {_MOST_ATOMS:,} atoms.")
    large = _repeated(atoms, repeats)
    vectors, weights = _nearest_images(atoms, large)
    crystal = Crystal(
        graph=graph_of(potential, large, dtype),
        masses=check_masses(atoms),
        owner=np.tile(np.arange(len(atoms), dtype=np.int32), len(large) // len(atoms)),
        vectors=vectors,
        weights=weights,
    )
    return crystal, repeats  # pyright: ignore[reportReturnType]


def _three(name: str, value: Any) -> tuple[int, int, int]:
    """Whole numbers along the three vectors; one number is that along each."""
    given = check_array(name, value, (...,), "iu")
    if given.shape not in ((), (3,)):
        raise ConfigError(f"{name} must be one whole number or three, not {list(given.shape)}.")
    first, second, third = (check_whole(name, n, 1) for n in np.broadcast_to(given, 3))
    return first, second, third


def force_constants(
    model: EnergyModel, crystal: Crystal, displacement: Any = None
) -> Float[Array, "cell 3 supercell 3"]:
    """Second derivatives in eV/Å^2 between cell and supercell; pure.

    The forces between an atom and itself are set to minus those between it and all others (acoustic sum rule).
    """
    return _sum_rule(second_derivatives(model, crystal.graph, np.arange(len(crystal.masses)), displacement))


def _sum_rule(constants):
    itself, constants = np.arange(constants.shape[0]), jnp.asarray(constants)
    return constants.at[itself, :, itself].add(-constants.sum(2))


def dynamical_matrix(crystal: Crystal, constants, q: Float[Any, "3"]) -> Array:
    """``[modes, modes]`` complex eV/Å^2/amu, Hermitian, at the wave vector ``q`` in 1/Å (with its 2 pi); pure."""
    cell = len(crystal.masses)
    phases = (jnp.asarray(crystal.weights) * jnp.exp(1j * (jnp.asarray(crystal.vectors) * q).sum(-1))).sum(-1)
    copies = (jnp.asarray(crystal.owner)[:, None] == jnp.arange(cell)).astype(phases.dtype)
    matrix = jnp.einsum("iajb,ij,jk->iakb", constants.astype(phases.dtype), phases, copies, precision="highest")
    root = jnp.sqrt(jnp.asarray(crystal.masses))
    matrix = (matrix / root[:, None, None, None] / root[:, None]).reshape(3 * cell, 3 * cell)
    return 0.5 * (matrix + matrix.conj().T)


def frequencies(crystal: Crystal, constants, q: Float[Any, "points 3"]) -> Float[Array, "points modes"]:
    """THz in ascending order, imaginary ones as negative numbers, at wave vectors in 1/Å (with their 2 pi); pure."""

    def at(one):
        return signed_root(jnp.linalg.eigvalsh(dynamical_matrix(crystal, constants, one))) * TERAHERTZ

    return map_in_batches(at, jnp.asarray(q), 64)


_frequencies = jax.jit(frequencies)


def plot_phonons(bands: Bands, density: PhononDensity | None = None) -> Figure:
    """Phonon bands in THz, and beside them the density of states where there is one; imaginary modes lie below zero."""
    from leignn_jax.plotting import new_figure

    figure, axes = new_figure(1 if density is None else 2)
    axis = axes[0]
    # A line per stretch between special points: where the path jumps there is none.
    cuts = [0, *(np.flatnonzero(np.diff(bands.distance) < 1e-12) + 1), len(bands.distance)]
    for start, end in itertools.pairwise(cuts):
        axis.plot(bands.distance[start:end], bands.frequencies[start:end], color="C0", lw=1.0)
    for tick in bands.ticks:
        axis.axvline(tick, color="0.7", lw=0.7, zorder=0)
    axis.axhline(0, color="0.4", lw=0.7, zorder=0)
    axis.set_xticks(*_merged_ticks(bands))
    axis.set(xlim=(bands.distance[0], bands.distance[-1]), xlabel="wave vector", ylabel="frequency (THz)")
    if density is not None:
        axes[1].plot(density.density, density.frequency, color="C0", lw=1.0)
        axes[1].axhline(0, color="0.4", lw=0.7, zorder=0)
        axes[1].set(xlabel="states per THz and cell", ylabel="frequency (THz)", xlim=(0, None), ylim=axis.get_ylim())
    return figure


def _merged_ticks(bands: Bands) -> tuple[list[float], list[str]]:
    """Ticks and labels, those of the two sides of a jump in one."""
    at: list[float] = []
    names: list[str] = []
    for tick, label in zip(bands.ticks, bands.labels, strict=True):
        label = "Γ" if label == "G" else label
        if at and abs(tick - at[-1]) < 1e-12:
            names[-1] += f"|{label}"
        else:
            at.append(float(tick))
            names.append(label)
    return at, names


def _nearest_images(cell: ase.Atoms, large: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [cell, supercell, images, 3] to the nearest images, and their weights [cell, supercell, images]."""
    from ase.geometry import minkowski_reduce

    # In a reduced cell the nearest image is among those next to the one whose coordinates are wrapped into [-1/2, 1/2].
    reduced, _ = minkowski_reduce(np.asarray(large.cell))
    vectors = large.positions[None] - cell.positions[:, None]
    vectors = vectors - np.round(vectors @ np.linalg.inv(reduced)) @ reduced
    around = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ reduced
    images = vectors[:, :, None] + around
    distance = np.linalg.norm(images, axis=-1)
    nearest = distance <= distance.min(-1, keepdims=True) + _EQUAL
    most = int(nearest.sum(-1).max())
    order = np.argsort(~nearest, axis=-1, kind="stable")[..., :most]
    chosen = np.take_along_axis(nearest, order, -1)
    images = np.take_along_axis(images, order[..., None], 2)
    return np.where(chosen[..., None], images, 0.0), chosen / chosen.sum(-1, keepdims=True)


def _repeated(atoms: ase.Atoms, repeats: tuple[int, ...]) -> ase.Atoms:
    return _without_extras(atoms).repeat(repeats)


def _without_extras(atoms: ase.Atoms) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.calc = None
    atoms.set_constraint()
    return atoms
