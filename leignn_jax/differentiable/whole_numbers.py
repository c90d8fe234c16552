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
  buffer of 16-bit numbers, and back to zero, before they leave these. Noise is drawn again from key and step.

Forces are a function of the positions to the last bit: of pairs within the cutoff alone, in one order whatever list they
come from. A compiler that rounds otherwise in one program than in another would break this. So kinetic energies are summed
and exponentials taken in a written order, and the reverse pass looks whether it meets the start again.

Units are powers of two, by how large the numbers are at the start: 2^-28 of the extent of the positions and 2^-26 of the
largest speed in float32, 30 digits finer in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from leignn_jax.device_neighbors import update, within_cutoff
from leignn_jax.simulation.dynamics import REPLICA, EnergyModel, State, System, evaluate, rounded
from leignn_jax.simulation.ensembles import InParts, Scaling, Shift, number_of, with_number

# Bits of the largest number at the start, by dtype; the rest up to 30 and 62 is room to grow.
_BITS = {"float32": (28, 26, 30), "float64": (58, 56, 62)}
# Steps for which partners are kept: as many as make them grow by this factor; where the friction is not known, so many.
_GROWTH, _UNKNOWN, _LONGEST = 64.0, 16, 4096


@struct.dataclass
class Whole:
    """Whole numbers in the place of a state's floats, or their units; names as in :class:`State`."""

    positions: Any
    velocities: Any
    exchanged: Any
    bath: Any
    step: Any


class Undoable(NamedTuple):
    """What a step changes and undoing brings back: numbers, the partners of those that are scaled, partners put aside.

    kept: bool, whether all have fitted into their integers; where not, nothing can be undone.
    """

    numbers: Whole
    partners: Whole
    aside: Any
    kept: Any


@struct.dataclass
class Fixed:
    """What stays as it is: units of the numbers, the first step, after how many partners are put aside (0: never)."""

    units: Whole
    first_step: Any
    put_aside: int = struct.field(pytree_node=False)


def start(system: System, state: State, steps: int, put_aside: int) -> tuple[Fixed, Undoable]:
    """Whole numbers next to the state's, and their units; partners are put aside after so many steps, 0 for never."""
    dtype = state.positions.dtype
    extent, speed, _ = _BITS[dtype.name]
    box = jnp.maximum(jnp.abs(state.positions).max(), jnp.where(system.pbc, jnp.abs(state.cell).max(2), 0.0).max())
    units = Whole(
        positions=_unit(jnp.maximum(box, 1.0), extent),
        velocities=_unit(jnp.maximum(jnp.abs(state.velocities).max(), 0.004), speed),
        # Of a velocity's energy at 1,000 K, for every atom.
        exchanged=_unit(jnp.asarray(system.numbers.shape[1], dtype), speed),
        bath=jax.tree.map(lambda x: _unit(jnp.asarray(1.0, dtype), speed), state.bath),
        step=1,
    )
    numbers = Whole(
        *(jax.tree.map(_rounded, getattr(state, name), getattr(units, name)) for name in _FLOATS), step=state.step
    )
    partners = jax.tree.map(jnp.zeros_like, numbers)
    slots = -(-steps // put_aside) if put_aside else 0
    aside = jnp.zeros((slots, *state.velocities.shape), jnp.int16)
    return Fixed(units, state.step, put_aside), Undoable(numbers, partners, aside, jnp.array(True))


_FLOATS = ("positions", "velocities", "exchanged", "bath")


def _unit(scale, bits: int):
    """The power of two 2^-bits of the power of two above ``scale``."""
    _, exponent = jnp.frexp(jax.lax.stop_gradient(scale))
    return jnp.ldexp(jnp.ones_like(scale), exponent - bits)


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
    model: EnergyModel,
    ensemble: InParts,
    system: System,
    fixed: Fixed,
    here: Undoable,
    state: State,
    timestep,
    going=True,
) -> tuple[Undoable, State]:
    """One step; ``state`` has the forces at the old positions, the one that is returned those at the new.

    Where not ``going`` no step is done, and energy and forces are taken anew.
    """
    first, drift, last = ensemble.parts(system, timestep)
    begun = either(going, there(fixed, [*first, *drift], here, state), here)
    state, near, positions, cell = surroundings(floats(fixed, begun.numbers, state))
    state = with_answers(state, jax.lax.optimization_barrier(evaluate(model, system, near, positions, cell)))
    ended = there(fixed, last, begun, state)
    if fixed.put_aside:
        ended = _partners_aside(fixed, ended)
    ended = either(going, ended._replace(kept=ended.kept & _in_range(ended)), begun)
    return ended, floats(fixed, ended.numbers, state)


