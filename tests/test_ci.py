"""The tests that ``.ci/run`` calls by name are there: one moved or renamed would stop CI after the whole suite."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_called_by_name_are_there():
    block = re.search(r"^again=\((.*?)^\)", (ROOT / ".ci/run").read_text(), re.S | re.M).group(1)
    names = block.split()
    assert names
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
