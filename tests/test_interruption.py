"""What a process ends with, and how long a signal may wait."""

import jax
import pytest

from leignn_jax.interruption import exit_code, steps_at_once
from leignn_jax.simulation.engine import _chunk_of


def test_exit_codes_of_signals():
    assert [exit_code(name) for name in ("SIGINT", "SIGTERM", None)] == [130, 143, 143]


@pytest.mark.parametrize(("atoms", "steps"), [(1, 200), (250, 200), (1000, 50), (20_000, 2), (10**6, 1)])
def test_on_a_cpu_chunks_of_large_systems_are_short(monkeypatch, atoms, steps):
    assert steps_at_once(200, atoms) == steps
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps_at_once(200, atoms) == 200


@pytest.mark.parametrize(
    ("save_every", "log_every", "atoms", "chunk"),
    [
        (10, 10, 100, (20, 1, 500)),
        (10, 10, 1000, (5, 1, 50)),
        (1000, 10, 100, (1, 50, 500)),
        (1000, 10, 1000, (1, 5, 50)),
        (100, 100, 100_000, (1, 1, 1)),
    ],
)
def test_spans_and_lines_of_a_chunk(save_every, log_every, atoms, chunk):
    assert _chunk_of(save_every, log_every, atoms) == chunk
