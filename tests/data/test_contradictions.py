"""Files of every format that contradict themselves, lack a part, or would fill the memory; and units that files name."""

import json
import re
import struct
import zipfile

import ase
import ase.io
import h5py
import numpy as np
import pytest
from ase.db import connect
from frames import copper

from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import read_labels
from leignn_jax.data.readers import BOHR, HARTREE, KCAL_PER_MOL, read_frames
from leignn_jax.errors import DataError, FileFormatError

WRONG = (FileFormatError, DataError)


def refused(path, message):
    with pytest.raises(WRONG, match=f"{path.name.split('.')[0]}.*{message}"):
        list(iter_labelled(path))


# ------------------------------------------------------------------------------------------------------------------- npz


def molecule(frames=5):
    rng = np.random.default_rng(0)
    positions = np.array([[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6], [3, 0, 0.0]]) + 0.01 * rng.normal(
        size=(frames, 4, 3)
    )
    return {"z": [8, 1, 1, 2], "R": positions, "E": np.arange(1.0 * frames), "F": rng.normal(size=positions.shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"coords": a["R"] + 1}, "coords and R are the same quantity with different numbers"),
        (lambda a: {"energies": a["E"] + 1}, "energies and E are"),
        (lambda a: {"nuclear_charges": [6, 1, 1, 2]}, "nuclear_charges and z are"),
        (lambda a: {"forces": -a["F"]}, "forces and F are"),
        (lambda a: {"R": a["R"].astype(complex)}, "positions: complex128 are no real numbers"),
        (lambda a: {"E": a["E"] + 0j}, "energies: complex128"),
        (lambda a: {"R": a["R"].transpose(0, 2, 1)}, r"positions: of shape \[5, 3, 4\], but \[any, 4, 3\]"),
        (lambda a: {"F": a["F"].transpose(1, 0, 2)}, r"forces: of shape"),
        (lambda a: {"F": a["F"][:, :3]}, r"forces: of shape"),
        (lambda a: {"E": a["E"][:-1]}, r"energies: of shape \[4\]"),
        (lambda a: {"E": a["E"].astype(str)}, "energies: <U32"),
        (lambda a: {"E": np.zeros(5, [("a", float), ("b", float)])}, "energies: .*are no real numbers"),
        (lambda a: {"E": a["E"] > 1}, "energies: bool"),
        (lambda a: {"z": ["O", "H", "H", "He"]}, "nuclear_charges: <U2"),
        (lambda a: {"z": [8, 1, 1, -1]}, "atom 3 has -1"),
        (lambda a: {"z": [8, 1, 1.5, 1]}, "atom 2 has 1.5"),
        (lambda a: {"z": [8, 1, 1, 119]}, "atom 3 has 119"),
        (lambda a: {"z": [8, 1, 1, 10**15]}, "atom 3 has 1000000000000000"),
        (lambda a: {"z": [[8, 1, 1, 2]] * 5}, r"of shape \[5, 4\]"),
        (lambda a: {"R": a["R"] * 1e200}, "frame 0: the position of atom 0"),
        (lambda a: {"E": a["E"] + 1e200}, "frame 0: the energy is"),
    ],
)
def test_npz(tmp_path, change, message):
    arrays = molecule()
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    assert len(read_frames(path)) == 5
    np.savez(path, **{**arrays, **change(arrays)})
    refused(path, message)


def test_two_names_that_say_the_same(tmp_path):
    arrays = molecule()
    np.savez(tmp_path / "set.npz", **arrays, coords=arrays["R"], energies=arrays["E"][:])
    assert len(read_frames(tmp_path / "set.npz")) == 5


