"""First states, of one model or of the members of a population.

Everything that a member changes or obeys is an array of its place on the leading axis, so that a place is given to another
member by writing into it: nothing is compiled anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from leignn_jax.potential import Potential
from leignn_jax.training.config import TrainConfig
from leignn_jax.training.prepared import Prepared
from leignn_jax.training.programs import no_sums
from leignn_jax.training.step import TrainState, start_state


def first_state(config: TrainConfig, prepared: Prepared) -> TrainState:
    """A member's state before its first step; what is prepared may have the seed of another."""
    potential = prepared.potential
    if config.run.start_from is None:
        potential = potential.replace(params=Potential.create(potential.config, jax.random.key(config.run.seed)).params)
    hyper = config.hyperparameters(prepared.steps_per_epoch)
    return start_state(potential, hyper, config.optimizer.algorithm, config.optimizer.freeze)


def first_states(configs: Sequence[TrainConfig], prepared: Prepared) -> tuple[TrainState, Any]:
    """States and an epoch's sums before the first step, all members' on a leading axis; on the host."""
    states = [first_state(config, prepared) for config in configs]
    running = no_sums(states[0], prepared, configs[0])
    state = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *states)
    return state, jax.tree.map(lambda x: np.zeros((len(states), *x.shape), x.dtype), running)
