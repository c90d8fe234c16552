"""DeePMD-kit: folders with type.raw and ``set.*/*.npy``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers

from leignn_jax.data.readers.frames import frame
from leignn_jax.errors import FileFormatError


def read_deepmd(path: Path) -> Iterator[ase.Atoms]:
    for types in sorted([*path.glob("type.raw"), *path.glob("*/type.raw")]):
        folder = types.parent
        kinds = np.loadtxt(types, dtype=int, ndmin=1)
        map_file = folder / "type_map.raw"
        if not map_file.exists():
            raise FileFormatError(
                f"{folder}: has no type_map.raw. Write one: the elements' symbols in the order of types."
            )
        symbols = map_file.read_text().split()
        if kinds.max() >= len(symbols):
            raise FileFormatError(f"{types}: type {kinds.max()}, but type_map.raw has only {len(symbols)} symbols.")
        unknown = [s for s in symbols if s not in atomic_numbers]
        if unknown:
            raise FileFormatError(f"{map_file}: {unknown[0]!r} is not an element's symbol.")
        numbers = np.array([atomic_numbers[s] for s in symbols])[kinds]
        periodic = not (folder / "nopbc").exists()
        for part in sorted(folder.glob("set.*")):
            arrays = {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in part.glob("*.npy")}
            positions = arrays["coord"].reshape(-1, len(numbers), 3)
            count = len(positions)
            boxes = arrays["box"].reshape(count, 3, 3) if periodic else [None] * count
            energies = arrays["energy"].reshape(count) if "energy" in arrays else [None] * count
            forces = arrays["force"].reshape(positions.shape) if "force" in arrays else [None] * count
            virials = arrays["virial"].reshape(count, 3, 3) if "virial" in arrays and periodic else [None] * count
            for r, box, e, f, w in zip(positions, boxes, energies, forces, virials, strict=True):
                # DeePMD's virial is minus the strain derivative: stress = -virial / volume.
                stress = None if w is None or box is None else -w / abs(np.linalg.det(box))
                yield frame(numbers, r, cell=box, energy=e, forces=f, stress=stress)
