"""``leignn quickstart``: the whole way once, on data and potentials that ship with the package, in a few minutes.

Looks at data, trains a small potential, compares it with a bundled one on test frames, simulates a crystal, trains a
population in one program and takes a gradient through a simulation. All of it ends in one folder with report.html.
"""

from __future__ import annotations

import html
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase.build
import jax
import numpy as np

from leignn_jax import analysis, differentiable
from leignn_jax.data import bundled_data, read_frames
from leignn_jax.data.inspect import inspect_data, plot_data
from leignn_jax.errors import TrainingError
from leignn_jax.files import make_folder, write_atomically
from leignn_jax.plotting import new_figure, save_figure
from leignn_jax.potential_file import load_potential
from leignn_jax.simulation.engine import simulate
from leignn_jax.simulation.ensembles import Langevin
from leignn_jax.sweeps.study import sweep
from leignn_jax.training.api import train
from leignn_jax.training.evaluate import evaluate
from leignn_jax.training.report import page, parity, picture, table

log = logging.getLogger("leignn_jax")

_RATES = (5e-4, 2e-3, 8e-3, 3e-2)


class Part(NamedTuple):
    """One part of the tour: ``words`` for the report and the summary, ``pictures`` (PNG, caption), ``rows`` of a table
    with its ``header``, and ``facts`` for summary.json."""

    words: str
    pictures: list[tuple[bytes, str]]
    rows: list[list[Any]]
    header: list[str]
    facts: dict[str, Any]


