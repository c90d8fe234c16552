"""Readers: from any supported file or folder to ``ase.Atoms`` with energy, forces and stress, one by one or all.

==========================  ===================================================================================
.extxyz, .xyz               extended XYZ; also .xz, .gz, .bz2, unpacked as it is read
.npz                        raw MD17 and rMD17; other units than kcal/mol by ``units``
folder with type.raw        DeePMD-kit, ``set.*/*.npy``, also several such folders under one
folder of ``.extxyz.xz``    OC20 S2EF, each file with its .txt or .txt.xz of reference energies
.aselmdb                    ASE's LMDB of fairchem (needs ``pip install ase-db-backends``)
.db                         ASE database; ISO17's names of energy and forces are known
.h5, .hdf5                  HDF5 as :func:`write_hdf5` writes it, one group per composition
.json                       a list of structures as mlearn has it; ASE's JSON database otherwise
all else                    whatever ``ase.io.read`` reads: traj, vasprun.xml, OUTCAR, cp2k, ...
==========================  ===================================================================================

What is read frame by frame or in blocks never stands in memory whole: all but .npz and some formats of ASE.

Pickled data (.pkl, .pt, the LMDBs of OC20 and the authors) is refused, since opening it would run whatever it says.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, cast

import ase
import ase.io
import ase.units
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from leignn_jax.arguments import check_path
from leignn_jax.errors import ConfigError, DataError, FileFormatError
from leignn_jax.files import write_atomically

KCAL_PER_MOL = 0.04336411531  # eV
HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å

# (eV per unit of energy, Å per unit of length)
UNITS: dict[str, tuple[float, float]] = {
    "eV/angstrom": (1.0, 1.0),
    "kcal/mol/angstrom": (KCAL_PER_MOL, 1.0),
    "kJ/mol/angstrom": (KCAL_PER_MOL / 4.184, 1.0),
    "hartree/angstrom": (HARTREE, 1.0),
    "hartree/bohr": (HARTREE, BOHR),
}

_UNPACK: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
# Frames that are read at once where a file is read in blocks.
_BLOCK = 256
PICKLED = (".lmdb", ".pkl", ".pickle", ".pt", ".pth", ".p")


def read_frames(path: str | os.PathLike, *, index: str = ":", units: str | None = None) -> list[ase.Atoms]:
    """All frames of a file or folder; energy, forces and stress stand in each frame's calculator.

    Args:
        path: a file or folder, see the table at the top of this module.
        index: a slice like ASE's, ":100" or "::10".
        units: of energies and lengths as one of ``UNITS``; None is the format's own (eV and Å but for raw MD17 files,
            which are in kcal/mol).

    Raises:
        DataError: the slice is empty; otherwise as :func:`iter_frames`.
    """
    wanted = _slice(index)
    frames = iter_frames(path, units=units)
    if all(part is None or part >= 0 for part in (wanted.start, wanted.stop)) and (wanted.step or 1) > 0:
        chosen = list(islice(frames, wanted.start, wanted.stop, wanted.step))
    else:
        chosen = list(frames)[wanted]
    if not chosen:
        raise DataError(f"{path}: no frames.")
    return chosen


def iter_frames(path: str | os.PathLike, *, units: str | None = None) -> Iterator[ase.Atoms]:
    """The frames of a file or folder one by one, in its order; otherwise as :func:`read_frames`.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ConfigError: units that are not known.
        FileFormatError: truncated, pickled, or of a form that no reader knows; names the file and the frame.
        DataError: a file without frames. The last two come when the frame is reached.
    """
    path = check_path("path", path)
    if units is not None and (not isinstance(units, str) or units not in UNITS):
        raise ConfigError(f"units: {units!r} is not known. One of {list(UNITS)}.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    return _iter_checked(path, _reader(path), *(UNITS[units] if units is not None else _own_units(path)))


_Reader = Callable[[Path], Iterator[ase.Atoms]]


def _iter_checked(path: Path, reader: _Reader, energy: float, length: float) -> Iterator[ase.Atoms]:
    """Frames in eV and Å; whatever a reader raises is made an error for people."""
    frames = reader(path)
    number = 0
    while True:
        try:
            atoms = next(frames, None)
        except (FileFormatError, DataError, FileNotFoundError, PermissionError):
            raise
        except ImportError as error:
            raise FileFormatError(f"{path}: reading it needs a package that is not installed: {error}.") from error
        except Exception as error:
            # ASE's readers raise anything at all on a damaged file.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            place = f"frame {number} " if number else ""
            raise FileFormatError(
                f"{path}: {place}can't be read ({reason}). Is it truncated or of another format?"
            ) from error
        if atoms is None:
            break
        yield atoms if (energy, length) == (1.0, 1.0) else _convert(atoms, energy, length)
        number += 1
    if number == 0:
        raise DataError(f"{path}: no frames.")


def _reader(path: Path) -> _Reader:
    if path.is_dir():
        if any(path.glob("type.raw")) or any(path.glob("*/type.raw")):
            return _read_deepmd
        if any(path.glob("*.extxyz.xz")) or any(path.glob("*.extxyz")):
            return _read_s2ef
        if any(path.glob("*.aselmdb")):
            return _read_aselmdb
        raise FileFormatError(
            f"{path}: a folder of none of the known kinds (DeePMD-kit with type.raw, OC20 S2EF with .extxyz.xz, "
            "fairchem with .aselmdb). Give a file."
        )
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        raise FileFormatError(
            f"{path}: files of this kind hold Python pickles, and opening one can run any program, so it is not read. "
            "Where you trust it, convert it once in the environment that wrote it: collect its structures as ase.Atoms "
            "with SinglePointCalculator(atoms, energy=..., forces=...) and ase.io.write('frames.extxyz', frames)."
        )
    inner = path.with_suffix("").suffix.lower() if suffix in _UNPACK else suffix
    if inner in (".extxyz", ".xyz"):
        return _read_extxyz
    if suffix == ".json":
        with open(path, "rb") as file:
            return _read_mlearn if file.read(64).lstrip().startswith(b"[") else _read_by_ase
    readers = {".npz": _read_md17, ".db": _read_database, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
    return {**readers, ".aselmdb": _read_aselmdb}.get(suffix, _read_by_ase)


def _own_units(path: Path) -> tuple[float, float]:
    return UNITS["kcal/mol/angstrom" if path.suffix.lower() == ".npz" else "eV/angstrom"]


def _slice(index: str) -> slice:
    try:
        parts = [int(part) if part.strip() else None for part in index.split(":")]
    except ValueError:
        parts = []
    if ":" not in index or not 2 <= len(parts) <= 3:
        raise ConfigError(f"index: {index!r} is not a slice such as ':', ':100' or '::10'.")
    return slice(*parts)


def frame(numbers, positions, *, cell=None, pbc=None, energy=None, forces=None, stress=None, info=None) -> ase.Atoms:
    """One labelled structure; arguments in Å, eV, eV/Å, eV/Å^3, None where there is no such label."""
    atoms = ase.Atoms(
        numbers=np.asarray(numbers, int),
        positions=np.asarray(positions, np.float64),
        cell=None if cell is None else np.asarray(cell, np.float64).reshape(3, 3),
        pbc=cell is not None if pbc is None else np.broadcast_to(pbc, 3),
        info=info,
    )
    labels = {"energy": energy, "forces": forces, "stress": stress}
    labels = {name: value for name, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def _convert(atoms: ase.Atoms, energy: float, length: float) -> ase.Atoms:
    factors = {"energy": energy, "free_energy": energy, "forces": energy / length, "stress": energy / length**3}
    results = {} if atoms.calc is None else atoms.calc.results
    converted = atoms.copy()
    converted.set_cell(np.asarray(atoms.cell) * length)
    converted.positions *= length
    if results:
        converted.calc = SinglePointCalculator(
            converted, **{name: np.asarray(value) * factors.get(name, 1.0) for name, value in results.items()}
        )
    return converted


# ------------------------------------------------------------------------------------------------------------- the formats


def _read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    from ase.io.extxyz import read_xyz

    unpack = _UNPACK.get(path.suffix.lower())
    number = 0
    with open(path) if unpack is None else unpack(path, "rt") as file:
        after = ""
        while True:
            # Frame by frame, so that an error can name its frame; ASE seeks in what it reads, which in a compressed file
            # would unpack it from the start each time.
            try:
                text, after = _next_xyz(file, after)
                if not text:
                    return
                (atoms,) = read_xyz(io.StringIO(text), index=cast("int", slice(None)))
            except (EOFError, lzma.LZMAError, OSError) as error:
                raise FileFormatError(
                    f"{path}: frame {number}: the compressed file is damaged or cut short ({error}). Copy it again."
                ) from error
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise FileFormatError(
                    f"{path}: frame {number} can't be read ({reason}). Is the file cut short?"
                ) from error
            yield atoms
            number += 1


def _next_xyz(file: IO[str], first: str) -> tuple[str, str]:
    """The lines of the next frame, none at the end, and the line after them; ``first`` is that of the frame before."""
    first = first or file.readline()
    if not first.strip():
        rest = next((line for line in file if line.strip()), None)
        if rest is not None:
            raise ValueError(f"a blank line before {rest.strip()[:40]!r}")
        return "", ""
    lines = [first, *islice(file, int(first) + 1)]
    if len(lines) < int(first) + 2:
        raise ValueError(f"{max(len(lines) - 2, 0)} of {int(first)} atoms are there")
    after = file.readline()
    while after.lstrip().startswith("VEC"):
        lines.append(after)
        after = file.readline()
    return "".join(lines), after


def _read_md17(path: Path) -> Iterator[ase.Atoms]:
    names = {
        "numbers": ("nuclear_charges", "z", "atomic_numbers"),
        "positions": ("coords", "R", "coordinates"),
        "energy": ("energies", "E"),
        "forces": ("forces", "F"),
    }
    found = {}
    with np.load(path, allow_pickle=False) as file:
        for what, places in names.items():
            match = [place for place in places if place in file.files]
            if not match:
                raise FileFormatError(f"{path}: has no array {' or '.join(places)}; it has {', '.join(file.files)}.")
            # Nothing else is read: rMD17 holds MD17's own labels too, as much again.
            found[what] = file[match[0]]
    energies = np.asarray(found["energy"], np.float64).reshape(-1)
    positions, forces = found["positions"], found["forces"]
    if positions.shape != forces.shape or len(positions) != len(energies):
        raise FileFormatError(
            f"{path}: {len(energies)} energies, positions {positions.shape} and forces {forces.shape} do not fit together."
        )
    for r, e, f in zip(positions, energies, forces, strict=True):
        yield frame(found["numbers"], r, energy=e, forces=np.asarray(f, np.float64))


def _read_deepmd(path: Path) -> Iterator[ase.Atoms]:
    for types in sorted([*path.glob("type.raw"), *path.glob("*/type.raw")]):
        folder = types.parent
        kinds = np.loadtxt(types, dtype=int, ndmin=1)
        map_file = folder / "type_map.raw"
        if not map_file.exists():
            raise FileFormatError(
                f"{folder}: has no type_map.raw. Write one: the elements' symbols in the order of types."
            )
        symbols = map_file.read_text().split()
        if kinds.max() >= len(symbols):
            raise FileFormatError(f"{types}: type {kinds.max()}, but type_map.raw has only {len(symbols)} symbols.")
        unknown = [s for s in symbols if s not in atomic_numbers]
        if unknown:
            raise FileFormatError(f"{map_file}: {unknown[0]!r} is not an element's symbol.")
        numbers = np.array([atomic_numbers[s] for s in symbols])[kinds]
        periodic = not (folder / "nopbc").exists()
        for part in sorted(folder.glob("set.*")):
            arrays = {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in part.glob("*.npy")}
            positions = arrays["coord"].reshape(-1, len(numbers), 3)
            count = len(positions)
            boxes = arrays["box"].reshape(count, 3, 3) if periodic else [None] * count
            energies = arrays["energy"].reshape(count) if "energy" in arrays else [None] * count
            forces = arrays["force"].reshape(positions.shape) if "force" in arrays else [None] * count
            virials = arrays["virial"].reshape(count, 3, 3) if "virial" in arrays and periodic else [None] * count
            for r, box, e, f, w in zip(positions, boxes, energies, forces, virials, strict=True):
                # DeePMD's virial is minus the strain derivative: stress = -virial / volume.
                stress = None if w is None or box is None else -w / abs(np.linalg.det(box))
                yield frame(numbers, r, cell=box, energy=e, forces=f, stress=stress)


def _read_s2ef(path: Path) -> Iterator[ase.Atoms]:
    """OC20 S2EF: the .txt beside each file names system, frame and reference energy, which is subtracted."""
    for file in sorted([*path.glob("*.extxyz.xz"), *path.glob("*.extxyz")]):
        table = file.with_name(file.name.split(".extxyz")[0] + ".txt")
        if not table.exists() and table.with_name(f"{table.name}.xz").exists():
            table = table.with_name(f"{table.name}.xz")
        if not table.exists():
            raise FileFormatError(f"{file}: its {table.name} is missing; without it there are no reference energies.")
        with open(table) if table.suffix == ".txt" else lzma.open(table, "rt") as text:
            lines = [line.split(",") for line in text.read().split()]
        count = 0
        for atoms in _read_extxyz(file):
            count += 1
            if count > len(lines):
                continue
            system, number, reference = lines[count - 1]
            atoms.info |= {"system": system, "frame": number}
            if atoms.calc is not None and "energy" in atoms.calc.results:
                atoms.calc.results["energy"] -= float(reference)
            yield atoms
        if count != len(lines):
            raise FileFormatError(f"{table}: {len(lines)} lines for the {count} frames of {file.name}.")


# eV/Å^3 per kbar.
_KILOBAR = float(ase.units.GPa) / 10


def _read_mlearn(path: Path) -> Iterator[ase.Atoms]:
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


def _read_database(path: Path) -> Iterator[ase.Atoms]:
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


def _read_aselmdb(path: Path) -> Iterator[ase.Atoms]:
    from ase.db import connect

    files = sorted(path.glob("*.aselmdb")) if path.is_dir() else [path]
    try:
        importlib.import_module("ase_db_backends")  # registers the format with ASE
    except ImportError as error:
        raise FileFormatError(f"{path}: reading ASE's LMDB needs `pip install ase-db-backends`.") from error
    for file in files:
        for row in connect(file, type="aselmdb", readonly=True).select():
            yield row.toatoms()


_HDF5_LABELS = ("energy", "forces", "stress")


def _read_hdf5(path: Path) -> Iterator[ase.Atoms]:
    import h5py

    with h5py.File(path, "r") as file:
        groups = [file] if "positions" in file else [item for item in file.values() if isinstance(item, h5py.Group)]
        if not groups:
            raise FileFormatError(f"{path}: no group with positions [frames, atoms, 3] and numbers [atoms].")
        for group in groups:
            missing = [name for name in ("positions", "numbers") if name not in group]
            if missing:
                raise FileFormatError(f"{path}: group {group.name} has no {missing[0]}.")
            numbers = np.asarray(group["numbers"])
            sets = {
                k: cast("h5py.Dataset", group[k]) for k in ("positions", *_HDF5_LABELS, "cell", "pbc") if k in group
            }
            count = len(sets["positions"])
            for name, values in sets.items():
                if len(values) != count:
                    raise FileFormatError(
                        f"{path}: group {group.name} has {count} positions but {len(values)} of {name}."
                    )
            for start in range(0, count, _BLOCK):
                block = {name: values[start : start + _BLOCK] for name, values in sets.items()}
                for i in range(min(_BLOCK, count - start)):
                    yield frame(numbers, **{name: values[i] for name, values in block.items()})


def write_hdf5(path: str | os.PathLike, frames: Sequence[ase.Atoms]) -> None:
    """Write labelled frames to HDF5, atomically: one group per composition, in eV and Å.

    Datasets of a group: numbers [atoms], positions [frames, atoms, 3], cell [frames, 3, 3], pbc [frames, 3], and energy
    [frames], forces [frames, atoms, 3], stress [frames, 3, 3] where every frame of the group has them.
    """
    import h5py

    from leignn_jax.data.labels import read_labels

    groups: dict[bytes, list[tuple[ase.Atoms, dict]]] = {}
    for i, atoms in enumerate(frames):
        labels = {k: v for k, v in read_labels(atoms, f"frame {i}")._asdict().items() if v is not None}
        key = atoms.numbers.astype(np.int32).tobytes() + ",".join(labels).encode()
        groups.setdefault(key, []).append((atoms, labels))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["units"] = "eV, angstrom"
        for number, members in enumerate(groups.values()):
            group = file.create_group(f"{number:06d}")
            group["numbers"] = members[0][0].numbers.astype(np.int32)
            group["positions"] = np.stack([atoms.positions for atoms, _ in members])
            group["cell"] = np.stack([np.asarray(atoms.cell) for atoms, _ in members])
            group["pbc"] = np.stack([atoms.pbc for atoms, _ in members])
            for name in members[0][1]:
                group[name] = np.stack([np.asarray(labels[name]) for _, labels in members])
    write_atomically(Path(path), buffer.getvalue())


def _read_by_ase(path: Path) -> Iterator[ase.Atoms]:
    return iter(ase.io.iread(path, index=":"))
