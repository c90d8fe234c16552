"""FIRE of jax-md and of this package: steps and time to a minimum, with and without the cell.

    python experiments/relaxation/run.py        # about 20 minutes on two CPU cores; results.json, results.md

float64, bundled potentials, five seeds of displacements of 0.1 Å each. A structure has arrived when its largest force is
below the goal (with the cell: the largest component of the stress below 0.01 GPa too), and it is whole: no atom further than
3 Å from all others, since forces vanish too where a molecule was torn to pieces. jax-md's FIRE runs with its defaults, and
with the largest timestep of ours. Both sides evaluate the same model with the same lists; jax-md's cell needs
the energy's derivative by the strain as well, which is a second evaluation.
"""

import json
import os
import platform
import time
from functools import partial
from pathlib import Path

import ase.build
import ase.io
import ase.neighborlist
import jax
import jax.numpy as jnp
import numpy as np
from jax_md import minimize, space

import leignn_jax as leignn
from leignn_jax.properties.relax import Goal, fire_start, fire_step
from leignn_jax.simulation.dynamics import GIGAPASCAL, evaluate, make_lists, make_system
from leignn_jax.simulation.model_sums import without_constants

HERE = Path(__file__).resolve().parent
SEEDS, STEPS, SKIN = 5, 400, 2.0
GOALS = (0.1, 0.01, 0.001)  # eV/Å
STRESS = 0.01  # GPa
WHOLE = 3.0  # Å


def silicon():
    return "si", ase.build.bulk("Si", cubic=True) * 2


def vacancy():
    atoms = ase.build.bulk("Si", cubic=True) * 2
    del atoms[0]
    return "si", atoms


def strained():
    atoms = ase.build.bulk("Si", cubic=True) * 2
    deform = np.eye(3) + np.array([[0.03, 0.02, 0.0], [0.0, -0.02, 0.01], [0.0, 0.0, 0.02]])
    atoms.set_cell(atoms.cell @ deform, scale_atoms=True)
    return "si", atoms


def aspirin():
    return "aspirin", ase.io.read(HERE.parent / "md_speed" / "aspirin.xyz")


CASES = {
    "Si, 64 atoms": (silicon, False),
    "Si, 63 atoms, a vacancy": (vacancy, False),
    "aspirin": (aspirin, False),
    "Si, 64 atoms, cell strained and sheared": (strained, "full"),
}


def begin(build, seed):
    name, atoms = build()
    atoms.rattle(0.1, seed=seed)
    model = without_constants(leignn.load_potential(name))
    system = make_system([atoms], np.dtype("float64"), hold_momentum=False)
    positions, cell = jnp.asarray(atoms.positions)[None], jnp.asarray(np.asarray(atoms.cell))[None]
    lists = make_lists(system.numbers, positions, cell, system.pbc, model.cutoff, SKIN, np.dtype("float64"))
    return model, system, lists, positions, cell


def residuals(model, system, lists, positions, cell, moves_cell):
    """Largest force [eV/Å] and stress [GPa]."""
    _, forces, stress = evaluate(model, system, lists, positions, cell)
    force = jnp.sqrt((forces**2).sum(-1)).max()
    return force, GIGAPASCAL * jnp.abs(stress).max() if moves_cell else 0.0 * force


def loneliest(positions, cell, pbc) -> float:
    """Å from its nearest neighbour to the atom that is furthest from it."""
    atoms = ase.Atoms(f"H{len(positions)}", positions=positions, cell=cell, pbc=pbc)
    nearest = np.full(len(atoms), np.inf)
    first, distance = ase.neighborlist.neighbor_list("id", atoms, 2 * WHOLE)
    np.minimum.at(nearest, first, distance)
    return float(nearest.max())


