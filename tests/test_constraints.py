"""Structures as users bring them: constraints, masses, momenta, few atoms, odd cells, in simulations and relaxations."""

from typing import Any

import argon_runs
import ase.build
import ase.io
import numpy as np
import pytest
from argon_runs import ARGON
from ase.constraints import (
    ExternalForce,
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    FixScaled,
    FixSubsetCom,
    Hookean,
)

import leignn_jax as leignn
from leignn_jax.constraints import free_components
from leignn_jax.errors import ConfigError, StructureError
from leignn_jax.properties.relax import relax
from leignn_jax.properties.vibrations import normal_modes
from leignn_jax.simulation.engine import simulate

pytestmark = pytest.mark.usefixtures("fast_compiles")
SETTINGS: dict[str, Any] = {"steps": 20, "save_every": 20, "temperature": 40.0, "dtype": "float64"}
AXES = [
    FixCartesian(0, (True, False, True)),
    FixScaled(0, (True, False, True)),
    FixedLine(0, (0, 1, 0)),
    [FixedPlane(0, (1, 0, 0)), FixedPlane(0, (0, 0, -2))],
]


def argon(*constraints):
    atoms = argon_runs.argon()
    atoms.set_constraint(constraints)
    return atoms


def left_handed(atoms):
    atoms = atoms.copy()
    atoms.set_cell(np.asarray(atoms.cell)[[1, 0, 2]])
    assert atoms.cell.handedness == -1
    return atoms


def named(value):
    return "+".join(type(one).__name__ for one in (value if isinstance(value, list) else [value]))


# --------------------------------------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("constraints", [*AXES, FixAtoms([0, 2])], ids=named)
def test_as_many_coordinates_are_held_as_ase_holds(constraints):
    atoms = argon(*(constraints if isinstance(constraints, list) else [constraints]))
    free = free_components(atoms)
    assert free.sum() == 12 - sum(one.get_removed_dof(atoms) for one in atoms.constraints)
    # What ASE lets through of any forces is what is free.
    forces = np.random.default_rng(0).normal(size=(4, 3))
    seen = forces.copy()
    for one in atoms.constraints:
        one.adjust_forces(atoms, seen)
    np.testing.assert_allclose(seen, np.where(free, forces, 0.0), atol=1e-12)


@pytest.mark.parametrize("ensemble", ["langevin", "nvt"])
def test_axes_are_held_in_simulations(ensemble):
    start = argon(FixCartesian(0, (True, False, True)), FixAtoms([3]))
    result = simulate(ARGON, start, ensemble, **SETTINGS)
    moved = np.abs(result.atoms.positions - start.positions)
    assert moved[0].tolist() == [0.0, moved[0, 1], 0.0]
    assert moved[3].tolist() == [0.0, 0.0, 0.0]
    assert (moved[1:3] > 0).all()
    assert moved[0, 1] > 0
    # Temperatures count the 7 coordinates that are free, as ASE does.
    assert result.thermo["temperature_K"][-1] == pytest.approx(result.atoms.get_temperature(), rel=1e-6)


@pytest.mark.parametrize("constraints", AXES, ids=named)
def test_axes_are_held_in_relaxations(constraints):
    start = argon(*(constraints if isinstance(constraints, list) else [constraints]))
    result = relax(ARGON, start, max_force=0.01, progress=False)
    assert result.converged
    np.testing.assert_array_equal(result.atoms.positions[0, [0, 2]], start.positions[0, [0, 2]])
    # ASE applies the constraints to the forces that come with the result.
    assert np.linalg.norm(result.atoms.get_forces(), axis=1).max() <= 0.01
    assert abs(result.atoms.get_forces(apply_constraint=False)[0, 1]) <= 0.01


def test_axes_are_held_in_vibrations():
    still = relax(
        ARGON, ase.Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0]]), max_force=1e-6, progress=False
    ).atoms
    whole = normal_modes(ARGON, still)
    flat = still.copy()
    flat.set_constraint(FixedPlane([0, 1, 2], (0, 0, 1)))
    found = normal_modes(ARGON, flat)
    assert found.vectors.shape == (6, 3, 3)
    np.testing.assert_array_equal(found.vectors[..., 2], 0.0)
    # In its plane the triangle has three rigid motions and the three modes that it has in space.
    np.testing.assert_allclose(found.frequencies[-3:], whole.frequencies, rtol=1e-6)


