r"""Targets beside the frames of a training: their losses, gradients, and what of them a checkpoint must hold.

With y the numbers that a potential gives and m those that were measured with uncertainty s, a target adds

    weight * mean(((y - m) / s)^2)

to the loss of every ``period``-th update. y is an average over a sample by its weights (Thaler and Zavadlav 2021), drawn
anew when too few of its frames still count; a trajectory's, differentiated through time; or a minimum's. Targets of one
structure that are simulated or relaxed alike are of one group, which does it once for all, by one program.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.data.readers import read_frames
from leignn_jax.differentiable.gradients import value_and_grad
from leignn_jax.differentiable.minima import relaxed
from leignn_jax.differentiable.reweighting import Sample, reweighted, sample
from leignn_jax.differentiable.rollout import start
from leignn_jax.errors import ConfigError, SimulationError, TrainingError
from leignn_jax.fitting.config import Sampling
from leignn_jax.fitting.observables import Goal, at_minimum, check_target, goal_of, of_states, of_trajectory
from leignn_jax.fitting.report import targets_report
from leignn_jax.list_sizes import ListSizes, grown
from leignn_jax.potential import Potential
from leignn_jax.simulation.dynamics import State, make_lists
from leignn_jax.simulation.settings import make_ensemble
from leignn_jax.training.dataset import hash_path

log = logging.getLogger("leignn_jax")

_GROWTHS = 20
_WALK = ("positions", "images", "velocities", "cell")
_FACTS = ("energy", "kT", "pressure", "made")


class Seen(NamedTuple):
    """What a potential gives for a target: the loss without its weight, ``values`` [points] and their standard errors
    (zeros where there is no statistics), and the fraction of frames that count."""

    loss: Any
    values: Any
    errors: Any
    effective: Any


def _loss(goals: Sequence[Goal], values: Sequence[Any], weights) -> tuple[Any, list[Any]]:
    """The weighted loss, and each target's: the mean squared deviation in units of the uncertainty."""
    each = [jnp.mean(((v - goal.values) / goal.uncertainties) ** 2) for v, goal in zip(values, goals, strict=True)]
    return sum(weights[i] * one for i, one in enumerate(each)), each


class Walk:
    """A simulation that goes on from where it was, with whatever potential there is now.

    memory: a pytree of arrays: where it stands and what its bath remembers, how many runs it has done, the number of the
    first, sizes of its lists.
    """

    def __init__(self, sampling: Sampling, potential: Potential, atoms: ase.Atoms):
        s = self.sampling = sampling
        self.ensemble = make_ensemble(s.ensemble, s.temperature, s.pressure)
        self.system, self.begin = start(
            potential, [atoms] * s.replicas, self.ensemble, temperature=s.temperature, seed=s.seed
        )
        self.memory = self.at_start(0)

    def at_start(self, first: int) -> dict[str, Any]:
        """A memory of nothing but the structure; noise is of runs from number ``first`` on."""
        memory = {name: getattr(self.begin, name) for name in _WALK}
        return memory | {
            "bath": self.begin.bath,
            "done": jnp.int32(0),
            "first": jnp.int32(first),
            "sizes": _as_array(self.begin.neighbors.sizes),
        }

    @property
    def done(self) -> int:
        return int(self.memory["done"])

    def state(self, frame: dict[str, Any]) -> State:
        """A state with these positions and lists of them, with the noise of the next run."""
        old = self.begin.neighbors
        where = (self.system.numbers, frame["positions"], frame["cell"], self.system.pbc)
        reach = (float(np.max(old.cutoff)), float(np.max(old.skin)), self.begin.positions.dtype)
        neighbors = make_lists(*where, *reach, _as_sizes(self.memory["sizes"]))
        number = self.memory["first"] + self.memory["done"]
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(self.begin.key)
        there = {name: jnp.asarray(frame[name]) for name in _WALK}
        return self.begin.replace(**there, bath=self.memory["bath"], key=keys, neighbors=neighbors)

    def next(self) -> State:
        """The state that the next run begins with."""
        return self.state(self.memory)

    def go_on(self, frame: dict[str, Any]) -> None:
        """Stand at the end of one more run; ``frame`` has what the bath remembers too."""
        self.memory = {**self.memory, **jax.tree.map(jnp.asarray, {name: frame[name] for name in (*_WALK, "bath")})}
        self.memory["done"] += 1

    def enlarge(self, overflow: int) -> None:
        """Larger lists, after one was too small."""
        sizes = grown(_as_sizes(self.memory["sizes"]), overflow, self.system.numbers.shape[1])
        self.memory = {**self.memory, "sizes": _as_array(sizes)}


