"""What potentials say where no data are: bonds that are compressed and stretched, and frames whose atoms are displaced.

    python experiments/extrapolation/run.py --label now       # bundled potentials of the package that is imported
    PYTHONPATH=OLDER python experiments/extrapolation/run.py --label before
    python experiments/extrapolation/run.py --report          # results.md, results.png

Compressed, stretched: of the first frame of train the nearest two atoms, moved along their bond to 0.4 to 2 times their
distance. Displaced: ten frames of train, every coordinate by a normal number of 0.05 to 0.4 Å. Of all the energy above that
of the frame as it is: no displacement may bind by more than the frame is from its minimum.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import leignn_jax as leignn
from leignn_jax.plotting import save_figure

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
RESULTS = HERE / "results.json"
FOLDERS = {
    "aspirin": "rmd17_aspirin",
    "ethanol": "rmd17_ethanol",
    "methane": "methane_gas",
    "water": "water",
    "lips": "lips",
    "si": "mlearn_Si",
}
SHARES = np.round(np.arange(0.4, 2.01, 0.05), 2)
DISPLACEMENTS = (0.05, 0.1, 0.2, 0.3, 0.4)  # Å
FRAMES = 10


def above(potential, frames, moved) -> list[float]:
    """Energies of moved frames above those of the frames that they were, eV."""
    lists = [list(potential.predict(some, dtype="float64")) for some in (moved, frames)]
    return [float(a.energy - b.energy) for a, b in zip(*lists, strict=True)]


def judge(name: str) -> dict:
    """Energies of one bundled potential."""
    potential = leignn.load_potential(name)
    frames = leignn.read_frames(DATA / FOLDERS[name] / "train.extxyz.xz")
    first = frames[0]
    apart = first.get_all_distances(mic=True) + 1e3 * np.eye(len(first))
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    bonds = [first.copy() for _ in SHARES]
    for share, one in zip(SHARES, bonds, strict=True):
        one.set_distance(i, j, apart[i, j] * share, fix=0, mic=True)
    some = [frames[k] for k in np.linspace(0, len(frames) - 1, FRAMES).astype(int)]
    rng, displaced = np.random.default_rng(0), {}
    for size in DISPLACEMENTS:
        moved = [one.copy() for one in some]
        for one in moved:
            one.positions += size * rng.standard_normal(one.positions.shape)
        displaced[str(size)] = above(potential, some, moved)
    return {
        "bond": f"{first.symbols[i]}-{first.symbols[j]}, {apart[i, j]:.2f} Å",
        "atoms": len(first),
        "bonds": above(potential, [first] * len(bonds), bonds),
        "displaced": displaced,
    }


def report(found: dict) -> str:
    """The table as Markdown."""
    chosen = (0.5, 0.7, 0.85, 1.3, 2.0)
    lines = [
        "# Where no data are",
        "",
        "Energies in eV above those of the frame; of displaced frames the lowest of ten, per atom.",
        "",
        "| potential | code | bond | "
        + " | ".join(f"at {share:g} of it" for share in chosen)
        + " | "
        + " | ".join(f"displaced by {size:g} Å" for size in DISPLACEMENTS)
        + " |",
        "|---|---|---|" + "---:|" * (len(chosen) + len(DISPLACEMENTS)),
    ]
    for name in FOLDERS:
        for label, rows in found.items():
            if name in rows:
                one = rows[name]
                bonds = [one["bonds"][int(np.flatnonzero(share == SHARES)[0])] for share in chosen]
                lowest = [min(one["displaced"][str(size)]) / one["atoms"] for size in DISPLACEMENTS]
                cells = [f"{x:.3g}" for x in (*bonds, *lowest)]
                lines.append(f"| {name} | {label} | {one['bond']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(found: dict):
    """Energies of compressed and stretched bonds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True)
    for axis, name in zip(axes.flat, FOLDERS, strict=True):
        for (label, rows), color in zip(found.items(), ("tab:red", "tab:blue"), strict=False):
            if name in rows:
                axis.plot(SHARES, rows[name]["bonds"], ".-", color=color, label=label)
                axis.set_title(f"{name}: {rows[name]['bond']}", fontsize=9)
        axis.set_yscale("symlog", linthresh=1.0)
        # Below, lines fall to -1e28 eV.
        axis.set_ylim(-200, 400)
        axis.set_xlabel("share of the bond's length (no unit)")
        axis.set_ylabel("energy above the frame's (eV)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    drawn.tight_layout()
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="now")
    parser.add_argument("--report", action="store_true", help="only the table and the figure of what is there")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.report:
        found[options.label] = {name: judge(name) for name in FOLDERS}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(report(found))
    save_figure(figure(found), HERE / "results.png")
    print(report(found))


if __name__ == "__main__":
    main()
