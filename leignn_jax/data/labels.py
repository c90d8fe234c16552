"""Labels: energy, forces and stress of one frame, wherever its file put them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leignn_jax.arguments import check_mapping, did_you_mean, numbers_of, shown
from leignn_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    import ase

Keys = Mapping[str, str | Sequence[str]]

# What a label may be called, the plain name first: names of the calculator's results, of atoms.info or of atoms.arrays.
# `free_energy` is what VASP's forces are the slope of; `energy` beside it is another quantity, and goes first as in ASE.
DEFAULT_KEYS: dict[str, tuple[str, ...]] = {
    "energy": ("energy", "REF_energy", "ref_energy", "dft_energy", "DFT_energy", "total_energy", "free_energy"),
    "forces": (
        "forces",
        "force",
        "REF_forces",
        "ref_forces",
        "dft_forces",
        "DFT_forces",
        "REF_force",
        "ref_force",
        "dft_force",
        "DFT_force",
        "atomic_forces",
    ),
    "stress": (
        "stress",
        "REF_stress",
        "ref_stress",
        "dft_stress",
        "DFT_stress",
        "virial",
        "virials",
        "REF_virial",
        "REF_virials",
        "ref_virial",
        "ref_virials",
        "dft_virial",
        "dft_virials",
        "DFT_virial",
        "DFT_virials",
    ),
}
# Beyond these no calculation of electrons gives a number: eV per atom, eV/Å, eV/Å^3.
LARGEST = {"energy": 1e8, "forces": 1e6, "stress": 1e4}
# Å, beyond which positions or cell have moved since a calculator computed them: files have fewer digits than memory.
_MOVED = 1e-3
# Of two names of one label: what digits left out and single precision may make of the same number.
_RELATIVE, _ABSOLUTE = 1e-4, {"energy": 1e-4, "forces": 1e-3, "stress": 1e-4}


class Labels(NamedTuple):
    """What DFT says of one frame, None where the file says nothing.

    energy: eV, of the whole frame.
    forces: ``[atoms, 3]`` float64, eV/Å.
    stress: ``[3, 3]`` float64, eV/Å^3, ASE's sign; None where the frame is not periodic in all directions.
    """

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def read_labels(atoms: ase.Atoms, name: str = "frame", keys: Keys | None = None) -> Labels:
    """The labels of one frame, checked.

    A label is looked for under its names of ``DEFAULT_KEYS``. A virial becomes a stress: it is minus the derivative of the
    energy by the strain, as QUIP, MACE and DeePMD-kit have it, and any name with "virial" in it is one.

    Args:
        atoms: as ASE read it.
        name: what to call the frame in errors, its file and number.
        keys: other places of "energy", "forces" or "stress", such as ``{"energy": "vasp_energy"}``; a key names an entry
            of the calculator's results, of ``atoms.info`` or of ``atoms.arrays``.

    Raises:
        ConfigError: keys of something that is no label.
        DataError: no atoms, no number or not a finite one, a shape that does not fit, a key that the frame lacks, two
            names of one label that say different numbers, or results of a calculator that are of other positions.
    """
    check_keys(keys)
    if len(atoms) == 0:
        raise DataError(f"{name}: no atoms. Take the frame out of the file.")
    places = {place for label in DEFAULT_KEYS for place in places_of(label, keys)}
    if not places.isdisjoint(_results(atoms)) and _is_of_another(atoms):
        raise DataError(
            f"{name}: what its calculator holds is of another structure: one calculator was used for several frames, or the "
            "atoms were moved since. Compute each frame and give it atoms.calc = SinglePointCalculator(atoms, energy=..., "
            "forces=...)."
        )
    labels = Labels(**{label: _read(atoms, name, label, keys or {}) for label in DEFAULT_KEYS})
    return labels if has_volume(atoms) else labels._replace(stress=None)


def check_keys(keys: Any) -> None:
    """ConfigError where ``keys`` name something that is no label."""
    for label in check_mapping("keys", keys):
        if label not in DEFAULT_KEYS:
            raise ConfigError(
                f"keys: {label!r} is no label{did_you_mean(label, DEFAULT_KEYS)} Labels are {', '.join(DEFAULT_KEYS)}."
            )


def _is_of_another(atoms: ase.Atoms) -> bool:
    """Whether a calculator's results are of other atoms; all moved alike, or by lattice vectors, they are the same."""
    of = getattr(atoms.calc, "atoms", None)
    if of is None or of is atoms:
        return False
    if len(of) != len(atoms) or (of.numbers != atoms.numbers).any() or (of.pbc != atoms.pbc).any():
        return True
    if np.abs(of.cell.array - atoms.cell.array).max() > _MOVED:
        return True
    moved = atoms.positions - of.positions
    moved = moved - moved[0]
    if atoms.pbc.any() and np.abs(moved).max(initial=0) > _MOVED:
        along = moved @ np.linalg.pinv(atoms.cell.array)
        moved = moved - (np.round(along) * atoms.pbc) @ atoms.cell.array
    return bool(np.abs(moved).max(initial=0) > _MOVED)


