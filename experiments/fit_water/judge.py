"""g_OO and DFT errors of the bundled and the fitted water potential, by simulations that no fit has seen.

leignn fit experiments/fit_water/fit.yaml                 # leaves the run folder fit_water/
python experiments/fit_water/judge.py before              # 2.4 ps after some to forget the start; numbers to results.json
python experiments/fit_water/judge.py after fit_water
python experiments/fit_water/judge.py table               # results.md, g_oo.png from results.json
"""

import json
import sys
from pathlib import Path

import ase.io
import numpy as np

import leignn_jax as leignn
from leignn_jax import analysis

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
STEPS, EVERY, BLOCKS = 2400, 25, 3
# Steps before those: water.xyz is of the potential before, from which the liquid needs time to go.
DISCARDED = {"before": 600, "after": 2100}
SEEDS = {"before": 101, "after": 102}
# Å: of the range that was fitted, and of what the cell allows beyond it.
FITTED, BEYOND, BINS = (2.4, 4.3), (4.4, 6.2), 62


def measured() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """r in Å and g_OO of the curve that was fitted and of the one that was not."""
    soper = np.loadtxt(DATA / "experiment" / "water_rdf_soper2013.txt")
    skinner = np.load(DATA / "experiment" / "water_OO_rdf_skinner2013.npz")
    return {"Soper": (soper[:, 0], soper[:, 1]), "Skinner": (skinner["r_OO"], skinner["g_OO"])}


