"""What fewer digits in matrix products cost: force errors of trained potentials, products rounded as accelerators do.

    python experiments/accelerators/precision.py       # precision.md; ten minutes on a CPU, no accelerator needed

Every product of energy and forces, those of the backward pass too, is computed in float32 of operands that were rounded
before: once to the 10 bits of a TF32's mantissa or the 7 of a bfloat16's, or split into two such numbers, of whose four
products three are summed ("3x"). Sums stay float32, as they do on tensor cores and on a TPU's matrix unit. Errors are
RMS of the difference to float64 over the RMS of the forces, of test frames of the bundled potentials.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import lax
from jax.extend import core

import leignn_jax as leignn
from leignn_jax.files import write_atomically

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
SETS = {
    "aspirin": "rmd17_aspirin",
    "ethanol": "rmd17_ethanol",
    "si": "mlearn_Si",
    "water": "water",
    "lips": "lips",
}
FRAMES = 5
BITS = {"tf32": 10, "bf16": 7}


def rounded_dot(how: str | None, a, b, **params):
    """A product of rounded operands; ``how`` is "tf32", "bf16", one of these with "3x" after it, or None."""
    dot = partial(lax.dot_general_p.bind, **params)
    if how is None:
        return dot(a, b)
    name, _, thrice = how.partition(" ")
    keep = partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=BITS[name])
    if not thrice:
        return dot(keep(a), keep(b))
    high_a, high_b = keep(a), keep(b)
    low_a, low_b = keep(a - high_a), keep(b - high_b)
    return dot(high_a, high_b) + (dot(high_a, low_b) + dot(low_a, high_b))


def rounded_products(how: str | None, primitive: str, given, transposed: bool, precision):
    """What :mod:`leignn_jax.models.products` computes, of rounded operands."""

    def dot(x, w):
        numbers = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
        settings = {"precision": None, "preferred_element_type": np.dtype("float32"), "out_sharding": None}
        return rounded_dot(how, x, w, dimension_numbers=numbers, **settings)

    if primitive == "fan_out":
        return [dot(given[0], w) for w in given[1:]]
    many = len(given) // 2
    return [sum(dot(x, w) for x, w in zip(given[:many], given[many:], strict=True))]


def evaluate(jaxpr, constants, values, chosen, path=""):
    """The outputs of a program, its products as ``chosen(name)`` says: how to round, or None."""
    known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        name = f"{path}/{equation.source_info.name_stack}"
        inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
        if equation.primitive is lax.dot_general_p:
            found = rounded_dot(chosen(name), *given, **equation.params)
        elif equation.primitive.name in ("fan_out", "fan_in"):
            found = rounded_products(chosen(name), equation.primitive.name, given, **equation.params)
        elif inner is not None and equation.primitive.name in (
            "jit",
            "pjit",
            "closed_call",
            "custom_jvp_call",
            "remat2",
        ):
            body, kept = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            found = evaluate(body, kept, given, chosen, name)
        else:
            found = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
        known.update(zip(equation.outvars, found if isinstance(found, list | tuple) else [found], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def forces_of(potential, graph, chosen):
    """Forces, every product as chosen."""

    def forces(potential, graph):
        return potential.energy_and_forces(graph)[1]

    program = jax.make_jaxpr(forces)(potential, graph)
    run = jax.jit(lambda leaves: evaluate(program.jaxpr, program.consts, leaves, chosen)[0])
    return np.asarray(run(jax.tree.leaves((potential, graph))), np.float64)


def part_of(name: str) -> str:
    """Which part of the model a product belongs to, by the names of modules that it was made in."""
    if "messages_" in name:
        return "filters of pairs" if "filters" in name else "messages of atoms"
    return "updates of atoms" if "update_" in name else "other"


PLACES = ("filters of pairs", "messages of atoms", "updates of atoms", "other")
WAYS = [
    (None, None),
    *((how, None) for how in ("tf32", "bf16", "tf32 3x", "bf16 3x")),
    *(("tf32", place) for place in PLACES),
]


def chosen_by(way: tuple[str | None, str | None], name: str) -> str | None:
    """How a product of that name is rounded where ``way`` says how and where, everywhere by None."""
    how, where = way
    return how if where in (None, part_of(name)) else None


def main() -> None:
    columns = []
    for name, folder in SETS.items():
        frames = leignn.read_frames(DATA / folder / "test.extxyz.xz", index=f":{FRAMES}")
        potential = leignn.load_potential(name)
        exact = np.concatenate([said.forces for said in potential.predict(frames, dtype="float64")])
        graph = leignn.Graph.batch([potential.to_graph(atoms) for atoms in frames])
        errors = (forces_of(potential, graph, partial(chosen_by, way)) - exact for way in WAYS)
        columns.append([float(np.sqrt((error**2).mean() / (exact**2).mean())) for error in errors])
        print(name, dict(zip(WAYS, columns[-1], strict=True)), flush=True)
    lines = [
        "# Digits of matrix products",
        "",
        f"RMS of the error of forces over that of forces, {FRAMES} test frames of each bundled potential, emulated.",
        "",
        "| rounded | where | " + " | ".join(SETS) + " |",
        "|---|---|" + "---:|" * len(SETS),
    ]
    for (how, where), *row in zip(WAYS, *columns, strict=True):
        errors = " | ".join(f"{error:.1e}" for error in row)
        lines.append(f"| {how or 'float32'} | {where or 'everywhere'} | {errors} |")
    write_atomically(HERE / "precision.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
