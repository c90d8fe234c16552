"""DeePMD-kit: folders with type.raw and ``set.*/*.npy``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers

from leignn_jax.data.readers.arrays import check_array
from leignn_jax.data.readers.frames import frame
from leignn_jax.errors import FileFormatError


def read_deepmd(path: Path) -> Iterator[ase.Atoms]:
    """Frames of a system, or of all systems in a folder one after another."""
    for types in sorted(path.rglob("type.raw")):
        folder = types.parent
        numbers = _numbers(types, folder / "type_map.raw")
        periodic = not (folder / "nopbc").exists()
        parts = sorted(folder.glob("set.*"))
        if not parts:
            raise FileFormatError(f"{folder}: has no folder set.000 of frames.")
        files = [{file.name for file in part.glob("*.npy")} for part in parts]
        for part, have in zip(parts, files, strict=True):
            lost = sorted(set.union(*files) - have)
            if lost:
                raise FileFormatError(
                    f"{part}: has no {lost[0]}, which other sets of {folder} have; is a file missing?"
                )
        for part in parts:
            yield from _read_part(part, numbers, periodic)


def _numbers(types: Path, map_file: Path) -> np.ndarray:
    """Atomic numbers ``[atoms]``."""
    if not map_file.exists():
        raise FileFormatError(
            f"{types.parent}: has no type_map.raw. Write one: the elements' symbols in the order of types."
        )
    symbols = map_file.read_text(encoding="utf-8-sig").split()
    unknown = [s for s in symbols if s not in atomic_numbers or s == "X"]
    if unknown:
        raise FileFormatError(f"{map_file}: {unknown[0]!r} is not an element's symbol.")
    if len(set(symbols)) < len(symbols):
        raise FileFormatError(f"{map_file}: names an element twice; the numbers of type.raw need one each.")
    words = types.read_text(encoding="utf-8-sig").split()
    for atom, word in enumerate(words):
        if not (word.isascii() and word.isdigit() and int(word[:9]) < len(symbols)):
            raise FileFormatError(
                f"{types}: type {word[:20]} of atom {atom}, but type_map.raw has only {len(symbols)} symbols, from 0."
            )
    if not words:
        raise FileFormatError(f"{types}: names no atom.")
    return np.array([atomic_numbers[s] for s in symbols])[[int(word) for word in words]]


def _read_part(part: Path, numbers: np.ndarray, periodic: bool) -> Iterator[ase.Atoms]:
    arrays = {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in part.glob("*.npy")}
    if "real_atom_types" in arrays:
        raise FileFormatError(
            f"{part}: systems of mixed types (real_atom_types.npy) are not read. Write one folder per composition."
        )
    missing = [name for name in ("coord", *(["box"] if periodic else [])) if name not in arrays]
    if missing:
        hint = " (a file named nopbc beside type.raw says that there are no cells)" if missing[0] == "box" else ""
        raise FileFormatError(f"{part}: has no {missing[0]}.npy{hint}.")
    count, atoms = len(arrays["coord"]) if arrays["coord"].ndim else 0, len(numbers)
    vectors, matrices = [(count, 3 * atoms), (count, atoms, 3)], [(count, 9), (count, 3, 3)]
    shapes = {"coord": vectors, "force": vectors, "box": matrices, "virial": matrices, "energy": [(count,), (count, 1)]}
    for name, allowed in shapes.items():
        if name in arrays:
            check_array(arrays[name], f"{part / name}.npy", *allowed)
    for i in range(count):
        row = {name: np.asarray(arrays[name][i], np.float64) for name in shapes if name in arrays}
        box = row["box"].reshape(3, 3) if periodic else None
        # DeePMD's virial is minus the strain derivative: stress = -virial / volume.
        stress = None if box is None or "virial" not in row else -row["virial"].reshape(3, 3) / abs(np.linalg.det(box))
        yield frame(
            numbers,
            row["coord"].reshape(atoms, 3),
            cell=box,
            energy=float(row["energy"].reshape(())) if "energy" in row else None,
            forces=row["force"].reshape(atoms, 3) if "force" in row else None,
            stress=stress,
        )