def simulated(potential: leignn.Potential, discarded: int, seed: int) -> dict:
    """g_OO with the standard error of blocks of 0.8 ps, and whether the molecules are whole."""
    atoms = ase.io.read(HERE / "water.xyz")
    result = leignn.simulate(
        potential, atoms, "langevin", steps=discarded + STEPS, timestep=1.0, temperature=300.0, seed=seed, save_every=EVERY,
        log_every=EVERY,
    )  # fmt: skip
    positions = np.asarray(result.trajectory.positions)[-(STEPS // EVERY) :]
    of = [
        analysis.radial_distribution(block, atoms.numbers, atoms.cell.array, True, r_max=6.2, bins=BINS)
        for block in np.array_split(positions, BLOCKS)
    ]
    curves = np.array([one.of("O", "O") for one in of])
    near = [one.coordination("O", "H")[np.searchsorted(one.edges, 1.3) - 1] for one in of]
    kelvin = np.asarray(result.thermo["temperature_K"])[-len(positions) :]
    return {
        "seed": seed,
        "discarded_steps": discarded,
        "frames": len(positions),
        "steps_per_second": round(result.summary["steps_per_second"], 1),
        "temperature_K": round(float(kelvin.mean()), 1),
        "H within 1.3 Å of O": round(float(np.mean(near)), 4),
        "r": of[0].r.round(3).tolist(),
        "blocks": curves.round(3).tolist(),
        "g": curves.mean(0).round(4).tolist(),
        "error": (curves.std(0, ddof=1) / BLOCKS**0.5).round(4).tolist(),
    }


def errors(run: Path) -> dict:
    """Before and after: on the frames that the fit held out, by the run itself, and on the test file, read here."""
    metrics = json.loads((run / "metrics.json").read_text())
    test = DATA / "water" / "test.extxyz.xz"
    found = {
        "before": {"validation": metrics["validation_before"], "test": _errors("water", test)},
        "after": {"validation": metrics["validation"], "test": _errors(run / "potential.safetensors", test)},
    }
    return {
        when: {split: {k: one[k] for k in one if "mae" in k or "rmse" in k} for split, one in splits.items()}
        for when, splits in found.items()
    }


def _errors(potential: str | Path, frames: Path) -> dict:
    return leignn.evaluate(leignn.load_potential(potential), frames).metrics


def distance(r: np.ndarray, g: np.ndarray, curve: tuple[np.ndarray, np.ndarray], part: tuple[float, float]) -> float:
    """Root mean square difference of two g(r) over a range; no unit."""
    inside = (r > part[0]) & (r < part[1])
    # The measured one averaged over bins too.
    fine = r[inside][:, None] + np.linspace(-0.05, 0.05, 11)
    return float(np.sqrt(np.mean((g[inside] - np.interp(fine, *curve).mean(1)) ** 2)))


def table() -> None:
    """results.md and the figure."""
    from leignn_jax.plotting import new_figure, save_figure

    results, curves = json.loads((HERE / "results.json").read_text()), measured()
    figure, axes = new_figure(1, 5.2, 3.6)
    axis = axes[0]
    styles = {"Soper": ("0.3", "-", "Soper 2013 (fitted)"), "Skinner": ("0.3", "--", "Skinner 2013 (not fitted)")}
    for name, (color, line, label) in styles.items():
        axis.plot(*curves[name], line, color=color, lw=1, label=label)
    for when, color in (("before", "C0"), ("after", "C3")):
        one = results[when]["simulation"]
        axis.errorbar(one["r"], one["g"], one["error"], color=color, lw=1.2, elinewidth=0.5, label=when)
    axis.axvspan(*FITTED, color="0.93", lw=0, zorder=0, label="fitted range")
    axis.set(xlim=(2.0, 6.2), ylim=(0, 3.6), xlabel="O-O distance (Å)", ylabel="g_OO(r)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_figure(figure, HERE / "g_oo.png")

    lines = ["| quantity | measured | before | after |", "|---|---|---|---|"]
    sims = {when: results[when]["simulation"] for when in ("before", "after")}
    r = np.array(sims["before"]["r"])

    def row(name: str, reference: str, number, digits: int = 3) -> None:
        lines.append(f"| {name} | {reference} | " + " | ".join(f"{number(w):.{digits}f}" for w in sims) + " |")

    tops = " / ".join(f"{g.max():.2f} at {x[g.argmax()]:.2f}" for x, g in curves.values())
    lines.append(f"| highest g_OO, at Å (Soper / Skinner) | {tops} | " + " | ".join(_top(sims[w]) for w in sims) + " |")
    for name, curve in curves.items():
        for part, what in ((FITTED, "2.4 to 4.3"), (BEYOND, "4.4 to 6.2")):
            fitted = "fitted" if name == "Soper" and part is FITTED else "not fitted"
            row(
                f"RMS of g_OO - {name}, {what} Å, {fitted}",
                "",
                lambda w, c=curve, p=part: distance(r, np.array(sims[w]["g"]), c, p),
            )
    row("mean standard error of g_OO, 2.4 to 6.2 Å", "", lambda w: np.mean(np.array(sims[w]["error"])[r > 2.4]))
    row("temperature (K)", "300", lambda w: sims[w]["temperature_K"], 1)
    for split in ("validation", "test"):
        for key, name in (
            ("forces_mae_mev_per_angstrom", "force MAE (meV/Å)"),
            ("forces_rmse_mev_per_angstrom", "force RMSE (meV/Å)"),
            ("energy_mae_mev_per_atom", "energy MAE (meV/atom)"),
        ):
            row(f"{split}: {name}", "", lambda w, s=split, k=key: results["errors"][w][s][k], 2)
    (HERE / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _top(one: dict) -> str:
    best = int(np.argmax(one["g"]))
    return f"{one['g'][best]:.2f} ± {one['error'][best]:.2f} at {one['r'][best]:.2f}"


def main(when: str, run: str = "") -> None:
    """Simulate, or write the table."""
    if when == "table":
        table()
        return
    potential = leignn.load_potential("water" if when == "before" else Path(run) / "potential.safetensors")
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if when == "after":
        results["errors"] = errors(Path(run))
    results[when] = {"simulation": simulated(potential, DISCARDED[when], SEEDS[when])}
    path.write_text(json.dumps(results, ensure_ascii=False) + "\n")
    print({k: v for k, v in results[when]["simulation"].items() if not isinstance(v, list)}, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
