"""``leignn data inspect``: statistics, trouble and a batching plan of one set of frames, in words and in pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leignn_jax.arguments import check_number, check_whole
from leignn_jax.data.batches import BatchPlan, epoch_order, frames_of_a_batch, plan_batches
from leignn_jax.data.findings import Finding
from leignn_jax.data.label_checks import compare, examine
from leignn_jax.data.labelled import iter_labelled
from leignn_jax.data.labels import DEFAULT_KEYS, Keys, Labels, label_names
from leignn_jax.data.statistics import Statistics, describe, find_duplicates
from leignn_jax.data.table import tabulate
from leignn_jax.neighbors import find_pairs

# Epochs looked at for the plan; the training itself looks at all of its own.
_EPOCHS = 20


class DataFacts(NamedTuple):
    """What :func:`inspect_data` found.

    path: where.
    statistics: of the set.
    plan: of its batches; its compilations are as many as its shapes.
    findings: labels that look wrong, by themselves.
    shared: pairs of frames that stand in both sets, None without another set.
    findings_against: labels of the other set that don't go with this one's, None without another set.
    distances: ``[pairs]`` Å, of some frames.
    labels: of every frame.
    sizes: atoms of every frame.
    names: under which each label stands, and in how many frames.
    """

    path: str
    statistics: Statistics
    plan: BatchPlan
    findings: list[Finding]
    shared: list[tuple[int, int]] | None
    findings_against: list[Finding] | None
    distances: np.ndarray
    labels: list[Labels]
    sizes: np.ndarray
    names: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        against = None if self.findings_against is None else [one.to_dict() for one in self.findings_against]
        return {
            "path": self.path,
            **self.statistics.to_dict(),
            "label_names": self.names,
            "findings": [one.to_dict() for one in self.findings],
            "findings_against": against,
            "shared_with_other_set": self.shared,
            "plan": {
                "shapes": [s._asdict() for s in self.plan.shapes],
                "share": self.plan.share,
                "padding": self.plan.padding,
            },
        }

    def lines(self) -> list[tuple[str, str]]:
        """The same for a person."""
        s, plan = self.statistics, self.plan

        def span(values, digits=1):
            low, mean, high = values
            return f"{low} to {high}, mean {mean:.{digits}f}"

        def of(value, unit):
            return "none" if value is None else f"{value:.4g} {unit}"

        rows = [
            ("frames", f"{s.frames} ({s.atoms:,} atoms, compositions: {s.compositions}, periodic: {s.periodic})"),
            ("atoms per frame", span(s.atoms_per_frame)),
            ("elements", ", ".join(f"{e} {n:,}" for e, n in s.elements.items())),
            ("neighbours per atom", span(s.neighbors_per_atom)),
            ("shortest distance", f"{s.shortest_distance:.3f} Å"),
            ("labels", f"{s.energies} energies, {s.forces} forces, {s.stresses} stresses"),
            (
                "their names",
                "; ".join(", ".join(f"{k} {n}" for k, n in one.items()) for one in self.names.values() if one),
            ),
            ("reference energies", ", ".join(f"{e} {v:.4f} eV" for e, v in s.reference_energies.items()) or "none"),
            ("energy spread", of(s.energy_spread, "eV/atom (standard deviation less references)")),
            ("forces, RMS and largest", f"{of(s.forces_rms, 'eV/Å')}, {of(s.forces_max, 'eV/Å')}"),
            ("stress, RMS", of(s.stress_rms, "eV/Å³")),
            ("duplicates", _some([f"{i} = {j}" for i, j in s.duplicates])),
            ("outliers", _some([f"frame {o.frame}: {o.reason}" for o in s.outliers])),
        ]
        rows += [("units and signs", _say(one)) for one in self.findings] or [
            ("units and signs", "nothing looks wrong")
        ]
        if self.findings_against is not None:
            rows += [("the other set", _say(one)) for one in self.findings_against]
        if self.shared is not None:
            rows.append(("frames in both sets", _some([f"{i} = {j}" for i, j in self.shared])))
        shapes = "; ".join(
            f"{p.atoms} atoms, {p.pairs} pairs, {p.neighbors} neighbours ({100 * share:.0f} % of batches)"
            for p, share in zip(plan.shapes, plan.share, strict=True)
        )
        rows += [
            ("batch shapes (compilations)", f"{len(plan.shapes)}: {shapes}"),
            ("padding", f"{100 * plan.padding:.1f} % of pairs"),
            ("array per layer", f"{plan.shapes[-1].pairs * 3 * 128 * 4 / 2**20:.1f} MiB of filters at 128 features"),
        ]
        return rows


def _say(finding: Finding) -> str:
    return f"{'CERTAINLY WRONG' if finding.certain else 'suspected'}: {finding.text()}"


def _some(items: list[str]) -> str:
    return "none" if not items else f"{len(items)}: " + "; ".join(items[:5]) + ("; ..." if len(items) > 5 else "")


def inspect_data(
    path: str | os.PathLike,
    *,
    cutoff: float = 5.0,
    batch_size: int | None = None,
    units: str | None = None,
    against: str | os.PathLike | None = None,
    keys: Keys | None = None,
) -> DataFacts:
    """Look at a file of frames; ``cutoff`` in Å, ``batch_size`` as in a training, other arguments as in
    :func:`read_frames` and :func:`read_labels`."""
    check_number("cutoff", cutoff, positive=True)
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1)
    frames, labels, names = [], [], {label: {} for label in DEFAULT_KEYS}
    for atoms, one in iter_labelled(path, units=units, keys=keys):
        frames.append(atoms)
        labels.append(one)
        for label, name in label_names(atoms, keys).items():
            names[label][name] = names[label].get(name, 0) + 1
    sizes, distances = [], []
    for i, atoms in enumerate(frames):
        pairs = find_pairs(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc, bool), cutoff)
        degree = np.bincount(np.concatenate([pairs.receivers, pairs.senders]), minlength=len(atoms))
        sizes.append((len(atoms), max(len(pairs.receivers), 1), max(int(degree.max()), 1)))
        if i % max(1, len(frames) // 200) == 0:
            distances.append(pairs.distances)
    table = np.array(sizes)
    together = batch_size or frames_of_a_batch(table[:, 0])
    plan = plan_batches(table, [epoch_order(len(frames), together, 0, e) for e in range(_EPOCHS)])
    own = list(zip(frames, labels, strict=True))
    facts = tabulate(own)
    examined = examine(own.__getitem__, facts)
    shared = findings = None
    if against is not None:
        others = list(iter_labelled(against, units=units, keys=keys))
        of_others = tabulate(others)
        shared = find_duplicates(facts, of_others)
        findings = [*examine(others.__getitem__, of_others).findings]
        findings += compare(examined, facts, others.__getitem__, of_others)
    return DataFacts(
        path=str(path),
        statistics=describe(frames, labels, cutoff),
        plan=plan,
        findings=examined.findings,
        shared=shared,
        findings_against=findings,
        distances=np.concatenate(distances),
        labels=labels,
        sizes=table[:, 0],
        names=names,
    )


def plot_data(facts: DataFacts, path: Path) -> None:
    """Histograms of frame sizes, distances, energies and forces, as a PNG."""
    from leignn_jax.plotting import new_figure, save_figure

    references = facts.statistics.reference_energies
    figure, axes = new_figure(4)
    axes[0].hist(facts.sizes, bins=min(40, int(np.ptp(facts.sizes)) + 1))
    axes[0].set(xlabel="atoms per frame", ylabel="frames")
    axes[1].hist(facts.distances, bins=100)
    axes[1].set(xlabel="distance (Å)", ylabel="pairs (of some frames)")
    energies = [one.energy for one in facts.labels if one.energy is not None]
    if energies and references:
        per_atom = np.array(
            [one.energy / n for one, n in zip(facts.labels, facts.sizes, strict=True) if one.energy is not None]
        )
        axes[2].hist(1e3 * (per_atom - per_atom.mean()), bins=50)
    axes[2].set(xlabel="energy less mean (meV/atom)", ylabel="frames")
    forces = [one.forces.ravel() for one in facts.labels if one.forces is not None]
    if forces:
        axes[3].hist(np.concatenate(forces), bins=100, log=True)
    axes[3].set(xlabel="force component (eV/Å)", ylabel="components")
    figure.suptitle(Path(facts.path).name, fontsize=10)
    save_figure(figure, path)
