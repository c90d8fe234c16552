"""One file per potential: arrays by safetensors, everything else as JSON in its header; no pickle.

Arrays are named ``params/<module>/<array>``, ``reference_energies``, ``scale``, ``energy_shift`` and, where there are
walls, ``walls``; the header holds ``format``, ``config``, ``units``, ``metadata``, ``leignn_jax_version`` and ``sha256``,
the hash of everything else, which tells an edited file. The same potential is the same bytes.

Whatever a file says is checked before it is believed: the size of its model by its arrays before a model is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from leignn_jax.arguments import check_path
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.files import write_atomically
from leignn_jax.models.config import ARCHITECTURES, ModelConfig, config_from_dict, did_you_mean
from leignn_jax.models.network import init_params
from leignn_jax.potential import Potential
from leignn_jax.safetensors_file import json_of, pack, unpack

FORMAT = "leignn_jax.potential/1"
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}
_CONSTANTS = ("reference_energies", "scale", "energy_shift")


def save_potential(potential: Potential, path: str | Path) -> None:
    """Write ``potential`` to ``path``, atomically: a reader sees the old file or the new one and nothing between.

    Raises:
        ConfigError: a number of it is NaN or infinite, its scale or a wall is negative, or the path is a folder; nothing is
            written.
    """
    from leignn_jax import __version__

    path = Path(path)
    if path.is_dir():
        raise ConfigError(
            f"{path}: is a folder; give the name of a file in it, such as {path / 'potential.safetensors'}."
        )
    arrays = {f"params/{k}": np.asarray(v) for k, v in flatten_dict(potential.params, sep="/").items()}
    arrays |= {name: np.asarray(getattr(potential, name), np.float64) for name in _CONSTANTS}
    if potential.walls is not None:
        arrays["walls"] = np.asarray(potential.walls, np.float64)
    arrays = {k: np.array(v, order="C") for k, v in arrays.items()}
    problem = _wrong_number(arrays)
    if problem is not None:
        raise ConfigError(f"{path}: the potential can't be saved: {problem}.")
    header = {
        "format": FORMAT,
        "config": json.dumps(potential.config.to_dict()),
        "units": json.dumps(UNITS, ensure_ascii=False),
        "metadata": potential.metadata_json,
        "leignn_jax_version": __version__,
    }
    header["sha256"] = _digest(arrays, header)
    write_atomically(path, pack(arrays, header))


def bundled_potentials() -> dict[str, Path]:
    """Names and files of the potentials that ship with the package; :meth:`Potential.summary` tells what each is."""
    return {
        path.stem: path for path in sorted((Path(__file__).parent / "resources" / "potentials").glob("*.safetensors"))
    }


def find_potential(path_or_name: str | Path) -> Path:
    """The file at a path, or that of a bundled potential by its name.

    Raises:
        FileNotFoundError: there is no such file and no such name.
        FileFormatError: it is a folder.
    """
    path = check_path("potential", path_or_name)
    bundled = bundled_potentials()
    if not path.is_file() and str(path) in bundled:
        path = bundled[str(path)]
    if path.is_dir():
        inside = path / "potential.safetensors"
        hint = f"Its potential is {inside}." if inside.is_file() else "Give the file of a potential."
        raise FileFormatError(f"{path}: is a folder. {hint}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file{did_you_mean(str(path), bundled)} Give the path of a potential that Potential.save "
            f"wrote, or one of {', '.join(bundled)}."
        )
    return path


def load_potential(path_or_name: str | Path) -> Potential:
    """The potential in a file that :meth:`Potential.save` wrote, or a bundled one by its name, such as ``"si"``.

    Raises:
        FileNotFoundError: there is no such file and no such name.
        FileFormatError: it is truncated, edited, or not a potential of this package.
    """
    path = find_potential(path_or_name)
    arrays, header = unpack(path)
    if header.get("format") != FORMAT:
        hint = " It looks like a checkpoint of the published code: use import_torch_checkpoint."
        torch_like = any(name.startswith(("message_layers", "atom_emb")) for name in arrays)
        raise FileFormatError(
            f"{path}: its format is {header.get('format')!r}, not {FORMAT!r}.{hint if torch_like else ''}"
        )
    expected = header.pop("sha256", None)
    if _digest(arrays, header) != expected:
        raise FileFormatError(f"{path}: its checksum does not fit its content: the file was edited or damaged.")
    if json_of(path, header, "units") != UNITS:
        raise FileFormatError(f"{path}: its units are {header['units']}; this version reads {UNITS}.")
    json_of(path, header, "metadata")
    flat = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    config = _read_config(path, header, flat)
    _check_shapes({name: array for name, array in arrays.items() if not name.startswith("params/")}, flat, config, path)
    problem = _wrong_number(arrays)
    if problem is not None:
        raise FileFormatError(f"{path}: {problem}.")
    return Potential(
        params=unflatten_dict(flat, sep="/"),
        config=config,
        metadata_json=header["metadata"],
        walls=arrays.get("walls"),
        **{name: arrays[name] for name in _CONSTANTS},
    )


def _read_config(path: Path, header: Mapping[str, str], flat: Mapping[str, np.ndarray]) -> ModelConfig:
    """The config in a header, which asks for no more than the file's arrays hold."""
    said = json_of(path, header, "config")

    def wrong(name: str, value: Any, words: str) -> FileFormatError:
        return FileFormatError(f"{path}: {name} in its config is {str(value)[:80]!r}{words}")

    architecture = said.get("architecture", "leignn")
    if architecture not in list(ARCHITECTURES):
        raise wrong("architecture", architecture, f", none of {', '.join(ARCHITECTURES)}.")
    defaults = {field.name: field.default for field in dataclasses.fields(ARCHITECTURES[architecture])}
    for name, value in said.items():
        kind = type(defaults.get(name))
        if kind is tuple and not (isinstance(value, list) and value and all(isinstance(e, str) for e in value)):
            raise wrong(name, value, ", not a list of symbols.")
        if kind in (bool, int, str) and type(value) is not kind:
            raise wrong(name, value, f", not of the type {kind.__name__}.")
    if "elements" not in said:
        raise FileFormatError(f"{path}: its config has no elements.")
    widest = max((n for array in flat.values() for n in array.shape), default=0)
    for name, limit in (("features", widest), ("num_radial", widest), ("layers", len(flat))):
        if said.get(name, 0) > limit:
            raise wrong(name, said[name], f", more than its arrays have room for ({limit}).")
    try:
        return config_from_dict(said)
    except (ConfigError, TypeError, OverflowError) as error:
        raise FileFormatError(
            f"{path}: written by leignn_jax {header.get('leignn_jax_version')}, whose settings this version does not "
            f"know: {error}"
        ) from error


