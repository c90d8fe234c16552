"""A store: labelled frames with their pairs as flat arrays in a folder, read by memory maps; sets larger than memory.

========================  =============================================================================================
meta.json                 format, cutoff, what the frames come from, elements, shortest distance of each two of them in Å;
                          of each array type, shape, sha256
atom_offsets, numbers     ``[frames + 1]``, ``[atoms]``: the atoms of frame i are those from offset i to offset i + 1
positions, forces         ``[atoms, 3]`` float64, Å and eV/Å, positions by :func:`leignn_jax.neighbors.near_origin`; forces
                          are 0 where ``present`` says that there are none
cell, pbc                 ``[frames, 3, 3]`` Å, ``[frames, 3]``
energy, stress            ``[frames]`` eV, as it was read; ``[frames, 3, 3]`` eV/Å^3
present                   ``[frames, 3]``: energy, forces, stress
pair_offsets, receivers,  pairs within the cutoff, each once, see :class:`leignn_jax.neighbors.Pairs`
senders, shifts
neighbors                 ``[frames]``: most neighbours of an atom
kind, counts,             columns of :class:`leignn_jax.data.table.FrameTable`
forces_square,
fingerprint
========================  =============================================================================================

A store is whole or not there: it is written in a temporary folder beside its place and renamed. What was damaged later
is found on opening by size and sha256. A file that has not changed since it was last checked, by inode, size and times,
is not read again for that; ``checked.json`` remembers.
"""

from __future__ import annotations

import contextlib
import copy
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import index as as_index
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from leignn_jax.data.batches import Batch, check_references, labelled
from leignn_jax.data.distances import Shortest, ShortestDistances
from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import Labels
from leignn_jax.data.store_checks import check_meta, check_offsets
from leignn_jax.data.table import Compositions, FrameTable, fingerprint, forces_square
from leignn_jax.errors import DataError, FileFormatError, LeignnError, StructureError
from leignn_jax.files import write_atomically
from leignn_jax.graph import Graph
from leignn_jax.neighbors import Pairs

log = logging.getLogger("leignn_jax")

# Counts up with every change of what is stored, or of how labels are read: caches of another format are built again.
FORMAT = 4

# Name: type and shape of a row.
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "atom_offsets": ("<i8", ()),
    "numbers": ("|u1", ()),
    "positions": ("<f8", (3,)),
    "forces": ("<f8", (3,)),
    "cell": ("<f8", (3, 3)),
    "pbc": ("|b1", (3,)),
    "energy": ("<f8", ()),
    "stress": ("<f8", (3, 3)),
    "present": ("|b1", (3,)),
    "pair_offsets": ("<i8", ()),
    "receivers": ("<i4", ()),
    "senders": ("<i4", ()),
    "shifts": ("<i2", (3,)),
    "neighbors": ("<i4", ()),
    "kind": ("<i4", ()),
    "forces_square": ("<f8", ()),
    "fingerprint": ("|u1", (32,)),
}

# A temporary folder in which nothing was written for so long is of a process that was killed.
_ABANDONED = 3600.0  # s
# Times of files are this coarse at worst: what is younger may change again without a trace.
_TICK = 2_000_000_000  # ns


# ------------------------------------------------------------------------------------------------------------------- write


class _Column:
    """A .npy file that grows by rows; its header is written over the first one at the end."""

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...]):
        self.path, self.dtype, self.row = path, np.dtype(dtype), row
        self.rows = 0
        self.digest = hashlib.sha256()
        self.file = open(path, "wb", buffering=1 << 17)  # noqa: SIM115 (closed by finish or by the writer's stack)
        self._write_header()
        self.start = self.file.tell()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, rows: np.ndarray) -> None:
        """Rows ``[n, *row]``."""
        rows = np.ascontiguousarray(rows, self.dtype).reshape(-1, *self.row)
        self.rows += len(rows)
        content = rows.reshape(-1).view(np.uint8).data
        self.file.write(content)
        self.digest.update(content)

    def finish(self) -> dict[str, Any]:
        """Close; what meta.json says of the file."""
        self.file.seek(0)
        self._write_header()
        if self.file.tell() != self.start:
            raise DataError(f"{self.path}: the header of {self.rows} rows needs more room than NumPy left.")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        with open(self.path, "rb") as file:
            self.digest.update(file.read(self.start))
        return {
            "dtype": self.dtype.str,
            "shape": [self.rows, *self.row],
            "start": self.start,
            "bytes": self.path.stat().st_size,
            "sha256": self.digest.hexdigest(),
        }


