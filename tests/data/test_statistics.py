"""Reference energies, statistics, and the largest labels that are taken."""

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from frames import copper

from leignn_jax.data.inspect import inspect_data, plot_data
from leignn_jax.data.labels import Labels, read_labels
from leignn_jax.data.readers import write_hdf5
from leignn_jax.data.references import fit_reference_energies, isolated_atom_energies, reference_energy
from leignn_jax.data.statistics import (
    check_labels,
    compare_forces,
    describe,
    find_duplicates,
    find_extremes,
    find_outliers,
)
from leignn_jax.data.table import tabulate
from leignn_jax.errors import DataError


def table_of(frames):
    return tabulate((a, read_labels(a)) for a in frames)


def labelled(frames):
    return table_of(frames), [f"file: frame {i}" for i in range(len(frames))]


def with_energies(frames, energies):
    return tabulate((a, Labels(e, None, None)) for a, e in zip(frames, energies, strict=True))


def scaled(atoms, factor):
    """The same frame with forces times ``factor``."""
    copy = atoms.copy()
    results = dict(atoms.calc.results)
    results["forces"] = results["forces"] * factor
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def test_reference_energies_are_recovered():
    true = {"H": -13.6, "C": -1030.0, "O": -2040.0}
    frames = [molecule(name) for name in ("CH4", "H2O", "CO2", "CO", "CH3OH", "H2", "O2")]
    energies = [reference_energy(a.numbers, true) for a in frames]
    found = fit_reference_energies(with_energies(frames, energies))
    assert list(found) == ["H", "C", "O"]
    for symbol, value in true.items():
        assert found[symbol] == pytest.approx(value, abs=1e-8)


def test_one_composition_is_rank_safe():
    frames = [molecule("H2O")] * 3
    found = fit_reference_energies(with_energies(frames, [-2080.0, -2081.0, -2082.0]))
    assert reference_energy(frames[0].numbers, found) == pytest.approx(-2081.0, abs=1e-9)
    assert abs(found["H"]) < 5000


def test_isolated_atoms():
    frames = [ase.Atoms("H"), ase.Atoms("O")]
    assert isolated_atom_energies(frames, [-13.0, -2000.0]) == {"H": -13.0, "O": -2000.0}
    with pytest.raises(DataError, match="Two isolated atoms of H"):
        isolated_atom_energies([frames[0]] * 2, [-13.0, -14.0])
    with pytest.raises(DataError, match="Frame 0 has 2 atoms"):
        isolated_atom_energies([molecule("H2")], [-30.0])


def test_statistics_of_a_crystal():
    frames = copper(6, sizes=((1, 1, 1), (2, 1, 1)))
    labels = [read_labels(a) for a in frames]
    facts = describe(frames, labels, cutoff=3.0)
    assert facts.frames == 6
    assert facts.atoms == 36
    assert facts.atoms_per_frame == (4, 6.0, 8)
    assert 8 <= facts.neighbors_per_atom[1] <= 16
    forces = np.concatenate([x.forces.ravel() for x in labels])
    assert facts.forces_rms == pytest.approx(np.sqrt((forces**2).mean()))
    assert (facts.energies, facts.forces, facts.stresses, facts.periodic) == (6, 6, 6, 6)
    assert facts.outliers == []
    assert facts.duplicates == []
    assert 1.8 < facts.shortest_distance < 2.7


def test_duplicates():
    frames = copper(3)
    assert find_duplicates(table_of([*frames, frames[1].copy()])) == [(1, 3)]
    moved = frames[0].copy()
    moved.positions[0, 0] += 0.01
    assert find_duplicates(table_of(frames), table_of([moved, frames[2]])) == [(2, 1)]


def test_a_frame_of_another_size_is_found():
    frames = copper(6)
    assert find_extremes(table_of(frames)) == []
    frames[4] = scaled(frames[4], 100.0)
    assert [o.frame for o in find_outliers(table_of(frames))] == [4]
    (found,) = find_extremes(table_of(frames))
    assert (found.label, found.frames, found.certain) == ("forces", (4,), True)
    frames[4] = scaled(frames[4], 0.3)
    assert not find_extremes(table_of(frames))[0].certain, "it may be the only one of six that is not at rest"
    many = copper(50)
    many[4] = scaled(many[4], 80.0)
    assert find_extremes(table_of(many))[0].certain
    assert "force RMS" in found.text()


def test_a_set_of_another_size_is_found():
    frames = copper(6)
    large = [scaled(a, 100.0) for a in frames]
    (found,) = find_extremes(table_of(large))
    assert (found.label, found.frames) == ("forces", ())
    (found,) = compare_forces(table_of(frames), table_of(large))
    assert found.factor == pytest.approx(100.0)
    assert compare_forces(table_of(frames), table_of(copper(6, seed=1))) == []


def test_energies_of_another_calculation_are_found():
    frames = copper(8)
    frames[3].calc.results["energy"] -= 1e4
    found = find_extremes(table_of(frames))
    assert {one.label for one in found} == {"energy"}
    assert found[0].frames == (3,)


def test_frames_without_labels():
    frames = copper(3)
    del frames[1].calc.results["forces"]
    with pytest.raises(DataError, match="file: frame 1: has no forces, but 2 other"):
        check_labels(*labelled(frames))
    with pytest.raises(DataError, match="no energy and no forces"):
        check_labels(*labelled([a.copy() for a in frames]))


def test_inspect(tmp_path):
    path = tmp_path / "frames.h5"
    write_hdf5(path, [*copper(9), copper(1)[0]])
    facts = inspect_data(path, batch_size=4, against=path)
    assert facts.statistics.duplicates == [(0, 9)]
    assert len(facts.shared) == 10
    text = dict(facts.lines())
    assert text["duplicates"] == "1: 0 = 9"
    assert facts.to_dict()["plan"]["padding"] < 0.5
    assert facts.to_dict()["findings"] == facts.to_dict()["findings_against"] == []
    assert text["units and signs"] == "nothing looks wrong"
    plot_data(facts, tmp_path / "data.png")
    assert (tmp_path / "data.png").read_bytes()[:4] == b"\x89PNG"
