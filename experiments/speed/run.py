"""Compare the speed of energy and forces of our models with that of others on the CPU.

    python experiments/speed/run.py                 # three rounds, about half an hour
    python experiments/speed/run.py --quick --models leignn-medium painn
    python experiments/speed/run.py --huge-pages --out experiments/speed/huge_pages \\
        --models matmul painn nequip leignn-medium leignn-published

Every measurement runs in a process of its own (worker.py). The models take turns in
each round, so that a slow spell of the machine falls on all of them. Writes
results.json after each measurement, and results.md and results.png at the end.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from structures import STRUCTURES
from worker import MODELS, OURS

HERE = Path(__file__).resolve().parent
PEERS = [name for name in MODELS if name not in OURS]
DEFAULT_MODELS = [
    "matmul",
    *PEERS,
    "leignn-medium",
    "tensor-medium",
    "leignn-128x3",
    "leignn-published",
]
REFERENCES = ["leignn-medium", "leignn-128x3"]


def plan(models: list[str], all_structures: bool) -> list[tuple[str, str]]:
    """The (model, structure) pairs of one round; other models take water alone."""
    pairs = [("matmul", "water")] if "matmul" in models else []
    for structure in STRUCTURES:
        for model in models:
            if model in OURS or (model in PEERS and (all_structures or structure == "water")):
                pairs.append((model, structure))
    return pairs


def measure(model: str, structure: str, options: argparse.Namespace) -> dict:
    """Run the worker once; a failure becomes a row with its reason."""
    command = [sys.executable, str(HERE / "worker.py")]
    command += ["--model", model, "--structure", structure]
    command += ["--repeats", str(options.repeats), "--seconds", str(options.seconds)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    if options.huge_pages:
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=options.timeout,
        )
    except subprocess.TimeoutExpired:
        status = f"failed: no result within {options.timeout:g} s"
        return {"model": model, "structure": structure, "status": status}
    if done.returncode:
        status = f"failed: exit code {done.returncode}"
        row = {"model": model, "structure": structure, "status": status}
    else:
        row = json.loads(done.stdout.splitlines()[-1])
    if row["status"].startswith("failed"):
        print(done.stderr, file=sys.stderr)
    return row


def published_flops(atoms: int, edges: int, features: int, radial: int, layers: int):
    """FLOPs of energy and forces by the formula published for LEIGNN.

    Matrix products only, two FLOPs per multiply-add, one structure; the forces cost
    as much again as the energy.
    """
    forward = layers * (38 * atoms * features**2 + 6 * edges * radial * features + 12 * features**2) + atoms * (
        features**2 + features
    )
    return 2 * forward


def summarise(rows: list[dict]) -> list[dict]:
    """One entry per model and structure: medians over the rounds."""
    good = {(row["model"], row["structure"], row["round"]): row for row in rows if row["status"] == "ok"}
    rates = [r["best_flop_per_s"] for r in good.values() if r["model"] == "matmul"]
    rate = statistics.median(rates) if rates else None

    entries = {}
    for row in rows:
        key = (row["model"], row["structure"])
        if row["model"] == "matmul" or key in entries:
            continue
        own = {key_[2]: r for key_, r in good.items() if key_[:2] == key}
        if not own:
            entries[key] = {name: row[name] for name in ("model", "structure", "status")}
            continue
        first = next(iter(own.values()))
        times = [r["median_ms"] for r in own.values()]
        shares = [r["others_cpu_share"] for r in own.values()]
        shares = [share for share in shares if share is not None]
        entry = {
            "model": key[0],
            "structure": key[1],
            "status": "ok",
            "rounds": len(own),
            "atoms": first["atoms"],
            "edges": first["edges"],
            "cutoff_angstrom": first["cutoff_angstrom"],
            "median_ms": statistics.median(times),
            "min_ms": min(times),
            "max_ms": max(times),
            "us_per_atom": 1e3 * statistics.median(times) / first["atoms"],
            "first_call_s": statistics.median(r["first_call_s"] for r in own.values()),
            "peak_rss_mib": max(r["peak_rss_mib"] for r in own.values()),
            "added_rss_mib": max(r["peak_rss_mib"] - r["baseline_rss_mib"] for r in own.values()),
            "others_cpu_share": max(shares, default=None),
            "note": first["note"],
            "ratios": {},
        }
        for reference in REFERENCES:
            ratios = [
                r["median_ms"] / good[reference, key[1], turn]["median_ms"]
                for turn, r in own.items()
                if (reference, key[1], turn) in good
            ]
            if ratios:
                entry["ratios"][reference] = statistics.median(ratios)
        if first["sizes"] and rate:
            flops = published_flops(first["atoms"], first["edges"], **first["sizes"])
            entry["formula_flops"] = flops
            entry["product_bound_ms"] = 1e3 * flops / rate
        entries[key] = entry
    return list(entries.values())


def machine() -> dict:
    """What the machine is, as far as the timings depend on it."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return {
        "processor": processor,
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def number(value: float | None, digits: int = 3) -> str:
    """A number to some digits, never in powers of ten."""
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if value < 10**digits - 0.5 else f"{value:.0f}"


