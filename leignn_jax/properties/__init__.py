"""Properties of structures at rest: minima, vibrations and phonons, elastic constants."""

from __future__ import annotations

import importlib
from types import ModuleType

# Imported when first asked for, as in leignn.properties.phonons.phonons.
_ROOMS = ("elasticity", "phonons", "relax", "second_derivatives", "vibrations")

__all__ = [*_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
