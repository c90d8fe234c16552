"""What data files must say, and how a format of them is broken."""

from __future__ import annotations

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
import numpy as np
from ase.data import chemical_symbols
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, Expect, Target, Trial
from fuzz.xyz import NotExtendedXYZ

KCAL = 0.04336411531


Numbers = list[dict[str, Any]]


Change = Callable[[random.Random, Path], "Expect | tuple[Path, Expect]"]


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
        arrays = [one[k] for k in ("cell", "energy", "forces", "stress") if one[k] is not None]
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


def text_of(frames: list[ase.Atoms]) -> str:
    out = io.StringIO()
    ase.io.write(out, frames, format="extxyz")
    return out.getvalue()


def edit(old: str, new: str | Callable[[random.Random], str], expect: Expect) -> Change:
    """One place of the text, in some frame, replaced."""

    def change(rng: random.Random, path: Path) -> Expect:
        text = path.read_text()
        where = [i for i in range(len(text)) if text.startswith(old, i)]
        at = rng.choice(where)
        path.write_text(text[:at] + (new if isinstance(new, str) else new(rng)) + text[at + len(old) :])
        return expect

    return change


def everywhere(change: Callable[[str], str], expect: Expect) -> Change:
    def all_of_it(rng: random.Random, path: Path) -> Expect:
        path.write_bytes(change(path.read_text()).encode())
        return expect

    return all_of_it


STRANGE_NUMBERS = [
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


def lines(change: Callable[[random.Random, list[str]], None], expect: Expect) -> Change:
    def changed(rng: random.Random, path: Path) -> Expect:
        lines = path.read_text().split("\n")[:-1]
        change(rng, lines)
        path.write_text("\n".join(lines) + "\n")
        return expect

    return changed


RIGHT_METAL: Callable[[], Numbers] = lambda: numbers_of(metal())  # noqa: E731


RIGHT_MOLECULES: Callable[[], Numbers] = lambda: numbers_of(molecules())  # noqa: E731
