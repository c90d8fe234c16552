"""The store: equal to memory bit for bit, whole or not there, and never a wrong number from a damaged one."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import ase
import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111, graphene, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from damage import outcomes
from frames import copper

from leignn_jax.data.batches import collate, epoch_order, example, plan_batches, sizes_of
from leignn_jax.data.labels import read_labels
from leignn_jax.data.store import Store, _hash_file, _hash_of, cached_store, write_store
from leignn_jax.data.table import tabulate
from leignn_jax.errors import DataError, ElementError, FileFormatError, StructureError
from leignn_jax.neighbors import near_origin
from leignn_jax.training.dataset import hash_path

REFERENCES = {"H": -13.6, "C": -1030.123456789, "O": -2040.7, "Cu": -3.5, "Na": 0.1}


def labelled(frames):
    return [(atoms, read_labels(atoms)) for atoms in frames]


def mixed_frames():
    """Molecules, crystals smaller than the cutoff, mixed periodicity, lone atoms, far outside the cell, few labels."""
    rng = np.random.default_rng(0)
    bare = [
        molecule("CH3OH"),
        ase.Atoms("H"),
        ase.Atoms("H2", [[0, 0, 0], [0, 0, 50.0]]),
        bulk("Na"),
        bulk("Cu", cubic=True),
        fcc111("Cu", (1, 1, 2), vacuum=5.0),
        graphene(vacuum=3.0),
        ase.Atoms("CO", [[0, 0, 0], [-900.0, 0, 1.2]], cell=[3.0, 0, 0], pbc=[True, False, False]),
    ]
    frames = []
    for i, atoms in enumerate(bare * 2):
        atoms = atoms.copy()
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        results = {"energy": -1e5 * rng.random(), "forces": rng.normal(size=(len(atoms), 3))}
        if i % 3 == 0:
            results["stress"] = rng.normal(size=6)
        if i % 5 == 1:
            del results["energy"]
        if i % 7 == 2:
            del results["forces"]
        atoms.calc = SinglePointCalculator(atoms, **results) if i != 4 else None
        frames.append(atoms)
    return frames


def assert_same_batch(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y) is np.ndarray
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_store_is_memory_bit_for_bit(tmp_path):
    frames = labelled(mixed_frames())
    write_store(tmp_path / "s", iter(frames), 4.5)
    store = Store(tmp_path / "s", REFERENCES)
    assert len(store) == len(frames)
    examples = [example(*one, 4.5, REFERENCES) for one in frames]
    for i, (atoms, labels) in enumerate(frames):
        assert_same_batch(store[i], examples[i])
        read, found = store.frame(i)
        assert (read.numbers == atoms.numbers).all()
        near = near_origin(atoms.positions, np.asarray(atoms.cell), atoms.pbc)
        assert (read.positions == near.positions).all()
        assert (np.asarray(read.cell) == np.asarray(atoms.cell)).all()
        assert (read.pbc == atoms.pbc).all()
        for x, y in zip(found, labels, strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(read_labels(read).stress, labels.stress)
    np.testing.assert_array_equal(store.sizes, sizes_of(examples))
    for x, y in zip(store.table, tabulate(frames), strict=True):
        np.testing.assert_array_equal(x, y)
    other = dict.fromkeys(REFERENCES, 0.001)
    assert_same_batch(store.with_references(other)[3], example(*frames[3], 4.5, other))
    assert_same_batch(store[3], examples[3])


def test_frames_from_far_away_are_those_from_near(tmp_path):
    near = copper(3)
    far = [atoms.copy() for atoms in near]
    for atoms, other in zip(far, near, strict=True):
        atoms.calc = other.calc
    far[1].positions[0] += 10**8 * far[1].cell[0]
    far[2].positions += [1e9, 7e8, -3e8]
    write_store(tmp_path / "near", labelled(near), 4.0)
    write_store(tmp_path / "far", labelled(far), 4.0)
    found, expected = Store(tmp_path / "far", REFERENCES), Store(tmp_path / "near", REFERENCES)
    for i in range(3):
        one, other = (np.asarray(store[i].graph.vectors()) for store in (found, expected))
        np.testing.assert_allclose(np.sort(np.abs(one), 0), np.sort(np.abs(other), 0), atol=2e-6)
        assert_same_batch(found[i], example(*labelled(far)[i], 4.0, REFERENCES))


def test_a_store_of_lone_atoms(tmp_path):
    frames = labelled([ase.Atoms("H"), ase.Atoms("O")])
    write_store(tmp_path / "s", frames, 4.0)
    store = Store(tmp_path / "s", REFERENCES)
    assert_same_batch(store[1], example(*frames[1], 4.0, REFERENCES))


def test_a_store_is_a_random_access_source(tmp_path):
    frames = labelled(copper(3))
    write_store(tmp_path / "s", frames, 4.0)
    store = Store(tmp_path / "s", REFERENCES)
    assert_same_batch(store[np.int64(-1)], store[2])
    with pytest.raises(IndexError, match="frame 3 of 3"):
        store[3]
    assert len(list(store)) == 3
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert_same_batch(pickle.loads(sent)[1], store[1])
    with pytest.raises(ElementError, match="frame 0: holds Cu"):
        store.with_references({"H": 0.0})[0]
    with pytest.raises(ValueError, match="read-only"):
        store._arrays["positions"][0] = 1.0


def test_errors_name_the_frame_and_leave_nothing(tmp_path):
    frames = copper(3)
    frames[1].positions[1] = frames[1].positions[0]
    frames[1].calc = SinglePointCalculator(frames[1], **frames[1].calc.results)
    with pytest.raises(StructureError, match="f: frame 1: Atoms 0 and 1"):
        write_store(tmp_path / "s", labelled(frames), 4.0, name="f")
    skew = copper(1)
    skew[0].cell[1] += 40000 * skew[0].cell[0]
    skew[0].calc = SinglePointCalculator(skew[0], **skew[0].calc.results)
    with pytest.raises(StructureError, match="too skew"):
        write_store(tmp_path / "s", labelled(skew), 4.0)
    with pytest.raises(DataError, match="no frames"):
        write_store(tmp_path / "s", [], 4.0)
    assert list(tmp_path.iterdir()) == []
    write_store(tmp_path / "s", labelled(copper(1)), 4.0)
    with pytest.raises(FileExistsError):
        write_store(tmp_path / "s", labelled(copper(2)), 4.0)
    write_store(tmp_path / "s", labelled(copper(2)), 4.0, replace=True)
    assert len(Store(tmp_path / "s")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_ends_in_words(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    import leignn_jax.data.store as module

    class Full(module._Column):
        def __init__(self, path, dtype, row):
            super().__init__(Path("/dev/full") if path.stem == "positions" else path, dtype, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_Column", Full)
        with pytest.raises(DataError, match="Is the disk full"):
            write_store(tmp_path / "s", labelled(copper(4)), 4.0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "frames.extxyz.xz"
    ase.io.write(path, copper(5), format="extxyz")
    return path


def opened(source, cache, cutoff=4.0, **kwargs):
    return cached_store(cache, source, hash_path(source), cutoff, **kwargs)


def test_a_cache_is_built_once(source, tmp_path, caplog):
    caplog.set_level(logging.INFO, "leignn_jax")
    cache = tmp_path / "cache"
    first = opened(source, cache)
    times = {p: p.stat().st_mtime_ns for p in first.folder.glob("*.npy")}
    assert [p.name for p in cache.iterdir()] == [first.folder.name]
    assert first.folder.name.startswith("frames-")
    assert len(caplog.records) == 1
    again = opened(source, cache)
    assert again.folder == first.folder
    assert times == {p: p.stat().st_mtime_ns for p in first.folder.glob("*.npy")}
    assert len(caplog.records) == 1


def test_another_source_cutoff_unit_or_key_is_another_cache(source, tmp_path):
    cache = tmp_path / "cache"
    first = opened(source, cache)
    assert opened(source, cache, 3.5)[0].graph.shape[1] < first[0].graph.shape[1]
    hartree = opened(source, cache, units="hartree/angstrom")
    assert hartree.labels(0).energy == pytest.approx(27.211386 * first.labels(0).energy)
    opened(source, cache, keys={"energy": "energy"})
    ase.io.write(source, copper(2, 7), format="extxyz")
    changed = opened(source, cache)
    assert len(changed) == 2
    assert len(list(cache.iterdir())) == 5
    assert len(Store(first.folder)) == 5


def damage_end(file):
    file.write_bytes(file.read_bytes()[:-5])


def damage_byte(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    times = file.stat()
    file.write_bytes(content)
    # As a tool would that keeps times: the change must be seen nevertheless.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def damage_header(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b"False", b"True ", 1) if b"False" in content else b"{")


@pytest.mark.parametrize(
    "name", ["positions.npy", "pair_offsets.npy", "energy.npy", "shifts.npy", "counts.npy", "meta.json"]
)
@pytest.mark.parametrize("damage", [damage_end, damage_byte, damage_header, Path.unlink])
def test_a_damaged_cache_is_built_again(source, tmp_path, caplog, name, damage):
    cache = tmp_path / "cache"
    good = opened(source, cache)
    expected = [good[i] for i in range(len(good))]
    # Long ago, so that the shortcut past the hashes is in use.
    for file in good.folder.glob("*.npy"):
        os.utime(file, ns=(10**18, 10**18))
    Store(good.folder)
    damage(good.folder / name)
    with pytest.raises(FileFormatError, match=name if name != "meta.json" or damage is not Path.unlink else "no store"):
        Store(good.folder)
    store = opened(source, cache)
    assert "built again" in caplog.text
    for i, batch in enumerate(expected):
        assert_same_batch(store[i], batch)
    assert [p.name for p in cache.iterdir()] == [store.folder.name]


def test_hashes_are_read_again_only_after_a_change(source, tmp_path, monkeypatch):
    import leignn_jax.data.store as module

    store = opened(source, tmp_path / "cache")
    hashed = []
    honest = module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda file, start: hashed.append(file.name) or honest(file, start))
    monkeypatch.setattr(module, "_TICK", 0)
    time.sleep(0.05)
    Store(store.folder)
    assert len(hashed) == 18
    Store(store.folder)
    assert len(hashed) == 18
    os.utime(store.folder / "forces.npy")
    Store(store.folder)
    assert hashed[18:] == ["forces.npy"]
    monkeypatch.setattr(module, "_TICK", 10**15)
    os.utime(store.folder / "forces.npy")
    for _ in range(2):
        # Changed just now: it might change again within the same tick of the clock, so it is not remembered.
        hashed.clear()
        Store(store.folder)
        assert "forces.npy" in hashed


def test_a_source_that_changes_under_the_reader(source, tmp_path):
    def touch(frames):
        for one in frames:
            os.utime(source)
            yield one

    with pytest.raises(DataError, match="changed while it was read"):
        opened(source, tmp_path / "cache", watch=touch)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_truncated_source_names_the_frame(source, tmp_path):
    ase.io.write(source, copper(40, sizes=((2, 2, 2),)), format="extxyz")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"frames\.extxyz\.xz: frame \d+: .*cut short") as error:
        opened(source, tmp_path / "cache")
    assert 0 < int(str(error.value).split("frame ")[1].split(":")[0]) < 40
    assert list((tmp_path / "cache").iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from leignn_jax.data.store import cached_store
def slowly(frames):
    for i, one in enumerate(frames):
        yield one
        if i == 2:
            print("half", flush=True)
            time.sleep(60)
cached_store(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 4.0, watch=slowly)
"""


