"""Evaluate a potential on labelled frames: errors in the units people quote, and the numbers behind parity plots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np

from leignn_jax.arguments import check_dtype, check_flag, check_structures
from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.data.readers.units import convert, unit_factors
from leignn_jax.errors import ConfigError, DataError, LeignnError
from leignn_jax.potential import Potential, check_potential


class Evaluation(NamedTuple):
    """Errors and what they come from.

    metrics: MAE and RMSE in meV/atom, meV/Å and meV/Å^3, None where there are no labels; ``structures``, their number;
        ``energy_offset_mev_per_atom``, mean of prediction minus label.
    energies: ``[frames, 2]`` eV/atom, label and prediction, both less the potential's reference energies.
    forces: ``[components, 2]`` eV/Å, label and prediction.
    stresses: ``[components, 2]`` eV/Å^3, label and prediction.
    """

    metrics: dict[str, Any]
    energies: np.ndarray
    forces: np.ndarray
    stresses: np.ndarray


def evaluate(
    potential: Potential,
    data: str | Path | Sequence,
    *,
    units: str | None = None,
    keys: dict | None = None,
    dtype: str = "float32",
    direct: bool = False,
) -> Evaluation:
    """Compare a potential with the labels of a file or of frames.

    Args:
        potential: to be judged.
        data: a file or folder that :func:`leignn_jax.data.read_frames` reads, or a sequence of ``ase.Atoms``.
        units, keys: as there, also of frames, and in :func:`leignn_jax.data.read_labels`.
        dtype: of the arithmetic.
        direct: judge the direct head's forces instead of the energy's gradient.

    Raises:
        ConfigError: ``direct`` of a potential without direct forces.
        DataError: no frame has a label.
        LeignnError: frames that can't be read or that hold another element; names file and frame.
    """
    check_potential(potential)
    check_dtype(dtype)
    check_flag("direct", direct)
    if isinstance(data, str | Path):
        frames, file = iter_labelled(data, units=units, keys=keys), f"{data}: "
    else:
        given = enumerate(check_structures(data, "data"))
        factors = unit_factors(units)

        def labelled(i: int, atoms: ase.Atoms) -> tuple[ase.Atoms, Labels]:
            # Before they are converted it can be told whether labels are of these atoms.
            labels = read_labels(atoms, f"frame {i}", keys)
            if factors == (1.0, 1.0):
                return atoms, labels
            atoms = convert(atoms, *factors, keys)
            return atoms, read_labels(atoms, f"frame {i}", keys)

        frames, file = (labelled(i, atoms) for i, atoms in given), ""

    def checked() -> Iterator[tuple[ase.Atoms, Labels]]:
        for i, (atoms, labels) in enumerate(frames):
            try:
                potential.check_elements(atoms.numbers)
            except LeignnError as error:
                raise type(error)(f"{file}frame {i}: {error}") from error
            yield atoms, labels

    return compare(potential, checked(), direct, dtype)


def compare(
    potential: Potential, frames: Iterable[tuple[ase.Atoms, Labels]], direct: bool = False, dtype: str = "float32"
) -> Evaluation:
    """The evaluation of labelled frames, which need not be in memory together; arguments as in :func:`evaluate`."""
    if direct and not potential.config.direct_forces:
        raise ConfigError("direct: the potential has no head for direct forces; compare its gradient.")
    _, references = potential.split_references()
    labelled, ahead = tee(frames)
    predictions = potential.iter_predict((atoms for atoms, _ in ahead), dtype=dtype)
    energies, forces, stresses = [], [], []
    count = 0
    for (atoms, label), prediction in zip(labelled, predictions, strict=True):
        count += 1
        if label.energy is not None:
            base = references[atoms.numbers].sum()
            energies.append([(label.energy - base) / len(atoms), (prediction.energy - base) / len(atoms)])
        if label.forces is not None:
            found = prediction.direct_forces if direct else prediction.forces
            forces.append(np.stack([label.forces.ravel(), found.ravel()], axis=1))
        if label.stress is not None and np.isfinite(prediction.stress).all():
            stresses.append(np.stack([label.stress.ravel(), prediction.stress.ravel()], axis=1))
    if not (energies or forces or stresses):
        raise DataError(
            f"None of the {count} frames has an energy, forces or a stress to compare with. Where they go by other names, "
            "say so by keys."
        )
    tables = {
        "energy": np.array(energies).reshape(-1, 2),
        "forces": np.concatenate(forces) if forces else np.zeros((0, 2)),
        "stress": np.concatenate(stresses) if stresses else np.zeros((0, 2)),
    }
    units = {"energy": "mev_per_atom", "forces": "mev_per_angstrom", "stress": "mev_per_angstrom3"}
    found: dict[str, Any] = {}
    for name, table in tables.items():
        error = 1e3 * (table[:, 1] - table[:, 0])
        found[f"{name}_mae_{units[name]}"] = float(np.abs(error).mean()) if len(error) else None
        found[f"{name}_rmse_{units[name]}"] = float(np.sqrt((error**2).mean())) if len(error) else None
    shift = tables["energy"]
    found["energy_offset_mev_per_atom"] = float(1e3 * (shift[:, 1] - shift[:, 0]).mean()) if len(shift) else None
    found["structures"] = count
    return Evaluation(found, tables["energy"], tables["forces"], tables["stress"])
