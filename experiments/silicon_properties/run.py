"""Lattice, elastic constants and phonons of silicon from the trained potential, beside experiment.

    python experiments/silicon_properties/run.py

Writes results.json, silicon.png and kink.png beside itself; results.md says what they mean.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import ase.units
import numpy as np
from ase.build import bulk

import leignn_jax
from leignn_jax.plotting import save_figure
from leignn_jax.properties.elasticity import elastic_constants
from leignn_jax.properties.phonons import phonons, plot_phonons
from leignn_jax.properties.relax import relax

HERE = Path(__file__).parent
STEPS = (None, 0.001, 0.01, 0.03, 0.075, 0.15)
USED = 0.075  # Å, about the thermal displacement of silicon at 300 K along one axis
# THz at Γ (the path's first point) and X (its second): optical; TO, LA and LO, TA.
MEASURED = ((0, 15.53), (1, 13.90), (1, 12.32), (1, 4.49))
SPECIAL = {"Γ": (0, 0, 0), "X": (0.5, 0, 0.5), "L": (0.5, 0.5, 0.5)}


def main() -> None:
    """Compute, print and write."""
    began = time.monotonic()
    potential = leignn_jax.load_potential("si")
    found = relax(potential, bulk("Si", "diamond", a=5.45), cell="isotropic", max_stress=1e-3)
    atoms = found.atoms
    a = (4 * atoms.get_volume()) ** (1 / 3)
    facts: dict = {
        "a": float(a),
        "energy": float(found.energy) / 2,
        "relaxed": bool(found.converged),
        "steps": int(found.steps),
    }
    print(facts, flush=True)

    # Curvature of the energy by volume: at each volume symmetry holds the atoms where they are.
    strains = np.linspace(-0.015, 0.015, 7)
    scaled = []
    for strain in strains:
        scaled.append(atoms.copy())
        scaled[-1].set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
    answers = potential.predict(scaled, dtype="float64")
    volumes = np.array([s.get_volume() for s in scaled])
    fit = np.polynomial.Polynomial.fit(volumes, [p.energy for p in answers], 3)
    volume = atoms.get_volume()
    facts["bulk_modulus_curve"] = float(volume * fit.deriv(2)(volume) / ase.units.GPa)

    for name, strain in (("exact", None), ("strain_0.01", 0.01), ("strain_0.02", 0.02)):
        c = elastic_constants(potential, atoms, strain=strain).constants
        facts[f"elastic_{name}"] = {
            "C11": float(np.diag(c)[:3].mean()),
            "C12": float(c[0, 1] + c[0, 2] + c[1, 2]) / 3,
            "C44": float(np.diag(c)[3:].mean()),
            "asymmetry": float(np.abs(c[:3, 3:]).max()),
        }
        print(name, facts[f"elastic_{name}"], flush=True)

    facts["gamma_by_displacement"] = {}
    for step in STEPS:
        ph = phonons(potential, atoms, supercell=1, displacement=step)
        facts["gamma_by_displacement"][str(step)] = float(ph.frequencies([0, 0, 0])[-1])
    print(facts["gamma_by_displacement"], flush=True)
    for cells in (3, 4):
        ph = phonons(potential, atoms, supercell=cells, displacement=USED)
        facts[f"frequencies_{cells}"] = {k: np.round(ph.frequencies(q), 3).tolist() for k, q in SPECIAL.items()}
        print(cells, facts[f"frequencies_{cells}"], flush=True)
    figure = plot_phonons(ph.band_structure("GXWKGL", 200), ph.density_of_states((12, 12, 12), width=0.15))
    ticks = figure.axes[0].get_xticks()
    for place, value in MEASURED:
        figure.axes[0].plot(ticks[place], value, "o", color="C3", ms=4, clip_on=False)
    figure.axes[0].set_title("trained potential (lines), experiment (dots)", fontsize=8)
    save_figure(figure, HERE / "silicon.png")
    _plot_kink(potential, atoms)
    facts["seconds"] = round(time.monotonic() - began, 1)
    (HERE / "results.json").write_text(json.dumps(facts, indent=1) + "\n")


def _plot_kink(potential, atoms) -> None:
    """The force on one atom that is moved along x: a jump at the symmetric site, a spring beyond."""
    from leignn_jax.plotting import new_figure

    away = np.concatenate([[0], np.geomspace(1e-5, 0.2, 60)])
    away = np.concatenate([-away[:0:-1], away])
    moved = []
    for x in away:
        moved.append(atoms.repeat(2))
        moved[-1].positions[0, 0] += x
    force = np.array([p.forces[0, 0] for p in potential.predict(moved, dtype="float64")])
    figure, axes = new_figure(2)
    axes[0].plot(away, force, lw=1.0)
    axes[0].set(xlabel="displacement (Å)", ylabel="force (eV/Å)", title="one atom of 16 along x")
    near = np.abs(away) < 0.003
    axes[1].plot(1e3 * away[near], force[near], ".-", lw=0.8, ms=3)
    axes[1].set(xlabel="displacement (0.001 Å)", ylabel="force (eV/Å)", title="near the site")
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, HERE / "kink.png")


if __name__ == "__main__":
    main()
