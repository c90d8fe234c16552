"""Public data sets by name: ``leignn data get`` and :func:`get_data`. What there is stands in resources/datasets.yaml.

A file is checked against its published checksum. Where none is published, the sha256 of the first download is kept beside
it, in NAME.sha256 as ``sha256sum -c`` reads it, and later downloads must have it too. A file that is not what it should
be is never left under its name.
"""

from __future__ import annotations

import errno
import logging
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from leignn_jax.data.readers import PICKLED
from leignn_jax.errors import ConfigError, DownloadError, FileFormatError
from leignn_jax.files import lock, sync_folder, write_atomically
from leignn_jax.models.config import did_you_mean
from leignn_jax.progress import ProgressBar, is_shown

log = logging.getLogger("leignn_jax")

_REGISTRY = Path(__file__).parents[1] / "resources" / "datasets.yaml"
_CHUNK = 1 << 20
# Seconds: to connect, and without a byte.
_PATIENCE = (20, 60)


class RemoteFile(NamedTuple):
    """One file: ``path`` below the folder, ``address``, ``checksum`` as "algorithm:hex" or None where none is published,
    and ``unpack``, the folder that an archive becomes, None for another file."""

    path: str
    address: str
    checksum: str | None
    unpack: str | None


class PublicData(NamedTuple):
    """A public data set: its name, what it is, where people read about it, licence (None: not stated), citation, size of
    the download (None: not published), files, and the command that trains on it with {folder} for where they lie."""

    name: str
    what: str
    page: str
    licence: str | None
    citation: str
    size: str | None
    files: tuple[RemoteFile, ...]
    train: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self._asdict(), "files": [file._asdict() for file in self.files]}


@cache
def public_data() -> dict[str, PublicData]:
    """All sets that :func:`get_data` knows, by name."""
    return read_registry(_REGISTRY)


def read_registry(path: Path) -> dict[str, PublicData]:
    """The sets in a YAML file of the form of resources/datasets.yaml, by name."""
    found = {}
    for name, entry in yaml.safe_load(path.read_bytes()).items():
        for member, words in entry.get("members", {"": {}}).items():
            one = _make_set(name, entry, {"member": member, **words})
            found[one.name] = one
    return found


def _make_set(name: str, entry: Mapping[str, Any], words: Mapping[str, Any]) -> PublicData:
    def fill(text: str, **more: str) -> str:
        return text.format(**words, **more)

    files = tuple(
        RemoteFile(
            path=fill(file["path"], each=each),
            address=fill(file["address"], each=each),
            checksum=None if file["checksum"] is None else fill(file["checksum"]),
            unpack=file.get("unpack"),
        )
        for file in entry["files"]
        for each in file.get("each", [""])
    )
    return PublicData(
        name=fill(name),
        what=fill(entry["what"]),
        page=entry["page"],
        licence=entry["licence"],
        citation=entry["citation"],
        size=fill(entry["size"] or "") or None,
        files=files,
        train=fill(entry["train"], folder="{folder}"),
    )


def get_data(name: str, folder: str | os.PathLike = "data", *, progress: bool | None = None) -> Path:
    """Download a public data set into ``folder`` and return the folder; what is there already is kept.

    Args:
        name: one of :func:`public_data`, such as ``"rmd17-aspirin"``.
        folder: made where it is missing. A file put there by hand is taken and checked like a downloaded one.
        progress: show a progress bar; None where there is a terminal or notebook.

    Raises:
        ConfigError: a name that is not known.
        DownloadError: a file can't be downloaded or is not the one that was published; says how to go on.
        FileFormatError: an archive that would write outside of its folder or is damaged.
        OSError: the folder can't be written.
    """
    known = public_data()
    if name not in known:
        raise ConfigError(f"{name!r} is not a known data set{did_you_mean(name, known)} `leignn data list` shows all.")
    folder = Path(folder)
    first = [f for f in known[name].files if f.checksum is None and not _record_of(folder / f.path).exists()]
    for file in known[name].files:
        if file.unpack is not None and (folder / file.unpack).exists():
            continue
        path = fetch(file, folder, known[name].page, progress)
        if file.unpack is not None:
            log.info("Unpacking %s.", file.path)
            unpack(path, folder / file.unpack)
    made = [_record_of(folder / file.path) for file in first if _record_of(folder / file.path).exists()]
    if made:
        log.info(
            "No checksum of %s is published: the sha256 of what came is now in %s; later downloads must have it too.",
            "this file" if len(made) == 1 else f"{len(made)} of these files",
            made[0] if len(made) == 1 else f"{made[0].name} and the like beside them",
        )
    return folder