class Reweighting:
    """Averages over a sample, by weights for the potential that there is now."""

    def __init__(self, targets: Sequence[Any], potential: Potential, atoms: ase.Atoms, goals: Sequence[Goal]):
        self.targets, self.goals = targets, goals
        s, walk = targets[0].sampling, Walk(targets[0].sampling, potential, atoms)
        self.sampling, self.walk = s, walk
        if not bool((walk.ensemble.kT(walk.begin, s.timestep) > 0).all()):
            raise ConfigError(
                f"{targets[0].name}: an average needs an ensemble with a temperature, such as nvt or npt."
            )
        self.frames = self._no_frames()
        observers = [of_states(target, potential.cutoff) for target in targets]

        def loss(params, potential, sample, weights):
            model = potential.replace(params=params)
            out = reweighted(model, sample, lambda system, state: [look(system, state) for look in observers])
            total, each = _loss(goals, out.value, weights)
            effective = out.effective / sample.energy.size
            seen = [Seen(*of, effective) for of in zip(each, out.value, out.error, strict=True)]
            return total, seen

        self._slope = jax.jit(jax.grad(loss, has_aux=True))

    def memory(self) -> Any:
        return {"walk": self.walk.memory, "frames": self.frames}

    def recall(self, memory: Any) -> None:
        memory = jax.tree.map(jnp.asarray, memory)
        self.walk.memory, self.frames = memory["walk"], memory["frames"]

    def at_start(self, first: int) -> Any:
        return {"walk": self.walk.at_start(first), "frames": self._no_frames()}

    def slope(self, potential: Potential, weights) -> tuple[Any, list[Seen]]:
        """The gradient of the weighted loss by the parameters, and what is seen; draws a sample where there is none, or
        too few of its frames count."""
        if self.walk.done == 0:
            for _ in range(self.sampling.warm_up + 1):
                self._draw(potential)
        slope, seen = self._slope(potential.params, potential, self._sample(), weights)
        effective = float(seen[0].effective)
        if not effective >= self.sampling.effective:
            log.info("%s: %.0f %% of the frames count; drawing new ones.", self.targets[0].name, 100 * effective)
            self._draw(potential)
            slope, seen = self._slope(potential.params, potential, self._sample(), weights)
        return slope, seen

    def renew(self, potential: Potential) -> None:
        """A sample that no gradient has seen: one that was trained on flatters the potential."""
        if self.walk.done:
            self._draw(potential)

    def _no_frames(self) -> dict[str, Any]:
        s, begin = self.sampling, self.walk.begin
        frames = (s.steps - s.discard) // s.every
        kept: dict[str, Any] = {name: getattr(begin, name) for name in _WALK}
        kept |= dict.fromkeys(_FACTS, begin.energy)
        return {name: jnp.zeros((frames, *x.shape), x.dtype) for name, x in kept.items()}

    def _sample(self) -> Sample:
        # Lists of the first frame: the same from a checkpoint and from a draw.
        state = self.walk.state({name: self.frames[name][0] for name in _WALK}).replace(bath=())
        moves = self.walk.ensemble.moves_cell
        return Sample(**self.frames, system=self.walk.system, state=state, model=None, moves_cell=moves)

    def _draw(self, potential: Potential) -> None:
        s, walk = self.sampling, self.walk
        run = (walk.ensemble, walk.system, walk.next(), s.timestep, s.steps)
        try:
            drawn = sample(potential, *run, every=s.every, discard=s.discard)
        except SimulationError as error:
            raise TrainingError(
                f"{self.targets[0].name}: {error} The potential may have lost its way: lower the target's weight or "
                "optimizer.learning_rate."
            ) from error
        self.frames = {name: getattr(drawn, name) for name in self.frames}
        walk.memory = {**walk.memory, "sizes": _as_array(drawn.state.neighbors.sizes)}
        walk.go_on({**{name: self.frames[name][-1] for name in _WALK}, "bath": drawn.bath})


