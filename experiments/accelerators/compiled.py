"""Programs compiled for an H100 and a TPU v5e on a machine that has neither, and what they are made of.

XLA's compilers run without the device; what they give is the real program, kernel by kernel, but not its time. Under each
kernel goes a roofline: bytes over bandwidth, or operations over their rate, whichever is longer, and a launch.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Device(NamedTuple):
    """What a roofline needs: ``bandwidth`` B/s, ``cache`` bytes that gathers hit, ``rates`` FLOP/s of float32 products by
    precision, ``launch`` seconds between two kernels that wait for each other."""

    name: str
    bandwidth: float
    cache: float
    rates: dict[str, float]
    launch: float


# Bandwidth and rates as the makers give them (H100 SXM: 3.35 TB/s, 67 TFLOP/s float32, 495 TF32; v5e: 819 GB/s, 197
# bfloat16, a float32 product in six passes). 1.5 us from one small kernel to the next is what CUDA graphs reach.
DEVICES = {
    "h100": Device("H100", 3.35e12, 50e6, {"highest": 67e12, "default": 495e12}, 1.5e-6),
    "v5e": Device("TPU v5e", 819e9, 0.0, {"highest": 197e12 / 6, "default": 197e12}, 0.3e-6),
}


def prepare() -> None:
    """Environment variables that have to be set before jax is imported."""
    import nvidia.cuda_nvcc

    compiler = next(iter(nvidia.cuda_nvcc.__path__))
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={compiler} --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TF_CPP_MIN_LOG_LEVEL="3")


def devices_of(target: str, count: int) -> list[Any]:
    """So many devices of a kind, to compile for."""
    from jax.experimental import topologies

    if target == "h100":
        described = (HERE / "h100.pbtxt").read_text()
        return topologies.get_topology_desc(platform="cuda", target_config=described, topology=f"1x1x{count}").devices
    name = "v5e:4x4" if count > 4 else "v5e:2x2"
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices[:count]


def mesh_of(target: str, count: int, axis: str):
    """These devices in a row."""
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.array(devices_of(target, count)), (axis,))


def compile_for(target: str, function, *arguments):
    """``jax.jit(function)`` compiled for arguments of these shapes on ``target``, "h100" or "v5e"."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import SingleDeviceSharding

    where = SingleDeviceSharding(devices_of(target, 1)[0])

    def abstract(x):
        dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=where)

    jitted = function if hasattr(function, "lower") else jax.jit(function)
    return jitted.lower(*jax.tree.map(abstract, arguments)).compile()


class Kernel(NamedTuple):
    """One thing that the device does: bytes ``read`` and ``written``, ``flops`` of matrix products, ``rows`` gathered,
    ``library`` where it is a call, ``cycles`` as the TPU's compiler estimates them (none for gathers)."""

    name: str
    opcode: str
    read: float
    written: float
    flops: float
    precision: str
    rows: float
    library: str
    cycles: float

    def seconds(self, device: Device) -> float:
        """By the roofline, launch included."""
        moved = (self.read + self.written) / device.bandwidth
        return max(moved, self.flops / device.rates[self.precision]) + device.launch


_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?[\]})]) ([a-z][\w\-]*)\((.*)$")
# What is no work of its own: names of parts of buffers, and constants.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "copy-done"}
_FREE |= {"add-dependency", "opt-barrier", "async-done", "all-reduce-done", "copy-start", "slice-done", "async-update"}


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    inner: str
    operands: list[str]
    rest: str


def read(text: str) -> dict[str, list[Instruction]]:
    """The computations of a compiled program's text; that which runs is ``"ENTRY"``."""
    found: dict[str, list[Instruction]] = {}
    now: list[Instruction] = []
    for line in text.splitlines():
        if line.endswith("{") and ("->" in line or line.startswith("ENTRY")):
            name = "ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")
            now = found.setdefault(name, [])
        elif match := _INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            depths = itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in rest)
            end = next((k for k, depth in enumerate(depths) if depth < 0), len(rest))
            inner = rest[:end]
            now.append(Instruction(name, shape, opcode, inner, re.findall(r"%([\w.\-]+)", inner), rest[end:]))
    return found


def size(shape: str) -> float:
    """Bytes of all arrays of a shape."""
    return float(sum(_SIZES.get(kind, 0) * _count(dims) for kind, dims in _ARRAY.findall(shape)))


def _count(dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n)


def kernels(computations: dict[str, list[Instruction]], device: Device, name: str = "ENTRY") -> Iterator[Kernel]:
    """What runs, once through: a loop as often as is known, of a condition the branch that does less. A loop that runs as
    often as it is told, within a step, is a renewal of lists, which is due once in ten steps or so: it is left out."""
    shapes = {one.name: one.shape for one in computations[name]}
    for one in computations[name]:
        called = _called(one)
        if one.opcode == "while":
            yield from list(kernels(computations, device, called["body"])) * _turns(one, computations)
        elif one.opcode == "conditional":
            branches = [list(kernels(computations, device, branch)) for branch in called.values()]
            yield from min(branches, key=len)
        elif one.opcode in ("call", "async-start") and called:
            yield from kernels(computations, device, next(iter(called.values())))
        elif one.opcode not in _FREE:
            yield _kernel(one, [shapes.get(o, "") for o in one.operands], computations, device)


