"""State files: every bit comes back, and a damaged one is told and replaced by the one before."""

import json
import os
import resource
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.simulation.state import load_state, save_state


class Bath(NamedTuple):
    mass: np.ndarray
    none: None = None


def make(step, key=None):
    rng = np.random.default_rng(step)
    return {
        "positions": rng.normal(size=(5, 3)),
        "velocities": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "complex": rng.normal(size=3) + 1j,
        "bath": (Bath(np.array([1e-300, -0.0, np.nan, np.inf])), [np.uint32(7), np.array(True)]),
        "empty": np.zeros((0, 3), np.int8),
        "step": np.int64(step),
        "key": jax.random.key(step) if key is None else key,
    }


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert bits(a) == bits(b)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "state.safetensors"


def test_every_bit_comes_back(path):
    tree, meta = make(3), {"step": 3, "ensemble": {"name": "nvt", "Temperature": 300.5}, "list": [None, True]}
    save_state(path, tree, meta)
    found, found_meta = load_state(path, make(4))
    assert_same(found, tree)
    assert found_meta == meta
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    assert_same(load_state(path, shapes)[0], tree)
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_go_on_with_their_numbers(path, impl):
    keys = jax.random.split(jax.random.key(5, impl=impl), 4)
    raw = jax.random.PRNGKey(7)
    save_state(path, {"keys": keys, "raw": raw}, {})
    found = load_state(path, {"keys": keys, "raw": raw})[0]
    assert str(jax.random.key_impl(found["keys"])) == impl
    assert found["keys"].shape == (4,)
    np.testing.assert_array_equal(jax.random.bits(found["keys"][2], (3,)), jax.random.bits(keys[2], (3,)))
    np.testing.assert_array_equal(found["raw"], raw)
    other = "rbg" if impl == "threefry2x32" else "threefry2x32"
    with pytest.raises(FileFormatError, match=r"\['keys'\] is key<"):
        load_state(path, {"keys": jax.random.split(jax.random.key(5, impl=other), 4), "raw": raw})


def test_the_one_before_is_kept(path):
    for step in range(4):
        save_state(path, make(step), {"step": step})
    assert sorted(p.name for p in path.parent.iterdir()) == ["state.previous.safetensors", "state.safetensors"]
    assert_same(load_state(path, make(0))[0], make(3))
    assert_same(load_state(path.with_name("state.previous.safetensors"), make(0))[0], make(2))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_damaged_state_is_told_and_the_one_before_is_used(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    tree = {name: leaf for name, leaf in make(0).items() if name != "key"}
    save_state(path, tree, {"step": 0})
    save_state(path, {**tree, "step": np.int64(1)}, {"step": 1})
    whole = path.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    else:
        where = data.draw(st.integers(0, len(whole) - 1), label="byte")
        damaged = whole[:where] + bytes([whole[where] ^ data.draw(st.integers(1, 255))]) + whole[where + 1 :]
    path.write_bytes(damaged)
    found, meta = load_state(path, tree)
    # Spaces that pad the header and JSON of the same meaning may differ and say the same.
    assert meta["step"] == found["step"]
    if meta["step"] == 0:
        assert_same(found, tree)
        path.with_name("state.previous.safetensors").write_bytes(b"also damaged")
        with pytest.raises(FileFormatError, match=r"no state can be read: .*Start the simulation anew"):
            load_state(path, tree)
    else:
        assert_same(found, {**tree, "step": np.int64(1)})


def test_a_changed_number_is_told(path):
    save_state(path, {"x": np.arange(8.0)}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="checksum"):
        load_state(path, {"x": np.arange(8.0)})


def test_a_kill_between_the_renames_loses_nothing(path, monkeypatch):
    save_state(path, make(0), {"step": 0})
    real, calls = os.replace, []

    def dies_third(*names):
        # The first puts the new state beside the old one, the second moves the old one away.
        calls.append(names)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", dies_third)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, make(1), {"step": 1})
    monkeypatch.undo()
    assert not path.exists()
    assert_same(load_state(path, make(0))[0], make(1))
    save_state(path, make(2), {"step": 2})
    assert_same(load_state(path, make(0))[0], make(2))


def test_what_does_not_fit_is_refused(path):
    with pytest.raises(FileNotFoundError, match="without resuming"):
        load_state(path, make(0))
    save_state(path, make(0), {})
    with pytest.raises(FileFormatError, match=r"another simulation: \['extra'\] is in one of them only"):
        load_state(path, {**make(0), "extra": np.zeros(1)})
    with pytest.raises(FileFormatError, match=r"\['positions'\] is float64\[5, 3\], this one needs float64\[6, 3\]"):
        load_state(path, {**make(0), "positions": np.zeros((6, 3))})
    with pytest.raises(FileFormatError, match=r"\['positions'\] is float64\[5, 3\], this one needs float32\[5, 3\]"):
        load_state(path, {**make(0), "positions": np.zeros((5, 3), np.float32)})
    with pytest.raises(SimulationError, match="arrays of numbers"):
        save_state(path, {"text": np.array("words")}, {})


def test_a_full_disk_is_told_and_the_state_stays(path):
    save_state(path, make(0), {"step": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(SimulationError, match=r"state.safetensors: .*size of files is reached"):
            save_state(path, make(1), {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]
    assert_same(load_state(path, make(0))[0], make(0))


def test_the_header_can_be_read_by_anyone(path):
    from safetensors import safe_open

    save_state(path, make(0), {"step": 0})
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["meta"]) == {"step": 0}
        np.testing.assert_array_equal(file.get_tensor("['positions']"), make(0)["positions"])