def test_npz_that_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("leignn_jax.data.readers.text._FREE", 1 << 16)
    monkeypatch.setattr("leignn_jax.data.readers.text._RATIO", 100)
    arrays = {**molecule(), "R": np.zeros((10**5, 4, 3))}
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    refused(tmp_path / "set.npz", "No frames pack so well")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("z.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("z.npy", b"")
    refused(tmp_path / "twice.npz", "stands there twice")


# ---------------------------------------------------------------------------------------------------------------- DeePMD


def deepmd(folder, frames=3):
    part = folder / "set.000"
    part.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n0\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    rng = np.random.default_rng(0)
    positions = np.arange(12.0) + 0.01 * rng.normal(size=(frames, 12))
    arrays = {"coord": positions, "force": rng.normal(size=(frames, 12)), "energy": np.arange(1.0 * frames)}
    arrays |= {"box": np.tile(20 * np.eye(3).ravel(), (frames, 1)), "virial": np.ones((frames, 9))}
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)
    return part, arrays


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("coord", lambda a: a.T, r"coord\.npy: of shape \[12, 3\]"),
        ("force", lambda a: a.T, r"force\.npy: of shape"),
        ("force", lambda a: a[:, :9], r"force\.npy: of shape"),
        ("box", lambda a: a[:2], r"box\.npy: of shape \[2, 9\]"),
        ("energy", lambda a: a[:2], r"energy\.npy: of shape \[2\]"),
        ("virial", lambda a: a[:, :6], r"virial\.npy: of shape"),
        ("energy", lambda a: a.astype(str), r"energy\.npy: <U32"),
        ("coord", lambda a: a + 0j, r"coord\.npy: complex128"),
        ("coord", lambda a: a * np.nan, "frame 0: the position of atom 0"),
        ("box", lambda a: a * 1e20, "frame 0: the cell"),
        ("real_atom_types", lambda a: np.zeros((3, 4), int), "mixed types"),
        ("coord", None, r"has no coord\.npy"),
        ("box", None, r"has no box\.npy \(a file named nopbc"),
    ],
)
def test_deepmd_arrays(tmp_path, name, change, message):
    part, arrays = deepmd(tmp_path / "system")
    assert len(read_frames(tmp_path / "system")) == 3
    if change is None:
        (part / f"{name}.npy").unlink()
    else:
        np.save(part / f"{name}.npy", change(arrays.get(name)))
    refused(tmp_path / "system", message)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("type.raw", "0 1 1 -1", "type -1 of atom 3"),
        ("type.raw", "0 1 1 0.5", "type 0.5 of atom 3"),
        ("type.raw", "0 1 1 2", "type 2 of atom 3, but type_map.raw has only 2"),
        ("type.raw", "0 1 1", "of shape"),
        ("type.raw", "", "names no atom"),
        ("type_map.raw", "O Hx", "'Hx' is not an element"),
        ("type_map.raw", "X H", "'X' is not an element"),
    ],
)
def test_deepmd_types(tmp_path, file, text, message):
    deepmd(tmp_path / "system")
    (tmp_path / "system" / file).write_text(text)
    refused(tmp_path / "system", message)


def test_a_deepmd_system_without_frames(tmp_path):
    deepmd(tmp_path / "systems" / "one")
    part, _ = deepmd(tmp_path / "systems" / "two")
    part.rename(part.with_name("other"))
    refused(tmp_path / "systems", r"two: has no folder set\.000")


# ------------------------------------------------------------------------------------------------------------------ S2EF


def s2ef(folder, parts=3):
    folder.mkdir()
    for part in range(parts):
        ase.io.write(folder / f"{part}.extxyz", copper(1))
        (folder / f"{part}.txt").write_text("random,frame0,-1.5\n")
    return folder


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["1.extxyz"], r"1\.txt: its 1\.extxyz\.xz is missing"),
        (["1.txt"], r"1\.extxyz: its 1\.txt is missing"),
        (["1.txt", "1.extxyz"], "part 1 is missing between 0 and 2"),
        (["2.extxyz"], r"2\.txt: its 2\.extxyz\.xz is missing"),
    ],
)
def test_s2ef_parts(tmp_path, missing, message):
    folder = s2ef(tmp_path / "s2ef")
    assert len(read_frames(folder)) == 3
    for name in missing:
        (folder / name).unlink()
    refused(folder, message)


