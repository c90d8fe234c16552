r"""Targets beside the frames of a training: their losses, gradients, and what of them a checkpoint must hold.

With y the numbers that a potential gives and m those that were measured with uncertainty s, a target adds

    weight * mean(((y - m) / s)^2)

to the loss of every ``period``-th update. y is an average over a sample by its weights (Thaler and Zavadlav 2021), drawn
anew when too few of its frames still count; a trajectory's, differentiated through time; or a minimum's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from leignn_jax.data.readers import read_frames
from leignn_jax.device_neighbors import ListSizes, grown
from leignn_jax.differentiable.gradients import value_and_grad
from leignn_jax.differentiable.minima import relaxed
from leignn_jax.differentiable.reweighting import Sample, reweighted, sample
from leignn_jax.differentiable.rollout import rollout, start
from leignn_jax.errors import ConfigError, SimulationError, TrainingError
from leignn_jax.fitting.observables import Goal, at_minimum, check_target, goal_of, of_states, of_trajectory
from leignn_jax.fitting.report import targets_report
from leignn_jax.potential import Potential
from leignn_jax.simulation.dynamics import make_lists
from leignn_jax.simulation.settings import make_ensemble

log = logging.getLogger("leignn_jax")

_GROWTHS = 20
_WALK = ("positions", "images", "velocities", "cell")


class Seen(NamedTuple):
    """What a potential gives for a target: the loss without its weight, ``values`` [points] and their standard errors
    (zeros where there is no statistics), and the fraction of frames that count."""

    loss: Any
    values: Any
    errors: Any
    effective: Any


def deviation(goal: Goal, values) -> Any:
    """Mean squared deviation in units of the uncertainty."""
    return jnp.mean(((values - goal.values) / goal.uncertainties) ** 2)


class Walk:
    """A simulation that goes on from where it was, with whatever potential there is now.

    memory: a pytree of arrays: where it stands, how many runs it has done, sizes of its lists.
    """

    def __init__(self, target: Any, potential: Potential, atoms: ase.Atoms):
        s = target.sampling
        self.sampling = s
        self.ensemble = make_ensemble(s.ensemble, s.temperature, s.pressure)
        self.system, self.begin = start(
            potential, [atoms] * s.replicas, self.ensemble, temperature=s.temperature, seed=s.seed
        )
        self.memory = {name: getattr(self.begin, name) for name in _WALK}
        self.memory |= {"done": jnp.int32(0), "sizes": _as_array(self.begin.neighbors.sizes)}

    def state(self, frame: dict[str, Any], number: int):
        """A state with these positions and lists of them, whose noise is that of run ``number``."""
        old = self.begin.neighbors
        skin = float(np.max(old.skin))
        cutoff = float(np.max(old.cutoff))
        neighbors = make_lists(
            self.system.numbers,
            frame["positions"],
            frame["cell"],
            self.system.pbc,
            cutoff,
            skin,
            self.begin.positions.dtype,
            _as_sizes(self.memory["sizes"]),
        )
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(self.begin.key)
        return self.begin.replace(**{name: jnp.asarray(frame[name]) for name in _WALK}, key=keys, neighbors=neighbors)

    def go_on(self, frame: dict[str, Any]) -> None:
        """Stand at the end of one more run."""
        self.memory = {**self.memory, **{name: jnp.asarray(frame[name]) for name in _WALK}}
        self.memory["done"] += 1

    def enlarge(self, overflow: int) -> None:
        """Larger lists, after one was too small."""
        sizes = grown(_as_sizes(self.memory["sizes"]), overflow, self.system.numbers.shape[1])
        self.memory["sizes"] = _as_array(sizes)


class Reweighting:
    """A target whose numbers are averages over a sample, by weights for the potential that there is now."""

    def __init__(self, target: Any, potential: Potential, atoms: ase.Atoms, goal: Goal):
        self.target, self.walk, self.goal = target, Walk(target, potential, atoms), goal
        if not bool((self.walk.ensemble.kT(self.walk.begin, target.sampling.timestep) > 0).all()):
            raise ConfigError(f"{target.name}: an average needs an ensemble with a temperature, such as nvt or npt.")
        s, begin = target.sampling, self.walk.begin
        frames = (s.steps - s.discard) // s.every
        shape = (frames, s.replicas)
        self.frames = {
            name: jnp.zeros((frames, *getattr(begin, name).shape), getattr(begin, name).dtype) for name in _WALK
        }
        self.frames |= {name: jnp.zeros(shape, begin.positions.dtype) for name in ("energy", "kT", "pressure", "made")}
        observe = of_states(target, potential.cutoff)

        def found(potential, params, sample):
            out = reweighted(potential.replace(params=params), sample, observe)
            return deviation(goal, out.value), (out.value, out.error, out.effective)

        self._found = jax.jit(lambda potential, sample: (found(potential, potential.params, sample), None))
        self._slope = jax.jit(
            lambda potential, sample: jax.value_and_grad(found, 1, has_aux=True)(potential, potential.params, sample)
        )

    def memory(self) -> Any:
        return {"walk": self.walk.memory, "frames": self.frames}

    def recall(self, memory: Any) -> None:
        memory = jax.tree.map(jnp.asarray, memory)
        self.walk.memory, self.frames = memory["walk"], memory["frames"]

    def seen(self, potential: Potential) -> Seen:
        """What the potential gives; draws a sample where there is none or too few of its frames count."""
        return self._counted(self._found, potential)[0]

    def slope(self, potential: Potential) -> tuple[Seen, Any]:
        """And the gradient of the loss by the parameters."""
        return self._counted(self._slope, potential)

    def _counted(self, function, potential: Potential):
        if int(self.walk.memory["done"]) == 0:
            for _ in range(self.target.sampling.warm_up + 1):
                self._draw(potential)
        out = self._use(function, potential)
        effective = float(out[0].effective)
        if not effective >= self.target.sampling.effective:
            log.info("%s: %.0f %% of the frames count; drawing new ones.", self.target.name, 100 * effective)
            self._draw(potential)
            out = self._use(function, potential)
        return out

    def _use(self, function, potential: Potential):
        frames = self.frames
        state = self.walk.state({name: frames[name][0] for name in _WALK}, 0).replace(bath=())
        moves = self.walk.ensemble.moves_cell
        made = Sample(**frames, system=self.walk.system, state=state, model=None, moves_cell=moves)
        (loss, (values, errors, effective)), slope = function(potential, made)
        return Seen(loss, values, errors, effective / frames["energy"].size), slope

    def _draw(self, potential: Potential) -> None:
        s, walk = self.target.sampling, self.walk
        state = walk.state(walk.memory, int(walk.memory["done"]))
        try:
            drawn = sample(
                potential, walk.ensemble, walk.system, state, s.timestep, s.steps, every=s.every, discard=s.discard
            )
        except SimulationError as error:
            raise TrainingError(
                f"{self.target.name}: {error} The potential may have lost its way: lower the target's weight or "
                "optimizer.learning_rate."
            ) from error
        self.frames = {name: getattr(drawn, name) for name in self.frames}
        walk.memory["sizes"] = _as_array(drawn.state.neighbors.sizes)
        walk.go_on({name: self.frames[name][-1] for name in _WALK})


class Trajectory:
    """A target whose numbers are a trajectory's, with gradients through its steps."""

    def __init__(self, target: Any, potential: Potential, atoms: ase.Atoms, goal: Goal):
        self.target, self.walk, self.goal = target, Walk(target, potential, atoms), goal
        s, reach = target.sampling, potential.cutoff
        walk = self.walk

        def loss(potential, params, run, state):
            observe, reduce = of_trajectory(target, reach, state)
            model, taming = potential.replace(params=params), {"decay": s.decay, "clip": s.clip}
            out = run(
                model, walk.ensemble, walk.system, state, s.timestep, s.steps, observe=observe, every=s.every, **taming
            )
            each = reduce(walk.system, out.seen)
            spread = each.std(0, ddof=1) / np.sqrt(s.replicas) if s.replicas > 1 else jnp.zeros_like(each[0])
            frame = {name: getattr(out.state, name) for name in _WALK}
            seen = Seen(deviation(goal, each.mean(0)), each.mean(0), spread, jnp.ones(()))
            return seen.loss, (seen, frame, out.state.neighbors.overflow)

        def slope(potential, state):
            of = value_and_grad(lambda params, run: loss(potential, params, run, state), s.mode, has_aux=True)
            (_, facts), gradient = of(potential.params)
            return facts, gradient

        self._found = jax.jit(lambda potential, state: (loss(potential, potential.params, rollout, state)[1], None))
        self._slope = jax.jit(slope)

    def memory(self) -> Any:
        return {"walk": self.walk.memory}

    def recall(self, memory: Any) -> None:
        self.walk.memory = jax.tree.map(jnp.asarray, memory)["walk"]

    def seen(self, potential: Potential) -> Seen:
        """Of a trajectory that starts where the next one will, which does not move on."""
        return self._run(self._found, potential)[0]

    def slope(self, potential: Potential) -> tuple[Seen, Any]:
        """And the gradient of the loss by the parameters; the next trajectory goes on where this one ends."""
        seen, gradient, frame = self._run(self._slope, potential)
        self.walk.go_on(frame)
        return seen, gradient

    def _run(self, function, potential: Potential):
        if int(self.walk.memory["done"]) == 0:
            for _ in range(self.target.sampling.warm_up):
                self.walk.go_on(self._once(self._found, potential)[2])
        return self._once(function, potential)

    def _once(self, function, potential: Potential):
        walk = self.walk
        for _ in range(_GROWTHS):
            state = walk.state(walk.memory, int(walk.memory["done"]))
            (seen, frame, overflow), gradient = function(potential, state)
            overflow = int(np.bitwise_or.reduce(np.asarray(overflow)))
            if not overflow:
                return seen, gradient, frame
            walk.enlarge(overflow)
        raise TrainingError(f"{self.target.name}: neighbour lists grew {_GROWTHS} times: the system collapses.")


class Minimum:
    """A target that is a property of the relaxed structure; in float64."""

    def __init__(self, target: Any, potential: Potential, atoms: ase.Atoms, goal: Goal):
        self.target, self.atoms, self.goal = target, atoms, goal

        def found(potential, params):
            values = at_minimum(target, potential.replace(params=params), atoms)
            return deviation(goal, values), values

        self._found = jax.jit(lambda potential: (found(potential, potential.params), None))
        self._slope = jax.jit(lambda potential: jax.value_and_grad(found, 1, has_aux=True)(potential, potential.params))

    def memory(self) -> Any:
        return {}

    def recall(self, memory: Any) -> None:
        """Nothing is remembered: each relaxation starts from the file."""

    def seen(self, potential: Potential) -> Seen:
        """What the potential gives."""
        return self._relaxed(self._found, potential)[0]

    def slope(self, potential: Potential) -> tuple[Seen, Any]:
        """And the gradient of the loss by the parameters."""
        seen, gradient = self._relaxed(self._slope, potential)
        return seen, jax.tree.map(lambda g, p: np.asarray(g, p.dtype), gradient, potential.params)

    def _relaxed(self, function, potential: Potential):
        with jax.enable_x64(True):
            potential = jax.tree.map(_in_float64, potential)
            (loss, values), gradient = jax.device_get(function(potential))
            if not np.isfinite(values).all():
                # Compiled, it can't say why.
                relaxed(potential, self.atoms, cell=self.target.cell, pressure=self.target.pressure)
        return Seen(loss, values, np.zeros_like(values), 1.0), gradient


