"""Sphinx's settings. The site is built by ``sphinx-build -W --keep-going docs docs/_build``."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import typer
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import leignn_jax
from leignn_jax import analysis, cli

HERE = Path(__file__).parent

project = "leignn_jax"
version = release = leignn_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"leignn_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks come with their outputs; the tests run them
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # shapes, units and dtypes stand in the docstrings
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]

# ----------------------------------------------------------------------------------------------------------- notebooks


def copy_notebooks(source: Path, target: Path) -> int:
    """Make ``target`` hold the notebooks of ``source`` and no others; how many there are."""
    shutil.rmtree(target, ignore_errors=True)
    found = sorted(source.glob("*.ipynb"))
    for path in found:
        target.mkdir(exist_ok=True)
        shutil.copy2(path, target / path.name)
    return len(found)


# Sphinx reads below its own folder only.
NOTEBOOKS = copy_notebooks(HERE.parent / "notebooks", HERE / "notebooks")


def list_notebooks(app, docname: str, source: list[str]) -> None:
    """Where there are no notebooks, take their pattern out of the list that would match nothing."""
    if docname == "tutorials" and NOTEBOOKS == 0:
        source[0] = source[0].replace("notebooks/*\n", "")


# ---------------------------------------------------------------------------------------------------------- docstrings

_FIELD = re.compile(r"[A-Za-z_]\w*(, [A-Za-z_]\w*)*: ")


def one_field_per_line(obj, lines: list[str]) -> list[str]:
    """``temperature: K. pressure: GPa.`` as two lines, where both are names of parameters."""
    try:
        names = [name for name in inspect.signature(obj).parameters if len(name) > 2]
    except (TypeError, ValueError):
        return lines
    following = re.compile(rf"(?<=[.;]) (?=(?:{'|'.join(names)})(?:, \w+)*: )") if names else None
    out = []
    for line in lines:
        text = line.lstrip()
        parts = following.split(text) if following and _FIELD.match(text) else [text]
        out += [line[: len(line) - len(text)] + part for part in parts]
    return out


def fields_as_section(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn paragraphs of lines ``name: meaning``, as our docstrings have them, into a section that napoleon reads."""
    if what not in ("class", "exception", "function", "method"):
        if what != "module":
            # An escaped line end, which prints nothing: napoleon would take ``Sizes: atoms`` for a type and its meaning.
            lines[:0] = ["\\"]
        return
    heading = "Fields:" if what in ("class", "exception") else "Args:"
    summary, rest = lines[:1], lines[1:]
    out: list[str] = []
    paragraph: list[str] = []
    for line in [*one_field_per_line(obj, rest), ""]:
        if line.strip():
            paragraph.append(line)
            continue
        of_fields = paragraph and _FIELD.match(paragraph[0])
        if of_fields and all(_FIELD.match(x) or x.startswith(" ") for x in paragraph):
            paragraph = [heading, *(f"    {x}" for x in paragraph)]
        out += [*paragraph, ""]
        paragraph = []
    lines[:] = summary + out


def skip_generated(app, what, name, obj, skip, options):
    """Leave out what dataclasses, named tuples, pydantic and flax make by themselves."""
    generated = type(obj).__name__ == "_tuplegetter" or name in ("replace", "model_config", "model_post_init", "parent")
    return True if generated else None


def home_of(target: str) -> str | None:
    """The full name of what is also reached from the top of a package, such as ``leignn_jax.Potential``."""
    for package in (analysis, leignn_jax):
        name = target.removeprefix(f"{package.__name__}.")
        if name.split(".")[0] in package._HOME:
            return f"{package.__name__}.{package._HOME[name.split('.')[0]]}.{name}"
    return None


def resolve_home(app, env, node, contnode):
    """Links to names of the package's top."""
    if node.get("refdomain") != "py" or (home := home_of(node["reftarget"])) is None:
        return None
    domain = env.get_domain("py")
    found = domain.find_obj(env, None, None, home, None)
    if not found:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, contnode)


# -------------------------------------------------------------------------------------------------------- command line


class CommandLine(SphinxDirective):
    """``cli-reference``: a section for every command of ``leignn``, with what its ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        return list(self._sections(typer.main.get_command(cli.app), "leignn"))

    def _sections(self, command, path: str):
        context = command.context_class(command, info_name=path, terminal_width=88, max_content_width=88)
        section = nodes.section(ids=[nodes.make_id(path)], names=[path])
        section += nodes.title(text=path)
        section += nodes.literal_block(text=command.get_help(context), language="text")
        self.state.document.note_explicit_target(section)
        yield section
        for name, below in getattr(command, "commands", {}).items():
            yield from self._sections(below, f"{path} {name}")


def setup(app):
    app.add_directive("cli-reference", CommandLine)
    app.connect("source-read", list_notebooks)
    app.connect("autodoc-process-docstring", fields_as_section, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip_generated)
    app.connect("missing-reference", resolve_home)
    return {"parallel_read_safe": True}