@pytest.mark.parametrize("line", ["random,frame0", "random,frame0,nan", "random,frame0,-1_5", "random,frame0,x"])
def test_s2ef_lines(tmp_path, line):
    folder = s2ef(tmp_path / "s2ef", 1)
    (folder / "0.txt").write_text(line + "\n")
    refused(folder, "line 1 is not of the form")
    (folder / "0.extxyz.xz").write_bytes(b"")
    refused(folder, "are the same part")


# ------------------------------------------------------------------------------------------------------------------ JSON


def mlearn():
    sites = [{"species": [{"element": "Li", "occu": 1}], "abc": [x, 0, 0], "xyz": [3 * x, 0, 0]} for x in (0, 0.5)]
    structure = {"lattice": {"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": sites}
    outputs = {"energy": -1.0, "forces": [[0, 0, 0], [0, 0, 0]], "virial_stress": [1, 2, 3, 4, 5, 6]}
    return {"structure": structure, "outputs": outputs, "group": "test", "num_atoms": 2}


def test_mlearn(tmp_path):
    path = tmp_path / "set.json"
    for mark in ("", "\ufeff"):
        path.write_text(mark + json.dumps([mlearn()]), encoding="utf-8")
        (atoms,) = read_frames(path)
        assert read_labels(atoms).stress[0, 1] == pytest.approx(-4 * 6.241509e-4)

    def broken(change, message):
        entry = mlearn()
        change(entry)
        path.write_text(json.dumps([mlearn(), entry]))
        refused(path, message)

    broken(lambda e: e.update(num_atoms=3), "frame 1: num_atoms is 3")
    broken(lambda e: e["structure"]["sites"][1].update(xyz=[1, 0, 0]), "frame 1: xyz and abc of atom 1")
    broken(lambda e: e["structure"]["sites"][1].update(species=[{"element": "Lx"}]), "atom 1: 'Lx'")
    broken(
        lambda e: e["structure"]["sites"][1].update(species=[{"element": "Li", "occu": 0.5}]), "atom 1 is of 1 species"
    )
    broken(lambda e: e["outputs"].update(forces=[[0, 0, 0]]), r"frame 1: forces of shape \(1, 3\)")
    broken(lambda e: e["outputs"].update(virial_stress=[1, 2, 3]), "frame 1: virial_stress of shape")
    broken(lambda e: e["outputs"].update(energy="-1"), "frame 1: the energy is '-1'")
    broken(lambda e: e["outputs"].update(energy=True), "frame 1: the energy is True")
    path.write_text(json.dumps([mlearn()]).replace('"energy": -1.0', '"energy": -1.0, "energy": -2.0'))
    refused(path, "the key 'energy' stands twice")


def test_json_of_ase(tmp_path):
    path = tmp_path / "set.json"
    ase.io.write(path, copper(3))
    text = path.read_text()
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert len(read_frames(path)) == 3
    path.rename(tmp_path / "set@1.json")
    assert len(read_frames(tmp_path / "set@1.json")) == 3
    path.write_text(re.sub(r'"ids": \[1, ?2, ?3\]', '"ids": [1, 2]', text))
    refused(path, "ids are")
    path.write_text("[" * 100_000)
    refused(path, "can't be read")


# ------------------------------------------------------------------------------------------------------------- databases


@pytest.mark.parametrize("name", ["set@1.traj", "set@:1.traj", "set@1.db", "set@1.cif"])
def test_names_with_an_at_sign(tmp_path, name):
    with open(tmp_path / "plain", "wb" if name.endswith(("traj", "cif")) else "w") as file:
        if not name.endswith("db"):
            ase.io.write(file, copper(2), format=name.split(".")[-1])
    if name.endswith("db"):
        ase.io.write(tmp_path / "plain.db", copper(2))
        (tmp_path / "plain.db").rename(tmp_path / name)
    else:
        (tmp_path / "plain").rename(tmp_path / name)
    assert len(read_frames(tmp_path / name)) == 2


def test_labels_of_database_rows(tmp_path):
    with connect(tmp_path / "set.db") as database:
        for atoms in copper(2):
            database.write(
                atoms.copy(), key_value_pairs={"REF_energy": -3.0}, data={"REF_forces": read_labels(atoms).forces}
            )
    labels = read_labels(read_frames(tmp_path / "set.db")[1])
    assert labels.energy == -3.0
    np.testing.assert_array_equal(labels.forces, read_labels(copper(2)[1]).forces)


def test_lmdb_cut_short(tmp_path):
    pytest.importorskip("ase_db_backends")
    path = tmp_path / "set.aselmdb"
    with connect(path, type="aselmdb") as database:
        for atoms in copper(20, sizes=((2, 2, 2),)):
            database.write(atoms)
    content = path.read_bytes()
    assert len(read_frames(path)) == 20
    for keep in (0, 50, 4000, 4200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        refused(path, "cut short")
    path.write_bytes(content.replace(struct.pack("<I", 0xBEEFC0DE), b"abcd"))
    refused(path, "is no LMDB")


# ------------------------------------------------------------------------------------------------------------------ HDF5


def hdf5(path, **changes):
    arrays = {"numbers": [1, 1], "positions": np.array([[[0, 0, 0], [0.74, 0, 0]]] * 3), "energy": np.arange(3.0)}
    arrays |= {"forces": np.ones((3, 2, 3)), **changes}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": [1, -1]}, "atom 1 has -1"),
        ({"numbers": [1, 1.5]}, "atom 1 has 1.5"),
        ({"numbers": [[1, 1]] * 3}, r"numbers: of shape \[3, 2\]"),
        ({"numbers": [b"H", b"H"]}, "no real numbers"),
        ({"positions": np.zeros((3, 3, 2))}, r"positions: of shape \[3, 3, 2\]"),
        ({"forces": np.ones((3, 3, 3))}, r"forces: of shape \[3, 3, 3\]"),
        ({"forces": np.ones((2, 2, 3))}, "3 positions but 2 of forces"),
        ({"forces": np.ones((3, 2, 3), complex)}, "forces: complex128"),
        ({"energy": 1.0}, "3 positions but 0 of energy"),
        ({"energy": np.ones((3, 2))}, r"energy: of shape"),
        ({"energy": [b"1", b"2", b"3"]}, "energy: .* no real numbers"),
        ({"REF_energy": np.ones(3)}, "energy and REF_energy differ"),
        ({"cell": np.ones((3, 9))}, r"cell: of shape"),
        ({"pbc": np.full((3, 3), 0.5)}, r"pbc: of shape"),
        ({"stress": np.ones((3, 4))}, r"stress: of shape"),
        ({"masses": [[1.0, 0.0]] * 3}, "frame 0: the mass of atom 1 is 0.0"),
        ({"momenta": np.ones((3, 2, 2))}, "momenta: of shape"),
    ],
)
def test_hdf5(tmp_path, changes, message):
    refused(hdf5(tmp_path / "set.h5", **changes), message)


