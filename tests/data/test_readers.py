"""Readers against files written by ASE, h5py and by hand, and against damaged ones."""

import bz2
import contextlib
import gc
import gzip
import io
import lzma
import sqlite3
import tracemalloc

import ase
import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase.db import connect
from frames import copper

from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import read_labels
from leignn_jax.data.readers import BOHR, HARTREE, KCAL_PER_MOL, iter_frames, read_frames, write_hdf5
from leignn_jax.errors import ConfigError, DataError, FileFormatError


def assert_same(frames, expected, stress=True):
    assert len(frames) == len(expected)
    for a, b in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(a.numbers, b.numbers)
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
        np.testing.assert_allclose(np.asarray(a.cell), np.asarray(b.cell), atol=1e-7)
        np.testing.assert_array_equal(a.pbc, b.pbc)
        x, y = read_labels(a), read_labels(b)
        assert x.energy == pytest.approx(y.energy, abs=1e-7)
        np.testing.assert_allclose(x.forces, y.forces, atol=1e-7)
        if stress:
            np.testing.assert_allclose(x.stress, y.stress, atol=1e-7)


def extxyz(frames) -> str:
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue()


@pytest.mark.parametrize("suffix", [".extxyz", ".xyz", ".extxyz.xz", ".extxyz.gz", ".extxyz.bz2"])
def test_extxyz(tmp_path, suffix):
    frames = copper(4)
    opener = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get("." + suffix.split(".")[-1], open)
    path = tmp_path / f"frames{suffix}"
    with opener(path, "wt") as file:
        file.write(extxyz(frames))
    assert_same(read_frames(path), frames)
    assert_same(read_frames(path, index="1:3"), frames[1:3])


@pytest.mark.parametrize("name", ["frames.traj", "frames.db", "frames.json"])
def test_formats_of_ase(tmp_path, name):
    frames = copper(3)
    ase.io.write(tmp_path / name, frames)
    assert_same(read_frames(tmp_path / name), frames)


def test_vasp(tmp_path):
    """A vasprun.xml by hand: one structure, energies and forces in eV and Å, stress in kbar of VASP's sign."""
    text = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling><generator><i name="version" type="string">6.4.1</i></generator>
