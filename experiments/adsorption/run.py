"""Adsorption energies of relaxed structures, per adsorbed atom: ours, PaiNN, and means over like frames of train.

    python experiments/benchmark/run.py --only adsorption --minutes 5 --keep RUNS
    python experiments/benchmark/painn.py --only adsorption --minutes 5 --threads 1
    python experiments/adsorption/run.py RUNS/adsorption/potential.safetensors     # results.md, results.png

Baselines know no structure: the mean energy per adsorbed atom of train frames with the same adsorbate and metal, and of
those with the same coverage too (where train has none, the first). Clean slabs are left out.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

import leignn_jax as leignn
from leignn_jax.plotting import save_figure

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "adsorption"


def per_atom(frames) -> np.ndarray:
    """eV per adsorbed atom."""
    return np.array([a.get_potential_energy() / int(a.info["adsorbates"]) for a in frames])


def means(train, test, *keys: str) -> np.ndarray:
    """Of each test frame the mean of the train frames that are like it in ``keys``; NaN where there is none."""
    groups = defaultdict(list)
    for atoms, energy in zip(train, per_atom(train), strict=True):
        groups[tuple(str(atoms.info[key]) for key in keys)].append(energy)
    return np.array([np.mean(groups.get(tuple(str(a.info[key]) for key in keys), [np.nan])) for a in test])


def painn(minutes: float) -> np.ndarray | None:
    """PaiNN's errors of all test frames, eV."""
    file = HERE.parent / "benchmark" / "painn.json"
    rows = [r for r in json.loads(file.read_text()) if (r["set"], r["minutes"]) == ("adsorption", minutes)]
    return np.array(rows[0]["test_energy_errors_ev"]) if rows else None


def figure(known: np.ndarray, found: dict[str, np.ndarray]):
    """Predicted against DFT energies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(figsize=(5.5, 5))
    for (name, values), marker in zip(found.items(), "o^xs", strict=False):
        axes.plot(known, values, marker, markersize=4, label=name, alpha=0.8, fillstyle="none")
    ends = [known.min() - 0.3, known.max() + 0.3]
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    axes.set(xlabel="DFT (eV per adsorbed atom)", ylabel="predicted (eV per adsorbed atom)", xlim=ends, ylim=ends)
    axes.legend(fontsize=7)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential")
    parser.add_argument("--minutes", type=float, default=5.0, help="of PaiNN's row")
    options = parser.parse_args()
    train = [a for a in leignn.read_frames(DATA / "train.extxyz.xz") if int(a.info["adsorbates"])]
    whole = leignn.read_frames(DATA / "test.extxyz.xz")
    occupied = np.array([int(a.info["adsorbates"]) > 0 for a in whole])
    test = [a for a, there in zip(whole, occupied, strict=True) if there]
    count = np.array([int(a.info["adsorbates"]) for a in test])
    known, alike = per_atom(test), means(train, test, "adsorbate", "metal")
    closer = means(train, test, "adsorbate", "metal", "coverage")
    energies = np.array([p.energy for p in leignn.load_potential(options.potential).predict(test)])
    found = {
        "mean by adsorbate and metal": alike,
        "mean by adsorbate, metal, coverage": np.where(np.isnan(closer), alike, closer),
        "leignn_jax, small": energies / count,
    }
    errors = painn(options.minutes)
    if errors is not None:
        found["PaiNN of schnetpack"] = known + errors[occupied] / count
    lines = [
        "# Adsorption energies from relaxed structures",
        "",
        f"{len(test)} test frames with something adsorbed, {len(train)} of train; seed 0, float32; "
        f"trained for {options.minutes:g} minutes on one core each.",
        "",
        "| model | MAE (eV per adsorbed atom) | RMSE |",
        "|---|---:|---:|",
    ]
    for name, values in found.items():
        off = values - known
        lines.append(f"| {name} | {np.abs(off).mean():.3f} | {np.sqrt((off**2).mean()):.3f} |")
    (HERE / "results.md").write_text("\n".join(lines) + "\n")
    save_figure(figure(known, found), HERE / "results.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
