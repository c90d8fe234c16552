"""Trajectories on disk: H5MD 1.1 (de Buyl et al., Comput. Phys. Commun. 185, 1546 (2014)) that survives a kill.

HDF5 files are damaged by a process that dies while it writes them, so that no file is ever changed here. A running
simulation adds *parts*, each a whole H5MD file of some frames, to the folder ``trajectory.parts``; the file
``trajectory.h5`` joins them by virtual datasets and lists them. Both are written beside their names, synced and renamed:
whoever opens ``trajectory.h5`` at any moment finds complete frames. :func:`merge` makes one ordinary file of it all.

Numbers carry HDF5's own checksums (fletcher32), its structure those of its newer format, and ``leignn_jax/sha256`` is the
hash of what is in neither: species, masses, boundary and the list of parts. Since HDF5 crashes on damaged virtual
datasets, a file of parts begins with a block that holds the hash of its rest. A changed byte is an error on reading. Files
that were written without any of these are read as before.

Other programs read either form; positions are in Angstrom, velocities in Angstrom/fs, and forces, since MDAnalysis
refuses files with eV, in kJ/mol/Angstrom.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase import units

from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.files import put_in_place, sync_folder, why_not_written, write_atomically
from leignn_jax.simulation.h5md_checks import header_hash, told, wrong_clock, wrong_layout, wrong_system

log = logging.getLogger("leignn_jax")

FORMAT = "leignn_jax.trajectory/1"
FORCE_UNIT = units.kJ / units.mol
"""1 kJ/mol in eV: forces are stored in kJ/mol/Å."""

# Our name: H5MD element, unit on disk, axes after the frames.
_ELEMENTS = {
    "positions": ("particles/all/position", "Angstrom", ("atoms", 3)),
    "velocities": ("particles/all/velocity", "Angstrom fs-1", ("atoms", 3)),
    "forces": ("particles/all/force", "kJ mol-1 Angstrom-1", ("atoms", 3)),
    "cell": ("particles/all/box/edges", "Angstrom", (3, 3)),
    "energy": ("observables/potential_energy", "eV", ()),
}
_CLOCK = "particles/all/position"
FIELDS = ("step", "time", *_ELEMENTS)
_SLAB = 32 << 20
# Of one checksum: what is read for a single frame, and what the last one of a small file may waste.
_CHUNK = 128 << 10
# HDF5 keeps checksums of its structure from this version of its format on.
_VERSION = ("v110", "v110")
# What a file begins with: one of parts with our block and then HDF5, any other with HDF5.
_SEAL = b"leignn_jax trajectory in parts, sha256 of the bytes after these 512: "
_SEAL_BYTES = 512
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class OtherFramesError(FileFormatError):
    """A part of a trajectory holds other frames than were said when its layout was read."""


class System(NamedTuple):
    """What does not change in a trajectory: atomic numbers [atoms], masses [atoms] amu, periodic directions [3]."""

    numbers: np.ndarray
    masses: np.ndarray
    pbc: np.ndarray

    @classmethod
    def of(cls, atoms: ase.Atoms) -> System:
        return cls(np.array(atoms.numbers), np.array(atoms.get_masses()), np.array(atoms.pbc))


class Part(NamedTuple):
    """The first ``frames`` of the ``total`` frames in ``file``, a path beside the trajectory's."""

    file: str
    frames: int
    total: int


