"""Files that are whole or not there, and hashes that tell."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there; see :func:`open_atomically`."""
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, by a temporary one beside it, fsync and rename; the old one stays where the block raises.

    What a link points to is written, and what is no file (a pipe, /dev/stdout) as it is: nothing takes its place.
    """
    try:
        # Before links are followed: /dev/stdout is one to a pipe's number, which is no path.
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as file:
                yield file
            return
        with _beside(Path(os.path.realpath(path))) as file:
            yield file
    except OSError as error:
        # A full disk tells no name, and that of the temporary file tells nobody anything.
        if error.filename is None or Path(error.filename).name.startswith(f".{Path(os.path.realpath(path)).name}."):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``path``, which takes its place where the block ends well."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def put_in_place(temporary: str | Path, path: Path) -> None:
    """Give a finished temporary file beside ``path`` that name."""
    # Temporary files are private; the result is as readable as any new file.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files of writers of ``path`` that were killed."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*"):
        found.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Until the names in ``folder`` are on disk: a renamed file may have its old name after a power cut otherwise."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_ALWAYS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a limit on the size of files is reached; raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def why_not_written(error: OSError) -> str:
    """The reason of a failed write in words, with the remedy."""
    known = {
        **_ALWAYS,
        errno.EACCES: "there is no permission to write there; choose another folder",
        errno.EEXIST: "it is a file, not a folder; choose another path",
        errno.EISDIR: "it is a folder, not a file; choose another path",
    }
    return known.get(error.errno or 0, str(error))


def in_words(error: OSError) -> str:
    """Path and reason of any failed file operation; the error's own words where they are its only argument."""
    if error.errno is None:
        return str(error)
    known = {
        **_ALWAYS,
        errno.ENOENT: "no such file or folder",
        errno.EACCES: "there is no permission to read or write it",
        errno.EEXIST: "it is there already, and not a folder; choose another path",
        errno.EISDIR: "it is a folder; give a file",
    }
    reason = known.get(error.errno, error.strerror or str(error))
    return f"{reason}." if error.filename is None else f"{error.filename}: {reason}."


def make_folder(path: Path, kind: type[Exception]) -> None:
    """Make a folder and those above it where they are missing; an error of this kind in words where that fails."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise kind(f"{path!a}: the folder's name is no UTF-8, which some of its files need. Choose another.") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise kind(f"{path}: the folder can't be made: {why_not_written(error)}.") from error


def lock(path: Path) -> int | None:
    """A lock on a file or folder, which the system takes back when this process ends, however it does, or closes the
    handle; None where the system or the disk knows none. Raises BlockingIOError where another process has it."""
    try:
        import fcntl
    except ImportError:
        return None
    # Of a folder itself, so that no file is left.
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


class FolderLock:
    """A folder in which this process alone works, until it ends or calls :meth:`close`.

    Args:
        folder: that is there. error: what is raised where another process has it. work: what they would both be at.
    """

    def __init__(self, folder: Path, error: type[Exception], work: str):
        try:
            self._handle = lock(folder)
        except BlockingIOError:
            raise error(
                f"{folder}: another process is working on the {work} in this folder. Wait for it, or choose another folder."
            ) from None

    @property
    def held(self) -> bool:
        """Whether it keeps others out; False where the system or the disk knows no locks, and once it is closed."""
        return self._handle is not None

    def close(self) -> None:
        """Let others have the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 of names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()
