"""Options that several commands have, and what becomes of them. Nothing heavy is imported before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import ase


def file_place(path: Any) -> Any:
    """A file to write; told before the work and not after it where it is a folder."""
    if path is not None and Path(path).is_dir():
        raise typer.BadParameter(f"{path} is a folder; give a file.")
    return path


def frames_place(path: Path) -> Path:
    """A file of extended XYZ to write, by its name, also compressed; or what is no file, such as /dev/stdout."""
    file_place(path)
    name = path.with_suffix("") if path.suffix in (".xz", ".gz", ".bz2") else path
    if name.suffix not in (".extxyz", ".xyz") and (path.is_file() or not path.exists()):
        raise typer.BadParameter(
            f"{path}: extended XYZ is written; call it .extxyz or .xyz, also with .xz, .gz or .bz2."
        )
    return path


def plot_place(path: Path | None) -> Path | None:
    """A PNG to write, by its name."""
    if path is not None and path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{path}: a PNG is written; call it {path.stem or 'plot'}.png.")
    return file_place(path)


def check_other(out: Path, *read: Path | None) -> None:
    """End the command where it would write over what it reads."""
    for path in read:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            stop(f"--out {out}: is what is read; choose another file.")


JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON there; - prints it.", callback=file_place),
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