def body(computations: dict[str, list[Instruction]]) -> str:
    """The computation that matters: of a loop that runs as often as it is told, its body, such as a step of dynamics."""
    loops = [one for one in computations["ENTRY"] if one.opcode == "while" and not _turns(one, computations)]
    return _called(loops[0])["body"] if loops else "ENTRY"


def _turns(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """How often a loop runs, as the compiler says or by the constant that its condition compares with; 0: not known."""
    if times := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(times.group(1))
    condition = computations.get(_called(loop).get("condition", ""), [])
    constants = {one.name: int(one.inner) for one in condition if one.opcode == "constant" and one.inner.isdigit()}
    compared = [one for one in condition if one.opcode == "compare" and "direction=LT" in one.rest]
    return next((constants[name] for one in compared for name in one.operands if name in constants), 0)


def _called(one: Instruction) -> dict[str, str]:
    found = dict(
        re.findall(r"\b(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", one.rest)
    )
    if branches := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
        names = re.findall(r"%?([\w.\-]+)", branches.group(1))
        return {str(k): v for k, v in enumerate(names)}
    return found


def _kernel(one: Instruction, operands: list[str], computations, device: Device) -> Kernel:
    inside = computations.get(_called(one).get("calls", ""), []) if one.opcode == "fusion" else []
    read = sum(_bytes_read(k, shape, inside, device) for k, shape in enumerate(operands))
    shapes = {x.name: x.shape for x in inside}
    flops, precision = 0.0, "default"
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    library = target.group(1) if target else ""
    for dot in [*inside, one]:
        if dot.opcode in ("dot", "convolution") or (dot is one and "cublas" in library):
            first = shapes.get(dot.operands[0], operands[0] if operands else "") if dot.operands else ""
            flops += 2 * _count(_ARRAY.findall(dot.shape)[0][1]) * _contracted(first, dot.rest)
            precision = "highest" if "highest" in dot.rest.lower() else precision
    cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    return Kernel(
        name=one.name,
        opcode=one.opcode,
        read=read,
        written=size(one.shape.split(", s8[")[0] if "cublas" in library else one.shape),  # less its workspace
        flops=flops,
        precision=precision,
        rows=sum(_rows(x) for x in [*inside, one] if x.opcode == "gather"),
        library=library,
        cycles=float(cycles.group(1)) if cycles else 0.0,
    )


def _bytes_read(place: int, shape: str, inside: list[Instruction], device: Device) -> float:
    """Of an operand: all of it, or where it is gathered from the rows that are taken (once, where it fits the cache)."""
    whole = size(shape)
    name = next((x.name for x in inside if x.opcode == "parameter" and int(x.inner) == place), None)
    users = [x for x in inside if name in x.operands] if name else []
    taken = [x for x in users if x.opcode in ("gather", "slice", "dynamic-slice") and x.operands[0] == name]
    if not users or len(taken) < len(users):
        return whole
    rows = sum(size(x.shape) for x in taken)
    return min(whole, rows) if whole <= device.cache else rows


def _rows(gather: Instruction) -> float:
    """How many rows a gather takes."""
    taken = re.search(r"slice_sizes=\{([\d,]*)\}", gather.rest)
    return _count(_ARRAY.findall(gather.shape)[0][1]) / _count(taken.group(1) if taken else "")


def _contracted(shape: str, rest: str) -> int:
    """Length of the summed axes, of the first operand's shape and an instruction's attributes."""
    found = re.search(r'lhs_contracting_dim\w*"?[=:][\{\[]([\d,"]*)[\}\]]', rest)
    arrays = _ARRAY.findall(shape)
    if not found or not arrays:
        return 1
    dims = [int(n) for n in arrays[0][1].split(",") if n]
    return math.prod(dims[int(k)] for k in re.findall(r"\d+", found.group(1)))


def summary(compiled: Any, target: str) -> dict[str, Any]:
    """Kernels, library calls, bytes, temporaries and predicted time of a compiled program, or of a step of its loop."""
    device = DEVICES[target]
    computations = read(compiled.as_text())
    found = list(kernels(computations, device, body(computations)))
    libraries = [k.library for k in found if k.library and "cublas" not in k.library]
    products = [k for k in found if k.flops]
    moved = sum(k.read + k.written for k in found)
    launches = len(found) * device.launch
    return {
        "kernels": len(found),
        "products": len(products),
        "other libraries": sorted(set(libraries)),
        "MB moved": moved / 1e6,
        "MB temporaries": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "GFLOP": sum(k.flops for k in found) / 1e9,
        "ms predicted": 1e3 * sum(k.seconds(device) for k in found),
        "ms of bytes": 1e3 * moved / device.bandwidth,
        "ms of products": 1e3 * sum(k.flops / device.rates[k.precision] for k in found),
        "ms of launches": 1e3 * launches,
        "Mcycles": sum(k.cycles for k in found) / 1e6,
        "Mrows gathered": sum(k.rows for k in found) / 1e6,
    }


def largest(compiled: Any, target: str, count: int = 15) -> list[tuple[str, float]]:
    """Names and MB of the kernels that move most."""
    computations = read(compiled.as_text())
    found = kernels(computations, DEVICES[target], body(computations))
    return sorted(((k.name, (k.read + k.written) / 1e6) for k in found), key=lambda x: -x[1])[:count]


def store(path: Path, values: Any) -> None:
    """As JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1) + "\n")
    part.replace(path)
