"""Many trainings at once, and what a committee is good for. Nothing heavy is imported before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leignn_jax.commands.options import (
    Coordinator,
    Distributed,
    JsonFile,
    Process,
    Processes,
    check_other,
    frames_place,
    join,
    read_committee,
    read_structures,
    stop,
)
from leignn_jax.commands.output import interruptible, show, write_frames


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
    with interruptible("The same command goes on from the last checkpoint, or starts anew where there is none."):
        from leignn_jax.interruption import exit_code
        from leignn_jax.processes import is_first
        from leignn_jax.sweeps.space import load_study
        from leignn_jax.sweeps.study import sweep as run

        asked = load_study(study)
        join(distributed, coordinator, processes, process)
        if plan:
            from leignn_jax.sweeps.plan import plan_sweep, plan_table

            groups = plan_sweep(asked, progress=False if quiet else None)
            show([one._asdict() for one in groups], json_file, plan_table(groups))
            return
        result = run(asked, resume=not fresh, extend=extend, progress=False if quiet else None)
        if not result.finished:
            raise typer.Exit(exit_code(result.signal))
        if not is_first():
            return
        if not result.rows:
            typer.echo("The other workers have all trials: there was none left for this one.", err=True)
            return
        show(result.rows, json_file, (result.out / "results.csv").read_text(encoding="utf-8").rstrip())
        typer.echo(f"Report: {result.out / 'report.html'}", err=True)


def select(
    potentials: Annotated[list[Path], typer.Argument(help="Potentials of one model, or the file of a committee.")],
    pool: Annotated[Path, typer.Option(help="Frames to choose from.")],
    out: Annotated[Path, typer.Option(help="Write the chosen frames there, extended XYZ.", callback=frames_place)],
    count: Annotated[int, typer.Option(help="How many to choose.")] = 10,
    known: Annotated[Path | None, typer.Option(help="Frames that are labelled already.")] = None,
    least_doubt: Annotated[float, typer.Option(help="eV/Å below which a frame is not worth it.")] = 0.0,
    json_file: JsonFile = None,
) -> None:
    """Choose the frames that are worth a DFT calculation: where a committee disagrees, and no two alike."""
    check_other(out, pool, known)
    with interruptible("Nothing was written."):
        from leignn_jax.sweeps.select import select as run

        members, frames = read_committee(potentials), read_structures(pool, ":")
        given = [] if known is None else read_structures(known, ":")
        found = run(members, frames, count, known=given, least_doubt=least_doubt)
    indices = [int(i) for i in found.indices]
    # Without labels: they are to come.
    bare = [frames[i].copy() for i in indices]
    for i, one in zip(indices, bare, strict=True):
        one.info |= {"pool_frame": i, "doubt_eV_per_A": float(found.doubts[i])}
    write_frames(out, bare)
    said = {"chosen": indices, "doubts_eV_per_A": [float(found.doubts[i]) for i in indices], "pool": len(frames)}
    said |= {"median_doubt_eV_per_A": float(sorted(found.doubts)[len(found.doubts) // 2])}
    show(said, json_file)


def label(
    potentials: Annotated[
        list[Path], typer.Argument(help="A potential's or committee's file, or several files of one.")
    ],
    frames: Annotated[Path, typer.Option(help="Structures to label.")],
    out: Annotated[
        Path, typer.Option(help="Write them there with energy, forces and stress, extended XYZ.", callback=frames_place)
    ],
    copies: Annotated[int, typer.Option(help="Copies of each with displaced atoms, labelled too.")] = 0,
    displacement: Annotated[float, typer.Option(help="Å, standard deviation of these displacements.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the displacements.")] = 0,
    most_doubt: Annotated[float | None, typer.Option(help="eV/Å; leave out where a committee doubts more.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Label structures by a potential or a committee's mean, for a smaller or faster potential to learn from."""
    check_other(out, frames)
    with interruptible("Nothing was written."):
        from leignn_jax.potential_file import load_potential
        from leignn_jax.sweeps.label import label as run

        teacher = load_potential(potentials[0]) if len(potentials) == 1 else read_committee(potentials)
        labelled = run(
            teacher,
            read_structures(frames, ":"),
            copies=copies,
            displacement=displacement,
            seed=seed,
            most_doubt=most_doubt,
            dtype=dtype,
        )
    if not labelled:
        stop(f"--most-doubt {most_doubt:g}: the committee doubts every frame more than that.")
    write_frames(out, labelled)
    typer.echo(f"{len(labelled)} labelled structures: {out}", err=True)
