"""One file per potential: arrays by safetensors, everything else as JSON in its header; no pickle.

Arrays are named ``params/<module>/<array>``, ``reference_energies``, ``scale``, ``energy_shift`` and, where there are
walls, ``walls``; the header holds ``format``, ``config``, ``units``, ``metadata``, ``leignn_jax_version`` and ``sha256``,
the hash of everything else, which tells an edited file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from leignn_jax.arguments import check_path
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.files import write_atomically
from leignn_jax.models.config import LEIGNNConfig, did_you_mean
from leignn_jax.models.leignn import init_params
from leignn_jax.potential import Potential

FORMAT = "leignn_jax.potential/1"
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}
_CONSTANTS = ("reference_energies", "scale", "energy_shift")


def save_potential(potential: Potential, path: str | Path) -> None:
    """Write ``potential`` to ``path``, atomically: a reader sees the old file or the new one and nothing between."""
    from safetensors.numpy import save

    from leignn_jax import __version__

    path = Path(path)
    arrays = {f"params/{k}": np.asarray(v) for k, v in flatten_dict(potential.params, sep="/").items()}
    arrays |= {name: np.asarray(getattr(potential, name), np.float64) for name in _CONSTANTS}
    if potential.walls is not None:
        arrays["walls"] = np.asarray(potential.walls, np.float64)
    arrays = {k: np.array(v, order="C") for k, v in arrays.items()}
    header = {
        "format": FORMAT,
        "config": json.dumps(potential.config.to_dict()),
        "units": json.dumps(UNITS, ensure_ascii=False),
        "metadata": potential.metadata_json,
        "leignn_jax_version": __version__,
    }
    header["sha256"] = _digest(arrays, header)
    write_atomically(path, save(arrays, metadata=header))


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
    from safetensors import SafetensorError, safe_open

    path = find_potential(path_or_name)
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, ValueError) as error:
        raise FileFormatError(
            f"{path}: not a readable .safetensors file ({error}). Truncated? Copy it again."
        ) from error
    if header.get("format") != FORMAT:
        hint = " It looks like a checkpoint of the published code: use import_torch_checkpoint."
        torch_like = any(name.startswith(("message_layers", "atom_emb")) for name in arrays)
        raise FileFormatError(
            f"{path}: its format is {header.get('format')!r}, not {FORMAT!r}.{hint if torch_like else ''}"
        )
    expected = header.pop("sha256", None)
    if _digest(arrays, header) != expected:
        raise FileFormatError(f"{path}: its checksum does not fit its content: the file was edited or damaged.")
    try:
        config = LEIGNNConfig.from_dict(json.loads(header["config"]))
    except ConfigError as error:
        raise FileFormatError(
            f"{path}: written by leignn_jax {header.get('leignn_jax_version')}, whose settings this version does not "
            f"know: {error}"
        ) from error
    flat = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    _check_shapes(flat, config, path)
    return Potential(
        params=unflatten_dict(flat, sep="/"),
        config=config,
        metadata_json=header["metadata"],
        walls=arrays.get("walls"),
        **{name: arrays[name] for name in _CONSTANTS},
    )


def _digest(arrays: dict[str, np.ndarray], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(header.items())).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_shapes(flat: dict[str, np.ndarray], config: LEIGNNConfig, path: Path) -> None:
    expected: dict[str, Any] = flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))), sep="/")
    for name in sorted(expected.keys() | flat.keys()):
        have = flat[name].shape if name in flat else None
        want = expected[name].shape if name in expected else None
        # A committee keeps its members on a leading axis.
        if have is None or want is None or have[len(have) - len(want) :] != want:
            raise FileFormatError(f"{path}: array {name} has shape {have}, the model in its header needs {want}.")