def test_names_in_hdf5(tmp_path):
    path = hdf5(tmp_path / "set.h5", energy=None, forces=None, dft_energy=np.arange(3.0), force=np.ones((3, 2, 3)))
    labels = read_labels(read_frames(path)[2])
    assert labels.energy == 2.0
    assert (labels.forces == 1).all()


def test_hdf5_that_claims_more_than_it_holds(tmp_path):
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["numbers"] = [1, 1]
        file.create_dataset("positions", (10**9, 2, 3), "f4", chunks=(1, 2, 3))
    refused(tmp_path / "set.h5", "positions claims 24000000000 or more")


@pytest.mark.parametrize(
    ("attributes", "energy", "length"),
    [
        ({"": "eV, angstrom"}, 1, 1),
        ({"energy": "kcal/mol"}, KCAL_PER_MOL, 1),
        ({"energy": "kcal/mol", "forces": "kcal/(mol*Angstrom)", "positions": "Å"}, KCAL_PER_MOL, 1),
        ({"energy": b"kJ/mol"}, KCAL_PER_MOL / 4.184, 1),
        ({"energy": "Hartree", "positions": "bohr"}, HARTREE, BOHR),
        ({"energy": "eV", "forces": "eV/angstrom^3"}, 1, 1),
    ],
)
def test_units_in_attributes(tmp_path, attributes, energy, length):
    path = hdf5(tmp_path / "set.h5")
    with h5py.File(path, "a") as file:
        for name, text in attributes.items():
            (file[name] if name else file).attrs["units"] = text
    atoms = read_frames(path)[2]
    labels = read_labels(atoms)
    assert labels.energy == pytest.approx(2 * energy)
    np.testing.assert_allclose(labels.forces, energy / length)
    np.testing.assert_allclose(atoms.positions[1, 0], 0.74 * length)
    assert read_labels(read_frames(path, units="eV/angstrom")[2]).energy == 2.0


