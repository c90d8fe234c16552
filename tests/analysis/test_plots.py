"""What stands on the figures: curves, units, legends, and no figure left open."""

import numpy as np
import pytest
from ase.build import bulk

from leignn_jax.analysis import (
    diffusivity,
    distance_distribution,
    force_distribution,
    mean_squared_displacement,
    plot_distances,
    plot_forces,
    plot_msd,
    plot_rdf,
    plot_thermo,
    plot_vdos,
    radial_distribution,
    thermo_log,
    vibrational_density_of_states,
)
from leignn_jax.errors import ConfigError
from leignn_jax.plotting import save_figure


@pytest.fixture(scope="module")
def motion():
    """Positions, velocities, numbers and cell of a few frames."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    rng = np.random.default_rng(0)
    positions = atoms.positions + np.cumsum(0.05 * rng.normal(size=(60, 8, 3)), axis=0)
    return positions, 0.01 * rng.normal(size=(60, 8, 3)), atoms.numbers, atoms.cell.array


def texts(axis):
    legend = axis.get_legend()
    return axis.get_xlabel(), axis.get_ylabel(), [t.get_text() for t in legend.get_texts()] if legend else []


def test_rdf(motion, tmp_path):
    positions, _, numbers, cell = motion
    curves = {
        n: radial_distribution(positions[s], numbers, cell, bins=40) for n, s in (("a", slice(5)), ("b", slice(9)))
    }
    figure = plot_rdf(curves)
    assert [texts(a)[:2] for a in figure.axes] == [("r (Å)", f"g(r) {p}") for p in ("Na-Na", "Na-Cl", "Cl-Cl")]
    assert texts(figure.axes[-1])[2] == ["a", "b"]
    drawn = figure.axes[1].get_lines()[2].get_xydata()
    np.testing.assert_allclose(drawn, np.column_stack([curves["b"].r, curves["b"].of("Na", "Cl")]))
    assert save_figure(figure, tmp_path / "rdf.png").startswith(b"\x89PNG")
    assert (tmp_path / "rdf.png").exists()
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook asks for
    assert len(plot_rdf(curves["a"], [("Cl", "Na")]).axes) == 1
    assert texts(plot_rdf(curves["a"]).axes[-1])[2] == []
    with pytest.raises(ConfigError, match="no pair Na-O"):
        plot_rdf(curves, [("Na", "O")])
    with pytest.raises(ConfigError, match="nothing to plot"):
        plot_rdf({})


def test_distances(motion):
    h = distance_distribution(motion[0], bins=20)
    axis = plot_distances({"x": h}).axes[0]
    assert texts(axis) == ("r (Å)", "h(r) (1/Å)", ["x"])
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), h.density)


def test_msd(motion):
    positions, _, numbers, _ = motion
    msd = mean_squared_displacement(positions, numbers, 100.0)
    figure = plot_msd({"x": msd, "y": msd})
    assert texts(figure.axes[0])[:2] == ("lag time (ps)", "MSD Na (Å²)")
    assert figure.axes[0].get_lines()[0].get_xdata()[-1] == pytest.approx(5.9)
    fit = diffusivity(positions, numbers, 100.0, window=(100, 500), element="Cl")
    axis = plot_msd(msd, ["Cl"], fit, log=True).axes[0]
    assert axis.get_xscale() == "log"
    assert "Å²/ps" in texts(axis)[2][0]
    line = axis.get_lines()[1].get_xydata()
    assert line[0] == pytest.approx([0.1, 6 * fit.value * 0.1 + fit.intercept])
    flat = diffusivity(positions, numbers, 100.0, window=(100, 500), blocks=1, dimensions=2)
    axis = plot_msd(msd, ["Na"], {"flat": flat}).axes[0]
    assert texts(axis)[2] == [f"flat D = {flat.value:.3g} Å²/ps"]
    assert axis.get_lines()[1].get_ydata()[0] == pytest.approx(4 * flat.value * 0.1 + flat.intercept)
    with pytest.raises(ConfigError, match="fits belong to one element"):
        plot_msd(msd, fits=fit)


def test_vdos(motion):
    vdos = vibrational_density_of_states(motion[1], motion[2], 2.0)
    figure = plot_vdos({"x": vdos}, wavenumber_max=3000.0)
    assert texts(figure.axes[0]) == ("wavenumber (cm⁻¹)", "VDOS (states per cm⁻¹)", ["x"])
    assert figure.axes[0].get_xlim() == (0, 3000)
    assert figure.axes[0].child_axes[0].get_xlabel() == "frequency (THz)"
    figure.canvas.draw()
    assert figure.axes[0].child_axes[0].get_xlim()[1] == pytest.approx(3000 / 33.356, rel=1e-4)
    assert [a.get_ylabel()[:7] for a in plot_vdos(vdos, per_element=True).axes] == ["VDOS Na", "VDOS Cl"]


def test_forces():
    curves = {s: force_distribution(np.random.default_rng(0).normal(size=(50, 3)), f_max=4.0, bins=9) for s in "ab"}
    axis = plot_forces(curves).axes[0]
    assert texts(axis) == ("|F| (eV/Å)", "density (Å/eV)", ["a", "b"])
    assert plot_forces(curves, log=True).axes[0].get_yscale() == "log"


def test_thermo(motion):
    energies = np.linspace(3, 4, 60)
    masses = np.full(8, 20.0)
    log = thermo_log(motion[1], masses, energies, 100.0)
    figure = plot_thermo({"x": log})
    assert [texts(a)[1] for a in figure.axes] == [
        "temperature (K)",
        "potential energy (eV)",
        "change of total energy (eV)",
    ]
    full = thermo_log(motion[1], masses, energies, 100.0, stress=np.zeros((60, 6)), volume=160.21766208)
    axis = plot_thermo(full).axes[3]
    assert texts(axis)[:2] == ("time (ps)", "pressure (GPa)")
    # One eV/Å^3 is 160.2 GPa: 2 K / 3 V in GPa is 2 K / 3 in eV for this volume.
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), 2 * full.kinetic_energy / 3, rtol=1e-6)
    assert len(plot_thermo({"x": log, "y": full}).axes) == 3


def test_no_figure_is_left_open(motion):
    from matplotlib import pyplot

    plot_distances(distance_distribution(motion[0], bins=20))
    assert pyplot.get_fignums() == []
