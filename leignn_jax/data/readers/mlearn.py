"""mlearn: a JSON list of structures with energy, forces and stress of VASP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.units
import numpy as np
from ase.data import atomic_numbers

from leignn_jax.data.readers.frames import frame

# eV/Å^3 per kbar.
_KILOBAR = float(ase.units.GPa) / 10


def read_mlearn(path: Path) -> Iterator[ase.Atoms]:
    """mlearn's JSON: pymatgen's structures with energy, forces and VASP's stress (kbar; pressure positive; xx, yy, zz, xy,
    yz, zx)."""
    for entry in json.loads(path.read_text()):
        structure, outputs = entry["structure"], entry["outputs"]
        xx, yy, zz, xy, yz, zx = outputs["virial_stress"]
        yield frame(
            [atomic_numbers[site["species"][0]["element"]] for site in structure["sites"]],
            [site["xyz"] for site in structure["sites"]],
            cell=structure["lattice"]["matrix"],
            energy=outputs["energy"],
            forces=outputs["forces"],
            stress=-_KILOBAR * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]]),
            info={"config_type": entry["group"]},
        )
