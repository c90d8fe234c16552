"""The Flax module of a config, and its parameters at the start of training."""

from __future__ import annotations

import jax
import numpy as np
from flax import linen as nn

from leignn_jax.errors import ConfigError
from leignn_jax.graph import Graph
from leignn_jax.models.config import HigherOrderConfig, LEIGNNConfig, ModelConfig
from leignn_jax.models.leignn import LEIGNN
from leignn_jax.neighbors import Pairs


def network(config: ModelConfig) -> nn.Module:
    """The module that a config describes; called with a graph and pair vectors it gives a :class:`models.leignn.Output`.

    Raises:
        ConfigError: it is no config of a model.
    """
    if isinstance(config, HigherOrderConfig):
        # Here, since e3nn-jax takes three seconds to import.
        from leignn_jax.models.higher_order import HigherOrder

        return HigherOrder(config)
    if isinstance(config, LEIGNNConfig):
        return LEIGNN(config)
    example = "leignn_jax.preset('small', elements=('Si',))"
    raise ConfigError(f"config must be of a model, such as {example}, not {config!r:.60}.")


def init_params(config: ModelConfig, key: jax.Array):
    """Parameters at the start of training, a nested dict of float32 arrays; ConfigError where the model has no elements."""
    if not config.elements:
        raise ConfigError("elements: the model needs the symbols of what it is for, such as elements=('Si',).")
    pair = Graph.from_pairs(
        positions=np.array([[0.0, 0.0, 0.0], [0.5 * config.cutoff, 0.0, 0.0]]),
        numbers=np.array([config.numbers[0]] * 2),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        pairs=Pairs(np.array([0]), np.array([1]), np.zeros((1, 3)), np.array([0.5 * config.cutoff])),
    )
    return network(config).init(key, pair)["params"]
