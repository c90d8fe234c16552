"""Trajectory files: what is written is what is read, and nothing that was on disk is ever lost."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import ase
import ase.io
import h5py
import numpy as np
import pytest
from ase import units
from damage import outcomes
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.errors import ConfigError, FileFormatError, SimulationError
from leignn_jax.simulation import h5md
from leignn_jax.simulation.trajectory import TrajectoryWriter, read_trajectory, write_extxyz

ATOMS = ase.Atoms("CuZrCu", positions=np.arange(9.0).reshape(3, 3), cell=np.diag([4.0, 5, 6]), pbc=[True, True, False])


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Nothing here cuts the power; the trials with kills sync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def frames(steps, atoms=3):
    """Fields whose numbers tell step, atom and axis."""
    steps = np.asarray(steps)
    base = steps[:, None, None] + np.arange(3.0 * atoms).reshape(atoms, 3) / 100
    return {
        "step": steps,
        "time": steps * 0.5,
        "positions": base,
        "velocities": -base / 1000,
        "forces": base * 0.1,
        "cell": np.eye(3) * (4 + steps[:, None, None] * 1e-3),
        "energy": -1.5 * steps,
    }


def write(path, *chunks, flush=False, **options):
    with TrajectoryWriter(path, ATOMS, **options) as writer:
        for steps in chunks:
            writer.append(**frames(steps))
            if flush:
                writer.flush()


def assert_frames(trajectory, steps, dtype=np.float32):
    expected = frames(steps)
    np.testing.assert_array_equal(trajectory.step, steps)
    np.testing.assert_array_equal(trajectory.time, expected["time"])
    np.testing.assert_array_equal(trajectory.cell, expected["cell"])
    np.testing.assert_array_equal(trajectory.energy, expected["energy"])
    assert trajectory.positions.dtype == np.float64
    np.testing.assert_array_equal(trajectory.positions, expected["positions"])
    np.testing.assert_array_equal(trajectory.velocities, expected["velocities"].astype(dtype))
    assert trajectory.forces.dtype == dtype
    np.testing.assert_allclose(trajectory.forces, expected["forces"], rtol=4 * np.finfo(dtype).eps)


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond ``size`` bytes; Python ignores the signal, so that the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_in_parts_and_merged(tmp_path, dtype):
    path = tmp_path / "run" / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, dtype=dtype)
    for start in range(0, 70, 10):
        writer.append(**frames(range(start, start + 10)))
        writer.flush()
        assert writer.durable_step == start + 9
        assert_frames(read_trajectory(path), range(start + 10), dtype)
    assert 1 < len(h5md.read_layout(path).parts) <= 3
    writer.close()
    writer.close()
    assert [p.name for p in path.parent.iterdir()] == ["trajectory.h5"]
    trajectory = read_trajectory(path)
    assert_frames(trajectory, range(70), dtype)
    np.testing.assert_array_equal(trajectory.numbers, [29, 40, 29])
    np.testing.assert_array_equal(trajectory.masses, ATOMS.get_masses())
    np.testing.assert_array_equal(trajectory.pbc, [True, True, False])


def test_the_file_is_h5md(tmp_path):
    """The layout of the standard, in a file of parts and in a merged one, by h5py alone."""
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, part_bytes=1)
    for step in range(0, 30, 10):
        writer.append(**frames([step]))
        writer.flush()

    def check():
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["h5md"].attrs["version"], [1, 1])
            assert file["h5md/creator"].attrs["name"] == "leignn_jax"
            assert {"version"} <= set(file["h5md/creator"].attrs)
            assert "name" in file["h5md/author"].attrs
            assert "version" in file["h5md/modules/units"].attrs
            group = file["particles/all"]
            np.testing.assert_array_equal(group["species"], [29, 40, 29])
            assert group["box"].attrs["dimension"] == 3
            assert list(group["box"].attrs["boundary"]) == ["periodic", "periodic", "none"]
            expected = frames([0, 10, 20])
            for name, unit, values in [
                ("position", "Angstrom", expected["positions"]),
                ("velocity", "Angstrom fs-1", expected["velocities"]),
                # 1 eV = 96.48533 kJ/mol
                ("force", "kJ mol-1 Angstrom-1", expected["forces"] * 96.48533),
                ("box/edges", "Angstrom", expected["cell"]),
            ]:
                assert group[name]["value"].attrs["unit"] == unit
                assert group[name]["time"].attrs["unit"] == "fs"
                np.testing.assert_array_equal(group[name]["step"], [0, 10, 20])
                np.testing.assert_array_equal(group[name]["time"], [0, 5, 10])
                np.testing.assert_allclose(group[name]["value"], values, rtol=1e-6)
            np.testing.assert_array_equal(file["observables/potential_energy/value"], [0, -15, -30])
            return group["position/value"].is_virtual

    assert len(h5md.read_layout(path).parts) == 3
    assert check()
    writer.close()
    assert not check()


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """100 frames in parts of 16 or so."""
    path = tmp_path_factory.mktemp("hundred") / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, part_bytes=16 * 416)
    for start in range(0, 100, 10):
        writer.append(**frames(range(start, start + 10)))
        writer.flush()
    assert len(h5md.read_layout(path).parts) >= 5
    return path


@given(st.slices(100), st.slices(10))
@settings(deadline=None, max_examples=30)
def test_any_slice_is_numpys(hundred, first, second):
    steps = np.arange(100)[first][second]
    trajectory = read_trajectory(hundred, first)[second]
    assert len(trajectory) == len(steps)
    assert_frames(trajectory, steps)


def test_indices_and_pieces(hundred, monkeypatch):
    assert_frames(read_trajectory(hundred, -1), [99])
    with pytest.raises(IndexError):
        read_trajectory(hundred, 100)
    monkeypatch.setattr(h5md, "_SLAB", 7 * h5md.read_layout(hundred).frame_bytes)
    pieces = list(read_trajectory(hundred, slice(5, 95, 2)).pieces())
    assert [len(piece) for piece in pieces] == [7] * 6 + [3]
    assert_frames(pieces[1], range(19, 33, 2))


def test_structures_have_results_and_velocities(tmp_path):
    path = tmp_path / "trajectory.h5"
    write(path, range(3))
    plain, wrapped = read_trajectory(path).to_atoms(), read_trajectory(path).to_atoms(wrap=True)
    expected = frames(range(3))
    assert len(plain) == 3
    assert plain[2].info == {"step": 2, "time_fs": 1.0}
    assert plain[2].get_potential_energy() == -3.0
    np.testing.assert_allclose(plain[2].get_forces(), expected["forces"][2], rtol=1e-6)
    # v [Å/fs] = v [ASE] * (ASE's fs)
    np.testing.assert_allclose(plain[2].get_velocities() * units.fs, expected["velocities"][2], rtol=1e-6)
    np.testing.assert_array_equal(plain[2].cell, expected["cell"][2])
    np.testing.assert_array_equal(plain[2].get_masses(), ATOMS.get_masses())
    steps = np.array([1000])
    with TrajectoryWriter(path, ATOMS, resume_step=2) as writer:
        writer.append(**frames(steps))
    plain, wrapped = (read_trajectory(path, -1).to_atoms(wrap)[0] for wrap in (False, True))
    assert plain.positions.min() >= 1000
    scaled = wrapped.get_scaled_positions(wrap=False)[:, :2]
    assert scaled.min() >= -1e-6
    assert scaled.max() < 1
    np.testing.assert_allclose(wrapped.positions[:, 2], plain.positions[:, 2])


def test_only_positions_of_a_molecule(tmp_path):
    path = tmp_path / "trajectory.h5"
    molecule = ase.Atoms("OH2", positions=np.eye(3))
    with TrajectoryWriter(path, molecule) as writer:
        writer.append([0], [0.0], np.ones((1, 3, 3)))
    trajectory = read_trajectory(path)
    assert trajectory.velocities is None
    assert trajectory.forces is None
    assert trajectory.energy is None
    np.testing.assert_array_equal(trajectory.cell, np.zeros((1, 3, 3)))
    atoms = trajectory.to_atoms()[0]
    assert atoms.calc is None
    assert not atoms.pbc.any()
    with h5py.File(path) as file:
        assert "edges" not in file["particles/all/box"]


def test_extxyz_is_read_back_by_ase(tmp_path, monkeypatch):
    path = tmp_path / "trajectory.h5"
    write(path, range(5))
    monkeypatch.setattr(h5md, "_SLAB", 1)
    write_extxyz(tmp_path / "frames.xyz", read_trajectory(path, slice(1, None)))
    found = ase.io.read(tmp_path / "frames.xyz", ":")
    expected = frames(range(1, 5))
    assert [atoms.info["step"] for atoms in found] == [1, 2, 3, 4]
    for i, atoms in enumerate(found):
        np.testing.assert_allclose(atoms.positions, expected["positions"][i], atol=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"][i], atol=1e-6)
        np.testing.assert_allclose(atoms.get_velocities() * units.fs, expected["velocities"][i], atol=1e-8)
        np.testing.assert_allclose(atoms.cell, expected["cell"][i])
        assert atoms.get_potential_energy() == expected["energy"][i]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames.xyz", "trajectory.h5"]
    with largest_file(1000), pytest.raises(SimulationError, match=r"frames.xyz.*size of files is reached"):
        write_extxyz(tmp_path / "frames.xyz", read_trajectory(path))
    assert len(ase.io.read(tmp_path / "frames.xyz", ":")) == 4


def test_frames_are_read_after_a_change_of_folder(tmp_path, monkeypatch):
    write(tmp_path / "trajectory.h5", range(2))
    monkeypatch.chdir(tmp_path)
    trajectory = read_trajectory("trajectory.h5")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert len(trajectory.positions[:]) == 2


def test_extxyz_takes_the_place_of_no_link_and_no_pipe(tmp_path):
    """Who is root would put a file in the place of /dev/stdout."""
    write(tmp_path / "trajectory.h5", range(2))
    trajectory = read_trajectory(tmp_path / "trajectory.h5")
    (tmp_path / "link.xyz").symlink_to(tmp_path / "frames.xyz")
    write_extxyz(tmp_path / "link.xyz", trajectory)
    assert (tmp_path / "link.xyz").is_symlink()
    reading, writing = os.pipe()
    write_extxyz(f"/dev/fd/{writing}", trajectory)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == (tmp_path / "frames.xyz").read_bytes()
    with pytest.raises(ConfigError, match="path must be the name of a file"):
        write_extxyz(3, trajectory)  # pyright: ignore[reportArgumentType]


def test_a_full_disk_on_going_on_is_not_said_to_have_lost_what_is_there(tmp_path):
    path = tmp_path / "trajectory.h5"
    write(path, range(5))
    with largest_file(1000), pytest.raises(SimulationError, match="The frames there are safe; then resume the run"):
        TrajectoryWriter(path, ATOMS, resume_step=4)
    assert read_trajectory(path).step.tolist() == list(range(5))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("state", [-1, 0, 12, 13, 29])
def test_resume_drops_what_came_after_the_state(tmp_path, merged, state):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, part_bytes=1)
    for start in range(0, 30, 5):
        writer.append(**frames(range(start, start + 5)))
        writer.flush()
    if merged:
        writer.close()
    with TrajectoryWriter(path, ATOMS, resume_step=state) as again:
        assert again.durable_step == (state if state >= 0 else None)
        if state >= 0:
            assert_frames(read_trajectory(path), range(state + 1))
            with h5py.File(path) as file:
                positions = frames(range(state + 1))["positions"]
                np.testing.assert_array_equal(file["particles/all/position/value"], positions)
        again.append(**frames(range(state + 1, 40)))
        again.flush()
        assert_frames(read_trajectory(path), range(40))
    assert_frames(read_trajectory(path), range(40))
    assert [p.name for p in tmp_path.iterdir()] == ["trajectory.h5"]


def test_resume_with_nothing_new_and_without_hard_links(tmp_path, monkeypatch):
    path = tmp_path / "trajectory.h5"
    write(path, range(20), dtype=np.float64)

    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    with TrajectoryWriter(path, ATOMS, resume_step=9):
        pass
    assert_frames(read_trajectory(path), range(10), np.float64)


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "trajectory.h5"
    write(path, range(0, 100, 10))
    with pytest.raises(SimulationError, match="there is a trajectory already"):
        TrajectoryWriter(path, ATOMS)
    other = ATOMS.copy()
    other.numbers[0] = 47
    with pytest.raises(SimulationError, match="another system: its numbers differ"):
        TrajectoryWriter(path, other, resume_step=50)
    with pytest.raises(SimulationError, match="holds float32, not float64"):
        TrajectoryWriter(path, ATOMS, resume_step=95, dtype=np.float64)
    with pytest.raises(SimulationError, match=r"last frame is step 90, .* every 10 steps, .* from step 101"):
        TrajectoryWriter(path, ATOMS, resume_step=101)
    assert_frames(read_trajectory(path), range(0, 100, 10))
    with TrajectoryWriter(path, ATOMS, resume_step=100) as writer:
        with pytest.raises(SimulationError, match="after step 90 come"):
            writer.append(**frames([90]))
        with pytest.raises(SimulationError, match="steps must grow"):
            writer.append(**frames([100, 100]))
        with pytest.raises(SimulationError, match="energy must be in all"):
            writer.append(**{**frames([100]), "energy": None})
        with pytest.raises(SimulationError, match=r"velocities has shape \(1, 2, 3\), not \(1, 3, 3\)"):
            writer.append(**{**frames([100]), "velocities": np.zeros((1, 2, 3))})
        writer.append(**frames([100]))
    assert_frames(read_trajectory(path), range(0, 110, 10))
    with pytest.raises(SimulationError, match="closed"):
        writer.append(**frames([110]))


def test_nothing_written_leaves_nothing(tmp_path):
    with TrajectoryWriter(tmp_path / "trajectory.h5", ATOMS) as writer:
        writer.append(**frames([]))
        with pytest.raises(SimulationError, match="positions has shape"):
            writer.append([0], [0.0], np.zeros((1, 7, 3)))
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_old_frames_go_to_disk_by_themselves(tmp_path):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, flush_seconds=0.05)
    writer.append(**frames(range(3)))
    for _ in range(200):
        if writer.durable_step == 2:
            break
        threading.Event().wait(0.02)
    assert_frames(read_trajectory(path), range(3))
    writer.close()


def test_arrays_may_be_reused_after_append(tmp_path):
    path = tmp_path / "trajectory.h5"
    fields = {name: np.array(values, np.float64) for name, values in frames(range(3)).items()}
    with TrajectoryWriter(path, ATOMS, dtype=np.float64) as writer:
        writer.append(**fields)
        for values in fields.values():
            values[...] = np.nan
    assert_frames(read_trajectory(path), range(3), np.float64)


def test_a_reader_beside_the_writer_sees_whole_frames(tmp_path):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS)
    writer.append(**frames([0]))
    writer.flush()
    stop, problems, reads = threading.Event(), [], []

    def read():
        old = read_trajectory(path)
        while not stop.is_set():
            try:
                trajectory = read_trajectory(path)
                assert_frames(trajectory, range(len(trajectory)))
                # The part in which this frame was first is long gone.
                assert_frames(old[:], [0])
                reads.append(len(trajectory))
            except BaseException as error:
                problems.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    for step in range(1, 16):
        writer.append(**frames([step]))
        writer.flush()
        # On a busy machine the reader might else see nothing but the first and the last frame.
        patience = time.monotonic() + 60
        while step % 3 == 0 and not problems and max(reads, default=0) <= step and time.monotonic() < patience:
            time.sleep(1e-3)
    writer.close()
    stop.set()
    thread.join()
    assert not problems, problems[0]
    assert len(set(reads)) > 3


def test_a_reader_slower_than_the_writer_gets_its_frames(tmp_path, monkeypatch):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS)
    writer.append(**frames([0]))
    writer.flush()
    trajectory = read_trajectory(path)
    read_field, counts = h5md.read_field, [2**n for n in range(8)]

    def read_late(layout, name, chosen):
        if counts and threading.current_thread() is threading.main_thread():
            # As many frames as there are, so that all are put together in a new part.
            count = counts.pop(0)
            writer.append(**frames(range(count, 2 * count)))
            writer.flush()
        return read_field(layout, name, chosen)

    monkeypatch.setattr(h5md, "read_field", read_late)
    assert_frames(trajectory, [0])
    assert not counts
    writer.close()


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS)
    writer.append(**frames(range(100)))
    writer.flush()
    with largest_file(100_000):
        writer.append(**frames(range(100, 1000)))
        with pytest.raises(SimulationError, match=r"trajectory.h5: .* size of files is reached.* step 99 are safe"):
            writer.flush()
        with pytest.raises(SimulationError, match="step 99 are safe"):
            writer.append(**frames([2000]))
        with pytest.raises(SimulationError, match="step 99 are safe"):
            writer.close()
    assert_frames(read_trajectory(path), range(100))
    with TrajectoryWriter(path, ATOMS, resume_step=99) as writer:
        writer.append(**frames(range(100, 1000)))
    assert_frames(read_trajectory(path), range(1000))


def test_without_room_to_merge_the_parts_stay(tmp_path, caplog):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, part_bytes=1)
    for start in range(0, 900, 100):
        writer.append(**frames(range(start, start + 100)))
        writer.flush()
    with largest_file(100_000):
        writer.close()
    assert "stays in parts (keep the folder trajectory.parts beside it)" in caplog.text
    assert_frames(read_trajectory(path), range(900))
    assert not list(tmp_path.glob("**/*.merged"))
    h5md.merge(path)
    assert_frames(read_trajectory(path), range(900))
    assert [p.name for p in tmp_path.iterdir()] == ["trajectory.h5"]


def test_an_error_of_the_user_is_not_hidden_by_one_of_the_disk(tmp_path, caplog):
    def fail():
        with TrajectoryWriter(tmp_path / "trajectory.h5", ATOMS) as writer:
            writer.append(**frames(range(10)))
            raise KeyError("mine")

    with largest_file(10), pytest.raises(KeyError, match="mine"):
        fail()
    assert "Nothing is on disk yet" in caplog.text


def test_damage_is_told(tmp_path):
    path = tmp_path / "trajectory.h5"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_trajectory(path)
    write(path, range(50))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="Copy it again"):
        read_trajectory(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(FileFormatError, match="not a trajectory of leignn_jax"):
        read_trajectory(path)
    path.unlink()
    writer = TrajectoryWriter(path, ATOMS, part_bytes=1)
    writer.append(**frames(range(5)))
    writer.flush()
    trajectory = read_trajectory(path)
    next(h5md.parts_folder(path).glob("part_*")).unlink()
    with pytest.raises(FileFormatError, match=r"a part of it is missing.*Copy the folder trajectory.parts"):
        trajectory.positions  # noqa: B018, reads the file


FIELDS = ("numbers", "masses", "pbc", "step", "time", "positions", "velocities", "forces", "cell", "energy")


@pytest.mark.parametrize("which", ["merged", "joined", "part"])
def test_a_damaged_byte_is_told_or_changes_no_number(tmp_path, which):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, part_bytes=1)
    for start in range(0, 60, 20):
        writer.append(**frames(range(start, start + 20)))
        writer.flush()
    if which == "merged":
        writer.close()
    target = next(h5md.parts_folder(path).glob("part_*2.h5")) if which == "part" else path
    seen = outcomes(target, lambda: [getattr(read_trajectory(path), name) for name in FIELDS], 80, seed=0)
    assert seen.keys() <= {"told", "same"}, seen
    assert seen["told"] > 40
    writer.close()


def test_a_changed_number_is_told_by_the_name_of_its_dataset(tmp_path):
    path = tmp_path / "trajectory.h5"
    write(path, range(50))
    whole, places = path.read_bytes(), {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: places.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        chunked = {name: item.id.get_chunk_info(0).byte_offset for name, item in places.items() if item.fletcher32}
        plain = {name: item.id.get_offset() for name, item in places.items() if not item.fletcher32}
    # Steps and times stand once, beside any of the values.
    assert len(chunked) == len(h5md.FIELDS)
    assert plain.keys() == {"particles/all/species", "particles/all/mass"}
    for name, at in (chunked | plain).items():
        path.write_bytes(whole[: at + 9] + bytes([whole[at + 9] ^ 4]) + whole[at + 10 :])
        with pytest.raises(FileFormatError, match=r"/(value|step|time) is damaged" if name in chunked else "masses"):
            read_trajectory(path).to_atoms()


def old_file(path):
    """A trajectory as versions before checksums wrote it."""
    write(path, range(4))
    with h5py.File(path) as new, h5py.File(path.with_name("old.h5"), "w") as old:
        for name in new:
            new.copy(name, old)
        for name in list(old["leignn_jax"].attrs):
            del old["leignn_jax"].attrs[name]
        old["leignn_jax"].attrs["format"] = h5md.FORMAT
    os.replace(path.with_name("old.h5"), path)
    return path


def test_files_from_before_checksums_are_read(tmp_path):
    path = old_file(tmp_path / "trajectory.h5")
    assert_frames(read_trajectory(path), range(4))
    np.testing.assert_array_equal(read_trajectory(path).pbc, [True, True, False])
    with TrajectoryWriter(path, ATOMS, resume_step=2) as writer:
        writer.append(**frames(range(3, 7)))
        writer.flush()
        assert_frames(read_trajectory(path), range(7))
    assert_frames(read_trajectory(path), range(7))


@pytest.mark.parametrize(
    ("place", "values", "words"),
    [
        ("particles/all/species", [29, 0, 29], "the atomic number of atom 1 is 0"),
        ("particles/all/species", [29, 40, 119], "the atomic number of atom 2 is 119"),
        ("particles/all/species", [29.0, 40, 29], "do not fit"),
        ("particles/all/mass", [63.5, -91.0, 63.5], "the mass of atom 1 is -91.0"),
        ("particles/all/mass", [0.0, 91.0, 63.5], "the mass of atom 0 is 0.0"),
        ("particles/all/mass", [63.5, 91.0, np.nan], "the mass of atom 2 is nan"),
        ("particles/all/mass", [63.5, 91.0], "do not fit"),
        ("particles/all/position/step", [0, 1, 3, 2], r"after step 3 comes step 2 \(frame 3\)"),
        ("particles/all/position/step", [0.0, 1, 2, 3], "its step have the type float64"),
        ("particles/all/position/time", [0.0, np.nan, 1, 2], r"the time of frame 1 \(step 1\) is nan"),
        ("particles/all/position/value", np.zeros((4, 2, 3), np.float32), "particles/all/position/value is damaged"),
        ("particles/all/position/value", "words", "its positions have the type object"),
        ("particles/all/box", 1, "its header is damaged"),
        ("leignn_jax/parts", "{", "its header is damaged"),
        ("leignn_jax/parts", '[["../trajectory.h5", 4, 4]]', "is not beside it"),
        ("leignn_jax/parts", '[["trajectory.h5", 5, 4]]', "has 5 of 4 frames"),
        ("leignn_jax/parts", '[["trajectory.h5", 4000000000000000, 4000000000000000]]', "is damaged"),
    ],
)
def test_what_no_simulation_has_is_refused(tmp_path, place, values, words):
    path = old_file(tmp_path / "trajectory.h5")
    with h5py.File(path, "a") as file:
        if place in file:
            del file[place]
        file[place] = values
    with pytest.raises(FileFormatError, match=words):
        read_trajectory(path).positions  # noqa: B018, reads the file


def test_what_no_trajectory_has_is_not_written(tmp_path):
    path = tmp_path / "trajectory.h5"
    for key, value, words in (("mass", 0.0, "mass of atom 1 is 0"), ("number", 0, "atomic number of atom 1 is 0")):
        other = ATOMS.copy()
        setattr(other[1], key, value)
        with pytest.raises(SimulationError, match=words):
            TrajectoryWriter(path, other)
    with TrajectoryWriter(path, ATOMS) as writer, pytest.raises(SimulationError, match="the time of frame 0"):
        writer.append(**{**frames([0]), "time": np.array([np.inf])})


def kill_trials(folder: Path, trials: int, seed: int) -> dict:
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), str(folder), str(trials), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_kill_at_any_moment_loses_nothing(tmp_path):
    seen = kill_trials(tmp_path, 10, 0)
    assert seen["most_frames"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_kills_lose_nothing(tmp_path, seed):
    seen = kill_trials(tmp_path, 100, seed)
    assert seen["most_frames"] > 50
    assert seen["killed_in_writes"] > 0
    assert seen["merges"] > 5


class Slow:
    """An array that takes its time to come to the host, as one from a device may."""

    def __init__(self, values, until):
        self.values, self.until = values, until

    def __array__(self, dtype=None, copy=None):
        end = time.monotonic() + 20
        while not self.until() and time.monotonic() < end:
            time.sleep(0.01)
        return np.asarray(self.values, dtype)


def test_a_part_that_is_written_while_frames_come_is_not_forgotten(tmp_path):
    path = tmp_path / "trajectory.h5"
    writer = TrajectoryWriter(path, ATOMS, flush_seconds=0.1)
    writer.append(**frames([0]))
    late = frames([1])
    late["positions"] = Slow(late["positions"], path.exists)
    writer.append(**late)
    writer.append(**frames([2]))
    writer.close()
    assert read_trajectory(path).step.tolist() == [0, 1, 2]
