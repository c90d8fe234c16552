"""Extended XYZ as users write it, against ASE's own reader; and files that contradict themselves."""

import contextlib
import gzip
import io
import lzma

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from frames import copper
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.data.labels import read_labels
from leignn_jax.data.readers import read_frames
from leignn_jax.data.readers.extxyz import parse_comment
from leignn_jax.errors import DataError, FileFormatError

HEAD = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T T"'
ATOMS = "O 0.0000 0.0000 0.1173 0.1000 0.2000 0.3000\nH 0.0000 0.7572 -0.4692 -0.1000 -0.2000 -0.3000\n"


def read(tmp_path, text, name="f.extxyz"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    frames = read_frames(path)
    for i, atoms in enumerate(frames):
        read_labels(atoms, f"{path}: frame {i}")
    return frames


def test_the_frame_that_others_break(tmp_path):
    (atoms,) = read(tmp_path, f"2\n{HEAD}\n{ATOMS}")
    assert read_labels(atoms).energy == -1.5
    assert atoms.get_forces()[1].tolist() == [-0.1, -0.2, -0.3]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HEAD + " energy=-2.5", "energy stands twice in the comment line, as '-1.5' and '-2.5'"),
        (HEAD + ' Lattice="8 0 0 0 8 0 0 0 8"', "Lattice stands twice"),
        (HEAD + " step=1 step=2", "step stands twice"),
        (HEAD + " Properties=species:S:1:pos:R:3", "Properties stands twice"),
        (HEAD + " REF_energy=-2.5", "energy and REF_energy differ as the energy"),
        (HEAD.replace("-1.5", "T"), "the energy is True, not a number"),
        (HEAD.replace("=-1.5", ""), "the energy is True, not a number"),
        (HEAD.replace("-1.5", "unknown"), "the energy is 'unknown'"),
        (HEAD.replace("-1.5", "\uff11\uff12"), "the energy is '\uff11\uff12'"),
        (HEAD.replace("-1.5", "1_5"), "the energy is '1_5'"),
        (HEAD.replace("-1.5", "1e200"), "the energy is 1e[+]200"),
        (HEAD.replace("-1.5", "-1.5\0"), "NUL byte"),
        (HEAD.replace("9 0 0 0 9", "9 0 0 9"), "Lattice is .* 9 numbers are needed"),
        (HEAD.replace("0 0 0 9", "0 0 0 1e200"), "the cell is"),
        (HEAD.replace("Lattice", "lattice"), "says 'lattice'; write 'Lattice'"),
        (HEAD.replace("T T T", "T T"), "pbc is"),
        (HEAD.replace("T T T", "1 1 2"), "pbc is"),
        (HEAD.replace('9 0 0 0 9 0 0 0 9"', "9 0 0 0 9 0 0 0 9"), "no end|9 numbers"),
        (HEAD.replace("forces:R:3", "pos:R:3"), "Properties names positions twice"),
        (HEAD.replace("forces:R:3", "forces:R:2"), "forces are 2 columns"),
        (HEAD.replace("forces:R:3", "forces:R:3:tags:I:1"), "atom 0 has 7 columns, not the 8"),
        (HEAD.replace(":forces:R:3", ":charge:R:1"), "atom 0 has 7 columns, not the 5"),
        (HEAD.replace("forces:R:3", "forces:R:999999999"), "Properties claims 1000000003 columns|forces are 999999999"),
        (HEAD.replace("forces:R:3", "x:R:999999999"), "Properties claims 1000000003 columns"),
        (HEAD.replace("forces:R:3", "forces:Q:3"), "forces:Q:3"),
        (HEAD.replace("forces:R:3", "forces:R"), "names, types and counts"),
        (HEAD.replace("forces:R:3", "forces:R:-3"), "forces:R:-3"),
        (HEAD.replace("species:S:1:", "Z:I:1:"), "numbers of atom 0: 'O' is not a whole number"),
        (HEAD.replace("species:S:1:", "names:S:1:"), "neither species nor Z"),
        (HEAD + ' stress="1 2 3"', "stress is '1 2 3'; 9 or 6 numbers"),
        (HEAD + ' stress="1e200 0 0 0 0 0"', "the stress is"),
    ],
)
def test_comment_lines_that_contradict(tmp_path, head, message):
    with pytest.raises((FileFormatError, DataError), match=rf"f\.extxyz: frame 1.*({message})"):
        read(tmp_path, f"2\n{HEAD}\n{ATOMS}2\n{head}\n{ATOMS}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.7572", "\uff10.7572", "positions of atom 1: '\uff10.7572' is not a number"),
        ("0.7572", "0_7", "positions of atom 1: '0_7' is not a number"),
        ("0.7572", "0.7572\0", "NUL byte"),
        ("0.7572", "1e200", "the position of atom 1"),
        ("0.7572", "nan", "the position of atom 1"),
        ("-0.3000", "-0.3000 7", "atom 1 has 8 columns"),
        ("0.1000 0.2000 0.3000", "0.1000 0.2000", "atom 0 has 6 columns"),
        ("-0.1000", "1e200", "force on atom 1"),
        ("H", "Hx", "species of atom 1: 'Hx'"),
        ("H", "X", "the atomic number of atom 1 is 0"),
        ("H", "D", "write H, and its mass as masses:R:1"),
    ],
)
def test_atoms_that_contradict(tmp_path, old, new, message):
    with pytest.raises((FileFormatError, DataError), match=rf"f\.extxyz: frame 0.*{message}"):
        read(tmp_path, f"2\n{HEAD}\n{ATOMS.replace(old, new)}")


