"""The state that a simulation goes on from exactly: arrays by safetensors, JSON beside them, a hash, and the one before.

The header of the file holds ``format``, ``meta``, ``arrays`` (what safetensors does not know of each: the dtype and
shape of numbers of unusual types, the generator of random keys) and ``sha256`` of everything else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.files import digest, remove_leftovers, why_not_written, write_atomically
from leignn_jax.safetensors_file import json_of, pack, unpack

log = logging.getLogger("leignn_jax")

FORMAT = "leignn_jax.simulation_state/2"


def save_state(path: str | Path, tree: Any, meta: dict[str, Any]) -> None:
    """Write a pytree of arrays, bit for bit, and ``meta`` (plain JSON); the state that was there becomes the previous one.

    path: such as ``state.safetensors``; the one before is kept as ``state.previous.safetensors``. A kill at any moment
    leaves a whole one. Random keys (``jax.random.key``) are arrays like others.

    Raises:
        SimulationError: it can't be written; what was there stays.
    """
    path = Path(path)
    arrays, notes = {}, {}
    for name, leaf in _named(tree):
        arrays[name], notes[name] = _encode(leaf)
    header = {"format": FORMAT, "meta": json.dumps(meta), "arrays": json.dumps(notes)}
    header["sha256"] = _hash(arrays, header)
    newest, previous = _beside(path, "next"), _beside(path, "previous")
    remove_leftovers(newest)
    try:
        write_atomically(newest, pack(arrays, header))
        if path.is_file():
            os.replace(path, previous)
        os.replace(newest, path)
    except OSError as error:
        newest.unlink(missing_ok=True)
        raise SimulationError(
            f"{path}: the state can't be written: {why_not_written(error)}. Then "
            + ("resume the run from its last state." if path.is_file() or previous.is_file() else "start the run anew.")
        ) from error


def load_state(
    path: str | Path, like: Any, check: Callable[[dict[str, Any]], None] = lambda meta: None
) -> tuple[Any, dict[str, Any]]:
    """The newest whole state at ``path``, as a tree like ``like``, and its meta; arrays are numpy's, random keys jax's.

    like: a pytree with the same structure, shapes and dtypes: arrays or ``jax.ShapeDtypeStruct``.
    check: is given the meta first, and raises where the state is not one to go on from.

    Raises:
        FileNotFoundError: there is none.
        FileFormatError: all that are there are damaged, or they are of another simulation.
    """
    path = Path(path)
    problems = []
    # The middle one is there only where a kill came between two renames.
    for candidate in (path, _beside(path, "next"), _beside(path, "previous")):
        if not candidate.is_file():
            continue
        try:
            arrays, header = _read(candidate)
        except FileFormatError as error:
            problems.append(str(error))
            log.warning("%s Trying the state before.", error)
            continue
        meta = json_of(candidate, header, "meta")
        check(meta)
        return _fill(candidate, arrays, json_of(candidate, header, "arrays"), like), meta
    if problems:
        raise FileFormatError(f"no state can be read: {' '.join(problems)} Start the simulation anew.")
    raise FileNotFoundError(f"{path}: no such file. Start the simulation without resuming.")


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(where), leaf) for where, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f"{path.stem}.{word}{path.suffix}")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _encode(leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """An array that safetensors can hold, and what it takes to get the leaf back."""
    if _is_key(leaf):
        return np.array(jax.random.key_data(leaf)), {"key": str(jax.random.key_impl(leaf))}
    array = np.array(leaf, order="C")
    if array.dtype.kind in "iufb" and array.dtype.isnative:
        return array, {}
    if array.dtype.hasobject or array.dtype.kind in "SUMm":
        raise SimulationError(f"a state holds arrays of numbers; one has dtype {array.dtype}.")
    return np.frombuffer(array.tobytes(), np.uint8), {"dtype": array.dtype.name, "shape": array.shape}


def _decode(array: np.ndarray, note: dict[str, Any]) -> Any:
    if "key" in note:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=note["key"])
    if "dtype" in note:
        return np.frombuffer(array.tobytes(), jnp.dtype(note["dtype"])).reshape(note["shape"])
    return array


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        arrays, header = unpack(path)
    except OSError as error:
        raise FileFormatError(f"{path}: can't be read ({error}).") from error
    if header.get("format") != FORMAT:
        raise FileFormatError(f"{path}: its format is {header.get('format')!r}, not {FORMAT!r}.")
    if header.pop("sha256", None) != _hash(arrays, header):
        raise FileFormatError(f"{path}: its checksum does not fit its content: it is damaged.")
    return arrays, header


def _hash(arrays: dict[str, np.ndarray], header: dict[str, str]) -> str:
    text = json.dumps(sorted(header.items())).encode()
    return digest({**arrays, "": np.frombuffer(text, np.uint8)})


def _fill(path: Path, arrays: dict[str, np.ndarray], notes: dict[str, dict[str, Any]], like: Any) -> Any:
    named = _named(like)
    missing = sorted(arrays.keys() ^ {name for name, _ in named})
    if missing:
        raise FileFormatError(f"{path}: a state of another simulation: {', '.join(missing)} is in one of them only.")
    leaves = []
    for name, leaf in named:
        try:
            found = _decode(arrays[name], notes[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{path}: what its header says of {name} is damaged ({error}).") from error
        want = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if (found.dtype, found.shape) != (want.dtype, want.shape):
            raise FileFormatError(
                f"{path}: a state of another simulation: {name} is {found.dtype}{list(found.shape)}, this one needs "
                f"{want.dtype}{list(want.shape)}."
            )
        leaves.append(found)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
