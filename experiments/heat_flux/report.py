"""results.md and results.png of what run.py has found."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
# Viscardy, Servantie and Gaspard, J. Chem. Phys. 126, 184513 (2007): 1,372 atoms; k_B / sigma^2 sqrt(epsilon / m).
PUBLISHED, PUBLISHED_ERROR = 6.946, 0.12


def main() -> None:
    argon = json.loads((HERE / "results.json").read_text())
    cost = json.loads((HERE / "cost.json").read_text())
    unit = argon["reduced_unit"]
    lines = [
        "# Heat flux",
        "",
        f"Argon: {argon['device']}, float32; {argon['replicas']} replicas of {argon['picoseconds']:.0f} ps, "
        f"{argon['kelvin']:.1f} K in the mean, {argon['pressure_MPa']:.0f} MPa. Energy drifts by less than "
        f"{argon['drift_meV_per_atom']:.4f} meV per atom. Simulations {argon['seconds'][0]:.0f} s, heat flux of the frames "
        f"{argon['seconds'][1]:.0f} s.",
        "",
        "| thermal conductivity | W/(m K) | reduced |",
        "|---|---:|---:|",
    ]
    time = np.array(argon["time_fs"]) / 1000
    for at in (1.0, 2.0, 3.0, 5.0):
        i = int(np.argmin(np.abs(time - at)))
        value, error = argon["running"][i], argon["running_error"][i]
        lines.append(
            f"| integral up to {at:g} ps | {value:.4f} ± {error:.4f} | {value / unit:.2f} ± {error / unit:.2f} |"
        )
    lines += [
        f"| published | {PUBLISHED * unit:.4f} ± {PUBLISHED_ERROR * unit:.4f} | {PUBLISHED:.2f} ± {PUBLISHED_ERROR:.2f} |",
        "",
        "Silicon, the potential bundled before 2026-11-30 (cutoff 6 Å, two layers of messages); seconds are medians of 15.",
        "",
        "| atoms | unfolded | pairs | unfolded | forces (ms) | flux (ms) | flux / forces | lists of a flux made anew (ms) |",
        "|" + "---:|" * 8,
    ]
    lines += [
        f"| {r['atoms']} | {r['unfolded_atoms']} | {r['pairs']:,} | {r['unfolded_pairs']:,} | {1e3 * r['forces_s']:.2f} "
        f"| {1e3 * r['flux_s']:.1f} | {r['flux_s'] / r['forces_s']:.0f} | {1e3 * r['unfold_s']:.1f} |"
        for r in cost
    ]
    (HERE / "results.md").write_text("\n".join(lines) + "\n")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(time, argon["correlation"], lw=1.2)
    left.axhline(0, color="0.6", lw=0.8)
    left.set(xlabel="time (ps)", ylabel="⟨J(0)·J(t)⟩ / ⟨J²⟩", title="heat flux", xlim=(0, 3))
    running, error = np.array(argon["running"]), np.array(argon["running_error"])
    right.fill_between(time, running - error, running + error, alpha=0.3, lw=0)
    right.plot(time, running, lw=1.5, label=f"{argon['replicas']} replicas, ± 1 standard error")
    low, high = (unit * (PUBLISHED + s * PUBLISHED_ERROR) for s in (-1, 1))
    right.axhspan(low, high, color="C1", alpha=0.3, lw=0, label="Viscardy et al. 2007")
    right.axvline(argon["cutoff_fs"] / 1000, color="0.5", ls=":", lw=1, label="reported")
    right.set(xlabel="integral up to (ps)", ylabel="thermal conductivity (W/(m K))", ylim=(0, 0.17))
    right.set(title=f"argon, {argon['kelvin']:.0f} K, 1.42 g/cm³")
    right.legend(fontsize=8, loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(HERE / "results.png", dpi=120)


if __name__ == "__main__":
    main()