class Layout(NamedTuple):
    """What is where: the parts in order, and the dtype of each field."""

    path: Path
    system: System
    parts: tuple[Part, ...]
    dtypes: dict[str, np.dtype]

    @property
    def frames(self) -> int:
        return sum(part.frames for part in self.parts)

    def frame_shape(self, name: str) -> tuple[int, ...]:
        """Axes after the frames."""
        axes = _ELEMENTS[name][2] if name in _ELEMENTS else ()
        return tuple(len(self.system.numbers) if axis == "atoms" else int(axis) for axis in axes)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame on disk."""
        return sum(dtype.itemsize * int(np.prod(self.frame_shape(name))) for name, dtype in self.dtypes.items())


def parts_folder(path: Path) -> Path:
    """Where the parts of a trajectory that is not merged are."""
    return path.with_name(f"{path.stem}.parts")


def read_layout(path: Path) -> Layout:
    """The layout of a trajectory.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged or no trajectory of this package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the trajectory.h5 in the folder of a simulation.")
    with _open(path) as file, told(path, "its header"):
        own = file.get("leignn_jax")
        if own is None or own.attrs.get("format") not in (FORMAT, FORMAT.encode()):
            raise FileFormatError(f"{path}: not a trajectory of leignn_jax (no {FORMAT!r} in it).")
        everything = file["particles/all"]
        periodic = own.attrs.get("periodic")
        if periodic is None:
            # Written by a version before checksums.
            periodic = [{"periodic": True, "none": False}[b] for b in everything["box"].attrs["boundary"]]
        system = System(everything["species"][()], everything["mass"][()], np.array(periodic, bool))
        dtypes = {name: file[place].dtype for name, place in _places().items() if place in file}
        listed = own["parts"].asstr()[()] if "parts" in own else None
        if listed is None:
            frames = int(file[_places()["step"]].shape[0])
            parts = (Part(path.name, frames, frames),)
        else:
            parts = tuple(Part(*part) for part in json.loads(listed))
        said = own.attrs.get("sha256")
        if said is not None and said != header_hash(*system, listed or "").encode():
            raise FileFormatError(f"{path}: damaged: species, masses, boundary or parts are not what was written.")
        problem = wrong_system(*system) or wrong_layout(parts, dtypes, bool(system.pbc.any()))
        if problem is not None:
            raise FileFormatError(f"{path}: {problem}. It is damaged, or not written by leignn_jax.")
    return Layout(path, system, parts, dtypes)


