"""JSON: mlearn's list of structures, and ASE's database."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.units
import numpy as np
from ase.data import atomic_numbers

from leignn_jax.arguments import numbers_of
from leignn_jax.data.labels import Keys
from leignn_jax.data.readers.databases import add_info
from leignn_jax.data.readers.frames import frame
from leignn_jax.errors import FileFormatError

# eV/Å^3 per kbar.
_KILOBAR = float(ase.units.GPa) / 10
# Å: digits left out of fractional coordinates.
_APART = 1e-2


def read_json(path: Path, keys: Keys | None = None) -> Iterator[ase.Atoms]:
    """mlearn's structures where the file is a list, else the rows of ASE's database, as those of a .db."""
    text = path.read_text(encoding="utf-8-sig")
    content = json.loads(text, object_pairs_hook=_object)
    if isinstance(content, list):
        yield from (_mlearn(entry, f"{path}: frame {i}") for i, entry in enumerate(content))
        return
    if isinstance(content, dict) and isinstance(content.get("ids"), list):
        rows = {key for key in content if key.isdigit()}
        named = [str(one) for one in content["ids"]]
        if len(set(named)) < len(named) or set(named) != rows:
            raise FileFormatError(f"{path}: ids are {named[:10]}, but the rows are {sorted(rows)[:10]}. Was it edited?")
    for row in ase.db.connect(io.StringIO(text), type="json", use_lock_file=False).select():
        atoms = row.toatoms()
        add_info(atoms, row, keys)
        yield atoms


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise FileFormatError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _mlearn(entry: Any, name: str) -> ase.Atoms:
    """pymatgen's structure with energy, forces and VASP's stress (kbar; pressure positive; xx, yy, zz, xy, yz, zx)."""
    structure, outputs = entry["structure"], entry["outputs"]
    sites, cell = structure["sites"], numbers_of(structure["lattice"]["matrix"], f"{name}: the lattice")
    elements = [_element(site, f"{name}: atom {i}") for i, site in enumerate(sites)]
    positions = numbers_of([site["xyz"] for site in sites], f"{name}: xyz")
    if all("abc" in site for site in sites):
        apart = np.abs(numbers_of([site["abc"] for site in sites], f"{name}: abc") @ cell - positions).max(axis=1)
        if not (apart < _APART).all():
            raise FileFormatError(f"{name}: xyz and abc of atom {int(np.argmax(apart))} are two places.")
    if entry.get("num_atoms", len(sites)) != len(sites):
        raise FileFormatError(f"{name}: num_atoms is {entry['num_atoms']}, but there are {len(sites)} sites.")
    stress = numbers_of(outputs["virial_stress"], f"{name}: virial_stress")
    if stress.shape != (6,):
        raise FileFormatError(f"{name}: virial_stress of shape {stress.shape}; 6 numbers are needed.")
    xx, yy, zz, xy, yz, zx = stress
    return frame(
        elements,
        positions,
        cell=cell,
        energy=outputs["energy"],
        forces=outputs["forces"],
        stress=-_KILOBAR * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]]),
        info={"config_type": entry["group"]},
    )


def _element(site: Any, name: str) -> int:
    species = site["species"]
    if len(species) != 1 or species[0].get("occu", 1) != 1:
        raise FileFormatError(f"{name} is of {len(species)} species or of broken occupancy.")
    symbol = species[0]["element"]
    if symbol not in atomic_numbers:
        raise FileFormatError(f"{name}: {symbol!r} is not an element's symbol.")
    return atomic_numbers[symbol]
