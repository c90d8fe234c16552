"""Parts of the sets in ../shared/data as they are: what the checks of units and signs say of labels that are right.

    python experiments/label_checks/parts.py [SET ...]      # about 3 minutes

Six parts each of 12, 60 and 200 frames of every set, by turns frames that follow each other and frames drawn at random.
Writes parts.md.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from run import DATA, HERE, examine, load, tabulate

SIZES, PARTS = (12, 60, 200), 6


def parts(frames, rng):
    """Size and frames of each part."""
    for size in SIZES:
        for number in range(PARTS if len(frames) > size else 0):
            start = int(rng.integers(0, len(frames) - size + 1))
            drawn = np.sort(rng.choice(len(frames), size, replace=False))
            yield size, [frames[i] for i in (range(start, start + size) if number % 2 else drawn)]


def main() -> None:
    names = sys.argv[1:] or sorted(p.name for p in DATA.iterdir() if (p / "train.extxyz.xz").exists())
    looked = refused = warned = 0
    rows = []
    for name in names:
        for size, part in parts(load(name, "train"), np.random.default_rng(0)):
            looked += 1
            found = examine(part.__getitem__, tabulate(part)).findings
            refused += any(f.certain for f in found)
            warned += bool(found) and not any(f.certain for f in found)
            rows += [f"| {name} | {size} | {'refused' if f.certain else 'warned'} | {f.text()} |" for f in found]
        print(name, looked, refused, warned, flush=True)
    text = f"{looked} parts of {len(names)} sets: {refused} refused, {warned} warned of, all of them wrongly.\n\n"
    text += "| set | frames | what | words |\n|---|---:|---|---|\n" + "".join(f"{row}\n" for row in rows)
    (Path(HERE) / "parts.md").write_text(text)


if __name__ == "__main__":
    main()
