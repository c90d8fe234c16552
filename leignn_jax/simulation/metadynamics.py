r"""Metadynamics: hills of energy where a collective variable has been, so that it goes on to where it has not.

Every ``every`` steps a hill w exp(-(s - s_t)^2 / (2 width^2)) is put where the variable s is. The bias V of all hills fills
the free energy F: in the end V(s) = -F(s) + constant (Laio and Parrinello 2002). In well-tempered metadynamics (Barducci,
Bussi and Parrinello 2008), with bias factor gamma,

    w_t = height exp(-V(s_t) / ((gamma - 1) kT)),    V(s) = -(1 - 1 / gamma) F(s) + constant,

and the hills' heights go to zero.
"""

from __future__ import annotations

from typing import Any, ClassVar

import ase
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from leignn_jax.arguments import check_array, check_whole
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.biases import Hills, pushed
from leignn_jax.simulation.collective_variables import as_variable, check_variable, name_of, values_of
from leignn_jax.simulation.dynamics import EnergyModel, State, System
from leignn_jax.simulation.ensembles import Ensemble
from leignn_jax.simulation.model_sums import ModelSum

# Of a run: more would not be a bias but a memory leak.
_MOST_HILLS = 1_000_000


@struct.dataclass
class Metadynamics(Ensemble):
    """Another ensemble with a bias of hills on a collective variable; every replica has its own hills. A pytree.

    ensemble: that moves the atoms, such as :class:`leignn_jax.simulation.ensembles.Langevin`.
    variable: of :mod:`leignn_jax.simulation.collective_variables`, or a function ``(positions, cell, pbc) -> scalar``.
    height: eV. width: in the variable's unit. Both are one number or one per replica.
    every: steps between hills (static).
    hills: for how many there is room (static). When all are there the bias stays as it is: ``state.bath["deposited"]``
        says how many were due, and a simulation warns where these are more.
    bias_factor: gamma of well-tempered metadynamics, greater than 1; None for hills of one height.

    The hills are in the state: ``state.bath["centers"]`` and ``["heights"]``, [replicas, hills], and
    ``["deposited"]``, [replicas]; :meth:`free_energy` reads them. Energy, forces and stress of the state, and with them of
    frames and logs, are the model's without the bias; ``conserved`` counts the bias, and what hills put in as heat.
    """

    constant: ClassVar[tuple[str, ...]] = ("height", "width", "bias_factor")

    ensemble: Any
    variable: Any
    height: Any
    width: Any
    every: int = struct.field(pytree_node=False)
    hills: int = struct.field(pytree_node=False)
    bias_factor: Any = None

    def __post_init__(self):
        object.__setattr__(self, "variable", as_variable(self.variable))
        if isinstance(self.ensemble, str | type):
            raise ConfigError(
                f"Metadynamics: ensemble must be an object such as Langevin(temperature=300.0), not {self.ensemble!r}."
            )

    # ------------------------------------------------------------------------------------------- what is of the ensemble

    @property
    def wrapped(self) -> Ensemble:
        """The ensemble that moves the atoms."""
        return self.ensemble

    @property
    def moves_cell(self) -> bool:
        """Whether the cell changes."""
        return self.ensemble.moves_cell

    @property
    def holds_momentum(self) -> bool:
        """Whether the total momentum stays zero: with a variable that depends on distances alone."""
        return self.ensemble.holds_momentum and not self.sees_origin

    @property
    def sees_origin(self) -> bool:
        """Whether the variable may depend on where the structure is."""
        return not getattr(self.variable, "conserves_momentum", False)

    @property
    def temperature(self) -> Any:
        """K, of drawn velocities."""
        return getattr(self.ensemble, "temperature", None)

    def kT(self, state: State, dt) -> Any:
        """Thermal energy in eV, ``[replicas]``."""
        return self.ensemble.kT(state, dt)

    def settings(self) -> dict[str, Any]:
        """All that it was made with but the ensemble, by name; the variable in words."""
        named = {name: value for name, value in vars(self).items() if name != "ensemble" and value is not None}
        return named | {"variable": name_of(self.variable)}

    @property
    def words(self) -> tuple[str, ...]:
        """Names of settings that are no numbers."""
        return ("variable",)

    # ------------------------------------------------------------------------------------------------------- the motion

    def start(self, system: System, state: State) -> Any:
        """No hills yet, and what the ensemble remembers; on the host.

        Raises:
            ConfigError: a variable that is none of these structures, a bias factor that is not greater than 1 or without a
                temperature, ``every`` or ``hills`` that are no counts.
        """
        check_whole("Metadynamics: every", self.every, 1)
        check_whole("Metadynamics: hills", self.hills, 1, _MOST_HILLS)
        for atoms in _structures(system, state):
            check_variable(self.variable, atoms)
        if self.bias_factor is not None:
            if not bool((jnp.asarray(self.bias_factor) > 1).all()):
                raise ConfigError(
                    f"Metadynamics: bias_factor must be greater than 1, not {np.asarray(self.bias_factor).tolist()}; leave "
                    "it out for hills of one height."
                )
            if not bool((self.ensemble.kT(state, jnp.ones((), state.energy.dtype)) > 0).all()):
                raise ConfigError("Metadynamics: bias_factor needs an ensemble with a temperature, such as Langevin.")
        return self._empty(state, self.ensemble.start(system, state))

    def memory(self, system: System, state: State) -> Any:
        """As :meth:`start`, without its checks."""
        return self._empty(state, self.ensemble.memory(system, state))

    def _empty(self, state: State, inside: Any) -> dict[str, Any]:
        replicas, dtype = state.energy.shape[0], state.energy.dtype
        none = jnp.zeros((replicas, self.hills), dtype)
        return {"ensemble": inside, "centers": none, "heights": none, "deposited": jnp.zeros(replicas, jnp.int32)}

    def bias(self, bath: dict[str, Any]) -> Hills:
        """The hills that are there, a model."""
        return Hills(self.variable, bath["centers"], bath["heights"], self.width)

    def begin(self, system: System, state: State, dt) -> tuple[State, Any, Any]:
        """As the ensemble begins, with the bias."""
        hills = state.bath
        biased = self._add(system, _inside(state), hills, 1.0)
        begun, positions, before = self.ensemble.begin(system, biased, dt)
        return begun.replace(bath={**hills, "ensemble": begun.bath}), positions, before

    def finish(self, model: EnergyModel, system: System, state: State, dt, before: Any = ()) -> State:
        """As the ensemble ends with the bias; then a hill, where one is due."""
        hills = state.bath
        biased = self._add(system, _inside(state), hills, 1.0)
        after = self.ensemble.finish(ModelSum((model, self.bias(hills))), system, biased, dt, before)
        if self.moves_cell:
            after = self._add(system, after, hills, -1.0)
        else:
            after = after.replace(energy=state.energy, forces=state.forces, stress=state.stress)
        return self._deposit(system, after.replace(bath={**hills, "ensemble": after.bath}), dt)

    def _add(self, system: System, state: State, hills, sign: float) -> State:
        energy, forces, stress = pushed(self.bias(hills).energy, self.variable, state.positions, state.cell, system.pbc)
        return state.replace(
            energy=state.energy + sign * energy,
            forces=state.forces + sign * forces,
            stress=state.stress + sign * stress,
        )

    def _deposit(self, system: System, state: State, dt) -> State:
        hills = state.bath
        here = values_of(self.variable, system, state.positions, state.cell)
        height = jnp.broadcast_to(jnp.asarray(self.height, here.dtype), here.shape)
        if self.bias_factor is not None:
            heat = (jnp.asarray(self.bias_factor, here.dtype) - 1) * self.kT(state, dt)
            height = height * jnp.exp(-self.bias(hills).energy(here) / heat)
        due = state.step % self.every == 0
        # Beyond the last place there is none.
        place = (jnp.arange(self.hills) == hills["deposited"][:, None]) & due
        put = place.any(-1)
        bath = {
            "ensemble": hills["ensemble"],
            "centers": jnp.where(place, here[:, None], hills["centers"]),
            "heights": jnp.where(place, height[:, None], hills["heights"]),
            "deposited": hills["deposited"] + due.astype(jnp.int32),
        }
        return state.replace(bath=bath, exchanged=state.exchanged + jnp.where(put, height, 0.0))

    def stored_energy(self, system: System, state: State, dt) -> Any:
        """Of the ensemble's own variables and of the bias, eV."""
        here = values_of(self.variable, system, state.positions, state.cell)
        return self.ensemble.stored_energy(system, _inside(state), dt) + self.bias(state.bath).energy(here)

    # ---------------------------------------------------------------------------------------------------- what comes of it

    def free_energy(self, bath: dict[str, Any], at: Any) -> Any:
        """``[replicas, points]`` eV at values ``[points]`` of the variable, its least value taken as zero.

        Minus the bias, times gamma / (gamma - 1) where it is well-tempered.

        Args:
            bath: ``state.bath``, or ``bath`` of what :func:`leignn_jax.simulate` returns.
            at: in the variable's unit.
        """
        if not isinstance(bath, dict) or not {"centers", "heights"} <= bath.keys():
            raise ConfigError("bath must be that of a state of this ensemble, such as simulate(...).bath.")
        points = jnp.asarray(check_array("at", at, (None,)), jnp.asarray(bath["centers"]).dtype)
        replicas = bath["centers"].shape[0]
        bias = jax.vmap(lambda s: self.bias(bath).energy(jnp.broadcast_to(s, (replicas,))), out_axes=1)(points)
        if self.bias_factor is not None:
            bias = bias * jnp.reshape(self.bias_factor / (jnp.asarray(self.bias_factor) - 1), (-1, 1))
        return bias.max(1, keepdims=True) - bias

    def at_end(self, state: State) -> list[str]:
        """What a user should know: that hills found no room."""
        most = int(np.max(state.bath["deposited"]))
        if most <= self.hills:
            return self.ensemble.at_end(_inside(state))
        return [
            f"Metadynamics: {most} hills were due, and there is room for {self.hills}: the bias stayed as it was after "
            "these. Give a larger `hills`.",
            *self.ensemble.at_end(_inside(state)),
        ]


def _structures(system: System, state: State) -> list[ase.Atoms]:
    """Of every replica, without padding."""
    each = zip(*(np.asarray(x) for x in (system.numbers, state.positions, state.cell, system.pbc)), strict=True)
    return [ase.Atoms(numbers=n[n > 0], positions=r[n > 0], cell=c, pbc=p) for n, r, c, p in each]


def _inside(state: State) -> State:
    """The state as the ensemble inside knows it."""
    return state.replace(bath=state.bath["ensemble"])
