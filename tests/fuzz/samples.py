"""A small potential and a structure for it, which many targets break or use."""

from __future__ import annotations

import functools

import ase
import ase.build
import jax


@functools.cache
def potential():
    """An untrained one, small, with walls and metadata."""
    import leignn_jax as leignn

    config = leignn.LEIGNNConfig(
        elements=("Si", "H"),
        features=4,
        layers=1,
        num_radial=4,
        cutoff=3.0,
        repulsion=True,
        global_nodes=False,
        norm_floor=1e-2,
    )
    made = leignn.Potential.create(
        config,
        jax.random.key(0),
        reference_energies={"Si": -5.0, "H": -1.0},
        scale=0.1,
        metadata={"data": "none", "frames": 3},
    )
    return made.with_walls({("Si", "Si"): 1.5})


@functools.cache
def silicon() -> ase.Atoms:
    """Eight atoms, rattled."""
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms
