"""What arrays in files must be: numbers, of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leignn_jax.data.readers.frames import HEAVIEST
from leignn_jax.errors import FileFormatError


def check_array(array: Any, what: str, *shapes: tuple[int, ...]) -> None:
    """Raise FileFormatError, which calls the array ``what``, unless it holds real numbers in one of these shapes.

    Args:
        array: of NumPy or HDF5; it is not read.
        what: file and name.
        shapes: -1 stands for any length.
    """
    if array.dtype.kind not in "iuf":
        raise FileFormatError(f"{what}: {array.dtype} are no real numbers.")
    for shape in shapes:
        if len(shape) == array.ndim and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
            return
    wanted = " or ".join(str(list(shape)).replace("-1", "any") for shape in shapes)
    raise FileFormatError(f"{what}: of shape {list(array.shape)}, but {wanted} is needed.")


def as_numbers(values: Any, what: str) -> np.ndarray:
    """Atomic numbers ``[atoms]``; FileFormatError where one is no whole number or no element's."""
    check_array(values, what, (-1,))
    numbers = np.asarray(values)
    wrong = np.flatnonzero(~((numbers == np.round(numbers)) & (numbers >= 1) & (numbers <= HEAVIEST)))
    if len(wrong):
        raise FileFormatError(f"{what}: atom {wrong[0]} has {numbers[wrong[0]]}, which is not an atomic number.")
    return numbers.astype(int)


def same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays say the same to single precision."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-6, atol=1e-8, equal_nan=True))


def only(names: Sequence[str], found: Any, path: Any) -> str | None:
    """Which of the names of one quantity a file has, the first of those that agree; None without one.

    Raises:
        FileFormatError: two of them say different numbers.
    """
    there = [name for name in names if name in found]
    for name in there[1:]:
        first, other = (np.asarray(found[key]) for key in (there[0], name))
        if first.dtype.kind not in "iuf" or other.dtype.kind not in "iuf" or not same_numbers(first, other):
            raise FileFormatError(f"{path}: {there[0]} and {name} are the same quantity with different numbers.")
    return there[0] if there else None
