"""Named arrays with a header of text in one file, by safetensors: the same content is the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leignn_jax.errors import FileFormatError


def pack(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> bytes:
    """The content of a file of ``arrays`` and ``header``."""
    from safetensors.numpy import save

    content = save(dict(arrays), metadata=dict(header))
    # The library writes the header in another order each time.
    start = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8:start]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def unpack(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header of the file at ``path``.

    Raises:
        FileFormatError: it is not a whole .safetensors file of numbers that NumPy knows.
        OSError: it can't be opened.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118, no dict
    except (SafetensorError, ValueError, TypeError, AttributeError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FileFormatError(
            f"{path}: not a readable .safetensors file ({error}). Truncated? Copy it again."
        ) from error


def json_of(path: Path, header: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object that stands in a header under a name.

    Raises:
        FileFormatError: there is none, it is no object, or it has a key twice.
    """
    if name not in header:
        raise FileFormatError(f"{path}: its header has no {name}. Edited? Copy it again.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a key stands twice: {', '.join(sorted(key for key, _ in pairs))[:200]}")
        return found

    try:
        value = json.loads(header[name], object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise FileFormatError(f"{path}: {name} in its header is no JSON ({reason}). Edited? Copy it again.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: {name} in its header is {header[name][:80]}, not names and values.")
    return value
