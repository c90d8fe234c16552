"""Evolution: who is replaced by whom, and settings that stay in their space."""

import numpy as np

from leignn_jax.sweeps.places import Evolution, perturbed
from leignn_jax.sweeps.space import Range, make_study
from leignn_jax.training.standing import Standing, Trained


def test_who_diverged_is_replaced_and_nobody_copies_him():
    asked = make_study(
        {
            "base": {"data": {"train": "none.h5"}, "run": {"out": "nowhere"}},
            "space": {"optimizer.learning_rate": {"uniform": [0.1, 0.9]}},
            "search": "evolution",
            "samples": 4,
            "evolution": {"every": 1},
        }
    )
    settings = [{"optimizer.learning_rate": 0.5}] * 4
    standing = Standing.start(4)
    standing.epoch = 1
    for i, loss in enumerate([0.3, None, 0.2, float("nan")]):
        diverged = 3 if i == 1 else None
        standing.histories[i].append({"epoch": 1, "validation_loss": loss, "diverged_at_step": diverged})
        standing.ended[i] = diverged is not None

    def trained(place):
        return Trained(None, 0, [])

    (change,) = Evolution(asked, list(settings), 4).decide(standing, trained)
    assert (change.place, change.source) == (3, 2)


def test_perturbed_settings_stay_in_their_space():
    rng = np.random.default_rng(0)
    for choices, value in (
        (Range(uniform=(0.0, 1.0)), 0.9),
        (Range(log_uniform=(1e-3, 1.0)), 1e-3),
        (Range(integers=(1, 3)), 2),
        (["a", "b", "c"], "c"),
    ):
        found = [perturbed(value, choices, 1.25, rng) for _ in range(50)]
        if isinstance(choices, Range):
            low, high = choices.bounds()
            assert all(low <= x <= high for x in found)
            assert len(set(found)) == 2
        else:
            assert set(found) == {"b", "c"}


def evolution(losses, members, fraction=0.25):
    """Who is replaced by whom."""
    asked = make_study(
        {
            "base": {"data": {"train": "none.h5"}, "run": {"out": "nowhere"}},
            "space": {"optimizer.learning_rate": {"uniform": [0.1, 0.9]}},
            "search": "evolution",
            "samples": len(losses),
            "evolution": {"every": 1, "fraction": fraction},
        }
    )
    standing = Standing.start(len(losses))
    standing.epoch = 1
    for i, loss in enumerate(losses):
        standing.histories[i].append({"epoch": 1, "validation_loss": loss, "diverged_at_step": None})
    settings = [{"optimizer.learning_rate": 0.5} for _ in losses]
    changes = Evolution(asked, settings, members).decide(standing, lambda place: Trained(None, 0, []))
    return [(change.place, change.source) for change in changes]


def test_who_fills_a_lot_up_neither_takes_part_nor_counts():
    assert evolution([1.0, 5.0, *[5.0] * 6], members=2) == [(1, 0)]
    assert evolution([5.0, 4.0, 3.0, 2.0, *[1.0] * 4], members=4) == [(0, 3)]


def test_of_few_members_one_is_replaced():
    assert evolution([1.0, 99.0, 2.0], members=3) == [(1, 0)]
    assert evolution([2.0, 1.0], members=2) == [(0, 1)]
    assert evolution([2.0], members=1) == []
