"""The tour: every part does what its words say, and the page can be looked at."""

import json
from types import SimpleNamespace

import ase.io
import pytest

import leignn_jax.quickstart as tour
from leignn_jax.data import bundled_data, read_frames
from leignn_jax.errors import ConfigError
from leignn_jax.quickstart import _inspect, quickstart


def test_bundled_data_are_what_their_source_says():
    for name, train, test in (("si", 214, 25), ("ethanol", 1000, 1000)):
        folder = bundled_data(name)
        assert len(read_frames(folder / "train.extxyz.xz")) == train
        assert len(read_frames(folder / "test.extxyz.xz")) == test
        text = (folder / "SOURCE.md").read_text()
        assert "Licence" in text
        assert "Source" in text
    assert len(ase.io.read(bundled_data("water") / "liquid.xyz")) == 192
    with pytest.raises(ConfigError, match="did you mean 'ethanol'"):
        bundled_data("etanol")


def test_the_first_part_draws_the_data(tmp_path):
    part = _inspect(tmp_path, False)
    assert "214 DFT frames" in part.words
    assert part.pictures[0][0].startswith(b"\x89PNG")
    assert any(row[0] == "duplicates" for row in part.rows)


def test_a_simulation_that_is_asked_to_stop_ends_the_tour(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "simulate", lambda *_, **__: SimpleNamespace(summary={"signal": "SIGINT"}))
    with pytest.raises(KeyboardInterrupt):
        tour._simulate(tmp_path, False)


@pytest.mark.slow
def test_quickstart(tmp_path):
    facts = quickstart(tmp_path / "tour", progress=False)
    assert facts == json.loads((tmp_path / "tour" / "summary.json").read_text())
    trained, bundled = (facts["evaluate"][k]["forces_mae_mev_per_angstrom"] for k in ("trained just now", "bundled"))
    assert bundled < 20 < trained < 120
    assert facts["simulate"]["conserved_mev_per_atom"] < 1.0
    slope = facts["differentiate"]
    assert slope["by_temperature_mev_per_kelvin"] == pytest.approx(slope["by_differences"], rel=2e-2)
    page = (tmp_path / "tour" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 7
    for number in range(1, 7):
        assert f"<h2>{number}. " in page