@pytest.mark.parametrize(
    "attributes",
    [
        {"energy": "eV/atom"},
        {"energy": "rydberg"},
        {"energy": "kcal/mol", "positions": "bohr"},
        {"energy": "kcal/mol", "forces": "eV/angstrom"},
        {"positions": "nm"},
        {"forces": "GPa"},
    ],
)
def test_units_in_attributes_that_are_not_known(tmp_path, attributes):
    path = hdf5(tmp_path / "set.h5")
    with h5py.File(path, "a") as file:
        for name, text in attributes.items():
            file[name].attrs["unit"] = text
    refused(path, "units")
    assert len(read_frames(path, units="eV/angstrom")) == 3


# ----------------------------------------------------------------------------------------------------------------- names


def test_names_are_told_once(tmp_path, caplog):
    frames = copper(3)
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.calc.results.pop("energy")
    ase.io.write(tmp_path / "set.extxyz", frames)
    with caplog.at_level("INFO", logger="leignn_jax"):
        assert len(list(iter_labelled(tmp_path / "set.extxyz"))) == 3
    assert [r.getMessage().split(": ", 1)[1] for r in caplog.records] == ["frame 0: energy is taken from 'REF_energy'."]


def test_other_units_hold_for_every_name(tmp_path):
    text = "1\nProperties=species:S:1:pos:R:3:force:R:3 REF_energy=2 mine=3\nH 0 0 0 1 1 1\n"
    (tmp_path / "set.extxyz").write_text(text)
    ((_, labels),) = iter_labelled(tmp_path / "set.extxyz", units="hartree/bohr")
    assert labels.energy == pytest.approx(2 * HARTREE)
    np.testing.assert_allclose(labels.forces, HARTREE / BOHR)
    ((_, labels),) = iter_labelled(tmp_path / "set.extxyz", units="hartree/bohr", keys={"energy": "mine"})
    assert labels.energy == pytest.approx(3 * HARTREE)


def test_the_free_energy_of_smeared_metals_is_told(tmp_path, caplog):
    (atoms,) = copper(1)
    atoms.calc.results["free_energy"] = atoms.calc.results["energy"] - 0.4
    ase.io.write(tmp_path / "set.extxyz", atoms)
    with caplog.at_level("INFO", logger="leignn_jax"):
        ((_, labels),) = iter_labelled(tmp_path / "set.extxyz")
    assert labels.energy == pytest.approx(atoms.calc.results["energy"])
    assert "differ by 0.1 eV/atom" in caplog.text
