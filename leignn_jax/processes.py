"""Several processes, one per host, that train or simulate together: how they meet and agree.

Every process runs the same program on the same data. The first one alone reads and writes the folder and tells the others
what it finds. With one process everything here is free and changes nothing.

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
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leignn_jax.errors import ConfigError, ProcessError

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
            f"The processes did not meet: {reason} Where no cluster is found, give coordinator (the "
            "first process's HOST:PORT), processes (how many) and process (this one's number, from 0)."
        ) from error


def connect() -> None:
    """Connect all devices while the processes are at the same place; all must call it, before anything else here.

    On CPU the devices that talk to each other for the first time must all come within 30 s, or JAX ends the program.
    Processes that have just read data or compiled a step, which take each its own time, may be further apart. Once
    connected, one waits for the others as long as it takes.

    Raises:
        ProcessError: a process did not come within half an hour.
    """
    if jax.process_count() == 1:
        return
    if jax.default_backend() == "cpu":
        # This meeting needs no connection of devices.
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        try:
            get_barrier_sync_fn()(key="leignn_jax: connect", timeout_ms=60_000 * _PATIENCE)
        except RuntimeError as error:
            raise ProcessError(f"The processes did not all begin within {_PATIENCE} minutes: {error}") from error
    # The groups of devices that the functions below use, and that of a step.
    gather("")
    from_first(None)
    mesh = Mesh(np.array(jax.devices()), ("all",))
    total = jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P())
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, P("all")), lambda _: np.ones(1, np.float32))
    jax.block_until_ready(jax.jit(total)(ones))


def is_first() -> bool:
    """Whether this process writes the folder and shows progress."""
    return jax.process_index() == 0


def check_devices(devices: int, name: str, remedy: str) -> None:
    """ConfigError where ``devices`` would leave out a device of one of several processes: it quotes the setting's name
    and the remedy."""
    if jax.process_count() > 1 and devices != jax.device_count():
        raise ConfigError(
            f"{name} is {devices}, but {jax.process_count()} processes with {jax.device_count()} devices run together: "
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
    """The first process's arrays, bit for bit and on the host, in every process; all must call it with like trees.

    Random keys (``jax.random.key``) stay jax's.
    """
    if jax.process_count() == 1:
        return tree
    given, structure = jax.tree.flatten(tree)
    leaves = [np.asarray(_numbers(leaf)) for leaf in given]
    sizes = [leaf.nbytes for leaf in leaves]
    content = _broadcast(np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8))
    parts = np.split(content, np.cumsum(sizes)[:-1])
    leaves = [part.view(leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, [_with_numbers(*pair) for pair in zip(given, leaves, strict=True)])


def place(sharding: NamedSharding, tree: Any) -> Any:
    """Arrays that are whole in every process, on the devices of all as a sharding says; those that lie so are not copied.

    Random keys (``jax.random.key``) stay jax's.
    """

    def one(x):
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        array = np.asarray(_numbers(x))
        return _with_numbers(x, jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))

    return jax.tree.map(one, tree)


def on_host(tree: Any) -> Any:
    """Arrays on the host, whole in every process; where they are divided among processes, all must call it.

    Random keys (``jax.random.key``) stay jax's.
    """

    def one(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        from jax.experimental.multihost_utils import process_allgather

        # One after the other: no device must have room for all.
        return _with_numbers(x, process_allgather(_numbers(x), tiled=True))

    return jax.device_get(jax.tree.map(one, tree))


def largest(*values: int) -> list[int]:
    """Of each whole number the largest that any process gives; all must call it."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(np.array(values, np.int32)).max(0).tolist()


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

    The process that failed raises its own error, the others a ProcessError that quotes it. Nothing inside may wait for
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
            raise ProcessError(f"Process {number} failed, so all stop; {text}")


def versions() -> dict[str, str]:
    """What :func:`check_same` is told of this process's software."""
    from leignn_jax import __version__

    return {"versions": f"leignn_jax {__version__}, jax {jax.__version__}"}


def check_same(facts: Mapping[str, str]) -> None:
    """ProcessError in every process where one differs from the first in a fact; it names both.

    Args:
        facts: by their names, such as the config or a file's hash.
    """
    if jax.process_count() == 1:
        return
    first, *others = [json.loads(text) for text in gather(json.dumps(dict(facts)))]
    for number, other in enumerate(others, 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ProcessError(
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


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> Any:
    """An array, or the numbers that random keys are made of."""
    return jax.random.key_data(x) if _is_key(x) else x


def _with_numbers(x: Any, numbers: Any) -> Any:
    """Numbers of :func:`_numbers` as what ``x`` is."""
    return jax.random.wrap_key_data(jnp.asarray(numbers), impl=jax.random.key_impl(x)) if _is_key(x) else numbers


def _padded(content: bytes, length: int) -> np.ndarray:
    size = max(_SHORTEST, 1 << (length - 1).bit_length())
    return np.frombuffer(content.ljust(size, b"\0"), np.uint8)


def _broadcast(content: np.ndarray) -> np.ndarray:
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return np.ascontiguousarray(broadcast_one_to_all(content))
