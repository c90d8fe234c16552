"""Processes that have virtual devices, functions of a test file run in one that has eight, and pairs on loopback."""

import os
import socket
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


def free_port() -> int:
    """A port where processes may meet."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(folders: list, commands: list[list[str]]) -> list[subprocess.Popen]:
    """Python with each command's words, in a folder of its own, with two virtual devices each."""
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_of(2),
        )
        for folder, command in zip(folders, commands, strict=True)
    ]


def end(processes: list[subprocess.Popen], seconds: float = 300) -> list[tuple[str, str, int]]:
    """What each printed, on both streams, and its exit code."""
    try:
        return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