def ours(model, system, lists, positions, cell, moves_cell):
    """A function of the number of steps and of whether each is looked at: what was seen and the last positions."""
    goal = Goal(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    @partial(jax.jit, static_argnames=("steps", "looked_at"))
    def run(model, lists, positions, cell, *, steps, looked_at):
        state, _ = fire_start(model, system, lists, positions, cell, goal, cell=moves_cell)

        def one(state, _):
            seen = residuals(model, system, lists, state.positions, state.cell, moves_cell) if looked_at else None
            return fire_step(model, system, state, goal, moves_cell), seen

        state, seen = jax.lax.scan(one, state, None, length=steps)
        return seen, (state.positions, state.cell)

    return partial(run, model, lists, positions, cell)


def of_jax_md(model, system, lists, positions, cell, moves_cell, **numbers):
    """The same by jax-md."""

    @partial(jax.jit, static_argnames=("steps", "looked_at"))
    def run(model, lists, positions, cell, *, steps, looked_at):
        if moves_cell:
            # jax-md's box has the lattice vectors as columns.
            def energy(fractions, box, perturbation=None, **_):
                vectors = box.T if perturbation is None else box.T @ perturbation.T
                return evaluate(model, system, lists, (fractions @ vectors)[None], vectors[None])[0][0]

            box = cell[0].T
            _, shift = space.periodic_general(box, fractional_coordinates=True)
            start, step = minimize.fire_descent_box(energy, shift, **numbers)
            state = start(positions[0] @ jnp.linalg.inv(cell[0]), box)
        else:

            def force(positions):
                return evaluate(model, system, lists, positions[None], cell)[1][0]

            start, step = minimize.fire_descent(force, space.free()[1], **numbers)
            state = start(positions[0])

        def where(state):
            if moves_cell:
                return (state.position @ state.box.T)[None], state.box.T[None]
            return state.position[None], cell

        def one(state, _):
            seen = residuals(model, system, lists, *where(state), moves_cell) if looked_at else None
            return step(state), seen

        state, seen = jax.lax.scan(one, state, None, length=steps)
        return seen, where(state)

    return partial(run, model, lists, positions, cell)


MINIMIZERS = {
    "ours": ours,
    "jax-md": of_jax_md,
    "jax-md, dt_max 1": partial(of_jax_md, dt_max=1.0),
}


def main() -> None:
    rows = []
    with jax.enable_x64(True):
        for name, (build, moves_cell) in CASES.items():
            steps = {kind: {goal: [] for goal in GOALS} for kind in MINIMIZERS}
            torn = dict.fromkeys(MINIMIZERS, 0)
            programs = {}
            for seed in range(SEEDS):
                start = begin(build, seed)
                for kind, make in MINIMIZERS.items():
                    programs[kind] = make(*start, moves_cell)
                    (force, stress), (last, cell) = programs[kind](steps=STEPS, looked_at=True)
                    pbc = np.asarray(start[1].pbc[0])
                    whole = loneliest(np.asarray(last[0]), np.asarray(cell[0]), pbc) <= WHOLE
                    torn[kind] += not whole
                    for goal in GOALS:
                        there = whole & (np.asarray(force) <= goal) & (np.asarray(stress) <= STRESS)
                        steps[kind][goal].append(int(there.argmax()) if there.any() else None)
                print(name, seed, {k: [v[g][-1] for g in GOALS] for k, v in steps.items()}, torn, flush=True)
            times = {kind: [] for kind in MINIMIZERS}
            for turn in range(6):
                for kind, program in programs.items():
                    begun = time.perf_counter()
                    jax.block_until_ready(program(steps=50, looked_at=False))
                    if turn:
                        times[kind].append((time.perf_counter() - begun) / 50)
            seconds = {kind: float(np.median(t)) for kind, t in times.items()}
            rows.append({"case": name, "steps": steps, "torn": torn, "seconds per step": seconds})
            (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "# FIRE of jax-md and of this package",
        "",
        f"Median steps of {SEEDS} seeds to a largest force of {', '.join(map(str, GOALS))} eV/Å (with the cell: and "
        f"{STRESS} GPa); of at most {STEPS}, – where not all arrived. Torn: seeds after which an atom is "
        f"further than {WHOLE} Å from all others. float64, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), jax {jax.__version__}. Time per step: median of five runs of 50 steps, by turns.",
        "",
        "| case | minimizer | " + " | ".join(f"steps to {goal}" for goal in GOALS) + " | torn | ms per step |",
        "|---|---|" + "---:|" * (len(GOALS) + 2),
    ]
    for row in rows:
        for kind, found in row["steps"].items():
            cells = [f"{np.median(n):.0f}" if None not in n else "–" for n in found.values()]
            lines.append(
                f"| {row['case']} | {kind} | "
                + " | ".join(cells)
                + f" | {row['torn'][kind]} | {1e3 * row['seconds per step'][kind]:.2f} |"
            )
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
