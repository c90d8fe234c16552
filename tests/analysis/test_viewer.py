"""Which viewer is taken, and the words where there is none; py3Dmol stands in as a recorder where it is missing."""

import sys
import types

import pytest
from ase.build import bulk, molecule

from leignn_jax.analysis import view, viewer
from leignn_jax.errors import ConfigError


class Recorder:
    """Writes down what is called on it."""

    def __init__(self, **settings):
        self.calls = [("view", settings)]

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, arguments))


@pytest.fixture
def installed(monkeypatch):
    def only(*names):
        monkeypatch.setattr(viewer, "_installed", lambda name: name in names)
        monkeypatch.setitem(sys.modules, "py3Dmol", types.SimpleNamespace(view=Recorder))

    return only


def test_words_where_nothing_is_installed(installed):
    installed()
    with pytest.raises(ModuleNotFoundError, match="Install one: pip install py3Dmol"):
        view(molecule("H2O"))
    with pytest.raises(ModuleNotFoundError, match="nglview is not installed: pip install nglview"):
        view(molecule("H2O"), "nglview")
    installed("x3d")
    with pytest.raises(ModuleNotFoundError, match="can show this"):
        view([molecule("H2O")] * 2)
    with pytest.raises(ConfigError, match="x3d shows one structure, not 2"):
        view([molecule("H2O")] * 2, "x3d")
    with pytest.raises(ConfigError, match="'vmd' is not known"):
        view(molecule("H2O"), "vmd")
    with pytest.raises(ConfigError, match="empty"):
        view([])


def test_py3dmol_gets_frames_and_cell(installed):
    installed("py3Dmol", "x3d")
    picture = view([bulk("Cu", cubic=True)] * 3, size=(300, 200))
    calls = dict(picture.calls)
    assert calls["view"] == {"width": 300, "height": 200}
    text, kind = calls["addModelsAsFrames"]
    assert kind == "xyz"
    assert text.split("\n").count("4") == 3
    lines = [arguments[0] for name, arguments in picture.calls if name == "addLine"]
    assert len(lines) == 12
    lengths = [sum((e["end"][k] - e["start"][k]) ** 2 for k in "xyz") ** 0.5 for e in lines]
    assert lengths == pytest.approx([3.61] * 12)
    assert "animate" in calls
    alone = dict(view(molecule("H2O")).calls)
    assert "addModel" in alone
    assert not {"animate", "addLine"} & set(alone)


def test_x3d_by_ase():
    pytest.importorskip("IPython")
    assert "x3d" in view(molecule("H2O"), "x3d").data.lower()


def test_no_text_of_a_structure_reaches_the_page(installed):
    installed("py3Dmol")
    atoms = molecule("H2O")
    atoms.info["name"] = atoms.info["<script>"] = "<script>alert(1)</script>"
    assert "script" not in str(view([atoms, atoms]).calls)
