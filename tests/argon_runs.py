"""A crystal of four argon atoms, and short simulations of it."""

from typing import Any

import ase.build
import numpy as np

from leignn_jax.simulation.engine import simulate
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Langevin, NoseHoover
from leignn_jax.simulation.simple_models import LennardJones

ARGON = LennardJones(cutoff=6.0)
SETTINGS: dict[str, Any] = {
    "steps": 60,
    "timestep": 4.0,
    "temperature": 40.0,
    "save_every": 20,
    "log_every": 10,
    "dtype": "float64",
    "seed": 3,
}
ENSEMBLES = {
    "nve": NVE(),
    "nose-hoover": NoseHoover(40.0),
    "langevin": Langevin(40.0),
    "csvr": CSVR(40.0),
    "npt": CellRescaling(40.0, 0.1, compressibility=0.5, shape="triclinic", every=5),
}


def argon():
    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.rattle(0.05, seed=0)
    return atoms


def run(ensemble="nve", atoms=None, model=ARGON, **more):
    ensemble = ENSEMBLES.get(ensemble, ensemble) if isinstance(ensemble, str) else ensemble
    return simulate(model, argon() if atoms is None else atoms, ensemble, **SETTINGS | more)


def same_atoms(a, b, tolerance=0.0):
    for one, other in ((a.positions, b.positions), (a.get_velocities(), b.get_velocities()), (a.cell, b.cell)):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def same_frames(a, b, tolerance=0.0):
    """The frames at steps that both have."""
    steps = np.intersect1d(a.step, b.step)
    rows = np.isin(a.step, steps), np.isin(b.step, steps)
    for name in ("positions", "velocities", "forces", "cell", "energy", "time"):
        one, other = (np.asarray(getattr(x, name))[r] for x, r in zip((a, b), rows, strict=True))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)
    return steps
