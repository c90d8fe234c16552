"""LEIGNNConfig: the numbers that fix a model's shape, and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ase.data import chemical_symbols

from leignn_jax.arguments import check_choice, check_flag, check_number, check_whole, did_you_mean, shown
from leignn_jax.errors import ConfigError

Variant = Literal["leignn", "vanilla_nmu", "vanilla"]

RADIAL_BASES = ("bessel", "gaussian", "bernstein")
ENVELOPES = ("polynomial", "exponential")

VARIANTS: dict[str, dict[str, Any]] = {
    "leignn": {"update": "gated", "global_nodes": True},
    "vanilla_nmu": {"update": "gated", "global_nodes": False},
    "vanilla": {"update": "painn", "global_nodes": False},
}


@dataclasses.dataclass(frozen=True)
class LEIGNNConfig:
    """What fixes the shape and the formula of a LEIGNN; hashable, so it can be a static argument of ``jax.jit``.

    elements: symbols of the elements the model knows, in the order of its embedding.
    features: width F of scalars and vectors, even.
    layers: number of layers, each reaching one ``cutoff`` further.
    num_radial: number of radial functions.
    radial_basis: "bessel", "gaussian" (published) or "bernstein".
    envelope: "polynomial" (published) or "exponential".
    envelope_exponent: p of the polynomial envelope.
    cutoff: Å.
    update: "gated" (LEIGNN) or "painn" (the published "vanilla" model).
    global_nodes: one scalar and one vector per structure that all its atoms exchange with; they make the energy of a
        structure depend on all of it, however far (pitfall: two distant molecules are not independent).
    smooth_cutoff: the envelope multiplies the whole filter, bias included, so that energy, forces and their
        derivatives vanish at the cutoff; False is the published formula, whose energy jumps there.
    norm_floor: added to ``|V|^2`` under the root of a vector's norm. The published 1e-8 leaves a kink where V vanishes,
        as it does at the sites of symmetric crystals: forces then jump within 1e-3 Å and there are no phonons.
    direct_forces: add the published head that predicts forces beside the energy; they are no gradient of it.
    repulsion: add the Ziegler-Biersack-Littmark repulsion of the nuclei below the sum of the covalent radii and, where the
        potential knows them, a wall a tenth below the shortest distance of each two elements in the training data.
    message_dtype: "float32", or "bfloat16" for the arrays [pairs, features] and what is gathered from them; geometry
        and sums stay in the positions' dtype.
    matmul_precision: precision of matrix products on GPU and TPU: "highest", "high" or "default" (TF32, bf16).
    remat: recompute filters in the backward pass instead of keeping them: less memory, one more filter product.
    """

    elements: tuple[str, ...] = ()
    features: int = 128
    layers: int = 3
    num_radial: int = 16
    radial_basis: Literal["bessel", "gaussian", "bernstein"] = "bessel"
    envelope: Literal["polynomial", "exponential"] = "polynomial"
    envelope_exponent: int = 5
    cutoff: float = 5.0
    update: Literal["gated", "painn"] = "gated"
    global_nodes: bool = True
    smooth_cutoff: bool = True
    norm_floor: float = 1e-8
    direct_forces: bool = False
    repulsion: bool = False
    message_dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["highest", "high", "default"] = "highest"
    remat: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.elements, list | tuple):
            raise ConfigError(f"elements must be a list of symbols such as ('Si', 'O'), not {self.elements!r:.60}.")
        object.__setattr__(self, "elements", tuple(self.elements))
        for symbol in self.elements:
            if not isinstance(symbol, str) or symbol not in chemical_symbols[1:]:
                raise ConfigError(f"elements: {symbol!r} is not an element's symbol (write 'Si', not 'si' or 14).")
        if len(set(self.elements)) != len(self.elements):
            raise ConfigError(f"elements: a symbol stands twice in {self.elements}.")
        check_whole("features", self.features, 2, 4096)
        if self.features % 2:
            raise ConfigError(f"features must be even, not {self.features}.")
        check_whole("layers", self.layers, 1, 64)
        check_whole("num_radial", self.num_radial, 2, 1024)
        check_number("cutoff (Å)", self.cutoff, positive=True, most=100)
        check_whole("envelope_exponent", self.envelope_exponent, 3, 64)
        check_number("norm_floor", self.norm_floor, positive=True, most=100)
        for name in ("global_nodes", "smooth_cutoff", "direct_forces", "repulsion", "remat"):
            check_flag(name, getattr(self, name))
        check_choice("radial_basis", self.radial_basis, RADIAL_BASES)
        check_choice("envelope", self.envelope, ENVELOPES)
        check_choice("update", self.update, ("gated", "painn"))
        check_choice("message_dtype", self.message_dtype, ("float32", "bfloat16"))
        check_choice("matmul_precision", self.matmul_precision, ("highest", "high", "default"))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of ``elements``."""
        return tuple(chemical_symbols.index(symbol) for symbol in self.elements)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LEIGNNConfig:
        """The config of these fields; an unknown key raises ConfigError with the nearest known one."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"The settings of a model must be a dict, not {shown(values)}.")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"Unknown model setting {key!r}{did_you_mean(key, known)} Known: {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; ``from_dict`` takes them back."""
        return {**dataclasses.asdict(self), "elements": list(self.elements)}


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


def preset(name: str, *, variant: Variant = "leignn", **settings: Any) -> LEIGNNConfig:
    """A named model size with some settings changed.

    Args:
        name: "published" (512 x 4 with 128 Gaussians, arXiv:2311.02869), "large", "medium" or "small".
        variant: "leignn", "vanilla_nmu" (no global nodes) or "vanilla" (no global nodes, PaiNN's update).
        settings: fields of :class:`LEIGNNConfig`; ``elements`` is needed sooner or later.

    Raises:
        ConfigError: an unknown name, variant or setting, or a setting out of range.
    """
    check_choice("preset", name, PRESETS)
    check_choice("variant", variant, VARIANTS)
    return LEIGNNConfig.from_dict({**PRESETS[name], **VARIANTS[variant], **settings})
