"""Several processes, one per host, that train one model: how they meet and agree.

Every process runs the same program on the same data. The first one alone reads and writes the run folder and tells the
others what it finds. With one process everything here is free and changes nothing.

A process that is killed, or raises amid an epoch's steps, can't tell the others: they wait until JAX's coordination
service ends them, minutes later, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from leignn_jax.errors import ConfigError, TrainingError
from leignn_jax.training.parallel import DATA, make_mesh, own_parts, place_batch

# Texts are padded to a power of two at least this long, so that few programs are compiled to send them.
_SHORTEST = 1024
# Minutes that processes wait for the last one to begin.
_PATIENCE = 30


def join_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the processes of a cluster; call it before anything else that uses JAX.

    It is ``jax.distributed.initialize`` with errors for people; who calls that himself need not call this.

    Args:
        coordinator: ``host:port`` of the first process, the same everywhere. Without arguments, what TPU pods, Slurm and
            Open MPI say is taken.
        processes: how many there are.
        process: this one's number, from 0.

    Raises:
        ConfigError: only some arguments were given; no cluster was found; the others did not come within 5 minutes; JAX
            was used before.
    """
    given = (coordinator, processes, process)
    if any(x is not None for x in given) and any(x is None for x in given):
        raise ConfigError("Give coordinator, processes and process together, or none of them on a TPU pod or Slurm.")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"coordinator {coordinator!r}: write HOST:PORT, such as 10.0.0.1:1234.")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"The processes of the training did not meet: {reason} Where no cluster is found, give coordinator (the "
            "first process's HOST:PORT), processes (how many) and process (this one's number, from 0)."
        ) from error


def connect() -> None:
    """Connect all devices while the processes are at the same place; all must call it, before anything else here.

    On CPU the devices that talk to each other for the first time must all come within 30 s, or JAX ends the training.
    Processes that have just read data or compiled a step, which take each its own time, may be further apart. Once
    connected, one waits for the others as long as it takes.

    Raises:
        TrainingError: a process did not come within half an hour.
    """
    if jax.process_count() == 1:
        return
    if jax.default_backend() == "cpu":
        # This meeting needs no connection of devices.
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        try:
            get_barrier_sync_fn()(key="leignn_jax: connect", timeout_ms=60_000 * _PATIENCE)
        except RuntimeError as error:
            raise TrainingError(f"The processes did not all begin within {_PATIENCE} minutes: {error}") from error
    # The groups of devices that the functions below use, and that of a step.
    gather("")
    from_first(None)
    mesh = make_mesh(1, jax.device_count())
    total = jax.shard_map(lambda x: jax.lax.psum(x, DATA), mesh=mesh, in_specs=P(DATA), out_specs=P())
    jax.block_until_ready(jax.jit(total)(place_batch(mesh, np.zeros(len(own_parts(mesh)), np.float32))))


def is_first() -> bool:
    """Whether this process writes the run folder."""
    return jax.process_index() == 0


def check_devices(devices: int, name: str, remedy: str) -> None:
    """ConfigError where ``devices`` would leave out a device of one of several processes: it quotes the setting's name
    and the remedy."""
    if jax.process_count() > 1 and devices != jax.device_count():
        raise ConfigError(
            f"{name} is {devices}, but {jax.process_count()} processes with {jax.device_count()} devices train together: "
            f"{remedy}."
        )


# ----------------------------------------------------------------------------------------------------- what all must know


def from_first(value: Any) -> Any:
    """The first process's value, plain JSON, in every process; all must call it."""
    if jax.process_count() == 1:
        return value
    return json.loads(bytes_from_first(json.dumps(value).encode() if is_first() else b""))


def bytes_from_first(content: bytes) -> bytes:
    """The first process's bytes in every process, whatever the others give; all must call it."""
    if jax.process_count() == 1:
        return content
    length = int(_broadcast(np.int64(len(content)).reshape(1).view(np.uint8)).view(np.int64)[0])
    return _broadcast(_padded(content if is_first() else b"", length)).tobytes()[:length]


def arrays_from_first(tree: Any) -> Any:
    """The first process's arrays, bit for bit and on the host, in every process; all must call it with like trees."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    sizes = [leaf.nbytes for leaf in leaves]
    content = _broadcast(np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8))
    parts = np.split(content, np.cumsum(sizes)[:-1])
    leaves = [part.view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def gather(text: str) -> list[str]:
    """The text of every process, in their order; all must call it."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    content = text.encode()
    lengths = [int(n) for n in process_allgather(np.int32(len(content)))]
    if not any(lengths):
        return [""] * len(lengths)
    everyone = process_allgather(_padded(content, max(lengths)))
    return [bytes(row[:length]).decode() for row, length in zip(everyone, lengths, strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Work that every process does by itself, after which all raise if it failed in one of them.

    The process that failed raises its own error, the others a TrainingError that quotes it. Nothing inside may wait for
    another process.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        failure = error
    told = gather("" if failure is None else f"on {socket.gethostname()}: {type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, text in enumerate(told):
        if text:
            raise TrainingError(f"Process {number} failed, so all stop; {text}")


def versions() -> dict[str, str]:
    """What :func:`check_same` is told of this process's software."""
    from leignn_jax import __version__

    return {"versions": f"leignn_jax {__version__}, jax {jax.__version__}"}


def check_same(facts: Mapping[str, str]) -> None:
    """TrainingError in every process where one differs from the first in a fact; it names both.

    Args:
        facts: by their names, such as the config or a file's hash.
    """
    if jax.process_count() == 1:
        return
    first, *others = [json.loads(text) for text in gather(json.dumps(dict(facts)))]
    for number, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise TrainingError(
                    f"Process {number} differs from process 0 in {name}: {_difference(first.get(name), other.get(name))}. "
                    "Give every process the same."
                )


def _difference(a: str | None, b: str | None) -> str:
    """The first lines in which two texts differ."""
    mine, others = (text.splitlines() if text else [] for text in (b, a))
    only = [
        "; ".join(x.strip() for x in p if x not in q)[:200] or "nothing" for p, q in ((mine, others), (others, mine))
    ]
    return f"{only[0]}, not {only[1]}"


def _padded(content: bytes, length: int) -> np.ndarray:
    size = max(_SHORTEST, 1 << (length - 1).bit_length())
    return np.frombuffer(content.ljust(size, b"\0"), np.uint8)


def _broadcast(content: np.ndarray) -> np.ndarray:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return np.ascontiguousarray(broadcast_one_to_all(content))
