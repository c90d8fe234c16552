"""Findings: which labels of a set, or of single frames of it, can't be in eV and Å, by how much, and why.

A few hundred frames are read for what concerns the whole set; more of them, the strangest first, for single frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.data.evidence import (
    Bond,
    Ratio,
    Sample,
    Shell,
    bonds,
    bulk_ratio,
    force_work_ratio,
    model_energy_ratio,
    model_stress_ratio,
    nearest_ratio,
    shell,
    stiffness_ratio,
    stress_work_ratio,
    works,
)
from leignn_jax.data.labels import Labels
from leignn_jax.data.pair_model import Basis, features, fit_forces, make_basis, model_forces
from leignn_jax.data.table import FrameTable
from leignn_jax.data.units import Change, Evidence, candidates, explain

Get = Callable[[int], tuple[ase.Atoms, Labels]]

_FIT_ATOMS, _FIT_FRAMES = 10_000, 200
_PAIR_ATOMS, _PAIR_FRAMES = 40_000, 400
_LOOK_ATOMS = 40_000
_SIZES = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "positions": "Å"}


class Finding(NamedTuple):
    """Something that labels can't be.

    label: "positions", "forces", "energy" or "stress".
    what: in words, with the suspected factor and unit.
    evidence: in words and numbers.
    factor: by which the numbers are too large, negative with a wrong sign; None where it is no factor.
    frames: their numbers in the set; empty: all.
    certain: no chemistry explains it.
    """

    label: str
    what: str
    evidence: str
    factor: float | None
    frames: tuple[int, ...]
    certain: bool

    def text(self, names: Sequence[str] | None = None) -> str:
        """One sentence for a person; ``names`` of the frames."""
        place = ""
        if self.frames:
            first = names[self.frames[0]] if names is not None else f"frame {self.frames[0]}"
            rest = len(self.frames) - 1
            place = f"{first}{f' and {rest} more ({_some(self.frames[1:])})' if rest else ''}: "
        elif names is not None and len(names):
            place = f"{names[0].rpartition(': ')[0] or names[0]}: "
        return f"{place}{self.what}: {self.evidence}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self._asdict(), "frames": list(self.frames)}


def _some(frames: Sequence[int]) -> str:
    return ", ".join(map(str, frames[:5])) + (", ..." if len(frames) > 5 else "")


class Examined(NamedTuple):
    """What is known of a set after a look at it.

    findings: what is wrong with it.
    basis, coefficients: of a model of its forces, None where it has none.
    agreement: median over frames of the cosine between forces and model.
    """

    findings: list[Finding]
    basis: Basis | None
    coefficients: np.ndarray | None
    agreement: float


def examine(get: Get, table: FrameTable) -> Examined:
    """Judge the units and signs of a set's labels.

    Args:
        get: a frame with its labels by its number.
        table: of the frames.
    """
    sizes = table.atoms
    fit = _choose(sizes, _FIT_ATOMS, _FIT_FRAMES)
    sample = [get(int(i)) for i in fit]
    similar = [get(int(i)) for i in _choose(sizes, _PAIR_ATOMS, _PAIR_FRAMES)]
    shells = [shell(atoms) for atoms, _ in sample]
    near = nearest_ratio([atoms for atoms, _ in sample], shells)
    # Lengths in a guess of their own unit, so that the rest works for other units too.
    scale = 1.0 if near is None or 1 / 1.5 < near.value < 1.5 else near.value
    found = works(similar, scale)
    evidence = _evidence("distances", near, positions=1)
    evidence += _evidence("work of forces", force_work_ratio(found), forces=1, positions=1, energy=-1)
    evidence += _evidence("work of stress", stress_work_ratio(found), stress=1, positions=3, energy=-1)
    evidence += _evidence("bulk", bulk_ratio(similar), energy=1)
    with_forces = [(atoms, labels) for atoms, labels in sample if labels.forces is not None]
    basis = coefficients = None
    agreement, bond = 0.0, None
    if with_forces and any(np.any(labels.forces) for _, labels in with_forces):
        stiff = stiffness_ratio(bonds(sample, shells, scale))
        if stiff is not None:
            bond = stiff[1]
            evidence += _evidence("stiffness", stiff[0], forces=1, positions=2)
        basis = make_basis([atoms for atoms, _ in with_forces], 5.0 * scale)
        thin = with_forces[:: max(1, round(basis.size * sum(len(a) for a, _ in with_forces) / 4e6))]
        matrices = [features(atoms, basis) for atoms, _ in thin]
        coefficients = fit_forces(matrices, [labels.forces for _, labels in thin if labels.forces is not None])
        agreement = _agreement(
            [(x.forces @ coefficients, labels.forces) for x, (_, labels) in zip(matrices, thin, strict=True)]
        )
        if agreement > 0.6:
            energy = model_energy_ratio(thin, matrices, coefficients)
            stress = model_stress_ratio(thin, matrices, coefficients)
            evidence += _evidence("energies from forces", energy, forces=1, positions=1, energy=-1)
            evidence += _evidence("stress from forces", stress, forces=1, positions=-2, stress=-1)
    findings = _of_set(evidence, sample, bond)
    findings += _net_forces(sample, fit) + _asymmetric(sample, fit)
    findings += _odd_forces(get, table, shells, basis, coefficients, agreement)
    findings += _odd_energies(table) + _odd_positions(shells, fit)
    return Examined(findings, basis, coefficients, agreement)


def _choose(sizes: np.ndarray, atoms: int, frames: int) -> np.ndarray:
    """Numbers of frames, two neighbours at a time as they may follow each other in time, up to a number of atoms."""
    starts = np.random.default_rng(0).permutation(np.arange(0, len(sizes), 2))
    order = np.stack([starts, starts + 1], axis=1).ravel()
    order = order[order < len(sizes)]
    count = max(2, min(frames, int(np.searchsorted(np.cumsum(sizes[order]), atoms)) + 1))
    return np.sort(order[:count])


def _evidence(words: str, ratio: Ratio | None, **powers: int) -> list[Evidence]:
    return [] if ratio is None else [Evidence(words, ratio, powers)]


def _agreement(both: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    cosines = [_cosine(model.ravel(), labels.ravel()) for model, labels in both]
    return float(np.median([c for c in cosines if np.isfinite(c)] or [0.0]))


def _cosine(model: np.ndarray, forces: np.ndarray) -> float:
    """Between two ``[3 atoms]``; NaN where either vanishes or symmetry leaves so little freedom that it means nothing."""
    sizes = np.linalg.norm(model.reshape(-1, 3), axis=1)
    length = np.linalg.norm(model) * np.linalg.norm(forces)
    if length < 1e-12 or len(np.unique(np.round(sizes / sizes.max(), 2))) < 4:
        return float("nan")
    return float(model @ forces / length)


def _of_set(evidence: Sequence[Evidence], sample: Sample, bond: Bond | None) -> list[Finding]:
    volumes = [abs(np.linalg.det(atoms.cell)) for atoms, _ in sample if atoms.pbc.all()]
    volume = float(np.median(volumes)) if volumes else None
    verdict = explain(evidence, volume, float(np.median([len(atoms) for atoms, _ in sample])))
    found = []
    for change in verdict.changes:
        why = [_in_words(e, bond) for e in evidence if e.powers.get(change.label)]
        others = [c for c in verdict.others if c.label == change.label]
        what = _say(change, others)
        elsewhere = [c for c in verdict.others if c.label != change.label]
        if len(verdict.changes) == 1 and elsewhere:
            what += f" (or {_say(elsewhere[0], [])})"
        found.append(Finding(change.label, what, "; ".join(why), change.factor, (), verdict.certain))
    return found


def _say(change: Change, others: Sequence[Change]) -> str:
    size = abs(change.factor)
    verb = "looks" if change.label in ("energy", "stress") else "look"
    sign = " and of the wrong sign" if change.factor < 0 else ""
    if size == 1:
        return f"{change.label} {verb} to have the wrong sign"
    times = f"{size:.4g} times too large" if size > 1 else f"{1 / size:.4g} times too small"
    text = f"{change.label} {verb} {times}{sign}, as {_unit(change)}"
    near = [c for c in others if (c.factor < 0) == (change.factor < 0) and 1 / 2 < c.factor / change.factor < 2]
    near = sorted(near, key=lambda c: abs(np.log(c.factor / change.factor)))[:2]
    return text + "".join(f" or {_unit(c)} ({abs(c.factor):.3g})" for c in near)


def _unit(change: Change) -> str:
    unit = change.unit.removesuffix(", with the wrong sign")
    return unit if unit.startswith("a power") else f"in {unit}"


def _in_words(evidence: Evidence, bond: Bond | None) -> str:
    value, count = evidence.ratio.value, evidence.ratio.count
    if evidence.words == "distances":
        return f"the nearest neighbours are {0.97 * value:.2f} covalent bond lengths away (0.8 to 1.1 are usual)"
    if evidence.words == "stiffness" and bond is not None:
        kind = "-".join(chemical_symbols[z] for z in bond.elements)
        usual = bond.stiffness / value
        return (
            f"the force along {kind} bonds of {bond.length:.2f} Å changes by {-bond.stiffness:.4g} eV/Å² with their length, "
            f"about {-usual:.2g} is usual"
        )
    if evidence.words == "bulk":
        return f"the energy's curvature over the volume is {value:.3g} times what is usual, in {count} series"
    over = {
        "work of forces": "force times displacement is {0:.3g} times the energy difference of {1} pairs of similar frames",
        "work of stress": "volume times stress times strain is {0:.3g} times the energy difference of {1} strained frames",
        "energies from forces": "energies foretold from the forces vary {0:.3g} times as much as those given",
        "stress from forces": "stresses foretold from the forces are {0:.3g} times those given",
    }
    return over[evidence.words].format(value, count)


def _net_forces(sample: Sample, numbers: np.ndarray) -> list[Finding]:
    """Forces whose sum is as large as that of unrelated numbers: rows mixed up, or some atoms' forces left out."""
    rows = []
    for i, (_, labels) in zip(numbers, sample, strict=True):
        if labels.forces is not None and len(labels.forces) > 2 and np.any(labels.forces):
            size = float(np.sqrt((labels.forces**2).mean()))
            rows.append(
                (i, float(np.linalg.norm(labels.forces.sum(0))) / (size * np.sqrt(3 * len(labels.forces))), size)
            )
    wrong = [(i, net) for i, net, size in rows if net > 0.3 and size > 0.05]
    if len(wrong) < max(2, 0.1 * len(rows)):
        return []
    evidence = (
        f"the sum over the atoms of a frame should be zero and is {np.median([n for _, n in wrong]):.2f} of that of "
        f"unrelated numbers, in {len(wrong)} of {len(rows)} frames looked at"
    )
    frames = () if len(wrong) > 0.5 * len(rows) else tuple(int(i) for i, _ in wrong)
    what = "forces don't add up (an order of atoms of its own, forces of fixed atoms set to zero, an outer field?)"
    return [Finding("forces", what, evidence, None, frames, False)]


