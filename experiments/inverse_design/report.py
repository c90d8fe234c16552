"""results.md, trap.png and silicon.png of what run.py has found."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
COLORS = {
    "Adam": "C0",
    "L-BFGS, fixed noise": "C2",
    "CMA-ES": "C1",
    "CMA-ES, noise not shared": "C4",
    "Nelder-Mead, fixed noise": "C3",
}
TIMESTEP, STEPS, SILICON_FS = 4.0, 250, 240.0


def trap_table(trap: dict) -> list[str]:
    known, price = trap["known"], trap["price"]
    best = known["best_knots"]

    def row(name, work, cost=""):
        gaps = f"{100 * (work / best - 1):.3f} | {100 * (work / known['infimum'] - 1):.2f}"
        return f"| {name} | {work:.5f} | {gaps} | {cost} |"

    lines = [
        "## Trap",
        "",
        f"{trap['device']}, float32. A value of 64 particles takes {1e3 * price['loss_s']:.1f} ms, with its gradient "
        f"{1e3 * price['gradient_s']:.1f} ms: {price['ratio']:.2f} evaluations. Work is the exact mean of what was found.",
        "",
        "| protocol | mean work (eV) | above the best knots (%) | above the infimum (%) | seconds of a run |",
        "|---|---:|---:|---:|---:|",
        row("infimum of all protocols", known["infimum"]),
        row("best of ten knots", best),
        row("Schmiedl and Seifert's, at ten knots", known["theory_by_knots"]),
        row("straight line", known["straight"]),
    ]
    for name in COLORS:
        runs = trap[name]
        ends = [one["work"][-1] for one in runs]
        took = f"{np.median([one['seconds'] for one in runs]):.1f}"
        lines += [
            row(f"{name}, median of {len(runs)} seeds", float(np.median(ends)), took),
            row(f"{name}, worst", max(ends)),
        ]
    lines += [
        "",
        "| until less than 1 % above the best knots, for good | values or gradients, median | worst "
        "| evaluations, median | worst |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in COLORS:
        each = price["ratio"] if name in ("Adam", "L-BFGS, fixed noise") else 1.0
        until = np.array([cost_until(one, 1.01 * best) for one in trap[name]])
        numbers = (np.median(until) / each, max(until) / each, np.median(until), max(until))
        shown = [f"{n:.0f}" if np.isfinite(n) else "not in 400" for n in numbers]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    for name, exact in (("straight", known["straight"]), ("best", best)):
        mean, error, spread = trap["simulated"][name]
        lines += [
            "",
            f"Simulated, 4,096 particles, {name}: {mean:.4f} ± {error:.4f} eV beside {exact:.4f}, spread {spread:.3f}.",
        ]
    return lines


def cost_until(one: dict, work: float) -> float:
    """Evaluations after which the path stays below."""
    above = np.flatnonzero(np.array(one["work"]) > work)
    after = above[-1] + 1 if len(above) else 0
    return one["cost"][after] if after < len(one["cost"]) else np.inf


def draw_trap(trap: dict) -> None:
    known = trap["known"]
    end = TIMESTEP * STEPS
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    times = np.array([0.0, *known["times"], end])

    def protocol(knots):
        return np.array([0.0, *knots, 5.0])

    straight = 5.0 * np.array(known["times"]) / end
    left.plot(times, protocol(straight), "--", color="0.5", label="straight line")
    left.plot(times, protocol(known["theory"]), "k:", label="best, overdamped, any protocol")
    for name in ("CMA-ES", "Adam"):
        for number, one in enumerate(trap[name]):
            label = f"{name}, 5 seeds" if number == 0 else None
            left.plot(times, protocol(one["knots"]), color=COLORS[name], lw=1, alpha=0.7, label=label)
    left.plot(times, protocol(known["knots"]), "ko", ms=4, mfc="none", label="best of ten knots")
    left.set(xlabel="time (fs)", ylabel="center of the trap (Å)")
    left.legend(fontsize=8)
    for name, color in COLORS.items():
        for number, one in enumerate(trap[name]):
            gap = 100 * (np.array(one["work"]) / known["best_knots"] - 1)
            right.semilogy(one["cost"], gap, color=color, lw=1, alpha=0.7, label=name if number == 0 else None)
    right.axhline(
        100 * (known["straight"] / known["best_knots"] - 1), color="0.5", ls="--", lw=1, label="straight line"
    )
    right.set(xlabel="cost (evaluations of the loss)", ylabel="mean work above the best of ten knots (%)")
    right.set(ylim=(1e-3, 100), xlim=(0, 400))
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(HERE / "trap.png", dpi=120)


def mean_and_error(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def silicon_table(silicon: dict) -> list[str]:
    price = silicon["price"]
    lines = [
        "",
        "## Silicon",
        "",
        f"{silicon['device']}, float32. A value of 4 replicas takes {price['loss_s']:.1f} s, with its gradient "
        f"{price['gradient_s']:.1f} s: {price['ratio']:.2f} evaluations. Energies of 16 other damaged crystals, other "
        "noise, the same for every schedule; errors over these.",
        "",
        "| schedule | energy above the crystal (meV/atom) | below 10 meV/atom | below constant 1,000 K (meV/atom) |",
        "|---|---:|---:|---:|",
    ]
    reference = np.array(silicon["simple"]["constant 1,000 K"])

    def row(name, energies):
        energies = np.array(energies)
        value, error = mean_and_error(1e3 * energies)
        gain, gain_error = mean_and_error(1e3 * (reference - energies))
        healed = f"{(energies < 0.01).sum()} of {len(energies)}"
        return f"| {name} | {value:.0f} ± {error:.0f} | {healed} | {gain:.0f} ± {gain_error:.0f} |"

    lines += [row(name, energies) for name, energies in silicon["simple"].items()]
    for name in ("Adam", "CMA-ES"):
        for one in silicon.get(name, []):
            for part, (cost, energies) in zip(("half of the budget", "all"), one["judged"], strict=True):
                lines.append(row(f"{name}, seed {one['seed']}, {part} ({cost:.0f} evaluations)", energies))
    return lines


def answers_table(answers: dict) -> list[str]:
    rows = answers["constant 1,000 K"]
    lines = [
        "",
        "How the potential energy answers to a bath of 1,000 K that is hotter by a factor, d energy / d ln T (meV/atom), 8 "
        "replicas; errors over these.",
        "",
        "| after (fs) | gradient | difference, ± 2 % | difference, ± 20 % | largest of a replica's gradients |",
        "|---:|---:|---:|---:|---:|",
    ]
    for at in (40, 120, 240, 400, 600, 800, 1000, 1200):
        i = rows["fs"].index(float(at))
        cells = []
        for kind in ("gradient", "difference 0.02", "difference 0.2"):
            value, error = mean_and_error(1e3 * np.array(rows[kind][i]))
            cells.append(f"{value:,.0f} ± {error:,.0f}")
        most = 1e3 * np.abs(rows["gradient"][i]).max()
        lines.append(f"| {at} | {cells[0]} | {cells[1]} | {cells[2]} | {most:,.0f} |")
    return lines


def draw_silicon(silicon: dict, answers: dict) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    rows = answers["constant 1,000 K"]
    time = np.array(rows["fs"])
    for kind, label, color in (
        ("difference 0.2", "difference, ± 20 %", "k"),
        ("difference 0.02", "difference, ± 2 %", "C2"),
        ("gradient", "gradient", "C0"),
    ):
        each = np.array(rows[kind])
        error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
        left.errorbar(time, each.mean(1), error, color=color, lw=1.2, capsize=2, label=label)
    left.axvline(SILICON_FS, color="0.5", ls=":", lw=1, label="end of the treatment")
    left.set(xlabel="horizon (fs)", ylabel="∂ energy / ∂ ln T (eV/atom)", title="bath of 1,000 K, 8 replicas")
    left.legend(fontsize=8)
    times = np.linspace(0, SILICON_FS, len(silicon["Adam"][0]["kelvin"][0]))
    for name in ("Adam", "CMA-ES"):
        for number, one in enumerate(silicon[name]):
            label = f"{name}, {len(silicon[name])} seeds" if number == 0 else None
            middle.plot(times, one["kelvin"][-1], "o-", ms=3, color=COLORS[name], lw=1.2, label=label)
    middle.axhline(1000, color="0.5", ls="--", lw=1, label="begin of all")
    middle.set(xlabel="time (fs)", ylabel="temperature of the bath (K)", title="schedules found", ylim=(0, None))
    middle.legend(fontsize=8)
    bars = [(name, energies, "0.6") for name, energies in silicon["simple"].items()]
    for name in ("Adam", "CMA-ES"):
        bars += [(f"{name}, seed {o['seed']}", o["judged"][-1][1], COLORS[name]) for o in silicon[name]]
    for place, (_, energies, color) in enumerate(bars):
        value, error = mean_and_error(1e3 * np.array(energies))
        right.barh(place, value, xerr=error, color=color, capsize=2)
    right.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="energy above the crystal (meV/atom)", title="16 other crystals")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(HERE / "silicon.png", dpi=120)


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    lines = ["# Inverse design", "", *trap_table(results["trap"])]
    draw_trap(results["trap"])
    if "CMA-ES" in results.get("silicon", {}):
        lines += [*silicon_table(results["silicon"]), *answers_table(results["answers"])]
        draw_silicon(results["silicon"], results["answers"])
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
