r"""Free-energy differences along a coupling, from samples drawn at several of its values.

A coupling c turns one model into another, ``model_at(c)``. From one and the same samples:

- thermodynamic integration (Kirkwood 1935): F(b) - F(a) = integral from a to b of <dU/dc>_c dc, the averages at the values
  c_k and a cubic spline through them;
- MBAR (Shirts and Chodera 2008): F_k = -kT log Z_k of all samples together, which needs frames that overlap.

Both leave out what velocities add, which is the same on both sides. At constant pressure they are Gibbs free energies.
Errors are those of blocks of frames, longer than the frames remember; they do not know what the spline misses, nor what
has not been sampled.

>>> model_at = lambda c: HarmonicWells(1.0 + c, centers)
>>> couplings = np.linspace(0.0, 1.0, 5)
>>> samples = [run.sample(model_at(c), ensemble, system, state, 2.0, 20_000, every=50, discard=2_000) for c in couplings]
>>> run.thermodynamic_integration(model_at, couplings, samples).value, run.free_energies(samples).value[-1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.arguments import check_array, check_model
from leignn_jax.differentiable.reweighting import Sample, in_common, joined, mbar, reweighted
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import EnergyModel, State, System, evaluate
from leignn_jax.simulation.model_sums import without_constants

# Blocks of the frames of every sample, of which one at a time is left out.
_BLOCKS = 10


class Integrated(NamedTuple):
    """A free-energy difference by thermodynamic integration.

    value: eV, from the first coupling to the last. error: its standard error, eV; its upper
    bound where all couplings are averages over one pooled sample, whose slopes scatter together.
    slopes: ``[couplings]`` eV, the averages of dU/dc. slope_errors: their standard errors.
    """

    value: Any
    error: Any
    slopes: Any
    slope_errors: Any


class FreeEnergies(NamedTuple):
    """Free energies by MBAR: ``value`` [samples] eV less that of the first sample, ``error`` [samples] their standard
    errors."""

    value: np.ndarray
    error: np.ndarray


def thermodynamic_integration(
    model_at: Callable[[Any], EnergyModel], couplings: Any, samples: Sequence[Sample]
) -> Integrated:
    """F(last coupling) - F(first); differentiable by what ``model_at`` is made of, as averages of ``reweighted`` are.

    Args:
        model_at: the model of a coupling, a number for JAX to differentiate by. Constants of potentials are left out.
        couplings: ``[couplings]``, two or more, growing. Between two the slope is a straight line, else a cubic spline.
        samples: one of each coupling, from :func:`leignn_jax.differentiable.sample`, drawn with ``model_at`` of it; or
            pooled ones, which are weighted.

    Raises:
        ConfigError: couplings that do not grow, or not one sample each; no model; frames of several temperatures or
            pressures in one sample.
    """
    at = check_array("couplings", couplings, (None,)).astype(float)
    if not callable(model_at):
        raise ConfigError(f"model_at must be a function from a coupling to a model, not {type(model_at).__name__}.")
    if len(at) < 2 or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise ConfigError(f"couplings must be two numbers or more that grow, not {at.tolist()}.")
    if isinstance(samples, Sample) or not isinstance(samples, Sequence) or len(samples) != len(at):
        count = len(samples) if isinstance(samples, Sequence) else 1
        raise ConfigError(f"samples: give one for each of {len(at)} couplings, not {count}.")
    check_model(model_at(at[0]), "model_at of the first coupling")
    for one in samples:
        for name in ("kT", "pressure"):
            in_common(one, name)

    @jax.jit
    def slope_of(coupling, sample):
        def slope(system: System, state: State):
            def energy(coupling):
                model = without_constants(model_at(coupling))
                return evaluate(model, system, state.neighbors, state.positions, state.cell)[0]

            return jax.jvp(energy, (coupling,), (jnp.ones_like(coupling),))[1]

        return reweighted(model_at(coupling), sample, slope)

    dtype = samples[0].energy.dtype
    found = [slope_of(jnp.asarray(c, dtype), one) for c, one in zip(at, samples, strict=True)]
    slopes, errors = jnp.stack([one.value for one in found]), jnp.stack([one.error for one in found])
    weights = jnp.asarray(spline_weights(at), dtype)
    # Slopes of one sample go up and down together.
    alike = all(one is samples[0] for one in samples)
    error = jnp.abs(weights * errors).sum() if alike else jnp.sqrt(((weights * errors) ** 2).sum())
    return Integrated((weights * slopes).sum(), error, slopes, errors)


def spline_weights(at: np.ndarray) -> np.ndarray:
    """``[points]`` by which values at ``at`` count in the integral of the cubic spline (not-a-knot) through them."""
    from scipy.interpolate import CubicSpline

    return CubicSpline(at, np.eye(len(at))).integrate(at[0], at[-1])


def free_energies(samples: Sequence[Sample]) -> FreeEnergies:
    """Free energies of the models of these samples, by MBAR; on the host.

    Errors are by leaving out one block of the frames of every sample at a time.

    Args:
        samples: of the same atoms at one temperature, from :func:`leignn_jax.differentiable.sample`; neighbours must have
            frames in common.

    Raises:
        ConfigError, SimulationError: as :func:`leignn_jax.differentiable.pooled`; samples of several temperatures.
    """
    _, reduced = joined(samples)
    kT = np.array([float(np.asarray(one.kT).flat[0]) for one in samples])
    if not np.allclose(kT, kT[0], rtol=1e-6):
        raise ConfigError("free_energies: the samples are of several temperatures; give those of one.")
    frames = [one.energy.shape[0] for one in samples]
    block = np.concatenate([np.arange(n) * min(_BLOCKS, n) // n for n in frames])
    owner = np.repeat(np.arange(len(samples)), frames)

    def solved(kept, begin=None):
        counts = np.bincount(owner[kept], minlength=len(samples)).astype(float) * reduced.shape[2]
        return mbar(reduced[:, kept].reshape(len(samples), -1), counts, begin)

    free = solved(np.ones(len(block), bool))
    blocks = block.max() + 1
    without = np.stack([solved(block != b, free) for b in range(blocks)])
    error = np.sqrt((blocks - 1) / blocks * ((without - without.mean(0)) ** 2).sum(0))
    return FreeEnergies(kT[0] * free, kT[0] * error)