def test_a_cell_that_changes_takes_whole_atoms_only():
    half, whole = argon(FixCartesian(1, (True, False, False))), argon(FixAtoms([1]))
    for call in (
        lambda: simulate(ARGON, half, "npt", **SETTINGS),
        lambda: relax(ARGON, half, cell="full", progress=False),
    ):
        with pytest.raises(ConfigError, match=r"Atom 1 of structure 0 is held along some axes only.*FixAtoms"):
            call()
    assert simulate(ARGON, whole, "npt", **SETTINGS).summary["finished"]


REFUSED = [
    FixedPlane(0, (1, 1, 0)),
    FixedLine(0, (1, 1, 0)),
    FixBondLengths([[0, 1]]),
    FixInternals(bonds=[[3.8, [0, 1]]]),
    FixSubsetCom([0, 1]),
    Hookean(0, 1, rt=3.0, k=1.0),
    ExternalForce(0, 1, 0.1),
]


@pytest.mark.parametrize("constraint", REFUSED, ids=named)
def test_what_holds_more_than_axes_is_refused_by_name(constraint):
    for call in (
        lambda: simulate(ARGON, argon(constraint), **SETTINGS),
        lambda: relax(ARGON, argon(constraint), progress=False),
        lambda: normal_modes(ARGON, argon(constraint)),
    ):
        with pytest.raises(ConfigError, match=rf"{type(constraint).__name__} .*potential\.calculator"):
            call()


def test_symmetry_is_refused_by_name():
    pytest.importorskip("spglib")
    from ase.constraints import FixSymmetry

    atoms = ase.build.bulk("Ar", cubic=True, a=5.4)
    atoms.set_constraint(FixSymmetry(atoms))
    with pytest.raises(ConfigError, match="FixSymmetry is not supported"):
        relax(ARGON, atoms, progress=False)


def test_scaled_coordinates_of_a_slanted_cell():
    atoms = ase.build.fcc111("Ar", (1, 1, 3), a=5.4, vacuum=8.0)
    atoms.set_constraint(FixScaled(0, (False, False, True)))
    assert free_components(atoms)[0].tolist() == [True, True, False]
    atoms.set_constraint(FixScaled(0, (True, True, True)))
    assert not free_components(atoms)[0].any()
    atoms.set_constraint(FixScaled(0, (True, False, False)))
    with pytest.raises(ConfigError, match="FixScaled holds a direction"):
        free_components(atoms)


def test_the_centre_of_mass():
    start = argon(FixCom())
    result = simulate(ARGON, start, "csvr", **SETTINGS)
    np.testing.assert_allclose(result.atoms.get_center_of_mass(), start.get_center_of_mass(), atol=1e-9)
    for call in (
        lambda: simulate(ARGON, start, "langevin", **SETTINGS),
        lambda: simulate(ARGON, argon(FixCom(), FixAtoms([0])), "nve", **SETTINGS),
        lambda: relax(ARGON, start, progress=False),
    ):
        with pytest.raises(ConfigError, match="FixCom is supported in simulate alone"):
            call()


def test_constraints_in_files(tmp_path):
    atoms = argon(FixAtoms([0]), FixCartesian(1, (False, True, False)))
    for name in ("start.traj", "start.json"):
        ase.io.write(tmp_path / name, atoms)
        np.testing.assert_array_equal(free_components(leignn.read_frames(tmp_path / name)[0]), free_components(atoms))
    atoms.set_constraint([FixAtoms([0]), FixScaled(1, (False, True, False))])
    ase.io.write(tmp_path / "POSCAR", atoms, format="vasp")
    np.testing.assert_array_equal(free_components(ase.io.read(tmp_path / "POSCAR")), free_components(atoms))
    # Extended XYZ keeps whole atoms, as a column move_mask.
    atoms.set_constraint(FixAtoms([0, 3]))
    ase.io.write(tmp_path / "start.extxyz", atoms)
    (back,) = leignn.read_frames(tmp_path / "start.extxyz")
    np.testing.assert_array_equal(free_components(back), free_components(atoms))


# ------------------------------------------------------------------------------------------------- masses and velocities


