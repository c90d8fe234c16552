r"""Minima of a potential as functions of the potential, differentiated without the way that led there.

At a minimum y* (displacements and strain) the generalized forces f(y, model) vanish. A change of the model moves it by

    dy = -H^-1 (df / d model) d model,    H = df / dy,

the Hessian. H is never made: one conjugate-gradient solve with its products, translations, held atoms and rotations of the
cell, or of a whole that turns for nothing, projected out, gives a derivative in either mode. What is computed of the
minimum, its energy, lattice constants, :func:`leignn_jax.properties.elasticity.elastic_tensor` or second derivatives of its
``graph``, then has the derivative with the minimum's own movement in it. H itself is held: n such steps, each from where
the one before ends, have the first n derivatives.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from leignn_jax.arguments import MOST_STEPS, check_choice, check_model, check_number, check_structures, check_whole
from leignn_jax.cells import inverse, transformed
from leignn_jax.errors import ConfigError, SimulationError
from leignn_jax.graph import Graph
from leignn_jax.list_sizes import ListSizes, grown, largest, plan_sizes
from leignn_jax.properties.relax import CONVERGED, Cell, FireState, Goal, fire_chunk, fire_start, strain_scale
from leignn_jax.simulation.dynamics import (
    GIGAPASCAL,
    EnergyModel,
    check_strain,
    evaluate,
    joined_graph,
    make_lists,
    make_system,
    start_positions,
    volume,
)
from leignn_jax.simulation.model_sums import check_structures_of, without_constants

# Fire ends at these, eV/Å and GPa, from where Newton's steps take a minimum to rounding.
_MAX_FORCE, _MAX_STRESS = 1e-3, 1e-3
_NEWTON = 4
_GROWTHS = 20
# A solve is done when its residual has shrunk by this; it takes as many products as there are unknowns, times this.
_SHRINK, _PRODUCTS = 1e-11, 5
_ROUNDING = 1e-13  # eV/Å
# What may be left of forces and, by a length, of stress at a minimum, eV/Å.
_LEFT = 1e-8
# eV/Å^2: curvatures below are the rounding of motions that have none, such as rotations of a molecule.
_FLAT = 1e-6
_KINDS = {False: "the cell is held", "isotropic": "its volume changes", "full": "its shape too"}


class Minimum(NamedTuple):
    """A minimum. A pytree; where it is not valid, positions, cell, energy and graph are NaN.

    positions: ``[atoms, 3]`` Å, from where :func:`leignn_jax.neighbors.near_origin` put the structure. cell: ``[3, 3]`` Å.
    energy: eV, without reference energies. graph: at the minimum, with its pairs.
    max_force: eV/Å, the largest force, or force of the strain, that is left.
    curvature: eV/Å^2, an upper bound of the smallest one. valid: bool.
    """

    positions: Any
    cell: Any
    energy: Any
    graph: Graph
    max_force: Any
    curvature: Any
    valid: Any


def relaxed(
    model: EnergyModel,
    atoms: ase.Atoms,
    *,
    cell: Cell = False,
    pressure: Any = 0.0,
    steps: int = 2000,
    skin: float = 0.5,
    sizes: ListSizes | None = None,
    order: int = 1,
) -> Minimum:
    """The minimum that a structure falls into; pure in the model and the pressure, for jit, vmap, grad and jvp. float64.

    Args:
        model: a potential or another model with forces that are derivatives of its energy.
        atoms: where to start from; constraints hold atoms as in :func:`leignn_jax.properties.relax.relax`.
        cell: False holds it, "isotropic" changes its volume only, "full" its shape too. pressure: GPa.
        steps: of FIRE, at most.
        skin: Å. sizes: of the lists; larger ones where a list was too small.
        order: derivatives up to this one are right, for a solve each; those beyond it are wrong.

    Raises:
        ConfigError: settings that do not fit together, or float64 is off in JAX.
        StructureError, ElementError: as :meth:`leignn_jax.Potential.predict`.
        SimulationError: no minimum was reached, or it is a saddle; under jit or grad, where no error can be raised, the
            minimum is NaN and ``valid`` is False.
    """
    check_model(model, "model")
    if not isinstance(atoms, ase.Atoms):
        raise ConfigError(f"atoms must be one structure, not {type(atoms).__name__}; call relaxed for each.")
    check_choice("cell", cell, _KINDS)
    check_whole("steps", steps, 1, MOST_STEPS)
    check_number("skin", skin, positive=True)
    check_whole("order", order, 1)
    if not jax.config.read("jax_enable_x64"):
        raise ConfigError("Minima need float64, which is off in JAX: call this inside `with jax.enable_x64(True)`.")
    structures = check_structures(atoms)
    check_structures_of(model, structures)
    if not cell and not isinstance(pressure, jax.core.Tracer) and check_number("pressure", pressure):
        raise ConfigError("A pressure needs a cell that may change: cell='isotropic' or 'full'.")
    if cell and not atoms.pbc.all():
        raise ConfigError("cell: only a structure that is periodic in all three directions has one that can relax.")
    model, kind = without_constants(model), np.dtype("float64")
    # On the host, also where the model is traced.
    with jax.ensure_compile_time_eval():
        system = make_system(structures, kind, hold_momentum=False)
        if cell:
            check_strain(system)
        near, _ = start_positions(model, structures, len(atoms))
        positions, vectors = jnp.asarray(near, kind), jnp.asarray(np.asarray(atoms.cell)[None], kind)
        where = (system.numbers, positions, vectors, system.pbc, model.cutoff, skin, kind)
        if sizes is None:
            # Of the structure as it is and of one that is denser by a third, on the way to which no list is too small.
            shrunk = 0.9 if cell else 1.0
            each = [
                plan_sizes(scale * near[0], scale * np.asarray(atoms.cell), atoms.pbc, model.cutoff + skin)
                for scale in (1.0, shrunk)
            ]
            sizes = largest(each, len(atoms))
        lists = make_lists(*where, sizes)
        free = getattr(model, "conserves_momentum", True) and bool((system.mobile > 0).all())
    target = jnp.asarray(pressure, kind) / GIGAPASCAL
    for _ in range(_GROWTHS):
        given = (model, target, system, lists, positions, vectors)
        found, end = _settle(*given, cell=cell, steps=steps, free=free, order=order)
        overflow = end.neighbors.overflow
        if isinstance(overflow, jax.core.Tracer) or not (much := int(np.bitwise_or.reduce(np.asarray(overflow)))):
            break
        lists = make_lists(*where, grown(lists.sizes, much, len(atoms)))
    if not isinstance(found.valid, jax.core.Tracer) and not bool(found.valid):
        raise SimulationError(_why(end, steps, float(found.curvature)))
    return found


@partial(jax.jit, static_argnames=("cell", "steps", "free", "order"))
def _settle(model, pressure, system, lists, positions, vectors, *, cell: Cell, steps: int, free: bool, order: int):
    """The minimum, and where FIRE ended."""
    still, held = jax.lax.stop_gradient((model, pressure))
    goal = Goal(_MAX_FORCE, _MAX_STRESS / GIGAPASCAL, held)
    start, _ = fire_start(still, system, lists, positions, vectors, goal, cell=cell)
    _, end, _ = fire_chunk(still, system, start, goal, jnp.int32(steps), cell=cell, length=steps)
    there = _Surroundings(system, end, cell, free)

    def newton(_, y):
        return jax.tree.map(jnp.subtract, y, there.conjugate(still, held, y, there.slope(still, held, y))[0])

    y = jax.lax.stop_gradient(jax.lax.fori_loop(0, _NEWTON, newton, there.zero()))
    moved, turns = y, there.free_turns(still, held, y)
    for _ in range(order):
        # Zero but for its derivatives, which move the minimum with model and pressure.
        change = there.solve(still, held, y, there.slope(model, pressure, moved), turns)
        moved = jax.tree.map(jnp.subtract, moved, change)
    # Along a random direction curvatures of all motions are met, not only of those that a force points along.
    shaken = there.allowed(jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), y))
    _, curvature, _ = there.conjugate(still, held, y, shaken)
    left = jnp.max(jnp.array([jnp.abs(x).max() for x in there.slope(still, held, y)]))

    positions, vectors = there.at(moved)
    energy, _, _ = evaluate(model, system, end.neighbors, positions, vectors)
    fits, arrived = (end.neighbors.overflow == 0).all(), (end.status == CONVERGED).all()
    valid = fits & arrived & (left < _LEFT) & (curvature > -_FLAT) & jnp.isfinite(energy).all()
    poison = jnp.where(valid, 1.0, jnp.nan)
    positions, vectors, energy = poison * positions, poison * vectors, poison * energy
    graph = joined_graph(system, end.neighbors, positions, vectors)
    return Minimum(positions[0], vectors[0], energy[0], graph, left, curvature, valid), end


def _why(end: FireState, steps: int, curvature: float) -> str:
    if (end.neighbors.overflow != 0).any():
        return (
            "A neighbour list was too small on the way to the minimum: start nearer to it, for example from what "
            "leignn.properties.relax.relax finds, or give larger sizes."
        )
    if (end.status != CONVERGED).any():
        force = float(jnp.abs(end.forces).max())
        return (
            f"No minimum after {int(end.step.max())} steps of at most {steps}: forces of {force:.3g} eV/Å are left. Take "
            "more steps, or start nearer to the minimum."
        )
    if curvature <= -_FLAT:
        return (
            f"Not a minimum but a saddle: along some motion the curvature is {curvature:.3g} eV/Å^2 or less. Move the "
            "atoms a little (atoms.rattle) and start again."
        )
    return "The minimum was not found to rounding: forces may not be derivatives of the energy, or are not smooth."


class _Surroundings:
    """Positions and cell around where FIRE ended, of y = (displacements [1, atoms, 3], strains [1, 3, 3] by a length) Å."""

    def __init__(self, system, end, cell: Cell, free: bool):
        self.system, self.neighbors, self.cell = system, end.neighbors, cell
        self.positions, self.vectors = end.positions, end.cell
        self.length = strain_scale(system, end)[:, None, None]
        self.free = free

    def zero(self):
        return jnp.zeros_like(self.positions), jnp.zeros_like(self.vectors)

    def allowed(self, y):
        """The part of y along which something can move; a projection."""
        u, e = y
        u = u * self.system.mobile
        if self.free:
            u = u - u.mean(1, keepdims=True)
        unit = jnp.eye(3, dtype=e.dtype)
        if not self.cell:
            return u, jnp.zeros_like(e)
        if self.cell == "isotropic":
            return u, jnp.trace(e, axis1=1, axis2=2)[:, None, None] / 3 * unit
        return u, 0.5 * (e + jnp.swapaxes(e, 1, 2))

    def deformation(self, y):
        return jnp.eye(3, dtype=self.vectors.dtype) + self.allowed(y)[1] / self.length

    def at(self, y):
        """Positions and cell."""
        deform = self.deformation(y)
        return transformed(self.positions + self.allowed(y)[0], deform), transformed(self.vectors, deform)

    def slope(self, model, pressure, y):
        """Of energy plus pressure times volume by y."""
        deform = self.deformation(y)
        positions, vectors = self.at(y)
        _, forces, stress = evaluate(model, self.system, self.neighbors, positions, vectors)
        unit = jnp.eye(3, dtype=stress.dtype)
        by_strain = jnp.zeros_like(stress)
        if self.cell:
            back = jnp.swapaxes(inverse(deform), 1, 2)
            by_strain = volume(vectors)[:, None, None] / self.length * transformed(back, stress + pressure * unit)
        return self.allowed((transformed(-forces, jnp.swapaxes(deform, 1, 2)), by_strain))

    def free_turns(self, model, pressure, y):
        """Rotations of the whole that cost nothing, orthonormal ``[3, atoms, 3]``, zeros in place of those that do."""
        positions = jax.lax.stop_gradient(self.at(y)[0][0])
        if self.cell:
            return jnp.zeros((3, *positions.shape), positions.dtype)
        # Around what is held, if anything is.
        held = (self.system.mobile[0] == 0).any(-1)
        pivots = jnp.where(held.any(), held, True)[:, None]
        center = (positions * pivots).sum(0) / pivots.sum()
        spins = jnp.cross(jnp.eye(3, dtype=positions.dtype)[:, None], positions - center)
        spins = jax.vmap(lambda spin: self.allowed((spin[None], jnp.zeros_like(y[1])))[0][0])(spins)
        sizes, axes = jnp.linalg.eigh(jnp.einsum("iax,jax->ij", spins, spins))
        # A linear molecule has one that moves nothing.
        real = sizes > 1e-6 * jnp.maximum(sizes[-1], 1.0)
        turns = jnp.einsum("iax,ij->jax", spins, axes * jnp.where(real, jnp.where(real, sizes, 1.0) ** -0.5, 0.0))
        forces = jax.lax.map(
            lambda turn: self.product(model, pressure, y, (turn[None], jnp.zeros_like(y[1])))[0][0], turns
        )
        costs, axes = jnp.linalg.eigh(jnp.einsum("iax,jax->ij", turns, forces))
        return jnp.einsum("iax,ij->jax", turns, jnp.where(jnp.abs(costs) < _FLAT, axes, 0.0))

    def product(self, model, pressure, y, x):
        """The Hessian at y times x."""
        along = jax.jvp(lambda z: self.slope(model, pressure, z), (y,), (self.allowed(x),))[1]
        return self.allowed(along)

    def conjugate(self, model, pressure, y, right, rounding=_ROUNDING):
        """x with H x = right, the smallest curvature met on the way, and whether the residual has vanished: by a factor, or
        below ``rounding``.

        Not ``jax.scipy.sparse.linalg.cg``, which tells neither of the latter.
        """

        def dot(a, b):
            return sum(jax.tree.leaves(jax.tree.map(lambda p, q: (p * q).sum(), a, b)))

        most = _PRODUCTS * sum(x.size for x in jax.tree.leaves(y))
        goal = jnp.maximum(_SHRINK**2 * dot(right, right), rounding**2)

        def going(carry):
            k, _, _, _, rest, curvature = carry
            return (k < most) & (rest > goal) & (curvature > -_FLAT)

        def one(carry):
            k, x, r, p, rest, curvature = carry
            h = self.product(model, pressure, y, p)
            bent = dot(p, h)
            along = rest / jnp.where(bent == 0, 1.0, bent)
            x = jax.tree.map(lambda a, b: a + along * b, x, p)
            r = jax.tree.map(lambda a, b: a - along * b, r, h)
            new = dot(r, r)
            ahead = jax.tree.map(lambda a, b: a + new / rest * b, r, p)
            return k + 1, x, r, ahead, new, jnp.minimum(curvature, bent / dot(p, p))

        x = jax.tree.map(jnp.zeros_like, right)
        begin = (jnp.int32(0), x, right, right, dot(right, right), jnp.asarray(jnp.inf, self.vectors.dtype))
        _, x, _, _, rest, curvature = jax.lax.while_loop(going, one, begin)
        return x, curvature, rest <= goal

    def solve(self, model, pressure, y, right, turns):
        """x with H x = right, to differentiate by ``right`` in either mode; NaN where it was not found.

        Along ``turns`` H is zero: nothing moves along them, whatever a cotangent asks.
        """

        def curved(x):
            u, e = self.allowed(x)
            return u - jnp.einsum("rax,jax,jby->rby", u, turns, turns), e

        # As one array: a part of a right-hand side that nothing depends on has no cotangent, which the solve can't take.
        flat, restore = ravel_pytree(right)

        def product(x):
            x = restore(x)
            rest = jax.tree.map(jnp.subtract, x, curved(x))
            return ravel_pytree(jax.tree.map(jnp.add, self.product(model, pressure, y, x), rest))[0]

        def by_conjugate(_, right, rounding=_ROUNDING):
            x, _, solved = self.conjugate(model, pressure, y, curved(restore(right)), rounding)
            return jnp.where(solved, ravel_pytree(x)[0], jnp.nan)

        # Forces of nothing but rounding are done; a cotangent is in the unit of whatever loss, however small.
        back = partial(by_conjugate, rounding=0.0)
        return restore(jax.lax.custom_linear_solve(product, flat, by_conjugate, back, symmetric=True))
