"""Read weights of the published PyTorch code: a state dict as .safetensors, or its own ``model.pt``, without PyTorch."""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase.data import chemical_symbols

from leignn_jax.arguments import check_choice, check_number, check_path, check_sequence
from leignn_jax.errors import ConfigError, FileFormatError
from leignn_jax.models.config import VARIANTS, LEIGNNConfig, Variant
from leignn_jax.models.network import init_params
from leignn_jax.potential import Potential
from leignn_jax.safetensors_file import unpack

_STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}
# Weights hardly shrink: what unpacks to so many times its size is no weights.
_BOMB = 20


def import_torch_checkpoint(
    path: str | Path,
    *,
    variant: Variant = "leignn",
    cutoff: float,
    elements: Sequence[str] | None = None,
    energy_shift: float = 0.0,
) -> Potential:
    """The potential of a checkpoint of the published code, with its own formula (``smooth_cutoff=False``).

    Width, layers and radial functions follow from the shapes of the weights; what the file doesn't hold is asked for.

    Args:
        path: ``.safetensors`` state dict, or a ``.pt`` zip as ``torch.save`` writes it. The pickle inside is read as a
            list of opcodes and never executed.
        variant: "leignn", "vanilla_nmu" or "vanilla".
        cutoff: Å, as in training (H2O, CH4, LiPS: 5; ISO17, OC20: 6).
        elements: symbols to keep; None keeps every row of the embedding. Fewer elements run faster.
        energy_shift: eV per structure, the constant that the authors' RemoveMean took off the energies.

    The published code kept at most 50 (20) neighbours of an atom; here none is dropped, so that energies of dense
    systems differ from those of the original by what the dropped ones contribute.

    Raises:
        ConfigError: an argument that is not what it must be.
        FileFormatError: not such a file, truncated, or weights of another variant.
    """
    path = Path(check_path("path", path))
    check_choice("variant", variant, VARIANTS)
    check_number("cutoff", cutoff, positive=True)
    if elements is not None and not check_sequence("elements", elements):
        raise ConfigError("elements: name one or more, or give None for all that the file knows.")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path)
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    weights.pop("radial_basis.rbf.offset", None)
    wrong = [name for name, array in weights.items() if not (array.dtype.kind in "iuf" and np.isfinite(array).all())]
    if wrong:
        raise FileFormatError(f"{path}: {wrong[0]} holds NaN, infinity or no numbers; the file is damaged.")

    embedding = _matrix(weights, "atom_emb.embeddings.weight", path)
    layers = 1 + max((int(m[1]) for k in weights if (m := re.match(r"message_layers\.(\d+)\.", k))), default=-1)
    if layers == 0:
        raise FileFormatError(f"{path}: no weights named message_layers.*: not a LEIGNN checkpoint.")
    has_global = "vn_emb.weight" in weights
    if has_global != VARIANTS[variant]["global_nodes"]:
        found, others = ("has a", "'leignn'") if has_global else ("has no", "'vanilla_nmu' or 'vanilla'")
        raise FileFormatError(
            f"{path} {found} global node (vn_emb.weight), so variant={variant!r} can't be; try {others}."
        )
    known = chemical_symbols[1 : embedding.shape[0]]
    kept = list(known) if elements is None else list(elements)
    unknown = [e for e in kept if e not in known]
    if unknown:
        raise FileFormatError(f"{path}: no embedding for {unknown}; it has {known[0]} to {known[-1]}.")
    try:
        config = LEIGNNConfig(
            elements=tuple(kept),
            features=embedding.shape[1],
            layers=layers,
            num_radial=_matrix(weights, "message_layers.0.rbf_proj.weight", path).shape[1],
            radial_basis="gaussian",
            cutoff=cutoff,
            smooth_cutoff=False,
            direct_forces="out_forces.weight" in weights,
            **VARIANTS[variant],
        )
    except ConfigError as error:
        raise FileFormatError(f"{path}: {error}") from error
    try:
        params = _convert(weights, config, path)
    except (IndexError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path}: its weights do not fit together ({error}); of another architecture?") from error
    expected = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    _check_shapes(params, expected, path, variant)
    return Potential.from_params(config, params, energy_shift=energy_shift)


