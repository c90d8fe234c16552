"""Trajectories, whole and in parts."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fuzz.cases import REFUSE, SAME, Expect
from fuzz.own_files import Change, target
from fuzz.samples import silicon

_FRAMES = 6


def _write_trajectory(folder: Path, closed: bool) -> None:
    from leignn_jax.simulation.trajectory import TrajectoryWriter

    atoms = silicon()
    writer = TrajectoryWriter(folder / "trajectory.h5", atoms, part_bytes=1000)
    rng = np.random.default_rng(0)
    for step in range(_FRAMES):
        r = atoms.positions[None] + step
        noise = rng.normal(size=r.shape)
        writer.append([step], [0.5 * step], r, velocities=noise, forces=noise, energy=[-1.0 * step])
        if not closed and step in (2, 4):
            writer.flush()
    if closed:
        writer.close()
    else:
        writer.flush()


def _use_trajectory(folder: Path) -> dict[str, Any]:
    from leignn_jax.simulation.trajectory import read_trajectory

    found = read_trajectory(folder / "trajectory.h5")
    names = ("numbers", "masses", "pbc", "step", "time", "positions", "velocities", "forces", "cell", "energy")
    values = {name: np.asarray(getattr(found, name)) for name in names}
    found.to_atoms(), found[-1], found[::-1].positions
    return values


def _h5(change: Callable[[random.Random, Any], Any], expect: Expect) -> Change:
    def changed(rng: random.Random, folder: Path) -> Expect:
        with h5py.File(folder / "trajectory.h5", "r+") as file:
            change(rng, file)
        return expect

    return changed


def _values(place: str, change: Callable[[random.Random, np.ndarray], Any]) -> Change:
    def changed(rng: random.Random, file: Any) -> None:
        dataset = file[place]
        attributes = dict(dataset.attrs)
        values = change(rng, dataset[()])
        del file[place]
        file[place] = values
        file[place].attrs.update(attributes)

    return _h5(changed, REFUSE)


_P = "particles/all"


def _entry(rng: random.Random, x: np.ndarray, choices: list) -> np.ndarray:
    out = np.array(x)
    out.reshape(-1)[rng.randrange(out.size)] = rng.choice(choices)
    return out


_TRAJECTORY: dict[str, Change] = {
    "masses": _values(f"{_P}/mass", lambda rng, x: _entry(rng, x, [-1.0, 0.0, np.nan, np.inf])),
    "masses of another shape": _values(
        f"{_P}/mass", lambda rng, x: rng.choice([x[:-1], x[None], np.array(b"x"), x + 1j])
    ),
    "species": _values(f"{_P}/species", lambda rng, x: _entry(rng, x, [0, -1, 119, 10**6])),
    "species of another kind": _values(
        f"{_P}/species", lambda rng, x: rng.choice([x + 0.5, x[:-1], x[:0], x.astype("S2")])
    ),
    "steps go back": _values(
        f"{_P}/position/step", lambda rng, x: rng.choice([x[::-1], np.zeros_like(x), np.append(x[:-1], x[0])])
    ),
    "steps of another kind": _values(
        f"{_P}/position/step", lambda rng, x: rng.choice([x[:-1], x + 0.5, x[:, None], -1 - x])
    ),
    "time": _values(f"{_P}/position/time", lambda rng, x: rng.choice([x * np.nan, x[:-1], x[::-1]])),
    "positions of another shape": _values(
        f"{_P}/position/value", lambda rng, x: rng.choice([x[:-1], x[:, :-1], x[..., :2], x.reshape(-1), x.astype(int)])
    ),
    "velocities of another shape": _values(
        f"{_P}/velocity/value", lambda rng, x: rng.choice([x[:-1], x[:, :-1], np.array(1.0)])
    ),
    "energy of another shape": _values(
        "observables/potential_energy/value", lambda rng, x: rng.choice([x[:-1], x[:, None], x * np.nan])
    ),
    "cell": _values(f"{_P}/box/edges/value", lambda rng, x: rng.choice([x * np.nan, x[:-1], x[:, 0], x * 0])),
    "field missing": _h5(
        lambda rng, f: f.__delitem__(
            rng.choice([f"{_P}/position", f"{_P}/box", f"{_P}/mass", f"{_P}/species", "leignn_jax", _P])
        ),
        REFUSE,
    ),
    "field is a group": _h5(lambda rng, f: (f.__delitem__(f"{_P}/mass"), f.create_group(f"{_P}/mass")), REFUSE),
    "boundary": _h5(
        lambda rng, f: f[f"{_P}/box"].attrs.update(
            boundary=rng.choice(["x", 3, ["periodic"], ["periodic", "none", "x"], [1, 2, 3]])
        ),
        # For other programs; what is read is kept beside it, under a checksum.
        SAME,
    ),
    "format": _h5(
        lambda rng, f: f["leignn_jax"].attrs.update(format=rng.choice(["x", 3, "leignn_jax.trajectory/99"])), REFUSE
    ),
}


_STRANGE_PARTS = [
    "",
    "x",
    "null",
    "[]",
    "[1]",
    '[["x", 1, 1]]',
    '[["../../../etc/passwd", 3, 3]]',
    "{}",
    "[" * 100_000,
    '[["trajectory.parts/part_000001.h5", 99, 99]]',
    '[["trajectory.parts/part_000001.h5", -1, 3]]',
    "[[null, 1, 1]]",
    '[["trajectory.h5", 6, 6]]',
]


def _parts_list(rng: random.Random, file: Any) -> None:
    del file["leignn_jax/parts"]
    file["leignn_jax/parts"] = rng.choice(_STRANGE_PARTS)


_PARTS: dict[str, Change] = {
    "part gone": lambda rng, folder: rng.choice(sorted((folder / "trajectory.parts").iterdir())).unlink() or REFUSE,
    "all parts gone": lambda rng, folder: shutil.rmtree(folder / "trajectory.parts") or REFUSE,
    "list of parts": _h5(_parts_list, REFUSE),
    "parts exchanged": lambda rng, folder: _exchange(folder / "trajectory.parts"),
    "strange file": lambda rng, folder: (folder / "trajectory.parts" / "x").write_text("x") and SAME,
}


def _exchange(parts: Path) -> Expect:
    first, second = sorted(parts.iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return REFUSE


TARGETS = [
    target("trajectory", lambda f: _write_trajectory(f, True), _use_trajectory, _TRAJECTORY, share=5),
    target("trajectory in parts", lambda f: _write_trajectory(f, False), _use_trajectory, _PARTS, share=2),
]
