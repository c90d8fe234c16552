"""Molecular dynamics of a solid, a liquid and a gas with potentials trained here, judged against the DFT frames.

    python experiments/solid_liquid_gas/run.py              # 10 ps each; on one CPU core about an hour in all
    python experiments/solid_liquid_gas/run.py --table      # results.md and figures from what is there

LiPS at 520 K (Nose-Hoover, 0.25 fs), water at 330 K and methane at 300 K (Langevin, 0.5 fs), as in arXiv:2311.02869; the
potentials are those of experiments/potentials. Stable means: no limit of the engine is broken, and the criterion of Fu et
al. (arXiv:2210.07237) is met: for solid and liquid no window of 1 ps has a g(r) farther than 1.0 or 3.0 Å from that of
the DFT frames (up to 6 Å, 500 bins), for a molecule no bond is 0.5 Å off. A criterion of our own sees one pair in one
frame: no two atoms are nearer by a tenth than their elements ever are in the DFT frames. Those of methane are at 50 K:
distances and forces are compared with a run at 50 K. A stopped run goes on.
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
SYSTEMS = {
    # name: data folder, potential, ensemble, K, fs, RDF threshold (None for a molecule), pairs to plot
    "lips": ("lips", "lips", "nvt", 520.0, 0.25, 1.0, [("Li", "S"), ("P", "S"), ("Li", "Li")]),
    "water": ("water", "water", "langevin", 330.0, 0.5, 3.0, [("O", "O"), ("H", "O"), ("H", "H")]),
    "methane": ("methane_gas", "methane", "langevin", 300.0, 0.5, None, [("C", "H"), ("H", "H")]),
    "methane at 50 K": ("methane_gas", "methane", "langevin", 50.0, 0.5, None, [("C", "H"), ("H", "H")]),
}


def reference_frames(system: str) -> list[ase.Atoms]:
    """The labelled frames of the simulated composition, and of methane those of the MD."""
    from leignn_jax.data import read_frames

    frames = read_frames(DATA / SYSTEMS[system][0] / "train.extxyz.xz")
    formula = frames[-1].get_chemical_formula()
    frames = [a for a in frames if a.get_chemical_formula() == formula]
    return [a for a in frames if a.info.get("config_type") == "md_50K"] or frames


def simulate(system: str, picoseconds: float) -> None:
    """Run or go on, into runs/SYSTEM."""
    import leignn_jax as leignn

    _, name, ensemble, kelvin, timestep, *_ = SYSTEMS[system]
    potential = leignn.load_potential(name)
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
    from leignn_jax.data import read_frames, shortest_distances
    from leignn_jax.simulation.thermo import read_thermo
    from leignn_jax.simulation.trajectory import read_trajectory

    name, *_, kelvin, _, threshold, pairs = SYSTEMS[system]
    folder = HERE / "runs" / system
    summary = json.loads((folder / "summary.json").read_text())
    md, log = read_trajectory(folder / "trajectory.h5"), read_thermo(folder / "thermo.csv")
    dft = reference_frames(system)
    known = analysis.from_ase(dft)
    cell = np.asarray(dft[-1].cell)
    skip, between = len(md) // 10, float(md.time[1] - md.time[0])
    if threshold is None:
        # Of a molecule in an empty box: the distribution of distances, no g(r).
        bins = {"r_max": 2.4, "bins": 120}
        mine, theirs = {}, {}
        for a, b in pairs:
            mine[a, b] = distances(md.positions[skip::5], md.numbers, a, b, **bins)
            theirs[a, b] = distances(known.positions, known.numbers, a, b, **bins)
        middle = (np.arange(120) + 0.5) * 2.4 / 120
        broken = analysis.bond_instability(md.positions, md.numbers, between, known.positions)
    else:
        edges = {"r_max": 6.0, "bins": 200}
        found_md = analysis.radial_distribution(md.positions[skip::5], md.numbers, cell, **edges)
        found_dft = analysis.radial_distribution(known.positions, known.numbers, known.cell, **edges)
        mine = {(a, b): found_md.of(a, b) for a, b in pairs}
        theirs = {(a, b): found_dft.of(a, b) for a, b in pairs}
        middle = 0.5 * (found_md.edges[1:] + found_md.edges[:-1])
        judged = analysis.radial_distribution(known.positions, known.numbers, known.cell, r_max=6.0, bins=500)
        broken = analysis.rdf_instability(
            md.positions,
            md.numbers,
            cell,
            dft[-1].pbc,
            between,
            judged,
            threshold=threshold,
            window=1000.0,
            partial=system != "lips",
        )
    shortest = shortest_distances(read_frames(DATA / name / "train.extxyz.xz"))
    caught = analysis.distance_instability(md.positions, md.numbers, cell, dft[-1].pbc, between, shortest)
    width = middle[1] - middle[0]
    errors = {pair: float(np.abs(mine[pair] - theirs[pair]).sum() * width) for pair in pairs}
    forces = np.linalg.norm(md.forces[skip::5].reshape(-1, 3), axis=1)
    dft_forces = np.concatenate([np.linalg.norm(a.get_forces(), axis=1) for a in dft])
    found = {
        "system": system,
        "atoms": len(md.numbers),
        "ps": float(md.time[-1]) / 1000,
        "stopped": summary["stopped"],
        "unstable": None if broken is None else f"{broken.time / 1000:.2f} ps: {broken.cause}",
        "too_near": None if caught is None else f"{caught.time / 1000:.2f} ps: {caught.cause}",
        "temperature": float(log["temperature_K"][len(log["step"]) // 10 :].mean()),
        "target": kelvin,
        "rdf_mae": {"-".join(pair): error for pair, error in errors.items()},
        "force_mean": [float(forces.mean()), float(dft_forces.mean())],
        "steps_per_second": summary["steps_per_second"],
    }
    if system == "lips":
        diffusion = analysis.diffusivity(
            md.positions[skip:],
            md.numbers,
            between,
            window=(300.0, 1500.0),
            element="Li",
            remove_drift=True,
            masses=md.masses,
        )
        found["li_diffusivity"] = [float(diffusion.value), float(diffusion.error)]

    figure, axes = plt.subplots(1, len(pairs) + 1, figsize=(4.2 * (len(pairs) + 1), 3.8), layout="constrained")
    measure = ("h(r) {}-{} (1/Å)", "difference {:.2f}") if threshold is None else ("g(r) {}-{}", "MAE {:.2f} Å")
    for axis, (a, b) in zip(axes, pairs, strict=False):
        axis.plot(middle, theirs[a, b], "k", lw=1.2, label="DFT frames")
        axis.plot(middle, mine[a, b], "C3--", lw=1.2, label="LEIGNN MD")
        axis.set(xlabel="r (Å)", ylabel=measure[0].format(a, b), title=measure[1].format(errors[a, b]))
        axis.legend()
    bins = np.linspace(0, np.quantile(dft_forces, 0.999), 60)
    axes[-1].hist(dft_forces, bins, density=True, histtype="step", color="k", label="DFT frames")
    axes[-1].hist(forces, bins, density=True, histtype="step", color="C3", ls="--", label="LEIGNN MD")
    axes[-1].set(xlabel="|F| (eV/Å)", ylabel="density (Å/eV)", title="force magnitudes")
    axes[-1].legend()
    figure.suptitle(f"{system.split()[0]}, {len(md.numbers)} atoms, {kelvin:g} K, {float(md.time[-1]) / 1000:.1f} ps")
    figure.savefig(HERE / f"{system.replace(' ', '_')}.png", dpi=120)
    return found


def distances(positions, numbers, a: str, b: str, r_max: float, bins: int) -> np.ndarray:
    """Density [1/Å] of the distances between the atoms of two elements of a whole molecule."""
    from ase.data import atomic_numbers

    first, second = (np.flatnonzero(np.asarray(numbers) == atomic_numbers[x]) for x in (a, b))
    pairs = [(i, j) for i in first for j in second if i != j and (a != b or i < j)]
    found = np.concatenate([np.linalg.norm(positions[:, i] - positions[:, j], axis=-1) for i, j in pairs])
    return np.histogram(found, bins, (0.0, r_max), density=True)[0]


def table(rows: list[dict]) -> str:
    """All systems as Markdown."""
    lines = [
        "# Solid, liquid and gas",
        "",
        f"Molecular dynamics with the potentials of experiments/potentials, float32, seed 0, one run each, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), other work on them. The first tenth of each run is left out.",
        "",
        "| system | atoms | ps | temperature (K) | ended early | criterion broken | too near "
        "| RDF MAE (Å), molecule: of h(r) "
        "| mean force, MD / DFT (eV/Å) | Li diffusivity (Å²/ps) |",
        "|---|---:|---:|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rdf = ", ".join(f"{k} {v:.2f}" for k, v in row["rdf_mae"].items())
        li = row.get("li_diffusivity")
        diffusion = "" if li is None else f"{li[0]:.3f} ± {li[1]:.3f}"
        lines.append(
            f"| {row['system']} | {row['atoms']} | {row['ps']:.1f} | {row['temperature']:.0f} ({row['target']:.0f}) "
            f"| {row['stopped'] or 'no'} | {row['unstable'] or 'no'} | {row['too_near'] or 'no'} "
            f"| {rdf} "
            f"| {row['force_mean'][0]:.2f} / {row['force_mean'][1]:.2f} | {diffusion} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", choices=[*SYSTEMS, []], default=[])
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--table", action="store_true", help="only judge the runs that are there")
    options = parser.parse_args()
    for system in [] if options.table else options.systems or SYSTEMS:
        simulate(system, options.picoseconds)
    results = HERE / "results.json"
    found = {row["system"]: row for row in (json.loads(results.read_text()) if results.exists() else [])}
    there = [s for s in SYSTEMS if (HERE / "runs" / s / "summary.json").exists()]
    found |= {system: judge(system) for system in there}
    rows = [found[system] for system in SYSTEMS if system in found]
    results.write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "results.md").write_text(table(rows))


if __name__ == "__main__":
    main()
