"""Time energy and forces of one model on one structure, and print one JSON line.

Neighbour lists and inputs are made before the clock starts. Each process times one
model only, so peak memory and compilation belong to that model.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import ase
import numpy as np
from ase.neighborlist import neighbor_list
from structures import STRUCTURES

CUTOFF = 5.0  # Angstrom
MATRIX_SIZE = 2048

# Our models: preset name and the settings that differ from it.
OURS = {
    "leignn-published": ("published", {}),
    "leignn-large": ("large", {"variant": "leignn", "cutoff": CUTOFF}),
    "leignn-medium": ("medium", {"variant": "leignn", "cutoff": CUTOFF}),
    "leignn-small": ("small", {"variant": "leignn", "cutoff": CUTOFF}),
    "tensor-medium": ("medium", {"variant": "tensor", "cutoff": CUTOFF}),
    "tensor-small": ("small", {"variant": "tensor", "cutoff": CUTOFF}),
    "leignn-128x3": (
        "medium",
        {"variant": "leignn", "features": 128, "layers": 3, "num_radial": 20, "cutoff": CUTOFF},
    ),
}


@dataclass
class Case:
    """A model that is ready to be called on a structure."""

    call: Callable[[], tuple]  # returns energy and forces once they are computed
    edges: int
    cutoff: float
    device: str
    sizes: dict = field(default_factory=dict)  # features, radial, layers (our models)
    note: str = ""


def load_schnetpack() -> None:
    """Import schnetpack, also next to a torch that lacks one name it asks for.

    Recent torch made the type variable `T_co` private. schnetpack uses it in
    annotations only, so putting it back changes nothing that is timed.
    """
    import torch.utils.data.dataloader as dataloader

    if not hasattr(dataloader, "T_co"):
        dataloader.T_co = TypeVar("T_co", covariant=True)
    import schnetpack.model  # noqa: F401


def load_mlip() -> None:
    """Import mlip and start the jax backend."""
    import jax
    import mlip.models  # noqa: F401

    jax.devices()


def load_ours() -> None:
    """Import our library and start the jax backend."""
    import jax

    import leignn_jax  # noqa: F401

    jax.devices()


def build_painn(atoms: ase.Atoms) -> Case:
    """PaiNN of schnetpack, random parameters, forces by its own autograd module."""
    import torch
    from schnetpack import properties
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    features, radial, layers = 128, 20, 3
    model = NeuralNetworkPotential(
        representation=PaiNN(
            n_atom_basis=features,
            n_interactions=layers,
            radial_basis=GaussianRBF(n_rbf=radial, cutoff=CUTOFF),
            cutoff_fn=CosineCutoff(CUTOFF),
        ),
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=features, output_key="energy"), Forces()],
    ).eval()

    centres, neighbours, shifts = neighbor_list("ijS", atoms, CUTOFF)
    offsets = shifts @ atoms.cell.array
    inputs = {
        properties.Z: torch.from_numpy(atoms.numbers),
        properties.R: torch.tensor(atoms.positions, dtype=torch.float32),
        properties.idx_i: torch.from_numpy(centres),
        properties.idx_j: torch.from_numpy(neighbours),
        properties.offsets: torch.tensor(offsets, dtype=torch.float32),
        properties.idx_m: torch.zeros(len(atoms), dtype=torch.int64),
        properties.n_atoms: torch.tensor([len(atoms)]),
    }

    def call():
        outputs = model(dict(inputs))  # the model adds its own entries to the dict
        return outputs["energy"].detach().numpy(), outputs["forces"].numpy()

    return Case(
        call,
        len(centres),
        CUTOFF,
        "cpu",
        note=f"{features} features, {layers} interactions, {radial} Gaussians, eager",
    )


def build_mlip(atoms: ase.Atoms, network_name: str) -> Case:
    """A network of the package mlip at its default config, random parameters."""
    import jax
    import mlip.models
    from mlip.data import ChemicalSystem, DatasetInfo
    from mlip.graph import Graph

    distances = neighbor_list("d", atoms, CUTOFF)
    network_class = getattr(mlip.models, network_name)
    info = DatasetInfo(
        atomic_energies_map={int(number): 0.0 for number in set(atoms.numbers)},
        graph_cutoff_angstrom=CUTOFF,
        avg_num_neighbors=len(distances) / len(atoms),
        avg_r_min_angstrom=float(distances.min()),
    )
    force_field = mlip.models.ForceField.from_mlip_network(network_class(network_class.Config(), info), seed=0)
    graph = Graph.from_chemical_system(ChemicalSystem.from_ase_atoms(atoms), CUTOFF)
    edges = len(graph.senders)
    graph = jax.device_put(graph)
    evaluate = jax.jit(force_field)

    def call():
        prediction = evaluate(graph)
        return jax.block_until_ready((prediction.energy, prediction.forces))

    return Case(call, edges, CUTOFF, jax.devices()[0].platform, note="default config")


def build_ours(atoms: ase.Atoms, model: str) -> Case:
    """One of our presets, random parameters."""
    import jax

    import leignn_jax as leignn

    preset, overrides = OURS[model]
    elements = tuple(sorted(set(atoms.symbols)))
    config = leignn.preset(preset, elements=elements, **overrides)
    potential = leignn.Potential.create(config, jax.random.key(0))
    graph = leignn.Graph.from_ase(atoms, config.cutoff)
    evaluate = jax.jit(lambda p, g: p.energy_and_forces(g))

    return Case(
        lambda: jax.block_until_ready(evaluate(potential, graph)),
        len(neighbor_list("i", atoms, config.cutoff)),
        config.cutoff,
        jax.devices()[0].platform,
        # Of what the published formula counts.
        sizes={}
        if config.tensor_features
        else {"features": config.features, "radial": config.num_radial, "layers": config.layers},
    )


@dataclass(frozen=True)
class Model:
    """How to import and build a model, and how to get it."""

    load: Callable[[], None]
    build: Callable[[ase.Atoms], Case]
    packages: tuple[str, ...]  # distributions whose versions are recorded
    install: str


def mlip_model(network_name: str) -> Model:
    return Model(
        load_mlip,
        lambda atoms: build_mlip(atoms, network_name),
        ("mlip", "jax", "jaxlib"),
        "pip install mlip",
    )


def our_model(name: str) -> Model:
    return Model(
        load_ours,
        lambda atoms: build_ours(atoms, name),
        ("leignn-jax", "jax", "jaxlib"),
        "pip install -e .",
    )


MODELS = {
    "painn": Model(
        load_schnetpack,
        build_painn,
        ("schnetpack", "torch"),
        "pip install torch==2.13.0 schnetpack",
    ),
    "visnet": mlip_model("Visnet"),
    "mace": mlip_model("Mace"),
    "nequip": mlip_model("Nequip"),
    **{name: our_model(name) for name in OURS},
}


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def clock(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def busy_seconds() -> float | None:
    """CPU seconds used by the other processes since the machine started (Linux)."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return None
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def repeat(call: Callable[[], object], repeats: int, seconds: float) -> dict:
    """Time at least `repeats` calls, and more until `seconds` have passed.

    `others_cpu_share` is the part of the CPUs that other processes took meanwhile: on
    a shared machine it tells which times not to trust. The system counts CPU time in
    steps of about 10 ms, so it stays unknown (None) below half a second.
    """
    times = []
    before = busy_seconds()
    while len(times) < repeats or sum(times) < seconds:
        times.append(clock(call))
    share = None
    if before is not None and sum(times) > 0.5:
        share = max(0.0, busy_seconds() - before) / (sum(times) * os.cpu_count())
    return {
        "median_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * min(times),
        "max_ms": 1e3 * max(times),
        "calls": len(times),
        "others_cpu_share": share,
    }


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of the distributions that can be found."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def check_forces(forces: np.ndarray, atoms: ase.Atoms) -> None:
    """Stop if the forces cannot be those of this structure."""
    if forces.shape != (len(atoms), 3) or forces.dtype != np.float32:
        raise ValueError(f"forces are {forces.dtype} of shape {forces.shape}")
    if not np.isfinite(forces).all() or not forces.any():
        raise ValueError("forces are not finite, or all zero")
    if np.abs(forces.sum(axis=0)).max() > 1e-3 * np.abs(forces).sum():
        raise ValueError("forces do not add up to zero")