def _asymmetric(sample: Sample, numbers: np.ndarray) -> list[Finding]:
    rows = []
    for i, (_, labels) in zip(numbers, sample, strict=True):
        if labels.stress is not None and np.any(labels.stress):
            size = float(np.linalg.norm(labels.stress))
            rows.append((int(i), float(np.linalg.norm(labels.stress - labels.stress.T)) / size, size))
    if not rows:
        return []
    usual = float(np.median([size for *_, size in rows]))
    wrong = [(i, ratio) for i, ratio, size in rows if ratio > 0.02 and size > 0.1 * usual]
    if not wrong:
        return []
    frames = () if len(wrong) > 0.5 * len(rows) else tuple(i for i, _ in wrong)
    largest = max(ratio for _, ratio in wrong)
    evidence = (
        f"xy and yx differ by up to {100 * largest:.3g} % of its size, in {len(wrong)} of {len(rows)} frames looked at"
    )
    return [Finding("stress", "stress is not symmetric", evidence, None, frames, largest > 0.1)]


def _odd_forces(
    get: Get,
    table: FrameTable,
    shells: Sequence[Shell],
    basis: Basis | None,
    coefficients: np.ndarray | None,
    agreement: float,
) -> list[Finding]:
    """Frames whose forces go with the model's but are of another size or sign."""
    if basis is None or coefficients is None or agreement < 0.6:
        return []
    # Nearer than nearly all others, atoms may well repel each other as no model of the others foretells.
    nearest = float(np.quantile([one.reduced.min(initial=np.inf) for one in shells], 0.02)) * 0.95
    rms = np.sqrt(table.forces_square / (3 * table.atoms))
    there = np.flatnonzero((rms > 0) & (table.atoms > 2))
    if len(there) < 8:
        return []
    usual = float(np.median(rms[there]))
    # The strangest first, the rest by chance, up to what a few seconds allow.
    strange = np.abs(np.log(rms[there] / usual))
    order = np.random.default_rng(0).permutation(len(there))
    order = np.concatenate([np.argsort(-strange)[:50], order])
    order = there[order[np.sort(np.unique(order, return_index=True)[1])]]
    order = order[np.cumsum(table.atoms[order]) <= max(_LOOK_ATOMS, table.atoms[order[0]])]
    rows = []
    for i in order:
        atoms, labels = get(int(i))
        if labels.forces is None or not np.isin(atoms.numbers, basis.elements).all():
            continue
        model, forces = model_forces(atoms, basis, coefficients).ravel(), labels.forces.ravel()
        rows.append(
            (
                int(i),
                _cosine(model, forces),
                np.linalg.norm(forces) / max(np.linalg.norm(model), 1e-12),
                np.sqrt(np.mean(model**2)),
                len(atoms),
            )
        )
    number, cosine, ratio, size, count = np.array(rows).T
    # Where the model foretells next to nothing, by symmetry or at rest, it says nothing.
    kept = np.isfinite(cosine) & (size > 0.3 * np.sqrt(np.mean(size**2)))
    number, cosine, ratio, count = (x[kept] for x in (number, cosine, ratio, count))
    if len(number) < 8:
        return []
    # As high as in nearly all frames, and more than chance gives in that few dimensions.
    low = np.maximum(max(0.75, float(np.quantile(np.abs(cosine), 0.05))), 3.9 / np.sqrt(3 * count - 3))
    low = np.minimum(low, 0.95)
    middle = float(np.median(np.log(ratio)))
    spread = 1.48 * float(np.median(np.abs(np.log(ratio) - middle)))
    off = np.log(ratio) - middle
    other_size = (np.abs(cosine) > low) & (np.abs(off) > max(np.log(7.0), 8 * spread))
    flipped = (cosine < -low) & (np.abs(off) < np.log(2.0))
    found = []
    for rows_of, sign in ((other_size, None), (flipped, -1.0)):
        if not rows_of.any() or rows_of.mean() > 0.3:
            continue
        frames = tuple(i for i in sorted(int(i) for i in number[rows_of]) if shell(get(i)[0]).reduced.min() > nearest)
        if not frames:
            continue
        certain = bool(np.median(cosine) > 0.85 and np.quantile(np.abs(cosine), 0.1) > 0.6)
        alike = f"they are those of a model of the other frames' forces (cosine {np.median(cosine[rows_of]):.2f})"
        if sign is None:
            factor = float(np.exp(np.median(off[rows_of])) * np.sign(np.median(cosine[rows_of])))
            size_of = f"{factor:.3g} times too large" if abs(factor) > 1 else f"{1 / factor:.3g} times too small"
            found.append(Finding("forces", f"forces are {size_of}", f"but for that {alike}", factor, frames, certain))
        else:
            found.append(Finding("forces", "forces have the wrong sign", alike, sign, frames, certain))
    return found


