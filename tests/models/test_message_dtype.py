"""Messages in bfloat16: where they are asked for, in every arithmetic, and whatever a structure lies beside."""

import ase.build
import jax
import numpy as np
import pytest

import leignn_jax as leignn

pytestmark = pytest.mark.usefixtures("fast_compiles")


@pytest.fixture(scope="module")
def silicon():
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def potential(message_dtype):
    config = leignn.preset("small", elements=("Si",), features=16, message_dtype=message_dtype)
    return leignn.Potential.create(config, jax.random.key(0))


def test_in_both_arithmetics(silicon):
    rounded, exact = (potential(dtype) for dtype in ("bfloat16", "float32"))
    wanted = exact.predict(silicon, dtype="float64")
    size = np.sqrt((wanted.forces**2).mean())
    for dtype in ("float32", "float64"):
        found = rounded.predict(silicon, dtype=dtype)
        assert 0 < np.abs(found.forces - wanted.forces).max() < 0.1 * size
    relaxed = leignn.relax(rounded, silicon, steps=3, progress=False)
    assert relaxed.steps > 0


def test_an_answer_does_not_depend_on_what_else_is_asked(silicon):
    """Beside a structure with more neighbours tables are wider."""
    rounded = potential("bfloat16")
    dense = silicon.copy()
    dense.set_cell(dense.cell * 0.85, scale_atoms=True)
    alone, (beside, _) = rounded.predict(silicon), rounded.predict([silicon, dense])
    assert alone.energy == pytest.approx(beside.energy, abs=1e-5)
    np.testing.assert_allclose(alone.forces, beside.forces, atol=1e-5)