def write_store(
    folder: str | os.PathLike,
    frames: Iterable[tuple[ase.Atoms, Labels]],
    cutoff: float,
    *,
    facts: Mapping[str, Any] | None = None,
    name: str = "frames",
    replace: bool = False,
) -> None:
    """Write labelled frames and their pairs to a store, in one pass and in memory that does not grow with the frames.

    Args:
        folder: the store's place; it is whole or not there.
        frames: structures with labels, as :func:`leignn_jax.data.read_labels` gives them.
        cutoff: Å, of the pairs.
        facts: JSON values to keep in meta.json, such as where the frames come from.
        name: what to call the source in errors, such as its file.
        replace: take away what stands in the folder's place; else FileExistsError.

    Raises:
        DataError: no frames, or the disk is full.
        StructureError: as :func:`leignn_jax.neighbors.find_pairs`, with the frame's name.
    """
    folder = Path(folder)
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder}: stands there already.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        try:
            _write_arrays(temporary, frames, cutoff, dict(facts or {}), name)
        except OSError as error:
            # What has another name is the source, which can't be read.
            if error.filename is not None and Path(error.filename).parent != temporary:
                raise
            raise DataError(f"{folder}: can't be written ({error.strerror}). Is the disk full?") from error
        _put(temporary, folder, replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(folder: Path, frames, cutoff: float, facts: dict[str, Any], name: str) -> None:
    compositions, nearest = Compositions(), ShortestDistances()
    with contextlib.ExitStack() as stack:
        columns = {key: _Column(folder / f"{key}.npy", *kind) for key, kind in _ARRAYS.items()}
        for column in columns.values():
            stack.callback(column.file.close)
        for key in ("atom_offsets", "pair_offsets"):
            columns[key].append(np.zeros(1))
        count = -1
        for count, (atoms, labels) in enumerate(frames):
            try:
                graph = Graph.from_ase(atoms, cutoff, np.float64)
                rows = _rows(atoms, labels, graph)
                nearest.add(graph)
            except LeignnError as error:
                raise type(error)(f"{name}: frame {count}: {error}") from error
            rows["kind"] = np.array(compositions.kind_of(atoms.numbers))
            for key, values in rows.items():
                columns[key].append(values)
            for key, of in (("atom_offsets", "numbers"), ("pair_offsets", "receivers")):
                columns[key].append(np.array(columns[of].rows))
        if count < 0:
            raise DataError(f"{name}: no frames.")
        elements, counts = compositions.table()
        columns["counts"] = _Column(folder / "counts.npy", "<i4", counts.shape[1:])
        stack.callback(columns["counts"].file.close)
        columns["counts"].append(counts)
        arrays = {key: column.finish() for key, column in columns.items()}
    meta = {
        "format": FORMAT,
        "cutoff": float(cutoff),
        "elements": elements,
        "shortest": {f"{a} {b}": distance for (a, b), distance in nearest.result().items()},
        "facts": facts,
        "arrays": arrays,
    }
    meta["sha256"] = _hash_of(meta)
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1).encode())
    _sync(folder)