<incar></incar><kpoints><varray name="kpointlist"><v>0 0 0</v></varray></kpoints>
<parameters><separator name="electronic"><i name="NELECT">1</i></separator></parameters>
<atominfo><atoms>2</atoms><types>1</types>
<array name="atoms"><field type="string">element</field><field type="int">atomtype</field>
<set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set></array></atominfo>
<structure name="initialpos"><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<calculation><scstep><energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i>
<i name="e_0_energy">-10.45</i></energy></scstep>
<structure><crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 4</v></varray></crystal>
<varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
<varray name="forces"><v>0.1 0 0</v><v>-0.1 0 0</v></varray>
<varray name="stress"><v>10 0 0</v><v>0 10 0</v><v>0 0 10</v></varray>
<energy><i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.4</i><i name="e_0_energy">-10.45</i></energy>
</calculation></modeling>
"""
    path = tmp_path / "vasprun.xml"
    path.write_text(text)
    (atoms,) = read_frames(path)
    labels = read_labels(atoms)
    assert labels.energy == pytest.approx(-10.45)
    np.testing.assert_allclose(labels.forces, [[0.1, 0, 0], [-0.1, 0, 0]])
    np.testing.assert_allclose(labels.stress, -10 * 6.241509e-4 * np.eye(3), atol=1e-8)


def test_deuterium_is_told(tmp_path):
    (tmp_path / "heavy.extxyz").write_text("2\nProperties=species:S:1:pos:R:3\nD 0 0 0\nH 0 0 0.74\n")
    with pytest.raises(FileFormatError, match=r"heavy\.extxyz: frame 0 .*'D'"):
        read_frames(tmp_path / "heavy.extxyz")
    text = "2\nProperties=species:S:1:pos:R:3:masses:R:1\nH 0 0 0 2.014\nH 0 0 0.74 1.008\n"
    (tmp_path / "heavy.extxyz").write_text(text)
    assert read_frames(tmp_path / "heavy.extxyz")[0].get_masses().tolist() == [2.014, 1.008]


def test_md17(tmp_path):
    rng = np.random.default_rng(0)
    positions, forces = rng.normal(size=(5, 3, 3)), rng.normal(size=(5, 3, 3))
    np.savez(
        tmp_path / "rmd17.npz", nuclear_charges=[8, 1, 1], coords=positions, energies=np.arange(5.0), forces=forces
    )
    np.savez(tmp_path / "md17.npz", z=[8, 1, 1], R=positions, E=np.arange(5.0)[:, None], F=forces)
    for name in ("rmd17.npz", "md17.npz"):
        frames = read_frames(tmp_path / name)
        labels = read_labels(frames[2])
        np.testing.assert_array_equal(frames[2].numbers, [8, 1, 1])
        np.testing.assert_array_equal(frames[2].positions, positions[2])
        assert labels.energy == pytest.approx(2 * KCAL_PER_MOL)
        np.testing.assert_allclose(labels.forces, forces[2] * KCAL_PER_MOL)
        assert not frames[2].pbc.any()
    hartree = read_frames(tmp_path / "md17.npz", units="hartree/bohr")
    np.testing.assert_allclose(hartree[1].positions, positions[1] * BOHR)
    np.testing.assert_allclose(read_labels(hartree[1]).forces, forces[1] * HARTREE / BOHR)


def test_deepmd(tmp_path):
    frames = copper(3)
    for part in ("set.000", "set.001"):
        (tmp_path / "system" / part).mkdir(parents=True)
    system = tmp_path / "system"
    (system / "type.raw").write_text("0\n" * 4)
    (system / "type_map.raw").write_text("Cu\n")
    for part, chosen in (("set.000", frames[:2]), ("set.001", frames[2:])):
        labels = [read_labels(a) for a in chosen]
        np.save(system / part / "coord.npy", np.array([a.positions.ravel() for a in chosen]))
        np.save(system / part / "box.npy", np.array([np.asarray(a.cell).ravel() for a in chosen]))
        np.save(system / part / "energy.npy", np.array([x.energy for x in labels]))
        np.save(system / part / "force.npy", np.array([x.forces.ravel() for x in labels]))
        virials = [(-x.stress * a.get_volume()).ravel() for a, x in zip(chosen, labels, strict=True)]
        np.save(system / part / "virial.npy", np.array(virials))
    assert_same(read_frames(system), frames)
    assert_same(read_frames(tmp_path), frames)
    (system / "type_map.raw").unlink()
    with pytest.raises(FileFormatError, match=r"type_map\.raw"):
        read_frames(system)


def test_iso17_names(tmp_path):
    frames = copper(2, stress=False)
    with connect(tmp_path / "iso.db") as database:
        for atoms in frames:
            labels = read_labels(atoms)
            bare = atoms.copy()
            database.write(bare, key_value_pairs={"total_energy": labels.energy}, data={"atomic_forces": labels.forces})
    assert_same(read_frames(tmp_path / "iso.db"), frames, stress=False)


def test_s2ef(tmp_path):
    frames = copper(3)
    with lzma.open(tmp_path / "0.extxyz.xz", "wt") as file:
        file.write(extxyz(frames))
    (tmp_path / "0.txt").write_text("random1,frame0,-1.5\nrandom1,frame1,-1.5\nrandom2,frame0,2.0\n")
    read = read_frames(tmp_path)
    assert read_labels(read[2]).energy == pytest.approx(read_labels(frames[2]).energy - 2.0, abs=1e-7)
    assert read[2].info["system"] == "random2"
    (tmp_path / "0.txt").write_text("random1,frame0,-1.5\n")
    with pytest.raises(FileFormatError, match="1 lines for the 3 frames"):
        read_frames(tmp_path)
    # As the archives of OC20 have it.
    with lzma.open(tmp_path / "0.txt.xz", "wt") as file:
        file.write("random1,frame0,-1.5\nrandom1,frame1,-1.5\nrandom2,frame0,3.0\n")
    (tmp_path / "0.txt").unlink()
    assert read_labels(read_frames(tmp_path)[2]).energy == pytest.approx(read_labels(frames[2]).energy - 3.0, abs=1e-7)
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(FileFormatError, match=r"0\.txt is missing"):
        read_frames(tmp_path)


def test_aselmdb(tmp_path):
    pytest.importorskip("ase_db_backends")
    frames = copper(3)
    with connect(tmp_path / "part.aselmdb", type="aselmdb") as database:
        for atoms in frames:
            database.write(atoms)
    assert_same(read_frames(tmp_path / "part.aselmdb"), frames)
    assert_same(read_frames(tmp_path), frames)


def test_hdf5_of_no_structures_or_of_a_trajectory(tmp_path):
    write_hdf5(tmp_path / "one.h5", copper(1)[0])
    assert_same(read_frames(tmp_path / "one.h5"), copper(1))
    with pytest.raises(ConfigError, match="frames: give one structure or more"):
        write_hdf5(tmp_path / "none.h5", [])
    with h5py.File(tmp_path / "trajectory.h5", "w") as file:
        file.create_group("h5md")
        file.create_group("observables/time").attrs["unit"] = "fs"
    with pytest.raises(FileFormatError, match="is a trajectory"):
        read_frames(tmp_path / "trajectory.h5")


def test_hdf5(tmp_path):
    frames = copper(4, sizes=((1, 1, 1), (2, 1, 1)))
    write_hdf5(tmp_path / "frames.h5", frames)
    assert_same(read_frames(tmp_path / "frames.h5"), [frames[i] for i in (0, 2, 1, 3)])
    with h5py.File(tmp_path / "by_hand.h5", "w") as file:
        file["numbers"], file["positions"] = [1, 1], np.array([[[0, 0, 0], [0.74, 0, 0]]] * 2)
        file["energy"], file["forces"] = [1.0, 2.0], np.ones((2, 2, 3))
    read = read_frames(tmp_path / "by_hand.h5")
    assert read_labels(read[1]).energy == 2.0
    assert not read[1].pbc.any()
    with h5py.File(tmp_path / "by_hand.h5", "a") as file:
        del file["energy"]
        file["energy"] = [1.0]
    with pytest.raises(FileFormatError, match="2 positions but 1 of energy"):
        read_frames(tmp_path / "by_hand.h5")


def test_damaged_files_name_the_file_and_the_frame(tmp_path):
    text = extxyz(copper(4))
    cut = tmp_path / "cut.extxyz"
    cut.write_text("\n".join(text.splitlines()[:-2]))
    with pytest.raises(FileFormatError, match=r"cut\.extxyz: frame 3 "):
        read_frames(cut)
    packed = tmp_path / "cut.extxyz.xz"
    packed.write_bytes(lzma.compress(text.encode())[:-40])
    with pytest.raises(FileFormatError, match=r"cut\.extxyz\.xz: .*cut short"):
        read_frames(packed)
    garbage = tmp_path / "garbage.xyz"
    garbage.write_text("not a number\nat all\n")
    with pytest.raises(FileFormatError, match=r"garbage\.xyz: frame 0"):
        read_frames(garbage)
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(DataError, match="no frames"):
        read_frames(tmp_path / "empty.extxyz")
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    with pytest.raises(FileFormatError, match=r"broken\.h5"):
        read_frames(tmp_path / "broken.h5")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(FileFormatError, match="has no array nuclear_charges"):
        read_frames(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_frames(tmp_path / "absent.extxyz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileFormatError, match="none of the known kinds"):
        read_frames(tmp_path / "folder")


@pytest.mark.parametrize("name", ["data.lmdb", "data.pkl", "frames.pt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(FileFormatError, match="can run any program"):
        read_frames(tmp_path / name)


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", z=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileFormatError, match="allow_pickle"):
        read_frames(tmp_path / "evil.npz")


def test_arguments(tmp_path):
    path = tmp_path / "frames.extxyz"
    path.write_text(extxyz(copper(2)))
    with pytest.raises(ConfigError, match="units"):
        read_frames(path, units="furlong")
    for index in ("a", "3", "1:2:3:4"):
        with pytest.raises(ConfigError, match="slice"):
            read_frames(path, index=index)


def test_frames_come_one_by_one(tmp_path):
    """A file that breaks off gives the frames before; a slice from its beginning does not read on."""
    frames = copper(4)
    lines = extxyz(frames).splitlines()
    path = tmp_path / "cut.extxyz"
    path.write_text("\n".join(lines[:-2]))
    stream = iter_frames(path)
    assert_same([next(stream) for _ in range(3)], frames[:3])
    with pytest.raises(FileFormatError, match=r"frame 3 can't be read .*2 of 4 atoms"):
        next(stream)
    assert_same(read_frames(path, index=":2"), frames[:2])
    with pytest.raises(FileFormatError):
        read_frames(path, index="-1:")


def test_nothing_after_a_blank_line_is_dropped(tmp_path):
    frames = copper(3)
    path = tmp_path / "frames.extxyz"
    path.write_text(extxyz(frames[:2]) + "\n \n")
    assert_same(read_frames(path), frames[:2])
    path.write_text(extxyz(frames[:2]) + "\n" + extxyz(frames[2:]))
    with pytest.raises(FileFormatError, match=r"frame 2 can't be read .*blank line"):
        read_frames(path)


def test_vectors_after_the_atoms(tmp_path):
    """The cell in VEC lines, an older form of XYZ."""
    path = tmp_path / "vec.xyz"
    one = "1\n\nCu 0 0 0\nVEC1 3 0 0\nVEC2 0 4 0\nVEC3 0 0 5\n"
    path.write_text(2 * one + "1\n\nCu 0 0 1\n")
    lengths = [atoms.cell.lengths().tolist() for atoms in read_frames(path)]
    assert lengths == [[3, 4, 5], [3, 4, 5], [0, 0, 0]]


def test_more_frames_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("leignn_jax.data.readers.databases._BLOCK", 2)
    monkeypatch.setattr("leignn_jax.data.readers.hdf5._BLOCK", 2)
    frames = copper(5)
    ase.io.write(tmp_path / "frames.db", frames)
    write_hdf5(tmp_path / "frames.h5", frames)
    for name in ("frames.db", "frames.h5"):
        assert_same(read_frames(tmp_path / name), frames)


@pytest.mark.parametrize("kind", ["extxyz.gz", "h5", "db", "deepmd", "traj"])
def test_memory_of_a_stream_does_not_grow(tmp_path, kind):
    few = copper(4, sizes=((2, 2, 2),))

    def peak(count):
        frames = [few[i % 4] for i in range(count)]
        path = tmp_path / f"{count}.{kind}"
        if kind == "h5":
            write_hdf5(path, frames)
        elif kind == "deepmd":
            (path / "set.000").mkdir(parents=True)
            (path / "type.raw").write_text("0\n" * 32)
            (path / "type_map.raw").write_text("Cu\n")
            for name, get in (
                ("coord", lambda a: a.positions),
                ("box", lambda a: a.cell),
                ("force", ase.Atoms.get_forces),
            ):
                np.save(path / "set.000" / f"{name}.npy", np.array([np.ravel(get(a)) for a in frames]))
        elif kind == "extxyz.gz":
            with gzip.open(path, "wt") as file:
                file.write(extxyz(frames))
        else:
            ase.io.write(path, frames)
        read = 0
        tracemalloc.start()
        for _ in iter_frames(path):
            read += 1
            if read % 8 == 0:
                gc.collect()  # frames of ASE refer to themselves
        assert read == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)  # what is imported by the way
    # Forces and positions of a frame are 1.5 kB, as text three times that; the blocks are of 8 frames.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leignn_jax.data.readers.databases._BLOCK", 8)
        patch.setattr("leignn_jax.data.readers.hdf5._BLOCK", 8)
        assert peak(80) - peak(16) < 64 * 800


def test_outcar(tmp_path):
    """An OUTCAR by hand: energies of both kinds, forces, and stress in kbar of VASP's order and sign."""
    text = """ vasp.6.4.1
 POTCAR:    PAW_PBE Si 05Jan2001
 POTCAR:    PAW_PBE Si 05Jan2001
   ions per type =               2
   NKPTS =      1   ISPIN  =      1
 ISPIN  =      1    spin polarized calculation?
 LNONCOLLINEAR =      F non collinear calculations
----------------------------------------- Iteration    1(   1)  ---------------------------------------
 in kB      10.00000    20.00000    30.00000     1.00000     2.00000     3.00000
      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.250000000  0.000000000  0.000000000
     0.000000000  4.000000000  0.000000000     0.000000000  0.250000000  0.000000000
     0.000000000  0.000000000  4.000000000     0.000000000  0.000000000  0.250000000
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.000000      0.000000
      2.00000      2.00000      2.00000        -0.100000      0.000000      0.000000
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =       -10.50000000 eV

  energy  without entropy=      -10.40000000  energy(sigma->0) =      -10.45000000
"""
    path = tmp_path / "OUTCAR"
    path.write_text(text)
    (atoms,) = read_frames(path)
    labels = read_labels(atoms)
    assert labels.energy == pytest.approx(-10.45)
    assert read_labels(atoms, keys={"energy": "free_energy"}).energy == pytest.approx(-10.5)
    np.testing.assert_allclose(labels.forces, [[0.1, 0, 0], [-0.1, 0, 0]])
    kbar = 6.241509e-4
    stress = [[10, 1, 3], [1, 20, 2], [3, 2, 30]]
    np.testing.assert_allclose(labels.stress, -kbar * np.array(stress), atol=1e-8)