class Trajectory:
    """What a trajectory shows, with gradients through its steps; each goes on where the one before ended."""

    def __init__(self, targets: Sequence[Any], potential: Potential, atoms: ase.Atoms, goals: Sequence[Goal]):
        self.targets, self.goals = targets, goals
        s, walk = targets[0].sampling, Walk(targets[0].sampling, potential, atoms)
        self.sampling, self.walk = s, walk

        def loss(params, run, potential, state, weights):
            looks = [of_trajectory(target, potential.cutoff, state) for target in targets]
            model, walked = potential.replace(params=params), (walk.ensemble, walk.system, state, s.timestep, s.steps)

            def observe(system, state):
                return [look(system, state) for look, _ in looks]

            out = run(model, *walked, observe=observe, every=s.every, decay=s.decay, clip=s.clip)
            given = [reduce(walk.system, x) for (_, reduce), x in zip(looks, out.seen, strict=True)]
            values = [x.mean(0) for x in given]
            total, each = _loss(goals, values, weights)
            seen = [
                Seen(one, mean, x.std(0, ddof=1) / np.sqrt(s.replicas) if s.replicas > 1 else 0 * mean, jnp.ones(()))
                for one, mean, x in zip(each, values, given, strict=True)
            ]
            frame = {name: getattr(out.state, name) for name in (*_WALK, "bath")}
            return total, (seen, frame, out.state.neighbors.overflow)

        def slope(potential, state, weights):
            of = value_and_grad(lambda params, run: loss(params, run, potential, state, weights), s.mode, has_aux=True)
            (_, facts), gradient = of(potential.params)
            return gradient, facts

        self._slope = jax.jit(slope)

    def memory(self) -> Any:
        return {"walk": self.walk.memory}

    def recall(self, memory: Any) -> None:
        self.walk.memory = jax.tree.map(jnp.asarray, memory)["walk"]

    def at_start(self, first: int) -> Any:
        return {"walk": self.walk.at_start(first)}

    def slope(self, potential: Potential, weights) -> tuple[Any, list[Seen]]:
        """The gradient of the weighted loss by the parameters, and what is seen."""
        while self.walk.done < self.sampling.warm_up:
            self._go(potential, weights)
        return self._go(potential, weights)

    def renew(self, potential: Potential) -> None:
        """Nothing: each trajectory is a new one."""

    def _go(self, potential: Potential, weights):
        for _ in range(_GROWTHS):
            slope, (seen, frame, overflow) = self._slope(potential, self.walk.next(), weights)
            overflow = int(np.bitwise_or.reduce(np.asarray(overflow)))
            if not overflow:
                self.walk.go_on(frame)
                return slope, seen
            self.walk.enlarge(overflow)
        raise TrainingError(f"{self.targets[0].name}: neighbour lists grew {_GROWTHS} times: the system collapses.")


class Minimum:
    """Properties of the relaxed structure; in float64."""

    def __init__(self, targets: Sequence[Any], potential: Potential, atoms: ase.Atoms, goals: Sequence[Goal]):
        self.targets, self.goals, self.atoms = targets, goals, atoms

        def loss(params, potential, weights):
            values = at_minimum(targets, potential.replace(params=params), atoms)
            total, each = _loss(goals, values, weights)
            return total, [Seen(one, value, 0 * value, jnp.ones(())) for one, value in zip(each, values, strict=True)]

        self._slope = jax.jit(jax.grad(loss, has_aux=True))

    def memory(self) -> Any:
        """Nothing: each relaxation starts from the file."""
        return {}

    def recall(self, memory: Any) -> None:
        pass

    def at_start(self, first: int) -> Any:
        return {}

    def renew(self, potential: Potential) -> None:
        """Nothing: a minimum has no sample."""

    def slope(self, potential: Potential, weights) -> tuple[Any, list[Seen]]:
        """The gradient of the weighted loss by the parameters, and what is seen."""
        one = self.targets[0]
        with jax.enable_x64(True):
            fine = jax.tree.map(_in_float64, potential)
            slope, seen = jax.device_get(self._slope(fine.params, fine, np.asarray(weights, float)))
            if not all(np.isfinite(x.loss) for x in seen):
                # Compiled, it can't say why.
                relaxed(fine, self.atoms, cell=one.cell, pressure=one.pressure)
        return jax.tree.map(lambda g, p: np.asarray(g, p.dtype), slope, potential.params), seen


_ESTIMATORS: dict[str, Callable[..., Reweighting | Trajectory | Minimum]] = {
    "reweighting": Reweighting,
    "trajectory": Trajectory,
    "minimum": Minimum,
}
# The number of the first run of simulations that judge, beyond those of any training.
_JUDGING = 1 << 30


