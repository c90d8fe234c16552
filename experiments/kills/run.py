"""Kill -9 a training, a study, simulations, the building of a store and the quickstart at random moments; start them again;
compare the bits of what they leave with those of an undisturbed run.

    python experiments/kills/run.py [KIND ...] [--kills 10] [--seed 0]

writes results.json and results.md beside this file. Every process says when its imports are done; a kill comes at a moment
drawn evenly between then and the time that an undisturbed process took. Where a process is done before its kill, what it
left is compared and another run begins, until there were so many kills; the last run is then left to finish. Of two
processes that work together one, drawn too, is killed, and then the other, as job schedulers do.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent

_DATA = """
from pathlib import Path
from leignn_jax.data import bundled_data
train = str(bundled_data("ethanol") / "train.extxyz.xz")
"""

_TRAIN = (
    _DATA
    + """
import leignn_jax as leignn
train_it = leignn.train
print("go", flush=True)
train_it({
    "data": {"train": train, "max_frames": 60, "batch_size": 5},
    "model": {"preset": "small", "variant": "leignn", "features": 16},
    "run": {"out": "run", "epochs": 10, "checkpoint_minutes": 0.0},
}, progress=False)
"""
)

_STUDY = (
    _DATA
    + """
import leignn_jax as leignn
print("go", flush=True)
leignn.sweep({
    "base": {
        "data": {"train": train, "max_frames": 60, "batch_size": 5},
        "model": {"preset": "small", "variant": "leignn", "features": 16},
        "run": {"out": "run", "epochs": 5, "checkpoint_minutes": 0.0},
    },
    "space": {"optimizer.learning_rate": [1e-3 + 2e-4 * i for i in range(8)]},
    "members_at_once": 4,
}, progress=False)
"""
)

_SEARCH = (
    _DATA
    + """
import leignn_jax as leignn
import optuna
print("go", flush=True)
leignn.sweep({
    "base": {
        "data": {"train": train, "max_frames": 60, "batch_size": 5},
        "model": {"preset": "small", "variant": "leignn", "features": 16},
        "run": {"out": "run", "epochs": 6, "checkpoint_minutes": 0.0},
    },
    "space": {"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "optimizer.schedule": ["cosine", "constant"]},
    "search": "tpe",
    "samples": 16,
    "startup": 6,
    "members_at_once": 4,
    "halving": {"first_epochs": 1, "factor": 2},
}, progress=False)
"""
)

_PAIR = """
import os
from leignn_jax.processes import join_processes
join_processes(os.environ["COORDINATOR"], 2, int(os.environ["PROCESS"]))
""" + _STUDY.replace('"members_at_once": 4,', '"members_at_once": 4, "mesh": [4, 1],')

_MD = """
from pathlib import Path
import ase.build
from leignn_jax import load_potential, simulate
atoms = ase.build.bulk("Si", cubic=True, a=5.47)
atoms.rattle(0.02, seed=0)
print("go", flush=True)
simulate(load_potential("si"), atoms, "{ensemble}", steps=3000, timestep=1.0, temperature=300.0, save_every=20, log_every=10,
         seed=3, out="run", resume=Path("run/state.safetensors").exists() or Path("run/state.previous.safetensors").exists(),
         checkpoint_minutes=0.0, progress=False)
"""

_STORE = (
    _DATA
    + """
from leignn_jax.training.config import DataSettings
from leignn_jax.training.dataset import load_splits
print("go", flush=True)
load_splits(DataSettings(train=Path(train), cache=Path("store")), 5.0)
"""
)

_QUICKSTART = """
from leignn_jax.quickstart import quickstart
print("go", flush=True)
quickstart("tour", progress=False)
"""


class Kind(NamedTuple):
    """What is killed: a Python script that is run again and again in one folder, what it leaves there, and how many
    processes run it together."""

    script: str
    left: Callable[[Path], dict[str, Any]]
    processes: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all where none is named")
    parser.add_argument("--kills", type=int, default=10, help="of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    file = HERE / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in options.kinds or KINDS:
        found[name] = kill_again_and_again(KINDS[name], options.kills, random.Random(f"{options.seed} {name}"))
        print(name, found[name], flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(table({name: found[name] for name in KINDS if name in found}))


def kill_again_and_again(kind: Kind, kills: int, rng: random.Random) -> dict[str, Any]:
    """How many kills there were, at which moments, after how many runs; and what differed from an undisturbed one."""
    with tempfile.TemporaryDirectory(prefix="kills.") as top:
        # Once to fill the cache of compiled programs, once to take the time.
        for name in ("first", "undisturbed"):
            seconds, code = run(kind, Path(top) / name)
            assert code == 0, f"the undisturbed run ends with {code}"
        right = kind.left(Path(top) / "undisturbed")
        apart = differences(kind.left(Path(top) / "first"), right)
        assert not apart, f"two undisturbed runs differ: {apart}"
        moments: list[float] = []
        runs, differing, failed = 0, [], []
        while True:
            runs += 1
            folder = Path(top) / f"run_{runs}"
            code = -signal.SIGKILL
            while code == -signal.SIGKILL:
                moment = rng.uniform(0.0, seconds) if len(moments) < kills else None
                taken, code = run(kind, folder, moment, rng.randrange(kind.processes))
                if code == -signal.SIGKILL:
                    moments.append(round(taken, 2))
                    print(f"run {runs}: killed after {taken:.1f} of {seconds:.1f} s", flush=True)
            if code != 0:
                failed.append(f"run {runs} after {len(moments)} kills: {(folder / 'errors').read_text()[-500:]}")
                break
            differing += differences(kind.left(folder), right)
            print(f"run {runs}: {'; '.join(differing) or 'nothing differs'}", flush=True)
            shutil.rmtree(folder)
            if len(moments) >= kills:
                break
    return {
        "kills": len(moments),
        "runs": runs,
        "seconds_undisturbed": round(seconds, 1),
        "moments_s": moments,
        "compared": sorted(right),
        "differing": differing,
        "failed": failed,
    }


def run(kind: Kind, folder: Path, moment: float | None = None, victim: int = 0) -> tuple[float, int]:
    """Run the script in a folder and kill it so many seconds after its imports, of several processes the victim first; how
    long it ran since, and its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parents[1] / ".jax_cache"))
    if kind.processes > 1:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            environment["COORDINATOR"] = f"127.0.0.1:{one.getsockname()[1]}"
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    with open(folder / "errors", "w") as errors:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", kind.script],
                cwd=folder,
                env={**environment, "PROCESS": str(number)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for number in range(kind.processes)
        ]
        for process in processes:
            assert process.stdout is not None
            # What CPUs talk by writes lines of its own.
            while (line := process.stdout.readline()) != "go\n":
                assert line.startswith("[Gloo]"), (folder / "errors").read_text()
        begun = time.monotonic()
        try:
            processes[victim].wait(moment)
        except subprocess.TimeoutExpired:
            for process in (processes[victim], *processes):
                process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
    # One that has ended before its kill is done, the other may not be.
    return time.monotonic() - begun, min(process.returncode for process in processes)


