"""Speed of molecular dynamics: overhead of the engine, ASE, mlip's engine, replicas, and growth with the system.

    python experiments/md_speed/run.py                 # three rounds, about half an hour; `pip install -e '.[peers]'`
    python experiments/md_speed/run.py --parts overhead replicas
    python experiments/md_speed/run.py --table         # results.md and results.png from results.json

Every measurement runs in a process of its own; parts take turns, so that a slow spell of the machine falls on all. A rate
is the difference of two runs of different lengths after a first one, so that start and compilation do not count.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SIZES = (2, 4, 8, 12, 16, 24)  # cubic cells of eight atoms along each direction
KELVIN, TIMESTEP = 300.0, 1.0


def silicon(repeat: int):
    """A supercell of silicon with the velocities of 300 K."""
    import ase.build
    import ase.units

    atoms = ase.build.bulk("Si", cubic=True) * repeat
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3))
    atoms.set_momenta(np.sqrt(ase.units.kB * KELVIN * atoms.get_masses())[:, None] * (momenta - momenta.mean(0)))
    return atoms


def seconds_per_step(run, few: int, many: int) -> float:
    """Of ``run(steps)``, from two lengths after a first run that compiles."""
    run(few)
    times = {}
    for steps in (few, many):
        begun = time.perf_counter()
        run(steps)
        times[steps] = time.perf_counter() - begun
    return (times[many] - times[few]) / (many - few)


def engine(potential, atoms, few: int, many: int, **settings) -> float:
    """Seconds per step of ours, NVE."""
    import leignn_jax as leignn

    def run(steps):
        leignn.simulate(
            potential, atoms, steps=steps, timestep=TIMESTEP, save_every=100, progress=False, **settings
        )  # fmt: skip

    return seconds_per_step(run, few, many)


def overhead() -> dict[str, float]:
    """Bare energy and forces, the engine, and ASE's VelocityVerlet with our calculator, 64 atoms of Si, ms per step."""
    import ase.units
    import jax
    from ase.md.verlet import VelocityVerlet

    import leignn_jax as leignn
    from leignn_jax.simulation.dynamics import evaluate
    from leignn_jax.simulation.ensembles import NVE

    potential, atoms = leignn.load_potential("si"), silicon(2)
    system, state = leignn.differentiable.start(potential, atoms, NVE())
    call = jax.jit(evaluate)
    args = (potential.split_references()[0], system, state.neighbors, state.positions, state.cell)

    def calls(steps):
        for _ in range(steps):
            jax.block_until_ready(call(*args))

    def verlet(steps):
        moving = atoms.copy()
        moving.calc = potential.calculator()
        VelocityVerlet(moving, TIMESTEP * ase.units.fs).run(steps)

    # Three times each and in turns, since the machine's speed changes within seconds.
    rows = {"bare call": [], "engine": [], "ase": []}
    for _ in range(3):
        rows["bare call"].append(seconds_per_step(calls, 50, 450))
        rows["engine"].append(engine(potential, atoms, 200, 800))
        rows["ase"].append(seconds_per_step(verlet, 10, 60))
    return {name: 1e3 * statistics.median(times) for name, times in rows.items()}


def mlip(network: str) -> dict[str, float]:
    """ms per step of mlip's engine, 64 atoms of Si, default config of the network, random parameters.

    Forces of random parameters are none that atoms could follow: the timestep is 0.01 fs, so that its lists last.
    """
    import mlip.models
    from ase.neighborlist import neighbor_list
    from mlip.data import DatasetInfo
    from mlip.simulation.configs import JaxMDSimulationConfig
    from mlip.simulation.enums import MDIntegrator
    from mlip.simulation.jax_md import JaxMDSimulationEngine

    atoms, cutoff = silicon(2), 5.0
    distances = neighbor_list("d", atoms, cutoff)
    info = DatasetInfo(
        atomic_energies_map={14: 0.0},
        graph_cutoff_angstrom=cutoff,
        avg_num_neighbors=len(distances) / len(atoms),
        avg_r_min_angstrom=float(distances.min()),
    )
    network_class = getattr(mlip.models, network)
    force_field = mlip.models.ForceField.from_mlip_network(network_class(network_class.Config(), info), seed=0)
    episodes, steps = 5, 10
    config = JaxMDSimulationConfig(
        num_steps=episodes * steps,
        num_episodes=episodes,
        snapshot_interval=steps,
        timestep_fs=0.01,
        md_integrator=MDIntegrator.NVE_VELOCITY_VERLET,
    )
    simulation = JaxMDSimulationEngine(atoms, force_field, config)
    ends = []
    simulation.attach_logger(lambda _: ends.append(time.perf_counter()))
    simulation.run()
    # The first episode compiles.
    return {f"mlip {network}": 1e3 * statistics.median(np.diff(ends)) / steps}


def replicas() -> dict[str, float]:
    """ms per step of one aspirin molecule and of 16 replicas in one program."""
    from ase.io import read

    import leignn_jax as leignn

    potential = leignn.load_potential("aspirin")
    atoms = read(HERE / "aspirin.xyz")
    rows = {"one molecule": [], "16 replicas": []}
    for _ in range(3):
        rows["one molecule"].append(engine(potential, atoms, 200, 1200, temperature=KELVIN))
        rows["16 replicas"].append(engine(potential, atoms, 200, 400, temperature=KELVIN, replicas=16))
    return {name: 1e3 * statistics.median(times) for name, times in rows.items()}