def _rows(atoms: ase.Atoms, labels: Labels, graph: Graph) -> dict[str, np.ndarray]:
    """What one frame adds to each array."""
    real = graph.pair_mask
    shifts = graph.shifts[real]
    if np.abs(shifts).max(initial=0) > np.iinfo(np.int16).max:
        raise StructureError("A pair is more than 32767 cells apart: the cell is too skew; reduce it.")
    return {
        "numbers": atoms.numbers,
        "positions": graph.positions,
        "forces": np.zeros((len(atoms), 3)) if labels.forces is None else labels.forces,
        "cell": np.asarray(atoms.cell),
        "pbc": np.asarray(atoms.pbc),
        "energy": np.array(0.0 if labels.energy is None else labels.energy),
        "stress": np.zeros((3, 3)) if labels.stress is None else labels.stress,
        "present": np.array([label is not None for label in labels]),
        "receivers": graph.lists.receivers[real],
        "senders": graph.lists.senders[real],
        "shifts": shifts,
        "neighbors": np.array(graph.shape[2]),
        "forces_square": np.array(forces_square(labels)),
        "fingerprint": np.frombuffer(fingerprint(atoms), np.uint8),
    }


def _put(temporary: Path, folder: Path, replace: bool) -> None:
    """Rename to the store's place; of two processes that do so at once one wins, and each finds a whole store."""
    # Temporary folders are private; the result is as open as any new folder.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    while True:
        if not folder.exists():
            with contextlib.suppress(OSError):
                os.rename(temporary, folder)
                _sync(folder.parent)
                return
        if not folder.exists():
            raise DataError(f"{folder}: can't be made. May one write in {folder.parent}?")
        if not replace:
            raise FileExistsError(f"{folder}: stands there already.")
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------------- read