def _odd_energies(table: FrameTable) -> list[Finding]:
    """Frames whose energy is a multiple of that of other frames of the same composition."""
    per_atom = table.energy / table.atoms
    reduced = table.counts // np.maximum(np.gcd.reduce(table.counts, axis=1, keepdims=True), 1)
    kind = np.unique(reduced, axis=0, return_inverse=True)[1].reshape(-1)[table.kind]
    there = np.flatnonzero(np.isfinite(per_atom))
    there = there[np.argsort(kind[there], kind="stable")]
    found = []
    for mine in np.split(there, np.flatnonzero(np.diff(kind[there])) + 1):
        if len(mine) < 6:
            continue
        middle = float(np.median(per_atom[mine]))
        spread = 1.48 * float(np.median(np.abs(per_atom[mine] - middle)))
        if abs(middle) < 10 * max(spread, 1e-9):
            continue
        ratio = per_atom[mine] / middle
        # A known factor and no other: energies of crushed crystals are of any size and sign.
        known = np.array([c.factor for c, _ in candidates("energy", None, 1) if not 0.2 < c.factor < 5])
        width = min(0.15, max(0.02, 4 * spread / abs(middle)))
        away = np.abs(per_atom[mine] - middle) > 20 * spread
        far = away & (np.abs(ratio[:, None] / known - 1) < width).any(1)
        if not far.any() or far.mean() > 0.3 or np.sum(away & ~far) >= np.sum(far):
            continue
        factor = float(np.median(ratio[far]))
        times = f"{factor:.4g} times that of the others" if factor > 0 else f"of the other sign ({factor:.4g} times)"
        evidence = f"{per_atom[mine][far][0]:.6g} eV per atom, the median of frames of this composition is {middle:.6g}"
        frames = tuple(sorted(int(i) for i in mine[far]))
        found.append(
            Finding("energy", f"the energy is {times}", evidence, factor, frames, abs(factor) > 10 or factor < 0)
        )
    return found


