"""Domains: the atoms of one structure divided among devices, and what of them crosses from one to another.

A device computes the energies of its own atoms. Whatever sums over their neighbours needs these too: those that are another
device's are its halo. Its graph has own and halo atoms and all pairs with an own atom in them, so that sums over the
neighbours of own atoms are whole and those of halo atoms, which nobody reads, are not. A pair of two devices is computed
by both, each for its own end; the derivative of the energy by such a pair is the sum of what both find.

Features of the halo are sent once a layer, from each device straight to those that need them. Domains are slabs of equally
many atoms along the longest direction, so that these are the two next to it as long as a slab is thicker than the cutoff.
In a program on all devices (``jax.shard_map``) along the mesh's axis ``DEVICES``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

# The mesh's axis.
DEVICES = "devices"


@struct.dataclass
class Domain:
    """What one device holds of a structure. A pytree.

    atoms: ``[own + halo]`` int32, which atoms of the structure, own ones first; beyond the last atom for padding.
    sends: for each of ``offsets`` ``[size]`` int32, which own atoms the device that many places before needs.
    own: how many atoms are this device's, padding included (static).
    offsets: how many places further on the devices are from which a part of the halo comes (static).
    devices, structure_atoms: in all (static).
    positions: ``[atoms, 3]`` Å of all atoms of the structure, where a graph is made of it.
    """

    atoms: Any
    sends: tuple[Any, ...]
    own: int = struct.field(pytree_node=False)
    offsets: tuple[int, ...] = struct.field(pytree_node=False)
    devices: int = struct.field(pytree_node=False)
    structure_atoms: int = struct.field(pytree_node=False)
    positions: Any = None

    def chosen(self, values: Any) -> Any:
        """Of values of all atoms, ``[atoms, ...]``, those of own and halo atoms; zero for padding."""
        return values.at[self.atoms].get(mode="fill", fill_value=0)

    def around(self, values: Float[Array, "own ..."]) -> Float[Array, "around ..."]:
        """Values of own atoms, and after them those of the halo, ``[own + halo, ...]``, which other devices send."""
        parts = [values]
        for offset, send in zip(self.offsets, self.sends, strict=True):
            part = values.at[send].get(mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True)
            parts.append(from_device(part, offset, self.devices))
        return jnp.concatenate(parts)

    def joined(self, values: Float[Array, "around ..."]) -> Float[Array, "atoms ..."]:
        """Values of own and halo atoms summed over all devices, of all atoms and on every device."""
        everywhere = jnp.zeros((self.structure_atoms, *values.shape[1:]), values.dtype)
        return jax.lax.psum(everywhere.at[self.atoms].add(values, mode="drop"), DEVICES)


def from_device(values: Any, offset: int, devices: int) -> Any:
    """On every device what the one ``offset`` places further on has in ``values``; round the end to the first."""
    return jax.lax.ppermute(values, DEVICES, [((e + offset) % devices, e) for e in range(devices)])