def test_a_kill_while_writing_leaves_no_half_cache(source, tmp_path):
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, cache, source, hash_path(source)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = cache.iterdir()
    assert left.name.startswith(".")
    store = opened(source, cache)
    assert len(store) == 5
    assert left.exists()
    # An hour later what is left is nobody's.
    for path in [left, *left.iterdir()]:
        os.utime(path, (0, 0))
    opened(source, cache, 3.0)
    (store.folder / "meta.json").unlink()
    opened(source, cache)
    assert not left.exists()


def build(source, cache, barrier, results):
    barrier.wait()
    store = opened(source, cache)
    results.put(float(store[4].energy[0]))


def test_two_processes_build_at_once(source, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=build, args=(source, tmp_path / "cache", barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    found = [results.get(timeout=120) for _ in both]
    for process in both:
        process.join()
    assert found[0] == found[1] == opened(source, tmp_path / "cache")[4].energy[0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def peak_of(folder, count):
    """Most memory that converting frames and one epoch of their batches hold, in bytes."""
    few = labelled(copper(20, sizes=((2, 1, 1),)))

    def frames():
        for i in range(count):
            # The neighbour library leaves circles at every call, which wait for the collector.
            if i % 20 == 0:
                gc.collect()
            yield few[i % 20]

    tracemalloc.start()
    write_store(folder, frames(), 4.0)
    store = Store(folder, REFERENCES)
    plan = plan_batches(store.sizes, [epoch_order(len(store), 8, 0, 0)])
    for block in epoch_order(len(store), 8, 0, 0):
        collate([store[i] for i in block], plan.shapes[-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_frames(tmp_path):
    few, many = peak_of(tmp_path / "few", 40), peak_of(tmp_path / "many", 440)
    # Sizes, offsets and order take about 100 bytes a frame, but the atoms and pairs of these frames 1.7 kB.
    assert many - few < 200 * 400
    assert sum(p.stat().st_size for p in (tmp_path / "many").iterdir()) > 1600 * 440


def test_meta_says_what_the_store_is(source, tmp_path):
    store = opened(source, tmp_path / "cache", units="eV/angstrom")
    meta = json.loads((store.folder / "meta.json").read_text())
    assert meta["cutoff"] == store.cutoff == 4.0
    assert meta["facts"] == {"source_sha256": hash_path(source), "units": "eV/angstrom", "keys": {}}
    assert meta["arrays"]["positions"]["shape"] == [20, 3]
    np.testing.assert_array_equal(np.load(store.folder / "energy.npy"), [store.labels(i).energy for i in range(5)])


def test_a_damaged_byte_is_told_or_changes_no_number(tmp_path):
    folder = tmp_path / "s"
    write_store(folder, labelled(copper(2)), 4.0)

    def read():
        # It remembers which files are whole.
        (folder / "checked.json").unlink(missing_ok=True)
        store = Store(folder)
        return [store[i] for i in range(len(store))], store.cutoff, store.facts, list(store.shortest.values())

    for file in sorted(folder.iterdir()):
        seen = outcomes(file, read, 6, seed=0)
        assert seen.keys() <= {"told", "same"}, (file.name, seen)


@pytest.mark.parametrize("text", ["[]", "null", '{"positions": 3}', "{", '{"positions": [1, 2, 3, 4, 5]}'])
def test_a_damaged_note_is_made_again(tmp_path, text):
    write_store(tmp_path / "s", labelled(copper(1)), 4.0)
    (tmp_path / "s" / "checked.json").write_text(text)
    assert len(Store(tmp_path / "s")) == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["cutoff"], None),
        (["cutoff"], -1.0),
        (["cutoff"], "4.0"),
        (["elements"], "Cu"),
        (["elements"], ["Cx"]),
        (["elements"], [["Cu"]]),
        (["shortest"], []),
        (["shortest", "Cu Cu"], -1),
        (["shortest", "Cu"], 2.0),
        (["facts"], 3),
        (["arrays"], []),
        (["arrays", "energy"], None),
        (["arrays", "energy", "shape"], []),
        (["arrays", "energy", "shape"], [10**15]),
        (["arrays", "energy", "start"], -1),
        (["arrays", "energy", "bytes"], "many"),
        (["arrays", "energy", "dtype"], "<f4"),
        (["arrays", "more"], {}),
    ],
)
def test_a_crafted_meta_is_refused_in_words(tmp_path, place, value):
    """Its sha256 fits: only what it says is wrong."""
    write_store(tmp_path / "s", labelled(copper(2)), 4.0)
    file = tmp_path / "s" / "meta.json"
    meta = json.loads(file.read_bytes())
    del meta["sha256"]
    inside = meta
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    meta["sha256"] = _hash_of(meta)
    file.write_text(json.dumps(meta))
    with pytest.raises(FileFormatError, match=r"s/(meta\.json|energy\.npy): "):
        Store(tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("atom_offsets", [0, 7, 4], "offsets do not divide the rows of numbers"),
        ("receivers", 4, "the pairs of frame 0 are not of its 4 atoms"),
        ("senders", -1, "the pairs of frame 0 are not of its 4 atoms"),
    ],
)
def test_crafted_arrays_are_refused_in_words(tmp_path, name, value, words):
    folder = tmp_path / "s"
    write_store(folder, labelled(copper(2)), 4.0)
    meta = json.loads((folder / "meta.json").read_bytes())
    del meta["sha256"]
    array = np.load(folder / f"{name}.npy")
    array[: np.size(value)] = value
    np.save(folder / f"{name}.npy", array)
    meta["arrays"][name]["sha256"] = _hash_file(folder / f"{name}.npy", meta["arrays"][name]["start"])
    (folder / "meta.json").write_text(json.dumps({**meta, "sha256": _hash_of(meta)}))
    with pytest.raises(FileFormatError, match=words):
        Store(folder)[0]