_ESTIMATORS = {"reweighting": Reweighting, "trajectory": Trajectory, "minimum": Minimum}


class Targets:
    """All targets of a fit, as the training loop asks for them.

    Raises:
        ConfigError: a structure can't have what is asked of it. FileFormatError: a curve's file does not fit.
        ElementError, StructureError: as :meth:`leignn_jax.Potential.predict`.
    """

    def __init__(self, targets: Sequence[Any], potential: Potential):
        self.potential, self.targets = potential, list(targets)
        network, _ = potential.split_references()
        self.each = [self._made(target, network) for target in targets]

    def _made(self, target: Any, potential: Potential):
        atoms = read_frames(target.structure, index="-1:")[0]
        check_target(target, atoms)
        return _ESTIMATORS[target.estimator](target, potential, atoms, goal_of(target))

    def pull(self, potential: Potential, step: int) -> Any:
        """The gradient of what targets add to the loss of update ``step``, a tree like the parameters."""
        total = jax.tree.map(jnp.zeros_like, potential.params)
        for one in self.each:
            if step % one.target.period:
                continue
            seen, gradient = one.slope(potential)
            self._check(one.target, seen)
            total = jax.tree.map(lambda t, g, w=one.target.weight: t + w * g, total, gradient)
        return total

    def row(self, potential: Potential) -> dict[str, float]:
        """What an epoch's line says of them: the loss of all, each one's deviation in uncertainties, and numbers."""
        row: dict[str, float] = {"targets_loss": 0.0}
        for one in self.each:
            seen, name = one.seen(potential), one.target.name
            self._check(one.target, seen)
            row["targets_loss"] += one.target.weight * float(seen.loss)
            row[f"target_{name}_deviation"] = float(seen.loss) ** 0.5
            if one.goal.x is None:
                row[f"target_{name}"] = float(seen.values[0])
            if one.target.estimator == "reweighting":
                row[f"target_{name}_effective"] = float(seen.effective)
        return row

    def memory(self) -> Any:
        """What a checkpoint holds of them, arrays."""
        return [one.memory() for one in self.each]

    def recall(self, memory: Any) -> None:
        """Go on from a checkpoint."""
        for one, part in zip(self.each, memory, strict=True):
            one.recall(part)

    def report(self, potential: Potential, out: Path) -> tuple[list[str], dict[str, Any]]:
        """What the potentials before and after give, in simulations of their own that no training has seen."""
        log.info("Simulating each target with the potential before and after.")
        judged = [self._judged(one) for one in (self.potential, potential)]
        return targets_report([target.name for target in self.targets], *judged, out)

    def _judged(self, potential: Potential) -> list[tuple[Goal, Seen]]:
        network, _ = potential.split_references()
        made = [self._made(target, network) for target in self.targets]
        return [(one.goal, jax.device_get(one.seen(network))) for one in made]

    def _check(self, target: Any, seen: Seen) -> None:
        if not np.isfinite(float(seen.loss)):
            raise TrainingError(
                f"{target.name}: what the potential gives for it is no finite number: the simulation broke a limit, or the "
                "gradient through it grew beyond all numbers. Lower the target's weight, its steps or its timestep."
            )


def _as_array(sizes: ListSizes):
    return jnp.asarray([*sizes.bins, *sizes.reach, sizes.bin_atoms, sizes.neighbors, sizes.pairs], jnp.int32)


def _as_sizes(array) -> ListSizes:
    n = [int(x) for x in np.asarray(array)]
    return ListSizes((n[0], n[1], n[2]), (n[3], n[4], n[5]), n[6], n[7], n[8])


def _in_float64(x):
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
