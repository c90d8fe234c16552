"""``leignn``: train, evaluate, simulate, look at data and potentials. Nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="leignn",
    help="Train, evaluate and use interatomic potentials (LEIGNN in JAX).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@app.command(epilog="Example:  leignn quickstart --out tour")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for figures, potentials and report.html.")] = Path("quickstart"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """The whole way once on bundled data, in a few minutes: data, training, simulation, sweep, gradient, report.html."""
    from leignn_jax.quickstart import quickstart as run

    run(out, progress=False if quiet else None)
    typer.echo(
        f"\nDone: open {out / 'report.html'}\n"
        "Next:  leignn train --train YOUR_FRAMES.extxyz --out run       your own potential\n"
        "       leignn info si                                         what a bundled potential is good for\n"
        "       leignn md si STRUCTURE --ensemble nvt --temperature 300 --steps 1000 --out md"
    )


@app.command(
    epilog="Examples:  leignn train study.yaml optimizer.learning_rate=1e-3   |   "
    "leignn train --train frames.extxyz --out run data.batch_size=4   |   on every host of a cluster: "
    "leignn train study.yaml run.devices=16 --distributed"
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
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Train with the other processes of this TPU pod, Slurm or MPI job.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Elsewhere: where process 0 waits for the others;")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="how many processes there are, one on each host;")] = None,
    process: Annotated[int | None, typer.Option(help="the number of this one, from 0.")] = None,
) -> None:
    """Train a potential; the same command goes on with a run that was stopped."""
    words = words or []
    files = [w for w in words if "=" not in w]
    overrides = [w for w in words if "=" in w]
    if len(files) > 1:
        _stop(f"One config file, not {len(files)}: {', '.join(files)}. Settings are written key=value.")
    named = {"data.train": train, "data.validation": val, "data.test": test, "run.out": out}
    overrides = [*(f"{key}={json.dumps(str(value))}" for key, value in named.items() if value is not None), *overrides]
    if not files and train is None and not any(o.startswith("data.train=") for o in overrides):
        _stop("Give a config file, or --train FILE.")
    from leignn_jax.training.config import load_config, make_config
    from leignn_jax.training.loop import train as run
    from leignn_jax.training.processes import is_first, join_processes

    config = load_config(files[0], overrides) if files else make_config({}, overrides)
    if distributed or any(x is not None for x in (coordinator, processes, process)):
        join_processes(coordinator, processes, process)
    result = run(config, resume=not fresh, progress=False if quiet else None)
    if not result.finished:
        typer.echo(f"Stopped. The same command goes on; so far: {result.out}", err=True)
        raise typer.Exit(143)
    if not is_first():
        return
    typer.echo(json.dumps(result.metrics, indent=1))
    typer.echo(f"Potential: {result.out / 'potential.safetensors'}\nReport: {result.out / 'report.html'}", err=True)


@app.command(
    epilog="Example:  leignn evaluate run/potential.safetensors test.extxyz --json errors.json --plot parity.png"
)
def evaluate(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    data: Annotated[Path, typer.Argument(help="Labelled frames.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the errors there too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write parity plots there, a PNG.")] = None,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    direct: Annotated[bool, typer.Option("--direct", help="Judge the direct head's forces.")] = False,
) -> None:
    """Errors of a potential on labelled frames, as JSON: MAE and RMSE in meV/atom, meV/Å, meV/Å^3."""
    from leignn_jax.files import write_atomically
    from leignn_jax.potential_file import load_potential
    from leignn_jax.training.evaluate import evaluate as run

    result = run(load_potential(potential), data, units=units, dtype=dtype, direct=direct)
    text = json.dumps(result.metrics, indent=1)
    typer.echo(text)
    if json_file is not None:
        write_atomically(json_file, (text + "\n").encode())
    if plot is not None:
        from leignn_jax.training.report import parity, save_figure

        save_figure(parity(result, f"{data.name}, {result.metrics['structures']} structures"), plot)


@app.command(epilog="Example:  leignn sweep study.yaml")
def sweep(
    study: Annotated[Path, typer.Argument(help="A study's YAML file: base, space, search, samples, mesh.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train many models that differ in settings, as few compiled programs as their shapes allow."""
    from leignn_jax.sweeps.study import sweep as run

    result = run(study, progress=False if quiet else None)
    typer.echo((result.out / "results.csv").read_text().rstrip())
    typer.echo(f"Report: {result.out / 'report.html'}", err=True)


