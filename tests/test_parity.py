"""Equal to the published PyTorch code, number for number: every file of the reference folder, layer by layer too."""

import itertools

import ase
import jax
import numpy as np
import pytest

import leignn_jax as leignn
from leignn_jax.models.layers import activation
from leignn_jax.models.leignn import LEIGNN
from leignn_jax.models.radial import gaussian_basis, polynomial_envelope
from leignn_jax.neighbors import find_pairs

pytestmark = pytest.mark.usefixtures("fast_compiles")

VARIANTS = ("leignn", "vanilla_nmu", "vanilla")
CASES = ("aspirin", "water", "si2", "batch3")
TOLERANCE = {"float64": 1e-9, "float32": 5e-5}


def structures(data) -> list[ase.Atoms]:
    starts = np.cumsum([0, *data["natoms"]])
    return [
        ase.Atoms(data["z"][a:b], data["pos"][a:b], cell=data["cell"][g], pbc=data["pbc"][g])
        for g, (a, b) in enumerate(itertools.pairwise(starts))
    ]


def deviation(ours, theirs) -> float:
    """Largest difference over the largest component; where one is NaN the other must be."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    if np.isnan(theirs).all():
        return 0.0
    return float(np.nanmax(np.abs(ours - theirs)) / np.nanmax(np.abs(theirs)))


def compare(potential, cases: dict, dtype: str) -> dict[str, float]:
    """Deviations of everything the potential says of these reference cases, run as one batch."""
    graphs = {name: [potential.to_graph(a, dtype) for a in structures(data)] for name, data in cases.items()}
    graph = leignn.Graph.batch([g for parts in graphs.values() for g in parts])
    with jax.enable_x64(dtype == "float64"):
        out, strain = jax.jit(lambda p, g: (p.compute(g), p.strain_gradient(g)))(potential, graph)
    found, atoms, structure = {}, 0, 0
    for name, data in cases.items():
        a = slice(atoms, atoms := atoms + len(data["z"]))
        g = slice(structure, structure := structure + len(data["natoms"]))
        found |= {
            f"{name} energy": deviation(out.energy[g], data["energy"]),
            f"{name} atom_energy": deviation(out.atomic_energies[a], data["atom_energy"]),
            f"{name} forces_grad": deviation(out.forces[a], data["forces_grad"]),
            f"{name} forces_direct": deviation(out.direct_forces[a], data["forces_direct"]),
            f"{name} strain_grad": deviation(strain[g], data["strain_grad"]),
            f"{name} stress": deviation(out.stress[g], data["stress"]),
        }
    return found


ELEMENTS = ("H", "C", "N", "O", "Na", "Si", "Cl", "Zn")


@pytest.mark.parametrize(
    ("size", "variant"),
    [
        *(("small", variant) for variant in VARIANTS),
        *(pytest.param("medium", variant, marks=pytest.mark.slow) for variant in VARIANTS),
    ],
)
def test_network_equals_the_published_code(reference, size, variant):
    weights = reference / f"{variant}_{size}.safetensors"
    potential = leignn.import_torch_checkpoint(weights, variant=variant, cutoff=5.0, elements=ELEMENTS)
    cases = {case: np.load(reference / f"{variant}_{size}_{case}.npz") for case in CASES}
    for dtype, tolerance in TOLERANCE.items():
        found = compare(potential, cases, dtype)
        assert max(found.values()) < tolerance, (dtype, {k: v for k, v in found.items() if v >= tolerance})


@pytest.mark.parametrize("elements", [None, ("Si",)], ids=["every element", "one element"])
def test_one_structure_alone(reference, elements):
    """Other paths than a batch: no sums over a batch; element densities where all neighbours are one element."""
    weights = reference / "leignn_small.safetensors"
    potential = leignn.import_torch_checkpoint(weights, variant="leignn", cutoff=5.0, elements=elements)
    found = compare(potential, {"si2": np.load(reference / "leignn_small_si2.npz")}, "float64")
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("case", CASES)
def test_own_neighbours_are_the_published_edges(reference, case):
    data = np.load(reference / f"leignn_small_{case}.npz")
    ours, start = [], 0
    for atoms in structures(data):
        i, j, shifts, _ = find_pairs(atoms.positions, np.asarray(atoms.cell), atoms.pbc, float(data["cutoff"]))
        ours += [(b + start, a + start, *s) for a, b, s in zip(i, j, shifts.tolist(), strict=True)]
        ours += [(a + start, b + start, *(-x for x in s)) for a, b, s in zip(i, j, shifts.tolist(), strict=True)]
        start += len(atoms)
    sender, receiver = data["edge_index"]
    theirs = [(j, i, *s) for j, i, s in zip(sender, receiver, data["cell_offsets"].tolist(), strict=True)]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_by_layer(reference, variant):
    data = np.load(reference / f"{variant}_small_aspirin_layers.npz")
    case = np.load(reference / f"{variant}_small_aspirin.npz")
    potential = leignn.import_torch_checkpoint(
        reference / f"{variant}_small.safetensors", variant=variant, cutoff=5.0, elements=("H", "C", "O")
    )
    graph = potential.to_graph(structures(case)[0], "float64")
    with jax.enable_x64(True):
        _, state = LEIGNN(potential.config).apply(
            {"params": potential.params}, graph, capture_intermediates=True, mutable=["intermediates"]
        )
        got = {name: value["__call__"][0] for name, value in state["intermediates"].items() if name != "__call__"}
        for layer in range(2):
            last = layer == 1
            if variant == "leignn":
                scalars, vectors = got[f"global_to_local_{layer}"]
                # Before the first message our nodes are elements; their vectors are zero and not kept.
                x_in = scalars[np.searchsorted([1, 6, 8], case["z"])] if layer == 0 else scalars
                assert deviation(x_in, data[f"x_in_{layer}"]) < 1e-12
                if layer:
                    assert deviation(vectors, data[f"vec_in_{layer}"]) < 1e-12
            d_scalars, d_vectors, _ = got[f"messages_{layer}"]
            assert deviation((data[f"x_in_{layer}"] + d_scalars) / np.sqrt(2), data[f"x_mid_{layer}"]) < 1e-12
            assert deviation(data[f"vec_in_{layer}"] + d_vectors, data[f"vec_mid_{layer}"]) < 1e-12
            scalars, vectors, _ = got[f"update_{layer}"]
            assert deviation(scalars, data[f"x_{layer}"]) < 1e-12
            assert deviation(vectors, data[f"vec_{layer}"]) < 1e-12
            if variant == "leignn" and not last:
                scalars, vectors = got[f"local_to_global_{layer}"]
                assert deviation(scalars, data[f"vx_{layer}"]) < 1e-12
                assert deviation(vectors, data[f"vvec_{layer}"]) < 1e-12


def test_radial_functions_and_activation(reference):
    data = np.load(reference / "basis.npz")
    with jax.enable_x64(True):
        t = np.asarray(data["distance"] / data["cutoff"])
        decay = np.asarray(polynomial_envelope(t))
        assert np.abs(decay - data["envelope"]).max() < 1e-13
        for size in (16, 32, 128):
            values = decay[:, None] * np.asarray(gaussian_basis(t, size))
            assert np.abs(values - data[f"rbf_{size}"]).max() < 1e-13
        assert np.abs(np.asarray(activation(data["act_x"])) - data["act_y"]).max() < 1e-14