def size(repeat: int) -> dict[str, float]:
    """ms per step and peak memory of a supercell of silicon."""
    import leignn_jax as leignn

    potential, atoms = leignn.load_potential("si"), silicon(repeat)
    # Some seconds of steps, the renewals of lists among them.
    many = max(6, min(600, round(4e5 / len(atoms))))
    milliseconds = 1e3 * engine(potential, atoms, max(2, many // 4), many)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"atoms": len(atoms), "ms": milliseconds, "MiB": peak}


PARTS = {
    "overhead": overhead,
    "visnet": lambda: mlip("Visnet"),
    "mace": lambda: mlip("Mace"),
    "nequip": lambda: mlip("Nequip"),
    "replicas": replicas,
    **{f"size-{8 * n**3}": (lambda n=n: size(n)) for n in SIZES},
}


def measure(part: str) -> dict:
    """One part in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, __file__, "--measure", part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"part": part, "failed": done.stderr.strip().splitlines()[-1]}
    return {"part": part, **json.loads(done.stdout.splitlines()[-1])}


def table(results: dict) -> str:
    """Everything as Markdown: medians over the rounds, and medians of ratios taken within a round."""
    rows = results["rows"]

    def each(key):
        return [r[key] for r in rows if key in r]

    def ratio(over, under):
        rounds = [{k: v for r in rows if r["round"] == n for k, v in r.items()} for n in range(results["rounds"])]
        found = [r[over] / r[under] for r in rounds if over in r and under in r]
        return statistics.median(found) if found else float("nan")

    lines = ["# Speed of molecular dynamics", "", f"{results['device']}, float32, rounds: {results['rounds']}.", ""]
    lines += ["64 atoms of Si at 300 K, NVE, 1 fs:", "", "| | ms per step | against the engine |", "|---|---:|---:|"]
    names = ["bare call", "engine", "ase", *(f"mlip {n}" for n in ("Visnet", "Nequip", "Mace"))]
    for name in names:
        if each(name):
            lines.append(f"| {name} | {statistics.median(each(name)):.2f} | {ratio(name, 'engine'):.2f} |")
    if each("16 replicas"):
        share = ratio("16 replicas", "one molecule") / 16
        lines += [
            "",
            f"Aspirin: one molecule {statistics.median(each('one molecule')):.3f} ms per step, 16 replicas "
            f"{statistics.median(each('16 replicas')):.3f} ms: {share:.2f} of 16 single runs.",
        ]
    sizes = by_size(rows)
    if sizes:
        slope = np.polyfit(np.log([n for n, *_ in sizes]), np.log([ms for _, ms, _ in sizes]), 1)[0]
        lines += [
            "",
            "| atoms | ms per step | µs per atom and step | ns/day | peak memory (MiB) |",
            "|" + "---:|" * 5,
        ]
        lines += [
            f"| {n} | {ms:.2f} | {1e3 * ms / n:.1f} | {86.4 * TIMESTEP / ms:.3f} | {mib:.0f} |" for n, ms, mib in sizes
        ]
        lines += ["", f"Slope of log time against log atoms: {slope:.2f}."]
    failed = [f"{r['part']} (round {r['round']}): {r['failed']}" for r in rows if "failed" in r]
    return "\n".join([*lines, *(["", "Failed: " + "; ".join(failed)] if failed else [])]) + "\n"


def by_size(rows: list[dict]) -> list[tuple[int, float, float]]:
    """Atoms, ms per step and MiB, medians over rounds."""
    found = sorted({r["atoms"] for r in rows if "atoms" in r})
    of = {n: [r for r in rows if r.get("atoms") == n] for n in found}
    return [(n, *(statistics.median(r[key] for r in of[n]) for key in ("ms", "MiB"))) for n in found]


def plot(results: dict) -> None:
    """Time per step against size, and against others."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    sizes = by_size(results["rows"])
    atoms = [n for n, *_ in sizes]
    left.loglog(atoms, [ms for _, ms, _ in sizes], "o-", label="time per step")
    left.set(xlabel="atoms of Si", ylabel="ms per step", title="growth with the system")
    memory = left.twinx()
    memory.loglog(atoms, [mib for *_, mib in sizes], "s--", color="C1")
    memory.set_ylabel("peak memory of the process (MiB)", color="C1")
    names = ["engine", "ase", *(f"mlip {n}" for n in ("Visnet", "Nequip", "Mace"))]
    shown = {n: [r[n] for r in results["rows"] if n in r] for n in names}
    shown = {n: statistics.median(v) for n, v in shown.items() if v}
    labels = {"engine": "leignn_jax", "ase": "leignn_jax, ASE's MD"}
    bars = right.barh([labels.get(n, n) for n in shown], list(shown.values()), color=["C3", "C3", "0.5", "0.5", "0.5"])
    right.bar_label(bars, fmt="%.3g ms", padding=3)
    right.set(xscale="log", xlabel="ms per step", title="64 atoms of Si, NVE")
    right.set_xlim(right=4 * max(shown.values()))
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(HERE / "results.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only results.md and results.png")
    parser.add_argument("--measure", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(PARTS[options.measure]()))
        return
    file = HERE / "results.json"
    if not options.table:
        import jax

        device = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
        results = {"device": device, "rounds": options.rounds, "rows": []}
        for n in range(options.rounds):
            for part in options.parts:
                if n > 0 and part == f"size-{8 * SIZES[-1] ** 3}":
                    continue  # minutes; once
                row = {"round": n, **measure(part)}
                print(row, flush=True)
                results["rows"].append(row)
                file.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(file.read_text())
    (HERE / "results.md").write_text(table(results))
    plot(results)


if __name__ == "__main__":
    main()
