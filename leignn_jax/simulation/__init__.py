"""Molecular dynamics: the engine, and the files that it writes and goes on from."""

from __future__ import annotations

import importlib
from typing import Any

# Imported when first asked for, as in leignn.simulation.ensembles.Langevin.
_ROOMS = (
    "dynamics",
    "engine",
    "ensembles",
    "h5md",
    "jax_md",
    "settings",
    "simple_models",
    "state",
    "thermo",
    "trajectory",
)

__all__ = ["JaxMD", *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "JaxMD":
        return importlib.import_module(f"{__name__}.jax_md").JaxMD
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
