"""Training speed against PaiNN of schnetpack on the same batches of the same frames.

    python experiments/training_speed/run.py               # both, three rounds; writes results.json and results.md

All models have 128 features, 3 layers, 20 radial functions and a 5 Å cutoff, and take the forces as minus the gradient of
the energy; a step is loss, gradient and update in float32, AdamW's or, of the default with tensors, Muon's, its default.
Ours run as `leignn train` does, batches being built and padded by the loop's own thread while the clock runs. PaiNN gets
its batches ready-made, which favours it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
CUTOFF, FEATURES, LAYERS, RADIAL = 5.0, 128, 3, 20
# name: (file, frames per batch)
CASES = {"ethanol": ("rmd17_ethanol/train.extxyz.xz", 10), "aspirin": ("rmd17_aspirin/train.extxyz.xz", 5)}
CASES["water"] = ("water/train.extxyz.xz", 1)
# Ours: variant and algorithm.
OURS = {"leignn": ("leignn", "adam"), "tensor": ("tensor", "muon")}
MODELS = [*OURS, "painn"]


def frames_and_order(case: str, steps: int):
    """The first frames of the file and the batches of every step, the same for both models."""
    from leignn_jax.data import read_frames
    from leignn_jax.data.batches import epoch_order

    name, size = CASES[case]
    frames = read_frames(DATA / name)[: max(40, 4 * size)]
    order, epoch = [], 0
    while len(order) < steps:
        order += list(epoch_order(len(frames), size, 0, epoch))
        epoch += 1
    return frames, order[:steps]


def time_ours(name: str, case: str, warm: int, steps: int) -> dict:
    """The loop's own step and batches; the wait for batches is measured as the loop measures it."""
    import jax

    import leignn_jax as leignn
    from leignn_jax.data.batches import collate, epoch_order, prefetch
    from leignn_jax.training.config import make_config
    from leignn_jax.training.dataset import load_frames, references_for, training_set
    from leignn_jax.training.programs import CountedCompiles
    from leignn_jax.training.step import start_state, train_step

    frames, order = frames_and_order(case, warm + steps)
    size = CASES[case][1]
    variant, algorithm = OURS[name]
    config = make_config({"data": {"batch_size": size}, "optimizer": {"algorithm": algorithm}})
    labelled = load_frames(DATA / CASES[case][0], config.data, CUTOFF).take(range(len(frames)))
    references = references_for(labelled, config.data)
    model = leignn.preset(
        "medium",
        variant=variant,
        elements=tuple(references),
        features=FEATURES,
        layers=LAYERS,
        num_radial=RADIAL,
        cutoff=CUTOFF,
    )
    potential = leignn.Potential.create(model, jax.random.key(0), reference_energies=references)
    per_epoch = len(epoch_order(len(frames), size, 0, 0))
    examples = training_set(labelled, CUTOFF, references, config.data, (warm + steps) // per_epoch + 1)
    state = start_state(potential, config.hyperparameters(per_epoch), config.optimizer.algorithm)
    advance = partial(train_step, kinds=config.loss.kinds(stressed=False), algorithm=config.optimizer.algorithm)
    step = CountedCompiles(advance, len(examples.plan.shapes), "The train step", donate=(0,))

    def batches():
        for indices in order:
            yield jax.device_put(
                collate([examples.examples[i] for i in indices], examples.shape_of(indices)),
            )

    for shape in examples.plan.shapes:  # every shape compiled before the clock starts
        ready = collate([examples.examples[i] for i in order[0]], shape)
        state, _ = step(state, jax.device_put(ready))
    stream = prefetch(batches())
    for _ in range(warm):
        state, _ = step(state, next(stream))
    jax.block_until_ready(state)
    waited, inflight = 0.0, []
    started = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        state, out = step(state, batch)
        inflight.append(out["loss"])
        if len(inflight) > 2:
            jax.device_get(inflight.pop(0))
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "waited": waited, "padding": examples.plan.padding, "loss": float(inflight[-1])}


