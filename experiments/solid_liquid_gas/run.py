"""Molecular dynamics of a solid, a liquid and a gas with potentials trained here, judged against the DFT frames.

    python experiments/solid_liquid_gas/run.py              # 10 ps each; on one CPU core about an hour in all
    python experiments/solid_liquid_gas/run.py --table      # results.md and figures from what is there

LiPS at 520 K (Nose-Hoover, 0.25 fs), water at 330 K and methane at 300 K (Langevin, 0.5 fs), as in arXiv:2311.02869; the
potentials are those of experiments/potentials. Stable means: no limit of the engine is broken, and the RDF of no window
of 1 ps is farther from that of the DFT frames than Fu et al. (arXiv:2210.07237) allow. A stopped run goes on.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import ase
import numpy as np

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
POTENTIALS = HERE.parent / "potentials"
SYSTEMS = {
    # name: data folder, ensemble, K, fs, RDF threshold, pairs to plot
    "lips": ("lips", "nvt", 520.0, 0.25, 1.0, [("Li", "S"), ("P", "S"), ("Li", "Li")]),
    "water": ("water", "langevin", 330.0, 0.5, 3.0, [("O", "O"), ("H", "O"), ("H", "H")]),
    "methane": ("methane_gas", "langevin", 300.0, 0.5, 3.0, [("C", "H"), ("H", "H")]),
}


def reference_frames(system: str) -> list[ase.Atoms]:
    """The labelled frames of the system's own composition."""
    from leignn_jax.data import read_frames

    frames = read_frames(DATA / SYSTEMS[system][0] / "train.extxyz.xz")
    formula = frames[-1].get_chemical_formula()
    return [a for a in frames if a.get_chemical_formula() == formula]


def simulate(system: str, picoseconds: float) -> None:
    """Run or go on, into runs/SYSTEM."""
    import leignn_jax as leignn

    _, ensemble, kelvin, timestep, *_ = SYSTEMS[system]
    potential = leignn.load_potential(POTENTIALS / system / "potential.safetensors")
    start = reference_frames(system)[-1].copy()
    start.set_velocities(np.zeros((len(start), 3)))
    out = HERE / "runs" / system
    resume = any((out / name).exists() for name in ("state.safetensors", "state.previous.safetensors"))
    steps = round(1000 * picoseconds / timestep)
    every = round(10 / timestep)  # a frame every 10 fs
    result = leignn.simulate(
        potential,
        start,
        ensemble,
        steps=steps,
        timestep=timestep,
        temperature=kelvin,
        out=out,
        resume=resume,
        save_every=every,
        log_every=every,
    )
    print(system, result.summary, flush=True)