def fetch(file: RemoteFile, folder: Path, page: str, progress: bool | None = None) -> Path:
    """Download one file, or keep the one that is there where it is the right one; raises as :func:`get_data`."""
    import pooch
    import requests

    path = folder / file.path
    checksum = file.checksum or _recorded(path)
    right = "was published" if file.checksum else "was downloaded first"
    if path.exists() and checksum is not None and _fits(path, checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    if path.exists() and checksum is not None:
        refused = path.with_name(f"{path.name}.refused")
        os.replace(path, refused)
        log.warning("%s is not the file that %s: it is now %s.", path, right, refused.name)
    if not path.exists():
        pooch.get_logger().setLevel(logging.WARNING)
        try:
            pooch.retrieve(
                file.address,
                known_hash=checksum,
                fname=path.name,
                path=path.parent,
                downloader=_Downloader(path, checksum is not None, progress),  # pyright: ignore[reportArgumentType]
            )
        except requests.exceptions.RequestException as error:
            raise DownloadError(
                f"{path.name} can't be downloaded from {file.address}: {_reason(error)}. Download it by other means (its "
                f"page: {page}) and put it to {path}; the same command then goes on."
            ) from error
        except DownloadError:
            raise
        except ValueError as error:
            raise DownloadError(
                f"{path.name} from {file.address} is not the file that {right}: its checksum is not {checksum}. It has been "
                f"removed. Try again; if that does not help, the file was changed at its source: look at {page}."
            ) from error
        sync_folder(path.parent)
    if checksum is None:
        found = pooch.file_hash(str(path), alg="sha256")
        write_atomically(_record_of(path), f"{found}  {path.name}\n".encode())
    return path


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    record = _record_of(path)
    if not record.exists():
        return None
    words = record.read_bytes().split()
    if len(words) != 2 or re.fullmatch(rb"[0-9a-f]{64}", words[0]) is None:
        raise FileFormatError(f"{record}: is not the checksum of a file. Delete it, so that it is made again.")
    return f"sha256:{words[0].decode()}"


def _fits(path: Path, checksum: str) -> bool:
    import pooch

    algorithm, _, expected = checksum.partition(":")
    return pooch.file_hash(str(path), alg=algorithm) == expected


class _Downloader:
    """A downloader for pooch: by HTTP, with a progress bar, and on from where an earlier one was cut off.

    path: where the file is to be; until it is whole it is .NAME.part beside it.
    resume: go on with such a part. Only where a checksum tells whether the whole is right.
    """

    def __init__(self, path: Path, resume: bool, progress: bool | None):
        self._part, self._path = path.with_name(f".{path.name}.part"), path
        self._resume, self._progress = resume, progress

    def __call__(self, address: str, output: str, _pooch: Any) -> None:
        self._part.touch()
        try:
            handle = lock(self._part)
        except BlockingIOError:
            raise DownloadError(
                f"{self._path}: another process is downloading this file. Wait for it; the same command then goes on."
            ) from None
        try:
            self._download(address, output)
        finally:
            if self._part.exists() and not self._part.stat().st_size:
                self._part.unlink()
            if handle is not None:
                os.close(handle)

    def _download(self, address: str, output: str) -> None:
        import requests

        from leignn_jax import __version__

        have = self._part.stat().st_size if self._resume else 0
        # What is sent must have the length that is told.
        headers = {"Accept-Encoding": "identity", "User-Agent": f"leignn_jax/{__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(address, headers=headers, stream=True, timeout=_PATIENCE) as response:
            if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                os.truncate(self._part, 0)
                return self._download(address, output)
            response.raise_for_status()
            if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
                raise requests.exceptions.HTTPError(response=response)
            if response.headers.get("Content-Type", "").startswith("text/html"):
                # What a moved file's address, a login or a gateway answers; without a checksum it would be taken.
                raise requests.exceptions.ContentDecodingError("a web page comes instead of the file")
            if response.status_code != requests.codes.partial_content:
                have = 0
            length = response.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            bar = ProgressBar(self._path.name, total, is_shown(self._progress), unit="bytes", done=have)
            with open(self._part, "ab" if have else "wb") as file, bar:
                for chunk in _bytes_sent(response):
                    file.write(chunk)
                    have += len(chunk)
                    bar.update(have)
                file.flush()
                os.fsync(file.fileno())
        if total is not None and have != total:
            raise requests.exceptions.ChunkedEncodingError(f"{have} of {total} bytes")
        os.replace(self._part, output)
        return None


def _bytes_sent(response: Any) -> Iterator[bytes]:
    """What comes, as it is: some servers call a .tar.gz an encoding, and decoded it would be another file."""
    import requests
    import urllib3

    try:
        yield from response.raw.stream(_CHUNK, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error


def _reason(error: Exception) -> str:
    from requests.exceptions import ChunkedEncodingError, ConnectionError, HTTPError, SSLError, Timeout

    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, Timeout):
        return "the server does not answer"
    if isinstance(error, ChunkedEncodingError):
        return "the connection broke before its end"
    if isinstance(error, ConnectionError) and not isinstance(error, SSLError):
        return "there is no connection to it"
    return str(error)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive as ``folder``, whole or not at all; one folder that holds everything is left out of the paths.

    Only files and folders are written, and none outside of ``folder``; pickles are left out.

    Raises:
        FileFormatError: the archive is damaged, or a member of it is a link or points outside; nothing is left then.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    _write_member(tar, member, archive, whole)
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FileFormatError(
                f"{archive}: a damaged archive ({error}). Delete it and download it again."
            ) from error
        top = list(whole.iterdir())
        os.replace(top[0] if len(top) == 1 and top[0].is_dir() else whole, folder)
    sync_folder(folder.parent)


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise FileFormatError(
            f"{archive}: its member {member.name!r} points outside of the folder. It is not unpacked."
        )
    if not (member.isreg() or member.isdir()):
        raise FileFormatError(f"{archive}: its member {member.name!r} is a link or device. It is not unpacked.")
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
    elif name.suffix.lower() in PICKLED:
        log.info("%s: %s is a pickle, which could run any program; left out.", archive.name, name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        with open(target, "wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
