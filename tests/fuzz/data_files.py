"""Data files of every format that the readers know, and labels wherever they stand."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import h5py
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, Expect, Target, Trial
from fuzz.xyz import NotExtendedXYZ, read_strictly

KCAL = 0.04336411531

Numbers = list[dict[str, Any]]
Change = Callable[[random.Random, Path], "Expect | tuple[Path, Expect]"]


# --------------------------------------------------------------------------------------------------- what files must say


@functools.cache
def metal() -> list[ase.Atoms]:
    """Copper with every label."""
    return copper(4, seed=3)


@functools.cache
def molecules() -> list[ase.Atoms]:
    """Ethanol with energies and forces."""
    from leignn_jax.data import bundled_data, read_frames

    return read_frames(bundled_data("ethanol") / "train.extxyz.xz", index=":4")


def numbers_of(frames: list[ase.Atoms]) -> Numbers:
    """What frames that were made here hold."""
    found = []
    for atoms in frames:
        results = atoms.calc.results
        stress = results.get("stress")
        if stress is not None:
            xx, yy, zz, yz, xz, xy = np.asarray(stress)
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        found.append(
            {
                "numbers": np.array(atoms.numbers),
                "positions": np.array(atoms.positions),
                "cell": np.asarray(atoms.cell).copy(),
                "pbc": np.array(atoms.pbc),
                "energy": float(results["energy"]),
                "forces": np.array(results["forces"]),
                "stress": stress,
            }
        )
    return found


def use(path: Path) -> Numbers:
    """What a training reads from a file, checks included."""
    from leignn_jax.training.config import DataSettings
    from leignn_jax.training.dataset import load_frames

    frames = load_frames(path, DataSettings(), 4.0)
    found = []
    for i in range(frames.size):
        atoms, labels = frames.frame(i)
        found.append(
            {
                "numbers": np.asarray(atoms.numbers),
                "positions": np.asarray(atoms.positions),
                "cell": np.asarray(atoms.cell),
                "pbc": np.asarray(atoms.pbc),
                **labels._asdict(),
            }
        )
    return found


def _sane(frames: Numbers) -> bool:
    """Whether numbers that a damaged file gives could be somebody's."""
    for one in frames:
        arrays = [one[k] for k in ("positions", "cell", "energy", "forces", "stress") if one[k] is not None]
        if not all(np.isfinite(x).all() and (np.abs(x) < 1e6).all() for x in arrays):
            return False
        if not ((one["numbers"] > 0) & (one["numbers"] < len(chemical_symbols))).all():
            return False
    return True


def file_target(
    name: str,
    file: str,
    make: Callable[[Path], None],
    right: Callable[[], Numbers],
    changes: dict[str, Change],
    read: Callable[[Path], Numbers] | None = None,
    *,
    share: int = 3,
    summed: bool = False,
) -> Target:
    """A format: how a file of it is made, what it says, and how it can be broken.

    read: a second reader of damaged bytes, for formats whose numbers no checksum protects (those with one are
        ``summed``): what it reads, if sane, is what an accepted file must give.
    """

    @functools.cache
    def template() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="fuzz.template."))
        make(folder / file)
        return folder

    def attack(change: Change):
        def trial(rng: random.Random, folder: Path) -> Trial:
            shutil.copytree(template(), folder, dirs_exist_ok=True)
            path, expect = folder / file, change(rng, folder / file)
            if not isinstance(expect, Expect):
                path, expect = expect
            return Trial(lambda: use(path), expect, right)

        return trial

    def bytes_changed(how: Callable[[random.Random, bytes], bytes]) -> Change:
        def change(rng: random.Random, path: Path) -> Expect:
            one = damage.any_file(rng, path) if path.is_dir() else path
            before = one.read_bytes()
            after = how(rng, before)
            one.write_bytes(after)
            if after == before:
                return SAME
            if summed:
                return EITHER
            return second_opinion(read, path)

        return change

    all_changes = {**{key: bytes_changed(how) for key, how in damage.BYTES.items()}, **changes}
    return Target(name, {key: attack(change) for key, change in all_changes.items()}, share)


def second_opinion(read: Callable[[Path], Numbers] | None, path: Path) -> Expect:
    """What another reader's opinion of a damaged file allows."""
    if read is None:
        return ANYTHING
    try:
        found = read(path)
    except NotExtendedXYZ:
        return REFUSE
    except BaseException:
        return EITHER
    return EITHER.giving(found) if found and _sane(found) else REFUSE


