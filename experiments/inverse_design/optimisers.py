"""Ways down a noisy loss of few numbers, with and without its gradient, each stopped when its budget is spent.

Costs are counted in evaluations of the loss; a value with its gradient costs as many as it takes time, ``price``. Every way
gives its path: ``(cost so far, point that it would return now)``. The loss is ``(point, key) -> number``. Where noise is
fixed it always gets the same key, and so is a smooth function of one sample; else a new one for every call.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize

Path = list[tuple[float, np.ndarray]]


def adam(gradient: Callable, begin: np.ndarray, budget: float, price: float, seed: int, *, rate: float) -> Path:
    """Adam with a rate that falls to zero as half a cosine; new noise for every gradient."""
    steps, keys = int(budget / price), _keys(seed)
    rule = optax.adam(optax.cosine_decay_schedule(rate, steps))
    x, path = np.asarray(begin, float), [(0.0, np.asarray(begin, float))]
    memory: Any = rule.init(x)
    for step in range(steps):
        slope = np.asarray(gradient(x, next(keys))[1], float)
        # A trajectory that broke says nothing about the way down.
        change, memory = rule.update(np.nan_to_num(slope), memory)
        x = x + np.asarray(change)
        path.append((price * (step + 1), x))
    return path


def quasi_newton(
    gradient: Callable, begin: np.ndarray, budget: float, price: float, seed: int, *, scale: float
) -> Path:
    """L-BFGS with fixed noise."""
    key = next(_keys(seed))
    calls, best, path = 0, np.inf, [(0.0, np.asarray(begin, float))]

    def both(y):
        nonlocal calls, best
        if (calls + 1) * price > budget:
            raise _Spent
        calls += 1
        x = begin + scale * y
        value, slope = (np.asarray(a, float) for a in gradient(x, key))
        if value < best:
            best = float(value)
        path.append((price * calls, x if value <= best else path[-1][1]))
        return float(value), scale * slope

    _until_spent(
        lambda: scipy.optimize.minimize(both, np.zeros_like(begin), jac=True, method="L-BFGS-B", options=_NO_END)
    )
    return path


def nelder_mead(loss: Callable, begin: np.ndarray, budget: float, seed: int, *, scale: float) -> Path:
    """Nelder and Mead's simplex with fixed noise; its first corners are ``scale`` apart."""
    key = next(_keys(seed))
    calls, best, path = 0, np.inf, [(0.0, np.asarray(begin, float))]

    def value(x):
        nonlocal calls, best
        if calls + 1 > budget:
            raise _Spent
        calls += 1
        found = float(loss(x, key))
        if found < best:
            best = found
        path.append((float(calls), np.array(x) if found <= best else path[-1][1]))
        return found

    corners = np.stack([begin, *(begin + scale * one for one in np.eye(len(begin)))])
    options = {"initial_simplex": corners, "adaptive": True, "maxfev": 10**9, "xatol": 0.0, "fatol": 0.0}
    _until_spent(lambda: scipy.optimize.minimize(value, begin, method="Nelder-Mead", options=options))
    return path


def evolution(
    loss: Callable, begin: np.ndarray, budget: float, seed: int, *, scale: float, shared: bool = True
) -> Path:
    """CMA-ES (package cma, its own settings); what it returns is its mean.

    shared: points of a generation have one noise, so that they differ by what they are, and the next generation has
        another; else every value has its own.
    """
    import cma

    keys = _keys(seed)
    search = cma.CMAEvolutionStrategy(
        np.asarray(begin, float), scale, {"seed": seed + 1, "verbose": -9, "maxiter": 10**9}
    )
    cost, path = 0.0, [(0.0, np.asarray(begin, float))]
    while cost + search.popsize <= budget:
        points = search.ask()
        key = next(keys)
        values = np.array([float(loss(x, key if shared else next(keys))) for x in points])
        search.tell(points, np.where(np.isfinite(values), values, 1e6).tolist())
        cost += len(points)
        path.append((cost, np.array(search.mean)))
    return path


class _Spent(Exception):
    pass


_NO_END = {"maxfun": 10**9, "maxiter": 10**9, "ftol": 0.0, "gtol": 0.0}


def _until_spent(minimise: Callable[[], Any]) -> None:
    with contextlib.suppress(_Spent):
        minimise()


def _keys(seed: int):
    number = 0
    while True:
        yield jax.random.fold_in(jax.random.key(seed), number)
        number += 1
