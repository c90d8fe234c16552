"""Kill a process that writes a simulation's files, again and again, and look at what it left.

Run as ``python kills.py FOLDER TRIALS SEED``; prints what was seen as JSON, or fails. Every trial is a fork of this
process, which has imported everything and started no thread, that goes on from the last state and dies by SIGKILL.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import ase
import h5py  # noqa: F401, here and not in every fork
import numpy as np
import safetensors.numpy  # noqa: F401

from leignn_jax.simulation.state import load_state, save_state
from leignn_jax.simulation.thermo import ThermoLog, read_thermo
from leignn_jax.simulation.trajectory import TrajectoryWriter, read_trajectory

ATOMS = ase.Atoms("Cu40", positions=np.arange(120.0).reshape(40, 3), cell=[9, 10, 11], pbc=True)
LIKE = {"positions": np.zeros((40, 3)), "step": np.int64(0)}


def truth(step):
    """Positions that tell their step."""
    return np.asarray(step, float)[..., None, None] * 1e-3 + np.arange(120.0).reshape(40, 3)


def last_step(state: Path) -> int:
    """Where the simulation goes on."""
    try:
        return int(load_state(state, LIKE)[0]["step"])
    except FileNotFoundError:
        return 0


def simulate(folder: Path, report, rng: random.Random) -> None:
    """An engine's loop, until somebody kills it: frames, rows, flush, state, report."""
    state = folder / "state.safetensors"
    step = last_step(state)
    while True:
        log = ThermoLog(folder / "thermo.csv", resume_step=step)
        part_bytes = rng.choice([3_000, 30_000, 1 << 26])
        writer = TrajectoryWriter(folder / "trajectory.h5", ATOMS, resume_step=step, part_bytes=part_bytes)
        for _ in range(rng.randrange(1, 6)):
            steps = np.arange(step + 1, step + 1 + rng.randrange(1, 6))
            step = int(steps[-1])
            writer.append(steps, steps * 0.5, truth(steps), forces=truth(steps), energy=-1.0 * steps)
            log.append({"step": steps, "time": steps * 0.5, "temperature": steps / 7})
            if rng.random() < 0.5:
                writer.flush()
                os.write(report, f"frames {step}\n".encode())
            if rng.random() < 0.3:
                writer.flush()
                save_state(state, {"positions": truth(step), "step": np.int64(step)}, {"step": step})
                os.write(report, f"state {step}\n".encode())
        writer.close()
        os.write(report, f"frames {step}\n".encode())
        # Started again in the same process: the frames after the last state are cut.
        step = last_step(state)
        os.write(report, f"cut {step}\n".encode())


def check(folder: Path, seen: dict[str, int]) -> dict[str, int]:
    """Everything that was reported is there and right."""
    found = {"frames": 0, "state": 0}
    if (folder / "trajectory.h5").exists():
        frames = read_trajectory(folder / "trajectory.h5")
        found["frames"] = len(frames)
        np.testing.assert_array_equal(frames.step, np.arange(1, len(frames) + 1))
        np.testing.assert_array_equal(frames.time, frames.step * 0.5)
        np.testing.assert_array_equal(frames.positions, truth(frames.step))
        np.testing.assert_allclose(frames.forces, truth(frames.step), rtol=3e-7)
        np.testing.assert_array_equal(frames.energy, -frames.step)
    if (folder / "thermo.csv").exists():
        rows = read_thermo(folder / "thermo.csv")
        if rows:
            np.testing.assert_array_equal(rows["step"], np.arange(1, len(rows["step"]) + 1))
            np.testing.assert_array_equal(rows["temperature_K"], rows["step"] / 7)
            assert len(rows["step"]) >= seen["state"]
    if (folder / "state.safetensors").exists() or (folder / "state.previous.safetensors").exists():
        tree, meta = load_state(folder / "state.safetensors", LIKE)
        found["state"] = int(tree["step"])
        assert meta == {"step": found["state"]}
        np.testing.assert_array_equal(tree["positions"], truth(found["state"]))
    assert found["frames"] >= seen["frames"], (found, seen)
    assert found["state"] >= seen["state"], (found, seen)
    assert found["frames"] >= found["state"], found
    return found


def main(folder: Path, trials: int, seed: int) -> None:
    rng = random.Random(seed)
    most, parts, leftovers, merges = 0, 0, 0, 0
    found = {"frames": 0, "state": 0}
    for trial in range(trials):
        read, write = os.pipe()
        worker = os.fork()
        if worker == 0:
            if trial % 3:
                # The kernel keeps what a killed process wrote; without the waits more happens before the kill.
                os.fsync = lambda _: None
            try:
                simulate(folder, write, random.Random(seed + trial))
            except BaseException as error:
                os.write(write, f"error {error!r}\n".encode())
            os._exit(1)
        os.close(write)
        with os.fdopen(read) as file:
            # After some reports, so that there is progress on a slow machine as well, and a moment.
            lines = [file.readline() for _ in range(rng.randrange(0, 6))]
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            lines = [line.split(" ", 1) for line in (*lines, *file)]
        # What went on from the last state may have cut the frames after it.
        seen = {"frames": found["state"], "state": found["state"]}
        for word, value in lines:
            assert word != "error", value
            merges += word == "cut"
            if word == "cut":
                seen["frames"] = int(value)
            else:
                seen[word] = int(value)
        leftovers += any(p.name.startswith(".") for p in folder.iterdir())
        found = check(folder, seen)
        most = max(most, found["frames"])
        parts += (folder / "trajectory.parts").exists()
    seen = {"most_frames": most, "killed_in_parts": parts, "killed_in_writes": leftovers, "merges": merges}
    print(json.dumps({"trials": trials, **seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
