"""What public calls are given, checked at their faces: each check returns its argument, or says in words what is wrong."""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leignn_jax.errors import ConfigError, DataError, StructureError

if TYPE_CHECKING:
    import ase

# Steps and seeds are 32-bit numbers on the device.
MOST_STEPS = 2**31 - 1
MOST_SEED = 2**32 - 1


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest of those known, or a full stop."""
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else "."


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """One of a few values."""
    allowed = list(allowed)
    value = value.item() if isinstance(value, np.generic) else value
    if not any(type(value) is type(one) and value == one for one in allowed):
        hint = did_you_mean(str(value), [str(one) for one in allowed])
        raise ConfigError(f"{name}: {value!r} is not known{hint} One of {allowed}.")
    return value


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number from ``least`` to ``most``."""
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):
        to = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ConfigError(f"{name} must be a whole number {to}, not {shown(value)}.")
    return int(value)


def check_number(
    name: str, value: Any, *, positive: bool = False, least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number above zero where ``positive``, not below ``least`` and not beyond ``most``."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    read = float(array) if array.shape == () and array.dtype.kind in "iuf" else math.nan
    if not (math.isfinite(read) and (read > 0 or not positive) and least <= read <= most):
        kind = "positive number" if positive else "number"
        ranges = [f"of at least {least:g}"] * (least > -math.inf) + [f"of at most {most:g}"] * (most < math.inf)
        raise ConfigError(" ".join([f"{name} must be a {kind}", *ranges]) + f", not {shown(value)}.")
    return read


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, not {shown(value)}.")
    return bool(value)


def check_seed(value: Any, name: str = "seed") -> int:
    """The seed of random numbers."""
    return check_whole(name, value, 0, MOST_SEED)


def check_dtype(value: Any, name: str = "dtype") -> str:
    """The name of a floating-point type that this process's device has."""
    if not isinstance(value, str) or value not in ("float32", "float64"):
        raise ConfigError(f"{name} must be 'float32' or 'float64', not {shown(value)}.")
    if value == "float64":
        import jax  # not for `leignn --help`

        if jax.default_backend() == "tpu":
            raise ConfigError(f"{name}: a TPU has no float64. Take 'float32', or a CPU (JAX_PLATFORMS=cpu).")
    return value


def check_path(name: str, value: Any) -> Path:
    """A file's or folder's name."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ConfigError(f"{name} must be the name of a file or folder, not {shown(value)}.")
    return Path(value)  # pyright: ignore[reportArgumentType]


def check_sequence(name: str, value: Any) -> list[Any]:
    """Several things, as a list."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list, not {shown(value)}.")
    return list(value)


def check_mapping(name: str, value: Any) -> dict[Any, Any]:
    """Values by name, as a dict; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a dict, not {shown(value)}.")
    return dict(value or {})


def check_array(name: str, value: Any, shape: tuple[Any, ...], kinds: str = "iuf") -> np.ndarray:
    """An array of real numbers of this shape, in which None is any size, and ``...`` at its start any further axes."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in kinds:
        what = "whole numbers" if kinds == "iu" else "numbers"
        raise ConfigError(f"{name} must be an array of {what}, not {shown(value)}.")
    last = shape[1:] if shape[:1] == (...,) else shape
    have = array.shape[array.ndim - len(last) :] if last is not shape and array.ndim >= len(last) else array.shape
    if len(have) != len(last) or any(want not in (None, size) for want, size in zip(last, have, strict=True)):
        wanted = ", ".join({None: "any", ...: "..."}.get(size, str(size)) for size in shape)
        raise ConfigError(f"{name} must have the shape [{wanted}], not {list(array.shape)}.")
    return array


def numbers_of(value: Any, what: str) -> np.ndarray:
    """A value as float64; DataError, which calls it ``what``, where it is text, true or false, complex, ragged, a dict."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is ragged or no numbers ({error}).") from error
    if np.ma.is_masked(value):
        raise DataError(f"{what} is masked where a number should stand.")
    if isinstance(value, list | tuple) and any(isinstance(one, bool) for one in np.array(value, object).flat):
        raise DataError(f"{what} holds true or false among its numbers.")
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} is {repr(value)[:60]}, not {'a number' if array.ndim == 0 else 'numbers'}.")
    return array.astype(np.float64)


def check_atoms(atoms: Any, name: str = "atoms") -> ase.Atoms:
    """One structure of real atoms."""
    import ase

    if not isinstance(atoms, ase.Atoms):
        remedy = "; leignn_jax.read_frames reads files" if isinstance(atoms, str | Path) else ""
        raise StructureError(f"{name} must be ase.Atoms, not {shown(atoms)}{remedy}.")
    where = "" if name == "atoms" else f"{name}: "
    if len(atoms) == 0:
        raise StructureError(f"{where}The structure has no atoms.")
    if atoms.numbers.min() < 1:
        index = int(atoms.numbers.argmin())
        raise StructureError(
            f"{where}Atom {index} has atomic number {atoms.numbers[index]} (X); give every atom an element."
        )
    return atoms


def check_masses(atoms: ase.Atoms) -> np.ndarray:
    """``[atoms]`` amu, the masses, positive numbers."""
    masses = atoms.get_masses()
    wrong = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(wrong):
        raise ConfigError(
            f"Atom {wrong[0]} has the mass {masses[wrong[0]]} amu; give it a real one (atoms.set_masses)."
        )
    return masses


def check_structures(atoms: Any, name: str = "atoms") -> list[ase.Atoms]:
    """One structure or several, as a list."""
    import ase

    if isinstance(atoms, ase.Atoms):
        return [check_atoms(atoms, name)]
    if isinstance(atoms, str | Path | bytes) or not isinstance(atoms, Iterable):
        return [check_atoms(atoms, name)]
    found = [check_atoms(one, f"{name}[{index}]") for index, one in enumerate(atoms)]
    if not found:
        raise ConfigError(f"{name}: give one structure or more.")
    return found


def check_model(model: Any, name: str = "potential") -> Any:
    """A potential or another pytree with a cutoff in Å and a function ``compute`` of a graph."""
    import jax

    if not callable(getattr(model, "compute", None)) or not hasattr(model, "cutoff"):
        remedy = "; leignn_jax.load_potential reads files" if isinstance(model, str | Path) else ""
        raise ConfigError(
            f"{name} must be a Potential, or a pytree with a `cutoff` in Å and a method `compute(graph)`, not "
            f"{shown(model)}{remedy}."
        )
    if isinstance(model, type):
        raise ConfigError(f"{name}: {model.__name__} is a class; give an object of it.")
    check_number(f"{name}.cutoff", model.cutoff, positive=True)
    for leaf in jax.tree.leaves(model):
        if not isinstance(leaf, numbers.Number | np.ndarray | np.generic | jax.Array):
            raise ConfigError(
                f"{name} is no pytree of arrays, it holds {shown(leaf)}: decorate its class by flax.struct.dataclass and "
                "mark what is no array by field(pytree_node=False)."
            )
    return model


def shown(value: Any) -> str:
    """A value in a message: short ones as they are, of others the type."""
    text = repr(value) if isinstance(value, str | bytes | numbers.Number | bool | type(None)) else ""
    return text if 0 < len(text) <= 60 else f"{type(value).__name__}"
