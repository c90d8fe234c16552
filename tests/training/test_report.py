"""The page of a run."""

from types import SimpleNamespace

import jax
import pytest
from copper_runs import MODEL, settings

import leignn_jax as leignn
from leignn_jax.plotting import new_figure
from leignn_jax.training import report
from leignn_jax.training.config import make_config

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")


def test_no_text_of_a_run_is_html(files, tmp_path, monkeypatch):
    """Names of files, settings and metadata: whatever they hold, a browser shows it and runs nothing."""
    script = "<script>alert('&')"
    out = tmp_path / script
    out.mkdir()
    (out / "config.yaml").write_text(f"recipe: {script}")
    config = make_config(settings(files, out))
    model = leignn.preset(MODEL["preset"], elements=("Cu",), features=8, layers=1, num_radial=4)
    metadata = {script: {"a": script}}
    potential = leignn.Potential.create(model, jax.random.key(0), metadata=metadata)
    monkeypatch.setattr(report, "compare", lambda *_: SimpleNamespace(metrics={script: 1.0}))
    monkeypatch.setattr(report, "parity", lambda *_: new_figure(1)[0])
    splits = SimpleNamespace(validation=None, test=SimpleNamespace(size=1, frame=None))
    report.finish_report(config, splits, potential, [], {script: script})
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert script not in report.page(script, [report.table([[script]], [script]), report.picture(b"", script)])
