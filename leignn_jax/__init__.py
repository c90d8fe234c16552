"""LEIGNN in JAX: an interatomic potential to train, to simulate with and to differentiate through."""

from leignn_jax.graph import Graph
from leignn_jax.interop.torch_checkpoint import import_torch_checkpoint
from leignn_jax.models.config import LEIGNNConfig, preset
from leignn_jax.models.leignn import LEIGNN
from leignn_jax.potential import Potential, Prediction
from leignn_jax.potential_file import load_potential

__version__ = "0.1.0"

__all__ = [
    "LEIGNN",
    "Graph",
    "LEIGNNConfig",
    "Potential",
    "Prediction",
    "import_torch_checkpoint",
    "load_potential",
    "preset",
]
