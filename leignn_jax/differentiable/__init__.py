"""Simulations to differentiate through: the engine's own steps as pure functions of a fixed length.

>>> run = leignn.differentiable
>>> ensemble = leignn.simulation.ensembles.Langevin(temperature=300.0)
>>> system, state = run.start(potential, atoms, ensemble, temperature=300.0, seed=0)
>>> def loss(potential, rollout):
...     seen = rollout(potential, ensemble, system, state, 1.0, 100, observe=run.observables.pressure, every=10).seen
...     return ((seen - 0.1) ** 2).mean()
>>> value, gradient = run.value_and_grad(loss, mode="remat")(potential)

Averages in equilibrium need no way back through time:

>>> sample = run.sample(potential, ensemble, system, state, 1.0, 10_000, every=20, discard=2_000)
>>> pressure = lambda potential: run.reweighted(potential, sample, run.observables.pressure).value
>>> slope = jax.grad(pressure)(potential)

Everything that stands in front of the number of steps can be differentiated by: the potential's parameters, the
ensemble's temperature and pressure, masses, and initial positions, velocities and cell. What to expect of such gradients
is in :mod:`leignn_jax.differentiable.rollout`.
"""

from leignn_jax.differentiable import observables
from leignn_jax.differentiable.costs import Estimate, estimate
from leignn_jax.differentiable.free_energy import (
    FreeEnergies,
    Integrated,
    free_energies,
    thermodynamic_integration,
)
from leignn_jax.differentiable.gradients import MODES, value_and_grad
from leignn_jax.differentiable.minima import Minimum, relaxed
from leignn_jax.differentiable.replicas import MeanGradient, each_replica, mean_value_and_grad
from leignn_jax.differentiable.reweighting import Reweighted, Sample, pooled, reweighted, sample
from leignn_jax.differentiable.rollout import Rollout, rollout, start
from leignn_jax.differentiable.trouble import Trouble, check

__all__ = [
    "MODES",
    "Estimate",
    "FreeEnergies",
    "Integrated",
    "MeanGradient",
    "Minimum",
    "Reweighted",
    "Rollout",
    "Sample",
    "Trouble",
    "check",
    "each_replica",
    "estimate",
    "free_energies",
    "mean_value_and_grad",
    "observables",
    "pooled",
    "relaxed",
    "reweighted",
    "rollout",
    "sample",
    "start",
    "thermodynamic_integration",
    "value_and_grad",
]
