"""The functions of ``leignn_jax.analysis``, each with one argument changed."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np

from fuzz import damage
from fuzz.cases import EITHER, REFUSE, SAME, Target, Trial

_FRAMES, _ATOMS = 24, 6
_rng = np.random.default_rng(7)
_START = np.array([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [4, 4, 4], [5.2, 4, 4], [4, 5.1, 4.0]])
_WALK = np.cumsum(0.02 * _rng.normal(size=(_FRAMES, _ATOMS, 3)), axis=0) + _START
_SPEED = 0.01 * _rng.normal(size=(_FRAMES, _ATOMS, 3))
_FORCES = _rng.normal(size=(_FRAMES, _ATOMS, 3))
_ENERGY = -10 + 0.1 * _rng.normal(size=_FRAMES)
_NUMBERS = np.array([8, 1, 1, 8, 1, 1])
_MASSES = np.array([16.0, 1.0, 1.0, 16.0, 1.0, 1.0])
_CELL = 9.0 * np.eye(3)

# Each parameter by kind: what must be refused, and what says the same in another form.
_SCALAR = [None, "x", [], {}, damage.ODD, float("nan"), 1j, [1.0, 2.0], np.zeros((2, 2))]
_WHOLE = [*_SCALAR, 0, -1, 1.5]


def _series_bad(x: np.ndarray) -> list[Any]:
    broken = x.copy()
    broken.reshape(-1)[5] = np.nan
    endless = x.copy()
    endless.reshape(-1)[7] = -np.inf
    return [
        None,
        "x",
        {},
        damage.ODD,
        broken,
        endless,
        x[0, 0],
        x[..., :2],
        x[:0],
        x.astype(complex) + 1j,
        x.astype(str),
        [[1.0], [1.0, 2.0]],
        3.0,
    ]


def _labels_bad(x: np.ndarray) -> list[Any]:
    return [None, "x", {}, damage.ODD, x[:-1], x[None], x + 0.5, x.astype(str), x[:0], np.append(x, 1), -x]


def _masses_bad(x: np.ndarray) -> list[Any]:
    return ["x", {}, damage.ODD, x[:-1], x[None], x * np.nan, x.astype(str), -x, 0 * x, x + 1j]


_CELL_BAD = [
    None,
    "x",
    {},
    damage.ODD,
    _CELL[:2],
    _CELL * np.nan,
    _CELL * 0,
    np.zeros((2, 3, 3)),
    [[9, 0, 0], [0, 9, 0], [9, 9, 0]],
    _CELL + 1j,
]
_PBC_BAD = ["x", {}, damage.ODD, [True, True], [[True] * 3] * 2, [0.5, 1, 1], [None, 1, 1], np.array(["T", "T", "F"])]
_TIMESTEP = [*_SCALAR, 0, -1.0, float("inf")]
_REACH = [*_SCALAR, 0, -1.0, float("inf")]


def _forms(x: np.ndarray) -> list[Any]:
    """The same numbers otherwise."""
    frozen = x.copy()
    frozen.flags.writeable = False
    return [
        x.tolist(),
        np.asfortranarray(x),
        x.astype(x.dtype.newbyteorder(">")),
        frozen,
        x.astype(np.longdouble) if x.dtype.kind == "f" else x.astype(np.int8),
    ]


Call = tuple[str, dict[str, Any], dict[str, list[Any]]]


@functools.cache
def _rdf() -> Any:
    from leignn_jax import analysis

    return analysis.radial_distribution(_WALK, _NUMBERS, _CELL, r_max=4.0, bins=40)


def _calls() -> list[Call]:
    """Function, good arguments by name, bad values by name."""
    series = {"positions": _WALK, "numbers": _NUMBERS, "timestep": 1.0}
    still = {"positions": _series_bad(_WALK), "numbers": _labels_bad(_NUMBERS)}
    bad = {**still, "timestep": _TIMESTEP}
    speeds = {"velocities": _SPEED, "numbers": _NUMBERS, "timestep": 1.0}
    bad_speeds = {"velocities": _series_bad(_SPEED), "numbers": _labels_bad(_NUMBERS), "timestep": _TIMESTEP}
    # What looks for the moment when a simulation broke takes positions that are not finite.
    exploded = {**bad, "positions": [x for x in bad["positions"] if not _is_exploded(x)]}
    masses = {"masses": _masses_bad(_MASSES)}
    lag = {"max_lag": ["x", {}, damage.ODD, float("nan"), -1.0, 1e9, float("inf")]}
    blocks = {"blocks": [*_WHOLE, 10**9], "element": ["X", "", 3, "Si", damage.ODD, 1.5]}
    window = {"window": [None, "x", (1,), (5, 1), (0, 0), (float("nan"), 3), (1, 1e9), 3, (-5, 5), ("a", "b")]}
    return [
        (
            "radial_distribution",
            {"positions": _WALK, "numbers": _NUMBERS, "cell": _CELL, "r_max": 4.0, "bins": 40},
            {**still, "cell": _CELL_BAD, "pbc": _PBC_BAD, "r_max": [*_REACH, 1e9], "bins": [*_WHOLE, 10**12]},
        ),
        (
            "distance_distribution",
            {"positions": _WALK, "bins": 40},
            {
                "positions": bad["positions"],
                "r_max": _REACH,
                "bins": [*_WHOLE, 10**12],
                "select": ["x", {}, [True], damage.ODD, [0] * _ATOMS],
            },
        ),
        ("mean_squared_displacement", {**series}, {**bad, **masses, **lag}),
        ("velocity_autocorrelation", {**speeds}, {**bad_speeds, **masses, **lag}),
        (
            "vibrational_density_of_states",
            {**speeds},
            {
                **bad_speeds,
                **masses,
                **lag,
                "window": [None, "x", 3, "Hann", [], damage.ODD],
                "padding": _WHOLE,
                "integral": ["x", {}, float("nan"), damage.ODD],
            },
        ),
        (
            "diffusivity",
            {**series, "window": (2.0, 8.0), "blocks": 2},
            {**bad, **masses, **blocks, **window, "dimensions": _WHOLE},
        ),
        (
            "green_kubo_diffusivity",
            {**speeds, "cutoff": 5.0, "blocks": 2},
            {**bad_speeds, **masses, **blocks, "cutoff": [*_TIMESTEP, 1e9], "dimensions": _WHOLE},
        ),
        (
            "force_distribution",
            {"forces": _FORCES},
            {
                "forces": _series_bad(_FORCES),
                "f_max": ["x", 0, -1, float("nan"), float("inf"), {}, damage.ODD],
                "bins": [*_WHOLE, 10**12],
            },
        ),
        (
            "force_distance",
            {"first": _FORCES, "second": _FORCES[::-1] * 1.1},
            {"first": _series_bad(_FORCES), "second": _series_bad(_FORCES), "bins": [*_WHOLE, 10**12]},
        ),
        ("statistical_inefficiency", {"series": _ENERGY}, {"series": _series1_bad()}),
        ("mean_with_error", {"series": _ENERGY}, {"series": _series1_bad()}),
        ("block_average", {"series": _ENERGY, "blocks": 4}, {"series": _series1_bad(), "blocks": [*_WHOLE, 1, 10**9]}),
        (
            "kinetic_energy",
            {"velocities": _SPEED, "masses": _MASSES},
            {"velocities": bad_speeds["velocities"], "masses": [None, *masses["masses"]]},
        ),
        (
            "temperature",
            {"velocities": _SPEED, "masses": _MASSES},
            {
                "velocities": bad_speeds["velocities"],
                "masses": [None, *masses["masses"]],
                "removed": ["x", None, -1, 10**9, 1.5, damage.ODD],
            },
        ),
        (
            "pressure",
            {"stress": 0.01 * np.ones((_FRAMES, 3, 3)), "velocities": _SPEED, "masses": _MASSES, "volume": 729.0},
            {
                "stress": _series_bad(np.ones((_FRAMES, 3, 3))),
                "velocities": bad_speeds["velocities"],
                "masses": [None, *masses["masses"]],
                "volume": [*_TIMESTEP],
            },
        ),
        (
            "thermo_log",
            {"velocities": _SPEED, "masses": _MASSES, "potential_energy": _ENERGY, "timestep": 1.0},
            {
                "velocities": bad_speeds["velocities"],
                "masses": [None, *masses["masses"]],
                "potential_energy": _series1_bad(),
                "timestep": _TIMESTEP,
            },
        ),
        (
            "energy_drift",
            {"energy": _ENERGY, "atoms": 6, "timestep": 1.0},
            {"energy": _series1_bad(), "atoms": _WHOLE, "timestep": _TIMESTEP},
        ),
        (
            "unwrap",
            {"positions": _WALK, "cell": _CELL, "pbc": [True] * 3},
            {"positions": bad["positions"], "cell": _CELL_BAD, "pbc": _PBC_BAD},
        ),
        (
            "bond_instability",
            {**series, "reference": _WALK},
            {**exploded, "reference": _series_bad(_WALK), "threshold": _REACH, "slack": [*_SCALAR, -10.0]},
        ),
        (
            "distance_instability",
            {**series, "cell": _CELL, "pbc": True, "shortest": {("H", "H"): 0.7}},
            {
                **exploded,
                "cell": _CELL_BAD,
                "pbc": _PBC_BAD,
                "shortest": [None, "x", {"H": 1.0}, {("H", "H"): "x"}, {("Q", "H"): 1.0}, {("H", "H"): float("nan")}],
                "tolerance": [*_SCALAR],
            },
        ),
        (
            "rdf_instability",
            {**series, "cell": _CELL, "pbc": True, "reference": _rdf(), "threshold": 3.0, "window": 5.0},
            {
                **exploded,
                "cell": _CELL_BAD,
                "pbc": _PBC_BAD,
                "reference": [None, "x", 3, damage.ODD],
                "threshold": _REACH,
                "window": [*_TIMESTEP],
            },
        ),
        (
            "rdf_mae",
            {"first": np.ones(5), "second": np.zeros(5), "edges": np.arange(6.0)},
            {"first": ["x", None, np.ones(4), damage.ODD], "edges": ["x", None, np.arange(4.0), damage.ODD]},
        ),
        (
            "from_ase",
            {"frames": [ase.Atoms("H2", _START[:2])] * 2},
            {
                "frames": [
                    None,
                    "x",
                    3,
                    [],
                    [None],
                    {},
                    damage.ODD,
                    [ase.Atoms("H"), ase.Atoms("O")],
                    [ase.Atoms("H", pbc=True, cell=[1, 1, 1]), ase.Atoms("H")],
                ]
            },
        ),
    ]


def _is_exploded(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.size > 0 and not np.isfinite(x).all()


def _series1_bad() -> list[Any]:
    broken = _ENERGY.copy()
    broken[3] = np.nan
    return [
        None,
        "x",
        {},
        damage.ODD,
        broken,
        broken * np.inf,
        _ENERGY[:1],
        _ENERGY[:0],
        _ENERGY[None],
        _ENERGY.astype(complex) + 1j,
        _ENERGY.astype(str),
        3.0,
    ]


def _nested(value: Any) -> Any:
    return {k: _nested(v) for k, v in value._asdict().items()} if hasattr(value, "_asdict") else value


def _call(name: str, given: dict[str, Any]) -> Any:
    from leignn_jax import analysis

    return _nested(getattr(analysis, name)(**given))


def _bad(rng: random.Random, folder: Path) -> Trial:
    """A value that an argument can't take."""
    name, good, bad = rng.choice(_calls())
    argument = rng.choice(sorted(bad))
    value = rng.choice(bad[argument])
    # Numbers in words may be taken for what they are.
    in_words = isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size > 3
    what = f"{name}({argument}={value!r:.60})".replace("\n", "")
    return Trial(
        lambda: _call(name, {**good, argument: value}), EITHER if in_words else REFUSE, lambda: _call(name, good), what
    )


def _same(rng: random.Random, folder: Path) -> Trial:
    """The same array in another form."""
    name, good, _ = rng.choice(_calls())
    arrays = [k for k, v in good.items() if isinstance(v, np.ndarray)]
    if not arrays:
        return Trial(lambda: _call(name, good), SAME, lambda: _call(name, good), name)
    argument = rng.choice(arrays)
    value = rng.choice(_forms(good[argument]))
    return Trial(
        lambda: _call(name, {**good, argument: value}),
        SAME,
        lambda: _call(name, good),
        f"{name}({argument}: {type(value).__name__})",
    )


_ATTACKS: dict[str, Callable[[random.Random, Path], Trial]] = {"bad": _bad, "same": _same}

TARGETS = [Target("analysis", {**_ATTACKS, "bad again": _bad, "bad once more": _bad}, 4)]
