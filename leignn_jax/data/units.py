"""Which label of a set is in which other unit: the explanation that agrees best with all evidence.

Each piece of evidence (evidence.py) is a ratio that is 1 where all labels are in eV and Å and goes with known powers of the
factors by which positions, forces, energies and stresses are too large. All explanations that change one or two labels by
known factors are tried, changing nothing among them; what disagrees is counted in squares of standard deviations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from leignn_jax.data.evidence import Ratio

LABELS = ("positions", "forces", "energy", "stress")

# How numbers in that unit compare with those in eV and Å; inverse: numbers that were converted though they needed it not.
_ENERGY = {"kcal/mol": 23.0605, "kJ/mol": 96.4853, "meV": 1e3, "hartree": 1 / 27.2114, "rydberg": 1 / 13.6057}
_FORCE = {
    "kcal/mol/Å": 23.0605,
    "kJ/mol/Å": 96.4853,
    "meV/Å": 1e3,
    "hartree/Å": 1 / 27.2114,
    "hartree/bohr": 1 / 51.4221,
    "rydberg/bohr": 1 / 25.7110,
    "eV/bohr": 0.529177,
    "kcal/mol/bohr": 12.2031,
}
_LENGTH = {"bohr": 1.889726, "nm": 0.1, "pm": 100.0}
_STRESS = {"GPa": 160.2177, "kbar": 1602.177, "bar": 1602177.0, "hartree/bohr³": 1 / 183.6315}
_TENS = (10.0, 0.1, 100.0, 0.01)
# In squares of standard deviations: what an explanation must gain to be worth a word, and to be taken for certain.
SUSPECT, CERTAIN = 8.0, 25.0
# What a model of the forces foretells may be suspicious by itself, and certain with other evidence only.
_MODEL = 20.0
_KNOWN, _TWICE, _ROUND = 3.0, 4.0, 5.0  # price of a factor: a unit, its inverse, a power of ten


class Change(NamedTuple):
    """A label's numbers are ``factor`` times too large (negative: of the wrong sign), as in ``unit``."""

    label: str
    factor: float
    unit: str


class Evidence(NamedTuple):
    """A ratio, the powers of the labels' factors in it, and what it is in words.

    by_model: it is what a model fitted to the forces foretells of another label; all such stand or fall together.
    """

    words: str
    ratio: Ratio
    powers: Mapping[str, int]
    by_model: bool = False


class Verdict(NamedTuple):
    """The best explanation.

    changes: of labels, none where nothing is wrong.
    others: changes of the same labels nearly as good.
    gain: how much better than changing nothing, in squares of standard deviations.
    left: what disagrees with it still.
    """

    changes: tuple[Change, ...]
    others: tuple[Change, ...]
    gain: float
    left: float

    @property
    def certain(self) -> bool:
        """Whether no chemistry explains the evidence without a change, and the change explains all of it."""
        return self.gain > CERTAIN and self.left < SUSPECT


def candidates(label: str, volume: float | None, atoms: float) -> list[tuple[Change, float]]:
    """Known changes of one label with their price; ``volume`` in Å^3 and ``atoms`` of a typical frame."""
    units = {"positions": _LENGTH, "forces": _FORCE, "energy": _ENERGY, "stress": _STRESS}[label]
    found = [(Change(label, f, name), _KNOWN) for name, f in units.items()]
    if label == "stress" and volume is not None:
        found.append((Change(label, volume, "eV (times the volume)"), _KNOWN))
    if label == "energy" and atoms >= 2:
        found.append((Change(label, 1 / atoms, "eV per atom"), _TWICE))
    unit = {"positions": "Å", "forces": "eV/Å", "energy": "eV", "stress": "eV/Å³"}[label]
    found += [(Change(label, 1 / f, f"{unit} taken for {name} and converted"), _TWICE) for name, f in units.items()]
    if label != "positions":
        found += [(Change(label, f, "a power of ten"), _ROUND) for f in _TENS]
        flipped = [(c._replace(factor=-c.factor, unit=f"{c.unit}, with the wrong sign"), p + _KNOWN) for c, p in found]
        found += [(Change(label, -1.0, "the wrong sign"), _KNOWN), *flipped]
    return found


def explain(evidence: Sequence[Evidence], volume: float | None, atoms: float) -> Verdict:
    """The explanation that costs least, changes of one or two labels considered.

    Args:
        evidence: ratios of one set.
        volume, atoms: Å^3 and atoms of a typical frame.
    """
    if not evidence:
        return Verdict((), (), 0.0, 0.0)
    value = np.array([np.log(abs(e.ratio.value)) for e in evidence])
    sign = np.array([e.ratio.value < 0 for e in evidence])
    # As good as the chance that so many signs agree by accident.
    wrong = np.array([min(60.0, 2 * np.log(2) * e.ratio.count) for e in evidence])
    sigma = np.array([e.ratio.sigma for e in evidence])
    by_model = np.array([e.by_model for e in evidence])
    powers = {label: np.array([e.powers.get(label, 0) for e in evidence]) for label in LABELS}

    def cost(changes: Sequence[Change]) -> float:
        shift = sum((powers[c.label] * np.log(abs(c.factor)) for c in changes), np.zeros(len(value)))
        flipped = sum(((powers[c.label] % 2) * (c.factor < 0) for c in changes), np.zeros(len(value), int)) % 2 == 1
        off = ((value - shift) / sigma) ** 2 + np.where(sign != flipped, wrong, 0.0)
        return float(off[~by_model].sum() + min(off[by_model].sum(), _MODEL))

    spoken = [label for label in LABELS if powers[label].any()]
    of = {label: candidates(label, volume, atoms) for label in spoken}
    nothing = cost(())
    tried: list[tuple[float, tuple[Change, ...]]] = [
        (cost((c,)) + price, (c,)) for label in spoken for c, price in of[label]
    ]
    if nothing - min(t[0] for t in tried) > 0.5 * SUSPECT and min(t[0] for t in tried) > SUSPECT:
        for one, other in itertools.combinations(spoken, 2):
            for (c, price), (d, second) in itertools.product(of[one], of[other]):
                tried.append((cost((c, d)) + price + second + 3.0, (c, d)))
    best, changes = min(tried, key=lambda t: t[0])
    gain = nothing - best
    if gain < SUSPECT:
        return Verdict((), (), 0.0, nothing)
    others = [c for t, cs in tried if len(cs) == 1 and cs != changes and t < best + SUSPECT for c in cs]
    return Verdict(changes, tuple(others), gain, cost(changes))
