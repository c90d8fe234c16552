"""The loss of a batch: energy per atom, forces and stress, each weighted and measured as the user chose."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from flax import struct

from leignn_jax.data.batches import Batch
from leignn_jax.potential import Potential

Kind = Literal["l1", "l2", "huber", "norm"]
KINDS: tuple[str, ...] = get_args(Kind)


class LossKinds(NamedTuple):
    """How errors are measured (static).

    energy, stress: "l1", "l2" or "huber".
    forces: one of these per component, or "norm", the length of an atom's error vector.
    source: "gradient" for forces from the energy, "direct" for those of the direct head.
    with_stress: False leaves stress out, and with it its derivative.
    """

    energy: Kind = "huber"
    forces: Kind = "norm"
    stress: Kind = "huber"
    source: Literal["gradient", "direct"] = "gradient"
    with_stress: bool = False


@struct.dataclass
class LossWeights:
    """Weights of the three terms, arrays. All errors are divided by the potential's scale, the force RMS of the data.

    energy: of the energy error per atom.
    forces: of the force error.
    stress: of the stress error times 1 Å^3 per atom's volume, see :func:`loss`.
    huber: where the Huber loss turns from square to straight, in units of the scale.
    """

    energy: Any
    forces: Any
    stress: Any
    huber: Any


def measure(kind: str, error, delta):
    """Element-wise size of an error; "norm" takes the length of the last axis."""
    if kind == "l1":
        return jnp.abs(error)
    if kind == "l2":
        return error**2
    if kind == "norm":
        squared = (error**2).sum(-1)
        safe = jnp.where(squared > 0, squared, 1.0)
        return jnp.where(squared > 0, jnp.sqrt(safe), 0.0)
    size = jnp.abs(error)
    return jnp.where(size < delta, 0.5 * error**2 / delta, size - 0.5 * delta)


def errors(potential: Potential, batch: Batch, kinds: LossKinds):
    """Errors of energy per atom [eV], forces [eV/Å] and virial per atom [eV].

    The stress error is multiplied by the volume per atom, which makes it an energy per atom like the others and frames
    of any density alike; None where ``kinds.with_stress`` is False.
    """
    graph = batch.graph
    atoms = jnp.maximum(graph.sum_atoms(graph.atom_mask.astype(batch.energy.dtype)), 1.0)
    if kinds.source == "direct":
        energy, forces = potential.direct(graph)
        stress = None
    else:
        prediction = potential.compute(graph)
        energy, forces, stress = prediction.energy, prediction.forces, prediction.stress
    virial = None
    if kinds.with_stress and stress is not None:
        present = (batch.stress_weight > 0)[:, None, None]
        volume = jnp.abs(jnp.linalg.det(graph.cell)) / atoms
        virial = jnp.where(present, stress - batch.stress, 0.0) * volume[:, None, None]
    return (energy - batch.energy) / atoms, forces - batch.forces, virial


class Term(NamedTuple):
    """A part of the loss: the sum of weighted errors, no unit, and of the labels' weights; to be added over batches."""

    size: Any
    weight: Any


def loss_terms(potential: Potential, batch: Batch, energy, forces, virial, weights: LossWeights, kinds: LossKinds):
    """The parts of the loss, by label, of the errors that :func:`errors` gave."""
    scale = jnp.asarray(potential.scale, energy.dtype)

    def term(share, kind, error, present):
        sizes = measure(kind, error / scale, weights.huber)
        present = jnp.broadcast_to(present.reshape(present.shape + (1,) * (sizes.ndim - present.ndim)), sizes.shape)
        return Term(share * (sizes * present).sum(), present.sum())

    terms = {
        "energy": term(weights.energy, kinds.energy, energy, batch.energy_weight),
        "forces": term(weights.forces, kinds.forces, forces, batch.forces_weight),
    }
    if virial is not None:
        terms["stress"] = term(weights.stress, kinds.stress, virial, batch.stress_weight)
    return terms


def combine(terms: dict[str, Term]):
    """The loss, no unit: the mean of each part over the labels that there are, zero where there is none."""
    return sum(term.size / jnp.maximum(term.weight, 1e-12) for term in terms.values())


def loss(potential: Potential, batch: Batch, weights: LossWeights, kinds: LossKinds):
    """The loss, no unit, and sums for the metrics (see :func:`metric_sums`)."""
    found = errors(potential, batch, kinds)
    return combine(loss_terms(potential, batch, *found, weights, kinds)), metric_sums(batch, *found)


def metric_sums(batch: Batch, energy, forces, virial) -> dict[str, Any]:
    """Sums of absolute and squared errors and how many they are, to be added over batches; see :func:`metrics`."""

    def sums(error, weights):
        there = (weights > 0).reshape(weights.shape + (1,) * (error.ndim - weights.ndim))
        error = jnp.where(there, error, 0.0)
        count = jnp.broadcast_to(there, error.shape).sum()
        return {"abs": jnp.abs(error).sum(), "sq": (error**2).sum(), "count": count.astype(error.dtype)}

    out = {"energy": sums(energy, batch.energy_weight), "forces": sums(forces, batch.forces_weight)}
    if virial is not None:
        atoms = batch.graph.sum_atoms(batch.graph.atom_mask.astype(energy.dtype))
        volume = jnp.abs(jnp.linalg.det(batch.graph.cell)) / jnp.maximum(atoms, 1.0)
        stress = virial / jnp.where(volume > 0, volume, 1.0)[:, None, None]
        out["stress"] = sums(stress, batch.stress_weight)
    return out


# Name of each metric, from (label, kind): factor from eV to meV.
METRICS = {
    "energy_mae_mev_per_atom": ("energy", "abs"),
    "energy_rmse_mev_per_atom": ("energy", "sq"),
    "forces_mae_mev_per_angstrom": ("forces", "abs"),
    "forces_rmse_mev_per_angstrom": ("forces", "sq"),
    "stress_mae_mev_per_angstrom3": ("stress", "abs"),
    "stress_rmse_mev_per_angstrom3": ("stress", "sq"),
}


def metrics(sums: dict[str, Any]) -> dict[str, float | None]:
    """MAE and RMSE in meV/atom, meV/Å and meV/Å^3 from sums on the host; None where there are no such labels."""
    out: dict[str, float | None] = {}
    for name, (label, kind) in METRICS.items():
        part = sums.get(label)
        if part is None or float(part["count"]) == 0:
            out[name] = None
            continue
        mean = float(part[kind]) / float(part["count"])
        out[name] = 1e3 * (mean if kind == "abs" else mean**0.5)
    return out