def _convert(weights: dict[str, np.ndarray], config: LEIGNNConfig, path: Path) -> dict[str, Any]:
    """The published names and layouts to ours; see the tables in :mod:`leignn_jax.models.layers`."""
    f = config.features

    def w(name):
        return _get(weights, name, path)

    def dense(name, part=slice(None), columns=slice(None), bias=True):
        out = {"kernel": w(f"{name}.weight")[part, columns].T}
        return {**out, "bias": w(f"{name}.bias")[part]} if bias else out

    def split(name, count, bias=True):
        for kind in ("weight", "bias")[: 1 + bias]:
            if w(f"{name}.{kind}").shape[:1] != (count * f,):
                shape = w(f"{name}.{kind}").shape
                raise FileFormatError(f"{path}: {name}.{kind} has shape {shape}, {count} times {f} rows are needed.")
        return [dense(name, slice(k * f, (k + 1) * f), bias=bias) for k in range(count)]

    def halves(name):
        if w(f"{name}.weight").shape[1:] != (2 * f,):
            raise FileFormatError(f"{path}: {name}.weight has not twice {f} features as columns.")
        return dense(name, columns=slice(0, f)), dense(name, columns=slice(f, 2 * f), bias=False)

    rows = [chemical_symbols.index(e) for e in config.elements]
    params: dict[str, Any] = {
        "embedding": w("atom_emb.embeddings.weight")[rows],
        "energy_hidden": dense("out_energy.0"),
        "energy": dense("out_energy.2"),
    }
    if config.direct_forces:
        params["direct_forces"] = dense("out_forces", bias=False)
    if config.global_nodes:
        params["global_embedding"] = w("vn_emb.weight")
    for layer in range(config.layers):
        first, last = layer == 0, layer == config.layers - 1
        name = f"message_layers.{layer}"
        # Order of the rows: what multiplies V_j, what multiplies u_ij, what goes to the scalars.
        parts = dict(zip(("vector", "directional", "scalar"), split(f"{name}.x_proj.2", 3), strict=True))
        filters = [np.concatenate([p["kernel"], p["bias"][None]]) for p in split(f"{name}.rbf_proj", 3)]
        filters = {f"filter_{k}": v for k, v in zip(parts, filters, strict=True)}
        if first:
            del parts["vector"], filters["filter_vector"]
        params[f"messages_{layer}"] = {"hidden": dense(f"{name}.x_proj.0"), **parts, **filters}

        name = f"update_layers.{layer}"
        left, right = split(f"{name}.vec_proj", 2, bias=False)
        hidden_scalars, hidden_norm = halves(f"{name}.xvec_proj.0")
        a = split(f"{name}.xvec_proj.2", 3)
        gated = config.update == "gated"
        heads = dict(
            zip(("vectors_gate", "add", "gate") if gated else ("add", "inner", "vectors_gate"), a, strict=True)
        )
        update = {"vectors_right": right, "hidden_scalars": hidden_scalars, "hidden_norm": hidden_norm, **heads}
        if last and not config.direct_forces:
            del update["vectors_gate"]
        if not gated or not last or config.direct_forces:
            update["vectors_left"] = left
        params[f"update_{layer}"] = update

        if config.global_nodes:
            scalar, vector = f"global_scalar_layers.{layer}", f"global_vector_layers.{layer}"
            local, from_global = halves(f"{scalar}.mlp_node.0")
            params[f"global_to_local_{layer}"] = {
                "scalars_local": local,
                "scalars_global": from_global,
                "scalars_out": dense(f"{scalar}.mlp_node.2"),
            }
            if not first:
                params[f"global_to_local_{layer}"]["vectors"] = dense(f"{vector}.mlp_node", bias=False)
            if not last:
                mean, from_global = halves(f"{scalar}.mlp_vn.0")
                params[f"local_to_global_{layer}"] = {
                    "scalars_mean": mean,
                    "scalars_global": from_global,
                    "scalars_out": dense(f"{scalar}.mlp_vn.2"),
                    "vectors": dense(f"{vector}.mlp_vn", bias=False),
                }
    return params


def _check_shapes(params, expected, path: Path, variant: str) -> None:
    def shapes(tree):
        return {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(tree)}

    have, want = shapes(params), shapes(expected)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise FileFormatError(
                f"{path}: {name} has shape {have.get(name)}, a {variant!r} model of this size needs {want.get(name)}. "
                "The checkpoint is of another architecture."
            )


