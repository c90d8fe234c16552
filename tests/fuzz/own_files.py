"""Files that the package writes: states, checkpoints, logs and stores."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from frames import copper

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, AnyOf, Expect, Target, Trial
from fuzz.samples import silicon

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


STRANGE_JSON = [
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


STRANGE_SETTINGS: list[Any] = [
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


def a_folder(path: Path) -> Expect:
    path.unlink()
    path.mkdir()
    return REFUSE


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
    "is a folder": lambda rng, folder: a_folder(folder / "state.safetensors").giving(None) and _older_or_newer(folder),
}


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
    meta[key] = rng.choice(STRANGE_SETTINGS)
    if rng.random() < 0.4:
        meta["arrays"] = json.loads(file.read_text())["arrays"]
        meta["arrays"][rng.choice(sorted(meta["arrays"]))] = rng.choice(STRANGE_SETTINGS)
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
        ((folder / "store" / "checked.json").write_text(rng.choice(STRANGE_JSON)) and SAME) or SAME
    ),
    "not a store": lambda rng, folder: shutil.rmtree(folder / "store") or (folder / "store").mkdir() or REFUSE,
}


TARGETS = [
    target("state", _make_state, _use_state, _STATE, damaged=_older_or_newer, share=2),
    target("checkpoints", _make_checkpoints, _use_checkpoints, _CHECKPOINTS, damaged=_either_checkpoint, share=2),
    target("thermo log", _make_log, _use_log, {}, damaged=_log_again, share=1),
    target("store", _make_store, _use_store, _STORE, share=2),
]
