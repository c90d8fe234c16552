"""Data files of text: extended XYZ, packed and not, and mlearn's JSON."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage
from fuzz.cases import EITHER, REFUSE, SAME, Expect, Target
from fuzz.formats import (
    RIGHT_METAL,
    STRANGE_NUMBERS,
    Change,
    Numbers,
    edit,
    everywhere,
    file_target,
    lines,
    metal,
    numbers_of,
    text_of,
)
from fuzz.xyz import read_strictly


def _strange_number(rng: random.Random, path: Path) -> Expect:
    lines = path.read_text().split("\n")
    rows = [i for i, line in enumerate(lines) if line.startswith("Cu")]
    row = rng.choice(rows)
    cells = lines[row].split()
    cells[rng.randrange(1, len(cells))] = rng.choice(STRANGE_NUMBERS)
    lines[row] = " ".join(cells)
    path.write_text("\n".join(lines))
    return REFUSE


def _swap_columns(rng: random.Random, path: Path) -> Expect:
    path.write_text(path.read_text().replace("pos:R:3:forces:R:3", "forces:R:3:pos:R:3"))
    return REFUSE


def _atomic_numbers(expect: Expect, other: bool) -> Change:
    """A column Z beside the species, that says the same or something else in one row."""

    def changed(rng: random.Random, path: Path) -> Expect:
        lines = path.read_text().replace("species:S:1:", "species:S:1:Z:I:1:").split("\n")
        rows = [i for i, line in enumerate(lines) if line.startswith("Cu ")]
        odd = rng.choice(rows)
        for i in rows:
            lines[i] = f"Cu {30 if other and i == odd else 29}{lines[i][2:]}"
        path.write_text("\n".join(lines))
        return expect

    return changed


def _voigt(rng: random.Random, path: Path) -> Expect:
    """Six numbers in ASE's order."""
    lines = path.read_text().split("\n")
    for i, line in enumerate(lines):
        if 'stress="' in line:
            before, rest = line.split('stress="')
            inside, after = rest.split('"', 1)
            s = inside.split()
            lines[i] = f'{before}stress="{" ".join(s[k] for k in (0, 4, 8, 5, 2, 1))}"{after}'
    path.write_text("\n".join(lines))
    return SAME


def _renamed(name: str) -> Change:
    def moved(rng: random.Random, path: Path) -> tuple[Path, Expect]:
        new = path.with_name(name)
        path.rename(new)
        return new, SAME

    return moved


def _first_line_number(rng: random.Random) -> str:
    return rng.choice(
        ["-1\n", "0\n", "4.0\n", "4 4\n", "0x4\n", "\u0664\n", "999999999999\n", "5\n", "3\n", "+4\n", "four\n", "\n"]
    )