def has_volume(atoms: ase.Atoms) -> bool:
    """Whether a frame can have a stress: periodic in all directions, with a cell."""
    return bool(atoms.pbc.all()) and atoms.cell.rank == 3


def label_names(atoms: ase.Atoms, keys: Keys | None = None) -> dict[str, str]:
    """The name under which each label of a frame that is there stands; ``keys`` as in :func:`read_labels`."""
    names = {label: next(_entries(atoms, places_of(label, keys)), None) for label in DEFAULT_KEYS}
    return {label: found[0] for label, found in names.items() if found is not None}


def places_of(label: str, keys: Keys | None) -> tuple[str, ...]:
    """The names under which a label is looked for."""
    wanted = (keys or {}).get(label)
    if wanted is None:
        return DEFAULT_KEYS[label]
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted) if isinstance(wanted, list | tuple) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"keys: the name of the {label} must be text or a list of texts, not {shown(wanted)}.")
    return names


def label_of_names(keys: Keys | None) -> dict[str, str]:
    """Every name under which a label may stand, the default ones and those of ``keys``, and which label it is."""
    return {
        name: label for label in DEFAULT_KEYS for name in dict.fromkeys((*DEFAULT_KEYS[label], *places_of(label, keys)))
    }


def is_virial(key: str) -> bool:
    """Whether what stands under this name of a stress is a virial in eV."""
    return "virial" in key.lower() and "stress" not in key.lower()


def _read(atoms, name: str, label: str, keys: Keys) -> Any:
    places = places_of(label, keys)
    entries = list(_entries(atoms, places))
    if not entries:
        if label in keys:
            known = sorted({*_results(atoms), *map(str, atoms.info), *atoms.arrays})
            raise DataError(f"{name}: has no {label} named {' or '.join(places)}; it has {', '.join(known)}.")
        return None
    if label in keys:
        # The user's order decides between names; one name must not say two things.
        entries = [entry for entry in entries if entry[0] == entries[0][0]]
    first, *others = [(key, _checked(atoms, name, label, key, value)) for key, value in entries]
    for key, value in others:
        apart = "free_energy" in (key, first[0]) and key != first[0]
        if value is not None and not apart and not _agree(label, first[1], value):
            raise DataError(_two(name, label, first, (key, value)))
    return first[1]


def _entries(atoms, places: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of all that is there, in the order of the names."""
    for place in places:
        for store in (_results(atoms), atoms.info, atoms.arrays):
            value = store.get(place)
            if value is not None and not (is_virial(place) and atoms.cell.rank < 3):
                yield place, value


def _results(atoms) -> dict:
    return atoms.calc.results if atoms.calc is not None else {}


def _checked(atoms, name: str, label: str, key: str, value: Any) -> Any:
    what = f"{label} ({key})" if key != label else label
    array = numbers_of(value, f"{name}: the {what}")
    if label == "energy":
        if array.size != 1:
            raise DataError(f"{name}: the {what} has shape {array.shape}; one number for the frame is needed.")
        energy = float(array.reshape(()))
        _sensible(name, what, array, LARGEST["energy"] * len(atoms))
        return energy
    if label == "forces":
        if array.shape != (len(atoms), 3):
            raise DataError(f"{name}: {what} of shape {array.shape} for {len(atoms)} atoms.")
        bad = np.flatnonzero(~(np.abs(array) <= LARGEST["forces"]).all(axis=1))
        if len(bad):
            raise DataError(
                f"{name}: the force{'' if key == label else f' ({key})'} on atom {bad[0]} is {array[bad[0]]}. Take the "
                "frame out of the file."
            )
        return array
    stress = _square(array, name, what)
    if is_virial(key):
        stress = -stress / atoms.cell.volume
    _sensible(name, what, stress, LARGEST["stress"])
    return stress


def _agree(label: str, one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    scale = max(float(np.abs(one).max()), float(np.abs(other).max()))
    relative = 1e-6 if label == "energy" else _RELATIVE
    return bool((np.abs(one - other) <= _ABSOLUTE[label] + relative * scale).all())


def _two(name: str, label: str, one: tuple[str, Any], other: tuple[str, Any]) -> str:
    if one[0] == other[0]:
        return (
            f"{name}: {one[0]} stands there twice with different numbers, {_short(one[1])} in the calculator or info and "
            f"{_short(other[1])} besides. Take one out."
        )
    return (
        f"{name}: {one[0]} and {other[0]} differ as the {label}: {_short(one[1])} and {_short(other[1])}. Say which it "
        f"is: data.keys.{label}={other[0]} in a config, keys={{{label!r}: {other[0]!r}}} in Python."
    )


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"first {np.ravel(value)[:3].tolist()}"


def _square(stress: np.ndarray, name: str, what: str) -> np.ndarray:
    if stress.size == 9:
        return stress.reshape(3, 3)
    if stress.size == 6:
        xx, yy, zz, yz, xz, xy = stress.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    raise DataError(f"{name}: a {what} of shape {stress.shape}; 6 numbers (ASE's Voigt order) or 9 are needed.")


def _sensible(name: str, what: str, value: np.ndarray, largest: float) -> None:
    if not (np.abs(value) <= largest).all():
        raise DataError(f"{name}: the {what} is {value}. Take the frame out of the file.")
