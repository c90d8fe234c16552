"""``python tests/fuzz --cases 5000 [--json FILE]`` runs many and prints a table; ``python tests/fuzz CASE ...`` these."""

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> int:
    # Run by the name of a folder, that folder is on the path and not the one above it.
    sys.path[0] = str(Path(__file__).parents[1])
    from fuzz.campaign import failures, run, table
    from fuzz.cases import identities, targets

    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument(
        "only", nargs="*", metavar="CASE", help="target:attack:number; the last or last two may be left out"
    )
    parser.add_argument("--cases", type=int, default=500, help="how many, where none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--json", type=Path, help="write what came of each case there, a line each, as it ends")
    options = parser.parse_args()
    known = targets()
    cases = list(identities(options.cases, known))
    if options.only:
        several = [f"{t.name}:{a}:0" for t in known.values() for a in t.attacks]
        cases = []
        for asked in options.only:
            cases += [asked] if asked.count(":") == 2 else [c for c in several if f"{c}:".startswith(f"{asked}:")]
    begun = time.monotonic()
    done = 0
    lines = options.json.open("w") if options.json else None

    def tell(one: dict) -> None:
        nonlocal done
        done += 1
        if lines:
            print(json.dumps(one), file=lines, flush=True)
        if options.only or one["class"] not in ("right", "told"):
            print(
                f"{one['class']:8} {one['case']}  {one['seconds']:g} s  {one.get('what', '')}  {one['words']}",
                flush=True,
            )
        elif done % 500 == 0:
            print(f"{done} of {len(cases)}, {time.monotonic() - begun:.0f} s", flush=True)

    found = run(cases, seed=options.seed, workers=options.workers, tell=tell)
    print(f"\n{table(found)}\n\n{len(cases)} cases, seed {options.seed}, {time.monotonic() - begun:.0f} s")
    if lines:
        lines.close()
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())
