"""The documentation: the site builds without a warning, and what README and pages print runs as printed.

Of every page all fences marked ``python`` and ``bash`` run, in their order, in one folder and one namespace. HTML comments
beside them, which readers do not see, say the rest:

- ``<!-- set-up`` ... ``-->``: Python that makes the page's files, in a namespace of its own, with ``REPOSITORY``;
- ``<!-- file: NAME -->`` before a fence: what is printed there is that file;
- ``<!-- not run: REASON -->`` before a fence: it is only looked at; REASON is one of ``NOT_RUN``.
"""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import leignn_jax
from leignn_jax import cli
from leignn_jax.models import config

pytestmark = pytest.mark.usefixtures("fast_compiles", "shared_programs")

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
BUILT = ("_build", "notebooks")  # made by Sphinx; the notebooks have tests of their own
PAGES = [
    "README.md",
    *sorted(
        str(path.relative_to(REPOSITORY)) for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in BUILT
    ),
]
# What compiles for minutes, and has tests of its own.
SLOW = {
    "docs/howto/ase_and_jax_md.md",
    "docs/howto/differentiate.md",
    "docs/howto/fine_tune.md",
    "docs/howto/fit.md",
    "docs/howto/molecular_dynamics.md",
    "docs/howto/other_properties.md",
    "docs/howto/relax_phonons_elasticity.md",
    "docs/howto/sweeps.md",
    "docs/howto/train.md",
}
NOT_RUN = {
    "downloads data",
    "installs packages",
    "needs a package that the tests do not install",
    "needs several devices",
    "needs several hosts",
}
# What may stand in a fence besides: printed files, output, and directives of MyST.
LANGUAGES = {"", "python", "bash", "yaml", "text", "{toctree}", "{eval-rst}", "{cli-reference}"}


class Block(NamedTuple):
    """One piece of a page that is acted on: what kind it is, its text, and the line before its first one."""

    kind: str
    text: str
    line: int


_PIECE = re.compile(
    r"^<!-- set-up\n(?P<setup>.*?)^-->$"
    r"|^(?:<!-- (?P<note>not run|file): (?P<what>.*?) -->\n)?```(?P<language>\S*)[^\n]*\n(?P<body>.*?)^```$",
    re.M | re.S,
)


def blocks(text: str, name: str) -> list[Block]:
    """What to do with a page, in order; an AssertionError names what the page may not have."""
    marks = len(re.findall(r"^<!-- (?:set-up|not run|file)\b", text, re.M))
    fences = len(re.findall(r"^ *```", text, re.M))
    found = []
    for piece in _PIECE.finditer(text):
        note, language = piece["note"], piece["language"]
        group = "setup" if piece["setup"] is not None else "body"
        line = text.count("\n", 0, piece.start(group))
        marks -= group == "setup" or note is not None
        fences -= 2 * (group == "body")
        if group == "setup":
            found.append(Block("set-up", piece["setup"], line))
            continue
        assert language in LANGUAGES, f"{name}, line {line}: no fence may be called {language!r}."
        if note == "not run":
            assert piece["what"] in NOT_RUN, f"{name}, line {line}: {piece['what']!r} is no reason of NOT_RUN."
        elif note == "file":
            found.append(Block(piece["what"], piece["body"], line))
        elif language in ("python", "bash"):
            found.append(Block(language, piece["body"], line))
    assert fences == 0, f"{name}: a fence is not closed, or stands indented."
    assert marks == 0, f"{name}: a comment that marks a block does not stand right before a fence."
    return found


def run_python(block: Block, name: str, namespace: dict) -> None:
    """Run it with the page's own line numbers in tracebacks."""
    exec(compile("\n" * block.line + block.text, name, "exec"), namespace)


