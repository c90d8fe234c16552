"""Databases of ASE: SQLite and LMDB."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.data.labels import Keys, label_of_names
from leignn_jax.data.readers.units import units_said
from leignn_jax.errors import FileFormatError

# Rows that are read at once.
_BLOCK = 256


def read_database(path: Path, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """Rows of an ASE database; its key-value pairs, and what is named as a label in its data, stand in info."""
    database = _opened(path)
    last = 0
    # In blocks: SQLite's rows are fetched all at once.
    while rows := list(database.select(f"id>{last}", sort="id", limit=_BLOCK)):
        for row in rows:
            atoms = row.toatoms()
            if atoms.calc is None and "total_energy" in row.key_value_pairs:
                # ISO17 keeps its labels in the row and not in a calculator.
                atoms.calc = SinglePointCalculator(atoms, energy=row.key_value_pairs["total_energy"])
                if "atomic_forces" in row.data:
                    atoms.calc.results["forces"] = row.data["atomic_forces"]
            add_info(atoms, row, keys)
            yield atoms
        last = rows[-1].id


def _opened(path: Path) -> Any:
    """An ASE database, which is not changed by that."""
    from ase.db.sqlite import SQLite3Database

    # ASE makes its tables in any other SQLite file.
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
        if file.execute("select 1 from sqlite_master where type='table' and name='systems'").fetchone() is None:
            raise FileFormatError(f"{path}: is SQLite, but no database of ASE: it has no table of systems.")
    return SQLite3Database(str(path))


def units_of_database(path: Path, keys: Keys | None = None) -> str:
    """The key of ``UNITS`` that SchNetPack wrote into a database; eV and Å where there is none.

    Raises:
        FileFormatError: no database of ASE; otherwise as :func:`leignn_jax.data.readers.units.units_said`.
    """
    try:
        metadata = _opened(path).metadata
    except sqlite3.Error as error:
        raise FileFormatError(f"{path}: can't be read ({error}). Is it truncated or of another format?") from error
    properties = metadata.get("_property_unit_dict")
    named = label_of_names(keys)
    said = {k: str(v) for k, v in properties.items() if k in named} if isinstance(properties, dict) else {}
    if metadata.get("_distance_unit"):
        said["positions"] = str(metadata["_distance_unit"])
    return units_said(path, said)


def read_aselmdb(path: Path, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """Rows of one of ASE's LMDB, or of all in a folder."""
    files = sorted(path.glob("*.aselmdb")) if path.is_dir() else [path]
    try:
        # Registers the format with ASE.
        backend = importlib.import_module("ase_db_backends.aselmdb").LMDBDatabase
    except ImportError as error:
        raise FileFormatError(f"{path}: reading ASE's LMDB needs `pip install ase-db-backends`.") from error
    for file in files:
        _check_lmdb(file)
        for row in backend(str(file), readonly=True).select():
            atoms = row.toatoms()
            add_info(atoms, row, keys)
            yield atoms


def add_info(atoms: ase.Atoms, row: Any, keys: Keys | None) -> None:
    """Put a row's key-value pairs, and what is named as a label in its data, into info."""
    data = row.data if isinstance(row.data, dict) else {}
    labels = {name: data[name] for name in label_of_names(keys) if name in data}
    atoms.info |= {**labels, **row.key_value_pairs}


# Of LMDB's data format 1 on machines of 64 bits: a page begins with 16 bytes of its own; then magic number, version, an
# address, the size of the map, two tables of 48 bytes (the first begins with the size of a page), last page, transaction.
_META = struct.Struct("<16xII16xI92xQQ")
_MAGIC = 0xBEEFC0DE


def _check_lmdb(path: Path) -> None:
    """Raise FileFormatError where pages are missing that LMDB would look for: its library dies of that with SIGBUS."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(_META.size)
        if len(first) < _META.size:
            raise FileFormatError(f"{path}: {size} bytes are no LMDB. Is it cut short?")
        magic, version, page, last, transaction = _META.unpack(first)
        if magic != _MAGIC or version != 1 or page not in [2**k for k in range(9, 17)]:
            raise FileFormatError(f"{path}: is no LMDB, or damaged in its first page.")
        file.seek(page)
        second = file.read(_META.size)
    if len(second) == _META.size and _META.unpack(second)[0] == _MAGIC:
        last = max((transaction, last), (_META.unpack(second)[4], _META.unpack(second)[3]))[1]
    else:
        raise FileFormatError(f"{path}: is damaged or cut short in its second page.")
    if size < (last + 1) * page:
        raise FileFormatError(f"{path}: cut short: {size} bytes, and its pages are {(last + 1) * page}. Copy it again.")
