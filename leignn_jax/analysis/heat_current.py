r"""Heat flux of models whose atomic energies depend on neighbours of neighbours, by the graph unfolded around the cell.

With E_i = U_i + m_i v_i^2 / 2 the flux is the part of d/dt sum_i r_i E_i that does not know where the origin is,

    J = sum_i E_i v_i + sum_{i in cell} sum_{j} (r_i - r_j) (dU_i/dr_j . v_j),

j running over all atoms that U_i depends on, images as atoms of their own (Langer, Frank and Knoop, Phys. Rev. B 108,
L100302 (2023)). After several layers of messages j is farther than the cutoff: partial forces of pairs, as the stress is
made of, are not enough. Around the cell all images are laid out that so many layers reach; there

    sum_ij r_i dU_i/dr_j . v_j    is one forward pass along the velocities, weighted by r_i,
    sum_ij r_j dU_i/dr_j . v_j    is one gradient of sum_{i in cell} U_i, times v_j, weighted by r_j.

A model in which all atoms meet in a global node has no such range, and in a periodic system no flux.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from flax import struct
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from leignn_jax.analysis.trajectory import as_cells, as_frames, as_masses, as_numbers, as_pbc
from leignn_jax.arguments import check_dtype, check_model, check_number, check_whole
from leignn_jax.errors import ConfigError, DataError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.neighbors import Pairs, find_pairs, near_origin
from leignn_jax.pair_ops import AnyArray
from leignn_jax.potential import Potential

_MOST_LAYERS = 20


class HeatFlux(NamedTuple):
    """Of the whole system, not divided by its volume, in eV Å/fs.

    total: ``[frames, 3]``, the sum of the two others.
    potential: ``[frames, 3]``, work that atoms do on each other, times the way between them.
    convective: ``[frames, 3]``, energy that atoms carry along, without reference energies.
    """

    total: np.ndarray
    potential: np.ndarray
    convective: np.ndarray


@struct.dataclass
class Unfolded:
    """Atoms of a cell and all images that their energies depend on, as one open cluster. A pytree.

    graph: of all of them; its positions are those that it was made from.
    origin: ``[all]`` int32, the atom of the cell that each is an image of; the cell's own come first, in their order.
    images: ``[all, 3]`` float, whole lattice vectors from there.
    inside: ``[all]`` bool, True for the cell's own.
    """

    graph: Graph
    origin: Any
    images: Any
    inside: Any


def heat_flux(
    model: Any,
    positions: ArrayLike,
    velocities: ArrayLike,
    numbers: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike = True,
    *,
    masses: ArrayLike | None = None,
    layers: int | None = None,
    skin: float = 0.5,
    dtype: str = "float32",
) -> HeatFlux:
    """The heat flux of every frame, for :func:`leignn_jax.analysis.green_kubo_conductivity`.

    Args:
        model: a potential, or another model whose ``compute`` gives atomic energies.
        positions: ``[frames, atoms, 3]`` Å, wrapped or not.
        velocities: ``[frames, atoms, 3]`` Å/fs.
        numbers: ``[atoms]`` atomic numbers.
        cell: ``[3, 3]`` or ``[frames, 3, 3]`` Å.
        pbc: ``[3]`` bool or one for all.
        masses: ``[atoms]`` amu; None is the elements' standard masses.
        layers: how many times an atomic energy's messages go from atom to atom; 1 for a sum over pairs. None is what the
            potential has; of a sum of models at least that of the potentials in it.
        skin: Å, lists are made anew when an atom has moved by half of it; changes the time that it takes, not the result.
        dtype: "float32" or "float64", of the model's arithmetic.

    Raises:
        ConfigError: the model has no atomic energies or global nodes in a periodic system, or ``layers`` is not known.
        DataError: arrays that do not fit each other.
        StructureError: a frame whose atoms overlap or whose cell is singular, with its number.

    Source: M. F. Langer, J. T. Frank, F. Knoop, J. Chem. Phys. 159, 174105 (2023) and Phys. Rev. B 108, L100302 (2023).
    """
    check_model(model, "model")
    positions, velocities = as_frames(positions, "positions"), as_frames(velocities, "velocities")
    if positions.shape != velocities.shape:
        raise DataError(
            f"The positions are {list(positions.shape)}, the velocities {list(velocities.shape)}: give both of each frame."
        )
    frames, atoms = positions.shape[:2]
    numbers = as_numbers(numbers, atoms)
    cells, pbc, masses = as_cells(cell, frames), as_pbc(pbc), as_masses(masses, atoms, numbers)
    layers, skin = _layers(model, layers, pbc), check_number("skin", skin, positive=True)
    for potential in _potentials(model):
        potential.check_elements(numbers)
    if isinstance(model, Potential):
        model, _ = model.split_references()
    elif hasattr(model, "without_constants"):
        model = model.without_constants()
    real = np.dtype(check_dtype(dtype))
    held = None
    parts = []
    with jax.enable_x64(real == np.float64):
        weights = jnp.asarray(masses / units.fs**2, real)
        for index, (r, v, lattice) in enumerate(zip(positions, velocities, cells, strict=True)):
            if held is None or _far(r, lattice, *held[2:], skin):
                try:
                    # Atoms that have wandered far off would lose digits in float32.
                    home = near_origin(r, lattice, pbc, keep=False)
                    unfolded = unfold(home.positions, numbers, lattice, pbc, model.cutoff + skin, layers, real)
                except StructureError as error:
                    raise StructureError(f"Frame {index}: {error}") from error
                held = _padded(unfolded), home, r, lattice
            unfolded, home, *_ = held
            here = r - home.offsets(lattice)
            parts.append(_compiled(model, unfolded, *(jnp.asarray(x, real) for x in (here, lattice, v)), weights))
        potential, convective = (np.asarray(x, np.float64) for x in zip(*parts, strict=True))
    bad = np.flatnonzero(~np.isfinite(potential + convective).all(1))
    if len(bad):
        raise StructureError(f"The model gives no finite flux for frame {bad[0]}: did the simulation explode?")
    return HeatFlux(potential + convective, potential, convective)


def flux(
    model: Any,
    unfolded: Unfolded,
    positions: Float[AnyArray, "atoms 3"],
    cell: Float[AnyArray, "3 3"],
    velocities: Float[AnyArray, "atoms 3"],
    masses: Float[AnyArray, "atoms"],
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """Potential and convective part; pure, for jit, vmap and grad.

    Args:
        model: as of :func:`heat_flux`.
        unfolded: from :func:`unfold`, of which only the lists count.
        positions, cell: Å, at which all pairs within the model's cutoff are still in the lists.
        velocities: any unit of length per time, in which the flux comes out.
        masses: in eV by the square of that unit; ``masses / ase.units.fs**2`` for amu and Å/fs.
    """
    atoms = positions.shape[0]
    # Relative to the middle: the two sums are both as large as distances from the origin, their difference is not.
    positions = positions - positions.mean(0)
    everywhere = positions[unfolded.origin] + jnp.dot(unfolded.images, cell, precision="highest")
    moving = jnp.where(unfolded.graph.atom_mask[:, None], velocities[unfolded.origin], 0.0)

    def energies(r):
        each = model.compute(unfolded.graph.replace(positions=r)).atomic_energies
        if each is None:
            raise ConfigError(
                "This model's `compute` gives no atomic energies (None): energy that flows has to be somewhere."
            )
        return jnp.where(unfolded.inside, each, 0.0)

    each, change = jax.jvp(energies, (everywhere,), (moving,))
    gradient = jax.grad(lambda r: energies(r).sum())(everywhere)
    potential = ((change - (gradient * moving).sum(-1))[:, None] * everywhere).sum(0)
    own = each[:atoms] + 0.5 * masses * (velocities**2).sum(-1)
    return potential, (own[:, None] * velocities).sum(0)


def unfold(
    positions: np.ndarray,
    numbers: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    layers: int,
    dtype: Any = np.float32,
) -> Unfolded:
    """The atoms of a cell with all images that ``layers`` steps of at most ``cutoff`` Å reach; on the host.

    Arguments and errors as of :func:`leignn_jax.neighbors.find_pairs`.
    """
    pairs = find_pairs(positions, cell, pbc, cutoff)
    code = _Code(len(positions), layers * int(np.abs(pairs.shifts).max(initial=0)))
    # Each directed pair as a step from its first atom to an image of its second.
    starts = np.concatenate([pairs.receivers, pairs.senders])
    order = np.argsort(starts, kind="stable")
    ends = np.concatenate([pairs.senders, pairs.receivers])[order]
    steps = np.concatenate([pairs.shifts, -pairs.shifts])[order].astype(np.int64)
    first = np.searchsorted(starts[order], np.arange(len(positions) + 1))

    atom, image = np.arange(len(positions)), np.zeros((len(positions), 3), np.int64)
    known = [code.of(atom, image)]
    for _ in range(layers):
        count = first[atom + 1] - first[atom]
        which = np.repeat(first[atom] - np.cumsum(count) + count, count) + np.arange(count.sum())
        reached = np.unique(code.of(ends[which], np.repeat(image, count, axis=0) + steps[which]))
        known.append(np.setdiff1d(reached, np.concatenate(known), assume_unique=True))
        atom, image = code.read(known[-1])
    everyone = np.concatenate(known)
    origin, images = code.read(everyone)
    hops = np.repeat(np.arange(layers + 1), [len(k) for k in known])

    # Pairs between those farthest out change nothing that is asked for.
    place = np.argsort(everyone)
    mine = np.argsort(origin, kind="stable")
    count = np.bincount(origin, minlength=len(positions))
    begin = np.cumsum(count) - count
    repeats = count[pairs.receivers]
    which = np.repeat(np.arange(len(repeats)), repeats)
    slot = np.arange(len(which)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    receiver = mine[begin[pairs.receivers[which]] + slot]
    wanted = code.of(pairs.senders[which], images[receiver] + pairs.shifts[which])
    found = np.minimum(np.searchsorted(everyone, wanted, sorter=place), len(everyone) - 1)
    sender = place[found]
    kept = (everyone[sender] == wanted) & (np.minimum(hops[receiver], hops[sender]) < layers)
    laid_out = positions[origin] + images @ cell
    none = Pairs(receiver[kept], sender[kept], np.zeros((kept.sum(), 3), np.int32), np.zeros(kept.sum()))
    graph = Graph.from_pairs(laid_out, numbers[origin], np.zeros((3, 3)), np.zeros(3, bool), none, dtype)
    return Unfolded(graph, origin.astype(np.int32), images.astype(dtype), hops == 0)


class _Code:
    """Atoms and images as single whole numbers; ``most`` is the largest component of an image."""

    def __init__(self, atoms: int, most: int):
        # Twice as far: what is looked for may lie one step beyond all that are there.
        self._atoms, self._most, self._base = atoms, 2 * most + 1, 4 * most + 3

    def of(self, atom: np.ndarray, image: np.ndarray) -> np.ndarray:
        shifted = image.astype(np.int64) + self._most
        each = (shifted[:, 0] * self._base + shifted[:, 1]) * self._base + shifted[:, 2]
        return each * self._atoms + atom

    def read(self, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        each, atom = np.divmod(code, self._atoms)
        each, z = np.divmod(each, self._base)
        x, y = np.divmod(each, self._base)
        return atom, np.stack([x, y, z], axis=1) - self._most


@jax.jit
def _compiled(model, unfolded, positions, cell, velocities, masses):
    return flux(model, unfolded, positions, cell, velocities, masses)


def _padded(unfolded: Unfolded) -> Unfolded:
    """Of bucket sizes, so that lists made anew rarely are a new program."""
    graph = unfolded.graph.pad_to_bucket()
    more = graph.shape[0] - len(unfolded.origin)
    return Unfolded(
        graph,
        np.pad(unfolded.origin, (0, more)),
        np.pad(unfolded.images, ((0, more), (0, 0))),
        np.pad(unfolded.inside, (0, more)),
    )


def _far(positions, cell, old_positions, old_cell, skin: float) -> bool:
    """Whether a pair that is in no list may have come closer than the cutoff."""
    if not np.array_equal(cell, old_cell):
        return True
    return bool((((positions - old_positions) ** 2).sum(-1) > (0.5 * skin) ** 2).any())


def _potentials(model: Any) -> list[Potential]:
    """The model, or the parts of a sum, that are potentials."""
    return [one for one in getattr(model, "parts", (model,)) if isinstance(one, Potential)]


def _layers(model: Any, layers: int | None, pbc: np.ndarray) -> int:
    configs = [potential.config for potential in _potentials(model)]
    if any(config.global_nodes for config in configs) and pbc.any():
        raise ConfigError(
            "This potential has global nodes, through which every atom's energy depends on all atoms at no distance: "
            "in a periodic system it has no heat flux. Train one with global_nodes=False."
        )
    known = max((config.layers for config in configs), default=1)
    if isinstance(model, Potential):
        if layers is not None and layers != known:
            raise ConfigError(f"layers: this potential has {known}; leave it out.")
        return known
    if layers is None:
        raise ConfigError(
            "layers: say how many times this model's messages go from atom to atom, 1 for a sum over pairs; only of a "
            "Potential it is known."
        )
    return check_whole("layers", layers, known, _MOST_LAYERS)
