"""Do the thermostats and the barostat sample the ensembles that they name? Judged by the package physical-validation.

    pip install physical-validation
    python experiments/ensembles/run.py             # about ten minutes on one CPU core
    python experiments/ensembles/run.py --table     # results.md and results.png from results.json

A harmonic crystal, 108 atoms on springs between nearest neighbours. Kinetic energies are compared with their Gamma
distribution, potential energies at two temperatures and volumes at two pressures with the ratio of their Boltzmann
factors (Shirts, J. Chem. Theory Comput. 9, 909 (2013)). All numbers are deviations in standard errors: below 3 is meant.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import ase.build
import ase.units
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

HERE = Path(__file__).resolve().parent
KELVIN, WARMER = 30.0, 34.0
PRESSURE, HIGHER = 0.0, 0.06  # GPa
TIMESTEP, EVERY = 4.0, 25
# "nvt-30" is a Nose-Hoover chain of 30 fs, "nvt" the default of 100 fs.
OURS = ("nvt", "nvt-30", "nvt-300", "langevin", "csvr", "npt", "npt-anisotropic", "npt-triclinic")
# Simulators of jax-md, with the time constants of ours.
THEIRS = ("jax-md-nvt", "jax-md-nvt-30", "jax-md-langevin", "jax-md-csvr", "jax-md-npt")
ENSEMBLES = (*OURS, *THEIRS)


@struct.dataclass
class Springs:
    """Springs of ``stiffness`` [eV/Å^2] and ``length`` [Å] between all pairs within ``cutoff`` [Å], the nearest ones."""

    stiffness: Any
    length: Any
    cutoff: float = struct.field(pytree_node=False, default=4.6)

    def compute(self, graph):
        """Energy, forces and stress of every structure."""
        from leignn_jax.pair_ops import pair_divergence
        from leignn_jax.potential import Prediction, stress_of

        vectors = graph.vectors()

        def pairs(vectors):
            squared = (vectors**2).sum(-1)
            near = graph.pair_mask & (squared < self.cutoff**2)
            distances = jnp.sqrt(jnp.where(near, squared, self.length**2))
            return jnp.where(near, 0.5 * self.stiffness * (distances - self.length) ** 2, 0.0)

        gradient = jax.grad(lambda v: pairs(v).sum())(vectors)
        of_graph = graph.graph_index[graph.lists.receivers] == jnp.arange(graph.num_graphs)[:, None]
        return Prediction(
            energy=jnp.where(of_graph, pairs(vectors), 0.0).sum(1),
            forces=-pair_divergence(graph.lists, gradient),
            stress=stress_of(graph, vectors, gradient),
            atomic_energies=None,
            direct_forces=None,
        )


def sample(ensemble: str, kelvin: float, pressure: float | None, steps: int) -> dict[str, np.ndarray]:
    """Energies [eV], volumes [Å^3] and invariant [eV] along one simulation, its start left out."""
    import leignn_jax as leignn
    from leignn_jax.simulation.ensembles import CellRescaling, NoseHoover

    atoms = ase.build.bulk("Ar", a=3.75 * np.sqrt(2), cubic=True) * 3
    named: Any = ensemble
    if ensemble.startswith("nvt-"):
        named = NoseHoover(kelvin, float(ensemble.removeprefix("nvt-")))
    if ensemble.startswith("jax-md"):
        named = theirs(ensemble, kelvin * ase.units.kB, pressure)
    elif pressure is not None:
        shape: Any = {"npt": "isotropic"}.get(ensemble, ensemble.removeprefix("npt-"))
        named = CellRescaling(kelvin, pressure, compressibility=0.2, pressure_time_constant=500.0, shape=shape)
    run = leignn.simulate(
        Springs(0.08, 3.75),
        atoms,
        named,
        steps=steps,
        timestep=TIMESTEP,
        temperature=kelvin,
        save_every=steps // 10 // EVERY * EVERY,
        log_every=EVERY,
        seed=int(kelvin) + (0 if pressure is None else round(1000 * pressure)),
        dtype="float64",
        progress=False,
    )
    assert run.summary["finished"], run.summary
    thermo = {name: values[len(values) // 10 :] for name, values in run.thermo.items()}
    return {k: thermo[k] for k in ("kinetic_energy_eV", "potential_energy_eV", "volume_A3", "conserved_eV")}


def theirs(ensemble: str, kT: float, pressure: float | None):
    """A simulator of jax-md."""
    from jax_md import simulate

    from leignn_jax.simulation import JaxMD

    if pressure is not None:
        times = {"barostat_kwargs": {"tau": 500.0}, "thermostat_kwargs": {"tau": 30.0}}
        return JaxMD(simulate.npt_nose_hoover, kT=kT, pressure=pressure, **times)
    if ensemble.endswith("langevin"):
        return JaxMD(simulate.nvt_langevin, kT=kT, gamma=0.01)
    if ensemble.endswith("csvr"):
        return JaxMD(simulate.temp_csvr, kT=kT, tau=100.0)
    return JaxMD(simulate.nvt_nose_hoover, kT=kT, tau=30.0 if ensemble.endswith("-30") else 100.0, chain_length=3)


def data_of(physical_validation, seen: dict[str, np.ndarray], ensemble: str, kelvin: float, pressure: float | None):
    """One simulation as physical-validation takes it."""
    data = physical_validation.data
    units = data.UnitData(
        kb=ase.units.kB,
        energy_conversion=ase.units.mol / ase.units.kJ,
        length_conversion=0.1,
        volume_conversion=1e-3,
        temperature_conversion=1.0,
        pressure_conversion=1e4,
        time_conversion=1e-3,
        energy_str="eV",
        length_str="Å",
        volume_str="Å^3",
        temperature_str="K",
        pressure_str="GPa",
        time_str="fs",
    )
    held = 0 if ensemble.endswith("langevin") else 3
    system = data.SystemData(natoms=108, nconstraints=0, ndof_reduction_tra=held, ndof_reduction_rot=0)
    kinetic, potential = seen["kinetic_energy_eV"], seen["potential_energy_eV"]
    name = "NVT" if pressure is None else "NPT"
    return data.SimulationData(
        units=units,
        dt=TIMESTEP,
        system=system,
        ensemble=data.EnsembleData(
            name, natoms=108, volume=float(seen["volume_A3"][0]), pressure=pressure, temperature=kelvin
        ),
        observables=data.ObservableData(
            kinetic_energy=kinetic,
            potential_energy=potential,
            total_energy=kinetic + potential,
            volume=seen["volume_A3"],
        ),
    )


def judge(ensemble: str, steps: int) -> dict:
    """Deviations in standard errors, and how the invariant moves."""
    import physical_validation

    npt = "npt" in ensemble
    here = (KELVIN, PRESSURE if npt else None)
    there = (KELVIN, HIGHER) if npt else (WARMER, None)
    seen, other = sample(ensemble, *here, steps), sample(ensemble, *there, steps)
    one, two = (
        data_of(physical_validation, s, ensemble, *c) for s, c in ((seen, here), (other, there))
    )  # fmt: skip
    kinetic = physical_validation.kinetic_energy.distribution(one, strict=False, verbosity=0, bootstrap_seed=0)
    boltzmann = physical_validation.ensemble.check(one, two, verbosity=0, bootstrap_seed=0)
    observed = "volume_A3" if npt else "potential_energy_eV"
    row = {
        "ensemble": ensemble,
        "steps": steps,
        "kinetic_mean": kinetic[0],
        "kinetic_width": kinetic[1],
        "boltzmann": boltzmann,
        "conserved_spread": float(np.std(seen["conserved_eV"])),
        "energy_spread": float(np.std(seen["kinetic_energy_eV"] + seen["potential_energy_eV"])),
        "histograms": [np.histogram(s[observed], 40) for s in (seen, other)],
    }
    row["histograms"] = [[h.tolist(), e.tolist()] for h, e in row["histograms"]]
    print({k: v for k, v in row.items() if k != "histograms"}, flush=True)
    return row


def table(results: dict) -> str:
    """Markdown."""
    lines = [
        "# Ensembles",
        "",
        f"{results['device']}, float64; 108 atoms on springs, {KELVIN:g} and {WARMER:g} K (NVT), {PRESSURE:g} and "
        f"{HIGHER:g} GPa at {KELVIN:g} K (NPT), {TIMESTEP:g} fs, a value every {EVERY} steps. Deviations in standard "
        "errors, by physical-validation; the Boltzmann column is of potential energies (NVT) or volumes (NPT).",
        "",
        "| ensemble | steps of each run | mean kinetic energy | its width | Boltzmann ratio | spread of energy (eV) "
        "| spread of the invariant (eV) |",
        "|---|" + "---:|" * 6,
    ]
    for row in results["rows"]:
        ratio = ", ".join(f"{x:.1f}" for x in row["boltzmann"])
        lines.append(
            f"| {row['ensemble']} | {row['steps']:,} | {row['kinetic_mean']:.1f} | {row['kinetic_width']:.1f} | {ratio} "
            f"| {row['energy_spread']:.4f} | {row['conserved_spread']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: dict) -> None:
    """Histograms of what the Boltzmann ratio was taken from."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 4, figsize=(14, 12), layout="constrained")
    for axis, row in zip(axes.flat, results["rows"], strict=False):
        npt = "npt" in row["ensemble"]
        labels = (f"{PRESSURE:g} GPa", f"{HIGHER:g} GPa") if npt else (f"{KELVIN:g} K", f"{WARMER:g} K")
        for (counts, edges), label in zip(row["histograms"], labels, strict=True):
            axis.stairs(np.array(counts) / np.sum(counts) / np.diff(edges), edges, label=label)
        axis.set(title=row["ensemble"], xlabel="volume (Å³)" if npt else "potential energy (eV)")
        axis.set(ylabel="density (1/Å³)" if npt else "density (1/eV)", ylim=(0, 1.3 * axis.get_ylim()[1]))
        axis.legend(loc="upper center", ncols=2)
    for axis in axes.flat[len(results["rows"]) :]:
        axis.set_axis_off()
    figure.savefig(HERE / "results.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ensembles", nargs="+", choices=ENSEMBLES, default=list(ENSEMBLES))
    parser.add_argument("--steps", type=int, default=200_000, help="of each simulation")
    parser.add_argument("--table", action="store_true", help="only results.md and results.png")
    options = parser.parse_args()
    file = HERE / "results.json"
    if not options.table:
        device = f"one run each on {os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
        rows = {row["ensemble"]: row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}
        for name in options.ensembles:
            rows[name] = judge(name, options.steps)
            results = {"device": device, "rows": [rows[name] for name in ENSEMBLES if name in rows]}
            file.write_text(json.dumps(results) + "\n")
    results = json.loads(file.read_text())
    (HERE / "results.md").write_text(table(results))
    plot(results)


if __name__ == "__main__":
    main()
