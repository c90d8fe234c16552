"""The hook for jax-md: neighbour lists and an energy function as its integrators and minimizers want them.

>>> from jax_md import simulate, space
>>> neighbor_fn, energy_fn = leignn.neighbor_list(potential, atoms.numbers, box)
>>> _, shift = space.periodic_general(box, fractional_coordinates=False)
>>> neighbors = neighbor_fn.allocate(positions)
>>> init, apply = simulate.nve(energy_fn, shift, dt)
>>> state = init(key, positions, kT, mass=masses, neighbor=neighbors)
>>> neighbors = neighbors.update(state.position)
>>> state = apply(state, neighbor=neighbors)

A box is jax-md's: a number, three lengths, or a matrix whose *columns* are lattice vectors. All images within the cutoff
count, in cells of any size and shape. Positions may be wrapped or not: an atom that jumps by a lattice vector since the
list was made is put back before its list is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import check_array, check_number, check_whole
from leignn_jax.cells import inverse, transformed
from leignn_jax.device_neighbors import NeighborList, allocate, lattice_of, update
from leignn_jax.errors import ConfigError
from leignn_jax.list_sizes import grown
from leignn_jax.models.config import did_you_mean
from leignn_jax.potential import Potential, check_potential

# What jax-md's integrators hand on to energy functions besides what is used here.
_OF_INTEGRATORS = ("kT", "dt", "t", "pressure", "mass")


class NeighborListFns(NamedTuple):
    """``allocate(R, extra_capacity=0, box=None)`` on the host, ``update(R, neighbors, box=None)`` under jit."""

    allocate: Callable[..., Neighbors]
    update: Callable[..., Neighbors]


@struct.dataclass
class Neighbors:
    """A neighbour list with the face of jax-md's. A pytree."""

    list: NeighborList
    fractional: bool = struct.field(pytree_node=False, default=False)

    def update(self, R, box=None, **unused) -> Neighbors:
        """The list for these positions, renewed where needed; under jit."""
        _check_names(unused)
        cell = self.list.cell if box is None else cell_of(box, self.list.positions.dtype)
        real = _near(self, _real(self, R, cell), cell)
        return self.replace(list=update(self.list, real, cell))

    @property
    def did_buffer_overflow(self):
        """True where the list is too small: allocate a new one and repeat from the state before."""
        return self.list.overflow != 0

    @property
    def idx(self):
        """``[atoms, neighbors]`` int32 in jax-md's dense form, the number of atoms where there is none."""
        lists = self.list.lists
        return jnp.where(lists.neighbor_signs == 0, self.list.numbers.shape[0], lists.neighbors)

    @property
    def reference_position(self):
        """``[atoms, 3]`` Å, where the list was made."""
        return self.list.positions