def time_painn(case: str, warm: int, steps: int) -> dict:
    """schnetpack's PaiNN, its forces by its own module with the graph kept for training; AdamW of torch."""
    import numpy as np
    import torch
    import torch.utils.data.dataloader as dataloader
    from ase.neighborlist import neighbor_list

    if not hasattr(dataloader, "T_co"):  # schnetpack asks for a name that newer torch made private
        from typing import TypeVar

        dataloader.T_co = TypeVar("T_co", covariant=True)
    from schnetpack import properties
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN

    frames, order = frames_and_order(case, warm + steps)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    model = NeuralNetworkPotential(
        representation=PaiNN(
            n_atom_basis=FEATURES,
            n_interactions=LAYERS,
            radial_basis=GaussianRBF(n_rbf=RADIAL, cutoff=CUTOFF),
            cutoff_fn=CosineCutoff(CUTOFF),
        ),
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(n_in=FEATURES, output_key="energy"), Forces()],
    ).train()
    lists = [neighbor_list("ijS", a, CUTOFF) for a in frames]
    mean = np.mean([a.get_potential_energy() / len(a) for a in frames])

    def collate(indices):
        starts = np.cumsum([0, *(len(frames[i]) for i in indices)])
        chosen = list(zip(indices, starts[:-1], strict=True))

        def tensor(parts, dtype):
            return torch.tensor(np.concatenate(parts), dtype=dtype)

        energies = [frames[i].get_potential_energy() - mean * len(frames[i]) for i in indices]
        return {
            properties.Z: tensor([frames[i].numbers for i in indices], torch.int64),
            properties.R: tensor([frames[i].positions for i in indices], torch.float32),
            properties.idx_i: tensor([lists[i][0] + s for i, s in chosen], torch.int64),
            properties.idx_j: tensor([lists[i][1] + s for i, s in chosen], torch.int64),
            properties.offsets: tensor([lists[i][2] @ frames[i].cell.array for i in indices], torch.float32),
            properties.idx_m: tensor([np.full(len(frames[i]), k) for k, i in enumerate(indices)], torch.int64),
            properties.n_atoms: torch.tensor([len(frames[i]) for i in indices]),
            "labels": (
                torch.tensor(energies, dtype=torch.float32),
                tensor([frames[i].get_forces() for i in indices], torch.float32),
            ),
        }

    ready = [collate(indices) for indices in order]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

    def step(batch):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        energy, forces = batch["labels"]
        optimizer.zero_grad()
        out = model(inputs)
        loss = torch.nn.functional.l1_loss(out["energy"], energy) + (out["forces"] - forces).norm(dim=-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        return float(loss.detach())

    for batch in ready[:warm]:
        step(batch)
    started = time.perf_counter()
    for batch in ready[warm:]:
        loss = step(batch)
    return {"seconds": time.perf_counter() - started, "waited": 0.0, "padding": 0.0, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    if options.worker:
        model, case = options.worker
        work = partial(time_ours, model) if model in OURS else time_painn
        print(json.dumps(work(case, options.warm, options.steps)))
        return

    rows = []
    for round_number in range(options.rounds):
        for case in CASES:
            for model in MODELS:
                command = [sys.executable, __file__, "--worker", model, case]
                command += ["--warm", str(options.warm), "--steps", str(options.steps)]
                environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                row = {"round": round_number, "case": case, "model": model, **json.loads(done.stdout.splitlines()[-1])}
                row["step_ms"] = 1e3 * row["seconds"] / options.steps
                rows.append(row)
                print(f"round {round_number} {case} {model}: {row['step_ms']:.1f} ms a step", flush=True)
    results = {
        "rows": rows,
        "steps": options.steps,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "load_average_at_end": os.getloadavg(),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(table(results))


def table(results: dict) -> str:
    """Medians over the rounds; the ratio is the median of the rounds' ratios."""
    lines = [
        "# Training speed",
        "",
        f"{results['steps']} steps a round after warm-up and compilation, {1 + results['rows'][-1]['round']} rounds taking "
        f"turns, each in a process of its own, {results['device']}, float32. Medians.",
        "",
        "| batch | model | step (ms) | samples/s | waiting for data | PaiNN over ours |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case, (_, size) in CASES.items():
        of = {m: [r for r in results["rows"] if r["case"] == case and r["model"] == m] for m in MODELS}
        for model in MODELS:
            pairs = zip(of["painn"], of[model], strict=True)
            ratios = [theirs["step_ms"] / own["step_ms"] for theirs, own in pairs]
            step = statistics.median(r["step_ms"] for r in of[model])
            wait = statistics.median(r["waited"] / r["seconds"] for r in of[model])
            waiting = f"{100 * wait:.1f} %" if model in OURS else "ready-made"
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if model in OURS else ""
            lines.append(f"| {size} {case} | {model} | {step:.1f} | {1e3 * size / step:.1f} | {waiting} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