# --------------------------------------------------------------------------- extended XYZ


def text_of(frames: list[ase.Atoms]) -> str:
    out = io.StringIO()
    ase.io.write(out, frames, format="extxyz")
    return out.getvalue()


def _edit(old: str, new: str | Callable[[random.Random], str], expect: Expect) -> Change:
    """One place of the text, in some frame, replaced."""

    def change(rng: random.Random, path: Path) -> Expect:
        text = path.read_text()
        where = [i for i in range(len(text)) if text.startswith(old, i)]
        at = rng.choice(where)
        path.write_text(text[:at] + (new if isinstance(new, str) else new(rng)) + text[at + len(old) :])
        return expect

    return change


def _everywhere(change: Callable[[str], str], expect: Expect) -> Change:
    def all_of_it(rng: random.Random, path: Path) -> Expect:
        path.write_bytes(change(path.read_text()).encode())
        return expect

    return all_of_it


_STRANGE_NUMBERS = [
    "nan",
    "inf",
    "1e400",
    "1e200",
    "1_000",
    "0x1F",
    "\u0661\u0662",
    "1.0d+00",
    "1,5",
    "--1",
    "T",
    "1e",
    "9" * 400,
]


def _strange_number(rng: random.Random, path: Path) -> Expect:
    lines = path.read_text().split("\n")
    rows = [i for i, line in enumerate(lines) if line.startswith("Cu")]
    row = rng.choice(rows)
    cells = lines[row].split()
    cells[rng.randrange(1, len(cells))] = rng.choice(_STRANGE_NUMBERS)
    lines[row] = " ".join(cells)
    path.write_text("\n".join(lines))
    return REFUSE


