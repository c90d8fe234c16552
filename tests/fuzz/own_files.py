"""Files that the package writes: potentials, states, checkpoints, trajectories, logs, stores; and published checkpoints."""

from __future__ import annotations

import functools
import json
import os
import pickle
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.build
import h5py
import jax
import numpy as np
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, AnyOf, Expect, Target, Trial

Change = Callable[[random.Random, Path], Expect]


def target(
    name: str,
    make: Callable[[Path], None],
    use: Callable[[Path], Any],
    changes: dict[str, Change],
    *,
    share: int = 3,
    damaged: Callable[[Path], Expect] = lambda _: EITHER,
    which: Callable[[random.Random, Path], Path] = damage.any_file,
) -> Target:
    """Files in a folder that ``make`` fills and ``use`` reads.

    damaged: what is allowed where bytes of the file that ``which`` chooses were changed.
    """

    @functools.cache
    def template() -> tuple[Path, Any]:
        folder = Path(tempfile.mkdtemp(prefix="fuzz.template."))
        make(folder)
        kept = folder.with_name(f"{folder.name}.kept")
        shutil.copytree(folder, kept)
        return kept, use(folder)

    def attack(change: Change) -> Callable[[random.Random, Path], Trial]:
        def trial(rng: random.Random, folder: Path) -> Trial:
            files, right = template()
            shutil.copytree(files, folder, dirs_exist_ok=True)
            expect = change(rng, folder)
            return Trial(lambda: use(folder), expect, lambda: right)

        return trial

    def bytes_changed(how: Callable[[random.Random, bytes], bytes]) -> Change:
        def change(rng: random.Random, folder: Path) -> Expect:
            file = which(rng, folder)
            before = file.read_bytes()
            after = how(rng, before)
            file.write_bytes(after)
            return SAME if after == before else damaged(folder)

        return change

    all_changes = {**{key: bytes_changed(how) for key, how in damage.BYTES.items()}, **changes}
    return Target(name, {key: attack(change) for key, change in all_changes.items()}, share)


# --------------------------------------------------------------------------- potentials


@functools.cache
def potential():
    """An untrained one, small, with walls and metadata."""
    import leignn_jax as leignn

    config = leignn.LEIGNNConfig(
        elements=("Si", "H"),
        features=4,
        layers=1,
        num_radial=4,
        cutoff=3.0,
        repulsion=True,
        global_nodes=False,
        norm_floor=1e-2,
    )
    made = leignn.Potential.create(
        config,
        jax.random.key(0),
        reference_energies={"Si": -5.0, "H": -1.0},
        scale=0.1,
        metadata={"data": "none", "frames": 3},
    )
    return made.with_walls({("Si", "Si"): 1.5})


@functools.cache
def silicon() -> ase.Atoms:
    """Eight atoms, rattled."""
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def _use_potential(folder: Path) -> dict[str, Any]:
    import leignn_jax as leignn

    found = leignn.load_potential(folder / "potential.safetensors")
    found.summary(), repr(found), found._repr_html_()
    answer = found.predict(silicon())
    return {"energy": answer.energy, "forces": answer.forces, "stress": answer.stress}


def _header(change: Callable[[random.Random, dict[str, np.ndarray], dict[str, str]], Expect]) -> Change:
    """The file written again, with a checksum that fits."""

    def changed(rng: random.Random, folder: Path) -> Expect:
        from safetensors import safe_open
        from safetensors.numpy import save

        from leignn_jax import potential_file

        path = folder / "potential.safetensors"
        with safe_open(path, framework="numpy") as file:
            header = dict(file.metadata())
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        header.pop("sha256")
        expect = change(rng, arrays, header)
        header["sha256"] = potential_file._digest(arrays, header)
        path.write_bytes(save(arrays, metadata=header))
        return expect

    return changed


_STRANGE_JSON = [
    "",
    "null",
    "[]",
    "3",
    "true",
    '"x"',
    "{",
    "[" * 100_000,
    '{"a": {"b": [1, "\u00fc"]}}',
    "NaN",
    "\0",
    '{"a": 1, "a": 2}',
]
_STRANGE: list[Any] = [
    None,
    "x",
    "",
    -1,
    0,
    1.5,
    10**9,
    10**400,
    [],
    ["Si"],
    {},
    {"a": 1},
    True,
    1e400,
    [[[]]],
    "Si",
    ["Si", "Si"],
    [14, 1],
]


