"""Gradients through 100 steps of a trained potential against finite differences, in every mode, for every argument.

    python experiments/gradients/check.py       # about an hour on two CPU cores; check.json and check.md as it goes, and
                                                # goes on where it was (delete check.json to begin anew)

float64, 1 fs, 300 K, fixed noise: 8 and 64 atoms of Si, aspirin; 32 atoms of argon by Lennard-Jones at 80 K. Model
parameters, positions, velocities, masses, cell and temperature are each moved along a random direction; the loss is a
random combination of the total energy after every ten steps and the last positions. Finite differences are central and of
fourth order; their step is the best of four, since too large ones truncate and too small ones round. The reversible mode is
held against plain reverse mode as well. The simulators of jax-md run through `leignn.simulate` too: how far it ends from
the rollout.
"""

import json
import os
import platform
import time
from pathlib import Path

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from jax_md import simulate

import leignn_jax as leignn
from leignn_jax.differentiable.rollout import without_constants
from leignn_jax.simulation import JaxMD
from leignn_jax.simulation.dynamics import BOLTZMANN
from leignn_jax.simulation.ensembles import NVE, InParts, Langevin, NoseHoover
from leignn_jax.simulation.simple_models import LennardJones

HERE = Path(__file__).resolve().parent
STEPS = 100
AMOUNTS = (1e-2, 1e-3, 1e-4, 1e-5)


def silicon(repeat: int):
    atoms = ase.build.bulk("Si", cubic=True) * repeat
    atoms.rattle(0.05, seed=0)
    return atoms


def argon():
    atoms = ase.build.bulk("Ar", a=5.4, cubic=True) * 2
    atoms.rattle(0.05, seed=1)
    return atoms


def aspirin():
    return ase.io.read(HERE.parent / "md_speed" / "aspirin.xyz")


SYSTEMS = {
    "argon, 32 atoms": (LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0), argon, 80.0),
    "Si, 8 atoms": ("si", lambda: silicon(1), 300.0),
    "Si, 64 atoms": ("si", lambda: silicon(2), 300.0),
    "aspirin": ("aspirin", aspirin, 300.0),
}
ENSEMBLES = {
    "NVE": lambda kelvin: NVE(),
    "Nose-Hoover": lambda kelvin: NoseHoover(kelvin, 100.0),
    "Langevin": lambda kelvin: Langevin(kelvin, 0.01),
    "jax-md nvt_nose_hoover": lambda kelvin: JaxMD(simulate.nvt_nose_hoover, kT=kelvin * BOLTZMANN, tau=100.0),
    "jax-md nvt_langevin": lambda kelvin: JaxMD(simulate.nvt_langevin, kT=kelvin * BOLTZMANN, gamma=0.01),
}
CASES = [(system, ensemble) for system in SYSTEMS for ensemble in list(ENSEMBLES)[:3]]
CASES += [("Si, 64 atoms", ensemble) for ensemble in list(ENSEMBLES)[3:]]