def test_masses_and_momenta_of_a_file_are_those_of_the_simulation(tmp_path):
    atoms = argon()
    atoms.set_masses([40.0, 36.0, 38.0, 40.0])
    atoms.set_momenta(np.random.default_rng(0).normal(size=(4, 3)))
    atoms.set_momenta(atoms.get_momenta() - atoms.get_momenta().mean(0))
    atoms.set_velocities(atoms.get_velocities() - atoms.get_momenta().sum(0) / atoms.get_masses().sum())
    ase.io.write(tmp_path / "start.extxyz", atoms, columns=["symbols", "positions", "momenta", "masses"])
    (start,) = leignn.read_frames(tmp_path / "start.extxyz")
    result = simulate(ARGON, start, "nve", steps=20, save_every=10, dtype="float64", out=tmp_path / "md")
    first, *_, last = result.trajectory.to_atoms()
    for found in (first, last, ase.io.read(tmp_path / "md" / "final.extxyz"), result.atoms):
        np.testing.assert_array_equal(found.get_masses(), atoms.get_masses())
    np.testing.assert_allclose(first.get_velocities(), atoms.get_velocities(), atol=1e-6)
    # Half the kinetic energy would be another one with the masses of the table of elements.
    assert result.thermo["kinetic_energy_eV"][0] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-5)


def test_velocities_by_another_name_are_told(tmp_path, caplog):
    atoms = argon()
    atoms.set_array("vel", np.ones((4, 3)))
    ase.io.write(tmp_path / "start.extxyz", atoms)
    (start,) = leignn.read_frames(tmp_path / "start.extxyz")
    simulate(ARGON, start, **SETTINGS | {"steps": 0})
    assert "the column vel are not read" in caplog.text
    caplog.clear()
    start.set_velocities(np.ones((4, 3)))
    simulate(ARGON, start, **SETTINGS | {"steps": 0})
    assert not caplog.text


def test_total_momentum_is_taken_out_where_it_is_held():
    atoms = argon()
    atoms.set_velocities(np.full((4, 3), 0.01) + 0.001 * np.random.default_rng(0).normal(size=(4, 3)))
    kept = simulate(ARGON, atoms, "langevin", **SETTINGS | {"steps": 0})
    np.testing.assert_allclose(kept.atoms.get_velocities(), atoms.get_velocities(), atol=1e-12)
    held = simulate(ARGON, atoms, "nve", **SETTINGS | {"steps": 0})
    np.testing.assert_allclose(held.atoms.get_momenta().sum(0), 0.0, atol=1e-9)


def test_isotopes_vibrate_slower():
    dimer = relax(ARGON, ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), max_force=1e-6, progress=False).atoms
    heavy = dimer.copy()
    heavy.set_masses(4 * dimer.get_masses())
    ratio = normal_modes(ARGON, dimer).frequencies / normal_modes(ARGON, heavy).frequencies
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-9)


def test_masses_and_velocities_that_are_none():
    atoms = argon()
    for wrong in (0.0, -1.0, np.nan):
        atoms.arrays["masses"] = np.array([1.0, 1.0, wrong, 1.0])
        with pytest.raises(ConfigError, match="Atom 2 has the mass"):
            simulate(ARGON, atoms, **SETTINGS)
    atoms = argon()
    velocities = np.ones((4, 3))
    velocities[3, 1] = np.nan
    atoms.set_velocities(velocities)
    with pytest.raises(StructureError, match="atom 3 has a velocity that is no number"):
        simulate(ARGON, atoms, **SETTINGS)


# --------------------------------------------------------------------------------- few atoms, and how many ways they move


@pytest.mark.parametrize(
    ("atoms", "ensemble", "degrees"),
    [
        (ase.Atoms("Ar", cell=[20.0] * 3, pbc=True), "csvr", 3),
        (ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.9]]), "nvt", 3),
        (ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.9]]), "langevin", 6),
        (ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.9]], constraint=FixAtoms([0])), "nvt", 3),
        (argon(), "nve", 9),
    ],
)
def test_temperature_counts_the_ways_to_move(atoms, ensemble, degrees):
    result = simulate(ARGON, atoms, ensemble, **SETTINGS)
    kinetic = result.thermo["kinetic_energy_eV"]
    np.testing.assert_allclose(result.thermo["temperature_K"], 2 * kinetic / (degrees * ase.units.kB), rtol=1e-6)
    assert result.summary["finished"]
    assert (kinetic > 0).all()


