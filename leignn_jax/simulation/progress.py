"""What a person sees while a simulation runs: steps, ns per day, time left, temperature."""

from __future__ import annotations

from typing import Any

import numpy as np

from leignn_jax.progress import is_shown


class SimulationProgress:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, steps: int, timestep: float, visible: bool):
        self._timestep = timestep
        self._bar: Any = None
        if visible:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("simulating"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[energy]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("simulating", total=steps, rate="", energy="")

    def __enter__(self) -> SimulationProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, state: Any) -> None:
        """So many steps are done."""
        if self._bar is None:
            return
        speed = self._bar.tasks[0].speed
        rate = "" if speed is None else f"{speed:.3g} steps/s, {speed * self._timestep * 86400e-6:.3g} ns/day"
        energy = f"{float(np.mean(np.asarray(state.energy))):.6g} eV"
        self._bar.update(self._task, completed=step, rate=rate, energy=energy)


def simulation_progress(steps: int, timestep: float, show: bool | None) -> SimulationProgress:
    """A bar over ``steps`` steps of ``timestep`` fs; ``show`` None is where there is a terminal."""
    visible = is_shown(show)
    return SimulationProgress(steps, timestep, visible)
