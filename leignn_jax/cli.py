"""``leignn``: train, evaluate, simulate, look at data and potentials. Nothing heavy is imported before it is used.

Exit codes: 0; 1 for an error, and for a simulation or relaxation that came to no good end; 2 for a wrong command line; 130
after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import ase

app = typer.Typer(
    name="leignn",
    help="Train, evaluate and use interatomic potentials (LEIGNN in JAX).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data, and get public ones.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON there; - prints it.")
]
KeyNames = Annotated[
    list[str] | None, typer.Option("--key", metavar="LABEL=NAME", help="What a label is called, energy=dft_energy.")
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Train with the other processes of this TPU pod, Slurm or MPI job.")
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Elsewhere: where process 0 waits for the others;")
]
Processes = Annotated[int | None, typer.Option(help="how many processes there are, one on each host;")]
Process = Annotated[int | None, typer.Option(help="the number of this one, from 0.")]


@app.command(epilog="Example:  leignn quickstart --out tour")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for figures, potentials and report.html.")] = Path("quickstart"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """The whole way once on bundled data, in a few minutes: data, training, simulation, sweep, gradient, report.html."""
    with _interruptible("The same command goes on with the training where it was."):
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
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json_file: JsonFile = None,
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
    with _interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.training.config import load_config, make_config
        from leignn_jax.training.processes import is_first
        from leignn_jax.training.train import train as run

        config = load_config(files[0], overrides) if files else make_config({}, overrides)
        _join(distributed, coordinator, processes, process)
        result = run(config, resume=not fresh, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        if not is_first():
            return
        _show(result.metrics, json_file)
        typer.echo(f"Potential: {result.out / 'potential.safetensors'}\nReport: {result.out / 'report.html'}", err=True)


@app.command(epilog="Example:  leignn fit fit.yaml run.epochs=20")
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
    with _interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.fitting.api import fit as run
        from leignn_jax.interruption import exit_code

        result = run(config, overrides or [], resume=not fresh, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        _show(result.metrics, json_file)
        typer.echo(f"Potential: {result.out / 'potential.safetensors'}\nReport: {result.out / 'report.html'}", err=True)


@app.command(
    epilog="Example:  leignn evaluate run/potential.safetensors test.extxyz --json errors.json --plot parity.png"
)
def evaluate(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    data: Annotated[Path, typer.Argument(help="Labelled frames.")],
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Write parity plots there, a PNG.")] = None,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    key: KeyNames = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    direct: Annotated[bool, typer.Option("--direct", help="Judge the direct head's forces.")] = False,
) -> None:
    """Errors of a potential on labelled frames, as JSON: MAE and RMSE in meV/atom, meV/Å, meV/Å^3."""
    from leignn_jax.potential_file import load_potential
    from leignn_jax.training.evaluate import evaluate as run

    result = run(load_potential(potential), data, units=units, keys=_keys(key), dtype=dtype, direct=direct)
    _show(result.metrics, json_file)
    if plot is not None:
        from leignn_jax.training.report import parity, save_figure

        save_figure(parity(result, f"{data.name}, {result.metrics['structures']} structures"), plot)


@app.command(
    epilog="Examples:  leignn sweep study.yaml   |   on every host of a cluster: leignn sweep study.yaml --distributed"
)
def sweep(
    study: Annotated[Path, typer.Argument(help="A study's YAML file: base, space, search, samples, mesh.")],
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will take, and train nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a folder that holds a study.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Train what has come to the folder's study.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json_file: JsonFile = None,
) -> None:
    """Train many models that differ in settings, as few compiled programs as their shapes allow; prints a CSV table."""
    with _interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.sweeps.space import load_study
        from leignn_jax.sweeps.study import sweep as run
        from leignn_jax.training.processes import is_first

        asked = load_study(study)
        _join(distributed, coordinator, processes, process)
        if plan:
            from leignn_jax.sweeps.plan import plan_sweep, plan_table

            groups = plan_sweep(asked, progress=False if quiet else None)
            _show([one._asdict() for one in groups], json_file, plan_table(groups))
            return
        result = run(asked, resume=not fresh, extend=extend, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        if not is_first():
            return
        if not result.rows:
            typer.echo("The other workers have all trials: there was none left for this one.", err=True)
            return
        _show(result.rows, json_file, (result.out / "results.csv").read_text().rstrip())
        typer.echo(f"Report: {result.out / 'report.html'}", err=True)


@app.command(
    epilog="Example:  leignn select study/potentials/*.safetensors --pool md/trajectory.extxyz --count 50 --out label.extxyz"
)
def select(
    potentials: Annotated[list[Path], typer.Argument(help="Potentials of one model, or the file of a committee.")],
    pool: Annotated[Path, typer.Option(help="Frames to choose from.")],
    out: Annotated[Path, typer.Option(help="Write the chosen frames there, extended XYZ.")],
    count: Annotated[int, typer.Option(help="How many to choose.")] = 10,
    known: Annotated[Path | None, typer.Option(help="Frames that are labelled already.")] = None,
    least_doubt: Annotated[float, typer.Option(help="eV/Å below which a frame is not worth it.")] = 0.0,
    json_file: JsonFile = None,
) -> None:
    """Choose the frames that are worth a DFT calculation: where a committee disagrees, and no two alike."""
    from leignn_jax.sweeps.select import select as run

    members, frames = _committee(potentials), _structures(pool, ":")
    given = [] if known is None else _structures(known, ":")
    found = run(members, frames, count, known=given, least_doubt=least_doubt)
    indices = [int(i) for i in found.indices]
    # Without labels: they are to come.
    bare = [frames[i].copy() for i in indices]
    for i, one in zip(indices, bare, strict=True):
        one.info |= {"pool_frame": i, "doubt_eV_per_A": float(found.doubts[i])}
    _write_frames(out, bare)
    said = {"chosen": indices, "doubts_eV_per_A": [float(found.doubts[i]) for i in indices], "pool": len(frames)}
    said |= {"median_doubt_eV_per_A": float(sorted(found.doubts)[len(found.doubts) // 2])}
    _show(said, json_file)


@app.command(
    epilog="Example:  leignn label potential.safetensors --frames train.extxyz --copies 4 --out labelled.extxyz"
)
def label(
    potentials: Annotated[
        list[Path], typer.Argument(help="A potential's or committee's file, or several files of one.")
    ],
    frames: Annotated[Path, typer.Option(help="Structures to label.")],
    out: Annotated[Path, typer.Option(help="Write them there with energy, forces and stress, extended XYZ.")],
    copies: Annotated[int, typer.Option(help="Copies of each with displaced atoms, labelled too.")] = 0,
    displacement: Annotated[float, typer.Option(help="Å, standard deviation of these displacements.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the displacements.")] = 0,
    most_doubt: Annotated[float | None, typer.Option(help="eV/Å; leave out where a committee doubts more.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Label structures by a potential or a committee's mean, for a smaller or faster potential to learn from."""
    from leignn_jax.potential_file import load_potential
    from leignn_jax.sweeps.label import label as run

    teacher = load_potential(potentials[0]) if len(potentials) == 1 else _committee(potentials)
    labelled = run(
        teacher,
        _structures(frames, ":"),
        copies=copies,
        displacement=displacement,
        seed=seed,
        most_doubt=most_doubt,
        dtype=dtype,
    )
    if not labelled:
        _stop(f"--most-doubt {most_doubt:g}: the committee doubts every frame more than that.")
    _write_frames(out, labelled)
    typer.echo(f"{len(labelled)} labelled structures: {out}", err=True)


