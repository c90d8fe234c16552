"""Ways to break bytes, text and values."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Its beginning, sometimes all but a few bytes of it."""
    if not content:
        return content
    return content[: rng.choice([rng.randrange(len(content)), max(0, len(content) - rng.randrange(1, 40))])]


def flip(rng: random.Random, content: bytes) -> bytes:
    """One to three bits changed."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def zeros(rng: random.Random, content: bytes) -> bytes:
    """A stretch of zeros, as a power cut leaves it."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([8, 64, 512, len(content)]))
    return content[:start] + bytes(stop - start) + content[stop:]


def drop(rng: random.Random, content: bytes) -> bytes:
    """A stretch left out."""
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice([1, 1, 8, 64]) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    """A stretch twice."""
    start = rng.randrange(len(content))
    stop = start + rng.choice([1, 8, 64])
    return content[:stop] + content[start:stop] + content[stop:]


def swap(rng: random.Random, content: bytes) -> bytes:
    """Two blocks in each other's place."""
    size = rng.choice([1, 8, 64])
    if len(content) < 2 * size:
        return content[::-1]
    a, b = sorted((rng.randrange(len(content) - 2 * size + 1), rng.randrange(len(content) - 2 * size + 1)))
    b = max(b, a + size)
    return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]


def insert(rng: random.Random, content: bytes) -> bytes:
    """Bytes that do not belong there."""
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice([b"\0", b"\xff", "\u0663".encode(), b"\x1b[31m", b"\r", b"9", b"-"]) + content[at:]


def garbage(rng: random.Random, content: bytes) -> bytes:
    """Something else altogether."""
    return rng.choice(
        [
            b"",
            b"\0" * len(content),
            rng.randbytes(len(content)),
            b"PK\x03\x04",
            b"\x89HDF\r\n\x1a\n",
            b"{",
            b"[" * 100_000,
        ]
    )


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "truncate": truncate,
    "flip": flip,
    "zeros": zeros,
    "drop": drop,
    "repeat": repeat,
    "swap": swap,
    "insert": insert,
    "garbage": garbage,
}


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's content."""
    path.write_bytes(change(path.read_bytes()))


def any_file(rng: random.Random, folder: Path) -> Path:
    """One of the files in a folder and those below it that is not empty."""
    return rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))


class _Odd:
    """An object of a class that nobody knows."""

    def __repr__(self) -> str:
        return "<odd>"


ODD = _Odd()

# Values that are of the wrong kind wherever one number is asked for.
NOT_A_NUMBER: list = [
    None,
    "x",
    "",
    [],
    {},
    [1.0, 2.0],
    {"a": 1},
    1j,
    ODD,
    float("nan"),
    np.array([[1.0]] * 2),
    b"1",
    len,
]
NOT_POSITIVE: list = [*NOT_A_NUMBER, 0, -1, -1e300, float("-inf"), float("inf")]
NOT_A_COUNT: list = [*NOT_A_NUMBER, 0, -1, -(10**30), 1.5, float("inf")]
# Values that are no name of anything.
NOT_A_NAME: list = [None, "", "x", "Nve ", 3, [], {}, ["nve"], ODD, "\0", "a" * 100_000, float("nan"), b"nve", True]


def without(values: list, *left_out: float | None) -> list:
    """Those that are none of these, which a call may take; arrays and objects stay."""
    plain = (int, float, type(None))
    return [x for x in values if not (isinstance(x, plain) and any(x is y or x == y for y in left_out))]
