"""Labels wherever they stand, and in other units than they should be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from fuzz import damage
from fuzz.cases import EITHER, REFUSE, SAME, Target, Trial
from fuzz.formats import metal


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
    from leignn_jax.training.config import DataSettings
    from leignn_jax.training.dataset import load_splits

    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("leignn_jax")
    logger.addHandler(handler)
    logging.disable(logging.NOTSET)
    try:
        load_splits(DataSettings(train=path), 4.0)
    finally:
        logging.disable(logging.ERROR)
        logger.removeHandler(handler)
    if heard:
        raise DataError(heard[0])
    return "nothing said"


TARGETS = [
    Target("labels", {"value": _labels, "keys": _label_keys}, 2),
    Target("units", {**{k: _scaled(v) for k, v in _SCALINGS.items()}, "right": _scaled({})}, 1),
]
