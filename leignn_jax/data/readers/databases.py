"""Databases of ASE: SQLite and LMDB."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.errors import FileFormatError

# Rows that are read at once.
_BLOCK = 256


def read_database(path: Path) -> Iterator[ase.Atoms]:
    from ase.db import connect

    database = connect(path)
    last = 0
    # In blocks: SQLite's rows are fetched all at once.
    while rows := list(database.select(f"id>{last}", sort="id", limit=_BLOCK)):
        for row in rows:
            atoms = row.toatoms()
            if atoms.calc is None and "total_energy" in row.key_value_pairs:
                # ISO17 keeps its labels in the row and not in a calculator.
                forces = row.data.get("atomic_forces")
                atoms.calc = SinglePointCalculator(
                    atoms,
                    energy=row.key_value_pairs["total_energy"],
                    **({} if forces is None else {"forces": np.asarray(forces, np.float64)}),
                )
            yield atoms
        last = rows[-1].id


def read_aselmdb(path: Path) -> Iterator[ase.Atoms]:
    from ase.db import connect

    files = sorted(path.glob("*.aselmdb")) if path.is_dir() else [path]
    try:
        importlib.import_module("ase_db_backends")  # registers the format with ASE
    except ImportError as error:
        raise FileFormatError(f"{path}: reading ASE's LMDB needs `pip install ase-db-backends`.") from error
    for file in files:
        for row in connect(file, type="aselmdb", readonly=True).select():
            yield row.toatoms()
