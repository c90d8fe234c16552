"""Data sets that ship with the package, small and under free licences; SOURCE.md beside each says where it is from."""

from __future__ import annotations

from pathlib import Path

from leignn_jax.errors import ConfigError
from leignn_jax.models.config import did_you_mean

_FOLDER = Path(__file__).parents[1] / "resources" / "data"


def bundled_data(name: str) -> Path:
    """The folder with train.extxyz.xz and test.extxyz.xz of ``"si"`` (mlearn Si) or ``"ethanol"`` (rMD17 ethanol), or
    liquid.xyz of ``"water"``: 64 molecules at 300 K and the density of water, to begin a simulation with.

    Raises:
        ConfigError: another name.
    """
    names = sorted(p.name for p in _FOLDER.iterdir() if p.is_dir())
    if name not in names:
        raise ConfigError(f"{name!r} does not ship with the package{did_you_mean(name, names)} One of {names}.")
    return _FOLDER / name