def _lines(change: Callable[[random.Random, list[str]], None], expect: Expect) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        lines = path.read_text().split("\n")[:-1]
        change(rng, lines)
        path.write_text("\n".join(lines) + "\n")
        return expect

    return changed


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
    "strange count": _edit("4\n", _first_line_number, REFUSE),
    "energy of": _edit(
        "energy=",
        lambda rng: rng.choice(["energy=T ", "energy=nan ", 'energy="1 2" ', "energy=x ", "energy= "]) + "x=",
        REFUSE,
    ),
    "energy twice": _edit("energy=", "energy=-1000.0 energy=", REFUSE),
    "lattice twice": _edit("Lattice=", 'Lattice="9 0 0 0 9 0 0 0 9" Lattice=', REFUSE),
    "huge Properties": _edit(
        "forces:R:3", lambda rng: f"forces:R:{rng.choice(['999999999', '0', '-1', '10000', '3.0', 'x'])}", REFUSE
    ),
    "Properties without a kind": _edit(
        "pos:R:3", lambda rng: rng.choice(["pos:3", "pos:R", "pos:I:3", "pos:S:3", "pos:Q:3"]), REFUSE
    ),
    "more columns than Properties": _everywhere(lambda t: t.replace(":forces:R:3", ""), REFUSE),
    "columns swapped by name": _swap_columns,
    "Z says another element": _atomic_numbers(REFUSE, other=True),
    "Z says the same": _atomic_numbers(SAME, other=False),
    "species": _edit(
        "Cu ", lambda rng: rng.choice(["Xx ", "X ", "29x ", "\u0421u ", "Cu\0 ", "-29 ", "119 ", "29.5 "]), REFUSE
    ),
    "line twice": _lines(lambda rng, lines: lines.insert(i := rng.randrange(len(lines)), lines[i]), REFUSE),
    "line dropped": _lines(lambda rng, lines: lines.pop(rng.randrange(len(lines))), REFUSE),
    "pbc": _edit(
        'pbc="T T T"',
        lambda rng: rng.choice(['pbc="T T"', 'pbc="2 T T"', "pbc=nan", 'pbc="yes no T"', 'pbc=""']),
        REFUSE,
    ),
    "lattice": _edit(
        'Lattice="',
        lambda rng: rng.choice(['Lattice="nan ', 'Lattice="1 ', 'Lattice="x ', 'Lattice="1e300 ', 'Lattice="[']),
        REFUSE,
    ),
    "lattice of zeros": _lines(
        lambda rng, lines: lines.__setitem__(1, 'Lattice="0 0 0 0 0 0 0 0 0" ' + lines[1].split('" ', 1)[1]), REFUSE
    ),
    "stress": _edit(
        'stress="', lambda rng: rng.choice(['stress="nan ', 'stress="1 ', 'stress="x ', 'stress="" s="']), REFUSE
    ),
    "byte-order mark": _everywhere(lambda t: "\ufeff" + t, SAME),
    "lines of Windows": _everywhere(lambda t: t.replace("\n", "\r\n"), SAME),
    "blank lines at the end": _everywhere(lambda t: t + "\n \n\n", SAME),
    "no newline at the end": _everywhere(lambda t: t.rstrip("\n"), SAME),
    "tabs": _everywhere(
        lambda t: "\n".join(x.replace("      ", "\t") if x.startswith("Cu") else x for x in t.split("\n")), SAME
    ),
    "cut in its last number": _everywhere(lambda t: t.rstrip("\n")[:-3], REFUSE),
    "unknown facts": _edit(
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


# --------------------------------------------------------------------------- arrays

_WRONG_ARRAYS: dict[str, Callable[[random.Random, np.ndarray], np.ndarray]] = {
    "complex": lambda rng, x: x + 1j,
    "words": lambda rng, x: x.astype(str),
    "structured": lambda rng, x: np.zeros(x.shape, [("a", float), ("b", int)]),
    "not a number": lambda rng, x: _put(rng, x, rng.choice([np.nan, np.inf, -np.inf])),
    "huge": lambda rng, x: _put(rng, x, rng.choice([1e200, -1e200, 1e30])),
    "one axis less": lambda rng, x: x.reshape(-1) if x.ndim > 1 else x[:1],
    "one axis more": lambda rng, x: np.stack([x, x]),
    "one row less": lambda rng, x: x[:-1],
    "empty": lambda rng, x: x[:0],
    "bool": lambda rng, x: x > 0,
    "dates": lambda rng, x: np.full(x.shape, np.datetime64("2020-01-01")),
}


def _put(rng: random.Random, x: np.ndarray, value: float) -> np.ndarray:
    out = np.array(x, float)
    out.reshape(-1)[rng.randrange(out.size)] = value
    return out


_WRONG_NUMBERS = [
    lambda z: np.where(np.arange(len(z)) == 1, -1, z),
    lambda z: np.where(np.arange(len(z)) == 1, 0, z),
    lambda z: np.where(np.arange(len(z)) == 1, 119, z),
    lambda z: np.where(np.arange(len(z)) == 1, 10**9, z),
    lambda z: z + 0.5,
    lambda z: z + np.nan,
    lambda z: z.astype(str),
    lambda z: z[:-1],
    lambda z: z[None, None],
    lambda z: z + 1j,
    lambda z: z > 0,
    lambda z: z[:0],
]

_SAME_ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "columns first": lambda x: np.asfortranarray(x),
    "long double": lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x.astype(np.int64),
}


def _npz(change: Callable[[random.Random, dict[str, np.ndarray]], Expect]) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        with np.load(path) as file:
            arrays = dict(file)
        expect = change(rng, arrays)
        np.savez(path, **arrays)
        return expect

    return changed


def _make_npz(path: Path) -> None:
    frames = molecules()
    np.savez(
        path,
        nuclear_charges=frames[0].numbers.astype(np.int64),
        coords=np.array([a.positions for a in frames]),
        energies=np.array([a.calc.results["energy"] for a in frames]) / KCAL,
        forces=np.array([a.calc.results["forces"] for a in frames]) / KCAL,
    )


def _one_array(how: str) -> Callable[[random.Random, dict[str, np.ndarray]], Expect]:
    def change(rng, arrays):
        name = rng.choice(["coords", "energies", "forces"])
        arrays[name] = _WRONG_ARRAYS[how](rng, arrays[name])
        return REFUSE

    return change


def _all_alike(how: str) -> Callable[[random.Random, dict[str, np.ndarray]], Expect]:
    def change(rng, arrays):
        for name in arrays:
            arrays[name] = _SAME_ARRAYS[how](arrays[name])
        return SAME

    return change


def _change(do: Callable[[random.Random, dict[str, Any]], Any], expect: Expect):
    def change(rng, values):
        do(rng, values)
        return expect

    return change


