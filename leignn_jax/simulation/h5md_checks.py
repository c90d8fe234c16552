"""What must hold of a trajectory's numbers, and a damaged file as an error in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from leignn_jax.errors import FileFormatError
from leignn_jax.files import digest


@contextlib.contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Whatever h5py makes of a damaged file, as a FileFormatError that names the file and what in it."""
    try:
        yield
    except (FileNotFoundError, FileFormatError):
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileFormatError(f"{path}: {what} is damaged ({reason}). Copy it again.") from error


def header_hash(numbers: np.ndarray, masses: np.ndarray, pbc: np.ndarray, parts: str) -> str:
    """sha256 of what HDF5 keeps no checksum of: species, masses, periodic directions, the JSON text of the parts."""
    system = {"species": numbers, "mass": masses, "boundary": pbc}
    return digest({**system, "parts": np.frombuffer(parts.encode(), np.uint8)})


def wrong_system(numbers: np.ndarray, masses: np.ndarray, pbc: np.ndarray) -> str | None:
    """What no system can have: atomic numbers [atoms] outside 1 to 118, masses [atoms] that are not positive."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or masses.shape != numbers.shape or masses.dtype.kind != "f":
        return f"species {numbers.dtype}{numbers.shape} and masses {masses.dtype}{masses.shape} do not fit"
    if pbc.shape != (3,):
        return f"periodic directions have shape {pbc.shape}, not (3,)"
    for what, values, bad in (
        ("atomic number", numbers, (numbers < 1) | (numbers > 118)),
        ("mass", masses, ~(np.isfinite(masses) & (masses > 0))),
    ):
        if bad.any():
            atom = int(np.flatnonzero(bad)[0])
            return f"the {what} of atom {atom} is {values[atom]}"
    return None


def wrong_clock(step: np.ndarray, time: np.ndarray) -> str | None:
    """What no clock does: steps [frames] that do not grow, times [frames] that are no numbers."""
    back = np.flatnonzero(np.diff(step) <= 0)
    if len(back) > 0:
        i = int(back[0]) + 1
        return f"steps must grow, but after step {step[i - 1]} comes step {step[i]} (frame {i})"
    bad = np.flatnonzero(~np.isfinite(time))
    slow = np.flatnonzero(np.diff(time) < 0)
    if len(bad) == 0 and len(slow) > 0:
        i = int(slow[0]) + 1
        return f"times must grow, but after {time[i - 1]:g} fs comes {time[i]:g} fs (frame {i})"
    return f"the time of frame {bad[0]} (step {step[bad[0]]}) is {time[bad[0]]} fs" if len(bad) > 0 else None


def wrong_cells(cell: np.ndarray, pbc: np.ndarray) -> str | None:
    """What no cells [frames, 3, 3] are: not finite, or flat along the periodic directions [3]."""
    volumes = np.abs(np.linalg.det(cell))
    bad = np.flatnonzero(~np.isfinite(cell).all(axis=(1, 2)) | ((volumes == 0) & pbc.all()))
    return f"the cell of frame {bad[0]} is {cell[bad[0]].tolist()}" if len(bad) > 0 else None


def wrong_layout(parts: Sequence[Any], dtypes: Mapping[str, np.dtype], periodic: bool) -> str | None:
    """What no writer of ours says of a file: its parts (file, frames, total), the dtype of each field, and whether
    the system needs a cell."""
    for name in ("step", "time", "positions", *(["cell"] if periodic else [])):
        if name not in dtypes:
            return f"it has no {name}"
    for name, dtype in dtypes.items():
        if dtype.kind != ("i" if name == "step" else "f"):
            return f"its {name} have the type {dtype}"
    for file, frames, total in parts:
        place = PurePosixPath(file) if isinstance(file, str) else PurePosixPath("..")
        if place.is_absolute() or ".." in place.parts:
            return f"its part {file!r} is not beside it"
        if type(frames) is not int or type(total) is not int or not 0 <= frames <= total:
            return f"its part {file} has {frames} of {total} frames"
    return None
