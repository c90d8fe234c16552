"""Lines of a text file, unpacked as they are read, within bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from leignn_jax.errors import FileFormatError

UNPACK: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
# Characters of the longest line. No structure unpacks to so many times its file's bytes, once past the first ones.
_LINE = 1 << 24
_RATIO, _FREE = 1000, 1 << 26


def check_ratio(path: Path, size: int, packed: int, what: str = "unpacks to") -> None:
    """Raise FileFormatError where ``packed`` bytes would become so many that the file was made to fill the memory."""
    if size > _FREE and size > _RATIO * packed:
        raise FileFormatError(
            f"{path}: {packed} bytes and {what} {size} or more. No frames pack so well, so it is not read."
        )


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file with their ends, less a byte-order mark.

    Raises:
        FileFormatError: damaged, no text, a line or a file out of bounds.
    """
    unpack = UNPACK.get(path.suffix.lower())
    packed, count = path.stat().st_size, 0
    try:
        with open(path, encoding="utf-8-sig") if unpack is None else unpack(path, "rt", encoding="utf-8-sig") as file:
            while line := file.readline(_LINE):
                count += len(line)
                if len(line) == _LINE:
                    raise FileFormatError(f"{path}: a line of more than {_LINE} characters.")
                if unpack is not None:
                    check_ratio(path, count, packed)
                if "\0" in line:
                    raise FileFormatError(f"{path}: holds a NUL byte, so it is damaged or no text. Copy it again.")
                yield line
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: is no text of UTF-8 ({error}).") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if unpack is None:
            raise
        raise FileFormatError(
            f"{path}: the compressed file is damaged or cut short ({error}). Copy it again."
        ) from error