def _header_of_terabytes(rng: random.Random, path: Path) -> Expect:
    import zipfile

    header = io.BytesIO()
    shape = rng.choice([(1 << 42, 9, 3), (-1, 9, 3), (1 << 62,), ()])
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with np.load(path) as file:
        arrays = dict(file)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            out = io.BytesIO()
            np.save(out, array)
            archive.writestr(f"{name}.npy", header.getvalue() if name == "coords" else out.getvalue())
    return REFUSE


_NPZ: dict[str, Change] = {
    **{f"array {how}": _npz(_one_array(how)) for how in _WRONG_ARRAYS},
    **{how: _npz(_all_alike(how)) for how in _SAME_ARRAYS},
    "array missing": _npz(_change(lambda rng, a: a.pop(rng.choice(sorted(a))), REFUSE)),
    "atomic numbers": _npz(
        _change(lambda rng, a: a.update(nuclear_charges=rng.choice(_WRONG_NUMBERS)(a["nuclear_charges"])), REFUSE)
    ),
    "positions twice": _npz(_change(lambda rng, a: a.update(R=a["coords"] + 0.1), REFUSE)),
    "transposed": _npz(
        _change(
            lambda rng, a: a.update(coords=a["coords"].transpose(0, 2, 1), forces=a["forces"].transpose(0, 2, 1)),
            REFUSE,
        )
    ),
    "frames last": _npz(
        _change(
            lambda rng, a: a.update(coords=a["coords"].transpose(1, 2, 0), forces=a["forces"].transpose(1, 2, 0)),
            REFUSE,
        )
    ),
    "energies in a column": _npz(_change(lambda rng, a: a.update(energies=a["energies"][:, None]), SAME)),
    "other arrays": _npz(_change(lambda rng, a: a.update(theory=np.array("PBE"), md5=np.arange(3)), SAME)),
    "pickled": _npz(_change(lambda rng, a: a.update(coords=np.array([a["coords"], None], object)), REFUSE)),
    "header of terabytes": _header_of_terabytes,
}


# --------------------------------------------------------------------------- folders


def _make_deepmd(path: Path) -> None:
    frames, right = metal(), numbers_of(metal())
    for part, chosen in (("set.000", slice(0, 2)), ("set.001", slice(2, 4))):
        (path / part).mkdir(parents=True)
        few = right[chosen]
        np.save(path / part / "coord.npy", np.array([x["positions"].ravel() for x in few]))
        np.save(path / part / "box.npy", np.array([x["cell"].ravel() for x in few]))
        np.save(path / part / "energy.npy", np.array([x["energy"] for x in few]))
        np.save(path / part / "force.npy", np.array([x["forces"].ravel() for x in few]))
        virials = [-x["stress"].ravel() * abs(np.linalg.det(x["cell"])) for x in few]
        np.save(path / part / "virial.npy", np.array(virials))
    (path / "type.raw").write_text("0\n" * len(frames[0]))
    (path / "type_map.raw").write_text("Cu\n")


def _npy(
    change: Callable[[random.Random, np.ndarray], np.ndarray], expect: Expect, names=("coord", "box", "energy", "force")
) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        file = path / rng.choice(["set.000", "set.001"]) / f"{rng.choice(names)}.npy"
        np.save(file, change(rng, np.load(file)))
        return expect

    return changed


def _write(name: str, texts: list[str], expect: Expect) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        (path / name).write_text(rng.choice(texts))
        return expect

    return changed


def _remove(names: list[str], expect: Expect) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        gone = path / rng.choice(names)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        return expect

    return changed


def _read_deepmd_again(path: Path) -> Numbers:
    types = (path / "type.raw").read_text()
    if types.split() != ["0"] * 4 or (path / "type_map.raw").read_text().split() != ["Cu"]:
        raise NotExtendedXYZ("types")
    found: Numbers = []
    for part in sorted(path.glob("set.*")):
        arrays = {f.stem: np.load(f) for f in part.glob("*.npy")}
        if any(x.dtype != np.float64 for x in arrays.values()):
            raise ValueError("dtype")
        for i in range(2):
            cell = arrays["box"][i].reshape(3, 3)
            found.append(
                {
                    "numbers": np.full(4, 29),
                    "positions": arrays["coord"][i].reshape(4, 3),
                    "cell": cell,
                    "pbc": np.ones(3, bool),
                    "energy": arrays["energy"][i],
                    "forces": arrays["force"][i].reshape(4, 3),
                    "stress": -arrays["virial"][i].reshape(3, 3) / abs(np.linalg.det(cell)),
                }
            )
    return found


