"""LEIGNN in JAX: an interatomic potential to train, to simulate with and to differentiate through."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leignn_jax.data.readers import read_frames as read_frames
    from leignn_jax.exported import load_exported as load_exported
    from leignn_jax.fitting.api import fit as fit
    from leignn_jax.graph import Graph as Graph
    from leignn_jax.interop.jax_md import neighbor_list as neighbor_list
    from leignn_jax.interop.torch_checkpoint import import_torch_checkpoint as import_torch_checkpoint
    from leignn_jax.models.config import LEIGNNConfig as LEIGNNConfig
    from leignn_jax.models.config import preset as preset
    from leignn_jax.models.leignn import LEIGNN as LEIGNN
    from leignn_jax.potential import Potential as Potential
    from leignn_jax.potential import Prediction as Prediction
    from leignn_jax.potential_file import load_potential as load_potential
    from leignn_jax.properties.relax import relax as relax
    from leignn_jax.simulation.engine import simulate as simulate
    from leignn_jax.sweeps.calibration import calibrate as calibrate
    from leignn_jax.sweeps.committee import CommitteeModel as CommitteeModel
    from leignn_jax.sweeps.committee import committee as committee
    from leignn_jax.sweeps.committee import committee_predict as committee_predict
    from leignn_jax.sweeps.label import label as label
    from leignn_jax.sweeps.select import select as select
    from leignn_jax.sweeps.study import sweep as sweep
    from leignn_jax.training.api import train as train
    from leignn_jax.training.evaluate import evaluate as evaluate

__version__ = "0.1.0"

_KNOWN_BAD = {
    "0.10.2": "gives wrong numbers on CPU",
    "0.11.0": "has a slow scatter on GPU",
    "0.11.1": "breaks flax",
}


def _warn_of_known_bad(version: str) -> None:
    if version in _KNOWN_BAD:
        warnings.warn(f"jax {version} {_KNOWN_BAD[version]}: install another version of jax.", stacklevel=3)


_warn_of_known_bad(importlib.metadata.version("jax"))

# Imported when first asked for: the command line prints its help without waiting for JAX.
_HOME = {
    "CommitteeModel": "sweeps.committee",
    "LEIGNN": "models.leignn",
    "Graph": "graph",
    "LEIGNNConfig": "models.config",
    "Potential": "potential",
    "Prediction": "potential",
    "calibrate": "sweeps.calibration",
    "committee": "sweeps.committee",
    "committee_predict": "sweeps.committee",
    "evaluate": "training.evaluate",
    "fit": "fitting.api",
    "import_torch_checkpoint": "interop.torch_checkpoint",
    "label": "sweeps.label",
    "load_exported": "exported",
    "load_potential": "potential_file",
    "neighbor_list": "interop.jax_md",
    "preset": "models.config",
    "read_frames": "data.readers",
    "simulate": "simulation.engine",
    "relax": "properties.relax",
    "select": "sweeps.select",
    "sweep": "sweeps.study",
    "train": "training.api",
}

# Rooms that are used by their own names, as in leignn.analysis.diffusivity.
_ROOMS = ("analysis", "differentiable", "properties", "simulation")

__all__ = [*_HOME, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