def read_field(layout: Layout, name: str, frames: range) -> np.ndarray:
    """One field of the chosen frames (ascending) as it is on disk.

    Raises:
        FileNotFoundError: a part is gone, since the trajectory has been merged or truncated meanwhile.
        FileFormatError: a part can't be read, or its numbers are not those that were written; names file and dataset.
            :class:`OtherFramesError` where it holds other frames than ``layout`` says.
    """
    with told(layout.path, _places()[name]):
        result = np.empty((len(frames), *layout.frame_shape(name)), layout.dtypes[name])
    first = 0
    for part in layout.parts:
        low, high = (
            min(max(0, -((frames.start - edge) // frames.step)), len(frames)) for edge in (first, first + part.frames)
        )
        if low < high:
            chosen = frames[low:high]
            source, place = layout.path.parent / part.file, _places()[name]
            with _open(source) as file, told(source, place):
                dataset = file[place]
                if dataset.shape != (part.total, *result.shape[1:]) or dataset.dtype != result.dtype:
                    raise OtherFramesError(
                        f"{source}: {place} is damaged ({dataset.dtype}{dataset.shape} for {result.dtype}"
                        f"{(part.total, *result.shape[1:])}). Copy it again."
                    )
                result[low:high] = dataset[chosen[0] - first : chosen[-1] - first + 1 : frames.step]
        first += part.frames
    return result


def write_part(layout: Layout, fields: Mapping[str, np.ndarray]) -> Part:
    """A new file of ``fields`` (one array per entry of ``layout.dtypes``) in the folder of parts; OSError where it fails."""
    import h5py

    frames = len(fields["step"])
    buffer = io.BytesIO()
    # HDF5 works in memory: it does not recover from a full disk.
    with h5py.File(buffer, "w", libver=_VERSION) as file:
        _write_header(file, layout.system)
        for name in layout.dtypes:
            _make_dataset(file, layout, name, frames)[...] = fields[name]
        _finish(file)
    folder = parts_folder(layout.path)
    last = max((int(found.stem.removeprefix("part_")) for found in folder.glob("part_*.h5")), default=0)
    path = folder / f"part_{last + 1:06d}.h5"
    write_atomically(path, buffer.getvalue())
    return Part(f"{folder.name}/{path.name}", frames, frames)


def commit(layout: Layout) -> None:
    """Make ``layout`` what a reader of the trajectory finds, then remove parts that are not in it."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_VERSION, userblock_size=_SEAL_BYTES) as file:
        listed = json.dumps(layout.parts)
        _write_header(file, layout.system, listed)
        for name, dtype in layout.dtypes.items():
            _join(file, layout, name, dtype)
        file["leignn_jax/parts"] = listed
        _finish(file)
    rest = buffer.getvalue()[_SEAL_BYTES:]
    write_atomically(layout.path, _seal(rest) + rest)
    used = {part.file for part in layout.parts}
    folder = parts_folder(layout.path)
    for found in folder.iterdir():
        if f"{folder.name}/{found.name}" not in used:
            found.unlink()


def _join(file: Any, layout: Layout, name: str, dtype: np.dtype) -> None:
    """The virtual dataset of one field, by h5py's inner calls: its layouts take ten times longer for many parts."""
    from h5py import h5d, h5p, h5s, h5t

    tail = layout.frame_shape(name)
    place = _places()[name].encode()
    origin = (0,) * len(tail)
    create = h5p.create(h5p.DATASET_CREATE)
    # What other programs see where a part is missing must not look like numbers.
    create.set_fill_value(np.array(np.nan if dtype.kind == "f" else -1, dtype))
    whole = h5s.create_simple((layout.frames, *tail))
    first = 0
    for part in layout.parts:
        source = h5s.create_simple((part.total, *tail))
        source.select_hyperslab((0, *origin), (part.frames, *tail))
        whole.select_hyperslab((first, *origin), (part.frames, *tail))
        create.set_virtual(whole, part.file.encode(), place, source)
        first += part.frames
    whole.select_all()
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    h5d.create(file.id, place, h5t.py_create(dtype), whole, create, links)


def unmerge(layout: Layout) -> Layout:
    """Make an ordinary trajectory the first part of a growing one; nothing is copied where the disk knows hard links."""
    if all(part.file != layout.path.name for part in layout.parts):
        return layout
    folder = parts_folder(layout.path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    part = folder / "part_000001.h5"
    try:
        os.link(layout.path, part)
    except OSError:
        write_atomically(part, layout.path.read_bytes())
    layout = layout._replace(parts=(Part(f"{folder.name}/{part.name}", layout.frames, layout.frames),))
    commit(layout)
    return layout


def merge(path: Path) -> None:
    """One ordinary HDF5 file of a trajectory in parts; where there is no room for it the parts stay, with a warning."""
    layout = read_layout(path)
    folder = parts_folder(path)
    if any(part.file != path.name for part in layout.parts):
        try:
            only = layout.parts[0]
            if len(layout.parts) == 1 and only.frames == only.total:
                os.replace(path.parent / only.file, path)
                sync_folder(path.parent)
            else:
                _copy_together(layout)
        except (OSError, RuntimeError) as error:
            reason = why_not_written(error) if isinstance(error, OSError) else str(error)
            log.warning("%s stays in parts (keep the folder %s beside it): %s.", path, folder.name, reason)
            return
    shutil.rmtree(folder, ignore_errors=True)


def truncate(path: Path, step: int, every: int | None = None) -> Layout | None:
    """Drop the frames after ``step``; None, and no file, where none is left.

    every: steps between frames; by default those between the last two, of which the last may be that of a run's end.

    Raises:
        SimulationError: frames between the last one and ``step`` are missing.
    """
    layout = unmerge(read_layout(path))
    steps = read_field(layout, "step", range(layout.frames))
    problem = wrong_clock(steps, np.zeros(len(steps)))
    if problem is not None:
        raise FileFormatError(f"{path}: {problem}. It is damaged: write to another folder.")
    kept = int(np.searchsorted(steps, step, side="right"))
    if every is None and kept > 1:
        every = int(steps[-1] - steps[-2])
    if kept == layout.frames and every is not None and steps[-1] + every < step:
        raise SimulationError(
            f"{path}: its last frame is step {steps[-1]}, with one every {every} steps, but the run goes on from step "
            f"{step}: frames between are missing. Write to another folder, or go on from an earlier state."
        )
    if kept == 0:
        path.unlink()
        shutil.rmtree(parts_folder(path), ignore_errors=True)
        return None
    parts, left = [], kept
    for part in layout.parts:
        if left > 0:
            parts.append(part._replace(frames=min(part.frames, left)))
            left -= part.frames
    layout = layout._replace(parts=tuple(parts))
    commit(layout)
    return layout


def slabs(layout: Layout, frames: range) -> Iterator[range]:
    """The frames in pieces that fit into memory."""
    count = max(1, _SLAB // max(1, layout.frame_bytes))
    return (frames[i : i + count] for i in range(0, len(frames), count))


def _copy_together(layout: Layout) -> None:
    import h5py

    path = layout.path
    need, free = layout.frames * layout.frame_bytes, shutil.disk_usage(path.parent).free
    if free < need + (1 << 20):
        raise RuntimeError(f"{free / 2**20:.0f} MiB free on the disk, {need / 2**20:.0f} MiB needed to merge it")
    # In the folder of parts, which whoever merges next clears.
    handle, temporary = tempfile.mkstemp(dir=parts_folder(path), suffix=".merged")
    raw = _Unfailing(handle, "wb+")
    try:
        with raw, h5py.File(raw, "w", libver=_VERSION) as file:
            _write_header(file, layout.system)
            for name in layout.dtypes:
                dataset = _make_dataset(file, layout, name, layout.frames)
                for piece in slabs(layout, range(layout.frames)):
                    dataset[piece.start : piece.stop] = read_field(layout, name, piece)
                    if raw.error is not None:
                        break
            _finish(file)
            file.close()
            if raw.error is not None:
                raise raw.error
            os.fsync(raw.fileno())
        put_in_place(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Unfailing(io.FileIO):
    """A file that keeps its first error to itself, since HDF5 crashes the process where it can't write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _places() -> dict[str, str]:
    """The dataset of each field."""
    values = {name: f"{place}/value" for name, (place, _, _) in _ELEMENTS.items()}
    return {"step": f"{_CLOCK}/step", "time": f"{_CLOCK}/time", **values}


def _seal(rest: bytes) -> bytes:
    return (_SEAL + hashlib.sha256(rest).hexdigest().encode()).ljust(_SEAL_BYTES, b"\n")


def _open(path: Path) -> Any:
    import h5py

    try:
        with open(path, "rb") as raw:
            start = raw.read(_SEAL_BYTES)
            if not start.startswith(_SIGNATURE) and start != _seal(raw.read()):
                raise OSError("what it begins with is no HDF5, or not the hash of what comes after")
        # Files never change once they have their name, so that locks, which some network disks lack, are not needed.
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileFormatError(f"{path}: not a readable HDF5 file ({error}). Truncated? Copy it again.") from error


def _make_dataset(file: Any, layout: Layout, name: str, frames: int) -> Any:
    """An empty dataset of a field, with checksums."""
    dtype, tail = layout.dtypes[name], layout.frame_shape(name)
    size = max(1, dtype.itemsize * int(np.prod(tail)))
    chunk = (max(1, min(frames, _CHUNK // size)), *tail)
    return file.create_dataset(_places()[name], (frames, *tail), dtype, chunks=chunk, fletcher32=True)


def _write_header(file: Any, system: System, parts: str = "") -> None:
    import h5py

    from leignn_jax import __version__

    # Strings of H5MD have no fixed length, other than it asks for: MDAnalysis compares them with Python's.
    file.create_group("h5md").attrs["version"] = np.array([1, 1])
    file.create_group("h5md/author").attrs["name"] = "unknown"
    file.create_group("h5md/creator").attrs["name"] = "leignn_jax"
    file["h5md/creator"].attrs["version"] = __version__
    file.create_group("h5md/modules/units").attrs["version"] = np.array([1, 0])
    file["h5md/modules/units"].attrs["system"] = "SI"
    own = file.create_group("leignn_jax")
    # What we read has a fixed length: other text lies in a heap without checksums, which HDF5 searches without end where
    # it is damaged.
    own.attrs["format"] = np.bytes_(FORMAT)
    own.attrs["sha256"] = np.bytes_(header_hash(*system, parts))
    own.attrs["periodic"] = np.array(system.pbc, np.uint8)
    group = file.create_group("particles/all")
    group["species"] = system.numbers
    group["mass"] = system.masses
    group["mass"].attrs["unit"] = "u"
    box = group.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array(["periodic" if p else "none" for p in system.pbc], h5py.string_dtype())


def _finish(file: Any) -> None:
    """Units, and the one step and time beside every value."""
    file[_CLOCK]["time"].attrs["unit"] = "fs"
    for place, unit, _ in _ELEMENTS.values():
        if place in file:
            file[place]["value"].attrs["unit"] = unit
            if place != _CLOCK:
                for name in ("step", "time"):
                    file[place][name] = file[_CLOCK][name]


def joined(pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Fields of successive frames one after another."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