_XYZ: dict[str, Change] = {
    "strange number": _strange_number,
    "strange count": lines(
        lambda rng, lines: lines.__setitem__(
            rng.choice([i for i, line in enumerate(lines) if line == "4"]), _first_line_number(rng).rstrip("\n")
        ),
        REFUSE,
    ),
    "energy of": edit(
        "energy=",
        lambda rng: rng.choice(["energy=T ", "energy=nan ", 'energy="1 2" ', "energy=x ", "energy= "]) + "x=",
        REFUSE,
    ),
    "energy twice": edit("energy=", "energy=-1000.0 energy=", REFUSE),
    "lattice twice": edit("Lattice=", 'Lattice="9 0 0 0 9 0 0 0 9" Lattice=', REFUSE),
    "huge Properties": edit(
        "forces:R:3", lambda rng: f"forces:R:{rng.choice(['999999999', '0', '-1', '10000', '3.0', 'x'])}", REFUSE
    ),
    "Properties without a kind": edit(
        "pos:R:3", lambda rng: rng.choice(["pos:3", "pos:R", "pos:I:3", "pos:S:3", "pos:Q:3"]), REFUSE
    ),
    "more columns than Properties": everywhere(lambda t: t.replace(":forces:R:3", ""), REFUSE),
    "columns swapped by name": _swap_columns,
    "Z says another element": _atomic_numbers(REFUSE, other=True),
    "Z says the same": _atomic_numbers(SAME, other=False),
    "species": edit(
        "Cu ", lambda rng: rng.choice(["Xx ", "X ", "29x ", "\u0421u ", "Cu\0 ", "-29 ", "119 ", "29.5 "]), REFUSE
    ),
    "line twice": lines(lambda rng, lines: lines.insert(i := rng.randrange(len(lines)), lines[i]), REFUSE),
    "line dropped": lines(lambda rng, lines: lines.pop(rng.randrange(len(lines))), REFUSE),
    "pbc": edit(
        'pbc="T T T"',
        lambda rng: rng.choice(['pbc="T T"', 'pbc="2 T T"', "pbc=nan", 'pbc="yes no T"', 'pbc=""']),
        REFUSE,
    ),
    "lattice": edit(
        'Lattice="',
        lambda rng: rng.choice(['Lattice="nan ', 'Lattice="1 ', 'Lattice="x ', 'Lattice="1e300 ', 'Lattice="[']),
        REFUSE,
    ),
    "lattice of zeros": lines(
        lambda rng, lines: lines.__setitem__(1, 'Lattice="0 0 0 0 0 0 0 0 0" ' + lines[1].split('" ', 1)[1]), REFUSE
    ),
    "stress": edit(
        'stress="', lambda rng: rng.choice(['stress="nan ', 'stress="1 ', 'stress="x ', 'stress="" s="']), REFUSE
    ),
    "byte-order mark": everywhere(lambda t: "\ufeff" + t, SAME),
    "lines of Windows": everywhere(lambda t: t.replace("\n", "\r\n"), SAME),
    "blank lines at the end": everywhere(lambda t: t + "\n \n\n", SAME),
    "no newline at the end": everywhere(lambda t: t.rstrip("\n"), SAME),
    "tabs": everywhere(
        lambda t: "\n".join(x.replace("      ", "\t") if x.startswith("Cu") else x for x in t.split("\n")), SAME
    ),
    "cut in its last number": everywhere(lambda t: t.rstrip("\n")[:-3], REFUSE),
    "unknown facts": edit(
        "energy=",
        lambda rng: rng.choice(['who="\u00fc \u4e2d" ', "a_b-c=[1,2] ", "flag ", "n=NaN ", "t=1_0 "]) + "energy=",
        SAME,
    ),
    "stress of six numbers": _voigt,
    "name with an at sign": _renamed("frames@3.extxyz"),
    "name of an index": _renamed("a@:2.extxyz"),
    "name with blanks": _renamed("fr\u00e4mes of 2 #1%20?.extxyz"),
    "name without suffix of a kind": _renamed("frames.XYZ"),
}


_OPEN = {"xz": lzma.open, "gz": gzip.open, "bz2": bz2.open}


def _packed(suffix: str) -> Target:
    def make(path: Path) -> None:
        with _OPEN[suffix](path, "wt") as file:
            file.write(text_of(metal()))

    def other_inside(rng: random.Random, path: Path) -> Expect:
        with _OPEN[suffix](path, "wb") as file:
            file.write(damage.garbage(rng, text_of(metal()).encode()))
        return REFUSE

    def twice(rng: random.Random, path: Path) -> Expect:
        path.write_bytes(path.read_bytes() * 2)
        right = numbers_of(metal())
        return SAME.giving([*right, *right])

    def not_packed(rng: random.Random, path: Path) -> Expect:
        path.write_text(text_of(metal()))
        return EITHER

    changes: dict[str, Change] = {"garbage inside": other_inside, "two streams": twice, "not packed": not_packed}
    return file_target(
        f"extxyz.{suffix}", f"frames.extxyz.{suffix}", make, lambda: numbers_of(metal()), changes, share=1, summed=True
    )


