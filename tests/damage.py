"""Files damaged by seed, and what a reader makes of them: the error in words and the same numbers are the good ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leignn_jax.errors import LeignnError


def damaged(whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged copies of a file's content, each with what was done to it."""
    rng = np.random.default_rng(seed)
    kinds = ("flip a bit", "another byte", "cut", "zeros", "ones", "noise", "leave out", "twice")
    for i in range(count):
        # Half of all are single bytes, the damage that is hardest to see.
        kind = kinds[i % 2] if i % 4 < 2 else kinds[2 + (i // 4) % 6]
        at = int(rng.integers(len(whole)))
        size = int(rng.integers(1, min(600, len(whole) - at) + 1))
        block = whole[at : at + size]
        after = whole[at + size :]
        content = {
            "flip a bit": bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :],
            "another byte": bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :],
            "cut": b"",
            "zeros": bytes(size) + after,
            "ones": b"\xff" * size + after,
            "noise": rng.bytes(size) + after,
            "leave out": after,
            "twice": block + block + after,
        }[kind]
        yield f"{kind} at {at} ({size})", whole[:at] + content


def outcome(read: Callable[[], Any], expected: Any) -> str:
    """How reading a damaged file ended: "told", "same", "other numbers", or the name of an error that is not for people."""
    try:
        found = read()
    except (LeignnError, FileNotFoundError):
        return "told"
    except Exception as error:
        return f"raw {type(error).__name__}"
    return "same" if same(found, expected) else "other numbers"


def same(found: Any, expected: Any) -> bool:
    """Trees alike in structure, text, dtypes and bits."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(_bits(a) == _bits(b) for a, b in pairs)


def _bits(leaf: Any) -> Any:
    if isinstance(leaf, str):
        return leaf
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def outcomes(path: Path, read: Callable[[], Any], count: int, seed: int) -> Counter[str]:
    """How reading the file at ``path`` ends after each of ``count`` damages; it is whole again afterwards."""
    whole, expected = path.read_bytes(), read()
    seen: Counter[str] = Counter()
    try:
        for what, content in damaged(whole, count, seed):
            path.write_bytes(content)
            end = outcome(read, expected)
            seen[end if end in ("told", "same") else f"{end} ({what})"] += 1
    finally:
        path.write_bytes(whole)
    return seen