def markdown(results: dict) -> str:
    """The results as a table with what is needed to read it."""
    about = results["machine"]
    options = results["options"]
    lines = [
        "# Speed of energy and forces",
        "",
        f"{about['processor']}, {about['cpus']} CPUs, {about['system']}, Python "
        f"{about['python']}; float32 on the CPU; {options['rounds']} round(s) of at "
        f"least {options['repeats']} calls. Started {results['started']}."
        + (" All processes with GLIBC_TUNABLES=glibc.malloc.hugetlb=1." if options.get("huge_pages") else ""),
        "",
        "Times are medians over rounds of each round's median, with the smallest and "
        "largest round in brackets. Neighbour lists are made before the clock starts. "
        "Ratios are medians over rounds of that round's time divided by our model's. "
        "Added memory is the peak resident size less the peak before the model was "
        "built. Other load is the largest part of the CPUs that other processes took "
        "during the timed calls of any round; times taken beside such a load are too "
        "long.",
        "",
        "| Structure | Model | Atoms | Directed edges | Cutoff (Å) | Time (ms) "
        "| Per atom (µs) "
        + "".join(f"| Time / {name} " for name in REFERENCES)
        + "| First call (s) | Peak memory (MiB) | Added memory (MiB) "
        "| Matrix-product bound (ms) | Other load (%) |",
        "|---|---|" + "---:|" * (10 + len(REFERENCES)),
    ]
    for entry in results["summary"]:
        cells = [entry["structure"], entry["model"]]
        if entry["status"] != "ok":
            status = entry["status"].replace("|", "/")
            cells += ["", "", "", status] + [""] * (6 + len(REFERENCES))
            lines.append("| " + " | ".join(cells) + " |")
            continue
        share = entry["others_cpu_share"]
        spread = f"{number(entry['min_ms'])} to {number(entry['max_ms'])}"
        cells += [
            str(entry["atoms"]),
            str(entry["edges"]),
            f"{entry['cutoff_angstrom']:g}",
            f"{number(entry['median_ms'])} ({spread})",
            number(entry["us_per_atom"]),
            *(number(entry["ratios"].get(name)) for name in REFERENCES),
            number(entry["first_call_s"]),
            number(entry["peak_rss_mib"], 5),
            number(entry["added_rss_mib"], 5),
            number(entry.get("product_bound_ms")),
            "–" if share is None else f"{100 * share:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")

    lines.append("")
    products = [row for row in results["measurements"] if row["model"] == "matmul" and row["status"] == "ok"]
    if products:
        rate = statistics.median(row["best_flop_per_s"] for row in products)
        lines += [
            f"Matrix-product bound: the time that the FLOPs of LEIGNN's published "
            f"formula, at that row's features, radial functions and layers, take at "
            f"{rate / 1e9:.1f} GFLOP/s, this machine's rate for a "
            f"{products[0]['structure']} in float32 (the better of numpy and jax).",
            "",
        ]
    notes = {e["model"]: e["note"] for e in results["summary"] if e.get("note")}
    lines += [f"- {model}: {note}" for model, note in notes.items()]
    lines += [
        f"- Round {row['round']}, {row['model']}, {row['structure']}: {row['status']}"
        for row in results["measurements"]
        if row["status"].startswith("failed")
    ]
    versions = {}
    for row in results["measurements"]:
        versions |= row.get("versions", {})
    if versions:
        lines += ["- Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items())]
    return "\n".join(lines).rstrip() + "\n"


def draw(summary: list[dict], path: Path) -> None:
    """Horizontal bars of the median times, one panel per structure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = [entry for entry in summary if "median_ms" in entry]
    panels = [(name, [entry for entry in timed if entry["structure"] == name]) for name in STRUCTURES]
    panels = [(name, entries) for name, entries in panels if entries]
    if not panels:
        return
    counts = [len(entries) for _, entries in panels]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(7, 1.2 * len(panels) + 0.35 * sum(counts)),
        gridspec_kw={"height_ratios": [count + 1 for count in counts]},
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, entries) in zip(axes[:, 0], panels, strict=False):
        entries = sorted(entries, key=lambda entry: entry["median_ms"], reverse=True)
        times = [entry["median_ms"] for entry in entries]
        whiskers = [
            [entry["median_ms"] - entry["min_ms"] for entry in entries],
            [entry["max_ms"] - entry["median_ms"] for entry in entries],
        ]
        colors = ["C0" if entry["model"] in OURS else "0.7" for entry in entries]
        labels = [entry["model"] for entry in entries]
        axis.barh(labels, times, xerr=whiskers, color=colors, ecolor="0.3", capsize=2)
        for place, entry in enumerate(entries):
            axis.annotate(
                number(entry["median_ms"]),
                (entry["max_ms"], place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            if "product_bound_ms" in entry:
                axis.plot(entry["product_bound_ms"], place, "k|", markersize=12)
        axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.set_title(f"{name}, {entries[0]['atoms']} atoms", fontsize=10)
    axes[-1, 0].set_xlabel("energy and forces, CPU, float32: time (ms)")
    if any("product_bound_ms" in entry for entry in timed):
        tick = plt.Line2D([], [], color="k", marker="|", linestyle="", markersize=12)
        figure.legend([tick], ["matrix-product bound"], loc="outside upper right")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    os.replace(partial, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="fewest calls per round")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed seconds per round")
    parser.add_argument("--models", nargs="+", choices=["matmul", *MODELS], default=DEFAULT_MODELS)
    parser.add_argument("--all", action="store_true", help="time other models on all structures too")
    parser.add_argument("--quick", action="store_true", help="one round of at least two calls")
    parser.add_argument("--huge-pages", action="store_true", help="let glibc ask for huge pages, for all models")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds per measurement")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.repeats, options.seconds = 1, 2, 0.0
    if options.rounds < 1 or options.repeats < 1:
        parser.error("--rounds and --repeats must be at least 1")
    return options


def main() -> int:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "measurements": [],
        "summary": [],
    }
    pairs = plan(options.models, options.all)
    for turn in range(1, options.rounds + 1):
        for model, structure in pairs if turn % 2 else pairs[::-1]:
            row = measure(model, structure, options) | {"round": turn}
            results["measurements"].append(row)
            results["summary"] = summarise(results["measurements"])
            text = json.dumps(results, indent=1)
            write_atomically(options.out / "results.json", text + "\n")
            shown = f"{row['median_ms']:.4g} ms" if "median_ms" in row else row["status"]
            place = row["structure"]
            print(f"round {turn}: {model:17} {place:15} {shown}", flush=True)

    write_atomically(options.out / "results.md", markdown(results))
    draw(results["summary"], options.out / "results.png")
    failed = [r for r in results["measurements"] if r["status"].startswith("failed")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
