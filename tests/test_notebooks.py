"""The notebooks: each .ipynb has the cells of its .py and what they gave, and the cells run."""

import re
from pathlib import Path

import jax
import jupytext
import matplotlib
import nbformat
import pytest

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

FOLDER = Path(__file__).parents[1] / "notebooks"

# What the cell tagged "parameters" of each notebook says, made small: enough to run every line.
SMALL = {
    "01_quickstart": {"STEPS": 40},
    "02_train_on_your_own_data": {
        "FRAMES": 20,
        "EPOCHS": 2,
        "TUNING_FRAMES": 10,
        "TUNING_EPOCHS": 1,
        "TEST_FRAMES": 20,
    },
    "03_molecular_dynamics_and_analysis": {"STEPS": 90, "ETHANOL_STEPS": 40},
    "04_differentiate_through_a_simulation": {
        "STEPS": 5,
        "CHECKED_STEPS": 5,
        "GRADIENTS": 3,
        "GRID": 2,
        "HORIZON": 40,
    },
    "05_sweeps_and_ensembles": {"EPOCHS": 1},
    "06_the_model_from_the_inside": {"POINTS": 5},
    "07_inverse_design": {"TRAP_GRADIENTS": 2, "PARTICLES": 8, "HELD_OUT": 1, "ARGON_GRADIENTS": 1},
    "08_silicon_from_experiment": {"EPOCHS": 1, "STRIDE": 20, "TEST_FRAMES": 4},
    "09_water_from_experiment": {"SAMPLE": 12, "EVERY": 1, "ROUNDS": 2, "RATE": 1e-6, "UPDATES": 1, "JUDGED": 16},
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_values(source: str, values: dict[str, float]) -> str:
    """The parameters cell with these numbers in the place of its own; every name must be there, and no other."""
    names = re.findall(r"^(\w+) = ", source, re.M)
    assert sorted(names) == sorted(values)
    for name, value in values.items():
        source = re.sub(rf"^{name} = [^#\n]+", f"{name} = {value}  ", source, flags=re.M)
    return source


def test_every_notebook_is_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(SMALL)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_executed_notebook_is_that_of_the_source(name):
    source, executed = jupytext.read(FOLDER / f"{name}.py"), nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(executed)
    assert [(c.cell_type, c.source) for c in source.cells] == [(c.cell_type, c.source) for c in executed.cells]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_kept_of_the_execution(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 700_000
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) <= {"jupytext", "kernelspec", "language_info"}
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert set(cell.metadata) <= {"tags"}
        assert not [out for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"]
        shown = [out.get("text", "") for out in cell.outputs]
        shown += [text for out in cell.outputs for kind, text in out.get("data", {}).items() if kind != "image/png"]
        assert not re.search(r"/(tmp|home|root|work|Users|var|usr)/|[A-Z]:\\\\|Traceback|Warning", "\n".join(shown))
        draws = re.search(r"plt\.subplots|leignn\.train\(settings\)", cell.source)
        pictures = [out for out in cell.outputs if "image/png" in out.get("data", {})]
        assert bool(pictures) == bool(draws), cell.source
        assert cell.outputs or not re.search(r"^print\(|^    print\(", cell.source, re.M), cell.source


@pytest.fixture
def settings_of_this_process(monkeypatch, tmp_path):
    """A notebook owns its process; here it must leave it as it was."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)
    plt.close("all")


# What compiles for minutes runs with the slow tests: what it calls has its own tests.
QUICK = ("01_quickstart",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SMALL])
def test_the_cells_run(name, settings_of_this_process):
    cells = code_cells(jupytext.read(FOLDER / f"{name}.py"))
    (parameters,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = with_values(parameters.source, SMALL[name])
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell.source, f"{name}, code cell {number}", "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_whole_notebook_runs_in_jupyter(name, tmp_path):
    from nbclient import NotebookClient

    notebook = jupytext.read(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    for cell in code_cells(notebook):
        assert not [out for out in cell.outputs if out.get("name") == "stderr"], cell.source