_DEEPMD: dict[str, Change] = {
    **{
        f"array {how}": _npy(change, REFUSE)
        for how, change in _WRONG_ARRAYS.items()
        if how not in ("one axis less", "one axis more")
    },
    **{how: _npy(lambda rng, x, f=change: f(x), SAME) for how, change in _SAME_ARRAYS.items()},
    "types": _write(
        "type.raw",
        [
            "-1\n0\n0\n0\n",
            "0\n0\n0\n",
            "1\n0\n0\n0\n",
            "0.5\n0\n0\n0\n",
            "",
            "x\n",
            "0 0\n0 0\n",
            "9" * 30,
            "nan\n0\n0\n0\n",
        ],
        ANYTHING,
    ),
    "negative type": _write("type.raw", ["-1\n0\n0\n0\n", "0\n0\n0\n-1\n"], REFUSE),
    "half a type": _write("type.raw", ["0.5\n0\n0\n0\n", "0\n0\n0\n0.2\n"], REFUSE),
    "type map": _write("type_map.raw", ["", "cu\n", "X\n", "29\n", "\u0421u\n"], REFUSE),
    "file missing": _remove(
        ["type_map.raw", "set.000/coord.npy", "set.001/box.npy", "set.000/energy.npy", "set.001/force.npy"], REFUSE
    ),
    "pickled": _npy(lambda rng, x: np.array([x, None], object), REFUSE),
    "cut by columns": _npy(lambda rng, x: x[:, :-1], REFUSE, ("coord", "box", "force")),
}


def _make_s2ef(path: Path) -> None:
    path.mkdir()
    for number, chosen in (("0", metal()[:2]), ("1", metal()[2:])):
        with lzma.open(path / f"{number}.extxyz.xz", "wt") as file:
            file.write(text_of(chosen))
        (path / f"{number}.txt").write_text("".join(f"random{i},frame{i},{-1.5 - i}\n" for i in range(2)))


def _s2ef_right() -> Numbers:
    found = numbers_of(metal())
    for i, one in enumerate(found):
        one["energy"] += 1.5 + i % 2
    return found


def _s2ef_lines(change: Callable[[random.Random, list[str]], None]) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        file = path / rng.choice(["0.txt", "1.txt"])
        lines = file.read_text().splitlines()
        change(rng, lines)
        file.write_text("".join(f"{x}\n" for x in lines))
        return REFUSE

    return changed


_S2EF: dict[str, Change] = {
    "part missing": _remove(["0.txt", "1.txt", "0.extxyz.xz", "1.extxyz.xz"], REFUSE),
    "line missing": _s2ef_lines(lambda rng, lines: lines.pop()),
    "line more": _s2ef_lines(lambda rng, lines: lines.append("random9,frame9,0.0")),
    "strange reference": _s2ef_lines(
        lambda rng, lines: lines.__setitem__(0, f"random0,frame0,{rng.choice([*_STRANGE_NUMBERS, '', 'x,1'])}")
    ),
    "fewer columns": _s2ef_lines(lambda rng, lines: lines.__setitem__(1, "random0,-1.5")),
}


# --------------------------------------------------------------------------------------------------- files by other libraries


def _by_ase(path: Path) -> Numbers:
    """ASE's own opinion; what else it can read of it counts as well."""
    frames = ase.io.read(path, index=":")
    found = []
    for atoms in frames:
        results = {} if atoms.calc is None else atoms.calc.results
        stress = results.get("stress")
        if stress is not None and np.size(stress) == 6:
            xx, yy, zz, yz, xz, xy = np.asarray(stress).reshape(6)
            stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        one = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": np.asarray(atoms.cell), "pbc": atoms.pbc}
        found.append({**one, "energy": results.get("energy"), "forces": results.get("forces"), "stress": stress})
    return found


def _make_by_ase(path: Path) -> None:
    ase.io.write(path, metal())


def _make_iso17(path: Path) -> None:
    from ase.db import connect

    with connect(path) as database:
        for atoms in molecules():
            results = atoms.calc.results
            database.write(
                atoms.copy(),
                key_value_pairs={"total_energy": results["energy"]},
                data={"atomic_forces": results["forces"]},
            )