def _wrong_number(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What no potential has among its numbers."""
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            return f"array {name} holds {array.dtype}, not real numbers"
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            return f"array {name} holds {array[tuple(bad[0])]} at {bad[0].tolist()}"
        if name in ("scale", "walls") and (array < 0).any():
            return f"{name} is negative ({array.min():g})"
    return None


def _digest(arrays: dict[str, np.ndarray], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(header.items())).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_shapes(
    others: Mapping[str, np.ndarray], flat: Mapping[str, np.ndarray], config: ModelConfig, path: Path
) -> None:
    """Raise FileFormatError where arrays are not those of the config, of one potential or of one committee."""
    params: dict[str, Any] = flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))), sep="/")
    count = len(config.elements)
    wanted = {name: array.shape for name, array in params.items()}
    wanted |= {"reference_energies": (count,), "scale": (), "energy_shift": ()}
    if "walls" in others and config.repulsion:
        wanted["walls"] = (count, count)
    found = {name: array.shape for name, array in {**flat, **others}.items()}
    members = set()
    for name in sorted(wanted.keys() | found.keys()):
        have, want = found.get(name), wanted.get(name)
        # A committee keeps its members on a leading axis.
        lead = None if have is None or want is None else have[: max(0, len(have) - len(want))]
        if have is None or want is None or lead is None or (*lead, *want) != have or 0 in have:
            raise FileFormatError(f"{path}: array {name} has shape {have}, the model in its header needs {want}.")
        # All of the network is of each member; constants may be of all of them together.
        members |= {lead} if name in params else {lead} - {()}
    if len(members) > 1:
        raise FileFormatError(f"{path}: its arrays are of committees of different sizes: {sorted(members)}.")
    walls = others.get("walls")
    if walls is not None and not np.array_equal(walls, np.swapaxes(walls, -1, -2)):
        raise FileFormatError(f"{path}: its walls are not symmetric: two elements would have two.")
