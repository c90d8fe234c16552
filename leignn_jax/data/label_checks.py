"""Which labels of a set, or of single frames of it, can't be in eV and Å: by themselves, and against another set.

A few hundred frames are read for what concerns the whole set; more of them, the strangest first, for single frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leignn_jax.data.evidence import (
    Bond,
    Ratio,
    Sample,
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
from leignn_jax.data.findings import Finding, in_words, say
from leignn_jax.data.odd_frames import (
    Get,
    asymmetric,
    force_cosine,
    net_forces,
    odd_energies,
    odd_forces,
    odd_positions,
)
from leignn_jax.data.pair_model import Features, ForceModel, features, fit_forces, make_basis, model_forces
from leignn_jax.data.statistics import compare_forces, find_extremes
from leignn_jax.data.table import FrameTable
from leignn_jax.data.units import Evidence, explain

_FIT_ATOMS, _FIT_FRAMES = 8_000, 150
_PAIR_ATOMS, _PAIR_FRAMES = 40_000, 400
_MATRIX = 4e6  # atoms times coefficients that matrices are made for
_FEWEST = 16  # frames, of which a model may learn
_AGREES = 0.6  # the cosine of forces with a model that may speak


class Examined(NamedTuple):
    """What is known of a set after a look at it: its findings, and a model of its forces where one fits."""

    findings: list[Finding]
    model: ForceModel | None


def examine(get: Get, table: FrameTable) -> Examined:
    """Judge the units and signs of a set's labels.

    Args:
        get: a frame with its labels by its number.
        table: of the frames.
    """
    numbers = _choose(table.atoms, _FIT_ATOMS, _FIT_FRAMES)
    sample = [get(int(i)) for i in numbers]
    similar = [get(int(i)) for i in _choose(table.atoms, _PAIR_ATOMS, _PAIR_FRAMES)]
    shells = [shell(atoms) for atoms, _ in sample]
    near = nearest_ratio([atoms for atoms, _ in sample], shells)
    # Lengths in a guess of their own unit, so that the rest works for other units too.
    scale = 1.0 if near is None or 1 / 1.5 < near.value < 1.5 else near.value
    found = works(similar, scale)
    stiff = stiffness_ratio(bonds(sample, shells, scale))
    model, of_model = _model(sample, scale)
    evidence = [
        *_evidence("distances", near, positions=1),
        *_evidence("stiffness", stiff and stiff[0], forces=1, positions=2),
        *_evidence("work of forces", force_work_ratio(found), forces=1, positions=1, energy=-1),
        *_evidence("work of stress", stress_work_ratio(found), stress=1, positions=3, energy=-1),
        *_evidence("bulk", bulk_ratio(similar), energy=1),
        *of_model,
    ]
    findings = [
        *_of_set(evidence, sample, stiff and stiff[1]),
        *net_forces(sample, numbers),
        *asymmetric(sample, numbers),
        *odd_energies(table),
        *odd_positions(shells, numbers),
    ]
    if model is not None:
        findings += odd_forces(get, table, shells, model)
    known = {one.label for one in findings if one.certain}
    findings += [one for one in find_extremes(table) if one.label not in known]
    return Examined(findings, model)


def _model(sample: Sample, scale: float) -> tuple[ForceModel | None, list[Evidence]]:
    """A model of the forces, where one goes with them, and what it says of energies and stresses."""
    chosen = [(atoms, labels) for atoms, labels in sample if labels.forces is not None]
    if len(chosen) < _FEWEST or not any(np.any(labels.forces) for _, labels in chosen):
        return None, []
    basis = make_basis([atoms for atoms, _ in chosen], 5.0 * scale)
    chosen = chosen[:: max(1, round(basis.size * sum(len(atoms) for atoms, _ in chosen) / _MATRIX))]
    if 3 * sum(len(atoms) for atoms, _ in chosen) < 2 * basis.size:
        return None, []
    matrices: list[Features] = [features(atoms, basis) for atoms, _ in chosen]
    forces = [labels.forces for _, labels in chosen if labels.forces is not None]
    # Each half of the frames, two neighbours at a time, is foretold by the model of the other.
    half = np.arange(len(chosen)) // 2 % 2
    if min(sum(f.size for f, h in zip(forces, half, strict=True) if h == side) for side in (0, 1)) < basis.size:
        return None, []
    halves = [
        fit_forces(*zip(*((x, f) for x, f, h in zip(matrices, forces, half, strict=True) if h == side), strict=True))
        for side in (0, 1)
    ]
    sizes = np.array([np.mean(f**2) for f in forces])
    # Forces of frames at rest are noise.
    moving = sizes > 0.01 * np.mean(sizes[sizes <= np.quantile(sizes, 0.95)])
    cosines = [
        force_cosine(x.forces @ halves[1 - h], f.ravel())
        for x, f, h, moves in zip(matrices, forces, half, moving, strict=True)
        if moves
    ]
    if float(np.median([c for c in cosines if np.isfinite(c)] or [0.0])) < _AGREES:
        return None, []
    coefficients = fit_forces(matrices, forces)
    energy = model_energy_ratio(chosen, matrices, coefficients, halves)
    stress = model_stress_ratio(chosen, matrices, coefficients, halves)
    return ForceModel(basis, coefficients), [
        *(
            e._replace(by_model=True)
            for e in _evidence("energies from forces", energy, forces=1, positions=1, energy=-1)
        ),
        *(
            e._replace(by_model=True)
            for e in _evidence("stress from forces", stress, forces=1, positions=-2, stress=-1)
        ),
    ]


def _choose(sizes: np.ndarray, atoms: int, frames: int) -> np.ndarray:
    """Numbers of frames, two neighbours at a time as they may follow each other in time, up to a number of atoms."""
    starts = np.random.default_rng(0).permutation(np.arange(0, len(sizes), 2))
    order = np.stack([starts, starts + 1], axis=1).ravel()
    order = order[order < len(sizes)]
    count = max(2, min(frames, int(np.searchsorted(np.cumsum(sizes[order]), atoms)) + 1))
    return np.sort(order[:count])


def _evidence(words: str, ratio: Ratio | None, **powers: int) -> list[Evidence]:
    return [] if ratio is None else [Evidence(words, ratio, powers)]


def _of_set(evidence: Sequence[Evidence], sample: Sample, bond: Bond | None) -> list[Finding]:
    volumes = [abs(np.linalg.det(atoms.cell)) for atoms, _ in sample if atoms.pbc.all()]
    volume = float(np.median(volumes)) if volumes else None
    verdict = explain(evidence, volume, float(np.median([len(atoms) for atoms, _ in sample])))
    found = []
    for change in verdict.changes:
        why = [in_words(e, bond) for e in evidence if e.powers.get(change.label)]
        others = [c for c in verdict.others if c.label == change.label]
        what = say(change, others)
        elsewhere = [c for c in verdict.others if c.label != change.label]
        if len(verdict.changes) == 1 and elsewhere:
            what += f" (or {say(elsewhere[0], [])})"
        found.append(Finding(change.label, what, "; ".join(why), change.factor, (), verdict.certain))
    return found


def compare(train: Examined, of_train: FrameTable, get: Get, table: FrameTable) -> list[Finding]:
    """Labels of another set that are of another unit or sign than those of train, by what train foretells.

    Args:
        train: of :func:`examine`.
        of_train: train's table.
        get, table: of the other set.
    """
    forces = _other_forces(train.model, get, table) or compare_forces(of_train, table)
    return [*_other_energies(of_train, table), *forces]


def _other_forces(model: ForceModel | None, get: Get, table: FrameTable) -> list[Finding]:
    if model is None:
        return []
    logs, cosines = [], []
    for i in _choose(table.atoms, _FIT_ATOMS, 100):
        atoms, labels = get(int(i))
        if labels.forces is None or not np.isin(atoms.numbers, model.basis.elements).all():
            continue
        foretold, forces = model_forces(atoms, model).ravel(), labels.forces.ravel()
        cosine = force_cosine(foretold, forces)
        if np.isfinite(cosine):
            cosines.append(cosine)
            logs.append(np.log(np.linalg.norm(forces) / np.linalg.norm(foretold)))
    if len(cosines) < 2 or abs(np.median(cosines)) < _AGREES:
        return []
    cosine, middle = float(np.median(cosines)), float(np.median(logs))
    spread = 1.48 * float(np.median(np.abs(np.array(logs) - middle)))
    if cosine > 0 and abs(middle) < max(np.log(3.0), 4 * spread):
        return []
    factor = float(np.exp(middle) * np.sign(cosine))
    what = f"forces are {factor:.3g} times those that train foretells"
    evidence = f"median over {len(cosines)} frames, with which train's model goes (cosine {cosine:.2f})"
    return [Finding("forces", what, evidence, factor, (), abs(cosine) > 0.65)]


def _other_energies(train: FrameTable, other: FrameTable) -> list[Finding]:
    """Energies per atom over those of frames of the same composition in train."""
    logs, signs = [], []
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
    if len(logs) < 2:
        return []
    factor = float(np.exp(np.median(logs)) * (1 if np.mean(signs) > 0 else -1))
    if 0.25 < factor < 4:
        return []
    what = f"energies are {factor:.4g} times those of train"
    evidence = f"median over {len(logs)} frames of compositions that train holds too"
    return [Finding("energy", what, evidence, factor, (), True)]