class Targets:
    """All targets of a fit, as the training loop asks for them.

    Raises:
        ConfigError: a structure can't have what is asked of it. FileFormatError: a curve's file does not fit.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
    """

    def __init__(self, targets: Sequence[Any], potential: Potential):
        self.targets, self.potential = targets, potential
        network, _ = potential.split_references()
        together: dict[Any, list[Any]] = {}
        for target in targets:
            alike = target.sampling if target.estimator != "minimum" else (target.cell, target.pressure)
            together.setdefault((target.structure, target.estimator, alike), []).append(target)
        self.groups = []
        for (path, estimator, _), group in together.items():
            atoms = read_frames(path, index="-1:")[0]
            for target in group:
                check_target(target, atoms)
            self.groups.append(_ESTIMATORS[estimator](group, network, atoms, [goal_of(target) for target in group]))

    def files(self) -> dict[str, str]:
        """sha256 of each target's structure and curve."""
        paths = {}
        for target in self.targets:
            paths[f"{target.name} structure"] = target.structure
            if (curve := getattr(target, "file", None)) is not None:
                paths[f"{target.name} curve"] = curve
        return {name: hash_path(path) for name, path in paths.items()}

    def pull(self, potential: Potential, step: int) -> Any:
        """The gradient of what targets add to the loss of update ``step``, a tree like the parameters."""
        total = jax.tree.map(jnp.zeros_like, potential.params)
        for group in self.groups:
            weights = np.array([0.0 if step % one.period else one.weight for one in group.targets], np.float32)
            if weights.any():
                slope, seen = group.slope(potential, weights)
                _check(group.targets, seen)
                total = jax.tree.map(jnp.add, total, slope)
        return total

    def row(self, potential: Potential) -> dict[str, float]:
        """What an epoch's line says of them, by samples drawn for it, with which the training goes on: the loss of all,
        each one's deviation in uncertainties, and numbers."""
        row: dict[str, float] = {"targets_loss": 0.0}
        for target, goal, seen in self._seen(potential, renewed=True):
            name = f"target_{target.name}"
            row["targets_loss"] += target.weight * float(seen.loss)
            row[f"{name}_deviation"] = float(seen.loss) ** 0.5
            if goal.x is None:
                row[name] = float(seen.values[0])
            if target.estimator == "reweighting":
                row[f"{name}_effective"] = float(seen.effective)
        return row

    def memory(self) -> Any:
        """What a checkpoint holds of them, arrays."""
        return [group.memory() for group in self.groups]

    def recall(self, memory: Any) -> None:
        """Go on from a checkpoint."""
        for group, part in zip(self.groups, memory, strict=True):
            group.recall(part)

    def report(self, potential: Potential, out: Path) -> tuple[list[str], dict[str, Any]]:
        """What the potentials before and after give, in simulations of their own that no training has seen."""
        log.info("Simulating each target with the potential before and after.")
        memory = self.memory()
        before, after = self._judged(self.potential), self._judged(potential)
        self.recall(memory)
        return targets_report(before, after, out)

    def _judged(self, potential: Potential) -> list[tuple[Any, Goal, Seen]]:
        self.recall([group.at_start(_JUDGING) for group in self.groups])
        return self._seen(potential.split_references()[0])

    def _seen(self, potential: Potential, renewed: bool = False) -> list[tuple[Any, Goal, Seen]]:
        potential = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), potential)
        found = []
        for group in self.groups:
            if renewed:
                group.renew(potential)
            _, seen = group.slope(potential, np.zeros(len(group.targets), np.float32))
            _check(group.targets, seen)
            found += zip(group.targets, group.goals, jax.device_get(seen), strict=True)
        return found


def _check(targets: Sequence[Any], seen: Sequence[Seen]) -> None:
    for target, one in zip(targets, seen, strict=True):
        if not np.isfinite(float(one.loss)):
            raise TrainingError(
                f"{target.name}: what the potential gives for it is no finite number: the simulation broke a limit. Lower "
                "the target's weight, its timestep or optimizer.learning_rate."
            )


def _as_array(sizes: ListSizes):
    return jnp.asarray([*sizes.bins, *sizes.reach, sizes.bin_atoms, sizes.neighbors, sizes.pairs], jnp.int32)


def _as_sizes(array) -> ListSizes:
    n = [int(x) for x in np.asarray(array)]
    return ListSizes((n[0], n[1], n[2]), (n[3], n[4], n[5]), bin_atoms=n[6], neighbors=n[7], pairs=n[8])


def _in_float64(x):
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
