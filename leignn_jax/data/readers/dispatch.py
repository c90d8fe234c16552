"""Which reader a file or folder needs, and what is checked of all of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import ase
import ase.io
from ase.io.formats import filetype

from leignn_jax.arguments import check_path, shown
from leignn_jax.data.labels import Keys, check_keys
from leignn_jax.data.readers.databases import read_aselmdb, read_database, units_of_database
from leignn_jax.data.readers.deepmd import read_deepmd
from leignn_jax.data.readers.extxyz import read_extxyz
from leignn_jax.data.readers.frames import check_structure
from leignn_jax.data.readers.hdf5 import read_hdf5, units_of_hdf5
from leignn_jax.data.readers.jsons import read_json
from leignn_jax.data.readers.md17 import read_md17, units_of_md17
from leignn_jax.data.readers.s2ef import read_s2ef
from leignn_jax.data.readers.text import UNPACK, read_lines
from leignn_jax.data.readers.units import UNITS, convert, unit_factors
from leignn_jax.errors import ConfigError, DataError, FileFormatError

PICKLED = (".lmdb", ".pkl", ".pickle", ".pt", ".pth", ".p")


def read_frames(
    path: str | os.PathLike, *, index: str = ":", units: str | None = None, keys: Keys | None = None
) -> list[ase.Atoms]:
    """All frames of a file or folder; energy, forces and stress stand in each frame's calculator.

    Args:
        path: a file or folder, see the table of :mod:`leignn_jax.data.readers`.
        index: a slice like ASE's, ":100" or "::10".
        units: of energies and lengths, a key of ``UNITS``; None is the format's own (eV and Å but for raw MD17 files, which
            are in kcal/mol, and HDF5 whose attributes name another).
        keys: names of labels besides the known ones, as :func:`leignn_jax.data.read_labels` takes them: they are converted
            too.

    Raises:
        DataError: the slice is empty; otherwise as :func:`iter_frames`.
    """
    wanted = _slice(index)
    frames = iter_frames(path, units=units, keys=keys)
    if all(part is None or part >= 0 for part in (wanted.start, wanted.stop)) and (wanted.step or 1) > 0:
        chosen = list(islice(frames, wanted.start, wanted.stop, wanted.step))
    elif (wanted.start or 0) < 0 and wanted.stop is None and wanted.step is None:
        # The last few, such as "-1:", of a trajectory that need not fit into memory.
        chosen = list(deque(frames, maxlen=-wanted.start))
    else:
        chosen = list(frames)[wanted]
    if not chosen:
        raise DataError(f"{path}: no frames.")
    return chosen


def iter_frames(path: str | os.PathLike, *, units: str | None = None, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """The frames of a file or folder one by one, in its order; otherwise as :func:`read_frames`.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ConfigError: units that are not known, keys of something that is no label.
        FileFormatError: truncated, pickled, or of a form that no reader knows; names the file and the frame.
        DataError: a file without frames. The last two come when the frame is reached.
    """
    path = check_path("path", path)
    unit_factors(units)
    check_keys(keys)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    return _iter_checked(path, _reader(path, keys), UNITS[units or _own_units(path, keys)], keys)


_Reader = Callable[[Path], Iterator[ase.Atoms]]


def _iter_checked(path: Path, reader: _Reader, units: tuple[float, float], keys: Keys | None) -> Iterator[ase.Atoms]:
    """Frames in eV and Å; whatever a reader raises is made an error for people."""
    frames = reader(path)
    number = 0
    while True:
        try:
            atoms = next(frames, None)
        except (FileNotFoundError, PermissionError):
            raise
        except (FileFormatError, DataError) as error:
            if str(path) in str(error):
                raise
            raise type(error)(f"{path}: frame {number}: {error}.") from error
        except ImportError as error:
            raise FileFormatError(f"{path}: reading it needs a package that is not installed: {error}.") from error
        except Exception as error:
            # ASE's readers raise anything at all on a damaged file.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            place = f"frame {number} " if number else ""
            raise FileFormatError(
                f"{path}: {place}can't be read ({reason}). Is it truncated or of another format?"
            ) from error
        if atoms is None:
            break
        try:
            atoms = atoms if units == (1.0, 1.0) else convert(atoms, *units, keys)
            check_structure(atoms)
        except DataError as error:
            raise DataError(f"{path}: frame {number}: {error}") from error
        yield atoms
        number += 1
    if number == 0:
        raise DataError(f"{path}: no frames.")


def _reader(path: Path, keys: Keys | None) -> _Reader:
    if path.is_dir():
        if any(path.glob("*.aselmdb")):
            return partial(read_aselmdb, keys=keys)
        parts = [file.name.split(".")[0] for file in path.glob("*.extxyz*")]
        if any(part.isdigit() for part in parts) or (parts and any(path.glob("*.txt*"))):
            return read_s2ef
        if any(path.rglob("type.raw")):
            return read_deepmd
        raise FileFormatError(
            f"{path}: a folder of none of the known kinds (DeePMD-kit with type.raw, OC20 S2EF with .extxyz.xz "
            "and .txt, fairchem with .aselmdb). Give a file."
        )
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise FileFormatError(
            f"{path}: files of this kind hold Python pickles, and opening one can run any program, so it is not read. "
            "Where you trust it, convert it once in the environment that wrote it: collect its structures as ase.Atoms "
            "with SinglePointCalculator(atoms, energy=..., forces=...) and ase.io.write('frames.extxyz', frames)."
        )
    inner = path.with_suffix("").suffix.lower() if suffix in UNPACK else suffix
    if inner in (".extxyz", ".xyz"):
        return read_extxyz
    readers = {
        ".npz": read_md17,
        ".db": read_database,
        ".aselmdb": read_aselmdb,
        ".h5": read_hdf5,
        ".hdf5": read_hdf5,
        ".json": read_json,
    }
    return partial(readers[suffix], keys=keys) if suffix in readers else _read_by_ase


def _own_units(path: Path, keys: Keys | None) -> str:
    """The units of a file, where the user does not say them."""
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return units_of_hdf5(path)
    if suffix == ".db":
        return units_of_database(path, keys)
    return units_of_md17(path) if suffix == ".npz" else "eV/angstrom"


def _slice(index: str) -> slice:
    if not isinstance(index, str):
        raise ConfigError(f"index must be a slice as text, such as ':100' or '-1:', not {shown(index)}.")
    try:
        parts = [int(part) if part.strip() else None for part in index.split(":")]
    except ValueError:
        parts = []
    if ":" not in index or not 2 <= len(parts) <= 3 or parts[2:] == [0]:
        raise ConfigError(f"index: {index!r} is not a slice such as ':', ':100' or '::10'.")
    return slice(*parts)


def _read_by_ase(path: Path) -> Iterator[ase.Atoms]:
    kind = filetype(str(path))
    lammps = kind.startswith("lammps-dump")
    if kind == "lammps-dump-binary" or (lammps and not _names_elements(path)):
        raise FileFormatError(
            f"{path}: a LAMMPS dump that has types but no elements. Write it as text with `element` among its columns and "
            "`dump_modify ID element ...`, or read it by ase.io.read(..., specorder=[...]) and write extended XYZ."
        )
    # ASE would take what follows an "@" in a name for a slice.
    for atoms in ase.io.iread(path, index=":", format=kind, do_not_split_by_at_sign=True):
        if lammps and atoms.calc is not None:
            # ASE makes up an energy of 0.
            atoms.calc.results.pop("energy", None)
        yield atoms


def _names_elements(path: Path) -> bool:
    """Whether the columns of a LAMMPS dump, in text, have the elements."""
    columns = next((line for line in read_lines(path) if line.startswith("ITEM: ATOMS")), "")
    return "element" in columns.split()
