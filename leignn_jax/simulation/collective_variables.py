r"""Collective variables: numbers that tell where a structure is on its way, to bias and to watch.

A variable is a function ``(positions [atoms, 3] Å, cell [3, 3] Å, pbc [3]) -> scalar`` of one structure, for JAX to
differentiate: one of those below or your own. The simulation takes atoms that went far back by whole lattice vectors, so
that a variable must not depend on which image of an atom it sees: :func:`nearest` gives vectors that do not. Rows beyond the
structure's atoms are padding where replicas are of different sizes. A variable with numbers to differentiate by is a
``jax.tree_util.Partial(function, numbers)`` or a pytree with ``__call__``. Where values repeat, as angles around a bond do,
it has an attribute ``period``; where it depends on distances alone, ``conserves_momentum`` that is True.

Smooth everywhere but where the nearest of two images changes: keep what a variable looks at nearer than half the cell.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import ase
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.tree_util import Partial
from jaxtyping import Array, Float

from leignn_jax.arguments import check_number, check_sequence, check_whole
from leignn_jax.cells import inverse, transformed
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import System

# By how much a variable may change when atoms move by lattice vectors, in units of its own size or of 1.
_ALIKE = 1e-3


def nearest(positions, cell, pbc, first, second) -> Float[Array, "... 3"]:
    """Å from atoms ``first`` to the nearest images of atoms ``second``; of whole numbers or arrays of them.

    Exact in every cell whose nearest image is among the 27 around the one that rounding gives; reduce more skewed cells.
    """
    away = positions[jnp.asarray(second)] - positions[jnp.asarray(first)]
    there = jnp.where(pbc[:, None], cell, 0.0)
    here = jax.lax.stop_gradient(away)
    # Units of the periodic vectors, nothing along the others: by normal equations, which have an answer then too.
    gram = jnp.einsum("id,jd->ij", there, there, precision="highest") + jnp.diag(jnp.where(pbc, 0.0, 1.0))
    back = jnp.einsum("jd,ji->di", there, inverse(gram), precision="highest")
    units = -jnp.round(transformed(here[..., None, :], jax.lax.stop_gradient(back)))
    images = units + jnp.asarray(list(itertools.product((-1, 0, 1), repeat=3)), away.dtype) * pbc
    lengths = ((here[..., None, :] + transformed(images, jax.lax.stop_gradient(there))) ** 2).sum(-1)
    best = jnp.take_along_axis(images, lengths.argmin(-1)[..., None, None], -2)
    return away + transformed(best, there)[..., 0, :]


def length(vectors) -> Float[Array, "..."]:
    """Lengths of vectors ``[..., 3]``; of one of zero 0, with a slope of 0."""
    squared = (vectors**2).sum(-1)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def _turn(sine, cosine):
    """The angle of both; where both are zero, as of three atoms in a line around it, 0 with a slope of 0."""
    there = (sine != 0) | (cosine != 0)
    return jnp.arctan2(jnp.where(there, sine, 0.0), jnp.where(there, cosine, 1.0))


@struct.dataclass
class Distance:
    """Å between two atoms."""

    first: int = struct.field(pytree_node=False)
    second: int = struct.field(pytree_node=False)
    conserves_momentum: ClassVar[bool] = True

    def __post_init__(self):
        _check_different(self)

    @property
    def indices(self) -> tuple[int, ...]:
        """The atoms that it looks at."""
        return self.first, self.second

    def __call__(self, positions, cell, pbc):
        return length(nearest(positions, cell, pbc, *self.indices))


@struct.dataclass
class Angle:
    """Radians, 0 to pi, at ``second`` between ``first`` and ``third``."""

    first: int = struct.field(pytree_node=False)
    second: int = struct.field(pytree_node=False)
    third: int = struct.field(pytree_node=False)
    conserves_momentum: ClassVar[bool] = True

    def __post_init__(self):
        _check_different(self)

    @property
    def indices(self) -> tuple[int, ...]:
        """The atoms that it looks at."""
        return self.first, self.second, self.third

    def __call__(self, positions, cell, pbc):
        one, other = nearest(positions, cell, pbc, [self.second, self.second], [self.first, self.third])
        # Not the arc cosine, whose slope has no end where three atoms are in line.
        return _turn(length(jnp.cross(one, other)), (one * other).sum())


@struct.dataclass
class Dihedral:
    """Radians, -pi to pi, by which ``fourth`` is turned from ``first`` around the line from ``second`` to ``third``; IUPAC's
    sign: clockwise, looking along that line, is positive."""

    first: int = struct.field(pytree_node=False)
    second: int = struct.field(pytree_node=False)
    third: int = struct.field(pytree_node=False)
    fourth: int = struct.field(pytree_node=False)
    conserves_momentum: ClassVar[bool] = True
    period: ClassVar[float] = 2 * np.pi

    def __post_init__(self):
        _check_different(self)

    @property
    def indices(self) -> tuple[int, ...]:
        """The atoms that it looks at."""
        return self.first, self.second, self.third, self.fourth

    def __call__(self, positions, cell, pbc):
        atoms = self.indices
        a, b, c = nearest(positions, cell, pbc, atoms[:3], atoms[1:])
        left, right = jnp.cross(a, b), jnp.cross(b, c)
        return _turn(length(b) * (a * right).sum(), (left * right).sum())


@struct.dataclass
class Coordination:
    """The mean number of atoms of ``second`` around one of ``first``: sum of 1 / (1 + (r / radius)^power) / len(first).

    first, second: indices (static); an atom is not its own neighbour. radius: Å, at which an atom counts half (a leaf).
    power: an even number (static); 6 is the usual (1 - x^6) / (1 - x^12). Only the nearest image of an atom counts.
    """

    first: tuple[int, ...] = struct.field(pytree_node=False)
    second: tuple[int, ...] = struct.field(pytree_node=False)
    radius: Any
    power: int = struct.field(pytree_node=False, default=6)
    conserves_momentum: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("first", "second"):
            atoms = tuple(check_whole(f"Coordination: {name}", i) for i in check_sequence(name, getattr(self, name)))
            if not atoms or len(set(atoms)) < len(atoms):
                raise ConfigError(f"Coordination: {name} must be different atoms, one at least, not {list(atoms)}.")
            object.__setattr__(self, name, atoms)
        if check_whole("Coordination: power", self.power, 2) % 2:
            raise ConfigError(f"Coordination: power must be even, not {self.power}.")
        # A leaf, that jax may put anything into.
        if isinstance(self.radius, int | float):
            check_number("Coordination: radius", self.radius, positive=True)

    @property
    def indices(self) -> tuple[int, ...]:
        """The atoms that it looks at."""
        return self.first + self.second

    def __call__(self, positions, cell, pbc):
        pairs = [(i, j) for i in self.first for j in self.second if i != j]
        if not pairs:
            return jnp.zeros((), positions.dtype)
        one, other = zip(*pairs, strict=True)
        away = nearest(positions, cell, pbc, np.array(one), np.array(other)) / self.radius
        return (1 / (1 + (away**2).sum(-1) ** (self.power // 2))).sum() / len(self.first)


# ----------------------------------------------------------------------------------------------------------------- to use


def as_variable(variable: Any) -> Any:
    """The variable as a pytree: a plain function becomes a ``Partial``. ConfigError where it can't be called."""
    if isinstance(variable, type | str | int | float | np.ndarray):
        given = f"the class {variable.__name__}" if isinstance(variable, type) else repr(variable)[:60]
        raise ConfigError(
            "variable must be one of leignn_jax.simulation.collective_variables, such as Distance(0, 1), or a function "
            f"(positions, cell, pbc) -> scalar, not {given}."
        )
    leaf = callable(variable) and jax.tree_util.all_leaves([variable])
    return Partial(variable) if leaf else variable


