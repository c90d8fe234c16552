"""Potentials, and published checkpoints that become some."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fuzz import damage
from fuzz.cases import ANYTHING, EITHER, REFUSE, SAME, Expect
from fuzz.own_files import STRANGE_JSON, STRANGE_SETTINGS, Change, a_folder, target
from fuzz.samples import potential, silicon


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


def _settings(rng: random.Random, arrays, header) -> Expect:
    config = json.loads(header["config"])
    # Settings that arrays do not depend on may be other ones; those are another potential.
    key = rng.choice(["elements", "features", "layers", "num_radial", "cutoff", "radial_basis", "update", "envelope"])
    value = rng.choice([x for x in STRANGE_SETTINGS if (key, x) not in (("elements", "Si"),)])
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
    "config": _header(_said("config", STRANGE_JSON, REFUSE)),
    "setting": _header(_settings),
    "huge setting": _header(_huge),
    "unknown setting": _header(
        lambda rng, a, h: h.update(config=json.dumps({**json.loads(h["config"]), "width": 3})) or REFUSE
    ),
    "metadata of no kind": _header(_said("metadata", [t for t in STRANGE_JSON if not t.startswith('{"')], REFUSE)),
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
    "is a folder": lambda rng, folder: a_folder(folder / "potential.safetensors"),
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


def _one_of(rng: random.Random, arrays: dict[str, Any]) -> str:
    return rng.choice([k for k in sorted(arrays) if "offset" not in k])


_SAFETENSORS: dict[str, Change] = {
    "weight missing": _weights(lambda rng, a: a.pop(_one_of(rng, a))),
    # Other rows of the embedding are other elements.
    "weight of another shape": _weights(
        lambda rng, a: a.update(
            {(k := _one_of(rng, {n: 0 for n in a if "atom_emb" not in n})): np.repeat(a[k], 2, axis=0)}
        )
    ),
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
    target("torch checkpoint", _copy_published("tiny_ema.pt"), _use_published("tiny_ema.pt"), _PT, share=2),
    target(
        "published safetensors",
        _copy_published("tiny.safetensors"),
        _use_published("tiny.safetensors"),
        _SAFETENSORS,
        damaged=lambda _: ANYTHING,
        share=1,
    ),
]
