"""What must hold of a store beside its checksums, which an edited one may have too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from leignn_jax.errors import FileFormatError


def check_meta(meta: Mapping[str, Any], arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise an error of any kind where meta.json is not what ``write_store`` writes; ``arrays``: type and shape of a row."""
    cutoff, elements = meta["cutoff"], meta["elements"]
    if type(cutoff) is not float or not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff {cutoff!r}")
    if not isinstance(elements, list) or not set(elements) <= set(chemical_symbols[1:]):
        raise ValueError(f"elements {elements!r}")
    for names, distance in meta["shortest"].items():
        if not set(names.split()) <= set(elements) or len(names.split()) != 2 or not distance > 0:
            raise ValueError(f"shortest distance of {names}: {distance!r}")
    if not isinstance(meta["facts"], dict):
        raise ValueError(f"facts {meta['facts']!r}")
    kinds = {**arrays, "counts": ("<i4", (len(elements),))}
    if meta["arrays"].keys() != kinds.keys():
        raise ValueError(f"arrays {', '.join(sorted(meta['arrays'].keys() ^ kinds.keys()))} in one of both only")
    rows = {}
    for name, (dtype, row) in kinds.items():
        facts = meta["arrays"][name]
        rows[name] = facts["shape"][0]
        sizes = [rows[name], facts["start"], facts["bytes"]]
        if facts["dtype"] != dtype or tuple(facts["shape"][1:]) != row or not all(type(n) is int for n in sizes):
            raise ValueError(f"{name}: {facts}")
    frames, per_atom = rows["neighbors"], {"positions", "forces", "numbers"}
    per_pair, offsets = {"receivers", "senders", "shifts"}, {"atom_offsets", "pair_offsets"}
    for name, count in rows.items():
        like = "numbers" if name in per_atom else "receivers" if name in per_pair else None
        want = rows[like] if like else frames + 1 if name in offsets else count if name == "counts" else frames
        if count != want:
            raise ValueError(f"{name} has {count} rows, not {want}")


def check_offsets(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise FileFormatError where offsets do not divide the rows that they are of."""
    for name, of in (("atom_offsets", "numbers"), ("pair_offsets", "receivers")):
        offsets = arrays[name]
        if offsets[0] != 0 or offsets[-1] != len(arrays[of]) or (np.diff(offsets) < 0).any():
            raise FileFormatError(f"{folder / name}.npy: edited: its offsets do not divide the rows of {of}.")