def _odd_positions(shells: Sequence[Shell], numbers: np.ndarray) -> list[Finding]:
    ends = np.array([[one.nearest.min(), np.median(one.nearest), one.nearest.max()] for one in shells])
    near = ends[:, 1]
    there = np.isfinite(ends).all(1)
    if there.sum() < 6:
        return []
    middle = float(np.median(near[there]))
    spread = 1.48 * float(np.median(np.abs(near[there] - middle)))
    found = []
    for factor, unit in ((1.889726, "bohr"), (0.529177, "Å taken for bohr and converted")):
        # All atoms, not some that are on their way apart.
        alike = np.abs(ends / (factor * np.median(ends[there], axis=0)) - 1) < 0.2
        wrong = there & alike.all(1) & (np.abs(near - middle) > 10 * spread)
        if wrong.any() and wrong.mean() < 0.3:
            evidence = f"nearest neighbours are {near[wrong][0]:.2f} covalent bond lengths away, {middle:.2f} elsewhere"
            frames = tuple(int(i) for i in numbers[wrong])
            found.append(Finding("positions", f"positions look like {unit}", evidence, factor, frames, False))
    return found


def compare(train: Examined, of_train: FrameTable, get: Get, table: FrameTable) -> list[Finding]:
    """Labels of another set that are of another unit or sign than those of train, by what train foretells.

    Args:
        train: of :func:`examine`.
        of_train: train's table.
        get, table: of the other set.
    """
    found = _other_energies(of_train, table)
    if train.basis is None or train.coefficients is None or train.agreement < 0.6:
        return found
    logs, cosines = [], []
    for i in _choose(table.atoms, _FIT_ATOMS, 100):
        atoms, labels = get(int(i))
        if labels.forces is None or len(atoms) < 3 or not np.isin(atoms.numbers, train.basis.elements).all():
            continue
        model, forces = model_forces(atoms, train.basis, train.coefficients).ravel(), labels.forces.ravel()
        cosine = _cosine(model, forces)
        if np.isfinite(cosine) and np.linalg.norm(model) > 1e-3:
            cosines.append(cosine)
            logs.append(np.log(np.linalg.norm(forces) / np.linalg.norm(model)))
    if len(cosines) < 2 or abs(np.median(cosines)) < 0.6:
        return found
    cosine, middle = float(np.median(cosines)), float(np.median(logs))
    spread = 1.48 * float(np.median(np.abs(np.array(logs) - middle)))
    if cosine > 0 and abs(middle) < max(np.log(3.0), 4 * spread):
        return found
    factor = float(np.exp(middle) * np.sign(cosine))
    what = f"forces are {factor:.3g} times those that train foretells"
    evidence = f"median over {len(cosines)} frames, with which train's model goes (cosine {cosine:.2f})"
    return [*found, Finding("forces", what, evidence, factor, (), abs(cosine) > 0.7 and train.agreement > 0.7)]