def test_empty_values(tmp_path):
    """What follows the blank is the next key, and no value."""
    for empty in ('config_type=""', "config_type=", "config_type ="):
        (atoms,) = read(tmp_path, f"2\n{HEAD} {empty} energy=-1.5 pair = 2\n{ATOMS}")
        assert atoms.get_potential_energy() == -1.5
        assert atoms.info == {"config_type": "", "pair": 2}


@pytest.mark.parametrize("count", ["1000000000", "\uff12", "2.0", "-2", "two"])
def test_counts_of_atoms(tmp_path, count):
    with pytest.raises(FileFormatError, match=r"f\.extxyz: frame 0.*(claims 1000000000 atoms|number of atoms)"):
        read(tmp_path, f"{count}\n{HEAD}\n{ATOMS}")


def test_species_against_atomic_numbers(tmp_path):
    text = "2\nProperties=species:S:1:pos:R:3:Z:I:1\nO 0 0 0 8\nH 0 0 1 {}\n"
    assert read(tmp_path, text.format(1))[0].numbers.tolist() == [8, 1]
    with pytest.raises(FileFormatError, match=r"frame 0 .*atom 1 is H by species and 6 by Z"):
        read(tmp_path, text.format(6))
    for wrong in (0, 119, -1):
        with pytest.raises(DataError, match=f"frame 0: the atomic number of atom 0 is {wrong}, not an element"):
            read(tmp_path, f"1\nProperties=Z:I:1:pos:R:3\n{wrong} 0 0 0\n")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("masses:R:1", "0.0", "the mass of atom 0 is 0.0"),
        ("masses:R:1", "-1.0", "the mass of atom 0 is -1.0"),
        ("masses:R:1", "nan", "masses of atom 0 is nan"),
        ("masses:R:2", "1 1", "masses of shape"),
        ("momenta:R:2", "1 1", "momenta of shape"),
        ("momenta:R:3", "1 1 inf", "momenta of atom 0"),
    ],
)
def test_masses_and_momenta(tmp_path, column, values, message):
    with pytest.raises(DataError, match=f"frame 0: .*{message}"):
        read(tmp_path, f"1\nProperties=species:S:1:pos:R:3:{column}\nH 0 0 0 {values}\n")
    (atoms,) = read(tmp_path, "1\nProperties=species:S:1:pos:R:3:masses:R:1:momenta:R:3\nH 0 0 0 2.014 1 2 3\n")
    assert atoms.get_masses().tolist() == [2.014]
    assert atoms.get_momenta().tolist() == [[1, 2, 3]]


def test_positions_and_forces_swapped(tmp_path):
    frames = copper(1, sizes=((2, 1, 1),))
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    assert len(read(tmp_path, text.getvalue())) == 1
    with pytest.raises(DataError, match=r"frame 0: positions and forces look swapped"):
        read(tmp_path, text.getvalue().replace("pos:R:3:forces:R:3", "forces:R:3:pos:R:3"))


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress])
def test_cut_inside_the_last_number(tmp_path, digits, pack):
    text = f"2\n{HEAD}\n{ATOMS}".rstrip("\n")
    name = "f.extxyz" + {None: "", gzip.compress: ".gz", lzma.compress: ".xz"}[pack]
    pack = pack or bytes
    assert len(read(tmp_path, pack(text.encode()), name)) == 1
    with pytest.raises(FileFormatError, match=r"frame 0 .*fewer digits"):
        read(tmp_path, pack(text[:-digits].encode()), name)
    exponents = text.replace("0.3000", "3.0000e-01").replace("0.2000", "2.0000e-01").replace("0.1000", "1.0000e-01")
    assert len(read(tmp_path, exponents)) == 1
    with pytest.raises(FileFormatError, match=r"fewer digits|not a number"):
        read(tmp_path, exponents[:-digits])
    # What was typed by hand has digits as they come.
    assert len(read(tmp_path, "2\n\nH 0 0 0.74\nH 0.12 0.5 0")) == 1


def test_stress_of_six_numbers(tmp_path):
    (atoms,) = read(tmp_path, f'2\n{HEAD} stress="1 2 3 4 5 6"\n{ATOMS}')
    assert read_labels(atoms).stress.tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    assert atoms.get_stress().tolist() == [1, 2, 3, 4, 5, 6]


def test_a_virial_is_a_stress(tmp_path):
    (atoms,) = read(tmp_path, f'2\n{HEAD} virial="-729 0 0 0 -1458 0 0 0 729"\n{ATOMS}')
    np.testing.assert_allclose(read_labels(atoms).stress, np.diag([1.0, 2.0, -1.0]))


