"""Structures as extended XYZ, by ASE: whatever else they carry, what was computed is written."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable

import ase
import ase.io
import numpy as np
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

from leignn_jax.constraints import free_components
from leignn_jax.data.readers.extxyz import parse_comment
from leignn_jax.errors import ConfigError, FileFormatError

log = logging.getLogger("leignn_jax")

# Names of columns that say what the atoms are.
_TAKEN = ("species", "symbols", "pos", "Z", "move_mask")


def extxyz_of(frames: Iterable[ase.Atoms]) -> str:
    """Frames as the text of a file; what the format can't hold is left out, and told in the log.

    Constraints are written as the coordinates that they hold, where they hold such.
    """
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
    arrays = {name for name, array in atoms.arrays.items() if not _is_column(name, array) or name in results}
    info = {name for name, value in atoms.info.items() if not _is_entry(name, value) or name in results}
    constraints, without = _held(atoms)
    if not arrays and not info and constraints is atoms.constraints:
        return atoms, set()
    written = atoms.copy()
    written.calc = atoms.calc
    written.set_constraint(constraints)
    for name in arrays:
        del written.arrays[name]
    for name in info:
        del written.info[name]
    return written, {str(name) for name in arrays | info} | without


def _is_column(name: str, array: np.ndarray) -> bool:
    if name in ("numbers", "positions"):
        return True
    if name in _TAKEN or not _is_word(name) or set(name) & set(":=\"'{}[]\\"):
        return False
    if array.ndim > 2 or 0 in array.shape[1:]:
        return False
    kind = array.dtype.kind
    if kind == "i":
        # Readers make 32 bits of them.
        return array.size == 0 or bool(np.iinfo(np.int32).min <= array.min() and array.max() <= np.iinfo(np.int32).max)
    return kind in "fb" or (kind in "USO" and all(_is_word(str(one)) for one in array.flat))


def _is_word(text: str) -> bool:
    """Whether lines and columns of text keep it as it is."""
    return text.isprintable() and text.split() == [text]


def _is_entry(name, value) -> bool:
    """Whether it comes back under its name, and what is written behind it too, by our reader and ASE's."""
    if not isinstance(name, str) or name.lower() in ("lattice", "properties", "pbc"):
        return False
    try:
        with warnings.catch_warnings():
            # By which ASE says that it leaves something out.
            warnings.simplefilter("error", UserWarning)
            text = key_val_dict_to_str({name: value})
        both = (parse_comment(f"Properties=. {text} after=1"), key_val_str_to_dict(f"Properties=. {text} after=1"))
        return text.isprintable() and all(found.keys() == {"Properties", name, "after"} for found in both)
    except (TypeError, ValueError, AttributeError, UserWarning, FileFormatError):
        return False


def _held(atoms: ase.Atoms) -> tuple[list, set[str]]:
    """The constraints as they can be written, and the names of those that can't."""
    if all(isinstance(one, FixAtoms | FixCartesian) for one in atoms.constraints):
        return atoms.constraints, set()
    try:
        free = free_components(atoms)
    except ConfigError:
        written = [one for one in atoms.constraints if isinstance(one, FixAtoms | FixCartesian)]
        return written, {f"the constraint {type(one).__name__}" for one in atoms.constraints if one not in written}
    return [FixCartesian(int(i), ~free[i]) for i in np.flatnonzero(~free.all(1))], set()
