"""Type-check every annotated call of the package, keep compiled programs between runs, find the reference files."""

import os
from pathlib import Path

import pytest

# Set before jax is imported: compile once per machine, and keep worker processes from fighting over threads.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("leignn_jax", "beartype.beartype")

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published model's numbers; tests that need it are skipped where it is missing."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference numbers (../shared/reference) are not on this machine")
    return REFERENCE