def judge(system: str) -> dict:
    """Numbers and figure of one system from its run and the DFT frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from leignn_jax import analysis
    from leignn_jax.simulation.thermo import read_thermo
    from leignn_jax.simulation.trajectory import read_trajectory

    _, _, kelvin, _, threshold, pairs = SYSTEMS[system]
    folder = HERE / "runs" / system
    summary = json.loads((folder / "summary.json").read_text())
    md, log = read_trajectory(folder / "trajectory.h5"), read_thermo(folder / "thermo.csv")
    dft = reference_frames(system)
    cell = np.asarray(dft[-1].cell)
    reach = min(6.0, 0.5 * float(np.min(np.linalg.norm(cell, axis=1)))) if dft[-1].pbc.any() else 6.0
    skip = len(md) // 10
    mine = analysis.radial_distribution(md.positions[skip::5], md.numbers, cell, r_max=reach, bins=200)
    known = analysis.from_ase(dft)
    theirs = analysis.radial_distribution(known.positions, known.numbers, known.cell, r_max=reach, bins=200)
    errors = {f"{a}-{b}": analysis.rdf_mae(mine.of(a, b), theirs.of(a, b), mine.edges) for a, b in pairs}
    between = float(md.time[1] - md.time[0])
    broken = analysis.rdf_instability(
        md.positions,
        md.numbers,
        cell,
        dft[-1].pbc,
        between,
        theirs,
        threshold=threshold,
        window=1000.0,
        partial=system != "lips",
    )
    forces = np.linalg.norm(md.forces[skip::5].reshape(-1, 3), axis=1)
    dft_forces = np.concatenate([np.linalg.norm(a.get_forces(), axis=1) for a in dft])
    found = {
        "system": system,
        "atoms": len(md.numbers),
        "ps": float(md.time[-1]) / 1000,
        "stopped": summary["stopped"],
        "unstable": None if broken is None else f"{broken.time / 1000:.2f} ps: {broken.cause}",
        "temperature": float(log["temperature_K"][len(log["step"]) // 10 :].mean()),
        "target": kelvin,
        "rdf_mae": {k: float(v) for k, v in errors.items()},
        "force_mean": [float(forces.mean()), float(dft_forces.mean())],
        "steps_per_second": summary["steps_per_second"],
    }
    if system == "lips":
        diffusion = analysis.diffusivity(
            md.positions[skip:],
            md.numbers,
            between,
            window=(500.0, 3000.0),
            element="Li",
            remove_drift=True,
            masses=md.masses,
        )
        found["li_diffusivity"] = [float(diffusion.value), float(diffusion.error)]

    figure, axes = plt.subplots(1, len(pairs) + 1, figsize=(4.2 * (len(pairs) + 1), 3.8), layout="constrained")
    middle = 0.5 * (mine.edges[1:] + mine.edges[:-1])
    for axis, (a, b) in zip(axes, pairs, strict=False):
        axis.plot(middle, theirs.of(a, b), "k", lw=1.2, label="DFT frames")
        axis.plot(middle, mine.of(a, b), "C3--", lw=1.2, label="LEIGNN MD")
        axis.set(xlabel="r (Å)", ylabel=f"g(r) {a}-{b}", title=f"MAE {errors[f'{a}-{b}']:.2f} Å")
        axis.legend()
    bins = np.linspace(0, np.quantile(dft_forces, 0.999), 60)
    axes[-1].hist(dft_forces, bins, density=True, histtype="step", color="k", label="DFT frames")
    axes[-1].hist(forces, bins, density=True, histtype="step", color="C3", ls="--", label="LEIGNN MD")
    axes[-1].set(xlabel="|F| (eV/Å)", ylabel="density (Å/eV)", title="force magnitudes")
    axes[-1].legend()
    figure.suptitle(f"{system}, {len(md.numbers)} atoms, {kelvin:g} K, {float(md.time[-1]) / 1000:.1f} ps")
    figure.savefig(HERE / f"{system}.png", dpi=120)
    return found


def table(rows: list[dict]) -> str:
    """All systems as Markdown."""
    lines = [
        "# Solid, liquid and gas",
        "",
        f"Molecular dynamics with the potentials of experiments/potentials, float32, seed 0, one run each, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), other work on them. The first tenth of each run is left out.",
        "",
        "| system | atoms | ps | temperature (K) | ended early | RDF beyond threshold | RDF MAE (Å) "
        "| mean force, MD / DFT (eV/Å) | Li diffusivity (Å²/ps) |",
        "|---|---:|---:|---|---|---|---|---|---|",
    ]
    for row in rows:
        rdf = ", ".join(f"{k} {v:.2f}" for k, v in row["rdf_mae"].items())
        li = row.get("li_diffusivity")
        diffusion = "" if li is None else f"{li[0]:.3f} ± {li[1]:.3f}"
        lines.append(
            f"| {row['system']} | {row['atoms']} | {row['ps']:.1f} | {row['temperature']:.0f} ({row['target']:.0f}) "
            f"| {row['stopped'] or 'no'} | {row['unstable'] or 'no'} | {rdf} "
            f"| {row['force_mean'][0]:.2f} / {row['force_mean'][1]:.2f} | {diffusion} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], default=[])
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--table", action="store_true", help="only judge what is there")
    options = parser.parse_args()
    for system in [] if options.table else options.systems or SYSTEMS:
        simulate(system, options.picoseconds)
    there = [s for s in SYSTEMS if (HERE / "runs" / s / "summary.json").exists()]
    rows = [judge(system) for system in there]
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "results.md").write_text(table(rows))


if __name__ == "__main__":
    main()
