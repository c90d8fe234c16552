"""HDF5: one group per composition."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import ase
import numpy as np

from leignn_jax.data.labels import read_labels
from leignn_jax.data.readers.frames import frame
from leignn_jax.errors import FileFormatError
from leignn_jax.files import write_atomically

# Frames that are read at once.
_BLOCK = 256
_HDF5_LABELS = ("energy", "forces", "stress")


def read_hdf5(path: Path) -> Iterator[ase.Atoms]:
    import h5py

    with h5py.File(path, "r") as file:
        groups = [file] if "positions" in file else [item for item in file.values() if isinstance(item, h5py.Group)]
        if not groups:
            raise FileFormatError(f"{path}: no group with positions [frames, atoms, 3] and numbers [atoms].")
        for group in groups:
            missing = [name for name in ("positions", "numbers") if name not in group]
            if missing:
                raise FileFormatError(f"{path}: group {group.name} has no {missing[0]}.")
            numbers = np.asarray(group["numbers"])
            sets = {
                k: cast("h5py.Dataset", group[k]) for k in ("positions", *_HDF5_LABELS, "cell", "pbc") if k in group
            }
            count = len(sets["positions"])
            for name, values in sets.items():
                if len(values) != count:
                    raise FileFormatError(
                        f"{path}: group {group.name} has {count} positions but {len(values)} of {name}."
                    )
            for start in range(0, count, _BLOCK):
                block = {name: values[start : start + _BLOCK] for name, values in sets.items()}
                for i in range(min(_BLOCK, count - start)):
                    yield frame(numbers, **{name: values[i] for name, values in block.items()})


def write_hdf5(path: str | os.PathLike, frames: Sequence[ase.Atoms]) -> None:
    """Write labelled frames to HDF5, atomically: one group per composition, in eV and Å.

    Datasets of a group: numbers [atoms], positions [frames, atoms, 3], cell [frames, 3, 3], pbc [frames, 3], and energy
    [frames], forces [frames, atoms, 3], stress [frames, 3, 3] where every frame of the group has them.
    """
    import h5py

    groups: dict[bytes, list[tuple[ase.Atoms, dict]]] = {}
    for i, atoms in enumerate(frames):
        labels = {k: v for k, v in read_labels(atoms, f"frame {i}")._asdict().items() if v is not None}
        key = atoms.numbers.astype(np.int32).tobytes() + ",".join(labels).encode()
        groups.setdefault(key, []).append((atoms, labels))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["units"] = "eV, angstrom"
        for number, members in enumerate(groups.values()):
            group = file.create_group(f"{number:06d}")
            group["numbers"] = members[0][0].numbers.astype(np.int32)
            group["positions"] = np.stack([atoms.positions for atoms, _ in members])
            group["cell"] = np.stack([np.asarray(atoms.cell) for atoms, _ in members])
            group["pbc"] = np.stack([atoms.pbc for atoms, _ in members])
            for name in members[0][1]:
                group[name] = np.stack([np.asarray(labels[name]) for _, labels in members])
    write_atomically(Path(path), buffer.getvalue())
