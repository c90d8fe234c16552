"""What commands print and write, and how they end when they are interrupted."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import ase


def show(result: Any, json_file: str | None, text: str | None = None) -> None:
    """Print a result as text, or as JSON where it has no text or that is asked for; write it as JSON to a file."""
    as_json = json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(as_json if text is None or json_file == "-" else text)
    if json_file not in (None, "-"):
        from leignn_jax.arguments import check_path
        from leignn_jax.files import write_atomically

        write_atomically(check_path("--json", json_file), f"{as_json}\n".encode())


def plain(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_frames(path: Path, frames: Sequence[ase.Atoms]) -> None:
    """Structures into a file, extended XYZ, compressed as its name says."""
    import bz2
    import gzip
    import lzma

    from leignn_jax.extxyz import extxyz_of
    from leignn_jax.files import write_atomically

    pack = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix)
    content = extxyz_of(frames).encode()
    write_atomically(path, content if pack is None else pack(content))


@contextlib.contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Ctrl-C ends the command with one line that says how to go on, exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. {remedy}", err=True)
        raise typer.Exit(130) from None
