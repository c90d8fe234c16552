"""FitConfig: a training's config with targets, what a simulation or a minimum of the potential should give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from leignn_jax.differentiable.gradients import Mode
from leignn_jax.training.config import Count, NotNegative, OptimizerSettings, Positive, Section, Seed, TrainConfig

# Of a curve that is compared.
_MOST_POINTS = 100_000
Symbol = Annotated[str, Field(pattern=r"^[A-Z][a-z]?$")]


class Sampling(Section):
    """How a target is simulated.

    ensemble: a short name, see :func:`leignn_jax.simulation.settings.make_ensemble`. temperature: K. pressure: GPa, of npt.
    timestep: fs. steps: of one sample or trajectory, of which ``discard`` come before the first frame; every: steps between
        frames. Each goes on where the last one ended. warm_up: so many as long at the start are thrown away.
    replicas: side by side. seed: of velocities and noise.
    effective: fraction of the frames that must still count, below which a sample is drawn anew.
    mode: of the gradient of a trajectory, see :data:`leignn_jax.differentiable.gradients.MODES`. decay, clip: its taming.
    """

    ensemble: str = "nvt"
    temperature: Positive
    pressure: float | None = None
    timestep: Positive
    steps: Count
    discard: Annotated[int, Field(ge=0)] = 0
    every: Count = 10
    warm_up: Annotated[int, Field(ge=0)] = 1
    replicas: Count = 1
    seed: Seed = 0
    effective: Annotated[float, Field(gt=0, le=1)] = 0.5
    mode: Mode = "remat"
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Positive | None = None

    @model_validator(mode="after")
    def _steps_fit(self) -> Sampling:
        if self.steps % self.every or self.discard % self.every or self.steps - self.discard < 2 * self.every:
            raise ValueError(
                f"steps ({self.steps}) and discard ({self.discard} of them) must be multiples of every ({self.every}), with "
                "two frames or more left"
            )
        return self


class Target(Section):
    """What all targets say.

    name: in tables and figures. structure: a file with it (of several frames, the last one).
    weight: of the mean squared deviation in units of the uncertainty, beside the loss of a batch.
    period: updates of the optimizer from one of its gradients to the next.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    structure: Path
    weight: NotNegative = 1.0
    period: Count = 10


class _Number(Target):
    """value and its uncertainty, in the observable's unit."""

    value: float
    uncertainty: Positive


class _Curve(Target):
    """A curve from a file of columns: where, how much and, if there, its uncertainty; see :func:`read_curve`.

    columns: their numbers from 0. unit: of the first. start, end: of the range that counts, spacing: of its points, in the
    observable's unit. uncertainty: of every point, and the least where a column gives it.
    """

    file: Path
    columns: Annotated[tuple[int, ...], Field(min_length=2, max_length=3)] = (0, 1)
    start: float
    end: float
    spacing: Positive
    uncertainty: Positive

    @model_validator(mode="after")
    def _points_fit(self) -> _Curve:
        points = (self.end - self.start) / self.spacing
        if not 0.99 < points < _MOST_POINTS or abs(points - round(points)) > 0.01:
            raise ValueError(
                f"from start ({self.start:g}) to end ({self.end:g}) there must be a whole number of spacings "
                f"({self.spacing:g}), one to {_MOST_POINTS:,}"
            )
        return self


class Rdf(_Curve):
    """A (partial) radial distribution function; unit "angstrom" or "nm", width: Å, of each pair's Gaussian."""

    observable: Literal["rdf"]
    pair: tuple[Symbol, Symbol] | None = None
    unit: Literal["angstrom", "nm"] = "angstrom"
    width: Positive = 0.05
    estimator: Literal["reweighting", "trajectory"] = "reweighting"
    sampling: Sampling


class Pressure(_Number):
    """The mean pressure, GPa."""

    observable: Literal["pressure"]
    estimator: Literal["reweighting", "trajectory"] = "reweighting"
    sampling: Sampling