def _make_lmdb(path: Path) -> None:
    import ase_db_backends  # noqa: F401, registers the format
    from ase.db import connect

    with connect(path, type="aselmdb") as database:
        for atoms in metal():
            database.write(atoms)
    for lock in path.parent.glob("*-lock"):
        lock.unlink()


def _row(change: Callable[[random.Random, dict[str, Any]], None]) -> Change:
    """ISO17's rows with other labels."""

    def changed(rng: random.Random, path: Path) -> Expect:
        from ase.db import connect

        path.unlink()
        with connect(path) as database:
            for atoms in molecules():
                row: dict[str, Any] = {
                    "key_value_pairs": {"total_energy": atoms.calc.results["energy"]},
                    "data": {"atomic_forces": atoms.calc.results["forces"]},
                }
                change(rng, row)
                database.write(atoms.copy(), **row)
        return REFUSE

    return changed


_ISO17: dict[str, Change] = {
    "energy in words": _row(lambda rng, row: row["key_value_pairs"].update(total_energy=rng.choice(["high", "x1"]))),
    "forces in words": _row(
        lambda rng, row: row["data"].update(atomic_forces=rng.choice(["none", {"a": 1}, [1.0], [["x"] * 3] * 9]))
    ),
    "forces of other atoms": _row(lambda rng, row: row["data"].update(atomic_forces=row["data"]["atomic_forces"][:-1])),
    "forces not finite": _row(lambda rng, row: row["data"].update(atomic_forces=row["data"]["atomic_forces"] * np.nan)),
}


def _no_rows(rng: random.Random, path: Path) -> Expect:
    from ase.db import connect

    path.unlink()
    with connect(path) as database:
        database.delete([database.write(ase.Atoms("H"))])
    return REFUSE


def _make_hdf5(path: Path) -> None:
    from leignn_jax.data.readers import write_hdf5

    write_hdf5(path, metal())


def _h5(change: Callable[[random.Random, Any, Any], Expect]) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        with h5py.File(path, "r+") as file:
            return change(rng, file, next(item for item in file.values() if isinstance(item, h5py.Group)))

    return changed


def _dataset(change: Callable[[random.Random, np.ndarray], np.ndarray], expect: Expect, names: tuple[str, ...]):
    def changed(rng, file, group):
        name = rng.choice(names)
        values = change(rng, group[name][()])
        del group[name]
        group[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values
        return expect

    return changed


def _attribute(rng, file, group) -> Expect:
    where = rng.choice([file, group, group["energy"], group["forces"]])
    where.attrs[rng.choice(["units", "unit"])] = rng.choice(
        ["kcal/mol", "kcal/mol/angstrom", "Hartree", "hartree/bohr", "kJ/mol"]
    )
    return REFUSE


def _hdf5_do(do: Callable[[random.Random, Any, Any], Any], expect: Expect):
    def changed(rng, file, group):
        do(rng, file, group)
        return expect

    return changed


_LABELLED = ("positions", "energy", "forces", "stress", "cell")
_HDF5: dict[str, Change] = {
    **{
        f"array {how}": _h5(_dataset(change, REFUSE, _LABELLED))
        for how, change in _WRONG_ARRAYS.items()
        if how not in ("dates", "structured")
    },
    "big endian": _h5(_dataset(lambda rng, x: x.astype(">f8"), SAME, _LABELLED)),
    "atomic numbers": _h5(_dataset(lambda rng, x: rng.choice(_WRONG_NUMBERS)(x), REFUSE, ("numbers",))),
    "units": _h5(_attribute),
    "dataset missing": _h5(
        _hdf5_do(lambda rng, file, group: group.__delitem__(rng.choice(["positions", "numbers"])), REFUSE)
    ),
    "a dataset is a group": _h5(
        _hdf5_do(lambda rng, file, group: (group.__delitem__("energy"), group.create_group("energy")), REFUSE)
    ),
    "link to nothing": _h5(
        _hdf5_do(
            lambda rng, file, group: (group.__delitem__("forces"), group.__setitem__("forces", h5py.SoftLink("/x"))),
            REFUSE,
        )
    ),
    "link to another file": _h5(
        _hdf5_do(
            lambda rng, file, group: (
                group.__delitem__("forces"),
                group.__setitem__("forces", h5py.ExternalLink("/etc/passwd", "/x")),
            ),
            REFUSE,
        )
    ),
    "empty group": _h5(_hdf5_do(lambda rng, file, group: file.create_group("zz"), REFUSE)),
    "terabytes": _h5(
        _hdf5_do(
            lambda rng, file, group: (
                group.__delitem__("positions"),
                group.create_dataset("positions", (1 << 40, 4, 3), "f8", chunks=(1024, 4, 3)),
            ),
            REFUSE,
        )
    ),
}


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
    "key twice": _edit('"energy":', '"energy": 7.0, "energy":', REFUSE),
    "element": _edit('"Cu"', lambda rng: rng.choice(['"X"', '"Xx"', "29", "null", '""', '["Cu"]']), REFUSE),
    "byte-order mark": _everywhere(lambda t: "\ufeff" + t, SAME),
}