def _settings(rng: random.Random, arrays, header) -> Expect:
    config = json.loads(header["config"])
    # Settings that arrays do not depend on may be other ones; those are another potential.
    key = rng.choice(["elements", "features", "layers", "num_radial", "cutoff", "radial_basis", "update", "envelope"])
    value = rng.choice([x for x in _STRANGE if (key, x) not in (("elements", "Si"),)])
    config[key] = value
    header["config"] = json.dumps(config)
    return ANYTHING if key == "cutoff" and value in (1.5, 10**9) and value is not True else REFUSE


def _huge(rng: random.Random, arrays, header) -> Expect:
    config = json.loads(header["config"])
    config[rng.choice(["features", "layers", "num_radial"])] = rng.choice([10**6, 10**9, 10**12, 1 << 62])
    header["config"] = json.dumps(config)
    return REFUSE


def _array(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    def changed(rng: random.Random, arrays, header) -> Expect:
        name = rng.choice(sorted(arrays))
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
        return REFUSE

    return changed


def _without(rng: random.Random, arrays, header) -> Expect:
    name = rng.choice([k for k in sorted(arrays) if k != "walls"])
    del arrays[name]
    return REFUSE


def _said(key: str, texts: list[str], expect: Expect) -> Callable:
    def changed(rng: random.Random, arrays, header) -> Expect:
        if (text := rng.choice(texts)) == "":
            header.pop(key)
        else:
            header[key] = text
        return expect

    return changed


_FACTS = [
    '{"a": {"b": "c"}}',
    '{"a": {"b": null}}',
    '{"a": [1, 2]}',
    '{"a": {"b": [1]}}',
    '{"\u00fc": {"b": true}}',
    '{"a": {"b": {"c": 1}}}',
    "{}",
]

_POTENTIAL: dict[str, Change] = {
    "config": _header(_said("config", _STRANGE_JSON, REFUSE)),
    "setting": _header(_settings),
    "huge setting": _header(_huge),
    "unknown setting": _header(
        lambda rng, a, h: h.update(config=json.dumps({**json.loads(h["config"]), "width": 3})) or REFUSE
    ),
    "metadata of no kind": _header(_said("metadata", [t for t in _STRANGE_JSON if not t.startswith('{"')], REFUSE)),
    "metadata": _header(_said("metadata", _FACTS, SAME)),
    "format": _header(_said("format", ["", "x", "leignn_jax.potential/99", "leignn_jax.trajectory/1"], REFUSE)),
    "version": _header(_said("leignn_jax_version", ["", "x", "99.0"], SAME)),
    "array missing": _header(_without),
    "array more": _header(
        lambda rng, a, h: (
            a.update({rng.choice(["params/x", "params/energy/kernel/x"]): np.zeros(3, np.float32)}) or REFUSE
        )
    ),
    "array of another shape": _header(_array(lambda x: np.concatenate([x.reshape(-1), np.zeros(3, x.dtype)]))),
    "array not finite": _header(_array(lambda x: np.full_like(x, np.nan))),
    "array of integers": _header(_array(lambda x: np.zeros(x.shape, np.int64))),
    "no checksum": lambda rng, folder: _no_checksum(folder),
    "is a folder": lambda rng, folder: _a_folder(folder / "potential.safetensors"),
}


def _no_checksum(folder: Path) -> Expect:
    from safetensors import safe_open
    from safetensors.numpy import save

    path = folder / "potential.safetensors"
    with safe_open(path, framework="numpy") as file:
        header = {k: v for k, v in file.metadata().items() if k != "sha256"}
        arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    path.write_bytes(save(arrays, metadata=header))
    return REFUSE


def _a_folder(path: Path) -> Expect:
    path.unlink()
    path.mkdir()
    return REFUSE


# --------------------------------------------------------------------------- states

_LIKE = {"positions": np.zeros((8, 3)), "step": np.int64(0), "key": jax.ShapeDtypeStruct((), jax.random.key(0).dtype)}


def _state(step: int) -> dict[str, Any]:
    return {"positions": silicon().positions + step, "step": np.int64(step), "key": jax.random.key(step)}


def _plain(tree: dict[str, Any], meta: Any) -> dict[str, Any]:
    return {**tree, "key": np.asarray(jax.random.key_data(tree["key"])), "meta": meta}


def _make_state(folder: Path) -> None:
    from leignn_jax.simulation.state import save_state

    for step in (1, 2):
        save_state(folder / "state.safetensors", _state(step), {"step": step})


def _use_state(folder: Path) -> dict[str, Any]:
    from leignn_jax.simulation.state import load_state

    return _plain(*load_state(folder / "state.safetensors", _LIKE))


def _older_or_newer(_: Path) -> Expect:
    """A damaged state is as if it were not there: the one before counts."""
    return EITHER.giving(AnyOf([_plain(_state(step), {"step": step}) for step in (1, 2)]))


def _other_state(rng: random.Random, folder: Path) -> Expect:
    from leignn_jax.simulation.state import save_state

    for file in folder.iterdir():
        file.unlink()
    tree: dict[str, Any] = _state(1)
    name = rng.choice(sorted(tree))
    tree[name] = rng.choice(
        [np.zeros(3), np.zeros((8, 3), np.float32), np.int32(1), np.zeros((8, 3), complex), np.array(True)]
    )
    if rng.random() < 0.3:
        del tree[name]
    save_state(folder / "state.safetensors", tree, {"step": 1})
    return REFUSE


_STATE: dict[str, Change] = {
    "of another simulation": _other_state,
    "newest gone": lambda rng, folder: (
        (folder / "state.safetensors").unlink() or SAME.giving(_plain(_state(1), {"step": 1}))
    ),
    "none": lambda rng, folder: [p.unlink() for p in folder.iterdir()] and REFUSE,
    "is a folder": lambda rng, folder: _a_folder(folder / "state.safetensors").giving(None) and _older_or_newer(folder),
}


# --------------------------------------------------------------------------- checkpoints


def _tree(step: int) -> dict[str, Any]:
    return {"params": np.arange(2000.0).reshape(50, 40) + step, "step": np.array(step)}


def _make_checkpoints(folder: Path) -> None:
    from leignn_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, _tree(step), {"epoch": step})
    checkpoints.close()


