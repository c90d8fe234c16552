"""Volumes at constant pressure: our cell rescaling in three shapes beside jax-md's Nose-Hoover barostat.

    python experiments/ensembles/barostat.py          # about ten minutes on one CPU core; writes barostat.md

64 atoms of silicon, bundled potential, 300 K, 0 and 5 GPa, float32. jax-md's `npt_nose_hoover` runs on the hook
`leignn.neighbor_list` as it is; only the volume of its cell moves. Means and standard deviations of the volume come with
errors by blocking; the standard deviation must also be that of the compressibility which the two pressures tell.
"""

import os
import platform
from pathlib import Path
from typing import Any

import ase.build
import ase.units
import jax
import jax.numpy as jnp
import numpy as np

import leignn_jax as leignn
from leignn_jax.analysis import mean_with_error
from leignn_jax.simulation.ensembles import CellRescaling

HERE = Path(__file__).resolve().parent
KELVIN, TIMESTEP, STEPS, EVERY = 300.0, 2.0, 30000, 5
GIGAPASCAL = ase.units.GPa  # eV/Å^3
PRESSURES = (0.0, 5.0)


def start() -> ase.Atoms:
    """The crystal near its volume at rest."""
    return ase.build.bulk("Si", cubic=True, a=5.47) * 2


def ours(shape: Any, pressure: float) -> np.ndarray:
    """Volumes [Å^3] every EVERY steps."""
    run = leignn.simulate(
        leignn.load_potential("si"),
        start(),
        CellRescaling(KELVIN, pressure, 100.0, 500.0, compressibility=0.01, shape=shape, every=5),
        steps=STEPS,
        timestep=TIMESTEP,
        temperature=KELVIN,
        save_every=STEPS,
        log_every=EVERY,
        seed=0,
        progress=False,
    )
    assert run.summary["finished"], run.summary
    return run.thermo["volume_A3"]


def jax_mds(pressure: float) -> np.ndarray:
    """The same by jax-md."""
    from jax_md import simulate, space

    atoms, potential = start(), leignn.load_potential("si")
    box = jnp.asarray(atoms.cell.array.T, jnp.float32)
    neighbor_fn, energy_fn = leignn.neighbor_list(potential, atoms.numbers, box, fractional_coordinates=True)
    _, shift = space.periodic_general(box, fractional_coordinates=True)
    dt, kT = TIMESTEP * ase.units.fs, KELVIN * ase.units.kB
    init, apply = simulate.npt_nose_hoover(
        energy_fn,
        shift,
        dt,
        pressure * GIGAPASCAL,
        kT,
        barostat_kwargs={"chain_length": 3, "chain_steps": 2, "sy_steps": 3, "tau": 250 * dt},
        thermostat_kwargs={"chain_length": 3, "chain_steps": 2, "sy_steps": 3, "tau": 50 * dt},
    )
    positions = jnp.asarray(atoms.get_scaled_positions(), jnp.float32)
    neighbors = neighbor_fn.allocate(positions, extra_capacity=8)
    mass = jnp.asarray(atoms.get_masses(), jnp.float32)
    state = init(jax.random.key(0), positions, box, mass=mass, neighbor=neighbors)

    def one(carry, _):
        state, neighbors = carry
        box = simulate.npt_box(state)
        neighbors = neighbor_fn.update(state.position, neighbors, box=box)
        return (apply(state, neighbor=neighbors), neighbors), jnp.linalg.det(box)

    def some(carry, _):
        carry, volumes = jax.lax.scan(one, carry, None, length=EVERY)
        return carry, volumes[-1]

    (_, neighbors), volumes = jax.jit(lambda c: jax.lax.scan(some, c, None, length=STEPS // EVERY))((state, neighbors))
    assert not bool(neighbors.did_buffer_overflow)
    return np.asarray(volumes, np.float64)


def main() -> None:
    found = {}
    for pressure in PRESSURES:
        for name in ("isotropic", "anisotropic", "triclinic", "jax-md"):
            volumes = jax_mds(pressure) if name == "jax-md" else ours(name, pressure)
            volumes = volumes[len(volumes) // 10 :]
            mean = mean_with_error(volumes)
            spread = mean_with_error((volumes - volumes.mean()) ** 2)
            width = np.sqrt(spread.value)
            found[name, pressure] = (mean.value, mean.error, width, spread.error / (2 * width))
            print(name, pressure, found[name, pressure], flush=True)
    low, high = PRESSURES
    kT = KELVIN * ase.units.kB
    lines = [
        "# Volumes at constant pressure",
        "",
        f"64 atoms of Si, bundled potential, {KELVIN:g} K, {STEPS * TIMESTEP / 1000:g} ps of {TIMESTEP:g} fs, float32, seed "
        f"0, one run each, the first tenth left out; {os.cpu_count()} CPU cores ({platform.machine()}), jax "
        f"{jax.__version__}.",
        "",
        "| barostat | " + " | ".join(f"volume at {p:g} GPa (Å³) | its standard deviation" for p in PRESSURES) + " "
        "| standard deviation from the two volumes, 0 GPa |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("isotropic", "anisotropic", "triclinic", "jax-md"):
        (v0, _, _, _), (v1, _, _, _) = found[name, low], found[name, high]
        # <dV^2> = -kT dV/dp; the secant in place of the slope.
        expected = np.sqrt(kT * (v0 - v1) / ((high - low) * GIGAPASCAL))
        cells = " | ".join(
            f"{found[name, p][0]:.2f} ± {found[name, p][1]:.2f} | {found[name, p][2]:.2f} ± {found[name, p][3]:.2f}"
            for p in PRESSURES
        )
        title = "jax-md, Nose-Hoover" if name == "jax-md" else f"cell rescaling, {name}"
        lines.append(f"| {title} | {cells} | {expected:.2f} |")
    (HERE / "barostat.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
