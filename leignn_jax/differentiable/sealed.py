"""Functions that give the same bits in every program.

A compiler joins a function with what surrounds it, and then rounds otherwise: it sums in another order, or adds a product
before it is rounded. A sealed function is compiled by itself, from the same lines wherever it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def sealed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, which the compiler leaves as it is: neither joined with its surroundings nor cut down.

    It may be batched. What it closes over counts as an argument; Python numbers and static fields are parts of its lines.
    """

    @jax.jit
    def alone(*arguments):
        # The attribute is of the call, not of what is inside.
        with set_xla_metadata(inlineable=None):
            return function(*arguments)

    def called(*arguments):
        with set_xla_metadata(inlineable="false"):
            results = alone(*arguments)
        # Results that are not used would be dropped from the call, and with them the lines that they come of.
        return jax.lax.optimization_barrier(results)

    return called
