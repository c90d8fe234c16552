"""LEIGNNConfig: the numbers that fix a model's shape, and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

from ase.data import chemical_symbols

from leignn_jax.arguments import check_choice, check_flag, check_number, check_whole, did_you_mean, shown
from leignn_jax.errors import ConfigError

Variant = Literal["leignn", "vanilla_nmu", "vanilla"]
AnyVariant = Literal["tensor", Variant, "higher_order"]

RADIAL_BASES = ("bessel", "gaussian", "bernstein")
ENVELOPES = ("polynomial", "exponential")

# The published ones.
VARIANTS: dict[str, dict[str, Any]] = {
    "leignn": {"update": "gated", "global_nodes": True},
    "vanilla_nmu": {"update": "gated", "global_nodes": False},
    "vanilla": {"update": "painn", "global_nodes": False},
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every model has; hashable, so it can be a static argument of ``jax.jit``.

    elements: symbols of the elements the model knows, in the order of its embedding.
    features: width F of scalars and vectors, even.
    layers: number of layers, each reaching one ``cutoff`` further.
    num_radial: number of radial functions.
    radial_basis: "bessel", "gaussian" (published) or "bernstein".
    envelope: "polynomial" (published) or "exponential".
    envelope_exponent: p of the polynomial envelope.
    cutoff: Å.
    smooth_cutoff: the envelope multiplies the whole filter, bias included, so that energy, forces and their
        derivatives vanish at the cutoff; False is the published formula, whose energy jumps there.
    repulsion: add the Ziegler-Biersack-Littmark repulsion of the nuclei below the sum of the covalent radii and, where the
        potential knows them, a wall a tenth below the shortest distance of each two elements in the training data.
    matmul_precision: precision of matrix products on GPU and TPU: "highest", "high" or "default" (TF32, bf16).
    """

    elements: tuple[str, ...] = ()
    features: int = 128
    layers: int = 3
    num_radial: int = 16
    radial_basis: Literal["bessel", "gaussian", "bernstein"] = "bessel"
    envelope: Literal["polynomial", "exponential"] = "polynomial"
    envelope_exponent: int = 5
    cutoff: float = 5.0
    smooth_cutoff: bool = True
    repulsion: bool = False
    matmul_precision: Literal["highest", "high", "default"] = "highest"

    def __post_init__(self) -> None:
        if not isinstance(self.elements, list | tuple):
            raise ConfigError(f"elements must be a list of symbols such as ('Si', 'O'), not {self.elements!r:.60}.")
        self._keep("elements", tuple(str(e) if isinstance(e, str) else e for e in self.elements))
        for symbol in self.elements:
            if not isinstance(symbol, str) or symbol not in chemical_symbols[1:]:
                raise ConfigError(f"elements: {symbol!r} is not an element's symbol (write 'Si', not 'si' or 14).")
        if len(set(self.elements)) != len(self.elements):
            raise ConfigError(f"elements: a symbol stands twice in {self.elements}.")
        self._keep("features", check_whole("features", self.features, 2, 4096))
        if self.features % 2:
            raise ConfigError(f"features must be even, not {self.features}.")
        self._keep("layers", check_whole("layers", self.layers, 1, 64))
        self._keep("num_radial", check_whole("num_radial", self.num_radial, 2, 1024))
        self._keep("cutoff", check_number("cutoff (Å)", self.cutoff, positive=True, most=100))
        self._keep("envelope_exponent", check_whole("envelope_exponent", self.envelope_exponent, 3, 64))
        for name in ("smooth_cutoff", "repulsion"):
            self._keep(name, check_flag(name, getattr(self, name)))
        precisions = ("highest", "high", "default")
        choices = {"radial_basis": RADIAL_BASES, "envelope": ENVELOPES, "matmul_precision": precisions}
        for name, allowed in choices.items():
            self._keep(name, check_choice(name, getattr(self, name), allowed))

    def _keep(self, name: str, value: Any) -> None:
        """A field as a check returned it: a number of NumPy's is no plain JSON, nor has every array a hash."""
        object.__setattr__(self, name, value)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of ``elements``."""
        return tuple(chemical_symbols.index(symbol) for symbol in self.elements)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config of these fields; an unknown key raises ConfigError with the nearest known one."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"The settings of a model must be a dict, not {shown(values)}.")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"Unknown model setting {key!r}{did_you_mean(key, known)} Known: {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; :func:`config_from_dict` takes them back."""
        return {**dataclasses.asdict(self), "elements": list(self.elements)}

    def in_words(self) -> str:
        """The choices beside its size, for a person."""
        parts = [f"{self.num_radial} {self.radial_basis} functions"]
        return ", ".join(
            parts + [name for name in ("smooth cutoff", "repulsion") if getattr(self, name.replace(" ", "_"))]
        )


