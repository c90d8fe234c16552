"""Structures as extended XYZ, by ASE: whatever else they carry, what was computed is written."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable

import ase
import ase.io
from ase.io.extxyz import key_val_dict_to_str

log = logging.getLogger("leignn_jax")


def extxyz_of(frames: Iterable[ase.Atoms]) -> str:
    """Frames as the text of a file; arrays and info that the format can't hold are left out, and told in the log."""
    text, left_out = io.StringIO(), set()
    for atoms in frames:
        written, without = _writable(atoms)
        left_out |= without
        ase.io.write(text, written, format="extxyz")
    if left_out:
        log.warning(
            "Extended XYZ can't hold these of the structures, which are left out: %s.", ", ".join(sorted(left_out))
        )
    return text.getvalue()


def _writable(atoms: ase.Atoms) -> tuple[ase.Atoms, set[str]]:
    """The atoms as they can be written, and the names of what can't."""
    results = set(atoms.calc.results) if atoms.calc is not None else set()
    arrays = {name for name, array in atoms.arrays.items() if not _is_column(array) or name in results}
    info = {name for name, value in atoms.info.items() if not _is_entry(name, value) or name in results}
    if not arrays and not info:
        return atoms, set()
    written = atoms.copy()
    written.calc = atoms.calc
    for name in arrays:
        del written.arrays[name]
    for name in info:
        del written.info[name]
    return written, {str(name) for name in arrays | info}


def _is_column(array) -> bool:
    return array.ndim <= 2 and array.dtype.kind in "fibUSO"


def _is_entry(name, value) -> bool:
    if not isinstance(name, str):
        return False
    try:
        with warnings.catch_warnings():
            # By which ASE says that it leaves something out.
            warnings.simplefilter("error", UserWarning)
            key_val_dict_to_str({name: value})
    except (TypeError, ValueError, UserWarning):
        return False
    return True