_VASP = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling><generator><i name="version" type="string">6.4.1</i></generator>
<incar></incar><kpoints><varray name="kpointlist"><v>0 0 0</v></varray></kpoints>
<parameters><separator name="electronic"><i name="NELECT">1</i></separator></parameters>
<atominfo><atoms>2</atoms><types>1</types>
<array name="atoms"><field type="string">element</field><field type="int">atomtype</field>
<set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set></array></atominfo>
<structure name="initialpos"><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<calculation><scstep><energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i>
<i name="e_0_energy">-10.45</i></energy></scstep>
<structure><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<varray name="forces"><v>0.1 0 0</v><v>-0.1 0 0</v></varray>
<varray name="stress"><v>10 0 0</v><v>0 10 0</v><v>0 0 10</v></varray>
<energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i><i name="e_0_energy">-10.45</i></energy>
</calculation></modeling>
"""


def _vasp_right() -> Numbers:
    forces = np.array([[0.1, 0, 0], [-0.1, 0, 0]])
    one = {"numbers": np.array([14, 14]), "positions": np.array([[0.0] * 3, [2.0] * 3]), "cell": 4.0 * np.eye(3)}
    return [
        {
            **one,
            "pbc": np.ones(3, bool),
            "energy": -10.45,
            "forces": forces,
            "stress": -10 * 6.241509074460763e-4 * np.eye(3),
        }
    ]


# --------------------------------------------------------------------------- labels


def _labels(rng: random.Random, folder: Path) -> Trial:
    """A label of a wrong kind wherever labels may stand."""
    from leignn_jax.data import read_labels

    atoms = metal()[0].copy()
    right = dict(metal()[0].calc.results)
    name = rng.choice(sorted(right))
    strange = [
        None,
        "x",
        {},
        {"a": 1.0},
        [],
        1j,
        damage.ODD,
        float("nan"),
        np.inf,
        True,
        b"1",
        "1.0",
        set(),
        [["x"] * 3] * 4,
    ]
    strange += [
        np.array(right[name], object),
        np.array(right[name]).astype(complex),
        np.zeros((4, 3, 1)),
        1e300,
        np.ma.masked,
    ]
    value = rng.choice(strange)
    where = rng.choice(["results", "info", "arrays"])
    if where == "arrays" and (not isinstance(value, np.ndarray) or value.shape[:1] != (4,)):
        where = "info"
    results = {k: v for k, v in right.items() if k != name or where != "results"}
    if where == "results":
        results[name] = value
        atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results = results
    else:
        atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in right.items() if k != name})
        (atoms.info if where == "info" else atoms.arrays)[name] = value
    allowed = REFUSE
    if value is None:
        allowed = EITHER.giving({**_voigted(right), name: None})
    elif isinstance(value, np.ndarray) and value.dtype == object:
        allowed = EITHER.giving(_voigted(right))
    keys = {name: name} if rng.random() < 0.3 else None
    if value is None and keys:
        allowed = REFUSE
    return Trial(
        lambda: read_labels(atoms, "frame 0", keys)._asdict(), allowed, what=f"{name} in {where}: {value!r:.60}"
    )


def _voigted(results: dict) -> dict:
    xx, yy, zz, yz, xz, xy = results["stress"]
    return {
        "energy": results["energy"],
        "forces": results["forces"],
        "stress": np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]),
    }


def _label_keys(rng: random.Random, folder: Path) -> Trial:
    """Names of labels that are no names."""
    from leignn_jax.data import read_labels

    keys = rng.choice(
        [{"energy": x} for x in (1, 1.5, damage.ODD, b"energy", [1], "Energy", "")] + [{"forces": "energy"}]
    )
    return Trial(lambda: read_labels(metal()[0], "frame 0", keys)._asdict(), REFUSE, what=repr(keys)[:80])


# --------------------------------------------------------------------------- units

_SCALINGS = {
    "forces x 23.06": {"forces": 23.06},
    "forces x 27.2": {"forces": 27.2},
    "forces x 51.4": {"forces": 51.4},
    "forces x 10": {"forces": 10.0},
    "forces x 0.001": {"forces": 1e-3},
    "forces x -1": {"forces": -1.0},
    "positions in bohr": {"positions": 1.8897},
}


def _scaled(scaling: dict[str, float]) -> Callable[[random.Random, Path], Trial]:
    """All frames of a bundled set with labels in another unit: an error or a warning is an answer, silence is not."""

    def trial(rng: random.Random, folder: Path) -> Trial:
        from leignn_jax.data import bundled_data, read_frames

        name = rng.choice(["si", "ethanol"])
        start = rng.randrange(0, 100)
        frames = read_frames(bundled_data(name) / "train.extxyz.xz", index=f"{start}:{start + 60}")
        for atoms in frames:
            results = {k: v for k, v in atoms.calc.results.items() if k in ("energy", "forces")}
            results["forces"] = results["forces"] * scaling.get("forces", 1.0)
            scale = scaling.get("positions", 1.0)
            atoms.set_cell(atoms.cell * scale)
            atoms.positions *= scale
            atoms.calc = SinglePointCalculator(atoms, **results)
        path = folder / "frames.extxyz"
        ase.io.write(path, frames, format="extxyz")
        return Trial(lambda: _heard(path), REFUSE if scaling else SAME.giving("nothing said"), what=name)

    return trial


def _heard(path: Path) -> str:
    """Raises what a training raises or warns of."""
    import logging

    from leignn_jax.errors import DataError

    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("leignn_jax")
    logger.addHandler(handler)
    logging.disable(logging.NOTSET)
    try:
        use(path)
    finally:
        logging.disable(logging.ERROR)
        logger.removeHandler(handler)
    if heard:
        raise DataError(heard[0])
    return "nothing said"


_RIGHT_METAL: Callable[[], Numbers] = lambda: numbers_of(metal())  # noqa: E731
_RIGHT_MOLECULES: Callable[[], Numbers] = lambda: numbers_of(molecules())  # noqa: E731

TARGETS = [
    file_target(
        "extxyz",
        "frames.extxyz",
        lambda path: path.write_text(text_of(metal())) and None,
        _RIGHT_METAL,
        _XYZ,
        lambda path: read_strictly(path.read_bytes()),
        share=6,
    ),
    *(_packed(suffix) for suffix in _OPEN),
    file_target("npz", "frames.npz", _make_npz, _RIGHT_MOLECULES, _NPZ, share=3, summed=True),
    file_target("deepmd", "system", _make_deepmd, _RIGHT_METAL, _DEEPMD, _read_deepmd_again),
    file_target("s2ef", "s2ef", _make_s2ef, _s2ef_right, _S2EF, lambda path: numbers_of(None), share=2),  # type: ignore[arg-type]
    file_target("aselmdb", "frames.aselmdb", _make_lmdb, _RIGHT_METAL, {}, None, share=2),
    file_target("db", "frames.db", _make_by_ase, _RIGHT_METAL, {"no rows": _no_rows}, _by_ase, share=2),
    file_target("iso17", "iso17.db", _make_iso17, _RIGHT_MOLECULES, _ISO17, None, share=1),
    file_target("hdf5", "frames.h5", _make_hdf5, _RIGHT_METAL, _HDF5, None),
    file_target("mlearn", "frames.json", _make_mlearn, _RIGHT_METAL, _MLEARN, _mlearn_bytes),
    file_target("ase json", "rows.json", _make_by_ase, _RIGHT_METAL, {}, _by_ase, share=1),
    file_target("traj", "frames.traj", _make_by_ase, _RIGHT_METAL, {}, _by_ase, share=2),
    file_target(
        "vasprun", "vasprun.xml", lambda path: path.write_text(_VASP) and None, _vasp_right, {}, _by_ase, share=1
    ),
    Target("labels", {"value": _labels, "keys": _label_keys}, 2),
    Target("units", {**{k: _scaled(v) for k, v in _SCALINGS.items()}, "right": _scaled({})}, 1),
]