@dataclasses.dataclass(frozen=True)
class LEIGNNConfig(ModelConfig):
    """What fixes the shape and the formula of a LEIGNN, beside what :class:`ModelConfig` has.

    Its own defaults are the paper's formula with a cutoff that is smooth. The models that we recommend are those of
    :func:`preset`: tensors, no global nodes, repulsion, a norm without a kink.

    update: "gated" (LEIGNN) or "painn" (the published "vanilla" model).
    global_nodes: one scalar and one vector per structure that all its atoms exchange with; they make the energy of a
        structure depend on all of it, however far (pitfall: two distant molecules are not independent).
    norm_floor: added to ``|V|^2`` under the root of a vector's norm. The published 1e-8 leaves a kink where V vanishes,
        as it does at the sites of symmetric crystals: forces then jump within 1e-3 Å and there are no phonons.
    direct_forces: add the published head that predicts forces beside the energy; they are no gradient of it.
    message_dtype: "float32", or "bfloat16" for the arrays [pairs, features] and what is gathered from them; geometry
        stays in the positions' dtype, and sums in float32 at least.
    remat: recompute filters in the backward pass instead of keeping them: less memory, one more filter product.
    tensor_features: width of the traceless symmetric tensors that atoms have beside scalars and vectors, and exchange
        (:mod:`leignn_jax.models.tensors`); 0, as published, is none. :func:`preset` gives half of ``features``.
    """

    update: Literal["gated", "painn"] = "gated"
    global_nodes: bool = True
    norm_floor: float = 1e-8
    direct_forces: bool = False
    message_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    tensor_features: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("norm_floor", check_number("norm_floor", self.norm_floor, positive=True, most=100))
        self._keep("tensor_features", check_whole("tensor_features", self.tensor_features, 0, 4096))
        for name in ("global_nodes", "direct_forces", "remat"):
            self._keep(name, check_flag(name, getattr(self, name)))
        for name, allowed in {"update": ("gated", "painn"), "message_dtype": ("float32", "bfloat16")}.items():
            self._keep(name, check_choice(name, getattr(self, name), allowed))

    def in_words(self) -> str:
        """The choices beside its size, for a person."""
        parts = [f"{self.update} update", super().in_words()]
        parts += [f"{self.tensor_features} tensors"] if self.tensor_features else []
        return ", ".join(parts + [n.replace("_", " ") for n in ("global_nodes", "direct_forces") if getattr(self, n)])


@dataclasses.dataclass(frozen=True)
class HigherOrderConfig(ModelConfig):
    """What fixes a :class:`leignn_jax.models.higher_order.HigherOrder`, beside what :class:`ModelConfig` has.

    features: how many features of each degree an atom has.
    degree: highest degree l of its features: 0 scalars, 1 vectors too, 2 and 3 spherical tensors too.
    """

    degree: int = 2
    # What LEIGNN may have and this model has not.
    global_nodes: ClassVar[bool] = False
    direct_forces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("degree", check_whole("degree", self.degree, 0, 3))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types and which kind of model they are of; :func:`config_from_dict` takes them back."""
        return {"architecture": "higher_order", **super().to_dict()}

    def in_words(self) -> str:
        """The choices beside its size, for a person."""
        return f"higher order, degree {self.degree}, {super().in_words()}"


ARCHITECTURES: dict[str, type[ModelConfig]] = {"leignn": LEIGNNConfig, "higher_order": HigherOrderConfig}
ALL_VARIANTS = get_args(AnyVariant)


PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "features": 512,
        "layers": 4,
        "num_radial": 128,
        "radial_basis": "gaussian",
        "smooth_cutoff": False,
        "direct_forces": True,
    },
    "large": {"features": 256, "layers": 4, "num_radial": 16, "repulsion": True, "norm_floor": 1e-2},
    "medium": {"features": 128, "layers": 3, "num_radial": 16, "repulsion": True, "norm_floor": 1e-2},
    "small": {"features": 64, "layers": 2, "num_radial": 12, "repulsion": True, "norm_floor": 1e-2},
}


def config_class(variant: str | None) -> type[ModelConfig]:
    """The class of a variant's configs; ConfigError where there is no such variant."""
    if variant is not None:
        check_choice("variant", variant, ALL_VARIANTS)
    return HigherOrderConfig if variant == "higher_order" else LEIGNNConfig


def preset(name: str, *, variant: AnyVariant | None = None, **settings: Any) -> ModelConfig:
    """A named model size with some settings changed.

    Args:
        name: "small" (64 features x 2 layers), "medium" (128 x 3), "large" (256 x 4), or "published" (512 x 4 with 128
            Gaussians, arXiv:2311.02869).
        variant: "tensor", LEIGNN with half as many tensors as features and without global nodes, is the most
            accurate at equal training time (``experiments/recipe``) and what None is, but for "published"; "leignn",
            "vanilla_nmu" (no global nodes) and "vanilla" (no global nodes, PaiNN's update) are the paper's models;
            "higher_order" has features up to ``degree`` and is there to compare with.
        settings: fields of :class:`LEIGNNConfig` or :class:`HigherOrderConfig`; ``elements`` is needed sooner or later.

    Raises:
        ConfigError: an unknown name, variant or setting, or a setting out of range.
    """
    check_choice("preset", name, PRESETS)
    if variant is None:
        variant = "leignn" if name == "published" else "tensor"
    kind = config_class(variant)
    size = PRESETS[name]
    if variant in VARIANTS:
        return kind.from_dict({**size, **VARIANTS[variant], **settings})
    if name == "published":
        raise ConfigError(f"The published model has no tensors: variant={variant!r} is of large, medium or small.")
    if variant == "tensor":
        config = kind.from_dict({**size, "global_nodes": False, **settings})
        if "tensor_features" in settings:
            return config
        return dataclasses.replace(config, tensor_features=config.features // 2)
    known = {field.name for field in dataclasses.fields(kind)}
    return kind.from_dict({**{key: value for key, value in size.items() if key in known}, **settings})


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The config that ``to_dict`` wrote, of whatever kind of model.

    Raises:
        ConfigError: an unknown kind of model or setting, or one out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"The settings of a model must be a dict, not {shown(values)}.")
    settings = dict(values)
    name = settings.pop("architecture", "leignn")
    check_choice("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name].from_dict(settings)