def _get(weights: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in weights:
        raise FileFormatError(f"{path}: no weight named {name!r}: not a LEIGNN checkpoint of this variant.")
    return weights[name]


def _matrix(weights: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    found = _get(weights, name, path)
    if found.ndim != 2:
        raise FileFormatError(f"{path}: {name} has shape {found.shape}, not two axes: not a LEIGNN checkpoint.")
    return found


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")
    return unpack(path)[0]


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    """Name to array from the zip that ``torch.save`` writes of a dict of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise FileFormatError(f"{path}: a zip, but not one that torch.save wrote (no data.pkl).")
            folder = pickles[0].removesuffix("data.pkl")
            order = archive.read(folder + "byteorder") if folder + "byteorder" in archive.namelist() else b"little"
            tensors = _tensors_of_pickle(_read_member(archive, pickles[0], path), path)
            out = {}
            for name, tensor in tensors.items():
                if isinstance(tensor, _Tensor):
                    out[name] = tensor.array(
                        _read_member(archive, folder + "data/" + tensor.storage.key, path), order, path, name
                    )
            return out
    except FileFormatError:
        raise
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FileFormatError(
            f"{path}: not a zip: truncated, or written by PyTorch before 1.6. Load it in PyTorch and save the state dict "
            "with safetensors.torch.save_file."
        ) from error
    except KeyError as error:
        raise FileFormatError(f"{path}: {error}; the file is incomplete.") from error
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        # NotImplementedError and RuntimeError: ways to pack and encrypt that torch.save does not use.
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise FileFormatError(f"{path}: truncated or edited: can't be unpacked ({error}).") from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """A member's content, which torch.save does not pack."""
    size, packed = archive.getinfo(name).file_size, archive.getinfo(name).compress_size
    if size > max(_BOMB * packed, 1 << 20):
        raise FileFormatError(
            f"{path}: {name} would unpack to {size / 2**20:.0f} MiB from {packed} bytes; not unpacked."
        )
    return archive.read(name)


class _Storage:
    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key


class _Tensor:
    # As the pickle says, so that anything may stand here until it is looked at.
    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, raw: bytes, order: bytes, path: Path, name: str) -> np.ndarray:
        whole = (
            isinstance(self.shape, tuple) and isinstance(self.strides, tuple) and len(self.shape) == len(self.strides)
        )
        if not whole or not all(type(n) is int and n >= 0 for n in (self.offset, *self.shape, *self.strides)):
            raise FileFormatError(f"{path}: shape or strides of {name} are no whole numbers; the file is damaged.")
        if order not in (b"little", b"big"):
            raise FileFormatError(f"{path}: its byteorder is {order[:20]!r}; the file is damaged.")
        dtype = np.dtype(_STORAGE_DTYPES[self.storage.kind]).newbyteorder("<" if order == b"little" else ">")
        flat = np.frombuffer(raw, dtype)
        size = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if self.offset + size > len(flat) or math.prod(self.shape) > len(flat):
            raise FileFormatError(f"{path}: {name} reaches past its data; the file is damaged.")
        strides = tuple(s * dtype.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.ascontiguousarray(view, dtype=dtype.newbyteorder("="))


_MARK = object()


def _tensors_of_pickle(data: bytes, path: Path) -> dict[str, Any]:
    """What a pickle of a dict of tensors says, by walking its opcodes; no class is looked up, nothing is called."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = max(k for k, item in enumerate(stack) if item is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def refuse(what) -> FileFormatError:
        return FileFormatError(
            f"{path}: the pickle inside holds {what}, which a plain dict of tensors doesn't. Load it in PyTorch "
            "(torch.load(..., weights_only=True)) and save the state dict with safetensors.torch.save_file."
        )

    try:
        for op, arg, _ in pickletools.genops(data):
            name = op.name
            if name in ("PROTO", "FRAME", "STOP"):
                continue
            if name == "MARK":
                stack.append(_MARK)
            elif name in ("EMPTY_DICT", "EMPTY_LIST"):
                stack.append({} if name == "EMPTY_DICT" else [])
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
                stack.append(arg)
            elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
                stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            elif name == "GLOBAL":
                stack.append(("global", str(arg).replace(" ", ".")))
            elif name == "STACK_GLOBAL":
                stack[-2:] = [("global", ".".join(stack[-2:]))]
            elif name == "BINPERSID":
                tag, kind, key, _, _ = stack.pop()
                kind = kind[1].rsplit(".", 1)[-1]
                if tag != "storage" or kind not in _STORAGE_DTYPES:
                    raise refuse(f"a storage of type {kind}")
                stack.append(_Storage(kind, str(key)))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if function == ("global", "collections.OrderedDict"):
                    stack.append(dict(*arguments))
                elif function == ("global", "torch._utils._rebuild_tensor_v2"):
                    stack.append(_Tensor(*arguments[:4]))
                elif function == ("global", "torch._utils._rebuild_parameter"):
                    stack.append(arguments[0])
                else:
                    raise refuse(f"a call of {function[1]}")
            elif name == "BUILD":
                stack.pop()  # attributes of the OrderedDict (its _metadata); the tensors don't need them
            elif name in ("SETITEM", "SETITEMS"):
                items = since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name in ("APPEND", "APPENDS"):
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1].extend(items)
            else:
                raise refuse(f"the opcode {name}")
        (result,) = stack
        result = result.get("state_dict", result)
        whole = all(isinstance(t.storage, _Storage) for t in result.values() if isinstance(t, _Tensor))
        if not whole:
            raise ValueError("a tensor without its data")
        return {str(key): value for key, value in result.items()}
    except FileFormatError:
        raise
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"{path}: the pickle inside can't be read ({error}); truncated or edited?") from error
