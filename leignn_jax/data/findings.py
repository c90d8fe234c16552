"""Findings: what is wrong with the labels of a set, in words and numbers for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from leignn_jax.data.evidence import Bond
from leignn_jax.data.units import Change, Evidence


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


def say(change: Change, others: Sequence[Change]) -> str:
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


def in_words(evidence: Evidence, bond: Bond | None) -> str:
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