def surroundings(state: State) -> tuple[State, Any, Any, Any]:
    """The state with lists that hold, and what a model is evaluated at: pairs within the cutoff, positions, cell.

    Behind barriers, so that the evaluation gives the same bits in every program.
    """
    renew = jax.vmap(lambda n, r, c: update(n, r, c, axis=REPLICA), axis_name=REPLICA)
    neighbors = renew(state.neighbors, state.positions, state.cell)
    inputs = jax.lax.optimization_barrier((neighbors, state.positions, state.cell))
    near = jax.vmap(within_cutoff)(*inputs)
    return state.replace(neighbors=neighbors), near, inputs[1], inputs[2]


def with_answers(state: State, answers) -> State:
    """The state with energy, forces and stress."""
    energy, forces, stress = answers
    return state.replace(energy=energy, forces=forces, stress=stress)


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
    v = number_of(here.numbers, part.of)
    if isinstance(part, Shift):
        amount = part.amount(seen)
        if part.of != "step":
            amount = _rounded(rounded(amount), number_of(fixed.units, part.of))
        return here._replace(numbers=with_number(here.numbers, part.of, v - amount if undo else v + amount))
    return scaled(part, here, rounded(part.exponent(seen)), undo=undo)


def scaled(part: Scaling, here: Undoable, exponent, *, undo: bool) -> Undoable:
    """A number times exp(exponent) and its partner over it, or the other way round: see the top of this module."""
    v, w = number_of(here.numbers, part.of), number_of(here.partners, part.of)

    def times(factor, number):
        return jnp.round(factor * number.astype(exponent.dtype)).astype(number.dtype)

    grown, shrunk = _expm1(exponent), _expm1(-exponent)
    last = -rounded((1 + grown) * grown)
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


def _expm1(x):
    """exp(x) - 1, the same bits in every program, which those of a library's function for one number and for many are not.

    A sixteenth of x by its series, doubled four times: expm1(2 x) = y (y + 2).
    """
    x, y = x / 16, jnp.ones_like(x)
    for k in range(12 if x.dtype == jnp.float64 else 7, 1, -1):
        y = 1 + rounded(x * y / k)
    y = rounded(x * y)
    for _ in range(4):
        y = rounded(y * (y + 2))
    return y


def _partners_aside(fixed: Fixed, here: Undoable) -> Undoable:
    due, slot = _due(fixed, here)
    partners = here.partners.velocities
    old = jax.lax.dynamic_index_in_dim(here.aside, slot, keepdims=False)
    put = jnp.where(due, partners.astype(jnp.int16), old)
    return Undoable(
        here.numbers,
        here.partners.replace(velocities=jnp.where(due, 0, partners)),
        jax.lax.dynamic_update_index_in_dim(here.aside, put, slot, 0),
        here.kept & (~due | (jnp.abs(partners) < 2**15).all()),
    )


def partners_back(fixed: Fixed, here: Undoable) -> Undoable:
    """The partners that were put aside after this step, where any were."""
    due, slot = _due(fixed, here)
    put = jax.lax.dynamic_index_in_dim(here.aside, slot, keepdims=False)
    partners = jnp.where(due, put.astype(here.partners.velocities.dtype), here.partners.velocities)
    return here._replace(partners=here.partners.replace(velocities=partners))


def _due(fixed: Fixed, here: Undoable):
    """Whether partners are put aside after this step, and where."""
    done = here.numbers.step - fixed.first_step
    return done % fixed.put_aside == 0, jnp.maximum(done // fixed.put_aside - 1, 0)
