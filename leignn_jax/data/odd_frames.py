"""Single frames whose labels are not like those of the others: another unit, a wrong sign, rows mixed up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ase
import numpy as np

from leignn_jax.data.evidence import Sample, Shell, shell
from leignn_jax.data.findings import Finding
from leignn_jax.data.labels import Labels
from leignn_jax.data.pair_model import ForceModel, model_forces
from leignn_jax.data.table import FrameTable
from leignn_jax.data.units import candidates

Get = Callable[[int], tuple[ase.Atoms, Labels]]

_LOOK_ATOMS = 64_000


def force_cosine(model: np.ndarray, forces: np.ndarray) -> float:
    """Between two ``[3 atoms]``; NaN where either vanishes or symmetry leaves so little freedom that it means nothing."""
    sizes = np.linalg.norm(model.reshape(-1, 3), axis=1)
    length = np.linalg.norm(model) * np.linalg.norm(forces)
    if length < 1e-12 or len(np.unique(np.round(sizes / sizes.max(), 2))) < 4:
        return float("nan")
    return float(model @ forces / length)


def net_forces(sample: Sample, numbers: np.ndarray) -> list[Finding]:
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


def asymmetric(sample: Sample, numbers: np.ndarray) -> list[Finding]:
    """Stresses that are not symmetric, as no torque is on a crystal at rest; beyond what rounding explains."""
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


def odd_forces(
    get: Get,
    table: FrameTable,
    shells: Sequence[Shell],
    model: ForceModel,
) -> list[Finding]:
    """Frames whose forces go with the model's but are of another size or sign."""
    # Nearer than nearly all others, atoms may well repel each other as no model of the others foretells.
    shortest = [float(one.reduced.min()) for one in shells if len(one.reduced)]
    nearest = 0.95 * float(np.quantile(shortest, 0.02)) if shortest else 0.0
    rms = np.sqrt(table.forces_square / (3 * table.atoms))
    there = np.flatnonzero((rms > 0) & (table.atoms > 2))
    if len(there) < 8:
        return []
    # The strangest first, the rest by chance, up to what a few seconds allow.
    strange = np.abs(np.log(rms[there] / np.median(rms[there])))
    order = np.random.default_rng(0).permutation(len(there))
    order = np.concatenate([np.argsort(-strange)[:50], order])
    order = there[order[np.sort(np.unique(order, return_index=True)[1])]]
    order = order[np.cumsum(table.atoms[order]) <= max(_LOOK_ATOMS, table.atoms[order[0]])]
    rows = []
    for i in order:
        atoms, labels = get(int(i))
        if labels.forces is None or not np.isin(atoms.numbers, model.basis.elements).all():
            continue
        foretold, forces = model_forces(atoms, model).ravel(), labels.forces.ravel()
        rows.append(
            (
                int(i),
                force_cosine(foretold, forces),
                np.linalg.norm(forces) / max(np.linalg.norm(foretold), 1e-12),
                np.sqrt(np.mean(foretold**2)),
                len(atoms),
            )
        )
    number, cosine, ratio, size, count = np.array(rows).reshape(-1, 5).T
    # Where the model foretells next to nothing, by symmetry or at rest, it says nothing.
    # Beyond the distances that it was fitted to, it may foretell anything.
    usual = np.sqrt(np.mean(size[size <= np.quantile(size, 0.95)] ** 2)) if len(size) else 0.0
    kept = np.isfinite(cosine) & (size > 0.3 * usual)
    number, cosine, ratio, count = (x[kept] for x in (number, cosine, ratio, count))
    if len(number) < 8:
        return []
    # As high as in nearly all frames, and more than chance gives in that few dimensions.
    low = np.maximum(max(0.65, 0.9 * float(np.quantile(np.abs(cosine), 0.05))), 3.9 / np.sqrt(3 * count - 3))
    low = np.minimum(low, 0.95)
    middle = float(np.median(np.log(ratio)))
    spread = 1.48 * float(np.median(np.abs(np.log(ratio) - middle)))
    off = np.log(ratio) - middle
    # Small forces that go against the model are those of a frame near rest, of which the model knows too little.
    resting = (off < 0) & (cosine < 0)
    other_size = ~resting & (np.abs(cosine) > low) & (np.abs(off) > max(np.log(7.0), 8 * spread))
    flipped = (cosine < -low) & (np.abs(off) < np.log(2.0))
    found = []
    for rows_of, sign in ((other_size, None), (flipped, -1.0)):
        if not rows_of.any() or rows_of.mean() > 0.3:
            continue
        frames = tuple(map(int, np.sort(number[rows_of])))
        factor = float(np.exp(np.median(off[rows_of])) * np.sign(np.median(cosine[rows_of])))
        if sign is None and 1 < factor < 12:
            frames = tuple(i for i in frames if shell(get(i)[0]).reduced.min(initial=np.inf) > nearest)
        if not frames:
            continue
        certain = bool(np.median(cosine) > 0.85 and np.quantile(np.abs(cosine), 0.1) > 0.6)
        alike = f"they are those of a model of the other frames' forces (cosine {np.median(cosine[rows_of]):.2f})"
        if sign is None:
            size_of = f"{factor:.3g} times too large" if abs(factor) > 1 else f"{1 / factor:.3g} times too small"
            found.append(Finding("forces", f"forces are {size_of}", f"but for that {alike}", factor, frames, certain))
        else:
            found.append(Finding("forces", "forces have the wrong sign", alike, sign, frames, certain))
    return found


def odd_energies(table: FrameTable) -> list[Finding]:
    """Frames whose energy is a multiple of that of other frames of the same composition."""
    per_atom = table.energy / table.atoms
    reduced = table.counts // np.maximum(np.gcd.reduce(table.counts, axis=1, keepdims=True), 1)
    kind = np.unique(reduced, axis=0, return_inverse=True)[1].reshape(-1)[table.kind]
    # An atom alone is of the same composition as its crystal, and has another energy.
    there = np.flatnonzero(np.isfinite(per_atom) & (table.atoms > 1))
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
        factor, certain = float(np.median(ratio[far])), abs(middle) > 30 * spread
        times = f"{factor:.4g} times that of the others" if factor > 0 else f"of the other sign ({factor:.4g} times)"
        evidence = f"{per_atom[mine][far][0]:.6g} eV per atom, the median of frames of this composition is {middle:.6g}"
        frames = tuple(sorted(int(i) for i in mine[far]))
        found.append(Finding("energy", f"the energy is {times}", evidence, factor, frames, certain))
    return found


def odd_positions(shells: Sequence[Shell], numbers: np.ndarray) -> list[Finding]:
    """Frames all of whose distances are those of the others in bohr."""
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
