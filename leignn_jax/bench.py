"""``leignn bench``: milliseconds per evaluation and per step of molecular dynamics, of one potential on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import ase
import jax
import numpy as np

import leignn_jax
from leignn_jax.arguments import check_atoms, check_dtype, check_sequence, check_whole
from leignn_jax.differentiable.rollout import start
from leignn_jax.errors import ConfigError
from leignn_jax.potential import Potential, check_potential
from leignn_jax.simulation.dynamics import evaluate
from leignn_jax.simulation.engine import simulate
from leignn_jax.simulation.ensembles import NVE

# A first run of so many steps compiles, and is what the longer ones are compared with.
_FEW = 10
_KELVIN, _TIMESTEP = 300.0, 1.0


def bench(
    potential: Potential,
    atoms: ase.Atoms,
    *,
    sizes: Sequence[int] = (),
    steps: int = 100,
    repeats: int = 3,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Time energy and forces, and steps of NVE at 300 K and 1 fs; compilation does not count.

    Args:
        sizes: numbers of atoms; the structure is repeated until it has at least so many. Without any, it is as it is.
        steps: of molecular dynamics; a multiple of 10.
        repeats: the median of so many measurements.
        dtype: "float32" or "float64".

    Returns:
        Plain JSON types: ``device``, ``platform``, ``dtype``, versions, and ``rows``, for each size ``atoms``,
        ``energy_forces_ms``, ``md_ms_per_step``, ``steps_per_second`` and ``microseconds_per_atom_and_step``; the last three
        None where other work on the machine took more than the steps.

    Raises:
        ConfigError: numbers out of range, or a structure to repeat that is not periodic.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
    """
    check_potential(potential)
    check_atoms(atoms)
    check_whole("repeats", repeats, 1, 1000)
    if check_whole("steps", steps, _FEW) % _FEW:
        raise ConfigError(f"bench: steps must be a multiple of {_FEW}.")
    for size in check_sequence("sizes", sizes):
        check_whole("sizes", size, 1, 10_000_000)
    check_dtype(dtype)
    structures = [repeated(atoms, size) for size in sizes] or [atoms]
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "dtype": dtype,
        "jax": jax.__version__,
        "leignn_jax": leignn_jax.__version__,
        "md_steps": steps,
        "repeats": repeats,
        "rows": [_row(potential, one, steps, repeats, dtype) for one in structures],
    }


def repeated(atoms: ase.Atoms, size: int) -> ase.Atoms:
    """The structure repeated along its periodic directions, the shortest first, until it has ``size`` atoms or more."""
    if len(atoms) == 0 or (size > len(atoms) and not atoms.pbc.any()):
        raise ConfigError(f"{len(atoms)} atoms without a periodic direction can't be repeated to {size}.")
    counts = np.ones(3, int)
    lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
    while len(atoms) * counts.prod() < size:
        counts[np.argmin(lengths * counts)] += 1
    return atoms.repeat(tuple(counts))


def _row(potential: Potential, atoms: ase.Atoms, steps: int, repeats: int, dtype: str) -> dict[str, Any]:
    with jax.enable_x64(dtype == "float64"):
        system, state = start(potential, atoms, NVE(), temperature=_KELVIN, dtype=dtype)
        model, _ = potential.split_references()
        arguments = (model, system, state.neighbors, state.positions, state.cell)
        once = jax.jit(evaluate).lower(*arguments).compile()

        def calls(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(once(*arguments))

        calls(1)
        count = max(1, min(100, int(0.2 / max(_seconds(calls, 1), 1e-6))))
        bare = statistics.median(_seconds(calls, count) / count for _ in range(repeats))

    def run(count: int) -> None:
        simulate(
            potential,
            atoms,
            steps=count,
            timestep=_TIMESTEP,
            temperature=_KELVIN,
            save_every=_FEW,
            log_every=_FEW,
            dtype=dtype,
            progress=False,
        )

    run(_FEW)
    per_step = statistics.median(
        (_seconds(run, _FEW + steps) - _seconds(run, _FEW)) / steps for _ in range(repeats)
    )  # fmt: skip
    # What other work makes of the difference of two times may be below zero: it tells nothing then.
    told = per_step > 0
    return {
        "atoms": len(atoms),
        "energy_forces_ms": round(1e3 * bare, 4),
        "md_ms_per_step": round(1e3 * per_step, 4) if told else None,
        "steps_per_second": round(1 / per_step, 3) if told else None,
        "microseconds_per_atom_and_step": round(1e6 * per_step / len(atoms), 4) if told else None,
    }


def _seconds(run: Callable[[int], None], count: int) -> float:
    begun = time.perf_counter()
    run(count)
    return time.perf_counter() - begun
