"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("fast_compiles")


def test_readme_snippets_run():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    snippets = re.findall(r"<!-- test -->\n```python\n(.*?)```", text, re.S)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
