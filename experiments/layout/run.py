"""Compare four layouts of the sum over neighbours: time, memory, compilation, determinism.

    python experiments/layout/run.py                 # about 20 minutes on two quiet cores
    python experiments/layout/run.py --quick
    python experiments/layout/run.py --block-bytes   # the block size of the package's layout on CPU

Each measurement runs in a process of its own (measure.py) and must first agree with the package's own network. Writes
results.json after each measurement, and results.md and results.png at the end (block_bytes.* with ``--block-bytes``).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYOUTS = ["sparse", "dense", "dense_twin", "pairs"]
SIZES = ["aspirin", "molecules", "water", "silicon-1000", "silicon-10648"]
BLOCK_SIZES = ["water", "silicon-1000", "silicon-10648"]
PROGRAMS = {"energy_forces": "energy and forces", "gradient": "gradient of a force loss"}


def start(*arguments: str) -> subprocess.CompletedProcess:
    """Run measure.py."""
    environment = os.environ | {"JAX_ENABLE_X64": "0", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(HERE / "measure.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done


def measure(size: str, layout: str, block_bytes: int | None, reference: Path, options: argparse.Namespace) -> dict:
    """One row of results; a failure becomes a row with its exit code."""
    arguments = ["--size", size, "--layout", layout, "--reference", str(reference)]
    for name in ("repeats", "seconds", "limit", "memory"):
        arguments += [f"--{name}", str(getattr(options, name))]
    if block_bytes:
        arguments += ["--block-bytes", str(block_bytes)]
    done = start(*arguments)
    if done.returncode:
        return {"size": size, "layout": layout, "block_bytes": block_bytes, "failed": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
    """What the timings depend on beside the code."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "ase")}
    return {"processor": processor, "cpus": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def time_cell(program: dict) -> str:
    """Median time with the range, or why there is none."""
    if "median_ms" not in program:
        return program["status"]
    low, middle, high = (f"{program.get(key, program['median_ms']):.4g}" for key in ("min_ms", "median_ms", "max_ms"))
    note = "" if program["status"] == "ok" else f"; {program['status']}"
    return f"{middle} ({low} to {high}; {program['calls']} calls{note})"


def same_bits(row: dict) -> str:
    """Whether all timed calls of a program gave the same bits; several calls are needed to tell."""
    calls = [row[name] for name in PROGRAMS if row[name].get("calls", 0) > 1]
    if not calls:
        return "–"
    return "yes" if all(program["different_outputs"] == 1 for program in calls) else "no"


def memory_cell(row: dict, program: dict) -> str:
    if "peak_rss_mib" not in program:
        return "–"
    return f"{program['peak_rss_mib'] - row['baseline_rss_mib']:.0f}"


def markdown(results: dict) -> str:
    """The results as a table with what is needed to read it."""
    about, options, rows = results["machine"], results["options"], results["measurements"]
    good = [row for row in rows if "failed" not in row]
    devices = ", ".join(sorted({f"{row['device']}, {row['dtype']}" for row in good}))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Layouts of the sum over neighbours",
        "",
        f"{devices}; {about['processor']}, {about['cpus']} CPUs; Python {about['python']}, {versions}. Started "
        f"{results['started']}; at least {options['repeats']} calls and {options['seconds']:g} s per program.",
        "",
        'Preset "medium" without global nodes and repulsion: 128 features, 3 layers, 16 Bessel functions, 5 Å. Times '
        "are medians of calls after compilation, with the smallest and the largest. Added memory is the process's peak "
        "less its peak before, compilation included; the second program runs in the same process after the first. "
        "Temporary memory is what XLA allocates for one call. Other load is the part of the CPUs that other processes "
        "took: times beside it are too long.",
        "",
        "| Structure | Atoms | Pairs | Table width | Layout | Block (KiB) | Energy + forces (ms) | Gradient (ms) "
        "| Temporary memory (MiB) | Added memory (MiB) | Compilation (s) | Same bits | Other load (%) |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in good:
        both = [row[name] for name in PROGRAMS]
        cells = [
            row["size"],
            *(str(row[key]) for key in ("atoms", "pairs", "table_width")),
            row["layout"],
            str(row["block_bytes"] // 1024) if row["layout"] == "pairs" else "",
            *map(time_cell, both),
            ", ".join(f"{program['temporary_mib']:.0f}" for program in both),
            ", ".join(memory_cell(row, program) for program in both),
            ", ".join(f"{program['compile_s']:.1f}" for program in both),
            same_bits(row),
            f"{100 * row['others_cpu_share']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Where a cell has two numbers, they are of energy + forces and of the gradient.", ""]
    lines += [f"- {r['size']}, {r['layout']}: failed with code {r['failed']}" for r in rows if "failed" in r]
    return "\n".join(lines).rstrip() + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Median times with their ranges by structure and layout, one panel per program."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    good = [row for row in rows if "failed" not in row]
    sizes = list(dict.fromkeys(row["size"] for row in good))
    layouts = list(dict.fromkeys(row["layout"] for row in good))
    atoms = {row["size"]: row["atoms"] for row in good}
    width = 0.8 / max(len(layouts), 1)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, (program, title) in zip(axes, PROGRAMS.items(), strict=True):
        for k, layout in enumerate(layouts):
            timed = [row for row in good if row["layout"] == layout and "median_ms" in row[program]]
            places = [sizes.index(row["size"]) + (k - (len(layouts) - 1) / 2) * width for row in timed]
            middle, low, high = (
                np.array([row[program].get(key, row[program]["median_ms"]) for row in timed])
                for key in ("median_ms", "min_ms", "max_ms")
            )
            axis.errorbar(places, middle, [middle - low, high - middle], fmt="o", capsize=3, label=layout)
        axis.set_yscale("log")
        axis.grid(axis="y", alpha=0.3)
        axis.set_xticks(range(len(sizes)), [f"{size.split('-')[0]}\n{atoms[size]} atoms" for size in sizes])
        axis.set_ylabel(f"{title}: time of one call (ms)")
    axes[0].legend()
    figure.suptitle(", ".join(sorted({f"{row['device']}, {row['dtype']}" for row in good})), fontsize=10)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    os.replace(partial, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS)
    parser.add_argument("--repeats", type=int, default=5, help="fewest timed calls of a program")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed seconds of a program")
    parser.add_argument("--limit", type=float, default=120.0, help="timed seconds after which no call is started")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB of temporary memory that a program may need")
    parser.add_argument("--block-bytes", action="store_true", help="time the package's layout at 2^18 ... 2^24 bytes")
    parser.add_argument("--quick", action="store_true", help="the two smallest structures, two calls")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    options = parser.parse_args()
    if options.block_bytes and options.layouts:
        parser.error("--block-bytes is about the layout pairs alone")
    if options.quick:
        options.repeats, options.seconds = 2, 0.0
    sizes = BLOCK_SIZES if options.block_bytes else SIZES
    options.sizes = options.sizes or (sizes[:2] if options.quick else sizes)
    options.layouts = ["pairs"] if options.block_bytes else options.layouts or LAYOUTS
    return options


def main() -> int:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    name = "block_bytes" if options.block_bytes else "results"
    results = {
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "measurements": [],
    }
    rows = results["measurements"]
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            reference = Path(folder) / f"{size}.npz"
            if start("--size", size, "--layout", "reference", "--reference", str(reference)).returncode:
                return 1
            for layout in options.layouts:
                for block_bytes in [2**k for k in range(18, 25)] if options.block_bytes else [None]:
                    rows.append(measure(size, layout, block_bytes, reference, options))
                    write_atomically(options.out / f"{name}.json", json.dumps(results, indent=1) + "\n")
                    times = {key: time_cell(rows[-1][key]) for key in PROGRAMS if key in rows[-1]}
                    print(size, layout, block_bytes or "", times or "failed", flush=True)
    write_atomically(options.out / f"{name}.md", markdown(results))
    if not options.block_bytes:
        draw(rows, options.out / "results.png")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
