r"""Steps in whole numbers, which can be undone to the last bit.

Positions, velocities and what the ensemble remembers are whole numbers of small units. A step is made of parts
(:class:`leignn_jax.simulation.ensembles.Parts`), each of which is undone exactly:

- a shift adds a rounded amount that does not depend on the number it changes: taking the same amount off undoes it;
- a scaling by s = exp(l) would lose bits where s < 1 and need new ones where s > 1. It acts on the number v and a partner
  w together, (v, w) -> (s v, w / s), a product of shears, each a shift by what is rounded:
  w += v;  v += (s - 1) w;  w -= v + (1/s - 1) v;  v += (s - s^2) w.
  The partner starts at zero and holds what rounding left over. In a Nose-Hoover chain the product of all scalings stays
  near 1, and so the partner stays small for ever.
- friction loses bits for good, friction times timestep / ln 2 per step and velocity: partners grow, and are put into a
  buffer of 16-bit numbers, and back to zero, before they leave these. Noise is drawn again from key and step. A chain far
  from its temperature slows itself as well: its few partners are put aside whole, every 16 steps.

Forces are a function of the positions to the last bit: of pairs within the cutoff alone, in one order whatever list they
come from. They, and what parts of a step add and scale by, are sealed (:mod:`leignn_jax.differentiable.sealed`), so that
the program that undoes steps rounds as that which did them. The reverse pass looks whether it meets the start again.

Units are powers of two, by how large the numbers are at the start: 2^-28 of the extent of the positions and 2^-26 of the
largest speed in float32, 30 digits finer in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from leignn_jax.device_neighbors import update, within_cutoff
from leignn_jax.differentiable.sealed import sealed
from leignn_jax.simulation.dynamics import REPLICA, State, System, evaluate
from leignn_jax.simulation.ensembles import InParts, Scaling, Shift, number_of, with_number

# Bits of the largest number at the start, by dtype; the rest up to 30 and 62 is room to grow.
_BITS = {"float32": (28, 26, 30), "float64": (58, 56, 62)}
# Steps for which partners are kept: as many as make them grow by this factor; where the friction is not known, so many.
_GROWTH, _UNKNOWN, _LONGEST = 64.0, 16, 4096
# Steps for which partners of what the ensemble remembers are kept: one step may make them several times as large.
_BATH_EVERY = 16


@struct.dataclass
class Whole:
    """Whole numbers in the place of a state's floats, or their units; names as in :class:`State`."""

    positions: Any
    velocities: Any
    exchanged: Any
    bath: Any
    step: Any


class Aside(NamedTuple):
    """Partners put aside, ``[times, ...]``: of velocities int16, of what the ensemble remembers as they are."""

    velocities: Any
    bath: Any


class Undoable(NamedTuple):
    """What a step changes and undoing brings back: numbers, the partners of those that are scaled, partners put aside.

    kept: bool, whether all have fitted into their integers; where not, nothing can be undone.
    """

    numbers: Whole
    partners: Whole
    aside: Aside
    kept: Any


@struct.dataclass
class Fixed:
    """What stays as it is: units of the numbers, the first step, and every how many steps partners of velocities are put
    aside (0: never)."""

    units: Whole
    first_step: Any
    put_aside: int = struct.field(pytree_node=False)


