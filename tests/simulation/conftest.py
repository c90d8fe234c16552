"""What tests of simulations share."""

import pytest

from leignn_jax.simulation import dynamics


@pytest.fixture
def roomy(monkeypatch):
    """Lists that need not be enlarged: in a cell of four atoms all images of a pair come and go together."""
    plan = dynamics.plan_sizes

    def planned(*where):
        sizes = plan(*where)
        return sizes._replace(neighbors=sizes.neighbors + 20, pairs=sizes.pairs + 60)

    monkeypatch.setattr(dynamics, "plan_sizes", planned)
    return plan
