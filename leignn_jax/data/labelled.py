"""Frames of a file with their labels, and word of which names the labels stand under."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import ase
import numpy as np

from leignn_jax.data.labels import DEFAULT_KEYS, Keys, Labels, has_volume, label_names, read_labels
from leignn_jax.data.readers import iter_frames

log = logging.getLogger("leignn_jax")

# eV/atom: where energy and free energy differ more, which one it is matters.
_SMEARING = 1e-3


def iter_labelled(
    path: str | os.PathLike, *, units: str | None = None, keys: Keys | None = None
) -> Iterator[tuple[ase.Atoms, Labels]]:
    """The frames of a file or folder with their labels checked; other names than the plain ones are told in the log.

    Args:
        path, units: as :func:`leignn_jax.data.iter_frames` takes them.
        keys: as :func:`leignn_jax.data.read_labels` takes them.

    Raises:
        As these two; errors name the file and the frame.
    """
    names = {label: label for label in DEFAULT_KEYS}
    smeared = dropped = False
    for i, atoms in enumerate(iter_frames(path, units=units, keys=keys)):
        where = f"{path}: frame {i}"
        labels = read_labels(atoms, where, keys)
        if i == 0:
            for label, name in _unknown_names(atoms, labels).items():
                log.warning(
                    "%s: has no %s under a known name, but %r. Is it that? data.keys.%s=%s takes it.",
                    where,
                    label,
                    name,
                    label,
                    name,
                )
        found = label_names(atoms, keys)
        stress = None if has_volume(atoms) else found.pop("stress", None)
        if stress is not None and not dropped:
            log.warning(
                "%s: its %s is not taken: a frame that is not periodic in all directions has no volume to have a stress of.",
                where,
                stress,
            )
            dropped = True
        for label, name in found.items():
            if name != names[label]:
                log.info("%s: %s is taken from %r.", where, label, name)
                names[label] = name
        if not smeared and (apart := _smearing(atoms, keys)) > _SMEARING:
            log.info(
                "%s: energy and free_energy differ by %.3g eV/atom (smearing); energy is taken, the forces are the slope "
                "of the other. data.keys.energy=free_energy takes that.",
                where,
                apart,
            )
            smeared = True
        yield atoms, labels


def _unknown_names(atoms: ase.Atoms, labels: Labels) -> dict[str, str]:
    """What looks like a label that a frame has not, by its name and its shape."""
    shapes = {"energy": [()], "forces": [(len(atoms), 3)]}
    if has_volume(atoms):
        shapes["stress"] = [(6,), (9,), (3, 3)]
    words = {"energy": ("energy",), "forces": ("force",), "stress": ("stress", "virial")}
    found = {}
    for label, allowed in shapes.items():
        if getattr(labels, label) is None:
            for name, value in {**atoms.info, **atoms.arrays}.items():
                alike = isinstance(name, str) and any(word in name.lower() for word in words[label])
                if alike and _shape_of_numbers(value) in allowed:
                    found.setdefault(label, name)
    return found


def _shape_of_numbers(value: Any) -> tuple[int, ...] | None:
    try:
        array = np.asarray(value)
    except ValueError:
        # Lists of several lengths.
        return None
    return array.shape if array.dtype.kind in "iuf" else None


def _smearing(atoms: ase.Atoms, keys: Keys | None) -> float:
    """eV/atom between a calculator's energy and its free energy, 0 where one is not there or the user chose."""
    results = {} if atoms.calc is None or (keys or {}).get("energy") else atoms.calc.results
    energy, free = results.get("energy"), results.get("free_energy")
    return 0.0 if energy is None or free is None else abs(float(energy) - float(free)) / len(atoms)
