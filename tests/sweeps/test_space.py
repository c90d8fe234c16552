"""Search spaces: members, groups, and words for mistakes."""

from pathlib import Path

import pytest

from leignn_jax.errors import ConfigError
from leignn_jax.sweeps.space import group_key, load_study, make_study, members, place_of

BASE = {"data": {"train": "x.extxyz"}, "model": {"preset": "small"}}


def test_grid_takes_all_combinations():
    study = make_study({"base": BASE, "space": {"optimizer.learning_rate": [1e-3, 2e-3], "run.seed": [0, 1, 2]}})
    found = members(study)
    assert len(found) == 6
    assert {(c.optimizer.learning_rate, c.run.seed) for _, c in found} == {
        (lr, s) for lr in (1e-3, 2e-3) for s in (0, 1, 2)
    }
    assert all(c.model == {"preset": "small"} for _, c in found)


def test_random_draws_are_in_range_and_fixed_by_the_seed():
    values = {
        "base": BASE,
        "search": "random",
        "samples": 20,
        "space": {
            "optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]},
            "optimizer.ema_decay": {"uniform": [0.9, 0.99]},
            "run.seed": {"integers": [0, 3]},
            "model.features": [8, 16],
        },
    }
    points = [p for p, _ in members(make_study(values))]
    assert len(points) == 20
    assert all(1e-4 <= p["optimizer.learning_rate"] <= 1e-2 for p in points)
    assert {p["run.seed"] for p in points} == {0, 1, 2, 3}
    assert points == [p for p, _ in members(make_study(values))]
    assert points != [p for p, _ in members(make_study({**values, "seed": 1}))]


def test_groups_are_what_changes_shapes():
    space = {
        "optimizer.learning_rate": [1e-3, 2e-3],
        "loss.energy_weight": [1.0, 2.0],
        "optimizer.schedule": ["cosine", "constant"],
        "model.features": [8, 16],
    }
    keys = [group_key(c, space) for _, c in members(make_study({"base": BASE, "space": space}))]
    assert len(keys) == 16
    assert len(set(keys)) == 2
    with_stress = {"base": BASE, "space": {"loss.stress_weight": [0.0, 1.0, 2.0]}}
    assert len({group_key(c, space) for _, c in members(make_study(with_stress))}) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spce": {}}, r"unknown key 'spce': did you mean 'space'\?"),
        (
            {"base": {**BASE, "model": {}, "run": {"start_from": "si"}}, "space": {"run.seed": [0, 1]}},
            r"space\.run\.seed: .* all be the same",
        ),
        ({"base": BASE}, "space: name at least one setting"),
        ({"base": BASE, "space": {"run.sed": [1]}}, "did you mean 'seed'"),
        ({"base": BASE, "space": {"seed": [1]}}, r"write section\.key"),
        ({"base": BASE, "space": {"run.seed": {"integers": [0, 3]}}}, "a grid needs a list"),
        ({"base": BASE, "search": "random", "space": {"run.seed": {"integers": [3, 0]}}}, "low < high"),
        (
            {"base": BASE, "search": "random", "space": {"optimizer.learning_rate": {"log_uniform": [0, 1]}}},
            "positive",
        ),
        ({"base": BASE, "search": "best", "space": {"run.seed": [1]}}, "search = 'best'"),
        ({"base": BASE, "space": {"optimizer.learning_rate": [-1.0]}}, "greater than 0"),
        ({"base": BASE, "space": {"run.seed": [0, 1]}, "samples": 50}, "samples: search grid makes no use of it"),
        ({"base": BASE, "space": {"run.seed": [0, 1]}, "patience_minutes": 5.0}, "patience_minutes: search grid"),
        ({"base": BASE, "space": {"run.seed": [0, 1]}, "evolution": {"every": 2}}, "evolution: search grid"),
        ({"base": BASE | {"run": {"devices": 4}}, "space": {"run.seed": [0, 1]}}, r"base\.run\.devices: a study's"),
        ({"base": BASE, "space": {"run.devices": [1, 2]}}, r"space\.run\.devices: members can't differ in it"),
        ({"base": BASE | {"run": {"wandb": "mine"}}, "space": {"run.seed": [0, 1]}}, r"base\.run\.wandb: members"),
    ],
)
def test_mistakes_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        make_study(values)


def test_a_base_that_is_a_config_with_its_members_alone():
    values = {"base": BASE | {"model": {"degree": 2}}, "space": {"model.variant": ["higher_order"]}}
    made = make_study(values)
    assert place_of(made) == Path("run")


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_study(tmp_path / "absent.yaml")
    path = tmp_path / "study.yaml"
    path.write_text("base: {model: {preset: small}}\nspace: {run.seed: [0, 1]}\n")
    assert len(members(load_study(path))) == 2
    path.write_text("space: {run.seed: [0], run.seed: [1]}\n")
    with pytest.raises(ConfigError, match="stands twice"):
        load_study(path)
