"""What simulations and rollouts are told about their ensemble: by a short name or as an object, checked in one place."""

from __future__ import annotations

from functools import partial
from typing import Any

import ase
import jax
import numpy as np

from leignn_jax.arguments import did_you_mean
from leignn_jax.errors import ConfigError
from leignn_jax.simulation.dynamics import State, System
from leignn_jax.simulation.ensembles import CSVR, NVE, CellRescaling, Ensemble, Langevin, NoseHoover, Ramp

_MAKERS = {
    "nvt": NoseHoover,
    "nose-hoover": NoseHoover,
    "langevin": Langevin,
    "csvr": CSVR,
    "npt": CellRescaling,
    "npt-anisotropic": partial(CellRescaling, shape="anisotropic"),
    "npt-triclinic": partial(CellRescaling, shape="triclinic"),
}


def make_ensemble(ensemble: Ensemble | str, temperature: Any = None, pressure: Any = None) -> Ensemble:
    """The ensemble of a short name; an object of :mod:`leignn_jax.simulation.ensembles` is returned as it is.

    Args:
        ensemble: "nve", "nvt" or "nose-hoover", "langevin", "csvr", "npt" (isotropic), "npt-anisotropic", "npt-triclinic".
        temperature: K, a number, a Ramp or one per replica. pressure: GPa.

    Raises:
        ConfigError: it is neither, or a number is missing or too many are given.
    """
    if not isinstance(ensemble, str):
        if not isinstance(ensemble, Ensemble):
            name = ensemble.__name__ if isinstance(ensemble, type) else type(ensemble).__name__
            raise ConfigError(
                f"ensemble must be a name such as 'nvt' or an object such as Langevin(temperature=300.0), not {name}."
            )
        if pressure is not None:
            raise ConfigError("pressure: give it to the ensemble, which is an object here.")
        return ensemble
    key = ensemble.lower()
    if key == "nve":
        if pressure is not None:
            raise ConfigError("ensemble nve has no pressure; use npt.")
        return NVE()
    if key not in _MAKERS:
        raise ConfigError(f"ensemble: {ensemble!r} is not known{did_you_mean(key, ['nve', *_MAKERS])}")
    if temperature is None:
        raise ConfigError(f"ensemble {ensemble}: give a temperature in K.")
    if key.startswith("npt"):
        return _MAKERS[key](temperature=temperature, pressure=0.0 if pressure is None else pressure)
    if pressure is not None:
        raise ConfigError(f"ensemble {ensemble} has no pressure; use npt.")
    return _MAKERS[key](temperature=temperature)


def check_ensemble(ensemble: Ensemble, kelvin: Any, structures: list[ase.Atoms]) -> None:
    """As :func:`check_numbers`; ConfigError too where the cell would change of a structure that is not periodic."""
    check_numbers(ensemble, len(structures), kelvin)
    if ensemble.moves_cell and not all(a.pbc.all() for a in structures):
        raise ConfigError("A changing cell needs a structure that is periodic in all three directions.")


def check_numbers(ensemble: Ensemble, replicas: int, kelvin: Any = None) -> None:
    """ConfigError where a number of the ensemble is out of range, or one per replica is of another length; of numbers that
    are traced nothing is known."""
    if ensemble.wrapped is not None:
        check_numbers(ensemble.wrapped, replicas, kelvin)
    zero = ("temperature", "friction", "gamma")
    for name, value in {**ensemble.settings(), "temperature of the start": kelvin}.items():
        given = (value.values, value.times) if isinstance(value, Ramp) else (value,)
        # Of a list each number is a leaf, to be traced by itself.
        if any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves(given)):
            continue
        if (value is None and name == "temperature of the start") or name in ensemble.words:
            continue
        where = f"{type(ensemble).__name__}, {name}"
        ramp = isinstance(value, Ramp)
        if ramp and name in ensemble.constant:
            raise ConfigError(f"{where}: can't be a ramp; give a number.")
        numbers = _numbers(where, value.values if ramp else value)
        if ramp:
            times = _numbers(where, value.times)
            if numbers.ndim != 1 or not numbers.size or numbers.shape != times.shape or (np.diff(times) < 0).any():
                raise ConfigError(f"{where}: a ramp needs as many values as times, one or more, and times that grow.")
        if not ramp and numbers.shape not in ((), (replicas,)):
            raise ConfigError(
                f"{where}: has shape {numbers.shape}; give one number, or one for each of {replicas} replicas."
            )
        least = -np.inf if name == "pressure" else 0.0
        allowed = numbers >= least if name.startswith(zero) else numbers > least
        if isinstance(ensemble, NoseHoover) and name == "temperature":
            allowed = numbers > 0
        if not (np.isfinite(numbers) & allowed).all():
            raise ConfigError(f"{where}: {numbers.tolist()} is out of range.")


def _numbers(where: str, value: Any) -> np.ndarray:
    try:
        found = np.asarray(value)
        real = found.dtype.kind in "iuf"
    except (TypeError, ValueError):
        real = False
    if not real:
        raise ConfigError(f"{where}: must be a number or an array of numbers, not {value!r:.60}.")
    return found.astype(float)


def check_bath(ensemble: Ensemble, system: System, state: State) -> None:
    """ConfigError where a state does not remember what the ensemble does: it was started with another one."""
    expected = jax.eval_shape(ensemble.memory, system, state.replace(bath=()))

    def shapes(bath):
        named = jax.tree_util.tree_flatten_with_path(bath)[0]
        return type(bath), [(jax.tree_util.keystr(where), np.shape(x)) for where, x in named]

    if shapes(expected) != shapes(state.bath):
        raise ConfigError(
            f"The state was started with another ensemble: {type(ensemble).__name__} goes on from {_named(expected)}, and "
            f"the state has {_named(state.bath)}. Give `start` the ensemble of the rollout."
        )


def _named(bath: Any) -> str:
    if isinstance(bath, tuple):
        return "nothing"
    return ", ".join(sorted(bath)).replace("_", " ") if isinstance(bath, dict) else f"jax-md's {type(bath).__name__}"
