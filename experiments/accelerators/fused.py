"""Would a sum over neighbours that makes its filters itself pay? One written in Pallas, beside what XLA makes of both.

    python experiments/accelerators/fused.py      # fused.md; a minute

A filter is a product of the radial functions of a pair, [pairs, R], with a matrix [R, F]. The program keeps it, [pairs, F],
from the forward sum to the backward one. The kernels here make it anew for every neighbour of every atom, for the sum and
its transpose, and give the gradient of radial functions without an array of pairs and features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import compiled

HERE = Path(__file__).resolve().parent


def build():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    from leignn_jax.pair_ops import pair_sum

    def call(kernel, rows, shape, arrays, target):
        settings = {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=1)} if target == "h100" else {}
        out = jax.ShapeDtypeStruct(shape, jnp.float32)
        return pl.pallas_call(kernel, grid=(rows,), out_shape=out, interpret=target is None, **settings)(*arrays)

    def sum_kernel(radial, matrix, features, neighbors, pairs, signs, out):
        atom = pl.program_id(0)
        filters = pl.dot(radial[pairs[atom, :], :], matrix[...], precision="highest")
        filters *= jnp.abs(signs[atom, :]).astype(jnp.float32)[:, None]
        others = neighbors[atom, :]
        for q in range(features.shape[1]):
            out[atom, q, :] = jnp.sum(filters * features[others, q, :], 0)

    def radial_kernel(matrix, left, right, receivers, senders, out, *, block):
        rows = pl.ds(pl.program_id(0) * block, block)
        a, b = receivers[rows], senders[rows]
        products = sum(left[a, q, :] * right[b, q, :] + left[b, q, :] * right[a, q, :] for q in range(left.shape[1]))
        out[rows, :] = pl.dot(products, matrix[...].T, precision="highest")

    def padded(graph, radial, matrix):
        """Triton wants powers of two: neighbours, radial functions, and pairs in blocks of 32."""
        lists = graph.lists
        wide = 1 << (lists.neighbors.shape[1] - 1).bit_length()
        tables = [
            jnp.pad(x, ((0, 0), (0, wide - x.shape[1])))
            for x in (lists.neighbors, lists.neighbor_pairs, lists.neighbor_signs.astype(jnp.int32))
        ]
        more = (1 << (radial.shape[1] - 1).bit_length()) - radial.shape[1]
        pairs = -radial.shape[0] % 32
        ends = [jnp.pad(x, (0, pairs)) for x in (lists.receivers, lists.senders)]
        return tables, ends, jnp.pad(radial, ((0, pairs), (0, more))), jnp.pad(matrix, ((0, more), (0, 0)))

    def fused(graph, radial, matrix, features, cotangent, target):
        """The sum, and its gradients by radial functions and features; interpreted where no target is named."""
        tables, ends, wide, tall = padded(graph, radial, matrix)
        atoms, shape = features.shape[0], features.shape
        out = call(sum_kernel, atoms, shape, (wide, tall, features, *tables), target)
        back = call(sum_kernel, atoms, shape, (wide, tall, cotangent, *tables), target)
        by_radial = call(
            partial(radial_kernel, block=32), len(wide) // 32, wide.shape, (tall, cotangent, features, *ends), target
        )
        return out, by_radial[: radial.shape[0], : radial.shape[1]], back

    def separate(graph, radial, matrix, features, cotangent):
        def total(radial, features):
            return pair_sum(graph.lists, jnp.dot(radial, matrix, precision="highest"), features)

        out, transpose = jax.vjp(total, radial, features)
        return out, *transpose(cotangent)

    def arguments(graph, width, columns):
        random = np.random.default_rng(0)
        pairs, atoms = graph.lists.receivers.shape[0], graph.lists.neighbors.shape[0]
        shapes = (pairs, 17), (17, width), (atoms, columns, width), (atoms, columns, width)
        return graph, *(random.normal(size=shape).astype(np.float32) for shape in shapes)

    return fused, separate, arguments


def main() -> None:
    compiled.prepare()
    import jax
    import numpy as np
    from programs import structure

    import leignn_jax as leignn

    fused, separate, arguments = build()
    lines = ["# Filters made inside the sums", ""]

    given = arguments(leignn.Graph.from_ase(structure(138), 5.0), 32, 3)
    errors = [
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(fused(*given, target=None), jax.jit(separate)(*given), strict=True)
    ]
    lines += [
        f"Interpreted on a CPU, 138 atoms, against XLA's, largest error over largest value: {max(errors):.1e}.",
        "",
    ]
    lines += ["One sum of vectors, its gradients by features and radial functions, 128 features, H100:", ""]
    lines += ["| atoms | form | kernels | MB moved | MB temporaries | GFLOP | ms of bytes | ms of products |"]
    lines += ["|---:|---|---:|---:|---:|---:|---:|---:|"]
    rate = compiled.DEVICES["h100"].rates["highest"]
    for atoms in (138, 1_206, 13_824):
        given = arguments(leignn.Graph.from_ase(structure(atoms), 5.0), 128, 3)
        graph = given[0]
        entries = 2 * graph.lists.neighbors.size + graph.lists.receivers.size
        for name, form in (("separate", separate), ("fused", partial(fused, target="h100"))):
            row = compiled.summary(compiled.compile_for("h100", form, *given), "h100")
            # Products inside Pallas are not in the program's text: R = 17, twice per entry of the table and once per pair.
            flop = 2e-9 * 17 * 128 * entries if name == "fused" else row["GFLOP"]
            lines.append(
                f"| {atoms:,} | {name} | {row['kernels']} | {row['MB moved']:.1f} | {row['MB temporaries']:.1f} | "
                f"{flop:.2f} | {row['ms of bytes']:.4f} | {1e12 * flop / rate:.4f} |"
            )
    try:
        compiled.compile_for("v5e", partial(fused, target="v5e"), *given)
        lines += ["", "It compiles for a TPU v5e."]
    except Exception as error:  # what the compiler says is the result
        lines += ["", f"For a TPU v5e: {type(error).__name__}: {str(error).splitlines()[0][:200]}"]
    (HERE / "fused.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