class Store(Sequence[Batch]):
    """Frames that :func:`write_store` wrote; item i is the one-frame batch that ``example`` makes of frame i, bit for bit.

    A random-access source with ``len`` and items, as grain's loaders take it; it can be sent to other processes.

    Args:
        folder: of the store.
        references: eV by symbol, taken off the energies; None takes nothing off.

    Raises:
        FileFormatError: not a store, one of another format, or damaged; names the file.
    """

    def __init__(self, folder: str | os.PathLike, references: Mapping[str, float] | None = None):
        self.folder = Path(folder)
        self._meta = _read_meta(self.folder)
        _check_files(self.folder, self._meta)
        self._arrays = {key: _map(self.folder, key, facts) for key, facts in self._meta["arrays"].items()}
        check_offsets(self.folder, self._arrays)
        self._references = dict.fromkeys(self._meta["elements"], 0.0) if references is None else dict(references)

    @property
    def cutoff(self) -> float:
        """Å, of the pairs."""
        return self._meta["cutoff"]

    @property
    def shortest(self) -> Shortest:
        """Shortest distance of each two elements in Å, over all frames."""
        return {tuple(names.split()): distance for names, distance in self._meta["shortest"].items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What the writer said of the frames."""
        return self._meta["facts"]

    @property
    def sizes(self) -> np.ndarray:
        """``[frames, 3]`` atoms, pairs and neighbours of each example."""
        a = self._arrays
        pairs = np.maximum(np.diff(a["pair_offsets"]), 1)
        return np.stack([np.diff(a["atom_offsets"]), pairs, np.asarray(a["neighbors"], np.int64)], axis=1)

    @property
    def table(self) -> FrameTable:
        """Facts about each frame."""
        a = self._arrays
        energy = np.where(a["present"][:, 0], a["energy"], np.nan)
        columns = {key: np.asarray(a[key]) for key in ("kind", "counts", "forces_square", "fingerprint")}
        stressed = np.asarray(a["present"][:, 2]).astype(bool)
        return FrameTable(elements=tuple(self._meta["elements"]), energy=energy, stressed=stressed, **columns)

    def with_references(self, references: Mapping[str, float]) -> Store:
        """The same store with other reference energies."""
        other = copy.copy(self)
        other._references = dict(references)
        return other

    def __len__(self) -> int:
        return len(self._arrays["neighbors"])

    def __getitem__(self, index: Any) -> Any:
        i = self._index(index)
        atoms, pairs = self._rows("atom_offsets", i), self._rows("pair_offsets", i)
        a = self._arrays
        numbers = np.array(a["numbers"][atoms])
        ends = np.concatenate([a["receivers"][pairs], a["senders"][pairs]])
        if ends.min(initial=0) < 0 or ends.max(initial=-1) >= len(numbers):
            raise FileFormatError(f"{self.folder}: edited: the pairs of frame {i} are not of its {len(numbers)} atoms.")
        check_references(set(numbers.tolist()), self._references, f"{self.folder}: frame {i}")
        found = Pairs(
            a["receivers"][pairs], a["senders"][pairs], a["shifts"][pairs], np.zeros(pairs.stop - pairs.start)
        )
        graph = Graph.from_pairs(
            np.array(a["positions"][atoms]),
            numbers,
            np.array(a["cell"][i]),
            np.array(a["pbc"][i]),
            found,
            np.float32,
        )
        return labelled(graph, self.labels(i), self._references)

    def labels(self, i: int) -> Labels:
        """Labels of frame i."""
        a = self._arrays
        energy, forces, stress = a["present"][i]
        return Labels(
            float(a["energy"][i]) if energy else None,
            np.array(a["forces"][self._rows("atom_offsets", i)]) if forces else None,
            np.array(a["stress"][i]) if stress else None,
        )

    def frame(self, i: int) -> tuple[ase.Atoms, Labels]:
        """Frame i: its atoms with the labels in their calculator, and the labels.

        Atoms are where they were written, or, far from the origin, by whole lattice vectors or their center nearer to it.
        """
        i = self._index(i)
        a, rows = self._arrays, self._rows("atom_offsets", i)
        atoms = ase.Atoms(
            numbers=np.array(a["numbers"][rows], int),
            positions=np.array(a["positions"][rows]),
            cell=np.array(a["cell"][i]),
            pbc=np.array(a["pbc"][i]),
        )
        labels = self.labels(i)
        results = {key: value for key, value in labels._asdict().items() if value is not None}
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms, labels

    def _index(self, key: Any) -> int:
        i = as_index(key)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: frame {i} of {len(self)}.")
        return i % len(self)

    def _rows(self, offsets: str, i: int) -> slice:
        start, stop = self._arrays[offsets][i : i + 2]
        return slice(int(start), int(stop))

    def __reduce__(self):
        return Store, (str(self.folder), self._references)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {self._references!r})"


def _read_meta(folder: Path) -> dict[str, Any]:
    file = folder / "meta.json"
    try:
        meta = json.loads(file.read_bytes())
        said = meta.pop("sha256")
    except FileNotFoundError as error:
        raise FileFormatError(f"{folder}: no store: there is no meta.json.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{file}: damaged ({error}).") from error
    if meta.get("format") != FORMAT:
        raise FileFormatError(f"{file}: a store of format {meta.get('format')}; this version reads {FORMAT}.")
    if said != _hash_of(meta):
        raise FileFormatError(f"{file}: damaged or edited: its sha256 is another.")
    try:
        check_meta(meta, _ARRAYS)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{file}: edited: what it says is no store's ({type(error).__name__}: {error})."
        ) from error
    return meta


def _check_files(folder: Path, meta: Mapping[str, Any]) -> None:
    """Raise FileFormatError where an array file is not as it was written."""
    remembered, now = {}, {}
    began = time.time_ns()
    note = folder / "checked.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(note.read_bytes())
        remembered = found if isinstance(found, dict) else {}
    for key, facts in meta["arrays"].items():
        file = folder / f"{key}.npy"
        try:
            found = file.stat()
            if found.st_size != facts["bytes"] or not 0 < facts["start"] < 1 << 16:
                raise FileFormatError(f"{file}: damaged: {found.st_size} bytes instead of {facts['bytes']}.")
            stamp = [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, facts["sha256"]]
            if remembered.get(key) != stamp and _hash_file(file, facts["start"]) != facts["sha256"]:
                raise FileFormatError(f"{file}: damaged: its sha256 is another.")
        except OSError as error:
            raise FileFormatError(f"{file}: can't be read ({error}).") from error
        if max(found.st_mtime_ns, found.st_ctime_ns) < began - _TICK:
            now[key] = stamp
    if now != remembered:
        # A folder that may not be written is hashed each time.
        with contextlib.suppress(OSError):
            write_atomically(note, json.dumps(now).encode())


def _hash_file(file: Path, start: int) -> str:
    """sha256 of the rows and then of the header, which is written last."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        header = handle.read(start)
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    digest.update(header)
    return digest.hexdigest()


def _map(folder: Path, key: str, facts: Mapping[str, Any]) -> np.ndarray:
    file = folder / f"{key}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{file}: damaged ({error}).") from error
    if array.dtype.str != facts["dtype"] or list(array.shape) != facts["shape"]:
        raise FileFormatError(f"{file}: edited: holds {array.dtype.str}{list(array.shape)}, meta.json says {facts}.")
    return np.asarray(array)