def _use_checkpoints(folder: Path) -> Any:
    from leignn_jax.errors import TrainingError
    from leignn_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        found = checkpoints.restore(_tree(0))
    finally:
        checkpoints.close()
    if found is None:
        raise TrainingError("there is no checkpoint to go on from")
    return {**found[0], "epoch": found[1]["epoch"]}


def _either_checkpoint(_: Path) -> Expect:
    return EITHER.giving(AnyOf([{**_tree(step), "epoch": step} for step in (1, 2)]))


def _file_gone(rng: random.Random, folder: Path) -> Expect:
    damage.any_file(rng, folder).unlink()
    return _either_checkpoint(folder)


def _left_by_a_kill(rng: random.Random, folder: Path) -> Expect:
    newest = folder / "checkpoints" / "2"
    left = newest.with_name("3.orbax-checkpoint-tmp" + rng.choice(["", "-1234", ".5"]))
    shutil.copytree(newest, left)
    damage.any_file(rng, left).unlink()
    return SAME


_CHECKPOINTS: dict[str, Change] = {
    "file gone": _file_gone,
    "left by a kill": _left_by_a_kill,
    "strange folder": lambda rng, folder: (
        (folder / "checkpoints" / rng.choice(["x", "-1", "3", "1e3"])).mkdir() or _either_checkpoint(folder)
    ),
    "strange file": lambda rng, folder: (
        (folder / "checkpoints" / rng.choice(["x", "3", ".DS_Store"])).write_text("x") and SAME
    ),
}


# --------------------------------------------------------------------------- trajectories

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
        REFUSE,
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


# --------------------------------------------------------------------------- logs


def _make_log(folder: Path) -> None:
    from leignn_jax.simulation.thermo import ThermoLog

    steps = np.arange(1, 9)
    ThermoLog(folder / "thermo.csv").append({"step": steps, "time": steps * 0.5, "temperature": 1000.0 / steps})


