"""A plan says what then happens, and leaves nothing behind."""

import jax
import pytest
from frames import copper
from typer.testing import CliRunner

import leignn_jax as leignn
from leignn_jax.cli import app
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError
from leignn_jax.sweeps import plan
from leignn_jax.sweeps.plan import plan_sweep

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

MODEL = {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_hdf5(folder / "train.h5", copper(20))
    return {
        "base": {
            "data": {"train": str(folder / "train.h5"), "batch_size": 4, "validation_fraction": 0.2},
            "model": MODEL,
            "run": {"out": str(folder / "study"), "epochs": 3},
        },
        "space": {"optimizer.learning_rate": [1e-3, 2e-3, 3e-3], "model.features": [8, 12]},
        "members_at_once": 2,
    }


@pytest.mark.slow
def test_groups_lots_and_programs_are_those_of_the_study(study, tmp_path):
    study = {**study, "base": {**study["base"], "run": {**study["base"]["run"], "out": str(tmp_path / "study")}}}
    plan = plan_sweep(study, progress=False)
    assert not (tmp_path / "study").exists()
    assert [(one.members, one.at_once, one.lots, one.settings) for one in plan] == [
        (3, 2, 2, {"model.features": 8}),
        (3, 2, 2, {"model.features": 12}),
    ]
    assert [one.compiles for one in plan] == leignn.sweep(study, progress=False).compiles
    small, large = plan
    # At least the states of two members: parameters, their mean and two moments, float32.
    potential = leignn.load_potential(tmp_path / "study" / "best.safetensors")
    parameters = sum(x.size for x in jax.tree.leaves(potential.params))
    assert large.memory > small.memory
    assert large.memory > 2 * 4 * 4 * parameters
    assert all(one.seconds > one.compiling > 0 for one in plan)


def test_a_search_is_planned_by_its_shapes(study, monkeypatch):
    """Eight trials of three epochs: all take the first, half of them the second, a fourth the third."""
    monkeypatch.setattr(plan, "measure", lambda loop: plan.Costs(2.0, 0.125, 0.25, 1 << 20))
    space = {"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "model.features": [8, 12]}
    asked = {**study, "space": space, "search": "tpe", "samples": 8, "members_at_once": 2, "trials_per_shape": 2}
    whole = plan_sweep(asked, progress=False)
    assert [(one.members, one.at_once, one.lots, one.settings) for one in whole] == [
        (4, 2, 2, {"model.features": 8}),
        (4, 2, 2, {"model.features": 12}),
    ]
    assert [one.compiles for one in whole] == [1, 1]
    halved = plan_sweep({**asked, "halving": {"first_epochs": 1, "factor": 2}}, progress=False)
    for a, b in zip(whole, halved, strict=True):
        training = [one.seconds - one.compiling - one.reading for one in (a, b)]
        assert training[1] / training[0] == pytest.approx(1.75 / 3)
    with pytest.raises(ConfigError, match="a range of shapes can't be planned"):
        plan_sweep({**asked, "space": {**space, "model.features": {"integers": [8, 12]}}}, progress=False)


def test_from_the_command_line(study, tmp_path):
    import yaml

    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "space": {"run.seed": [0, 1]}}))
    out = CliRunner().invoke(app, ["sweep", str(tmp_path / "study.yaml"), "--plan", "--quiet"])
    assert out.exit_code == 0, out.output
    lines = out.stdout.splitlines()
    assert lines[0].startswith("members,at once,lots,programs,MiB per device,minutes")
    assert lines[1].startswith("2,2,1,1,")
    assert lines[-1].endswith("all")


def test_a_plan_of_nothing_is_told(study):
    with pytest.raises(ConfigError, match="space: name at least one setting"):
        plan_sweep({**study, "space": {}}, progress=False)