def quickstart(out: str | Path = "quickstart", *, progress: bool | None = None) -> dict[str, Any]:
    """Run the tour into the folder ``out``; returns its numbers, which summary.json holds too.

    Interrupted, the same call goes on with the training where it was. ``progress``: bars; None where there is a terminal.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C, after the training has saved its state.
        TrainingError: the folder can't be made.
    """
    out = Path(out)
    make_folder(out, TrainingError)
    pieces, facts = [], {}
    for number, (title, part) in enumerate(_PARTS.items(), 1):
        log.info("\n[%d/%d] %s", number, len(_PARTS), title)
        began = time.monotonic()
        done = part(out, progress)
        seconds = time.monotonic() - began
        log.info("%s (%.0f s)", done.words, seconds)
        pieces.append(f"<h2>{number}. {html.escape(title)}</h2><p>{html.escape(done.words)}</p>")
        if done.rows:
            pieces.append(table(done.rows, done.header))
        pieces += [
            picture(png, caption).replace("<h2>", "<h3>").replace("</h2>", "</h3>") for png, caption in done.pictures
        ]
        facts[part.__name__.strip("_")] = {**done.facts, "seconds": round(seconds, 1)}
    write_atomically(out / "summary.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(out / "report.html", page("leignn_jax quickstart", pieces).encode())
    return facts


def _inspect(out: Path, progress: bool | None) -> Part:
    facts = inspect_data(bundled_data("si") / "train.extxyz.xz")
    plot_data(facts, out / "data.png")
    rows = [list(line) for line in facts.lines()]
    words = f"mlearn Si: {facts.statistics.frames} DFT frames of {facts.statistics.atoms:,} atoms."
    return Part(words, [((out / "data.png").read_bytes(), "What the frames hold")], rows, ["", ""], {})


def _train(out: Path, progress: bool | None) -> Part:
    settings = {
        "data": {"train": str(bundled_data("ethanol") / "train.extxyz.xz"), "max_frames": 250, "batch_size": 5},
        "model": {"preset": "small", "features": 32},
        "loss": {"final_energy_weight": 5.0},
        "run": {"out": str(out / "training"), "epochs": 40, "validate_every": 2},
    }
    result = train(settings, progress=progress)
    if not result.finished or result.signal:
        raise KeyboardInterrupt
    error = result.metrics["validation"]["forces_mae_mev_per_angstrom"]
    words = (
        f"Trained on 225 frames of ethanol: force MAE {error:.0f} meV/Å on 25 others. Its report: training/report.html."
    )
    curve = (out / "training" / "learning_curve.png").read_bytes()
    return Part(words, [(curve, "Learning curve")], [], [], {"validation": result.metrics["validation"]})


def _evaluate(out: Path, progress: bool | None) -> Part:
    frames = read_frames(bundled_data("ethanol") / "test.extxyz.xz")[:200]
    potentials = {
        "trained just now": load_potential(out / "training" / "potential.safetensors"),
        "bundled": load_potential("ethanol"),
    }
    found = {name: evaluate(potential, frames) for name, potential in potentials.items()}
    wanted = {
        "energy_mae_mev_per_atom": "energy MAE (meV/atom)",
        "forces_mae_mev_per_angstrom": "force MAE (meV/Å)",
        "forces_rmse_mev_per_angstrom": "force RMSE (meV/Å)",
    }
    rows = [[label, *(f"{found[name].metrics[key]:.3g}" for name in found)] for key, label in wanted.items()]
    pictures = [
        (save_figure(parity(e, f"{name}, 200 test frames"), out / f"parity_{name.split()[0]}.png"), f"Parity, {name}")
        for name, e in found.items()
    ]
    errors = [e.metrics["forces_mae_mev_per_angstrom"] for e in found.values()]
    words = (
        f"On 200 test frames that neither has seen: force MAE {errors[0]:.0f} meV/Å after a minute of training, "
        f"{errors[1]:.0f} of the bundled potential, which took 13 minutes and all 900 frames."
    )
    return Part(words, pictures, rows, ["error", *found], {name: e.metrics for name, e in found.items()})


def _simulate(out: Path, progress: bool | None) -> Part:
    atoms = ase.build.bulk("Si", cubic=True, a=5.47) * 2
    run = simulate(
        load_potential("si"), atoms, "nvt", temperature=300.0, steps=600, timestep=1.0, save_every=20, progress=progress
    )
    if run.summary["signal"]:
        raise KeyboardInterrupt
    figure, axes = new_figure(2, width=4.5)
    thermo = run.thermo
    axes[0].plot(thermo["time_fs"] / 1000, thermo["temperature_K"], lw=1.0)
    axes[0].axhline(300.0, color="0.6", lw=0.8, zorder=0)
    axes[0].set(xlabel="time (ps)", ylabel="temperature (K)")
    change = 1e3 * (thermo["conserved_eV"] - thermo["conserved_eV"][0]) / len(atoms)
    axes[1].plot(thermo["time_fs"] / 1000, change, lw=1.0)
    axes[1].set(xlabel="time (ps)", ylabel="conserved energy (meV/atom)")
    pictures = [(save_figure(figure, out / "thermo.png"), "Temperature and conserved energy")]
    rdf = analysis.radial_distribution(
        run.trajectory.positions[10:], atoms.numbers, np.asarray(atoms.cell), r_max=6.0, bins=120
    )
    pictures.append((save_figure(analysis.plot_rdf(rdf), out / "rdf.png"), "Radial distribution"))
    speed = run.summary["ns_per_day"]
    drift = float(abs(change[-1]))
    words = (
        f"64 atoms of silicon at 300 K with the bundled potential, 0.6 ps: {speed:.2f} ns/day, the conserved energy moved "
        f"by {drift:.2g} meV/atom."
    )
    return Part(words, pictures, [], [], {"ns_per_day": speed, "conserved_mev_per_atom": drift})


def _sweep(out: Path, progress: bool | None) -> Part:
    study = {
        "base": {
            "data": {"train": str(bundled_data("ethanol") / "train.extxyz.xz"), "max_frames": 100, "batch_size": 5},
            "model": {"preset": "small", "features": 32},
            "run": {"out": str(out / "study"), "epochs": 8},
        },
        "space": {"optimizer.learning_rate": list(_RATES)},
        "search": "grid",
    }
    result = sweep(study, progress=progress)
    if not result.finished:
        raise KeyboardInterrupt
    best = result.rows[0]
    rows = [
        [f"{row['optimizer.learning_rate']:g}", f"{row['validation_forces_mae_mev_per_angstrom']:.0f}"]
        for row in result.rows
    ]
    words = (
        f"{len(_RATES)} learning rates side by side in {sum(result.compiles)} compiled program(s): best is "
        f"{best['optimizer.learning_rate']:g}. Its report: study/report.html."
    )
    curves = (out / "study" / "curves.png").read_bytes()
    header = ["learning rate", "validation force MAE (meV/Å)"]
    return Part(words, [(curves, "Curves of the members")], rows, header, {"best": best["optimizer.learning_rate"]})


def _differentiate(out: Path, progress: bool | None) -> Part:
    potential, steps = load_potential("si"), 40
    atoms = ase.build.bulk("Si", cubic=True, a=5.47)
    system, state = differentiable.start(potential, atoms, Langevin(300.0, 0.05), temperature=300.0)

    def mean_kinetic(kelvin, rollout):
        seen = rollout(
            potential,
            Langevin(kelvin, 0.05),
            system,
            state,
            1.0,
            steps,
            observe=differentiable.observables.kinetic_energy,
        ).seen
        return 1e3 * seen.mean() / len(atoms)

    program = differentiable.value_and_grad(mean_kinetic)
    value, slope = (float(x) for x in program(300.0))
    plain = jax.jit(lambda kelvin: mean_kinetic(kelvin, differentiable.rollout))
    difference = float(plain(303.0) - plain(297.0)) / 6
    words = (
        f"Through {steps} steps of Langevin dynamics of 8 silicon atoms: the mean kinetic energy is {value:.2f} meV/atom, "
        f"its derivative by the temperature of the bath {1e3 * slope:.4g} µeV/K, by finite differences "
        f"{1e3 * difference:.4g}. "
        "The same line gives it by every parameter of the potential, by masses, positions, velocities or the cell."
    )
    return Part(words, [], [], [], {"by_temperature_mev_per_kelvin": slope, "by_differences": difference})


_PARTS: dict[str, Callable[[Path, bool | None], Part]] = {
    "Look at data": _inspect,
    "Train a small potential": _train,
    "Judge it beside a bundled one": _evaluate,
    "Simulate a crystal": _simulate,
    "Train a population in one program": _sweep,
    "Differentiate through a simulation": _differentiate,
}
