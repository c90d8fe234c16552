"""Classes of fuzzed cases, before and after a change, from what ``python tests/fuzz --json FILE`` wrote.

    python experiments/fuzz/results.py before=BEFORE.jsonl after=AFTER.jsonl

Adds the counts under these names to results.json and writes results.md, beside this file.
"""

import json
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from fuzz.cases import BAD, CLASSES  # noqa: E402


def count(file: Path) -> dict[str, dict[str, int]]:
    """How many cases of each target ended in each class."""
    found: dict[str, Counter[str]] = {}
    for line in file.read_text().splitlines():
        one = json.loads(line)
        found.setdefault(one["case"].split(":")[0], Counter())[one["class"]] += 1
    return {target: {name: counts[name] for name in CLASSES} for target, counts in found.items()}


def table(counts: dict[str, dict[str, int]]) -> list[str]:
    lines = [f"| target | cases | {' | '.join(CLASSES)} |", f"|---|{'---:|' * (len(CLASSES) + 1)}"]
    total = {name: sum(one[name] for one in counts.values()) for name in CLASSES}
    for target, one in [*counts.items(), ("**all**", total)]:
        lines.append(f"| {target} | {sum(one.values())} | {' | '.join(str(one[c] or '') for c in CLASSES)} |")
    return lines


def main() -> None:
    file = HERE / "results.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for word in sys.argv[1:]:
        name, _, path = word.partition("=")
        known[name] = count(Path(path))
    file.write_text(json.dumps(known, indent=1) + "\n")
    lines = ["# Fuzzed cases"]
    for name, counts in known.items():
        cases = sum(sum(one.values()) for one in counts.values())
        bad = sum(one[c] for one in counts.values() for c in BAD)
        lines += ["", f"## {name}: {cases} cases, {bad} to no good end", "", *table(counts)]
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