def _use_log(folder: Path) -> dict[str, Any]:
    from leignn_jax.simulation.thermo import read_thermo

    return {name: np.asarray(column) for name, column in read_thermo(folder / "thermo.csv").items()}


def _log_again(folder: Path) -> Expect:
    """A log is text that anyone may read: what an accepted one says stands in its whole lines."""
    content = (folder / "thermo.csv").read_bytes().split(b"\0")[0]
    try:
        lines = content.decode("ascii").split("\n")[:-1]
        names = lines[0].split(",")
        rows = [[float(x) for x in line.split(",")] for line in lines[1:]]
        if any(x == "" or x.strip() != x for line in lines for x in line.split(",")):
            return ANYTHING
    except (UnicodeDecodeError, ValueError, IndexError):
        return EITHER.giving({} if b"\n" not in content else None)
    if any(len(row) != len(names) for row in rows):
        return REFUSE
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    if not (np.diff(columns.get("step", np.zeros(2))) > 0).all() and rows:
        return ANYTHING
    return EITHER.giving(columns)


# --------------------------------------------------------------------------- stores


def _make_store(folder: Path) -> None:
    from leignn_jax.data import read_labels
    from leignn_jax.data.store import write_store

    write_store(folder / "store", [(a, read_labels(a)) for a in copper(3, seed=5)], 3.0, facts={"source": "here"})


def _use_store(folder: Path) -> dict[str, Any]:
    from leignn_jax.data.store import Store

    store = Store(folder / "store")
    frames = [store.frame(i) for i in range(len(store))]
    batches = [store[i] for i in range(len(store))]
    return {
        "positions": [a.positions for a, _ in frames],
        "numbers": [a.numbers for a, _ in frames],
        "labels": [labels._asdict() for _, labels in frames],
        "pairs": [np.asarray(b.graph.lists.senders) for b in batches],
        "cutoff": store.cutoff,
        "sizes": np.asarray(store.sizes),
        "energy": np.asarray(store.table.energy),
        "facts": store.facts,
    }


def _meta(rng: random.Random, folder: Path) -> Expect:
    """meta.json with a checksum that fits, but of another content."""
    from leignn_jax.data import store

    file = folder / "store" / "meta.json"
    meta = json.loads(file.read_text())
    meta.pop("sha256", None)
    key = rng.choice([k for k in meta if k != "facts"])
    meta[key] = rng.choice(_STRANGE)
    if rng.random() < 0.4:
        meta["arrays"] = json.loads(file.read_text())["arrays"]
        meta["arrays"][rng.choice(sorted(meta["arrays"]))] = rng.choice(_STRANGE)
    if rng.random() < 0.3:
        del meta[key]
    meta["sha256"] = store._hash_of(meta)
    file.write_text(json.dumps(meta))
    return ANYTHING if key in ("cutoff", "shortest", "elements") else REFUSE


def _store_file_gone(rng: random.Random, folder: Path) -> Expect:
    rng.choice([p for p in (folder / "store").iterdir() if p.name != "checked.json"]).unlink()
    return REFUSE


_STORE: dict[str, Change] = {
    "meta": _meta,
    "file gone": _store_file_gone,
    "strange notes": lambda rng, folder: (
        ((folder / "store" / "checked.json").write_text(rng.choice(_STRANGE_JSON)) and SAME) or SAME
    ),
    "not a store": lambda rng, folder: shutil.rmtree(folder / "store") or (folder / "store").mkdir() or REFUSE,
}


# --------------------------------------------------------------------------- published weights

_PUBLISHED = Path(__file__).parents[1] / "interop" / "files"


def _copy_published(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(_PUBLISHED / name, folder / name) and None


def _use_published(name: str) -> Callable[[Path], Any]:
    def use(folder: Path) -> Any:
        import leignn_jax as leignn

        found = leignn.import_torch_checkpoint(folder / name, cutoff=5.0)
        return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(found.params)}

    return use


def _member(change: Callable[[random.Random, str, bytes], bytes | None], expect: Expect) -> Change:
    def changed(rng: random.Random, folder: Path) -> Expect:
        (path,) = folder.iterdir()
        with zipfile.ZipFile(path) as old:
            content = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, data in content.items():
                if (after := change(rng, name, data)) is not None:
                    new.writestr(name, after)
        return expect

    return changed


