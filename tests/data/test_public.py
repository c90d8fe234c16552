"""Public data sets: what is downloaded is what was published, or it is refused in words."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import yaml
from ase.data import atomic_numbers

from leignn_jax.data import bundled_data, get_data, public, public_data, read_frames
from leignn_jax.errors import ConfigError, DownloadError, FileFormatError
from leignn_jax.files import in_words, lock

CONTENT = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server():
    """Serves ``files`` by path, cut to ``cut`` bytes where that is given, and keeps what it was asked for."""
    state = SimpleNamespace(asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, wanted = self.path[1:], self.headers.get("Range")
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            content, first = state.files[name], 0
            if wanted is not None and state.ranges:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if first else state.status)
            self.send_header("Content-Type", state.kind)
            if name.endswith(".gz"):
                self.send_header("Content-Encoding", "x-gzip")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first : state.cut])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.address = f"http://127.0.0.1:{http.server_port}"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def offer(server, tmp_path, monkeypatch):
    """A registry of one set, "one", with one file, and the server that has it."""
    server.files, server.cut, server.ranges, server.asked = {"a.bin": CONTENT}, None, True, []
    server.status, server.kind = 200, "application/octet-stream"

    def make(name="a.bin", checksum=None, address=None, unpack=None):
        file = {"path": name, "address": f"{address or server.address}/{name}", "checksum": checksum, "unpack": unpack}
        page = "https://example.org/about"
        entry = {
            "what": "w",
            "page": page,
            "licence": None,
            "citation": "c",
            "size": None,
            "files": [file],
            "train": "t",
        }
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"one": entry}))
        monkeypatch.setattr(public, "public_data", lambda: public.read_registry(tmp_path / "sets.yaml"))
        return tmp_path / "data"

    return make


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


def test_a_published_checksum_is_kept_to(offer, server, caplog):
    folder = offer(checksum=md5(CONTENT))
    assert get_data("one", folder) == folder
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert (folder / "a.bin").stat().st_mode & 0o044
    get_data("one", folder)
    assert len(server.asked) == 1
    assert [p.name for p in folder.iterdir()] == ["a.bin"]
    # What is there and wrong is put aside, not lost.
    (folder / "a.bin").write_bytes(b"mine")
    get_data("one", folder)
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert (folder / "a.bin.refused").read_bytes() == b"mine"
    assert "is now a.bin.refused" in caplog.text


def test_another_file_than_the_published_one_is_refused(offer, server):
    folder = offer(checksum=md5(CONTENT))
    server.files["a.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(
        DownloadError, match=r"a\.bin from .* is not the file that was published.*removed.*example\.org"
    ):
        get_data("one", folder)
    assert not list(folder.iterdir())


def test_without_a_published_checksum_the_first_download_is_the_measure(offer, server, caplog):
    folder = offer()
    with caplog.at_level(logging.INFO, "leignn_jax"):
        get_data("one", folder)
    assert f"No checksum of this file is published: the sha256 of what came is now in {folder}" in caplog.text
    assert (folder / "a.bin.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  a.bin\n"
    get_data("one", folder)
    assert len(server.asked) == 1
    (folder / "a.bin").unlink()
    server.files["a.bin"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match="not the file that was downloaded first: its checksum is not sha256:"):
        get_data("one", folder)
    (folder / "a.bin.sha256").write_text("?")
    with pytest.raises(FileFormatError, match=r"a\.bin\.sha256: is not the checksum"):
        get_data("one", folder)


def test_a_broken_download_goes_on(offer, server, monkeypatch):
    folder = offer(checksum=md5(CONTENT))
    monkeypatch.setattr(public, "_CHUNK", 10_000)
    server.cut = 60_000
    with pytest.raises(DownloadError, match=r"the connection broke before its end.*the same command then goes on"):
        get_data("one", folder)
    assert [p.name for p in folder.iterdir()] == [".a.bin.part"]
    server.cut = None
    get_data("one", folder)
    assert server.asked == [("a.bin", None), ("a.bin", "bytes=60000-")]
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("case", ["server without ranges", "part as long as the file"])
def test_a_part_that_can_not_be_gone_on_with(offer, server, case):
    folder = offer(checksum=md5(CONTENT))
    folder.mkdir()
    server.ranges = case != "server without ranges"
    (folder / ".a.bin.part").write_bytes(b"?" * (10 if case == "server without ranges" else len(CONTENT)))
    get_data("one", folder)
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_a_part_is_not_used_where_no_checksum_tells(offer, server):
    folder = offer()
    server.cut = 60_000
    with pytest.raises(DownloadError, match="broke"):
        get_data("one", folder)
    server.cut = None
    get_data("one", folder)
    assert server.asked[-1] == ("a.bin", None)
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_another_process_is_at_the_same_file(offer, server):
    folder = offer()
    folder.mkdir()
    (folder / ".a.bin.part").write_bytes(CONTENT[:100])
    other = lock(folder / ".a.bin.part")
    with pytest.raises(DownloadError, match=r"a\.bin: another process is downloading this file\. Wait"):
        get_data("one", folder)
    assert (folder / ".a.bin.part").read_bytes() == CONTENT[:100]
    os.close(other)
    get_data("one", folder)
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_no_file_and_no_connection(offer, server):
    folder = offer("b.bin")
    with pytest.raises(DownloadError, match=r"the server answers 404 Not Found.*put it to .*b\.bin"):
        get_data("one", folder)
    folder = offer(address="http://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"a\.bin can't be downloaded from http.*there is no connection to it"):
        get_data("one", folder)
    # Put there by hand, as the message says: taken, and recorded.
    (folder / "a.bin").write_bytes(CONTENT)
    get_data("one", folder)
    assert (folder / "a.bin.sha256").is_file()


def test_another_answer_than_the_file(offer, server):
    """Nothing tells a page from the file where no checksum is published."""
    folder = offer()
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page comes instead of the file"):
        get_data("one", folder)
    server.kind, server.status = "text/plain", 202
    with pytest.raises(DownloadError, match="the server answers 202 Accepted"):
        get_data("one", folder)
    assert not list(folder.iterdir())


def test_a_folder_that_can_not_be_written(offer, tmp_path, monkeypatch):
    offer()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        get_data("one", tmp_path / "file" / "data")
    # Root may write everywhere.
    monkeypatch.setattr(public.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError) as caught:
        get_data("one", tmp_path / "data")
    assert in_words(caught.value) == f"{tmp_path / 'data'}: there is no permission to read or write it."
    # A copy that is right may lie where nobody writes.
    (tmp_path / "data" / "a.bin").write_bytes(CONTENT)
    offer(checksum=md5(CONTENT))
    get_data("one", tmp_path / "data")


def test_the_bar_shows_bytes(offer, capsys):
    get_data("one", offer(), progress=True)
    assert "a.bin" in capsys.readouterr().err


def archive(*members):
    """A .tar.gz of names and contents; None makes a link to outside."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def test_an_archive_is_unpacked_without_its_pickles(offer, server, caplog):
    content = archive(("set/deep/a.txt", b"a"), ("set/model.pkl", b"p"))
    server.files["s.tar.gz"] = content
    folder = offer("s.tar.gz", md5(content), unpack="set")
    with caplog.at_level(logging.INFO, "leignn_jax"):
        get_data("one", folder)
    assert (folder / "set" / "deep" / "a.txt").read_bytes() == b"a"
    assert "set/model.pkl is a pickle" in caplog.text
    assert sorted(p.name for p in folder.rglob("*")) == ["a.txt", "deep", "s.tar.gz", "set"]
    # What is unpacked is enough: its archive may go.
    (folder / "s.tar.gz").unlink()
    get_data("one", folder)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(("a.txt", b"a"), ("../b.txt", b"b")), "points outside of the folder"),
        (archive(("/b.txt", b"b")), "points outside of the folder"),
        (archive(("a.txt", b"a"), ("passwd", None)), "is a link or device"),
        (archive(("a.txt", CONTENT))[:-400], "a damaged archive"),
        (b"no archive", "a damaged archive"),
    ],
    # An archive holds the time: as a name it is another one in each process.
    ids=["upwards", "absolute", "link", "cut", "none"],
)
def test_archives_that_are_refused_leave_nothing(offer, server, content, message):
    server.files["s.tar.gz"] = content
    folder = offer("s.tar.gz", md5(content), unpack="set")
    with pytest.raises(FileFormatError, match=message):
        get_data("one", folder)
    assert [p.name for p in folder.iterdir()] == ["s.tar.gz"]
    assert not (folder.parent / "b.txt").exists()