def run_commands(block: Block, name: str, monkeypatch) -> None:
    """Run the ``leignn`` lines of a block by the entry point, in this process; other programs are refused."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "leignn", f"{name}: {line!r} is no leignn command; mark the block as not run."
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, f"{name}: {line!r} ended with exit code {end.value.code}."


@pytest.fixture
def small(monkeypatch):
    """Presets shrunk, so that trainings as printed take seconds; afterwards log levels are as they were."""
    for name in ("small", "medium"):
        shrunk = {"features": 8, "layers": 1, "num_radial": 4}
        monkeypatch.setitem(config.PRESETS, name, {**config.PRESETS[name], **shrunk})
    names = ("absl", "orbax", "jax", "numexpr")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow if p in SLOW else ()) for p in PAGES])
def test_what_is_printed_runs(page, small, tmp_path, monkeypatch):
    namespace: dict = {"__name__": "page"}
    monkeypatch.chdir(tmp_path)
    for block in blocks((REPOSITORY / page).read_text(), page):
        if block.kind == "set-up":
            run_python(block, page, {"__name__": "set-up", "REPOSITORY": REPOSITORY})
        elif block.kind == "python":
            run_python(block, page, namespace)
        elif block.kind == "bash":
            run_commands(block, page, monkeypatch)
        else:
            Path(block.kind).write_text(block.text)


def test_blocks_are_found_in_order():
    text = (
        "<!-- set-up\na = 1\n-->\n```python\nb\n```\n<!-- file: c.yaml -->\n```yaml\nc: 1\n```\n```bash\nleignn\n```\n"
    )
    found = [(b.kind, b.text, b.line) for b in blocks(text, "page")]
    expected = [("set-up", "a = 1\n", 1), ("python", "b\n", 4), ("c.yaml", "c: 1\n", 8), ("bash", "leignn\n", 11)]
    assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run: no time -->\n```bash\nleignn\n```\n", "no reason"),
        ("<!-- not run: needs several hosts -->\n\n```bash\nleignn\n```\n", "right before"),
        ("```shell\nleignn\n```\n", "'shell'"),
        ("```python\nx\n", "not closed"),
    ],
)
def test_a_page_can_not_hide_a_block(text, message):
    with pytest.raises(AssertionError, match=message):
        blocks(text, "page")


def test_other_programs_are_refused(monkeypatch):
    with pytest.raises(AssertionError, match="no leignn command"):
        run_commands(Block("bash", "# a comment\nrm -r data\n", 0), "page", monkeypatch)


def test_a_command_that_fails_is_told(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit code 1"):
        run_commands(Block("bash", "leignn info \\\n  absent.safetensors\n", 0), "page", monkeypatch)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and what Sphinx said."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-d", folder / "doctrees", DOCS, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "html"


def test_site_has_every_page_and_command(site):
    for page in PAGES[1:]:
        assert (site / Path(page).relative_to("docs").with_suffix(".html")).is_file()
    commands = (site / "cli.html").read_text()
    for name in (
        "train",
        "evaluate",
        "sweep",
        "md",
        "relax",
        "info",
        "bench",
        "data inspect",
        "data get",
        "quickstart",
    ):
        assert f"<h2>leignn {name}<" in commands
    assert "--ensemble" in commands


def test_site_documents_every_public_name(site):
    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    for name, home in leignn_jax._HOME.items():
        assert f'id="leignn_jax.{home}.{name}"' in text, name
    for name, home in leignn_jax.analysis._HOME.items():
        assert f'id="leignn_jax.analysis.{home}.{name}"' in text, name


def test_every_line_of_what_is_supported_names_a_test_that_exists():
    """The table of docs/supported.md; each line ends with its tests."""
    sources = [file.read_text() for file in (REPOSITORY / "tests").rglob("test_*.py")]
    there = {name for text in sources for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    lines = [line for line in (REPOSITORY / "docs" / "supported.md").read_text().splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith(("| What", "|---"))]
    assert len(lines) > 30
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line.rsplit("|", 2)[1])
        assert named, line
        assert set(named) <= there, line
