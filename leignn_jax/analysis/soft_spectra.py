"""The vibrational density of states as a function that gradients pass through, for velocities along a rollout.

>>> seen = rollout(model, ensemble, system, state, 1.0, 2000, observe=observables.velocities, every=2).seen
>>> dos = smooth_density_of_states(seen[:, 0], system.masses[0], 2.0, lags=500)
>>> (dos * wavenumbers(500, 2.0, 4)).sum() / dos.sum()

Gradients of it are gradients of a trajectory: see :mod:`leignn_jax.differentiable.rollout` on how far they reach.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from leignn_jax.analysis.correlation import by_fft
from leignn_jax.analysis.spectra import MOST_PADDING, cosine_transform, lag_window, wavenumbers
from leignn_jax.analysis.trajectory import check_timestep
from leignn_jax.arguments import check_whole
from leignn_jax.errors import ConfigError, DataError
from leignn_jax.pair_ops import AnyArray


def smooth_density_of_states(
    velocities: Float[AnyArray, "frames atoms 3"],
    masses: Float[AnyArray, "atoms"],
    timestep: float,
    *,
    lags: int,
    window: str = "hann",
    padding: int = 4,
    integral: float | None = None,
) -> Float[Array, "frequencies"]:
    """The total of :func:`leignn_jax.analysis.vibrational_density_of_states`, states per cm^-1; pure, for jit, vmap, grad.

    Its wavenumbers are :func:`leignn_jax.analysis.spectra.wavenumbers` of lags, timestep and padding.

    Args:
        velocities: Å/fs, zero for padding.
        masses: amu.
        timestep: fs between frames.
        lags: of the autocorrelation, from 2 to the number of frames; half of these is a good choice.
        window, padding: as there.
        integral: over wavenumber; None is three times the number of atoms.

    Raises:
        ConfigError: lags, window or padding out of range. DataError: one frame only, or another shape.
    """
    if velocities.ndim != 3 or velocities.shape[2] != 3 or len(velocities) < 2:
        raise DataError(
            f"The velocities must be [frames, atoms, 3] with 2 frames or more, not {list(velocities.shape)}; take one "
            "replica, or jax.vmap."
        )
    frames, atoms, _ = velocities.shape
    if masses.shape != (atoms,):
        raise DataError(f"The masses must be [{atoms}], one for each atom, not {list(masses.shape)}.")
    if check_whole("lags", lags, 2) > frames:
        raise ConfigError(f"lags = {lags} is more than there are frames ({frames}): take fewer, or half of the frames.")
    padding = check_whole("padding", padding, 1, MOST_PADDING)
    weighted = (velocities * jnp.sqrt(masses)[:, None]).reshape(frames, 3 * atoms)
    windowed = by_fft(weighted, lags, jnp) * lag_window(window, lags)
    spectrum = cosine_transform(windowed.astype(weighted.dtype), padding, jnp)
    step = wavenumbers(lags, check_timestep(timestep), padding)[1]
    area = step * (spectrum.sum() - 0.5 * (spectrum[0] + spectrum[-1]))
    return spectrum * ((3 * atoms if integral is None else integral) / area)