def _other_energies(train: FrameTable, other: FrameTable) -> list[Finding]:
    """Energies per atom over those of frames of the same composition in train."""
    logs, signs, widths = [], [], []
    mine = {tuple(zip(train.elements, row, strict=True)): k for k, row in enumerate(map(tuple, train.counts))}
    for k, row in enumerate(map(tuple, other.counts)):
        counts = dict(zip(other.elements, row, strict=True))
        same = mine.get(tuple((e, counts.get(e, 0)) for e in train.elements))
        if same is None or sum(counts.values()) != int(train.counts[same].sum()):
            continue
        here = other.energy[(other.kind == k) & np.isfinite(other.energy)]
        there = train.energy[(train.kind == same) & np.isfinite(train.energy)]
        if len(here) and len(there) > 2:
            middle = float(np.median(there))
            spread = 1.48 * float(np.median(np.abs(there - middle)))
            kept = here[np.abs(here) > 0] / middle if abs(middle) > 5 * max(spread, 1e-9) else np.zeros(0)
            logs += list(np.log(np.abs(kept)))
            signs += list(np.sign(kept))
            widths += [spread / abs(middle)] * len(kept)
    if len(logs) < 2:
        return []
    factor = float(np.exp(np.median(logs)) * (1 if np.mean(signs) > 0 else -1))
    if 0.25 < factor < 4:
        return []
    what = f"energies are {factor:.4g} times those of train"
    evidence = f"median over {len(logs)} frames of compositions that train holds too"
    return [Finding("energy", what, evidence, factor, (), True)]
