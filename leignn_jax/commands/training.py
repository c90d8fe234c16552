"""Train and judge potentials. Nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from leignn_jax.commands.options import (
    Coordinator,
    Distributed,
    JsonFile,
    KeyNames,
    Process,
    Processes,
    join,
    plot_place,
    read_keys,
    stop,
)
from leignn_jax.commands.output import interruptible, show


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for figures, potentials and report.html.")] = Path("quickstart"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """The whole way once on bundled data, in a few minutes: data, training, simulation, sweep, gradient, report.html."""
    with interruptible("The same command goes on with the training where it was."):
        from leignn_jax.quickstart import quickstart as run

        run(out, progress=False if quiet else None)
    typer.echo(
        f"\nDone: open {out / 'report.html'}\n"
        "Next:  leignn train --train YOUR_FRAMES.extxyz --out run       your own potential\n"
        "       leignn info si                                         what a bundled potential is good for\n"
        "       leignn md si STRUCTURE --ensemble nvt --temperature 300 --steps 1000 --out md"
    )


def train(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [KEY=VALUE ...]", help="Settings, section.key=value.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Frames to train on.")] = None,
    val: Annotated[Path | None, typer.Option(help="Frames to validate on; without, a part of --train.")] = None,
    test: Annotated[Path | None, typer.Option(help="Frames to test on at the end.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a run folder that holds a run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json_file: JsonFile = None,
) -> None:
    """Train a potential; the same command goes on with a run that was stopped."""
    words = words or []
    # Not Path.is_file, which takes a long setting for a file's name that is too long.
    files = [w for w in words if "=" not in w or os.path.isfile(w)]
    overrides = [w for w in words if w not in files]
    if len(files) > 1:
        stop(f"One config file, not {len(files)}: {', '.join(files)}. Settings are written key=value.")
    named = {"data.train": train, "data.validation": val, "data.test": test, "run.out": out}
    overrides = [*(f"{key}={json.dumps(str(value))}" for key, value in named.items() if value is not None), *overrides]
    if not files and train is None and not any(o.startswith("data.train=") for o in overrides):
        stop("Give a config file, or --train FILE.")
    with interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.processes import is_first
        from leignn_jax.training.config import load_config, make_config
        from leignn_jax.training.train import train as run

        config = load_config(files[0], overrides) if files else make_config({}, overrides)
        join(distributed, coordinator, processes, process)
        result = run(config, resume=not fresh, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        if not is_first():
            return
        show(result.metrics, json_file)
        typer.echo(f"Potential: {result.out / 'potential.safetensors'}\nReport: {result.out / 'report.html'}", err=True)


def fit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings, with targets.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Settings, section.key=value.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a run folder that holds a run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Fit a potential to DFT frames and measured numbers together; the same command goes on with a stopped fit."""
    with interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.fitting.api import fit as run
        from leignn_jax.interruption import exit_code

        result = run(config, overrides or [], resume=not fresh, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        show(result.metrics, json_file)
        typer.echo(f"Potential: {result.out / 'potential.safetensors'}\nReport: {result.out / 'report.html'}", err=True)


def evaluate(
    potential: Annotated[Path, typer.Argument(help="A potential's file, or the name of a bundled one.")],
    data: Annotated[Path, typer.Argument(help="Labelled frames.")],
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Write parity plots there, a PNG.", callback=plot_place)] = None,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    key: KeyNames = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    direct: Annotated[bool, typer.Option("--direct", help="Judge the direct head's forces.")] = False,
) -> None:
    """Errors of a potential on labelled frames, as JSON: MAE and RMSE in meV/atom, meV/Å, meV/Å^3."""
    keys = read_keys(key)
    with interruptible("Nothing was written."):
        from leignn_jax.potential_file import load_potential
        from leignn_jax.training.evaluate import evaluate as run

        result = run(load_potential(potential), data, units=units, keys=keys, dtype=dtype, direct=direct)
    show(result.metrics, json_file)
    if plot is not None:
        from leignn_jax.training.report import parity, save_figure

        save_figure(parity(result, f"{data.name}, {result.metrics['structures']} structures"), plot)