def compare(name: str, ensemble_name: str) -> dict:
    """Relative errors by argument, for each mode."""
    run = leignn.differentiable
    (potential, build, start), make = SYSTEMS[name], ENSEMBLES[ensemble_name]
    potential, atoms = leignn.load_potential(potential) if isinstance(potential, str) else potential, build()
    model = without_constants(potential)
    kelvin = jnp.asarray(start)
    system, state = run.start(potential, atoms, make(kelvin), temperature=start, dtype="float64", skin=1.0)
    modes = [m for m in run.MODES if m != "reversible" or isinstance(make(kelvin), InParts)]
    rng = np.random.default_rng(0)

    def direction(tree, relative):
        return jax.tree.map(lambda x: relative * jnp.asarray(rng.normal(size=np.shape(x))) * (0.1 + jnp.abs(x)), tree)

    parameters = getattr(model, "params", model)
    moves = {
        "parameters": direction(jax.tree.map(jnp.asarray, parameters), 0.01),
        "positions": 0.01 * jnp.asarray(rng.normal(size=state.positions.shape)),
        "velocities": 0.1 * jnp.asarray(rng.normal(size=state.velocities.shape)) * jnp.abs(state.velocities).mean(),
        "masses": direction(system.masses, 0.05),
    }
    if ensemble_name != "NVE":
        moves["temperature"] = 0.1 * kelvin
    if atoms.pbc.all():
        moves["cell"] = 0.02 * jnp.asarray(rng.normal(size=state.cell.shape))
    weights = jnp.asarray(rng.normal(size=STEPS // 10))
    pulls = jnp.asarray(rng.normal(size=state.positions.shape))

    def loss(amounts, rollout):
        def moved(kind, tree):
            if kind not in moves:
                return tree
            return jax.tree.map(lambda x, d: x + amounts[kind] * d, tree, moves[kind])

        begin = state.replace(**{k: moved(k, getattr(state, k)) for k in ("positions", "velocities", "cell")})
        of_model = moved("parameters", parameters)
        out = rollout(
            of_model if parameters is model else model.replace(params=of_model),
            make(moved("temperature", kelvin)),
            system.replace(masses=moved("masses", system.masses)),
            begin,
            1.0,
            STEPS,
            observe=run.observables.total_energy,
            every=10,
        )
        return (weights * out.seen[:, 0]).sum() + (pulls * out.state.positions).mean()

    here = {kind: jnp.zeros(()) for kind in moves}
    plain = jax.jit(lambda amounts: loss(amounts, run.rollout))
    found, seconds = {}, {}
    for mode in modes:
        program = run.value_and_grad(loss, mode)
        jax.block_until_ready(program(here))
        begun = time.perf_counter()
        found[mode] = jax.block_until_ready(program(here))[1]
        seconds[mode] = time.perf_counter() - begun
    row = {"system": name, "ensemble": ensemble_name, "seconds": seconds, "errors": {}}
    for kind in moves:
        slopes = []
        for h in AMOUNTS:
            f = {k: float(plain({**here, kind: jnp.asarray(k * h)})) for k in (-2, -1, 1, 2)}
            slopes.append((8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h))
        row["errors"][kind] = {mode: min(abs(float(found[mode][kind]) - s) / abs(s) for s in slopes) for mode in modes}
        print(name, ensemble_name, kind, float(found["reverse"][kind]), row["errors"][kind], flush=True)
    if "reversible" in modes:
        pairs = [(float(found["reversible"][kind]), float(found["reverse"][kind])) for kind in moves]
        row["reversible from reverse"] = max(abs(one - other) / abs(other) for one, other in pairs)
    if isinstance(make(kelvin), JaxMD):
        end = run.rollout(potential, make(start), system, state, 1.0, STEPS).state
        simulated = leignn.simulate(
            potential, atoms, make(start), steps=STEPS, temperature=start, dtype="float64", skin=1.0, progress=False
        )
        row["simulate from rollout"] = float(np.abs(simulated.atoms.positions - np.asarray(end.positions[0])).max())
    return row


def main() -> None:
    file = HERE / "check.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    there = {(row["system"], row["ensemble"]) for row in rows}
    with jax.enable_x64(True):
        for case in CASES:
            if case[:2] in there:
                continue
            rows.append(compare(*case))
            file.write_text(json.dumps(rows, indent=1) + "\n")
            (HERE / "check.md").write_text(table(rows))


def table(rows: list[dict]) -> str:
    kinds = sorted({kind for row in rows for kind in row["errors"]})
    lines = [
        "# Gradients through 100 steps against finite differences",
        "",
        f"Largest relative error of the modes ({', '.join(leignn.differentiable.MODES)}; of jax-md's not reversible) from "
        "differences, and of reversible from reverse mode; float64, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), jax {jax.__version__}.",
        "",
        "| system | ensemble | " + " | ".join(kinds) + " | reversible from reverse | s per gradient, by mode |",
        "|---|---|" + "---:|" * (len(kinds) + 2),
    ]
    for row in rows:
        cells = [f"{max(row['errors'][k].values()):.1e}" if k in row["errors"] else "–" for k in kinds]
        undone = f"{row['reversible from reverse']:.1e}" if "reversible from reverse" in row else "–"
        times = ", ".join(f"{s:.2f}" for s in row["seconds"].values())
        lines.append(f"| {row['system']} | {row['ensemble']} | " + " | ".join(cells) + f" | {undone} | {times} |")
    ends = {row["ensemble"]: row["simulate from rollout"] for row in rows if "simulate from rollout" in row}
    if ends:
        found = "; ".join(f"{name} {value:.1e} Å" for name, value in ends.items())
        lines += ["", f"`leignn.simulate` from the rollout after 100 steps, largest coordinate: {found}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
