"""Processes that have virtual devices, and functions of a test file run in one that has eight."""

import os
import subprocess
import sys

_PROGRAM = """
import runpy, sys
sys.path[:0] = {paths!r}
runpy.run_path({file!r})[{name!r}](*{arguments!r})
print("done")
"""


def environment_of(devices: int) -> dict[str, str]:
    """The variables of a process that has so many virtual devices, and all else as this one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def in_eight(file: str, name: str, *arguments: str) -> None:
    """Call the function ``name`` of ``file`` with these words; AssertionError with what it printed where it fails."""
    program = _PROGRAM.format(paths=[os.path.dirname(__file__)], file=file, name=name, arguments=arguments)
    environment = environment_of(8)
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=900)
    assert out.stdout.strip().endswith("done"), out.stdout + out.stderr