def test_a_plain_folder_of_extended_xyz_is_none_of_oc20(tmp_path):
    ase.io.write(tmp_path / "train.extxyz", ase.Atoms("H"))
    with pytest.raises(FileFormatError, match="none of the known kinds"):
        read_frames(tmp_path)


def test_systems_of_deepmd_at_any_depth(tmp_path):
    for place in ("a", "x/b", "x/y/c"):
        folder = tmp_path / place
        (folder / "set.000").mkdir(parents=True)
        (folder / "type.raw").write_text("0\n0\n")
        (folder / "type_map.raw").write_text("H\n")
        (folder / "nopbc").touch()
        np.save(folder / "set.000" / "coord.npy", np.arange(12.0).reshape(2, 6))
    assert len(read_frames(tmp_path)) == 6


@pytest.mark.parametrize("elements", [True, False])
def test_a_lammps_dump_needs_its_elements_and_has_no_energy(tmp_path, elements):
    columns, rows = ("type element", ["1 Si", "2 C"]) if elements else ("type", ["1", "2"])
    lines = ["ITEM: TIMESTEP", "0", "ITEM: NUMBER OF ATOMS", "2", "ITEM: BOX BOUNDS pp pp pp", *["0.0 5.0"] * 3]
    lines.append(f"ITEM: ATOMS id {columns} x y z fx fy fz")
    lines += [f"{i + 1} {row} {i} 0.5 0.5 0.1 0 0" for i, row in enumerate(rows)]
    file = tmp_path / "md.lammpstrj"
    file.write_text("\n".join(lines) + "\n")
    if not elements:
        with pytest.raises(FileFormatError, match="types but no elements"):
            read_frames(file)
        return
    (atoms,) = read_frames(file)
    assert atoms.get_chemical_symbols() == ["Si", "C"]
    labels = read_labels(atoms)
    assert labels.energy is None
    assert labels.forces is not None


