"""Data files of arrays: MD17's npz, DeePMD-kit, OC20 S2EF and HDF5."""

from __future__ import annotations

import io
import lzma
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import units
from ase.data import atomic_numbers

from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, Expect
from fuzz.formats import (
    KCAL,
    RIGHT_METAL,
    RIGHT_MOLECULES,
    STRANGE_NUMBERS,
    Change,
    Numbers,
    file_target,
    metal,
    molecules,
    numbers_of,
    text_of,
)
from fuzz.xyz import NotExtendedXYZ, read_strictly

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


def _allowed(how: str) -> Expect:
    """Numbers in words may be taken for what they are."""
    return EITHER if how == "words" else REFUSE


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
        return _allowed(how)

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
    symbols = (path / "type_map.raw").read_text().split()
    if types.split() != ["0"] * 4 or len(symbols) != 1 or symbols[0] not in atomic_numbers:
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
                    "numbers": np.full(4, atomic_numbers[symbols[0]]),
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
        f"array {how}": _npy(change, _allowed(how))
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


def _read_s2ef_again(path: Path) -> Numbers:
    """Frames less the references of the tables, read by the strict reader."""
    found: Numbers = []
    for number in ("0", "1"):
        frames = read_strictly(lzma.decompress((path / f"{number}.extxyz.xz").read_bytes()))
        table = (path / f"{number}.txt").read_bytes()
        lines = [re.fullmatch(rb"[^,\n]+,[^,\n]+,(-?\d+\.?\d*)", line) for line in table.split(b"\n")[:-1] if line]
        if not table.endswith(b"\n") or len(lines) != len(frames) or None in lines:
            raise NotExtendedXYZ("table")
        for one, line in zip(frames, lines, strict=True):
            found.append({**one, "energy": one["energy"] - float(line[1])})
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
        lambda rng, lines: lines.__setitem__(0, f"random0,frame0,{rng.choice([*STRANGE_NUMBERS, '', 'x,1'])}")
    ),
    "fewer columns": _s2ef_lines(lambda rng, lines: lines.__setitem__(1, "random0,-1.5")),
}


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
    word = rng.choice(sorted(_IN_EV))
    where.attrs[rng.choice(["units", "unit"])] = word
    energy, length = _IN_EV[word]
    factors = {"energy": energy, "forces": energy / length, "stress": energy / length**3}
    factors |= {"positions": length, "cell": length}
    right = [{k: v * factors.get(k, 1) if k in factors else v for k, v in one.items()} for one in numbers_of(metal())]
    return EITHER.giving(right)


# eV and Å of the units that a file says it is in; forces alone in some unit say it of all.
_IN_EV = {"kcal/mol": (units.kcal / units.mol, 1.0), "kJ/mol": (units.kJ / units.mol, 1.0)}
_IN_EV |= {"kcal/mol/angstrom": _IN_EV["kcal/mol"], "Hartree": (units.Ha, 1.0), "hartree/bohr": (units.Ha, units.Bohr)}


def _hdf5_do(do: Callable[[random.Random, Any, Any], Any], expect: Expect):
    def changed(rng, file, group):
        do(rng, file, group)
        return expect

    return changed


_LABELLED = ("positions", "energy", "forces", "stress", "cell")


_HDF5: dict[str, Change] = {
    **{
        f"array {how}": _h5(_dataset(change, _allowed(how), _LABELLED))
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


TARGETS = [
    file_target("npz", "frames.npz", _make_npz, RIGHT_MOLECULES, _NPZ, share=3, summed=True),
    file_target("deepmd", "system", _make_deepmd, RIGHT_METAL, _DEEPMD, _read_deepmd_again),
    file_target("s2ef", "s2ef", _make_s2ef, _s2ef_right, _S2EF, _read_s2ef_again, share=2),
    file_target("hdf5", "frames.h5", _make_hdf5, RIGHT_METAL, _HDF5, None),
]
