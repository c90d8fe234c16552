"""Whole fits: what they leave, and that a killed one goes on bit for bit."""

import json

import ase.build
import ase.io
import pytest
from frames import copper
from typer.testing import CliRunner

import leignn_jax as leignn
from leignn_jax.cli import app
from leignn_jax.data.readers import write_hdf5
from leignn_jax.errors import ConfigError
from leignn_jax.training import loop

pytestmark = pytest.mark.usefixtures("fast_compiles")

SAMPLING = {"temperature": 300.0, "timestep": 1.0, "steps": 40, "every": 4, "replicas": 1, "effective": 0.9}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    write_hdf5(folder / "train.h5", copper(12, 0))
    ase.io.write(folder / "cu.xyz", ase.build.bulk("Cu", cubic=True, a=3.7))
    common = {"structure": str(folder / "cu.xyz"), "period": 2, "weight": 1.0}
    return {
        "data": {"train": str(folder / "train.h5"), "batch_size": 4, "validation_fraction": 0.3},
        "model": {
            "preset": "small",
            "features": 8,
            "layers": 1,
            "num_radial": 4,
            "cutoff": 4.0,
            "repulsion": True,
            "global_nodes": False,
        },
        "optimizer": {"learning_rate": 2e-2, "warmup_epochs": 0, "ema_decay": 0.5},
        "run": {"epochs": 3, "checkpoint_minutes": 0},
        "targets": [
            {**common, "name": "p", "observable": "pressure", "value": 20.0, "uncertainty": 5.0, "sampling": SAMPLING},
        ],
    }


@pytest.mark.slow
def test_a_fit_that_dies_goes_on_to_the_same_bits(settings, tmp_path, monkeypatch):
    """In the middle of an epoch, with samples drawn before; the report has targets and frames, before and after."""

    def at(out):
        return {**settings, "run": {**settings["run"], "out": str(tmp_path / out)}}

    whole = leignn.fit(at("whole"), progress=False)
    metrics = json.loads((whole.out / "metrics.json").read_text())
    target = metrics["targets"]["p"]
    assert target["deviation_after"] < target["deviation_before"]
    assert metrics["validation"] != metrics["validation_before"]
    page = (whole.out / "report.html").read_text()
    assert "pressure (GPa)" in page
    assert "validation before" in page
    row = whole.history[-1]
    assert row["target_p_deviation"] ** 2 == pytest.approx(row["targets_loss"])

    class DiedError(Exception):
        pass

    pull = loop.Loop._pull

    def dying(run, number):
        if int(run.carry[0].step) == 3:
            run.folder.wait()
            raise DiedError
        return pull(run, number)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "_pull", dying)
        with pytest.raises(DiedError):
            leignn.fit(at("killed"), progress=False)
    again = leignn.fit(at("killed"), progress=False)
    times = ("seconds", "frames_per_second")
    assert [{k: v for k, v in row.items() if k not in times} for row in again.history] == [
        {k: v for k, v in row.items() if k not in times} for row in whole.history
    ]
    for name in ("potential.safetensors", "last.safetensors"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_from_the_command_line(settings, tmp_path):
    (tmp_path / "fit.yaml").write_text(json.dumps({**settings, "targets": [{"observable": "presure"}]}))
    out = CliRunner().invoke(app, ["fit", str(tmp_path / "fit.yaml")])
    assert out.exit_code == 1
    assert "mean 'pressure'" in str(out.exception or out.output)


def test_references_are_kept_of_a_potential_only(settings):
    data = {**settings["data"], "reference_energies": "keep"}
    with pytest.raises(ConfigError, match=r"needs run\.start_from"):
        leignn.fit({**settings, "data": data}, progress=False)
