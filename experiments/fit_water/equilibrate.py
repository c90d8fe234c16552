"""The structure that the fit and its judge start from: the end of 2 ps at 300 K with the bundled potential.

python experiments/fit_water/equilibrate.py               # water.xyz here; about 3 minutes on two CPU cores
"""

from pathlib import Path

import ase
import ase.io
import numpy as np

import leignn_jax as leignn
from leignn_jax.data import read_frames

HERE = Path(__file__).resolve().parent
# amu in water.xyz: averages of classical nuclei do not depend on masses, and 1 fs is short enough for heavy hydrogen.
HYDROGEN = 4.0
DATA = HERE.parents[2] / "shared" / "data"


def main() -> None:
    """Simulate and write."""
    atoms = read_frames(DATA / "water" / "train.extxyz.xz")[-1].copy()
    atoms.set_velocities(np.zeros((len(atoms), 3)))
    potential = leignn.load_potential("water")
    result = leignn.simulate(potential, atoms, "langevin", steps=4000, timestep=0.5, temperature=300.0, seed=1)
    end = result.atoms
    bare = ase.Atoms(end.get_chemical_symbols(), end.get_positions(wrap=True), cell=end.cell, pbc=True)
    bare.set_masses(np.where(bare.numbers == 1, HYDROGEN, bare.get_masses()))
    ase.io.write(HERE / "water.xyz", bare, format="extxyz", columns=["symbols", "positions", "masses"])
    print(result.summary)


if __name__ == "__main__":
    main()