def _make_mlearn(path: Path) -> None:
    kilobar = 6.241509074460763e-4
    entries = []
    for one in numbers_of(metal()):
        s = -one["stress"] / kilobar
        sites = [{"species": [{"element": "Cu", "occu": 1}], "xyz": r.tolist()} for r in one["positions"]]
        outputs = {"energy": one["energy"], "forces": one["forces"].tolist()}
        outputs["virial_stress"] = [s[0, 0], s[1, 1], s[2, 2], s[0, 1], s[1, 2], s[2, 0]]
        structure = {"lattice": {"matrix": one["cell"].tolist()}, "sites": sites}
        entries.append({"structure": structure, "outputs": outputs, "group": "Test"})
    path.write_text(json.dumps(entries))


_STRANGE_VALUES: list[Any] = [None, "x", True, [], {}, 1e200, -1, [[1]], float("nan"), 10**400, "1.0", 1.5]


def _paths(value: Any, before: tuple = ()) -> list[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, one in inside for p in [(*before, key), *_paths(one, (*before, key))]]


_IGNORED = {"group", "occu"}


def _json_value(do: str) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        entries = json.loads(path.read_text())
        places = [p for p in _paths(entries) if len(p) > 1 and not _IGNORED & set(p)]
        where = rng.choice(places)
        inside = functools.reduce(lambda a, k: a[k], where[:-1], entries)
        if do == "value":
            old, new = inside[where[-1]], rng.choice(_STRANGE_VALUES)
            inside[where[-1]] = new
            # One sane number in the place of another is another file, not a broken one; so is a number in words.
            if isinstance(old, int | float) and new in (-1, 1.5, "1.0") and not isinstance(new, bool):
                path.write_text(json.dumps(entries))
                return EITHER.giving(_read_mlearn_again(entries))
        elif do == "missing":
            del inside[where[-1]]
        else:
            inside[rng.choice([where[-1], 0]) if isinstance(inside, dict) else where[-1]] = functools.reduce(
                lambda a, _: [a], range(5000), 1.0
            )
        text = json.JSONEncoder(check_circular=False).encode(entries) if do != "deep" else _deep(entries)
        path.write_text(text)
        return REFUSE

    return changed


def _deep(entries: Any) -> str:
    """JSON nested deeper than a parser's stack, in the place of the first energy."""
    entries[0]["outputs"]["energy"] = "HERE"
    for one in entries:
        one["structure"].pop("0", None)
    clean = [{"structure": "x", "outputs": {"energy": "HERE"}, "group": "Test"}]
    return json.dumps(clean).replace('"HERE"', "[" * 100_000 + "]" * 100_000)


def _read_mlearn_again(entries: list) -> Numbers:
    found = []
    for e in entries:
        xx, yy, zz, xy, yz, zx = (float(x) for x in e["outputs"]["virial_stress"])
        stress = -6.241509074460763e-4 * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        found.append(
            {
                "numbers": np.full(len(e["structure"]["sites"]), 29),
                "positions": np.array([s["xyz"] for s in e["structure"]["sites"]], float),
                "cell": np.array(e["structure"]["lattice"]["matrix"], float),
                "pbc": np.ones(3, bool),
                "energy": float(e["outputs"]["energy"]),
                "forces": np.array(e["outputs"]["forces"], float),
                "stress": stress,
            }
        )
    return found


def _mlearn_bytes(path: Path) -> Numbers:
    return _read_mlearn_again(json.loads(path.read_text()))


_MLEARN: dict[str, Change] = {
    "value": _json_value("value"),
    "missing": _json_value("missing"),
    "deep": _json_value("deep"),
    "key twice": edit('"energy":', '"energy": 7.0, "energy":', REFUSE),
    "element": edit('"Cu"', lambda rng: rng.choice(['"X"', '"Xx"', "29", "null", '""', '["Cu"]']), REFUSE),
    "byte-order mark": everywhere(lambda t: "\ufeff" + t, SAME),
}


TARGETS = [
    file_target(
        "extxyz",
        "frames.extxyz",
        lambda path: path.write_text(text_of(metal())) and None,
        RIGHT_METAL,
        _XYZ,
        lambda path: read_strictly(path.read_bytes()),
        share=6,
    ),
    *(_packed(suffix) for suffix in _OPEN),
    file_target("mlearn", "frames.json", _make_mlearn, RIGHT_METAL, _MLEARN, _mlearn_bytes),
]
