"""What hot programs become on an H100 and a TPU v5e, compiled without either, and a roofline under every kernel.

    pip install jax==0.10.1 jaxlib==0.10.1 libtpu jax-cuda12-plugin==0.10.1 jax-cuda12-pjrt==0.10.1 nvidia-cuda-nvcc-cu12
    python experiments/accelerators/run.py [--label now] [--targets h100 v5e] [--only "forces medium 138" ...]

keeps results.json (by label, so that a change has its row beside the one before) and writes results.md and results.png.
About ten minutes for the H100 and half an hour for the v5e on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import compiled

HERE = Path(__file__).resolve().parent


def main() -> None:
    # jax reads its environment when it is imported.
    compiled.prepare()
    from programs import PROGRAMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="now", help="of the rows in the table")
    parser.add_argument("--variant", default="leignn", help="of the model (default leignn, of the rows before and now)")
    parser.add_argument("--precision", default="highest", help="of the model's matrix products")
    parser.add_argument("--targets", nargs="+", default=["h100", "v5e"], choices=sorted(compiled.DEVICES))
    parser.add_argument("--only", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS), metavar="PROGRAM")
    parser.add_argument("--show", action="store_true", help="the kernels that move most")
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for target in options.targets:
        for name, build in PROGRAMS.items():
            if name not in options.only:
                continue
            function, arguments = build(variant=options.variant, matmul_precision=options.precision)
            begun = time.perf_counter()
            program = compiled.compile_for(target, function, *arguments)
            row = {"s compiling": time.perf_counter() - begun, **compiled.summary(program, target)}
            found.setdefault(options.label, {}).setdefault(target, {})[name] = row
            print(target, name, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            if options.show:
                for kernel, moved in compiled.largest(program, target):
                    print(f"    {moved:9.3f} MB  {kernel}")
            compiled.store(file, found)
    (HERE / "results.md").write_text(table(found))
    plot(found, HERE / "results.png")


def names_of(found: dict[str, Any], target: str) -> list[str]:
    """Programs that were compiled for a target, in the order in which they were first."""
    return list(dict.fromkeys(name for by_target in found.values() for name in by_target.get(target, {})))


def table(found: dict[str, Any]) -> str:
    lines = ["# Programs on devices that were not there", ""]
    for target, device in compiled.DEVICES.items():
        if not any(target in by_target for by_target in found.values()):
            continue
        lines += [
            f"## {device.name}",
            "",
            "| program | when | kernels | products | MB moved | MB temporaries | ms predicted | of bytes | products | "
            "launches | other custom calls | s compiling |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
        ]
        for name in names_of(found, target):
            for label, by_target in found.items():
                if (r := by_target.get(target, {}).get(name)) is not None:
                    lines.append(
                        f"| {name} | {label} | {r['kernels']} | {r['products']} | {r['MB moved']:,.1f} | "
                        f"{r['MB temporaries']:,.1f} | {r['ms predicted']:.3f} | {r['ms of bytes']:.3f} | "
                        f"{r['ms of products']:.3f} | {r['ms of launches']:.3f} | {', '.join(r['other libraries'])} | "
                        f"{r['s compiling']:.0f} |"
                    )
        lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """What binds each program: time of bytes, products and launches, of the latest label that has it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    targets = [t for t in compiled.DEVICES if any(t in by_target for by_target in found.values())]
    figure, axes = plt.subplots(1, len(targets), figsize=(7 * len(targets), 6), squeeze=False, layout="constrained")
    for axis, target in zip(axes[0], targets, strict=True):
        latest = {n: r for by_target in found.values() for n, r in by_target.get(target, {}).items()}
        names = names_of(found, target)
        for k, (part, words) in enumerate(
            (("bytes", "memory"), ("products", "matrix products"), ("launches", "launches"))
        ):
            if (part, target) == ("products", "v5e"):
                continue  # convolutions, whose operations are not counted
            values = [max(latest[n][f"ms of {part}"], 1e-4) for n in names]
            axis.barh([y + 0.27 * (1 - k) for y in range(len(names))], values, 0.27, color=f"C{k}", label=words)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlabel("predicted time of an evaluation or a step (ms)")
        axis.set_title(compiled.DEVICES[target].name)
    figure.suptitle("Energy and forces, steps of MD, steps of training: preset, atoms x structures", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