@pytest.mark.parametrize("name", ["f.extxyz", "f@1.extxyz", "f@:2.xyz", "f.xyz.gz"])
def test_byte_order_mark_and_at_sign(tmp_path, name):
    text = f"2\n{HEAD}\n{ATOMS}" * 3
    content = text.encode("utf-8-sig")
    assert len(read(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)) == 3


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_files_made_to_fill_the_memory(tmp_path, pack, monkeypatch):
    path = tmp_path / ("f.xyz" + {gzip.compress: ".gz", lzma.compress: ".xz"}[pack])
    monkeypatch.setattr("leignn_jax.data.readers.text._LINE", 1 << 12)
    path.write_bytes(pack(b"1" * 10_000))
    with pytest.raises(FileFormatError, match=r"frame 0: a line of more than 4096"):
        read_frames(path)
    monkeypatch.setattr("leignn_jax.data.readers.text._FREE", 1 << 10)
    monkeypatch.setattr("leignn_jax.data.readers.text._RATIO", 10)
    path.write_bytes(pack(b"1\n\nH 0 0 0\n" * 1000))
    with pytest.raises(FileFormatError, match=r"f\.xyz\..z: frame [0-9]+: .* No frames pack so well"):
        read_frames(path)


def test_plain_files(tmp_path):
    """Free text is no label, and what stands behind the positions of plain XYZ is passed over."""
    (atoms,) = read(tmp_path, "1\nBob's energy of a water's atom, E = -3, i = 1\nO 0 0 0 0.5\n")
    assert read_labels(atoms) == (None, None, None)
    assert not atoms.pbc.any()


comments = st.text(st.sampled_from("ab=\"'{}[]\\ ,1.T_-"), max_size=40)


@settings(deadline=None, max_examples=300)
@given(comments)
def test_any_comment_is_read_or_refused(text):
    with contextlib.suppress(FileFormatError):
        assert isinstance(parse_comment(text), dict)


infos = st.dictionaries(
    st.sampled_from(["step", "name", "config_type", "my key", "flag", "vector", "table", "nested"]),
    st.one_of(
        st.integers(-(10**9), 10**9),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(st.sampled_from("abcXYZ 019_-[]{}'\"/"), min_size=1, max_size=12),
        st.lists(st.integers(-5, 5), min_size=2, max_size=4).map(np.array),
        st.just(np.arange(6.0).reshape(2, 3)),
        st.just({"a": [1, "b"]}),
    ),
)


@settings(deadline=None, max_examples=150)
@given(infos)
def test_what_ase_writes_reads_as_ase_reads_it(tmp_path_factory, info):
    path = tmp_path_factory.mktemp("ase") / "f.extxyz"
    atoms = copper(1)[0]
    atoms.info = info
    ase.io.write(path, atoms)
    try:
        expected = ase.io.read(path)
    except Exception:
        return  # of ASE's making, and not for it to read
    (found,) = read_frames(path)
    assert found.info.keys() == expected.info.keys()
    for key, value in expected.info.items():
        if isinstance(value, np.ndarray) and not value.size:
            # Blanks in quotes, which ASE takes for no numbers.
            assert found.info[key] == info[key]
            continue
        # The same word with one underscore more is a number for int(), and not for people.
        if not (isinstance(found.info[key], str) and "_" in found.info[key]):
            np.testing.assert_array_equal(found.info[key], value)
            assert type(found.info[key]) is type(value)


def test_columns_that_ase_writes(tmp_path):
    atoms = copper(1)[0]
    atoms.set_constraint(FixAtoms([1, 2]))
    atoms.set_masses([63.0, 64.0, 65.0, 66.0])
    atoms.set_momenta(np.arange(12.0).reshape(4, 3))
    atoms.set_initial_magnetic_moments([0, 1, 2, 3])
    atoms.set_array("site", np.array(["a", "b", "c", "d"]))
    atoms.set_array("flag", np.array([True, False, True, False]))
    atoms.set_array("tensor", np.arange(36.0).reshape(4, 9))
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, free_energy=1.0, dipole=[1, 2, 3], magmoms=[1, 1, 1, 1])
    for constraint in (FixAtoms([1, 2]), FixCartesian([1], mask=[True, False, True])):
        atoms.set_constraint(constraint)
        ase.io.write(tmp_path / "f.extxyz", atoms, columns=None)
        ase.io.write(tmp_path / "g.extxyz", atoms, columns=["symbols", "positions", "numbers", "move_mask", "momenta"])
        for name in ("f.extxyz", "g.extxyz"):
            (found,), expected = read_frames(tmp_path / name), ase.io.read(tmp_path / name)
            assert found.arrays.keys() == expected.arrays.keys()
            for key, array in expected.arrays.items():
                np.testing.assert_array_equal(found.arrays[key], array)
                assert found.arrays[key].dtype == array.dtype
            assert [c.todict() for c in found.constraints] == [c.todict() for c in expected.constraints]
            assert found.calc is None or found.calc.results.keys() == expected.calc.results.keys()
