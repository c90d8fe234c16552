"""Phonons, elastic constants and errors of the bundled and the fitted silicon potential.

leignn fit experiments/fit_silicon/fit.yaml               # leaves the run folder fit_silicon/
python experiments/fit_silicon/judge.py fit_silicon       # results.json, results.md, phonons.png here
"""

import json
import sys
from pathlib import Path

import numpy as np
from ase.build import bulk

import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.plotting import save_figure
from leignn_jax.properties.phonons import phonons, plot_phonons

HERE = Path(__file__).resolve().parent
SPECIAL = {"Γ": (0, 0, 0), "X": (0.5, 0, 0.5)}
# THz at room temperature: optical at Γ; TA, LA and LO, TO at X.
MEASURED = {"Γ optical": 15.53, "X TA": 4.49, "X LA, LO": 12.32, "X TO": 13.90}
PLACES = ((0, 15.53), (1, 13.90), (1, 12.32), (1, 4.49))
CELLS = 4


def main(run: Path) -> None:
    """Compute and write."""
    metrics = json.loads((run / "metrics.json").read_text())
    found = {}
    for when, potential in (
        ("before", leignn.load_potential("si")),
        ("after", leignn.load_potential(run / "potential.safetensors")),
    ):
        atoms = leignn.relax(potential, bulk("Si", "diamond", a=5.45), cell="isotropic", max_stress=1e-3).atoms
        spectrum = phonons(potential, atoms, supercell=CELLS)
        gamma, x = (np.sort(spectrum.frequencies(q)) for q in SPECIAL.values())
        values = (gamma[-1], x[0], x[2], x[-1])
        found[when] = dict(zip(MEASURED, (round(float(v), 3) for v in values), strict=True))
        if when == "after":
            figure = plot_phonons(
                spectrum.band_structure("GXWKGL", 100), spectrum.density_of_states((10, 10, 10), width=0.15)
            )
            ticks = figure.axes[0].get_xticks()
            for place, value in PLACES:
                figure.axes[0].plot(ticks[place], value, "o", color="C3", ms=4, clip_on=False)
            figure.axes[0].set_title("fitted potential (lines), experiment (dots)", fontsize=8)
            save_figure(figure, HERE / "phonons.png")
    # The fit itself never reads the test file.
    test = bundled_data("si") / "test.extxyz.xz"
    all_errors = {
        "validation_before": metrics["validation_before"],
        "validation": metrics["validation"],
        "test_before": leignn.evaluate(leignn.load_potential("si"), test).metrics,
        "test": leignn.evaluate(leignn.load_potential(run / "potential.safetensors"), test).metrics,
    }
    errors = {split: {k: v for k, v in one.items() if "mae" in k} for split, one in all_errors.items()}
    facts = {"phonons": found, "errors": errors, "targets": metrics["targets"]}
    (HERE / "results.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    lines = ["| quantity | measured | before | after |", "|---|---|---|---|"]
    for name, target in metrics["targets"].items():
        before, after = (target[w]["values"][0] for w in ("before", "after"))
        lines.append(
            f"| {name}, fitted: {target['observable']} | {target['measured'][0]:g} | {before:.5g} | {after:.5g} |"
        )
    for name, value in MEASURED.items():
        lines.append(f"| {name}, not fitted (THz) | {value} | {found['before'][name]} | {found['after'][name]} |")
    for split in ("validation", "test"):
        for name, value in errors[split].items():
            lines.append(
                f"| {split}: {name.replace('_', ' ')} | | {errors[split + '_before'][name]:.4g} | {value:.4g} |"
            )
    (HERE / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
