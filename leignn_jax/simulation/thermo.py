"""The log of a simulation's thermodynamics: a CSV whose columns name their units, and which survives a kill."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.files import remove_leftovers, sync_folder, why_not_written, write_atomically

log = logging.getLogger("leignn_jax")

UNITS = {
    "time": "fs",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "total_energy": "eV",
    "conserved": "eV",
    "temperature": "K",
    "target_temperature": "K",
    "pressure": "GPa",
    "target_pressure": "GPa",
    "volume": "A3",
    "density": "g_cm3",
    "doubt": "eV_per_A",
}
"""Quantities whose columns get a unit: ``temperature`` becomes ``temperature_K``; other names stay as they are."""

# Python's own reading takes underscores, spaces and the digits of other scripts too, which no log has.
_NUMBERS = re.compile(r"[-+.,0-9a-zA-Z]*")


def column(name: str) -> str:
    """The column of a quantity."""
    return f"{name}_{UNITS[name]}" if name in UNITS else name


class ThermoLog:
    """Appends rows to a CSV. Once :meth:`append` has returned they survive this process, once :meth:`flush` has the machine.

    resume_step: go on with the file there, after dropping the rows of later steps and one that a kill has cut; without
    it the file must not be there.

    Raises:
        SimulationError: there is a log already and no ``resume_step``.
        FileFormatError: the log there is damaged.
    """

    def __init__(self, path: str | Path, *, resume_step: int | None = None):
        self.path = Path(path)
        self._columns: list[str] = []
        self._last: int | None = None
        remove_leftovers(self.path)
        if not self.path.exists():
            if resume_step:
                log.warning("%s: no log to go on with; its first row comes after step %d.", path, resume_step)
            return
        if resume_step is None:
            raise SimulationError(
                f"{self.path}: there is a log already. Resume it, delete it, or choose another folder."
            )
        lines = _whole_lines(self.path)
        if not lines:
            self.path.unlink()
            return
        self._columns = lines[0].split(",")
        steps = _parse(self.path, lines)["step"]
        kept = int(np.searchsorted(steps, resume_step, side="right"))
        self._last = int(steps[kept - 1]) if kept else None
        self._write(lambda: write_atomically(self.path, "".join(f"{line}\n" for line in lines[: kept + 1]).encode()))

    def append(self, quantities: Mapping[str, ArrayLike]) -> None:
        """Add rows.

        quantities: ``step`` and others by name (see ``UNITS``), each [rows]; the same ones in every call.

        Raises:
            SimulationError: columns, lengths or steps do not fit, or the file can't be written.
        """
        values = {column(name): np.asarray(array) for name, array in quantities.items()}
        if "step" not in values:
            raise SimulationError(f"{self.path}: a log needs the quantity 'step'; given are {', '.join(values)}.")
        new = not self._columns
        columns = self._columns or ["step", *(name for name in values if name != "step")]
        if set(columns) != values.keys():
            names = sorted(set(columns) ^ values.keys())
            raise SimulationError(f"{self.path}: {', '.join(names)} must be in all of its rows or in none.")
        steps = values["step"]
        wrong = [name for name in columns if values[name].shape != steps.shape or steps.ndim != 1]
        if wrong:
            raise SimulationError(
                f"{wrong[0]} has shape {values[wrong[0]].shape}; step has {steps.shape}: give [rows]."
            )
        before = [] if self._last is None else [self._last]
        if np.any(np.diff(np.concatenate([before, steps])) <= 0):
            raise SimulationError(
                f"{self.path}: steps must grow, but after step {self._last} come {steps.tolist()[:5]}."
            )
        if len(steps) == 0:
            return
        rows = [",".join(columns)] if new else []
        # str of a numpy number is the shortest text that gives back the same number.
        rows += [",".join(map(str, row)) for row in zip(*(values[name] for name in columns), strict=True)]
        self._write(lambda: self._add("".join(f"{row}\n" for row in rows).encode()))
        self._columns, self._last = columns, int(steps[-1])

    def flush(self) -> None:
        """Until all rows are on disk; SimulationError where they can't be written."""
        if self._last is None:
            return
        try:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise SimulationError(
                f"{self.path}: the log can't be written: {why_not_written(error)}. Then resume the run."
            ) from error

    def _add(self, content: bytes) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, which would write what is left of it again when it is closed.
        with open(self.path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) or 0 :]
            except OSError:
                # No half row before the next attempt.
                os.truncate(self.path, start)
                raise
        if new:
            sync_folder(self.path.parent)

    def _write(self, write) -> None:
        try:
            write()
        except OSError as error:
            last = "no row is there yet" if self._last is None else f"rows up to step {self._last} are safe"
            raise SimulationError(
                f"{self.path}: the log can't be written: {why_not_written(error)}; {last}. Then resume the run."
            ) from error


def read_thermo(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a log by name, ``step`` as int64 and others as float64 [rows]; a row that a kill has cut is left out.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: a row is no row of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the thermo.csv in the folder of a simulation.")
    lines = _whole_lines(path)
    return _parse(path, lines) if lines else {}


def _whole_lines(path: Path) -> list[str]:
    # After a power cut a file may end in zeros instead of what was written.
    content = path.read_bytes().split(b"\0", 1)[0]
    try:
        return content.decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not a text file ({error}).") from error


def _parse(path: Path, lines: list[str]) -> dict[str, np.ndarray]:
    columns = lines[0].split(",")
    if columns[0] != "step":
        raise FileFormatError(f"{path}: not a log of leignn_jax: its first column is {columns[0]!r}, not 'step'.")
    if not lines[0].isascii() or not lines[0].isprintable():
        raise FileFormatError(f"{path}: its first line, {lines[0][:80]!r}, holds what is in no column's name. Edited?")
    if len(set(columns)) != len(columns):
        raise FileFormatError(f"{path}: two of its columns have one name ({lines[0][:200]}). Edited?")
    rows = [line.split(",") for line in lines[1:]]
    numbers: list[tuple[float, ...]] = []
    try:
        for number, row in enumerate(rows, 2):
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} values for {len(columns)} columns")
            if _NUMBERS.fullmatch(lines[number - 1]) is None:
                raise ValueError("it holds what is in no number")
            numbers.append((int(row[0]), *map(float, row[1:])))
            if len(numbers) > 1 and numbers[-1][0] <= numbers[-2][0]:
                raise ValueError(f"step {numbers[-1][0]} after step {numbers[-2][0]}")
    except (ValueError, OverflowError) as error:
        raise FileFormatError(
            f"{path}, line {number}: not a row of the log ({error}). Edited? Delete the line."
        ) from error
    table = list(zip(*numbers, strict=True)) or [()] * len(columns)
    return {
        name: np.array(values, np.int64 if name == "step" else np.float64)
        for name, values in zip(columns, table, strict=True)
    }
