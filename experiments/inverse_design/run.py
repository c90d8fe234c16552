"""Controls of simulations found by gradients through time, and by searches without gradients, at equal cost.

    pip install cma                                        # of the search CMA-ES
    python experiments/inverse_design/run.py trap          # two minutes on one CPU core
    python experiments/inverse_design/run.py answers       # of silicon: gradients beside differences; six minutes
    python experiments/inverse_design/run.py silicon       # half an hour
    python experiments/inverse_design/report.py            # results.md, trap.png, silicon.png

What is done stands at the top of trap.py and silicon.py, the ways down in optimisers.py. results.json is written after every
run. Every way gets the same number of evaluations of the loss; a gradient counts as many as it takes time, measured first.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optimisers
import silicon
import trap

import leignn_jax as leignn
from leignn_jax.simulation.ensembles import Langevin

run = leignn.differentiable
RESULTS = Path(__file__).resolve().parent / "results.json"
DEVICE = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
SEEDS = range(5)
BUDGET = 400
SILICON_SEEDS, SILICON_BUDGET, JUDGES = range(3), 36, 16


def put(part: str, name: str, value) -> None:
    """Into results.json."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault(part, {})["device"] = DEVICE
    results[part][name] = value
    RESULTS.write_text(json.dumps(results) + "\n")
    print(part, name, str(value)[:200], flush=True)


def run_trap(only: str | None) -> None:
    begin = trap.start()

    def mean(argument, rollout):
        return trap.works(argument["knots"], begin, argument["key"], rollout).mean()

    both = run.value_and_grad(mean, "reverse")
    plain = jax.jit(lambda knots, key: mean({"knots": knots, "key": key}, run.rollout))

    def loss(knots, key):
        return plain(jnp.asarray(knots, jnp.float32), key)

    def gradient(knots, key):
        value, slope = both({"knots": jnp.asarray(knots, jnp.float32), "key": key})
        return value, slope["knots"]

    straight, best = trap.straight(), trap.best_knots()
    price = known_price("trap") if only else prices("trap", loss, gradient, straight, repeats=200)
    put("trap", "known", {
        "infimum": trap.BEST, "best_knots": float(trap.mean_work(best)), "straight": float(trap.mean_work(straight)),
        "theory_by_knots": float(trap.mean_work(trap.theory(trap.TIMES))), "knots": best.tolist(),
        "theory": trap.theory(trap.TIMES).tolist(), "times": trap.TIMES.tolist(), "kT": trap.BOLTZMANN * trap.KELVIN,
    })  # fmt: skip
    put(
        "trap", "simulated", {name: simulated(begin, knots) for name, knots in (("straight", straight), ("best", best))}
    )
    ways = {
        "Adam": lambda seed: optimisers.adam(gradient, straight, BUDGET, price, seed, rate=0.15),
        "L-BFGS, fixed noise": lambda seed: optimisers.quasi_newton(gradient, straight, BUDGET, price, seed, scale=1.0),
        "CMA-ES": lambda seed: optimisers.evolution(loss, straight, BUDGET, seed, scale=0.5),
        "CMA-ES, noise not shared": lambda seed: optimisers.evolution(
            loss, straight, BUDGET, seed, scale=0.5, shared=False
        ),
        "Nelder-Mead, fixed noise": lambda seed: optimisers.nelder_mead(loss, straight, BUDGET, seed, scale=0.5),
    }
    for name, way in chosen(ways, only):
        rows = []
        for seed in SEEDS:
            began = time.perf_counter()
            path = way(seed)
            rows.append({
                "seed": seed, "seconds": time.perf_counter() - began, "cost": [c for c, _ in path],
                "work": trap.mean_work(np.stack([x for _, x in path])).tolist(), "knots": path[-1][1].tolist(),
            })  # fmt: skip
            print(name, seed, rows[-1]["work"][-1], flush=True)
        put("trap", name, rows)


# ------------------------------------------------------------------------------------------------------------- silicon