# ------------------------------------------------------------------------------------------------------- what is left


def numbers_of_potentials(folder: Path) -> dict[str, Any]:
    """A hash of the arrays of each potential in a folder and below it."""
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, array in sorted(load_file(path).items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
        found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def without_times(path: Path) -> list[dict[str, str]]:
    """A table's rows but for what is measured in seconds."""
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if "second" not in k and "time" not in k} for row in csv.DictReader(file)]


# What a process did since it began: one that is killed after its last epoch compiles nothing when it is started again.
OF_PROCESS = ("ns_per_day", "waiting_fraction", "compiles", "scratch_mib")


def unmeasured(values: Any) -> Any:
    """A nest of results without seconds and what else is told of the process and not of what it made."""
    if not isinstance(values, dict):
        return values
    return {k: unmeasured(v) for k, v in values.items() if "second" not in k and k not in OF_PROCESS}


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders that nobody took away."""
    return sorted(p.name for p in folder.rglob("*") if p.name.startswith(".") or "orbax-checkpoint-tmp" in p.name)


def of_training(folder: Path) -> dict[str, Any]:
    run = folder / "run"
    return {
        **numbers_of_potentials(run),
        "metrics.csv": without_times(run / "metrics.csv"),
        "metrics.json": unmeasured(json.loads((run / "metrics.json").read_text())),
        "leftovers": leftovers(run),
    }


def of_study(folder: Path) -> dict[str, Any]:
    run = folder / "run"
    return {
        **numbers_of_potentials(run),
        "results.csv": (run / "results.csv").read_text(),
        "history.csv": without_times(run / "history.csv"),
        "checkpoints": sorted(p.name for p in (run / "checkpoints").iterdir()),
        "leftovers": leftovers(run),
    }


def of_simulation(folder: Path) -> dict[str, Any]:
    from leignn_jax.simulation.trajectory import read_trajectory

    run = folder / "run"
    frames = read_trajectory(run / "trajectory.h5")
    names = ("step", "time", "positions", "velocities", "forces", "cell", "energy")
    return {
        **{f"trajectory {name}": hashlib.sha256(getattr(frames, name).tobytes()).hexdigest() for name in names},
        "frames": len(frames),
        "thermo.csv": (run / "thermo.csv").read_text(),
        "final.extxyz": (run / "final.extxyz").read_text(),
        "leftovers": leftovers(run),
    }


def of_store(folder: Path) -> dict[str, Any]:
    (store,) = (p for p in (folder / "store").iterdir() if not p.name.startswith("."))
    # A folder of a killed writer stays for an hour, in which another process may still be writing it.
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir()) if p.name != "checked.json"
    }


def of_quickstart(folder: Path) -> dict[str, Any]:
    tour = folder / "tour"
    return {
        "summary.json": unmeasured(json.loads((tour / "summary.json").read_text())),
        **numbers_of_potentials(tour),
        "study/results.csv": without_times(tour / "study" / "results.csv"),
        "report.html": (tour / "report.html").exists(),
        "leftovers": leftovers(tour),
    }


def differences(found: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit."""
    return sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Kills",
        "",
        "| killed | kills | runs | seconds undisturbed | moments of the kills (s) | differing from an undisturbed run |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name, one in found.items():
        moments = ", ".join(f"{m:.1f}" for m in one["moments_s"])
        said = "; ".join([*one["differing"], *one["failed"]]) or f"none of {len(one['compared'])} things"
        lines.append(f"| {name} | {one['kills']} | {one['runs']} | {one['seconds_undisturbed']} | {moments} | {said} |")
    return "\n".join(lines) + "\n"


KINDS = {
    "train": Kind(_TRAIN, of_training),
    "study": Kind(_STUDY, of_study),
    "md-nvt": Kind(_MD.replace("{ensemble}", "nvt"), of_simulation),
    "md-npt": Kind(_MD.replace("{ensemble}", "npt"), of_simulation),
    "store": Kind(_STORE, of_store),
    "search": Kind(_SEARCH, of_study),
    "study-pair": Kind(_PAIR, of_study, processes=2),
    "quickstart": Kind(_QUICKSTART, of_quickstart),
}

if __name__ == "__main__":
    main()
