"""Words on the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import yaml
from frames import copper

from fuzz.cases import REFUSE, SAME, Target, Trial
from fuzz.samples import potential, silicon
from fuzz.studies import study


@functools.cache
def _files() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz.template."))
    potential().save(folder / "p.safetensors")
    ase.io.write(folder / "s.extxyz", silicon(), format="extxyz")
    ase.io.write(folder / "frames.extxyz", copper(4, seed=4), format="extxyz")
    (folder / "junk").write_bytes(b"\0\xff junk")
    (folder / "empty").write_bytes(b"")
    (folder / "config.yaml").write_text("data: {train: nothing.extxyz}\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(study({})))
    return folder


class Told(Exception):
    """The command line's errors in words."""


def command(words: list[str]) -> str:
    """What a command prints; Told where it ends with an error in words."""
    from leignn_jax import cli

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(words)
    except SystemExit as end:
        code = end.code
    if code in (0, None):
        return out.getvalue()
    said = err.getvalue() or out.getvalue()
    if code not in (1, 2) or "Traceback" in said or not said.strip():
        raise RuntimeError(f"exit code {code}: {said[:200]!r}")
    raise Told(said.strip())


_BAD_NUMBERS = ["-1", "nan", "inf", "x", "", "1e400", "-5", "0", "1.5.5", "١", "1e-400"]


_BAD_COUNTS = ["-1", "x", "1.5", "", "nan", "-99999999999999999999"]


_MD = [
    "md",
    "p.safetensors",
    "s.extxyz",
    "--steps",
    "2",
    "--out",
    "md",
    "--quiet",
    "--save-every",
    "1",
    "--log-every",
    "1",
    "--temperature",
    "300",
]


_RELAX = ["relax", "p.safetensors", "s.extxyz", "--out", "relaxed", "--steps", "2", "--quiet"]


# Options that take other values than these: verb, option, values.
_BAD_OPTIONS: list[tuple[list[str], str, list[str]]] = [
    (_MD, "--steps", _BAD_COUNTS),
    (_MD, "--timestep", _BAD_NUMBERS),
    (_MD, "--temperature", [x for x in _BAD_NUMBERS if x not in ("0", "1e-400")]),
    (_MD, "--pressure", ["1", "nan", "x"]),
    (_MD, "--replicas", [*_BAD_COUNTS, "0", "1000000000"]),
    (_MD, "--save-every", [*_BAD_COUNTS, "0"]),
    (_MD, "--log-every", [*_BAD_COUNTS, "0", "3"]),
    (_MD, "--seed", ["x", "1.5", "99999999999999999999999999", "-99999999999999999999999999"]),
    (_MD, "--dtype", ["float16", "", "x", "float32 ", "int"]),
    (_MD, "--ensemble", ["", "nvee", "x", "npt-foo", "\0"]),
    (_RELAX, "--cell", ["", "x", "fulll"]),
    (_RELAX, "--pressure", ["nan", "x", "inf"]),
    (_RELAX, "--max-force", _BAD_NUMBERS),
    (_RELAX, "--max-stress", [*_BAD_NUMBERS]),
    (_RELAX, "--steps", _BAD_COUNTS),
    (_RELAX, "--dtype", ["float16", ""]),
    (["data", "inspect", "frames.extxyz"], "--cutoff", [*_BAD_NUMBERS, "1e9"]),
    (["data", "inspect", "frames.extxyz"], "--batch-size", [*_BAD_COUNTS, "0"]),
    (["data", "inspect", "frames.extxyz"], "--units", ["x", "", "eV"]),
    (["data", "inspect", "frames.extxyz"], "--against", ["nothing", "junk", "empty", "."]),
    (["evaluate", "p.safetensors", "s.extxyz"], "--units", ["x", "", "eV"]),
    (["evaluate", "p.safetensors", "s.extxyz"], "--dtype", ["x", "", "float16"]),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--steps", [*_BAD_COUNTS, "0", "3"]),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--repeats", [*_BAD_COUNTS, "0"]),
    (
        ["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"],
        "--atoms",
        [*_BAD_COUNTS, "0", "99999999999"],
    ),
    (["bench", "p.safetensors", "s.extxyz", "--repeats", "1", "--steps", "10"], "--dtype", ["x", ""]),
    (["train", "config.yaml"], "--out", ["junk"]),
]


def _in_files(words: list[str], folder: Path) -> Callable[[], str]:
    shutil.copytree(_files(), folder, dirs_exist_ok=True)
    return lambda: command(words)


