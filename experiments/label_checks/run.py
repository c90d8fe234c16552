"""Labels of the sets in ../shared/data scaled, flipped or left alone: what the checks of units and signs say of each.

    python experiments/label_checks/run.py                 # all sets; what results.json holds already is kept
    python experiments/label_checks/run.py water lips      # these, anew
    python experiments/label_checks/run.py water --scaling "forces × 0.001"

Writes results.json and results.md.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from leignn_jax.data.label_checks import compare, examine
from leignn_jax.data.labels import read_labels
from leignn_jax.data.readers import read_frames
from leignn_jax.data.table import tabulate

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
KCAL, HARTREE, HARTREE_BOHR, GPA = 23.0605, 27.2114, 51.4221, 160.2177

# Name: label, factor ("V": times the volume of the frame, "skew": not symmetric), in which frames.
SCALINGS = {
    **{f"forces × {x:.3g}": ("forces", x, "all") for x in (KCAL, HARTREE, HARTREE_BOHR, 10.0, 1e-3, -1.0)},
    **{f"forces × {x:.3g} in two": ("forces", x, "two") for x in (KCAL, HARTREE, HARTREE_BOHR, 10.0, 1e-3, -1.0)},
    **{f"energy × {x:.3g}": ("energy", x, "all") for x in (KCAL, HARTREE, 1e-3, -1.0)},
    **{f"positions × {x:.3g}": ("positions", x, "all") for x in (1.889726, 0.529177)},
    **{f"stress × {x:.4g}": ("stress", x, "all") for x in (GPA, 10 * GPA, -1.0)},
    "stress × volume": ("stress", "V", "all"),
    "stress not symmetric": ("stress", "skew", "all"),
    "validation: forces × 23.1": ("forces", KCAL, "other"),
    "validation: energy × 23.1": ("energy", KCAL, "other"),
    "validation: positions × 1.89": ("positions", 1.889726, "other"),
}
# What physics can't tell, and why.
CANT = {
    ("adsorption", "energy"): "energies of formation without forces, stresses or series of volumes: no scale",
    ("oxides", "forces"): "relaxed: forces of 0.01 eV/Å are all noise of the relaxation",
}


def scale(frame, label, factor):
    """The frame with one label scaled."""
    atoms, labels = frame
    if label == "positions":
        atoms = atoms.copy()
        atoms.set_cell(atoms.cell * factor)
        atoms.positions *= factor
        return atoms, labels
    value = getattr(labels, label)
    if value is None:
        return frame
    if factor == "V":
        value = value * atoms.get_volume()
    elif factor == "skew":
        value = value + np.triu(value, 1) + 0.2 * np.linalg.norm(value) * np.eye(3, k=1)
    else:
        value = value * factor
    return atoms, labels._replace(**{label: value})


def load(name, *files):
    for file in files:
        path = DATA / name / f"{file}.extxyz.xz"
        if path.exists():
            return [(a, read_labels(a)) for a in read_frames(path)]
    raise FileNotFoundError(name)


def judge(found, label, factor, frames):
    """found, suspected, named another label, or missed."""
    if frames is not None:
        hit = [f for f in found if f.label == label and set(f.frames) & set(frames)]
        complete = {i for f in hit for i in f.frames} >= set(frames)
        if not hit or not complete:
            return "partly" if hit else "missed"
        return "found" if all(f.certain for f in hit) else "suspected"
    hit = [f for f in found if f.label == label and not (label in ("forces", "energy") and f.frames)]
    if isinstance(factor, float):
        near = [f for f in hit if f.factor is not None and f.factor * factor > 0 and 1 / 3 < f.factor / factor < 3]
        hit = near or []
    if hit:
        return "found" if any(f.certain for f in hit) else "suspected"
    return "another label" if any(f.certain and not f.frames for f in found) else "missed"


def run_set(name, scalings):
    train, other = load(name, "train"), load(name, "val", "test")[:400]
    started = time.perf_counter()
    table = tabulate(train)
    plain = examine(train.__getitem__, table)
    seconds = time.perf_counter() - started
    of_other = tabulate(other)
    also = [*examine(other.__getitem__, of_other).findings, *compare(plain, table, other.__getitem__, of_other)]
    rows = {
        "as it is": {
            "verdict": "quiet" if not plain.findings and not also else "false alarm",
            "says": [f.text() for f in plain.findings] + [f"validation: {f.text()}" for f in also],
            "refused": any(f.certain for f in [*plain.findings, *also]),
            "seconds": round(seconds, 2),
            "frames": len(train),
        }
    }
    rng = np.random.default_rng(5)
    # Two frames with forces: at rest, of two atoms or crushed, a frame alone can't be told.
    rms = np.nan_to_num(np.sqrt(table.forces_square / (3 * table.atoms)))
    moving = np.flatnonzero((rms >= np.median(rms)) & (rms >= 0.5 * (table.forces_rms() or 0)) & (table.atoms > 4))
    two = sorted(int(i) for i in rng.choice(moving if len(moving) > 1 else len(train), 2, replace=False))
    for title in scalings:
        label, factor, where = SCALINGS[title]
        has = label == "positions" or getattr(train[0][1], label) is not None
        if not has:
            rows[title] = {"verdict": "no label", "says": []}
            continue
        if where == "other":
            changed = [scale(frame, label, factor) for frame in other]
            changed_table = tabulate(changed)
            found = [
                *examine(changed.__getitem__, changed_table).findings,
                *compare(plain, table, changed.__getitem__, changed_table),
            ]
        else:
            chosen = set(two) if where == "two" else set(range(len(train)))
            changed = [scale(f, label, factor) if i in chosen else f for i, f in enumerate(train)]
            found = examine(changed.__getitem__, tabulate(changed)).findings
        verdict = judge(found, label, factor, two if where == "two" else None)
        if (name, label) in CANT and verdict == "missed":
            verdict = "can't be told"
        rows[title] = {"verdict": verdict, "says": [f.text() for f in found]}
    return rows


def write(results):
    sets = list(results)
    titles = ["as it is", *SCALINGS]
    short = {"can't be told": "can't", "no label": "", "another label": "other"}
    lines = ["| scaling | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for title in titles:
        cells = [results[s][title]["verdict"] for s in sets]
        lines.append(f"| {title} | " + " | ".join(short.get(c, c) for c in cells) + " |")
    verdicts = [results[s][t]["verdict"] for s in sets for t in SCALINGS]
    told = [v for v in verdicts if v not in ("no label", "can't be told")]
    good = sum(v in ("found", "suspected") for v in told)
    false = [s for s in sets if results[s]["as it is"]["verdict"] != "quiet"]
    head = [
        f"{good} of {len(told)} (set, scaling) pairs that physics can tell are found or suspected "
        f"({100 * good / max(len(told), 1):.1f} %), {sum(v == 'found' for v in told)} of them for certain.",
        "",
        f"False alarms on {len(sets)} sets as they are: {', '.join(false) or 'none'}. "
        f"Seconds per set: {max(results[s]['as it is']['seconds'] for s in sets):.1f} at most.",
        "",
    ]
    tail = ["", *(f"Can't be told: {s}, {label}: {why}." for (s, label), why in CANT.items())]
    (HERE / "results.md").write_text("\n".join([*head, *lines, *tail]) + "\n")
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--scaling", action="append", choices=SCALINGS, help="only this one, of sets done before")
    options = parser.parse_args()
    every = sorted(p.name for p in DATA.iterdir() if (p / "train.extxyz.xz").exists())
    file = HERE / "results.json"

    def done():
        return json.loads(file.read_text()) if file.exists() else {}

    for name in options.sets or [s for s in every if s not in done()]:
        started = time.perf_counter()
        rows = run_set(name, options.scaling or SCALINGS)
        counts = {}
        for row in rows.values():
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        print(f"{name}: {counts}, {time.perf_counter() - started:.0f} s", flush=True)
        # Read again: another process may do other sets meanwhile.
        results = done()
        results[name] = {**results[name], **rows} if options.scaling else rows
        write({s: results[s] for s in every if s in results})


if __name__ == "__main__":
    main()
