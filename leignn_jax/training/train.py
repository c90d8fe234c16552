"""A training of one model: from a config to a run folder with potentials, metrics, plots and a report.

A run folder::

    config.yaml        every setting            potential.safetensors  best on validation, averaged parameters
    data.json          hashes, split, plan      last.safetensors       after the last step
    metrics.csv        one line per epoch       checkpoints/           to go on from, by orbax
    report.html        with learning_curve.png, parity_*.png; metrics.json: errors on validation and test
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from leignn_jax.potential import Potential
from leignn_jax.processes import (
    arrays_from_first,
    check_devices,
    check_same,
    connect,
    from_first,
    together,
    versions,
)
from leignn_jax.training.config import TrainConfig, dump_config
from leignn_jax.training.folder import RunFolder
from leignn_jax.training.loop import Loop
from leignn_jax.training.parallel import make_mesh
from leignn_jax.training.prepared import Prepared, files_of, named_files, prepare
from leignn_jax.training.programs import make_programs
from leignn_jax.training.protocols import MoreTerms

log = logging.getLogger("leignn_jax")


class TrainResult(NamedTuple):
    """What a training leaves.

    potential: the best on validation, averaged parameters.
    metrics: errors on "validation" and "test" in meV/atom, meV/Å, meV/Å^3.
    history: one dict per epoch.
    out: the run folder.
    finished: False where a signal or early end of time stopped it; the same command goes on.
    signal: name of the signal that asked this process to stop, None where none did.
    """

    potential: Potential
    metrics: dict[str, dict[str, float | None]]
    history: list[dict[str, Any]]
    out: Path
    finished: bool
    signal: str | None = None


def train(
    config: TrainConfig,
    *,
    resume: bool = True,
    progress: bool | None = None,
    more: Callable[[Potential], MoreTerms] | None = None,
) -> TrainResult:
    """Train a potential; the same call with the same config goes on where an earlier one stopped.

    With several processes (``jax.distributed.initialize`` or :func:`leignn_jax.processes.join_processes` before)
    every one makes this call, with the same config and data, and ``run.devices`` counts all their devices. The first one
    alone reads and writes the run folder and shows progress; all return the same result.

    Args:
        config: from :func:`leignn_jax.training.config.make_config` or ``load_config``.
        resume: go on from the run folder's last checkpoint; False refuses a folder that has one.
        progress: show a progress bar; None where there is a terminal or notebook.
        more: of the potential to start from, makes what the loss has beside frames; one process on one device only.

    Raises:
        ConfigError, DataError, ElementError, FileFormatError: see the config and the data.
        TrainingError: the loss became no number (the last good state is kept), the disk is full, the run folder
            belongs to another config or other data.
        ProcessError: processes differ, or one of them failed.
    """
    connect()
    with together():
        check_devices(config.run.devices, "run.devices", f"set run.devices={jax.device_count()}")
        prepared = prepare(config, config.run.devices, progress)
        terms = None if more is None else more(prepared.potential)
        files = files_of(config, prepared) | ({} if terms is None else terms.files())
    check_same({**versions(), "the config": dump_config(config), **named_files(files)})
    with together():
        folder = RunFolder(config, _data_of_run(prepared, files), resume)
    try:
        devices = config.run.devices
        mesh = make_mesh(1, devices) if devices > 1 else None
        programs = make_programs(config, prepared, mesh, many=False)
        loop = Loop([config], prepared, programs, folder, mesh, more=terms)
        finished = loop.go(progress if folder.mine else False)
        return _result(loop, folder, finished)
    finally:
        folder.close()


def _data_of_run(prepared: Prepared, files: dict[str, str]) -> dict[str, Any]:
    """What data.json says; ``files`` are hashes."""
    plan = prepared.train.plan
    return {
        "sha256": files,
        "validation_frames_of_train": prepared.splits.held_out,
        "plan": {
            "shapes": [s._asdict() for s in plan.shapes],
            "share": plan.share,
            "padding": plan.padding,
            "steps_per_epoch": prepared.steps_per_epoch,
        },
    }


def _result(loop: Loop, folder: RunFolder, finished: bool) -> TrainResult:
    """The best potential and, at the end, the report; the first process's in all."""
    config, prepared, standing = loop.config, loop.prepared, loop.standing
    history = standing.histories[0]
    with together():
        mine = folder.best_potential(standing.bests[0]["epoch"])
    start = prepared.potential if mine is None else mine
    metadata = from_first(start.metadata_json)
    potential = start.replace(params=arrays_from_first(start.params), metadata_json=metadata)
    if not finished:
        log.warning(
            "Stopped by a signal after epoch %d, step %d; the same command goes on.",
            standing.epoch,
            standing.next_step,
        )
        return TrainResult(potential, {}, history, folder.path, False, loop.signal)
    found: dict[str, dict[str, float | None]] = {}
    with together():
        if folder.mine:
            from leignn_jax.training.report import finish_report

            before = None if loop.more is None else prepared.potential
            more = None if loop.more is None else loop.more.report(potential, folder.path)
            found = finish_report(config, prepared.splits, potential, history, _facts(loop), before=before, more=more)
    return TrainResult(potential, from_first(found), history, folder.path, True)


def _facts(loop: Loop) -> dict[str, Any]:
    """What the report says of the run."""
    stepping, evaluation, prepared = loop.stepping, loop.programs.evaluate, loop.prepared
    scratch = stepping.memory_bytes()
    return {
        "compiles": {
            "train": [stepping.count, stepping.planned],
            "evaluate": [evaluation.count, evaluation.planned],
        },
        "scratch_mib": None if scratch is None else round(scratch / 2**20, 1),
        "waiting_fraction": round(loop.waited / loop.worked, 4) if loop.worked else None,
        "best_epoch": loop.standing.bests[0]["epoch"],
        "frames": {"train": len(prepared.train.examples), "validation": len(prepared.validation.examples)},
    }