def start(ensemble: InParts, system: System, state: State, steps: int, put_aside: int) -> tuple[Fixed, Undoable]:
    """Whole numbers next to the state's, and their units; partners are put aside every so many steps, 0 for never."""
    dtype = state.positions.dtype
    extent, speed, _ = _BITS[dtype.name]
    box = jnp.maximum(jnp.abs(state.positions).max(), jnp.where(system.pbc, jnp.abs(state.cell).max(2), 0.0).max())
    units = Whole(
        positions=_unit(jnp.maximum(box, 1.0), extent),
        velocities=_unit(jnp.maximum(jnp.abs(state.velocities).max(), 0.004), speed),
        # Of a velocity's energy at 1,000 K, for every atom.
        exchanged=_unit(jnp.asarray(system.numbers.shape[1], dtype), speed),
        bath=_bath_units(ensemble.sizes(), state.bath, dtype, speed),
        step=1,
    )
    numbers = Whole(
        *(jax.tree.map(_rounded, getattr(state, name), getattr(units, name)) for name in _FLOATS), step=state.step
    )
    partners = jax.tree.map(jnp.zeros_like, numbers)
    aside = Aside(
        jnp.zeros((steps // put_aside if put_aside else 0, *state.velocities.shape), jnp.int16),
        jax.tree.map(lambda n: jnp.zeros((steps // _BATH_EVERY, *n.shape), n.dtype), numbers.bath),
    )
    return Fixed(units, state.step, put_aside), Undoable(numbers, partners, aside, jnp.array(True))


_FLOATS = ("positions", "velocities", "exchanged", "bath")


def _unit(scale, bits: int):
    """The power of two 2^-bits of the power of two above ``scale``."""
    _, exponent = jnp.frexp(jax.lax.stop_gradient(scale))
    return jnp.ldexp(jnp.ones_like(scale), exponent - bits)


def _bath_units(sizes: dict[str, float], bath, dtype, bits: int):
    if not bath:
        return bath
    return {name: [_unit(jnp.asarray(sizes.get(name, 1.0), dtype), bits)] * len(bath[name]) for name in bath}


def _rounded(value, unit):
    """Whole number of units nearest to a float; int32 of float32, int64 of float64."""
    whole = jnp.int64 if value.dtype == jnp.float64 else jnp.int32
    return jnp.round(value / unit).astype(whole)


def put_aside_after(ensemble: InParts, timestep) -> int:
    """After how many steps partners must be put aside, before they leave 16 bits; 0 for never."""
    damping = ensemble.damping(timestep)
    if isinstance(damping, jax.core.Tracer):
        return _UNKNOWN
    if float(damping) <= 0:
        return 0
    return min(max(int(math.log(_GROWTH) / float(damping)), 1), _LONGEST)


def floats(fixed: Fixed, numbers: Whole, state: State) -> State:
    """The state with the floats that these numbers stand for."""
    dtype = state.positions.dtype
    values = {
        name: jax.tree.map(lambda n, unit: n.astype(dtype) * unit, getattr(numbers, name), getattr(fixed.units, name))
        for name in _FLOATS
    }
    return state.replace(step=numbers.step, **values)


def forward(
    things_of: Callable[[Any], dict[str, Any]], values, fixed: Fixed, here: Undoable, state: State, going
) -> tuple[Undoable, State]:
    """One step; ``state`` has the forces at the old positions, the one that is returned those at the new.

    Where not ``going`` no step is done, and energy and forces are taken anew.
    """
    things = things_of(values)
    first, drift, last = things["ensemble"].parts(things["system"], things["timestep"])
    begun = either(going, there(fixed, [*first, *drift], here, state), here)
    state, _ = evaluated(things_of, values, floats(fixed, begun.numbers, state))
    ended = _partners_aside(fixed, there(fixed, last, begun, state))
    ended = either(going, ended._replace(kept=ended.kept & _in_range(ended)), begun)
    return ended, floats(fixed, ended.numbers, state)


def evaluated(things_of: Callable[[Any], dict[str, Any]], values, state: State) -> tuple[State, Callable[..., Any]]:
    """The state with lists that hold, and energy, forces and stress at its positions: the same bits in every program.

    things_of: of values, the model and the system. Also returned: what takes derivatives by energy, forces and stress to
    those by values, positions and cell.
    """
    renew = jax.vmap(lambda n, r, c: update(n, r, c, axis=REPLICA), axis_name=REPLICA)
    neighbors = renew(state.neighbors, state.positions, state.cell)

    def answers_and_pull(values, neighbors, positions, cell):
        near = jax.vmap(within_cutoff)(neighbors, positions, cell)

        def answers(values, positions, cell):
            things = things_of(values)
            return evaluate(things["model"], things["system"], near, positions, cell)

        return jax.vjp(answers, values, positions, cell)

    out, pull = sealed(answers_and_pull)(values, neighbors, state.positions, state.cell)
    energy, forces, stress = out
    return state.replace(energy=energy, forces=forces, stress=stress, neighbors=neighbors), pull


def missed(begun: Undoable, here: Undoable):
    """By how many units at most numbers or partners differ; zero where all steps were undone to the last bit."""
    pairs = zip(jax.tree.leaves(begun[:2]), jax.tree.leaves(here[:2]), strict=True)
    return jnp.stack([jnp.abs(x - y).max().astype(begun.numbers.positions.dtype) for x, y in pairs]).max()


def either(first, one, other):
    """Leaves of ``one`` where ``first``, else of ``other``; those that are the same are left alone."""
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(first, x, y), one, other)


def _in_range(here: Undoable):
    most = 2 ** _BITS["float64" if here.numbers.positions.dtype == jnp.int64 else "float32"][2]
    numbers = [getattr(whole, name) for name in _FLOATS for whole in (here.numbers, here.partners)]
    return jnp.stack([(jnp.abs(n) < most).all() for n in jax.tree.leaves(numbers)]).all()


def there(fixed: Fixed, parts: list[Shift | Scaling], here: Undoable, state: State) -> Undoable:
    """The numbers after these parts, one after the other; ``state`` has the forces."""
    for part in parts:
        here = _part(fixed, part, here, state, undo=False)
    return here


def back(fixed: Fixed, parts: list[Shift | Scaling], here: Undoable, state: State) -> Undoable:
    """The numbers before them."""
    for part in reversed(parts):
        here = _part(fixed, part, here, state, undo=True)
    return here


def _part(fixed: Fixed, part: Shift | Scaling, here: Undoable, state: State, *, undo: bool) -> Undoable:
    seen = floats(fixed, here.numbers, state)
    if isinstance(part, Scaling):
        return scaled(part, here, sealed(lambda s: factors(part.exponent(s)))(seen), undo=undo)
    v = number_of(here.numbers, part.of)

    def amount(seen):
        return part.amount(seen) if part.of == "step" else _rounded(part.amount(seen), number_of(fixed.units, part.of))

    change = sealed(amount)(seen)
    return here._replace(numbers=with_number(here.numbers, part.of, v - change if undo else v + change))


def factors(exponent) -> tuple[Any, Any, Any]:
    """s - 1, 1/s - 1 and s - s^2 of s = exp(exponent)."""
    grown = jnp.expm1(exponent)
    return grown, jnp.expm1(-exponent), -jnp.exp(exponent) * grown


def scaled(part: Scaling, here: Undoable, by: tuple[Any, Any, Any], *, undo: bool) -> Undoable:
    """A number times s and its partner over s, or the other way round, ``by`` its factors: see the top of this module."""
    v, w = number_of(here.numbers, part.of), number_of(here.partners, part.of)
    grown, shrunk, last = by

    def times(factor, number):
        return jnp.round(factor * number.astype(factor.dtype)).astype(number.dtype)

    if undo:
        v = v - times(last, w)
        w = w + v + times(shrunk, v)
        v = v - times(grown, w)
        w = w - v
    else:
        w = w + v
        v = v + times(grown, w)
        w = w - v - times(shrunk, v)
        v = v + times(last, w)
    return here._replace(numbers=with_number(here.numbers, part.of, v), partners=with_number(here.partners, part.of, w))


def _partners_aside(fixed: Fixed, here: Undoable) -> Undoable:
    """Partners that are due after this step put aside, and zero again."""
    velocities, kept = here.partners.velocities, here.kept
    if here.aside.velocities.shape[0]:
        due, _ = _due(fixed, here, fixed.put_aside)
        kept = kept & (~due | (jnp.abs(velocities) < 2**15).all())
    velocities, of_velocities = _put(fixed, here, fixed.put_aside, velocities, here.aside.velocities)
    leaves, structure = jax.tree.flatten(here.partners.bath)
    puts = [
        _put(fixed, here, _BATH_EVERY, *pair) for pair in zip(leaves, jax.tree.leaves(here.aside.bath), strict=True)
    ]
    bath, of_bath = (jax.tree.unflatten(structure, [put[k] for put in puts]) for k in range(2))
    return Undoable(
        here.numbers, here.partners.replace(velocities=velocities, bath=bath), Aside(of_velocities, of_bath), kept
    )


def partners_back(fixed: Fixed, here: Undoable) -> Undoable:
    """The partners that were put aside after this step, where any were."""

    def back(every, partner, buffer):
        if not buffer.shape[0]:
            return partner
        due, slot = _due(fixed, here, every)
        put = jax.lax.dynamic_index_in_dim(buffer, slot, keepdims=False)
        return jnp.where(due, put.astype(partner.dtype), partner)

    velocities = back(fixed.put_aside, here.partners.velocities, here.aside.velocities)
    bath = jax.tree.map(lambda *pair: back(_BATH_EVERY, *pair), here.partners.bath, here.aside.bath)
    return here._replace(partners=here.partners.replace(velocities=velocities, bath=bath))


def _put(fixed: Fixed, here: Undoable, every: int, partner, buffer):
    """A partner, zero where it is due, and the buffer with it where it is."""
    if not buffer.shape[0]:
        return partner, buffer
    due, slot = _due(fixed, here, every)
    old = jax.lax.dynamic_index_in_dim(buffer, slot, keepdims=False)
    put = jnp.where(due, partner.astype(buffer.dtype), old)
    return jnp.where(due, 0, partner), jax.lax.dynamic_update_index_in_dim(buffer, put, slot, 0)


def _due(fixed: Fixed, here: Undoable, every: int):
    """Whether what is put aside every so many steps is after this one, and where."""
    done = here.numbers.step - fixed.first_step
    return done % every == 0, jnp.maximum(done // every - 1, 0)