def run_answers(_: str | None) -> None:
    """How the energy of each replica answers to a bath hotter by a factor, along 1.2 ps: gradients beside differences."""
    pool, replicas, every, steps = silicon.damaged(seed=0), 8, 20, 600
    system, state = silicon.drawn(pool, jax.random.key(7), replicas)

    def along(logarithm):
        bath = Langevin(1000.0 * jnp.exp(logarithm), silicon.FRICTION)
        settings = {"observe": run.observables.potential_energy, "every": every, **silicon.LIMITS}
        seen = run.rollout(pool.potential, bath, system, state, silicon.TIMESTEP, steps, **settings).seen
        return (seen - pool.crystal) / system.numbers.shape[1]

    zero, one = jnp.zeros(()), jnp.ones(())
    energies = jax.jit(along)
    slope = jax.jit(lambda x: jax.jvp(along, (x,), (one,))[1])
    rows = {"fs": (silicon.TIMESTEP * every * np.arange(1, steps // every + 1)).tolist()}
    rows["energy"] = np.asarray(energies(zero)).tolist()
    rows["gradient"] = np.asarray(slope(zero)).tolist()
    put("answers", "constant 1,000 K", rows)
    for by in (0.02, 0.2):
        rows[f"difference {by:g}"] = np.asarray((energies(by * one) - energies(-by * one)) / (2 * by)).tolist()
        put("answers", "constant 1,000 K", rows)


def run_silicon(only: str | None) -> None:
    pool, judge = silicon.damaged(seed=0), silicon.damaged(seed=1, pool=JUDGES)
    begin = np.zeros(silicon.KNOTS)

    def mean(argument, rollout):
        return silicon.healed(argument["numbers"], pool, argument["key"], rollout).mean()

    both = run.value_and_grad(mean, "remat")

    def gradient(numbers, key):
        value, slope = both({"numbers": jnp.asarray(numbers, jnp.float32), "key": key})
        return value, slope["numbers"]

    plain = jax.jit(lambda numbers, key: silicon.healed(numbers, pool, key).mean())
    held_out = jax.jit(lambda kelvin, key: silicon.energy(kelvin, judge, key, replicas=JUDGES))

    def loss(numbers, key):
        return plain(jnp.asarray(numbers, jnp.float32), key)

    def judged(kelvin) -> list[float]:
        return np.asarray(held_out(jnp.asarray(kelvin, jnp.float32), jax.random.key(99))).tolist()

    price = known_price("silicon") if only else prices("silicon", loss, gradient, begin, repeats=5)
    if not only:
        put("silicon", "simple", {name: judged(schedule) for name, schedule in silicon.SIMPLE.items()})
    ways = {
        "Adam": lambda seed: optimisers.adam(gradient, begin, SILICON_BUDGET, price, seed, rate=0.8),
        "CMA-ES": lambda seed: optimisers.evolution(loss, begin, SILICON_BUDGET, seed, scale=1.5),
    }
    for name, way in chosen(ways, only):
        rows = json.loads(RESULTS.read_text())["silicon"].get(name, []) if only else []
        for seed in SILICON_SEEDS[len(rows) :]:
            began = time.perf_counter()
            path = way(seed)
            row = {"seed": seed, "seconds": time.perf_counter() - began, "cost": [c for c, _ in path]}
            row["kelvin"] = [np.asarray(silicon.kelvin(x)).tolist() for _, x in path]
            # By other replicas, where half and all of the budget is spent.
            where = int(np.searchsorted(row["cost"], 0.5 * row["cost"][-1])), len(path) - 1
            row["judged"] = [[row["cost"][i], judged(row["kelvin"][i])] for i in where]
            rows.append(row)
            put("silicon", name, rows)


def prices(part: str, loss: Callable, gradient: Callable, point: np.ndarray, repeats: int) -> float:
    """Evaluations of the loss that one value with its gradient costs, by time: the fastest of each, by turns, since other
    work on the machine only adds."""
    key, times = jax.random.key(0), ([], [])
    for _ in range(repeats + 1):
        for one, kept in zip((loss, gradient), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(one(point, key))
            kept.append(time.perf_counter() - began)
    forward, back = (min(kept[1:]) for kept in times)
    put(part, "price", {"loss_s": forward, "gradient_s": back, "ratio": back / forward})
    return back / forward


def known_price(part: str) -> float:
    """As measured before."""
    return json.loads(RESULTS.read_text())[part]["price"]["ratio"]


def chosen(ways: dict[str, Callable], only: str | None):
    """All ways, or the one of this name."""
    return [(name, way) for name, way in ways.items() if only in (None, name)]


def simulated(begin: trap.Start, knots: np.ndarray, runs: int = 64) -> list[float]:
    """Mean work in eV of many particles, its standard error, and the spread of one."""
    works = jax.jit(lambda key: trap.works(jnp.asarray(knots, jnp.float32), begin, key))
    each = np.concatenate([np.asarray(works(jax.random.key(1000 + r))) for r in range(runs)])
    return [float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each))), float(each.std(ddof=1))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("trap", "answers", "silicon"))
    parser.add_argument(
        "--only",
        help="one way down alone, such as CMA-ES, at the price of a gradient as measured before; for silicon only the "
        "seeds that are not in results.json yet",
    )
    given = parser.parse_args()
    {"trap": run_trap, "answers": run_answers, "silicon": run_silicon}[given.what](given.only)


if __name__ == "__main__":
    main()