def test_units_of_schnetpack(tmp_path):
    file = tmp_path / "s.db"
    with ase.db.connect(file) as database:
        database.write(
            ase.Atoms("H2", [[0, 0, 0], [0, 0, 1.4]]), data={"energy": np.array([-1.0]), "forces": np.ones((2, 3))}
        )
        units = {"energy": "Hartree", "forces": "Hartree/Bohr", "dipole": "Debye"}
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Bohr"}
    (atoms,) = read_frames(file)
    labels = read_labels(atoms)
    assert labels.energy == pytest.approx(-HARTREE)
    assert labels.forces == pytest.approx(np.full((2, 3), HARTREE / BOHR))
    assert atoms.get_distance(0, 1) == pytest.approx(1.4 * BOHR)
    with ase.db.connect(file) as database:
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Ang"}
    with pytest.raises(FileFormatError, match="do not fit together"):
        read_frames(file)


def test_another_sqlite_file_is_refused_and_left_as_it_is(tmp_path):
    file = tmp_path / "mine.db"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("create table mine (a int)")
    before = file.read_bytes()
    with pytest.raises(FileFormatError, match="no database of ASE"):
        read_frames(file)
    assert file.read_bytes() == before


def test_units_and_lattice_of_sgdml(tmp_path):
    lattice = np.array([[4.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    arrays = {"z": [1, 1], "R": np.random.default_rng(0).random((3, 2, 3)), "F": np.ones((3, 2, 3))}
    np.savez(tmp_path / "s.npz", **arrays, E=np.full(3, -3.0), e_unit="eV", r_unit="Ang", lattice=lattice)
    frames = read_frames(tmp_path / "s.npz")
    assert read_labels(frames[0]).energy == pytest.approx(-3.0)
    assert frames[0].pbc.all()
    assert np.asarray(frames[0].cell) == pytest.approx(lattice.T)
    np.savez(tmp_path / "forces.npz", **arrays)
    labels = read_labels(read_frames(tmp_path / "forces.npz")[0])
    assert labels.energy is None
    assert labels.forces == pytest.approx(KCAL_PER_MOL * np.ones((2, 3)))


def test_names_of_labels_reach_every_reader(tmp_path):
    keys = {"energy": "my_energy", "forces": "my_forces"}
    positions, forces = np.array([[[0.0, 0, 0], [0, 0, 0.8]]] * 2), np.full((2, 2, 3), 0.5)
    np.savez(tmp_path / "a.npz", z=[1, 1], R=positions, my_energy=[-1.0, -2.0], my_forces=forces)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"], file["positions"] = [1, 1], positions
        file["my_energy"], file["my_forces"] = [-1.0, -2.0], forces
    for name in ("a.db", "a.json"):
        with ase.db.connect(tmp_path / name) as database:
            for energy in (-1.0, -2.0):
                atoms = ase.Atoms("H2", positions[0])
                database.write(atoms, my_energy=energy, data={"my_forces": forces[0]})
    for name in ("a.npz", "a.h5", "a.db", "a.json"):
        frames = read_frames(tmp_path / name, keys=keys, units="eV/angstrom")
        found = [read_labels(atoms, keys=keys) for atoms in frames]
        assert [one.energy for one in found] == [-1.0, -2.0], name
        assert found[1].forces == pytest.approx(forces[0]), name
    # Converted too.
    (atoms, _) = read_frames(tmp_path / "a.npz", keys=keys)
    assert read_labels(atoms, keys=keys).energy == pytest.approx(-KCAL_PER_MOL)


def test_masses_of_hdf5_for_each_atom_or_each_frame(tmp_path):
    for masses in ([2.0, 3.0], [[2.0, 3.0]] * 2):
        with h5py.File(tmp_path / "m.h5", "w") as file:
            file["numbers"], file["positions"] = [1, 1], np.array([[[0.0, 0, 0], [0, 0, 0.8]]] * 2)
            file["energy"], file["masses"] = [-1.0, -2.0], masses
        assert [list(atoms.get_masses()) for atoms in read_frames(tmp_path / "m.h5")] == [[2.0, 3.0]] * 2


def test_the_last_frames_alone_are_kept(tmp_path):
    ase.io.write(tmp_path / "t.extxyz", [ase.Atoms("H", [[i, 0, 0]]) for i in range(5)])
    for index, places in (
        ("-1:", [4]),
        ("-2:", [3, 4]),
        ("-9:", [0, 1, 2, 3, 4]),
        ("-3:-1", [2, 3]),
        ("::-2", [4, 2, 0]),
    ):
        assert [a.positions[0, 0] for a in read_frames(tmp_path / "t.extxyz", index=index)] == places
    with pytest.raises(ConfigError, match="not a slice"):
        read_frames(tmp_path / "t.extxyz", index="::0")


def test_labels_under_unknown_names_are_told(tmp_path, caplog):
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.info["energy"] = -1.0
    atoms.arrays["Forces"] = np.ones((2, 3))
    ase.io.write(tmp_path / "t.extxyz", atoms)
    list(iter_labelled(tmp_path / "t.extxyz"))
    assert "data.keys.forces=Forces" in caplog.text
    caplog.clear()
    other = ase.Atoms("H", info={"energy_of": "nothing", "forces_by_step": [[1.0], [1.0, 2.0]]})
    ase.io.write(tmp_path / "t.traj", other)
    (found,) = iter_labelled(tmp_path / "t.traj")
    assert found[0].info == other.info
    assert not caplog.text


def test_an_apostrophe_in_plain_english(tmp_path):
    (tmp_path / "t.xyz").write_text("1\nBob's frame energy=-3.0\nH 0 0 0\n")
    assert read_labels(read_frames(tmp_path / "t.xyz")[0]).energy == -3.0
