"""Populations: members as alone, one compilation per group, meshes that agree, divergence that stays at home."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from eight_devices import environment_of
from frames import copper

import leignn_jax as leignn
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

MODEL = {"preset": "small", "features": 8, "layers": 1, "num_radial": 4, "cutoff": 4.0, "repulsion": False}

# Every number that a study may vary, each with a value far from the default.
NUMBERS = {
    "run.seed": 3,
    "optimizer.learning_rate": 2e-3,
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 5.0,
    "optimizer.final_fraction": 0.5,
    "optimizer.plateau_factor": 0.3,
    "optimizer.plateau_patience": 1,
    "optimizer.beta1": 0.7,
    "optimizer.beta2": 0.9,
    "optimizer.epsilon": 1e-2,
    "optimizer.weight_decay": 0.3,
    "optimizer.clip_norm": 0.1,
    "optimizer.ema_decay": 0.5,
    "loss.energy_weight": 20.0,
    "loss.forces_weight": 0.1,
    "loss.stress_weight": 5.0,
    "loss.final_energy_weight": 9.0,
    "loss.final_forces_weight": 3.0,
    "loss.final_stress_weight": 7.0,
    "loss.ramp": [0.1, 0.2],
    "loss.huber_delta": 1.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_hdf5(folder / "train.h5", copper(28))
    return folder / "train.h5"


def base(data, out, epochs=3):
    return {
        "data": {"train": str(data), "batch_size": 4, "validation_fraction": 0.14},
        "model": MODEL,
        "loss": {"stress_weight": 0.1},
        "optimizer": {"learning_rate": 5e-3, "warmup_epochs": 1},
        "run": {"out": str(out), "epochs": epochs},
    }


def study(data, out, space, epochs=3, **more):
    return {"base": base(data, out, epochs), "space": space, **more}


def close(a, b, rtol=2e-3, atol=2e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


@pytest.mark.slow
def test_members_are_runs_alone_after_100_steps(data, tmp_path):
    """One member for every number, each 102 steps; then the same run alone, with the population's own seed and data."""
    from leignn_jax.sweeps.ledger import LotKeeper
    from leignn_jax.sweeps.space import NUMBERS as KNOWN
    from leignn_jax.training.config import make_config
    from leignn_jax.training.loop import Loop
    from leignn_jax.training.prepared import prepare
    from leignn_jax.training.programs import make_programs

    known = {f"{section}.{name}" for section, names in KNOWN.items() for name in names}
    assert known == NUMBERS.keys()
    configs = []
    for name, value in NUMBERS.items():
        values = base(data, tmp_path / "population", 17)
        # Large steps are chaotic: rounding that differs grows tenfold every few of them, whatever the code does. And Adam's
        # usual epsilon turns a gradient that is zero but for rounding into a whole step, one way or the other.
        values["optimizer"] |= {"learning_rate": 1e-3, "epsilon": 1e-3}
        section, key = name.split(".")
        values[section] = {**values.get(section, {}), key: value}
        configs.append(make_config(values))
    prepared = prepare(configs[0])
    programs = make_programs(configs[0], prepared, None, many=True)
    loop = Loop(configs, prepared, programs, LotKeeper(tmp_path / "checkpoints", tmp_path, 2), many=True)
    assert loop.go(False)
    assert programs.compiles == 1
    for name, config, one in zip(NUMBERS, configs, loop.members(), strict=True):
        alone = leignn.train(config, [f"run.out={tmp_path / name}"], progress=False)
        assert alone.history[-1]["step"] == 102
        best = min(alone.history, key=lambda r: r["validation_loss"])
        row = one.history[one.best_epoch - 1]
        assert row["validation_loss"] == pytest.approx(best["validation_loss"], rel=5e-3), name
        if one.best_epoch == best["epoch"]:
            assert one.potential is not None
            close(one.potential.params, alone.potential.params, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_numbers_change_what_they_name(data, tmp_path):
    """No two members of a population with one number changed each end alike."""
    space = {"optimizer.learning_rate": [1e-3, 5e-3], "optimizer.weight_decay": [0.0, 0.3], "run.seed": [0, 1]}
    result = leignn.sweep(study(data, tmp_path / "s", space, epochs=1), progress=False)
    losses = [row["validation_loss"] for row in result.rows]
    assert len(set(losses)) == 8
    assert losses == sorted(losses)
    assert result.compiles == [1]


def test_a_study_leaves_a_folder(data, tmp_path):
    space = {"model.features": [8, 12], "optimizer.learning_rate": [1e-3, 1e30], "run.seed": [0]}
    values = study(data, tmp_path / "<script>", space, epochs=2)
    values["base"]["optimizer"]["clip_norm"] = 1e30
    result = leignn.sweep(values, progress=False)
    assert len(result.compiles) == 2
    out = result.out
    with open(out / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    diverged = [row for row in result.rows if row["diverged_at_step"] is not None]
    assert [row["optimizer.learning_rate"] for row in diverged] == [1e30, 1e30]
    assert result.rows[0]["diverged_at_step"] is None
    assert result.rows[0]["validation_forces_mae_mev_per_angstrom"] > 0
    names = {p.name for p in out.iterdir()}
    assert {"study.yaml", "history.csv", "curves.png", "settings.png", "report.html", "best.safetensors"} <= names
    assert "<script" not in (out / "report.html").read_text()
    assert "&lt;script&gt;" in (out / "report.html").read_text()
    best = leignn.load_potential(out / "best.safetensors")
    assert best.config == result.best.config
    # What the row says is what the potential does.
    loaded = leignn.load_potential(out / "potentials" / f"{result.rows[0]['member']:03d}.safetensors")
    close(loaded.params, result.best.params, 0, 0)


def test_lots_are_filled_up_and_compile_once(data, tmp_path):
    space = {"run.seed": [0, 1, 2]}
    together = leignn.sweep(study(data, tmp_path / "a", space, epochs=1), progress=False)
    lots = leignn.sweep(study(data, tmp_path / "b", space, epochs=1, members_at_once=2), progress=False)
    assert lots.compiles == [1]
    assert [r["member"] for r in lots.rows] == [r["member"] for r in together.rows]
    for a, b in zip(together.potentials, lots.potentials, strict=True):
        close(a.params, b.params)


def test_committee(data, tmp_path):
    result = leignn.sweep(study(data, tmp_path / "c", {"run.seed": [0, 1, 2]}, epochs=1), progress=False)
    members = leignn.committee(result.potentials)
    (atoms,) = copper(1, 7)
    found = leignn.committee_predict(members, atoms)
    alone = [p.predict(atoms) for p in result.potentials]
    energies = np.array([p.energy for p in alone])
    forces = np.array([p.forces for p in alone])
    assert found.energy == pytest.approx(energies.mean(), abs=1e-4)
    assert found.energy_std == pytest.approx(energies.std(), rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(found.forces, forces.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.forces_std, forces.std(0), atol=1e-5)
    np.testing.assert_allclose(found.stress, np.mean([p.stress for p in alone], axis=0), atol=1e-6)
    other = leignn.Potential.create(leignn.preset("small", elements=("Cu",)), jax.random.key(0))
    with pytest.raises(ConfigError, match="differ in their config"):
        leignn.committee([result.best, other])


MESH = """
import json, sys
import leignn_jax
values = json.loads(sys.argv[1])
if "space" in values:
    result = leignn_jax.sweep(values, progress=False)
    print(json.dumps(sorted([row["member"], row["validation_loss"]] for row in result.rows)))
else:
    print(json.dumps([row["train_loss"] for row in leignn_jax.train(values, progress=False).history]))
"""


def on_eight_devices(values):
    environment = environment_of(8)
    done = subprocess.run(
        [sys.executable, "-c", MESH, json.dumps(values)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_meshes_agree(data, tmp_path):
    """8x1, 4x2 and 1x8 virtual devices; the same global batch, so 8 accumulated, 4 and 1 on each."""
    found = []
    for mesh, accumulate in (((8, 1), 8), ((4, 2), 4), ((1, 8), 1)):
        values = study(data, tmp_path / f"{mesh}", {"run.seed": list(range(8))}, epochs=2, mesh=mesh)
        values["base"]["data"] |= {"batch_size": 1, "accumulate": accumulate}
        found.append(on_eight_devices(values))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)


@pytest.mark.slow
def test_data_parallel_training_is_training_with_accumulation(data, tmp_path):
    values = base(data, tmp_path / "parallel", 3)
    values["data"]["batch_size"] = 1
    parallel = on_eight_devices({**values, "run": {**values["run"], "devices": 8}})
    values["data"]["accumulate"] = 8
    values["run"]["out"] = str(tmp_path / "alone")
    alone = [row["train_loss"] for row in leignn.train(values, progress=False).history]
    np.testing.assert_allclose(parallel, alone, rtol=1e-4)


def test_too_few_devices(data, tmp_path):
    with pytest.raises(ConfigError, match="xla_force_host_platform_device_count"):
        leignn.sweep(study(data, tmp_path / "m", {"run.seed": [0]}, mesh=[64, 2]), progress=False)
