"""Files that are whole or not there, and what is no file."""

import errno
import os
import resource
import tempfile
import threading
from pathlib import Path

import pytest

from leignn_jax.files import in_words, write_atomically


def test_nothing_is_left_beside(tmp_path):
    write_atomically(tmp_path / "new" / "file", b"one")
    write_atomically(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"one"


def test_a_pipe_stays_one(tmp_path):
    """As a device does: who is root would put a file in the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"one")
    reader.join(10)
    assert got == [b"one"]
    assert pipe.is_fifo()


def test_a_pipe_is_written_by_its_number():
    """As /dev/stdout is in a shell's pipeline: a link that names no place."""
    reading, writing = os.pipe()
    write_atomically(Path(f"/dev/fd/{writing}"), b"one")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"one"


@pytest.mark.parametrize("name", ["report.html", "link"])
def test_what_can_not_be_written_is_told_by_its_own_name(tmp_path, monkeypatch, name):
    """A full disk tells none, a folder that can't be written to that of the temporary file."""
    (tmp_path / "link").symlink_to(tmp_path / "report.html")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large") as full:
            write_atomically(tmp_path / name, b"more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def refuse(*_, dir, prefix):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}k3mq1")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError) as refused:
        write_atomically(tmp_path / name, b"one")
    for found in (full, refused):
        assert in_words(found.value).startswith(f"{tmp_path / name}: ")
