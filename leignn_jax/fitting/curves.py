"""Measured curves from files of columns, on the points at which a simulation is compared with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leignn_jax.errors import FileFormatError


def read_curve(path: Path, columns: Sequence[int], factor: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ``[points]``, how much, and its uncertainty, zeros where there is no such column.

    Args:
        path: text with columns divided by blanks, commas or semicolons; ``#`` begins a comment, a first line of names is
            passed over.
        columns: numbers of two or three columns, from 0. factor: of the first of them, to the unit that is meant.

    Raises:
        FileFormatError: no such columns, words or no finite numbers in them, or a first column that does not rise.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not a text file. A curve is columns of numbers.") from error
    lines = [line.partition("#")[0].replace(",", " ").replace(";", " ") for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    if lines and not _is_number(lines[0].split()[0]):
        lines = lines[1:]
    if not lines:
        raise FileFormatError(f"{path}: holds no numbers. A curve is columns of them.")
    try:
        table = np.loadtxt(io.StringIO("\n".join(lines)), ndmin=2)
    except ValueError as error:
        raise FileFormatError(f"{path}: not columns of numbers ({error}).") from error
    if len(table) < 2 or table.shape[1] <= max(columns) or min(columns) < 0:
        raise FileFormatError(
            f"{path}: {len(table)} rows of {table.shape[1]} columns; columns {list(columns)} (from 0) of two rows or more "
            "are asked for."
        )
    table = table[:, list(columns)]
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise FileFormatError(f"{path}: row {row} holds a number that is not finite.")
    x = table[:, 0] * factor
    if not (np.diff(x) > 0).all():
        row = int(np.flatnonzero(np.diff(x) <= 0)[0]) + 1
        raise FileFormatError(
            f"{path}: column {columns[0]} does not rise at row {row}: say by `columns` which one says where, and sort it."
        )
    error = table[:, 2] if table.shape[1] == 3 else np.zeros(len(x))
    if (error < 0).any():
        raise FileFormatError(f"{path}: column {columns[2]} is an uncertainty, and must not be below zero.")
    return x, table[:, 1], error


def check_range(path: Path, x: np.ndarray, start: float, end: float, unit: str) -> None:
    """FileFormatError where a curve does not reach from ``start`` to ``end``."""
    if x[0] > start or x[-1] < end:
        raise FileFormatError(
            f"{path}: goes from {x[0]:.4g} to {x[-1]:.4g} {unit}, and {start:g} to {end:g} {unit} are asked for. Say `unit` "
            "if its own is another, or choose another start and end."
        )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
