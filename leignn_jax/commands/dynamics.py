"""Simulate, relax, and how fast that goes. Nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from leignn_jax.commands.options import (
    Coordinator,
    Distributed,
    JsonFile,
    Process,
    Processes,
    join,
    read_structures,
    stop,
)
from leignn_jax.commands.output import interruptible, show

_CELLS: dict[str, Any] = {"held": False, "isotropic": "isotropic", "full": "full"}


def md(
    potential: Annotated[Path, typer.Argument(help="A potential's or committee's file, or the name of a bundled one.")],
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
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Molecular dynamics; prints a summary as JSON."""
    with interruptible(f"Where {out} holds state.safetensors, the same command with --resume goes on from there."):
        join(distributed, coordinator, processes, process)
        from leignn_jax.interruption import exit_code
        from leignn_jax.potential_file import load_potential
        from leignn_jax.processes import connect, is_first, together
        from leignn_jax.simulation.engine import simulate
        from leignn_jax.simulation.trajectory import write_extxyz
        from leignn_jax.sweeps.committee import CommitteeModel, is_committee

        connect()
        with together():
            model = load_potential(potential)
            (atoms,) = read_structures(structure, "-1:")
        result = simulate(
            CommitteeModel(model) if is_committee(model) else model,
            atoms,
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
        if is_first():
            for trajectory in [result.trajectory] if replicas is None else result.trajectory:
                if extxyz:
                    write_extxyz(trajectory.path.with_suffix(".extxyz"), trajectory)
            show(result.summary, json_file)
    stopped = result.summary["stopped"]
    if stopped if replicas is None else all(stopped):
        raise typer.Exit(1)
    if not result.summary["finished"] and not (replicas and any(stopped)):
        raise typer.Exit(exit_code(result.summary["signal"]))


def relax(
    potential: Annotated[Path, typer.Argument(help="A potential's file, or the name of a bundled one.")],
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
        from leignn_jax.models.config import did_you_mean

        stop(f"--cell: {cell!r} is not known{did_you_mean(cell, _CELLS)} One of {', '.join(_CELLS)}.")
    with interruptible("Nothing was written: the same command starts anew."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.potential_file import load_potential
        from leignn_jax.properties.relax import relax as run

        result = run(
            load_potential(potential),
            read_structures(structures, ":"),
            cell=_CELLS[cell],
            pressure=pressure,
            max_force=max_force,
            max_stress=max_stress,
            steps=steps,
            dtype=dtype,
            out=out,
            progress=False if quiet else None,
        )
    show(json.loads((out / "summary.json").read_text()), json_file)
    if any(result.signal) and not all(result.converged):
        typer.echo(f"Stopped. To go on: leignn relax {potential} {out / 'relaxed.extxyz'} ...", err=True)
        raise typer.Exit(exit_code(result.signal[0]))
    if not all(result.converged):
        raise typer.Exit(1)


def bench(
    potential: Annotated[Path, typer.Argument(help="A potential's file, or the name of a bundled one.")],
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
    with interruptible("Nothing is kept."):
        from leignn_jax.bench import bench as run
        from leignn_jax.potential_file import load_potential

        result = run(
            load_potential(potential),
            read_structures(structure, "-1:")[0],
            sizes=atoms or (),
            steps=steps,
            repeats=repeats,
            dtype=dtype,
        )
    lines = [f"{result['device']} ({result['platform']}), {result['dtype']}, jax {result['jax']}"]
    lines.append(f"{'atoms':>9}  {'energy and forces':>18}  {'step of MD':>12}  {'per atom and step':>18}")
    for row in result["rows"]:
        step, each = (
            "?" if x is None else f"{x:.4g}" for x in (row["md_ms_per_step"], row["microseconds_per_atom_and_step"])
        )
        lines.append(f"{row['atoms']:>9,}  {row['energy_forces_ms']:>15.4g} ms  {step:>9} ms  {each:>15} µs")
    show(result, json_file, "\n".join(lines))
