"""What `leignn sweep --plan` says of a study against what then happens: programs, memory, time.

    python experiments/population/plan.py          # three studies on bundled ethanol; seven minutes on two CPU cores

Memory that happens is what the compiled programs of the study take (XLA's own account of them); time is from the call to its
end. Each study runs in a process of its own, nothing cached. Writes plan.json and plan.md.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

WORKER = """
import json, sys, time
import leignn_jax as leignn
from leignn_jax.data import bundled_data
from leignn_jax.sweeps import study as room
kind, values = sys.argv[1], json.loads(sys.argv[2])
values["base"]["data"]["train"] = str(bundled_data("ethanol") / "train.extxyz.xz")
made, make = [], room.make_programs
room.make_programs = lambda *args, **more: made.append(make(*args, **more)) or made[-1]
begun = time.monotonic()
if kind == "plan":
    from leignn_jax.sweeps.plan import plan_sweep
    groups = plan_sweep(values, progress=False)
    found = {
        "programs": sum(one.compiles for one in groups),
        "mib": max(one.memory for one in groups) / 2**20,
        "seconds": sum(one.seconds for one in groups),
    }
else:
    result = leignn.sweep(values, progress=False)
    programs = [p for one in made for p in (one.advance, one.steps, one.evaluate)]
    found = {
        "programs": sum(result.compiles),
        "mib": max(p.total_bytes() for p in programs) / 2**20,
        "seconds": time.monotonic() - begun,
    }
print(json.dumps({**found, "took": time.monotonic() - begun}))
"""

STUDIES = {
    "8 members, one shape": {
        "space": {"run.seed": list(range(8))},
        "base": {"run": {"epochs": 10}},
    },
    "two shapes, 4 members each, in lots of 2": {
        "space": {"run.seed": list(range(4)), "model.features": [32, 64]},
        "base": {"run": {"epochs": 5}},
        "members_at_once": 2,
    },
    "4 members, batch by batch": {
        "space": {"run.seed": list(range(4))},
        "base": {"run": {"epochs": 10}, "data": {"on_device": False}},
    },
}


def run(kind: str, values: dict, folder: str) -> dict:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, kind, json.dumps(values)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    found = {}
    for name, more in STUDIES.items():
        base = {
            "data": {"max_frames": 500, "batch_size": 5, **more["base"].get("data", {})},
            "model": {"preset": "small"},
            "run": {"out": "study", **more["base"]["run"]},
        }
        values = {**more, "base": base}
        with tempfile.TemporaryDirectory() as folder:
            said, happened = run("plan", values, folder), run("sweep", values, folder)
        found[name] = {"said": said, "happened": happened}
        print(name, found[name], flush=True)
    (HERE / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "# The plan of a study and the study",
        "",
        f"Preset small on bundled ethanol (500 frames, batches of 5), float32, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), one run each, whole processes but for imports, nothing cached.",
        "",
        "| study | programs said, happened | MiB said, happened | seconds said, happened | ratio | plan took (s) |",
        "|---|---|---|---|---:|---:|",
    ]
    for name, one in found.items():
        a, b = one["said"], one["happened"]
        lines.append(
            f"| {name} | {a['programs']}, {b['programs']} | {a['mib']:.0f}, {b['mib']:.0f} | {a['seconds']:.0f}, "
            f"{b['seconds']:.0f} | {b['seconds'] / a['seconds']:.2f} | {a['took']:.0f} |"
        )
    (HERE / "plan.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