class Density(_Number):
    """The mean density, g/cm^3; of an ensemble at constant pressure."""

    observable: Literal["density"]
    estimator: Literal["reweighting", "trajectory"] = "reweighting"
    sampling: Sampling


class DensityOfStates(_Curve):
    """The vibrational density of states over wavenumbers, area 1 between start and end.

    unit: "1/cm", "eV" or "THz" of the file. lags: frames of the autocorrelation; None is half of the frames.
    """

    observable: Literal["density_of_states"]
    unit: Literal["1/cm", "eV", "THz"] = "1/cm"
    lags: Count | None = None
    estimator: Literal["trajectory"] = "trajectory"
    sampling: Sampling


class Diffusivity(_Number):
    """Of all atoms, 1e-5 cm^2/s, by the growth of the mean squared displacement over the second half of a trajectory."""

    observable: Literal["diffusivity"]
    estimator: Literal["trajectory"] = "trajectory"
    sampling: Sampling


class LatticeConstant(_Number):
    """The length of a relaxed cell's vector ``axis``, Å, at ``pressure`` GPa."""

    observable: Literal["lattice_constant"]
    axis: Annotated[int, Field(ge=0, le=2)] = 0
    cell: Literal["isotropic", "full"] = "isotropic"
    pressure: float = 0.0
    estimator: Literal["minimum"] = "minimum"


class ElasticConstant(_Number):
    """A component of the elastic tensor of the relaxed structure, GPa, Voigt's numbers from 1, such as [1, 2] for C12."""

    observable: Literal["elastic_constant"]
    component: tuple[Annotated[int, Field(ge=1, le=6)], Annotated[int, Field(ge=1, le=6)]]
    cell: Literal["isotropic", "full"] = "isotropic"
    pressure: float = 0.0
    estimator: Literal["minimum"] = "minimum"


class PhononFrequency(_Number):
    """THz, the mean over ``modes`` of the relaxed structure, numbers from 0 in ascending order with three translations.

    Modes are those of the cell as it is given, at its Gamma point: a supercell has those of other wave vectors in it.
    """

    observable: Literal["phonon_frequency"]
    modes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    cell: Literal["isotropic", "full"] = "isotropic"
    pressure: float = 0.0
    estimator: Literal["minimum"] = "minimum"


def _observable(values: Any) -> str:
    return str(values.get("observable")) if isinstance(values, dict) else getattr(values, "observable", "")


AnyTarget = Annotated[
    Annotated[Rdf, Tag("rdf")]
    | Annotated[Pressure, Tag("pressure")]
    | Annotated[Density, Tag("density")]
    | Annotated[DensityOfStates, Tag("density_of_states")]
    | Annotated[Diffusivity, Tag("diffusivity")]
    | Annotated[LatticeConstant, Tag("lattice_constant")]
    | Annotated[ElasticConstant, Tag("elastic_constant")]
    | Annotated[PhononFrequency, Tag("phonon_frequency")],
    Discriminator(_observable),
]


class FitOptimizer(OptimizerSettings):
    """As of a training, but by Adam: Muon makes the noise of a sampled gradient as large as what it is the noise of; and
    without decay, which would pull at what was trained before."""

    algorithm: Literal["adam", "amsgrad", "muon"] = "adam"
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0


class FitConfig(TrainConfig):
    """A :class:`leignn_jax.training.config.TrainConfig` with targets beside the frames."""

    optimizer: FitOptimizer = FitOptimizer()
    targets: Annotated[list[AnyTarget], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_name_each(self) -> FitConfig:
        names = [target.name for target in self.targets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two targets are called {twice!r}")
        if self.run.devices > 1:
            raise ValueError("run.devices: a fit runs on one device so far")
        return self


def pair_numbers(pair: Sequence[str] | None) -> tuple[int, int] | None:
    """Atomic numbers of two symbols."""
    from ase.data import atomic_numbers

    return None if pair is None else (atomic_numbers[pair[0]], atomic_numbers[pair[1]])