def test_no_way_to_move():
    atoms = argon(FixAtoms(range(4)))
    with pytest.raises(ConfigError, match="hold every atom, so that nothing can move"):
        simulate(ARGON, atoms, "nvt", **SETTINGS)
    with pytest.raises(ConfigError, match="Structure 1: its constraints hold every atom"):
        simulate(ARGON, [argon(), atoms], "nvt", **SETTINGS)
    with pytest.raises(ConfigError, match="nothing that vibrates"):
        normal_modes(ARGON, atoms)
    # In a relaxation it is at rest, and its cell may still find its volume.
    still = relax(ARGON, atoms, progress=False)
    assert still.converged
    assert still.steps == 0
    breathing = relax(ARGON, atoms, cell="isotropic", progress=False)
    assert breathing.converged
    assert breathing.steps > 0
    with pytest.raises(StructureError, match=r"atoms\[1\]: The structure has no atoms"):
        relax(ARGON, [argon(), ase.Atoms()], progress=False)


# ------------------------------------------------------------------------------------------------------------- odd cells


@pytest.mark.parametrize("ensemble", ["nve", "npt-triclinic"])
def test_left_handed_cells_move_as_their_mirror_image(ensemble):
    one, other = (simulate(ARGON, atoms, ensemble, **SETTINGS) for atoms in (argon(), left_handed(argon())))
    np.testing.assert_allclose(other.atoms.positions, one.atoms.positions, atol=1e-9)
    for name in ("pressure_GPa", "volume_A3", "conserved_eV"):
        np.testing.assert_allclose(other.thermo[name], one.thermo[name], rtol=1e-9)
    assert other.atoms.cell.handedness == -1


@pytest.mark.slow
def test_left_handed_cells_relax():
    one, other = (relax(ARGON, atoms, cell="full", progress=False) for atoms in (argon(), left_handed(argon())))
    assert one.converged
    assert other.converged
    assert other.energy == pytest.approx(one.energy, abs=1e-9)
    assert other.atoms.cell.volume == pytest.approx(one.atoms.cell.volume, rel=1e-9)


def test_slabs(tmp_path):
    slab = ase.build.fcc100("Ar", (1, 1, 3), a=5.4)
    slab.rattle(0.05, seed=0)
    slab.set_constraint(FixAtoms([0]))
    slab.info.clear()
    assert slab.cell.rank == 2
    result = simulate(ARGON, slab, "langevin", **SETTINGS, out=tmp_path / "md")
    assert np.isnan([result.thermo["pressure_GPa"], result.thermo["volume_A3"]]).all()
    for found in (result.trajectory.to_atoms()[-1], ase.io.read(tmp_path / "md" / "final.extxyz")):
        assert found.pbc.tolist() == [True, True, False]
        np.testing.assert_allclose(found.positions[0], slab.positions[0], atol=1e-8)
    with pytest.raises(ConfigError, match="periodic in all three directions"):
        simulate(ARGON, slab, "npt", **SETTINGS)
    assert relax(ARGON, slab, progress=False).converged
    with pytest.raises(ConfigError, match="not periodic in all three directions"):
        relax(ARGON, slab, cell="full", progress=False)


def test_the_last_structure_holds_its_results(tmp_path):
    result = simulate(ARGON, argon(), "nve", **SETTINGS, out=tmp_path / "md")
    from_file = ase.io.read(tmp_path / "md" / "final.extxyz")
    for found in (result.atoms, from_file):
        assert found.get_potential_energy() == pytest.approx(result.thermo["potential_energy_eV"][-1])
        np.testing.assert_allclose(found.get_forces(), result.trajectory.forces[-1], atol=1e-6)
        assert found.get_stress().shape == (6,)
    np.testing.assert_allclose(
        -np.trace(result.atoms.get_stress(voigt=False)) / 3 / ase.units.GPa
        + 2 / 3 * result.thermo["kinetic_energy_eV"][-1] * 12 / 9 / result.atoms.get_volume() / ase.units.GPa,
        result.thermo["pressure_GPa"][-1],
        rtol=1e-6,
    )