# ------------------------------------------------------------------------------------------------------------------- cache


def cached_store(
    cache: Path,
    source: Path,
    source_sha256: str,
    cutoff: float,
    *,
    units: str | None = None,
    keys: Mapping[str, str] | None = None,
    watch: Callable[[Iterator], Iterable] | None = None,
) -> Store:
    """The store of a file's frames in the folder ``cache``, built where it is missing or damaged.

    A store's name says what it is made of: another content of the source, cutoff, units or keys is another store.

    Args:
        cache: folder of stores; it may be shared by runs and processes.
        source: a file or folder that :func:`leignn_jax.data.iter_frames` reads.
        source_sha256: of its content.
        cutoff: Å.
        units, keys: as :func:`leignn_jax.data.iter_frames` and :func:`leignn_jax.data.read_labels` take them.
        watch: is handed the frames and hands them on, to show progress.

    Raises:
        DataError, FileFormatError, StructureError: frames that can't be read; names file and frame.
        DataError: the source changes while it is read.
    """
    facts = {"source_sha256": source_sha256, "units": units, "keys": dict(keys or {})}
    key = _hash_of({"format": FORMAT, "cutoff": float(cutoff), **facts})[:16]
    folder = cache / f"{source.name.split('.')[0]}-{key}"
    damaged = False
    if folder.exists():
        try:
            return _open(folder, facts)
        except FileFormatError as error:
            log.warning("%s The cache is built again from %s.", error, source)
            damaged = True
    else:
        log.info("Building the cache %s of %s: pairs within %g Å.", folder, source, cutoff)
    _remove_abandoned(folder)
    before = _stamps(source)

    def frames() -> Iterator[tuple[ase.Atoms, Labels]]:
        yield from iter_labelled(source, units=units, keys=keys)
        if _stamps(source) != before:
            raise DataError(f"{source}: changed while it was read. Start again when it is written to its end.")

    # Another process may have built it in the meantime; then that one is taken.
    with contextlib.suppress(FileExistsError):
        watched = frames() if watch is None else watch(frames())
        write_store(folder, watched, cutoff, facts=facts, name=str(source), replace=damaged)
    return _open(folder, facts)


def _open(folder: Path, facts: Mapping[str, Any]) -> Store:
    store = Store(folder)
    if store.facts != facts:
        raise FileFormatError(f"{folder}: holds frames of another source than its name says.")
    return store


def _stamps(source: Path) -> list[tuple[str, int, int]]:
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def _remove_abandoned(folder: Path) -> None:
    """Take away what killed processes left of this store."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        with contextlib.suppress(OSError):
            if time.time() - max(p.stat().st_mtime for p in [left, *left.rglob("*")]) > _ABANDONED:
                shutil.rmtree(left)