@app.command(
    epilog="Example:  leignn md potential.safetensors start.extxyz --ensemble nvt --temperature 300 --steps 10000 --out md"
)
def md(
    potential: Annotated[Path, typer.Argument(help="A potential's file, or a committee's.")],
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
    devices: Annotated[int, typer.Option(help="Among which replicas, or the atoms of one system, are divided.")] = 1,
    save_every: Annotated[int, typer.Option(help="Steps between frames.")] = 100,
    log_every: Annotated[int, typer.Option(help="Steps between lines of thermo.csv.")] = 10,
    seed: Annotated[int, typer.Option(help="Of velocities and noise.")] = 0,
    max_doubt: Annotated[
        float | None, typer.Option(help="eV/Å; stop where a committee's members disagree by more on a force.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    extxyz: Annotated[bool, typer.Option("--extxyz", help="Write trajectory.extxyz too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the simulation in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Molecular dynamics; prints a summary as JSON."""
    with _interruptible(f"Where {out} holds state.safetensors, the same command with --resume goes on from there."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.potential_file import load_potential
        from leignn_jax.simulation.engine import simulate
        from leignn_jax.simulation.trajectory import write_extxyz
        from leignn_jax.sweeps.committee import CommitteeModel, is_committee

        model = load_potential(potential)
        result = simulate(
            CommitteeModel(model) if is_committee(model) else model,
            _structures(structure, "-1:")[0],
            ensemble,
            steps=steps,
            timestep=timestep,
            temperature=temperature,
            pressure=pressure,
            replicas=replicas,
            devices=devices,
            seed=seed,
            out=out,
            resume=resume,
            save_every=save_every,
            log_every=log_every,
            max_doubt=math.inf if max_doubt is None else max_doubt,
            dtype=dtype,
            progress=False if quiet else None,
        )
        for trajectory in [result.trajectory] if replicas is None else result.trajectory:
            if extxyz:
                write_extxyz(trajectory.path.with_suffix(".extxyz"), trajectory)
    _show(result.summary, json_file)
    stopped = result.summary["stopped"]
    if stopped if replicas is None else all(stopped):
        raise typer.Exit(1)
    if not result.summary["finished"] and not (replicas and any(stopped)):
        raise typer.Exit(exit_code(result.summary["signal"]))


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
    json_file: JsonFile = None,
) -> None:
    """Move atoms, and the cell where asked, to the nearest minimum; prints a summary as JSON, exit code 1 if any is left."""
    if cell not in _CELLS:
        _stop(f"--cell: {cell!r} is not known{_did_you_mean(cell, _CELLS)} One of {', '.join(_CELLS)}.")
    with _interruptible("Nothing was written: the same command starts anew."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.potential_file import load_potential
        from leignn_jax.properties.relax import relax as run

        result = run(
            load_potential(potential),
            _structures(structures, ":"),
            cell=_CELLS[cell],
            pressure=pressure,
            max_force=max_force,
            max_stress=max_stress,
            steps=steps,
            dtype=dtype,
            out=out,
            progress=False if quiet else None,
        )
    _show(json.loads((out / "summary.json").read_text()), json_file)
    if any(result.signal) and not all(result.converged):
        typer.echo(f"Stopped. To go on: leignn relax {potential} {out / 'relaxed.extxyz'} ...", err=True)
        raise typer.Exit(exit_code(result.signal[0]))
    if not all(result.converged):
        raise typer.Exit(1)


@app.command(epilog="Example:  leignn bench si silicon.cif --atoms 64 --atoms 4096")
def bench(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    structure: Annotated[Path, typer.Argument(help="A file that ASE reads; its last structure is taken.")],
    atoms: Annotated[
        list[int] | None, typer.Option(help="Repeat the structure to so many atoms or more; may be given again.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of molecular dynamics, a multiple of 10.")] = 100,
    repeats: Annotated[int, typer.Option(help="The median of so many measurements.")] = 3,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    json_file: JsonFile = None,
) -> None:
    """Time of energy and forces, and of a step of molecular dynamics (NVE), on this machine."""
    with _interruptible("Nothing is kept."):
        from leignn_jax.bench import bench as run
        from leignn_jax.potential_file import load_potential

        result = run(
            load_potential(potential),
            _structures(structure, "-1:")[0],
            sizes=atoms or (),
            steps=steps,
            repeats=repeats,
            dtype=dtype,
        )
    lines = [f"{result['device']} ({result['platform']}), {result['dtype']}, jax {result['jax']}"]
    lines.append(f"{'atoms':>9}  {'energy and forces':>18}  {'step of MD':>12}  {'per atom and step':>18}")
    lines += [
        f"{row['atoms']:>9,}  {row['energy_forces_ms']:>15.4g} ms  {row['md_ms_per_step']:>9.4g} ms  "
        f"{row['microseconds_per_atom_and_step']:>15.4g} µs"
        for row in result["rows"]
    ]
    _show(result, json_file, "\n".join(lines))


@app.command(epilog="Example:  leignn info run/potential.safetensors")
def info(
    potential: Annotated[Path, typer.Argument(help="A potential's file.")],
    json_file: JsonFile = None,
) -> None:
    """What a potential is and what it was trained on."""
    from leignn_jax.potential_file import load_potential

    summary = load_potential(potential).summary()
    width = max(len(key) for key in summary)
    _show(summary, json_file, "\n".join(f"{key:{width}}  {value}" for key, value in summary.items()))


@data_app.command("inspect", epilog="Example:  leignn data inspect train.extxyz --against test.extxyz --plot data.png")
def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of frames.")],
    against: Annotated[Path | None, typer.Option(help="Another set, to find frames that stand in both.")] = None,
    cutoff: Annotated[float, typer.Option(help="Å, for neighbours.")] = 5.0,
    batch_size: Annotated[int | None, typer.Option(help="Frames per batch, for the plan; as a training's.")] = None,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    key: KeyNames = None,
    plot: Annotated[Path | None, typer.Option(help="Write histograms there, a PNG.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Statistics, outliers and duplicates of a set of frames, and how it would be batched."""
    from leignn_jax.data.inspect import inspect_data, plot_data

    facts = inspect_data(path, cutoff=cutoff, batch_size=batch_size, units=units, against=against, keys=_keys(key))
    _show(facts.to_dict(), json_file, "\n".join(f"{key:28}{value}" for key, value in facts.lines()))
    if plot is not None:
        plot_data(facts, plot)


@data_app.command("list", epilog="Example:  leignn data list --json sets.json")
def list_sets(json_file: JsonFile = None) -> None:
    """Public data sets that `leignn data get` knows."""
    from leignn_jax.data.public import public_data

    sets = public_data()
    width = max(map(len, sets))
    lines = []
    for (page, licence), group in itertools.groupby(sets.values(), lambda one: (one.page, one.licence)):
        lines.append(f"{page}, licence: {licence or 'not stated'}")
        lines += [f"  {one.name:{width}}  {one.size or '':>8}  {one.what}" for one in group]
    _show({name: one.to_dict() for name, one in sets.items()}, json_file, "\n".join(lines))


@data_app.command("get", epilog="Example:  leignn data get rmd17-aspirin --out data")
def get(
    name: Annotated[str | None, typer.Argument(help="A set's name; without one, all that there are.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("data"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Download a public data set, checked against its checksum; what is there already is kept."""
    if name is None:
        list_sets(json_file)
        return
    with _interruptible("The same command goes on."):
        from leignn_jax.data.public import get_data, public_data

        folder = get_data(name, out, progress=False if quiet else None)
    one = public_data()[name]
    train = one.train.format(folder=folder)
    text = f"{one.what}\nCite: {one.citation}. Licence: {one.licence or 'not stated'}; see {one.page}\nNext:  {train}"
    _show({**one.to_dict(), "folder": str(folder), "train": train}, json_file, text)


_CELLS: dict[str, Any] = {"held": False, "isotropic": "isotropic", "full": "full"}


def _join(distributed: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes, where the command line asks for it."""
    if distributed or any(x is not None for x in (coordinator, processes, process)):
        from leignn_jax.training.processes import join_processes

        join_processes(coordinator, processes, process)


def _committee(paths: Sequence[Path]) -> Any:
    """The committee of several files, or of one that holds one."""
    from leignn_jax.potential_file import load_potential
    from leignn_jax.sweeps.committee import committee, is_committee

    found = [load_potential(path) for path in paths]
    return found[0] if len(found) == 1 and is_committee(found[0]) else committee(found)


def _structures(path: Path, index: str) -> list[ase.Atoms]:
    """Structures in a file, all by ":" or the last by "-1:"."""
    from leignn_jax.data.readers import read_frames
    from leignn_jax.errors import FileFormatError

    if path.is_dir():
        raise FileFormatError(f"{path}: is a folder. Give a file of structures.")
    return read_frames(path, index=index)


def _write_frames(path: Path, frames: Sequence[ase.Atoms]) -> None:
    """Structures into a file, extended XYZ."""
    import io

    import ase.io

    from leignn_jax.arguments import check_path
    from leignn_jax.files import write_atomically

    text = io.StringIO()
    for atoms in frames:
        ase.io.write(text, atoms, format="extxyz")
    write_atomically(check_path("--out", path), text.getvalue().encode())


def _keys(pairs: list[str] | None) -> dict[str, str]:
    """Names of labels from LABEL=NAME."""
    keys = {label: name for label, _, name in (pair.partition("=") for pair in pairs or [])}
    wrong = [label for label, name in keys.items() if label not in ("energy", "forces", "stress") or not name]
    if wrong:
        _stop(f"--key {wrong[0]}={keys[wrong[0]]}: write energy=NAME, forces=NAME or stress=NAME.")
    return keys


def _show(result: Any, json_file: str | None, text: str | None = None) -> None:
    """Print a result as text, or as JSON where it has no text or that is asked for; write it as JSON to a file."""
    as_json = json.dumps(_plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(as_json if text is None or json_file == "-" else text)
    if json_file not in (None, "-"):
        from leignn_jax.arguments import check_path
        from leignn_jax.files import write_atomically

        write_atomically(check_path("--json", json_file), f"{as_json}\n".encode())


def _plain(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _interruptible(remedy: str) -> Iterator[None]:
    """Ctrl-C ends the command with one line that says how to go on, exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. {remedy}", err=True)
        raise typer.Exit(130) from None


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    from leignn_jax.models.config import did_you_mean

    return did_you_mean(word, known)


def _finds_a_device() -> bool:
    """False where JAX was asked to compute and can't start."""
    jax = sys.modules.get("jax")
    if jax is None:
        return True
    try:
        return len(jax.devices()) > 0
    except (RuntimeError, AssertionError):
        return False


def _stop(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors made for people are printed without a traceback, exit code 1.

    arguments: of the command line; None takes those of this process.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("absl", "orbax", "jax", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from leignn_jax.errors import LeignnError

    try:
        app(args=arguments, prog_name="leignn")
    except LeignnError as error:
        message = str(error)
    except OSError as error:
        from leignn_jax.files import in_words

        message = in_words(error)
    except (RuntimeError, AssertionError) as error:
        if _finds_a_device():
            raise
        asked = os.environ.get("JAX_PLATFORMS")
        message = (
            f"JAX finds no device of JAX_PLATFORMS={asked}. Unset that variable to use what there is; for a GPU, "
            "pip install 'leignn-jax[cuda12]' or [cuda13]."
            if asked
            else f"JAX finds no device to compute on: {error}. Set JAX_PLATFORMS=cpu to do without a GPU."
        )
    else:
        return
    typer.echo(f"Error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
