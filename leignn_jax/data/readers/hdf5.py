"""HDF5: one group per composition."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ase
import numpy as np

from leignn_jax.arguments import check_structures
from leignn_jax.data.labels import Keys, label_of_names, read_labels
from leignn_jax.data.readers.arrays import as_numbers, check_array
from leignn_jax.data.readers.frames import frame
from leignn_jax.data.readers.text import check_ratio
from leignn_jax.data.readers.units import units_said
from leignn_jax.errors import FileFormatError
from leignn_jax.files import write_atomically

if TYPE_CHECKING:
    import h5py

# Frames that are read at once.
_BLOCK = 256
_MADE = {"energy", "forces", "stress"}
_WRITTEN = "eV, angstrom"


def read_hdf5(path: Path, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """Frames of HDF5, one group per composition; labels under any of their names, or those of ``keys``."""
    import h5py

    with h5py.File(path, "r") as file:
        groups = [file] if "positions" in file else [item for item in file.values() if isinstance(item, h5py.Group)]
        if not groups:
            raise FileFormatError(f"{path}: no group with positions [frames, atoms, 3] and numbers [atoms].")
        for group in groups:
            yield from _read_group(path, group, label_of_names(keys))


def _read_group(path: Path, group: h5py.Group, labels: Mapping[str, str]) -> Iterator[ase.Atoms]:
    name = f"{path}: {str(group.name).strip('/')}/".replace(": /", ": ")
    missing = [key for key in ("positions", "numbers") if key not in group]
    if missing:
        raise FileFormatError(f"{path}: group {group.name} has no {missing[0]}.")
    found = [key for key in ("numbers", "positions", "cell", "pbc", "masses", "momenta", *labels) if key in group]
    wrong = [key for key in found if not hasattr(group[key], "dtype")]
    if wrong:
        raise FileFormatError(f"{name}{wrong[0]} is a group, not numbers.")
    sets = {key: cast("h5py.Dataset", group[key]) for key in found}
    for key, values in sets.items():
        check_ratio(path, values.size * values.dtype.itemsize, path.stat().st_size, f"{key} claims")
    numbers = as_numbers(np.asarray(sets.pop("numbers")), f"{name}numbers")
    check_array(sets["positions"], f"{name}positions", (-1, len(numbers), 3))
    count = len(sets["positions"])
    shapes = {"energy": [(count,), (count, 1)], "forces": [(count, len(numbers), 3)]}
    shapes["stress"] = [(count, 3, 3), (count, 6), (count, 9)]
    shapes |= {"cell": [(count, 3, 3)], "positions": shapes["forces"], "momenta": shapes["forces"]}
    shapes["masses"] = [(count, len(numbers)), (len(numbers),)]
    for key, values in sets.items():
        length = len(values) if values.ndim else 0
        if key != "masses" and length != count:
            raise FileFormatError(f"{path}: group {group.name} has {count} positions but {length} of {key}.")
        if key != "pbc":
            check_array(values, f"{name}{key}", *shapes[labels.get(key, key)])
        elif values.shape not in ((count,), (count, 3)) or values.dtype.kind not in "biu":
            raise FileFormatError(
                f"{name}pbc: of shape {list(values.shape)} and {values.dtype}; [frames, 3] is needed."
            )
    # One mass for each atom of all frames.
    masses = None
    if "masses" in sets and sets["masses"].ndim == 1:
        masses = np.asarray(sets.pop("masses"), np.float64)
    for start in range(0, count, _BLOCK):
        block = {key: values[start : start + _BLOCK] for key, values in sets.items()}
        for i in range(min(_BLOCK, count - start)):
            row = {key: values[i] for key, values in block.items()}
            plain = {key: row[key] for key in ("positions", "cell", "pbc", *_MADE) if key in row}
            atoms = frame(numbers, **plain, info={key: row[key] for key in labels if key in row and key not in _MADE})
            for key in ("masses", "momenta"):
                if key in row:
                    atoms.set_array(key, np.asarray(row[key], np.float64))
            if masses is not None:
                atoms.set_array("masses", masses)
            yield atoms


def units_of_hdf5(path: Path) -> str:
    """The key of ``UNITS`` that attributes of the file, its groups and datasets name; eV and Å where none does.

    Raises:
        FileFormatError: no HDF5; otherwise as :func:`leignn_jax.data.readers.units.units_said`.
    """
    import h5py

    said: dict[str, str] = {}

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        # No other: HDF5 searches without end for text of a file that is damaged there.
        for key in item.attrs:
            if "unit" in key.lower():
                value = item.attrs[key]
                said[f"{name}.{key}".lstrip(".")] = value.decode() if isinstance(value, bytes) else str(value)

    try:
        with h5py.File(path, "r") as file:
            is_trajectory = "h5md" in file
            look("", file)
            file.visititems(look)
    except Exception as error:
        raise FileFormatError(f"{path}: can't be read ({error}). Is it truncated or of another format?") from error
    if is_trajectory:
        raise FileFormatError(
            f"{path}: is a trajectory (H5MD). leignn_jax.read_trajectory(path).to_atoms() gives its frames, and "
            "leignn_jax.write_extxyz a file of them, as `leignn md --extxyz` does."
        )
    return units_said(path, said)


def write_hdf5(path: str | os.PathLike, frames: Sequence[ase.Atoms]) -> None:
    """Write labelled frames to HDF5, atomically: one group per composition, in eV and Å.

    Datasets of a group: numbers [atoms], positions [frames, atoms, 3], cell [frames, 3, 3], pbc [frames, 3], and energy
    [frames], forces [frames, atoms, 3], stress [frames, 3, 3] where every frame of the group has them.

    Raises:
        ConfigError: ``frames`` are no structures, or none.
    """
    import h5py

    frames = check_structures(frames, "frames")
    groups: dict[bytes, list[tuple[ase.Atoms, dict]]] = {}
    for i, atoms in enumerate(frames):
        labels = {k: v for k, v in read_labels(atoms, f"frame {i}")._asdict().items() if v is not None}
        key = atoms.numbers.astype(np.int32).tobytes() + ",".join(labels).encode()
        groups.setdefault(key, []).append((atoms, labels))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["units"] = np.bytes_(_WRITTEN)
        for number, members in enumerate(groups.values()):
            group = file.create_group(f"{number:06d}")
            group["numbers"] = members[0][0].numbers.astype(np.int32)
            group["positions"] = np.stack([atoms.positions for atoms, _ in members])
            group["cell"] = np.stack([np.asarray(atoms.cell) for atoms, _ in members])
            group["pbc"] = np.stack([atoms.pbc for atoms, _ in members])
            for name in members[0][1]:
                group[name] = np.stack([np.asarray(labels[name]) for _, labels in members])
    write_atomically(Path(path), buffer.getvalue())
