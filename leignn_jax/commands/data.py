"""Look at potentials and data, and get public ones. Nothing heavy is imported before it is used."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from leignn_jax.commands.options import JsonFile, KeyNames, plot_place, read_keys
from leignn_jax.commands.output import interruptible, show


def info(
    potential: Annotated[Path, typer.Argument(help="A potential's file, or the name of a bundled one.")],
    json_file: JsonFile = None,
) -> None:
    """What a potential is and what it was trained on."""
    from leignn_jax.potential_file import load_potential

    summary = load_potential(potential).summary()
    width = max(len(key) for key in summary)
    show(summary, json_file, "\n".join(f"{key:{width}}  {value}" for key, value in summary.items()))


def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of frames.")],
    against: Annotated[Path | None, typer.Option(help="Another set, to find frames that stand in both.")] = None,
    cutoff: Annotated[float, typer.Option(help="Å, for neighbours.")] = 5.0,
    batch_size: Annotated[int | None, typer.Option(help="Frames per batch, for the plan; as a training's.")] = None,
    units: Annotated[str | None, typer.Option(help="Units of the data, such as kcal/mol/angstrom.")] = None,
    key: KeyNames = None,
    plot: Annotated[Path | None, typer.Option(help="Write histograms there, a PNG.", callback=plot_place)] = None,
    json_file: JsonFile = None,
) -> None:
    """Statistics, outliers and duplicates of a set of frames, and how it would be batched."""
    from leignn_jax.data.inspect import inspect_data, plot_data

    keys = read_keys(key)
    with interruptible("Nothing was written."):
        facts = inspect_data(path, cutoff=cutoff, batch_size=batch_size, units=units, against=against, keys=keys)
    show(facts.to_dict(), json_file, "\n".join(f"{key:28}{value}" for key, value in facts.lines()))
    if plot is not None:
        plot_data(facts, plot)


def list_sets(json_file: JsonFile = None) -> None:
    """Public data sets that `leignn data get` knows."""
    from leignn_jax.data.public import public_data

    sets = public_data()
    width = max(map(len, sets))
    lines = []
    for (page, licence), group in itertools.groupby(sets.values(), lambda one: (one.page, one.licence)):
        lines.append(f"{page}, licence: {licence or 'not stated'}")
        lines += [f"  {one.name:{width}}  {one.size or '':>8}  {one.what}" for one in group]
    show({name: one.to_dict() for name, one in sets.items()}, json_file, "\n".join(lines))


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
    with interruptible("The same command goes on."):
        from leignn_jax.data.public import get_data, public_data

        folder = get_data(name, out, progress=False if quiet else None)
    one = public_data()[name]
    train = one.train.format(folder=folder)
    text = f"{one.what}\nCite: {one.citation}. Licence: {one.licence or 'not stated'}; see {one.page}\nNext:  {train}"
    show({**one.to_dict(), "folder": str(folder), "train": train}, json_file, text)