def test_the_registry_is_read_where_the_locale_knows_no_umlauts():
    """As on Windows, and where LANG names a locale of before UTF-8."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = "from leignn_jax.data import public_data; public_data()"
    done = subprocess.run([sys.executable, "-c", command], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_registry_can_be_used_as_it_stands():
    """Every set has files with addresses, checksums of the right form, and a command that names its own files."""
    sets = public_data()
    assert {"rmd17-aspirin", "rmd17-full-uracil", "md17-benzene", "iso17", "lips", "water", "mlearn-Si"} <= sets.keys()
    lengths = {"md5": 32, "sha256": 64}
    paths = []
    for name, one in sets.items():
        assert one.name == name
        assert "{" not in one.what + one.page
        for file in one.files:
            assert file.address.startswith(("https://", "http://"))
            assert "{" not in file.path + file.address
            if file.checksum is not None:
                algorithm, _, digits = file.checksum.partition(":")
                assert len(digits) == lengths[algorithm]
                int(digits, 16)
            paths.append(file.path)
        command = one.train.format(folder="HERE").split()
        assert command[0] == "leignn"
        roots = {(file.unpack or file.path).split("/")[0] for file in one.files}
        named = [word.split("/")[1] for word in command if word.startswith("HERE/")]
        assert named
        assert set(named) <= roots
    # All may lie in one folder.
    assert len(set(paths)) == len(paths)
    assert len(sets["water"].files) == 28
    with pytest.raises(ConfigError, match=r"did you mean 'rmd17-aspirin'\?.*leignn data list"):
        get_data("rmd17-asprin")


def test_mlearns_json_is_read_as_the_bundled_frames_are(tmp_path):
    """The first frame of the repository's Si/test.json, its numbers as they stand there, and a stress with shear."""
    frames = read_frames(bundled_data("si") / "test.extxyz.xz")
    (wanted,) = [atoms for atoms in frames if atoms.calc.results["energy"] == -344.74080048]
    sites = [{"species": [{"element": "Si", "occu": 1}], "xyz": xyz.tolist()} for xyz in wanted.positions]
    matrix = [[10.260243, 0.0, 0.0], [0.0, 10.937456, 0.0], [0.0, 0.0, 10.937456]]
    entry = {
        "structure": {"lattice": {"matrix": matrix}, "sites": sites},
        "outputs": {
            "energy": -344.74080048,
            "forces": wanted.calc.results["forces"].tolist(),
            "virial_stress": [99.43217523, 45.75675106, 45.75675106, 0.0, 0.0, 0.0],
        },
        "group": "Elastic",
    }
    sheared = {**entry, "outputs": {**entry["outputs"], "virial_stress": [1, 2, 3, 4, 5, 6]}}
    (tmp_path / "training.json").write_text(json.dumps([entry, sheared]))
    first, second = read_frames(tmp_path / "training.json")
    assert (first.numbers == atomic_numbers["Si"]).all()
    np.testing.assert_allclose(first.cell, wanted.cell, atol=1e-6)
    np.testing.assert_allclose(first.calc.results["stress"], wanted.get_stress(voigt=False), rtol=1e-6, atol=1e-9)
    kilobar = 1e8 / 1.602176634e11
    np.testing.assert_allclose(
        second.calc.results["stress"], -kilobar * np.array([[1, 4, 6], [4, 2, 5], [6, 5, 3]]), rtol=1e-6
    )


def test_ases_own_json_stays_readable(tmp_path):
    atoms = read_frames(bundled_data("si") / "test.extxyz.xz", index=":1")[0]
    ase.io.write(tmp_path / "one.json", atoms)
    assert len(read_frames(tmp_path / "one.json")[0]) == len(atoms)
