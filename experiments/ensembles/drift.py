"""Energy drift of NVE with the bundled potential of silicon, 64 atoms at 300 K, float64, at three timesteps.

python experiments/ensembles/drift.py           # about half an hour on one CPU core; writes drift.md
"""

import os
import platform
from pathlib import Path

import ase.build
import jax

import leignn_jax as leignn

HERE = Path(__file__).resolve().parent
PICOSECONDS = 100.0


def main() -> None:
    potential = leignn.load_potential("si")
    atoms = ase.build.bulk("Si", cubic=True, a=5.47) * 2
    # Twice the temperature, of which half goes into the potential energy; then one start for all timesteps.
    warm = leignn.simulate(
        potential, atoms, "nve", temperature=600.0, steps=1000, timestep=1.0, dtype="float64", progress=False
    ).atoms
    lines = [
        "# Energy drift of NVE",
        "",
        f"64 atoms of Si at 300 K, bundled potential, {PICOSECONDS:g} ps, float64; {os.cpu_count()} CPU cores "
        f"({platform.machine()}), jax {jax.__version__}. Drift: slope of a straight line through the total energy, "
        "by leignn_jax.analysis.energy_drift.",
        "",
        "| timestep (fs) | spread of the total energy (µeV/atom) | drift (µeV/atom/ns) | its error |",
        "|---:|---:|---:|---:|",
    ]
    for timestep in (4.0, 2.0, 1.0):
        run = leignn.simulate(
            potential,
            warm,
            "nve",
            steps=round(1000 * PICOSECONDS / timestep),
            timestep=timestep,
            save_every=1000,
            log_every=5,
            dtype="float64",
            progress=False,
        )
        found = leignn.analysis.energy_drift(run.thermo["conserved_eV"], len(atoms), 5 * timestep)
        lines.append(
            f"| {timestep:g} | {1e6 * found.fluctuation:.3f} | {1e6 * found.drift:.1f} | {1e6 * found.error:.1f} |"
        )
        print(lines[-1], flush=True)
    (HERE / "drift.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
