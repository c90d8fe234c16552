"""Elastic constants from exact derivatives of stress and forces by strain.

With sigma the stress, F the forces on the atoms, e a strain that everything follows, K the second derivatives of the
energy by the positions and V the volume,

    C = d sigma / d e  -  (1 / V) (dF / de)^T K^+ (dF / de):

the first term is the answer with atoms fixed in the strained frame ("clamped"), the second what they give back by moving
to where forces vanish again. K^+ leaves out translations. At zero stress C is the second derivative of the energy by
strain; under a pressure it is the stiffness between stress and strain (Wallace's), which is what a measured stress-strain
curve shows.

The energy of a model with the tips of cones at symmetric sites (see :mod:`leignn_jax.properties.second_derivatives`) has
no useful derivatives there; ``strain`` gives central differences of the stress instead, atoms relaxed at each strain.

Components are Voigt's: xx, yy, zz, yz, xz, xy, shear strains counted twice.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from leignn_jax.arguments import check_array, check_atoms, check_dtype, check_model, check_number
from leignn_jax.cells import transformed
from leignn_jax.errors import ConfigError, StructureError
from leignn_jax.graph import Graph
from leignn_jax.properties.relax import relax
from leignn_jax.properties.second_derivatives import check_invariant, second_derivatives
from leignn_jax.simulation.dynamics import GIGAPASCAL, EnergyModel
from leignn_jax.simulation.model_sums import check_structures_of

log = logging.getLogger("leignn_jax")

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# eV/Å and GPa above which a structure is not what elastic constants are asked of.
_LARGE_FORCE, _LARGE_STRESS = 0.02, 0.5
# Part of the force made by a strain that may be left on atoms relaxed under it, and eV/Å of numerical noise.
_REST, _LEAST_FORCE = 1e-3, 1e-7
# eV/Å with which every structure has arrived.
_ANY = 1e30


class Moduli(NamedTuple):
    """Moduli of a polycrystal, GPa each but for Poisson's ratio: Voigt's bounds, Reuss's, and Hill's means of both.

    Hill, Proc. Phys. Soc. A 65, 349 (1952). ``young`` and ``poisson`` are those of Hill's bulk and shear modulus.
    """

    bulk_voigt: float
    bulk_reuss: float
    bulk: float
    shear_voigt: float
    shear_reuss: float
    shear: float
    young: float
    poisson: float


class Elasticity(NamedTuple):
    """Elastic constants of a crystal.

    constants: ``[6, 6]`` GPa, atoms relaxed under strain. clamped: the same with atoms that follow the strain.
    stress: ``[6]`` GPa, ASE's sign, of the structure as it was given. max_force: eV/Å.
    """

    constants: np.ndarray
    clamped: np.ndarray
    stress: np.ndarray
    max_force: float

    @property
    def moduli(self) -> Moduli:
        """See :func:`moduli`."""
        return moduli(self.constants)

    @property
    def stable(self) -> bool:
        """Whether every small strain costs energy (all eigenvalues positive; Born's criterion, at zero stress)."""
        return bool(np.linalg.eigvalsh(0.5 * (self.constants + self.constants.T)).min() > 0)


def elastic_constants(
    potential: EnergyModel, atoms: ase.Atoms, *, strain: float | None = None, dtype: str = "float64"
) -> Elasticity:
    """Elastic constants of a relaxed crystal; no strain to choose unless asked for.

    Args:
        potential: a :class:`leignn_jax.Potential` or another EnergyModel.
        atoms: periodic in three directions, without constraints, atoms and cell relaxed
            (``leignn_jax.relax(..., cell="full")``); a warning is logged where they are not.
        strain: amount of each strain, both ways, for central differences of the stress (0.005, say); None is exact
            derivatives.
        dtype: "float64" or "float32".

    Raises:
        ConfigError: a structure that is not periodic or has constraints, a wrong dtype; a model whose energy depends on
            where the structure is.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`; derivatives that are not finite.
    """
    check_model(potential)
    check_invariant(potential)
    if not check_atoms(atoms).pbc.all():
        raise ConfigError("Elastic constants need a structure that is periodic in three directions.")
    if atoms.constraints:
        raise ConfigError(
            "Elastic constants with held atoms are not defined: remove constraints (atoms.set_constraint())."
        )
    check_dtype(dtype)
    check_structures_of(potential, [atoms])
    graph = Graph.from_ase(atoms, potential.cutoff, np.dtype(dtype))
    if strain is not None and not 0 < check_number("strain", strain) < 0.2:
        raise ConfigError(f"strain must be between 0 and 0.2, not {strain!r}.")
    with jax.enable_x64(dtype == "float64"):
        if strain is None:
            found = jax.device_get(_all(potential, graph))
        else:
            found = _by_strains(potential, atoms, strain, dtype)
    constants, clamped, stress, forces = (np.asarray(x, np.float64) for x in found)
    if not np.isfinite(constants).all():
        raise StructureError(
            "The elastic constants are no finite numbers: the structure is far from anything the potential knows, or one "
            "of its modes is free to move."
        )
    largest = float(np.sqrt((forces**2).sum(-1).max()))
    if largest > _LARGE_FORCE or np.abs(stress).max() > _LARGE_STRESS:
        log.warning(
            "The structure is not relaxed (force %.3g eV/Å, stress %.3g GPa): its elastic constants are those of a point "
            "that is no minimum.",
            largest,
            np.abs(stress).max(),
        )
    return Elasticity(constants, clamped, stress, largest)


def elastic_tensor(model: EnergyModel, graph: Graph, *, relaxed: bool = True) -> Float[Array, "6 6"]:
    """Elastic constants [GPa] of the one structure of a graph without padding, atoms relaxed or clamped.

    Pure: runs under jit and vmap and can be differentiated by the model's parameters, with positions and cell held (the
    minimum's own movement with the parameters is not part of that derivative).
    """
    clamped, forces = _strain_derivatives(model, graph)
    return _relaxed(model, graph, clamped, forces) if relaxed else clamped


def moduli(constants) -> Moduli:
    """Moduli of a polycrystal from elastic constants ``[6, 6]`` GPa.

    Raises:
        ConfigError: constants that are no finite ``[6, 6]``, or can't be inverted.
    """
    c = np.asarray(check_array("constants", constants, (6, 6)), np.float64)
    if not np.isfinite(c).all():
        raise ConfigError("constants: not all of them are finite numbers.")
    c = 0.5 * (c + c.T)
    try:
        s = np.linalg.inv(c)
    except np.linalg.LinAlgError:
        raise ConfigError("These elastic constants can't be inverted: some strain costs nothing.") from None
    straight, mixed, shear = (lambda m: m[0, 0] + m[1, 1] + m[2, 2]), (lambda m: m[0, 1] + m[0, 2] + m[1, 2]), np.trace
    bulk_voigt = (straight(c) + 2 * mixed(c)) / 9
    shear_voigt = (straight(c) - mixed(c) + 3 * shear(c[3:, 3:])) / 15
    bulk_reuss = 1 / (straight(s) + 2 * mixed(s))
    shear_reuss = 15 / (4 * straight(s) - 4 * mixed(s) + 3 * shear(s[3:, 3:]))
    bulk, rigid = 0.5 * (bulk_voigt + bulk_reuss), 0.5 * (shear_voigt + shear_reuss)
    young = 9 * bulk * rigid / (3 * bulk + rigid)
    poisson = (3 * bulk - 2 * rigid) / (2 * (3 * bulk + rigid))
    numbers = (bulk_voigt, bulk_reuss, bulk, shear_voigt, shear_reuss, rigid, young, poisson)
    return Moduli(*(float(x) for x in numbers))


def _strain_derivatives(model: EnergyModel, graph: Graph):
    """Clamped constants [6, 6] GPa and derivatives of the forces by the six strains [6, atoms, 3] eV/Å."""
    positions, cell = jnp.asarray(graph.positions), jnp.asarray(graph.cell)
    strains = jnp.asarray(_strains(), positions.dtype)

    def answer(amounts):
        deform = jnp.eye(3, dtype=positions.dtype) + jnp.einsum("n,nij->ij", amounts, strains)
        out = model.compute(graph.replace(positions=transformed(positions, deform), cell=transformed(cell, deform)))
        return voigt(out.stress[0]) * GIGAPASCAL, out.forces

    stress, forces = jax.jacfwd(answer)(jnp.zeros(6, positions.dtype))
    return stress, jnp.moveaxis(forces, -1, 0)


def _relaxed(model: EnergyModel, graph: Graph, clamped, forces):
    count = graph.positions.shape[0]
    size = 3 * count
    hessian = second_derivatives(model, graph, np.arange(count)).reshape(size, size)
    hessian = 0.5 * (hessian + hessian.T)
    # Translations get the stiffness of an average motion: the forces of a strain have no part along them.
    shift = jnp.tile(jnp.eye(3, dtype=hessian.dtype), (count, 1)) / np.sqrt(count)
    stiffness = jnp.trace(hessian) / size
    stiffness = jnp.where(stiffness == 0, 1.0, stiffness)
    push = forces.reshape(6, size)
    onto_shift = jnp.dot(shift, shift.T, precision="highest")
    push = push - jnp.dot(push, onto_shift, precision="highest")
    moves = jnp.linalg.solve(hessian + stiffness * onto_shift, push.T)
    volume = jnp.abs(jnp.linalg.det(jnp.asarray(graph.cell)[0]))
    return clamped - GIGAPASCAL * jnp.einsum("as,sb->ab", push, moves, precision="highest") / volume


@jax.jit
def _all(model: EnergyModel, graph: Graph):
    clamped, forces = _strain_derivatives(model, graph)
    out = model.compute(graph)
    return _relaxed(model, graph, clamped, forces), clamped, voigt(out.stress[0]) * GIGAPASCAL, out.forces


def _by_strains(potential: EnergyModel, atoms: ase.Atoms, strain: float, dtype: str):
    """As :func:`_all`, from structures strained both ways, with atoms as they are and relaxed."""
    strained = [atoms.copy()]
    for one in _strains():
        for sign in (1, -1):
            strained.append(atoms.copy())
            strained[-1].set_cell(atoms.cell.array @ (np.eye(3) + sign * strain * one), scale_atoms=True)
    clamped_ones = relax(potential, strained, steps=0, max_force=_ANY, dtype=dtype, progress=False)
    pushes = max(float(np.abs(a.get_forces()).max()) for a in clamped_ones.atoms)
    goal = max(_REST * pushes, _LEAST_FORCE)
    at_rest = relax(potential, strained, max_force=goal, dtype=dtype, steps=1000, progress=False)
    if clamped_ones.signal[0] or at_rest.signal[0]:
        raise KeyboardInterrupt

    def differences(answer):
        stress = np.array([a.get_stress() for a in answer.atoms]) * GIGAPASCAL
        return ((stress[1::2] - stress[2::2]) / (2 * strain)).T, stress[0], answer.atoms[0].get_forces()

    clamped, stress, forces = differences(clamped_ones)
    return differences(at_rest)[0], clamped, stress, forces


def voigt(tensor: Any) -> Float[Array, "6"]:
    """The six components of a symmetric ``[3, 3]`` tensor in Voigt's order, as they are."""
    return jnp.stack([tensor[i, j] for i, j in _VOIGT])


def _strains() -> np.ndarray:
    """``[6, 3, 3]``, the strain of each component, shear ones with halves off the diagonal."""
    strains = np.zeros((6, 3, 3))
    for n, (i, j) in enumerate(_VOIGT):
        strains[n, i, j] += 0.5
        strains[n, j, i] += 0.5
    return strains
