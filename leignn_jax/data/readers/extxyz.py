"""Extended XYZ, also compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, cast

import ase

from leignn_jax.errors import FileFormatError

UNPACK: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    from ase.io.extxyz import read_xyz

    unpack = UNPACK.get(path.suffix.lower())
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