def name_of(variable: Any) -> str:
    """What it is called in messages and in the settings that a resumed simulation must have in common with its start."""
    if isinstance(variable, Partial):
        arguments = [repr(x) for x in variable.args] + [f"{k}={v!r}" for k, v in variable.keywords.items()]
        return f"{getattr(variable.func, '__qualname__', type(variable.func).__name__)}({', '.join(arguments)})"
    return repr(variable)


def difference(variable: Any, values, centers):
    """``values - centers``, the shorter way round where values repeat."""
    away, period = values - centers, getattr(variable, "period", None)
    return away if period is None else away - period * jnp.round(jax.lax.stop_gradient(away) / period)


def values_of(variable: Any, system: System, positions, cell) -> Float[Array, "replicas"]:
    """The variable in all replicas of positions ``[replicas, atoms, 3]`` and cells ``[replicas, 3, 3]``, Å."""
    return jax.vmap(variable)(positions, cell, system.pbc)


def observed(variable: Any):
    """The variable to look at along a rollout: ``(system, state) -> [replicas]``."""
    variable = as_variable(variable)
    return lambda system, state: values_of(variable, system, state.positions, state.cell)


def check_variable(variable: Any, atoms: ase.Atoms) -> None:
    """ConfigError where a variable is none of this structure: atoms that it has not, no scalar, no finite number, a number
    that changes where atoms move by lattice vectors."""
    name, count, pbc = name_of(variable), len(atoms), np.asarray(atoms.pbc, bool)
    for index in getattr(variable, "indices", ()):
        if index >= count:
            raise ConfigError(
                f"{name} looks at atom {index}, and the structure has atoms 0 to {count - 1}. Give indices of its atoms."
            )
    positions, cell = jnp.asarray(atoms.positions, float), jnp.asarray(np.asarray(atoms.cell), float)
    try:
        answer = jax.eval_shape(variable, positions, cell, jnp.asarray(pbc))
    except TypeError as error:
        raise ConfigError(f"{name} can't be called with (positions, cell, pbc): {error}.") from error
    if getattr(answer, "shape", None) != () or not jnp.issubdtype(answer.dtype, jnp.floating):
        shape = f"{answer.dtype}{list(answer.shape)}" if hasattr(answer, "shape") else type(answer).__name__
        raise ConfigError(f"{name} must return one real number, not {shape}. Bias several numbers by one bias each.")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(variable)):
        return
    images = np.random.default_rng(0).integers(-1, 2, (count, 3)) * pbc
    with jax.ensure_compile_time_eval():
        value, slope = jax.value_and_grad(variable)(positions, cell, jnp.asarray(pbc))
        moved = variable(positions + images @ np.asarray(atoms.cell), cell, jnp.asarray(pbc))
        change = float(jnp.abs(difference(variable, moved, value)))
    if not np.isfinite(float(value)) or not np.isfinite(np.asarray(slope)).all():
        raise ConfigError(
            f"{name} or its slope is no finite number for this structure ({float(value):g}): guard roots and divisions by "
            "zero, also those of atoms that are not looked at."
        )
    if change > _ALIKE * max(1.0, abs(float(value))):
        raise ConfigError(
            f"{name} changes from {float(value):.6g} to {float(moved):.6g} where atoms move by lattice vectors, as a "
            "simulation moves them. Take vectors between atoms from collective_variables.nearest, or make the structure "
            "open in that direction (atoms.pbc)."
        )


def _check_different(variable) -> None:
    name = type(variable).__name__
    atoms = tuple(check_whole(f"{name}: an atom's index", i) for i in variable.indices)
    if len(set(atoms)) < len(atoms):
        raise ConfigError(f"{name} needs different atoms, not {list(atoms)}.")