def time_model(name: str, structure: str, repeats: int, seconds: float) -> dict:
    """Measure one model on one structure."""
    model = MODELS[name]
    row = {"model": name, "structure": structure}
    try:
        model.load()
    except ModuleNotFoundError as error:
        status = f"not installed ({model.install})"
        return row | {"status": status, "missing": error.name}

    atoms = STRUCTURES[structure]()
    baseline = peak_rss_mib()
    case = model.build(atoms)
    first_call = clock(case.call)
    energy, forces = map(np.asarray, case.call())
    check_forces(forces, atoms)
    times = repeat(case.call, repeats, seconds)
    return (
        row
        | times
        | {
            "status": "ok",
            "atoms": len(atoms),
            "edges": case.edges,
            "cutoff_angstrom": case.cutoff,
            "first_call_s": first_call,
            "peak_rss_mib": peak_rss_mib(),
            "baseline_rss_mib": baseline,
            "energy": float(energy.sum()),
            "device": case.device,
            "dtype": str(forces.dtype),
            "sizes": case.sizes,
            "note": case.note,
            "versions": installed_versions(model.packages),
        }
    )


def time_matmul(repeats: int, seconds: float) -> dict:
    """Measure the machine's float32 matrix-product rate with numpy and with jax."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, MATRIX_SIZE, MATRIX_SIZE)).astype(np.float32)
    calls = {"numpy": lambda: left @ right}
    try:
        import jax
    except ModuleNotFoundError:
        pass
    else:
        left_jax, right_jax = jax.device_put((left, right))
        product = jax.jit(lambda a, b: a @ b)
        calls["jax"] = lambda: jax.block_until_ready(product(left_jax, right_jax))

    rates, shares = {}, {}
    for library, call in calls.items():
        call()
        times = repeat(call, repeats, seconds)
        rates[library] = 2 * MATRIX_SIZE**3 / (1e-3 * times["median_ms"])
        shares[library] = times["others_cpu_share"]
    best = max(rates, key=rates.get)
    return {
        "model": "matmul",
        "structure": f"{MATRIX_SIZE}^3 product",
        "status": "ok",
        "dtype": "float32",
        "flop_per_s": rates,
        "best_flop_per_s": rates[best],
        "others_cpu_share": shares[best],
        "versions": installed_versions(tuple(calls)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, choices=["matmul", *MODELS])
    parser.add_argument("--structure", choices=list(STRUCTURES), default="water")
    parser.add_argument("--repeats", type=int, default=5, help="fewest timed calls")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed time")
    options = parser.parse_args()
    try:
        if options.model == "matmul":
            row = time_matmul(options.repeats, options.seconds)
        else:
            row = time_model(options.model, options.structure, options.repeats, options.seconds)
    except Exception as error:
        traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        row = {
            "model": options.model,
            "structure": options.structure,
            "status": f"failed: {type(error).__name__}: {reason}",
        }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
