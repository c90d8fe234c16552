"""Functions of a test file run in a process of their own, in which there are eight virtual devices."""

import os
import subprocess
import sys

_PROGRAM = """
import runpy, sys
sys.path[:0] = {paths!r}
runpy.run_path({file!r})[{name!r}](*{arguments!r})
print("done")
"""


def in_eight(file: str, name: str, *arguments: str) -> None:
    """Call the function ``name`` of ``file`` with these words; AssertionError with what it printed where it fails."""
    program = _PROGRAM.format(paths=[os.path.dirname(__file__)], file=file, name=name, arguments=arguments)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=900)
    assert out.stdout.strip().endswith("done"), out.stdout + out.stderr