def _pickle_byte(rng: random.Random, name: str, data: bytes) -> bytes:
    if not name.endswith("data.pkl"):
        return data
    return rng.choice([damage.flip, damage.truncate, damage.drop, damage.repeat])(rng, data)


class _Call:
    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _code(rng: random.Random, name: str, data: bytes) -> bytes:
    if not name.endswith("data.pkl"):
        return data
    evil = rng.choice([_Call(os.system, "false"), _Call(open, "attacked", "w"), _Call(eval, "1")])
    return pickle.dumps({"vn_emb.weight": evil}, protocol=rng.choice([0, 2, 4]))


_PT: dict[str, Change] = {
    "bytes of the pickle": _member(_pickle_byte, ANYTHING),
    "code": _member(_code, REFUSE),
    "another pickle": _member(
        lambda rng, n, d: (
            pickle.dumps(rng.choice([[], {}, None, {1: 2}, {"a": {"b": 1}}, (1,), {"state_dict": 3}]), 2)
            if n.endswith("data.pkl")
            else d
        ),
        REFUSE,
    ),
    "storage short": _member(lambda rng, n, d: d[: len(d) // 2] if n.endswith("data/0") else d, REFUSE),
    "storage missing": _member(lambda rng, n, d: None if n.endswith("data/0") else d, REFUSE),
    "byte order": _member(lambda rng, n, d: rng.choice([b"x", b"", b"\xff"]) if n.endswith("byteorder") else d, EITHER),
}


def _weights(change: Callable[[random.Random, dict[str, np.ndarray]], Any]) -> Change:
    def changed(rng: random.Random, folder: Path) -> Expect:
        from safetensors.numpy import load_file, save_file

        path = folder / "tiny.safetensors"
        arrays = load_file(path)
        change(rng, arrays)
        path.unlink()
        save_file(arrays, path)
        # Some weights of the published code do nothing.
        return EITHER

    return changed


def _one_of(rng: random.Random, arrays: dict[str, np.ndarray]) -> str:
    return rng.choice([k for k in sorted(arrays) if "offset" not in k])


_SAFETENSORS: dict[str, Change] = {
    "weight missing": _weights(lambda rng, a: a.pop(_one_of(rng, a))),
    "weight of another shape": _weights(lambda rng, a: a.update({(k := _one_of(rng, a)): np.repeat(a[k], 2, axis=0)})),
    "weight without axes": _weights(lambda rng, a: a.update({_one_of(rng, a): np.zeros((), np.float32)})),
    "weight not finite": _weights(lambda rng, a: a.update({(k := _one_of(rng, a)): a[k] * np.nan})),
    "layers without end": _weights(
        lambda rng, a: a.update(
            {f"message_layers.{rng.choice([9, 10**6, 10**12])}.x_proj.0.weight": np.zeros((4, 4), np.float32)}
        )
    ),
    "of another code": _weights(
        lambda rng, a: [a.pop(k) for k in list(a)] and a.update(weight=np.zeros(3, np.float32))
    ),
}

TARGETS = [
    target("potential", lambda f: potential().save(f / "potential.safetensors"), _use_potential, _POTENTIAL, share=6),
    target("state", _make_state, _use_state, _STATE, damaged=_older_or_newer, share=2),
    target("checkpoints", _make_checkpoints, _use_checkpoints, _CHECKPOINTS, damaged=_either_checkpoint, share=2),
    target("trajectory", lambda f: _write_trajectory(f, True), _use_trajectory, _TRAJECTORY, share=5),
    target("trajectory in parts", lambda f: _write_trajectory(f, False), _use_trajectory, _PARTS, share=2),
    target("thermo log", _make_log, _use_log, {}, damaged=_log_again, share=1),
    target("store", _make_store, _use_store, _STORE, share=2),
    target("torch checkpoint", _copy_published("tiny_ema.pt"), _use_published("tiny_ema.pt"), _PT, share=2),
    # Its numbers have no checksum: only what is sure to be wrong can be told.
    target(
        "published safetensors",
        _copy_published("tiny.safetensors"),
        _use_published("tiny.safetensors"),
        _SAFETENSORS,
        damaged=lambda _: ANYTHING,
        share=1,
    ),
]