@app.command(
    epilog="Example:  leignn md potential.safetensors start.extxyz --ensemble nvt --temperature 300 --steps 10000 --out md"
)
def md(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    structure: Annotated[Path, typer.Argument(help="A file that ASE reads; its last structure is taken.")],
    steps: Annotated[int, typer.Option(help="Steps in all.")],
    out: Annotated[Path, typer.Option(help="Folder for trajectory.h5, thermo.csv, summary.json.")],
    ensemble: Annotated[
        str, typer.Option(help="nve, nvt (Nose-Hoover), langevin, csvr, npt, npt-anisotropic, npt-triclinic.")
    ] = "nve",
    temperature: Annotated[float | None, typer.Option(help="K, of the bath and of the first velocities.")] = None,
    pressure: Annotated[float | None, typer.Option(help="GPa, of npt.")] = None,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    replicas: Annotated[int | None, typer.Option(help="Copies, each with its own random numbers.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between frames.")] = 100,
    log_every: Annotated[int, typer.Option(help="Steps between lines of thermo.csv.")] = 10,
    seed: Annotated[int, typer.Option(help="Of velocities and noise.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    extxyz: Annotated[bool, typer.Option("--extxyz", help="Write trajectory.extxyz too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the simulation in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Molecular dynamics; prints a summary as JSON."""
    import ase.io

    from leignn_jax.potential_file import load_potential
    from leignn_jax.simulation.engine import simulate
    from leignn_jax.simulation.trajectory import write_extxyz

    if not structure.is_file():
        _stop(f"{structure}: no such file.")
    result = simulate(
        load_potential(potential),
        ase.io.read(structure, index=-1),
        ensemble,
        steps=steps,
        timestep=timestep,
        temperature=temperature,
        pressure=pressure,
        replicas=replicas,
        seed=seed,
        out=out,
        resume=resume,
        save_every=save_every,
        log_every=log_every,
        dtype=dtype,
        progress=False if quiet else None,
    )
    for trajectory in [result.trajectory] if replicas is None else result.trajectory:
        if extxyz:
            write_extxyz(trajectory.path.with_suffix(".extxyz"), trajectory)
    typer.echo(json.dumps(result.summary, indent=1))
    stopped = result.summary["stopped"]
    if stopped if replicas is None else all(stopped):
        raise typer.Exit(1)
    if not result.summary["finished"] and not (replicas and any(stopped)):
        typer.echo(f"Stopped. The same command with --resume goes on: {out}", err=True)
        raise typer.Exit(143)


@app.command(epilog="Example:  leignn relax potential.safetensors start.cif --cell full --out relaxed")
def relax(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads; all of its structures, side by side.")],
    out: Annotated[Path, typer.Option(help="Folder for relaxed.extxyz, history.csv, summary.json.")],
    cell: Annotated[str, typer.Option(help="held, isotropic (volume only) or full (shape too).")] = "held",
    pressure: Annotated[float, typer.Option(help="GPa, of a cell that changes.")] = 0.0,
    max_force: Annotated[float, typer.Option(help="eV/Å, at which a structure has arrived.")] = 0.01,
    max_stress: Annotated[float, typer.Option(help="GPa, at which a cell has arrived.")] = 0.01,
    steps: Annotated[int, typer.Option(help="At most, of each structure.")] = 500,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Move atoms, and the cell where asked, to the nearest minimum; prints a summary as JSON, exit code 1 if any is left."""
    import ase.io

    from leignn_jax.potential_file import load_potential
    from leignn_jax.simulation.relax import relax as run

    if not structures.is_file():
        _stop(f"{structures}: no such file.")
    result = run(
        load_potential(potential),
        ase.io.read(structures, index=":"),
        cell=False if cell == "held" else cell,  # pyright: ignore[reportArgumentType]
        pressure=pressure,
        max_force=max_force,
        max_stress=max_stress,
        steps=steps,
        dtype=dtype,
        out=out,
        progress=False if quiet else None,
    )
    typer.echo((out / "summary.json").read_text().rstrip())
    if not all(result.converged):
        raise typer.Exit(1)


@app.command(epilog="Example:  leignn info run/potential.safetensors")
def info(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a potential is and what it was trained on."""
    from leignn_jax.potential_file import load_potential

    summary = load_potential(potential).summary()
    if as_json:
        typer.echo(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    width = max(len(key) for key in summary)
    for key, value in summary.items():
        typer.echo(f"{key:{width}}  {value}")


@data_app.command("inspect", epilog="Example:  leignn data inspect train.extxyz --against test.extxyz --plot data.png")
def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of frames.")],
    against: Annotated[Path | None, typer.Option(help="Another set, to find frames that stand in both.")] = None,
    cutoff: Annotated[float, typer.Option(help="Å, for neighbours.")] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Frames per batch, for the plan.")] = 8,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write histograms there, a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Statistics, outliers and duplicates of a set of frames, and how it would be batched."""
    from leignn_jax.data.inspect import inspect_data, plot_data

    facts = inspect_data(path, cutoff=cutoff, batch_size=batch_size, units=units, against=against)
    if as_json:
        typer.echo(json.dumps(facts.to_dict(), indent=1))
    else:
        for key, value in facts.lines():
            typer.echo(f"{key:28}{value}")
    if plot is not None:
        plot_data(facts, plot)


def _stop(message: str) -> Any:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point: errors made for people are printed without a traceback, exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("absl", "orbax", "jax", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from leignn_jax.errors import LeignnError

    try:
        app()
    except (LeignnError, FileNotFoundError, PermissionError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