def _option(rng: random.Random, folder: Path) -> Trial:
    words, option, values = rng.choice(_BAD_OPTIONS)
    value = rng.choice(values)
    if option in words:
        at = words.index(option)
        words = [*words[:at], *words[at + 2 :]]
    words = [
        *words,
        rng.choice([f"{option}={value}"] if value.startswith("-") else [f"{option}={value}", option]),
        value,
    ]
    if words[-2] != option:
        words.pop()
    return Trial(_in_files(words, folder), REFUSE, what=" ".join(words))


def _file_argument(rng: random.Random, folder: Path) -> Trial:
    """A file of another kind, or none, in the place of one."""
    words = list(
        rng.choice(
            [
                _MD,
                _RELAX,
                ["evaluate", "p.safetensors", "s.extxyz"],
                ["info", "p.safetensors"],
                ["data", "inspect", "frames.extxyz"],
                ["train", "config.yaml"],
                ["sweep", "study.yaml"],
                ["bench", "p.safetensors", "s.extxyz"],
            ]
        )
    )
    place = rng.choice([i for i, w in enumerate(words) if "." in w])
    wrong = rng.choice(
        [
            "nothing",
            "junk",
            "empty",
            ".",
            "/",
            "",
            "a\0b",
            "x" * 5000,
            "frames.extxyz/x",
            "study.yaml",
            "/dev/null",
            "sii",
            "~",
            "s.extxyz@0",
        ]
    )
    if wrong == "study.yaml" and words[0] == "sweep":
        wrong = "junk"
    words[place] = wrong
    return Trial(_in_files(words, folder), REFUSE, what=" ".join(words)[:100])


_NO_COMMANDS = [
    ["x"],
    ["trian"],
    ["train"],
    ["train", "a", "b"],
    ["train", "=1"],
    ["train", "run.epochs=1"],
    ["train", "config.yaml", "run.epochz=1"],
    ["train", "config.yaml", "--processes", "2"],
    ["train", "--train", "nothing.extxyz", "--out", ""],
    ["train", "--train", ""],
    ["train", "config.yaml", "run.out="],
    ["train", "--coordinator", "x", "config.yaml"],
    ["md"],
    ["md", "p.safetensors"],
    ["--x"],
    ["data"],
    ["data", "x"],
    ["data", "get", "nothing-at-all"],
    ["data", "get", "../x"],
    ["data", "get", ""],
    ["info"],
    ["info", "--json"],
    ["info", "p.safetensors", "--json", "."],
    ["info", "p.safetensors", "--json", "nowhere/\0"],
    ["info", "p.safetensors", "--json", "junk/x"],
    ["evaluate", "p.safetensors"],
    ["evaluate", "p.safetensors", "frames.extxyz"],
    ["evaluate", "p.safetensors", "s.extxyz"],
    ["evaluate", "p.safetensors", "s.extxyz", "--direct"],
    ["sweep"],
    ["sweep", "config.yaml"],
    ["sweep", "study.yaml", "x"],
    [*_MD, "--resume"],
    [*_MD[:6], "junk", "--temperature", "3"],
    [*_MD, "x"],
    ["relax", "p.safetensors", "frames.extxyz", "--out", "o"],
    ["relax", "p.safetensors", "s.extxyz", "--out", "junk"],
    ["bench", "p.safetensors", "frames.extxyz"],
    ["quickstart", "--out", "junk"],
    ["quickstart", "x"],
    ["", ""],
    ["-"],
    ["--"],
    ["md", "--", "--"],
    ["data", "inspect", "s.extxyz", "--plot", "junk/x.png"],
]


def _no_command(rng: random.Random, folder: Path) -> Trial:
    words = rng.choice(_NO_COMMANDS)
    return Trial(_in_files(list(words), folder), REFUSE, what=" ".join(words)[:100])


def _right_command(rng: random.Random, folder: Path) -> Trial:
    """Words that are right; what they print must not depend on names of files."""
    name = rng.choice(["p@1.safetensors", "p \u00fc.safetensors", "p.x", "-p.safetensors"])
    words = ["info", f"./{name}"]
    use = _in_files(words, folder)
    (folder / "p.safetensors").rename(folder / name)
    return Trial(use, SAME, lambda: _info(folder / "right"), what=" ".join(words))


def _info(folder: Path) -> str:
    potential().save(folder / "p.safetensors")
    return command(["info", str(folder / "p.safetensors")])


TARGETS = [
    Target(
        "command line",
        {"option": _option, "file": _file_argument, "no command": _no_command, "right": _right_command},
        4,
        40.0,
        (Told,),
    ),
]