def neighbor_list(
    potential: Potential,
    numbers,
    box=None,
    *,
    pbc=True,
    fractional_coordinates: bool = False,
    skin: float = 0.5,
) -> tuple[NeighborListFns, Callable[..., Any]]:
    """``(neighbor_fn, energy_fn)`` for jax-md, like its own ``energy.*_neighbor_list``.

    ``energy_fn(R, neighbor, params=None, box=None, perturbation=None)`` gives the energy in eV, less the constant
    reference energies; ``params`` replaces the potential's parameters and may be traced. With fractional coordinates
    its gradient by R is in real space, as jax-md's integrators expect.

    Args:
        potential: the interatomic potential.
        numbers: ``[atoms]`` atomic numbers.
        box: Å, in jax-md's form; None for a molecule in open space.
        pbc: which directions are periodic, where there is a box.
        fractional_coordinates: R in units of the box.
        skin: Å (``dr_threshold`` of jax-md), by which lists reach beyond the cutoff.

    Raises:
        ConfigError: fractional coordinates without a box.
        ElementError: an element that the potential has not seen.
    """
    check_potential(potential)
    check_number("skin", skin, least=0)
    numbers = check_array("numbers", numbers, (None,), kinds="iu").astype(np.int32)
    potential.check_elements(numbers)
    _check_box(box)
    if np.shape(pbc) not in ((), (3,)):
        raise ConfigError(f"pbc must be True, False or three of them, not of shape {np.shape(pbc)}.")
    network, _ = potential.split_references()
    if box is None and fractional_coordinates:
        raise ConfigError("Fractional coordinates need a box.")
    periodic = np.broadcast_to(np.asarray(pbc, bool) & (box is not None), 3)

    def allocate_list(R, extra_capacity: int = 0, box=box, **unused) -> Neighbors:
        _check_names(unused)
        R = jnp.asarray(check_array("R", R, (len(numbers), 3)))
        R = R.astype(jnp.promote_types(R.dtype, jnp.float32))
        dtype = R.dtype
        cell = jnp.zeros((3, 3), dtype) if box is None else cell_of(box, dtype)
        real = transformed(R, cell) if fractional_coordinates else R
        made = allocate(real, cell, periodic, numbers, network.cutoff, skin, dtype=dtype)
        sizes = made.sizes
        if check_whole("extra_capacity", extra_capacity):
            sizes = sizes._replace(neighbors=sizes.neighbors + extra_capacity)
            sizes = sizes._replace(pairs=sizes.pairs + extra_capacity * len(numbers))
        while sizes != made.sizes or int(made.overflow):
            sizes = grown(sizes, int(made.overflow), len(numbers)) if sizes == made.sizes else sizes
            made = allocate(real, cell, periodic, numbers, network.cutoff, skin, sizes=sizes, dtype=dtype)
        return Neighbors(made, fractional_coordinates)

    def energy_fn(R, neighbor: Neighbors, params=None, box=None, perturbation=None, **unused):
        _check_names(unused)
        cell = neighbor.list.cell if box is None else cell_of(box, R.dtype)
        model = network if params is None else network.replace(params=params)
        graph = neighbor.list.graph(_near(neighbor, _real(neighbor, R, cell), cell), cell)
        if perturbation is not None:
            stretch = cell_of(perturbation, R.dtype)
            graph = graph.replace(
                positions=transformed(graph.positions, stretch), cell=transformed(graph.cell, stretch)
            )
        return model.energy(graph)[0]

    return NeighborListFns(allocate_list, lambda R, neighbor, **kwargs: neighbor.update(R, **kwargs)), energy_fn


def cell_of(box, dtype=None) -> jax.Array:
    """jax-md's box as a cell with rows: ``[3, 3]``."""
    box = jnp.asarray(box, dtype)
    if box.size == 1:
        return jnp.eye(3, dtype=box.dtype) * box.reshape(())
    return jnp.diag(box) if box.ndim == 1 else box.T


def _real(neighbor: Neighbors, R, cell):
    if not neighbor.fractional:
        return R
    from jax_md import space

    # Its derivative by R is the unit matrix: forces of fractional coordinates are in real space.
    return cast("jax.Array", space.transform(cell.T, R))


def _near(neighbor: Neighbors, positions, cell):
    """Positions less the lattice vectors by which they have jumped since the list was made."""
    made = neighbor.list
    lattice, before = lattice_of(made, cell), lattice_of(made, made.cell)
    now, then = transformed(positions, inverse(lattice)), transformed(made.positions, inverse(before))
    jumps = jnp.where(made.pbc, jnp.round(jax.lax.stop_gradient(now - then)), 0.0)
    return positions - transformed(jumps, lattice)


def _check_box(box: Any) -> None:
    if box is None:
        return
    shape = check_array("box", box, (...,)).shape
    if shape not in ((), (1,), (3,), (3, 3)):
        raise ConfigError(f"box must be a number, three lengths or a matrix [3, 3], not of shape {shape}.")


def _check_names(names) -> None:
    for name in names:
        if name not in _OF_INTEGRATORS:
            known = ("neighbor", "params", "box", "perturbation", *_OF_INTEGRATORS)
            raise ConfigError(f"energy_fn: unknown argument {name!r}{did_you_mean(name, known)}")
