"""Second derivatives of the energy, exact or over small displacements, and whether they say anything.

A model that takes norms of vectors which vanish at symmetric sites (LEIGNN's do, in diamond or fcc) has an energy with the
tip of a cone there, rounded off over about 1e-4 Å: its second derivatives at that point are exact, huge and of no use.
Where force constants from displacements of 0.01 Å tell otherwise a warning is logged; ``displacement`` then gives central
differences over what atoms really move.
"""

from __future__ import annotations

import logging
from typing import Any

import ase
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from leignn_jax.arguments import check_dtype, check_model, check_number
from leignn_jax.errors import ConfigError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.mapping import derivatives_by, map_in_batches
from leignn_jax.simulation.dynamics import EnergyModel
from leignn_jax.simulation.model_sums import check_structures_of

log = logging.getLogger("leignn_jax")

# THz of the angular frequency (eV/Å^2/amu)^1/2, and cm^-1 per THz.
TERAHERTZ = float(1e3 * ase.units.fs / (2 * np.pi))
INVERSE_CM = float(1e12 / (100 * ase.units._c))

# Directions differentiated side by side.
_TOGETHER = 16
# Å by which atoms are displaced to see whether the curvature is that of a kink, and how much it may differ.
_CHECK_STEP, _KINK = 0.01, 0.25


def second_derivatives(
    model: EnergyModel, graph: Graph, atoms: Any, displacement: Any = None
) -> Float[Array, "chosen 3 atoms 3"]:
    """Second derivatives of the energy by the positions of these atoms ``[chosen]`` and of all, eV/Å^2; pure.

    displacement: Å, for central differences of forces; None is exact derivatives.
    """
    positions = jnp.asarray(graph.positions)
    columns = (jnp.asarray(atoms)[:, None] * 3 + jnp.arange(3)).ravel()

    def forces(positions):
        return model.compute(graph.replace(positions=positions)).forces

    def difference(place):
        moved = (jnp.arange(positions.size) == place).reshape(positions.shape) * displacement
        return (forces(positions - moved) - forces(positions + moved)) / (2 * displacement)

    if displacement is None:
        rows = -derivatives_by(forces, positions, columns, _TOGETHER)
    else:
        rows = map_in_batches(difference, columns, _TOGETHER)
    return rows.reshape(-1, 3, *positions.shape)


def signed_root(squares: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Square roots, of negative numbers minus the root of what they are below zero; derivative 0 at 0."""
    size = jnp.abs(squares)
    # Asked so that what is not a number stays none.
    zero = size == 0
    return jnp.where(zero, 0.0, jnp.sign(squares) * jnp.sqrt(jnp.where(zero, 1.0, size)))


@jax.jit
def checked_derivatives(model: EnergyModel, graph: Graph, atoms, checked, displacement):
    """Second derivatives of these atoms, and central differences of those at places ``checked`` to compare with."""
    return (
        second_derivatives(model, graph, atoms, displacement),
        second_derivatives(model, graph, atoms[checked], _CHECK_STEP),
    )


def first_of_elements(numbers: np.ndarray) -> np.ndarray:
    """The place of the first atom of each element: a kink is at sites, and one element's are often alike."""
    return np.unique(numbers, return_index=True)[1]


def check_smooth(derivatives, differences, atoms, checked, displacement: float | None) -> None:
    """Warn where the exact curvature at a point says nothing of the energy around it, of one of the atoms ``checked``."""
    if displacement is not None:
        return
    for place, rows in zip(checked, np.asarray(differences), strict=True):
        atom = int(atoms[place])
        exact, around = np.asarray(derivatives)[place, :, atom], rows[:, atom]
        if np.abs(exact - around).max() > _KINK * np.abs(around).max():
            log.warning(
                "The energy has a kink here: atom %d feels a spring of %.3g eV/Å^2, but over %.2g Å one of %.3g. "
                "Frequencies are those of the tip; displacement=0.05 gives those of the motion around it.",
                atom,
                np.abs(exact).max(),
                _CHECK_STEP,
                np.abs(around).max(),
            )
            return


def check_invariant(model: EnergyModel) -> None:
    """ConfigError where the energy depends on where a structure is, of which no crystal has waves or elastic constants."""
    if not getattr(model, "conserves_momentum", True):
        raise ConfigError(
            "The model's energy depends on where the structure is (conserves_momentum is False): phonons and elastic "
            "constants are not defined. Leave out the part that holds or biases atoms."
        )


def check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise StructureError(
            "The second derivatives of the energy are no finite numbers: the structure is far from anything the potential "
            "knows, or its parameters are damaged."
        )


def graph_of(potential: EnergyModel, atoms: ase.Atoms, dtype: str) -> Graph:
    check_model(potential)
    check_dtype(dtype)
    check_structures_of(potential, [atoms])
    return Graph.from_ase(atoms, potential.cutoff, np.dtype(dtype))


def check_displacement(displacement: Any) -> None:
    """ConfigError where it is neither None nor a length in Å."""
    if displacement is not None:
        check_number("displacement", displacement, positive=True, most=1)
