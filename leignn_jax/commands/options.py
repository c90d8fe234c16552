"""Options that several commands have, and what becomes of them. Nothing heavy is imported before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import ase

JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON there; - prints it.")
]
KeyNames = Annotated[
    list[str] | None, typer.Option("--key", metavar="LABEL=NAME", help="What a label is called, energy=dft_energy.")
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Work with the other processes of this TPU pod, Slurm or MPI job.")
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Elsewhere: where process 0 waits for the others;")
]
Processes = Annotated[int | None, typer.Option(help="how many processes there are, one on each host;")]
Process = Annotated[int | None, typer.Option(help="the number of this one, from 0.")]


def join(distributed: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes, where the command line asks for it."""
    if distributed or any(x is not None for x in (coordinator, processes, process)):
        from leignn_jax.processes import join_processes

        join_processes(coordinator, processes, process)


def read_committee(paths: Sequence[Path]) -> Any:
    """The committee of several files, or of one that holds one."""
    from leignn_jax.potential_file import load_potential
    from leignn_jax.sweeps.committee import committee, is_committee

    found = [load_potential(path) for path in paths]
    return found[0] if len(found) == 1 and is_committee(found[0]) else committee(found)


def read_structures(path: Path, index: str) -> list[ase.Atoms]:
    """Structures in a file, all by ":" or the last by "-1:"."""
    from leignn_jax.data.readers import read_frames
    from leignn_jax.errors import FileFormatError

    if path.is_dir():
        raise FileFormatError(f"{path}: is a folder. Give a file of structures.")
    return read_frames(path, index=index)


def read_keys(pairs: list[str] | None) -> dict[str, str]:
    """Names of labels from LABEL=NAME."""
    keys = {label: name for label, _, name in (pair.partition("=") for pair in pairs or [])}
    wrong = [label for label, name in keys.items() if label not in ("energy", "forces", "stress") or not name]
    if wrong:
        stop(f"--key {wrong[0]}={keys[wrong[0]]}: write energy=NAME, forces=NAME or stress=NAME.")
    return keys


def stop(message: str) -> NoReturn:
    """End the command: its line is wrong, exit code 2."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)
