"""Molecular dynamics: the engine, the files that it writes and goes on from; your own models and biases."""

from __future__ import annotations

import importlib
from typing import Any

# Imported when first asked for, as in leignn.simulation.ensembles.Langevin.
_ROOMS = (
    "biases",
    "collective_variables",
    "dynamics",
    "engine",
    "ensembles",
    "h5md",
    "jax_md",
    "metadynamics",
    "model_sums",
    "own_models",
    "settings",
    "simple_models",
    "state",
    "thermo",
    "trajectory",
)
_HOME = {
    "Adds": "model_sums",
    "AtomEnergy": "own_models",
    "EnergyModel": "dynamics",
    "GraphEnergy": "own_models",
    "JaxMD": "jax_md",
    "Metadynamics": "metadynamics",
    "ModelSum": "model_sums",
    "PairEnergy": "own_models",
    "Umbrella": "biases",
}

__all__ = [*_HOME, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
