"""Type-check every annotated call of the package, keep compiled programs between runs, find the reference files."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

# Set before jax is imported: compile once per machine, and keep worker processes from fighting over threads.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# XLA's older way to fused loops compiles in a third of the time. Newer versions have it no more, nor know the flag; the
# second Python of .ci/run has such a one.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

from jaxtyping import install_import_hook

# All but models.config, which checks its values itself and says more than a type checker would.
CHECKED = ("graph", "neighbors", "pair_ops", "potential", "potential_file", "testing", "interop")
CHECKED_MODELS = ("higher_order", "layers", "leignn", "network", "radial", "repulsion")
install_import_hook(
    [f"leignn_jax.{name}" for name in CHECKED] + [f"leignn_jax.models.{name}" for name in CHECKED_MODELS],
    "beartype.beartype",
)


# Files that take longest, by name. Workers take whole files: a long one that is begun last leaves the others idle.
LONGEST = (
    "test_docs.py",
    "test_ensembles.py",
    "test_engine.py",
    "test_domains.py",
    "test_potential.py",
    "test_loop.py",
    "test_processes.py",
    "test_jax_md.py",
    "test_committee.py",
    "test_whole_numbers.py",
    "test_lowering.py",
    "test_study.py",
    "test_ledger.py",
    "test_search.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Drop compiled programs after each file: on CPU each keeps several memory mappings, of which Linux grants a process
    65,530; a process that asks for more dies by a segmentation fault (jax issue 27201)."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None:
        gc.collect()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def fast_compiles():
    """Compile without most optimisations, here and in processes started from here: for tests that compile much and
    compute little. Both must agree where bits are compared."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    yield
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def shared_programs():
    """Trainings and studies of one file share the programs that they have in common; each still counts its own."""
    import jax

    from leignn_jax.training import programs as rooms

    programs = {}

    class Shared(rooms.CountedCompiles):
        def __init__(self, function, planned, name, donate=()):
            super().__init__(function, planned, name, donate)
            own = self._jitted

            def compiled(*args):
                leaves, structure = jax.tree.flatten(args)
                kinds = [(x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves]
                key = (repr(function), structure, *kinds)
                if key not in programs:
                    # With the function: another one may get its address, which its name holds, when it is gone.
                    programs[key] = own.lower(*args).compile(), function
                return programs[key][0]

            self._jitted = SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=lambda: compiled(*args)))

    before = rooms.CountedCompiles
    rooms.CountedCompiles = Shared
    yield
    rooms.CountedCompiles = before


@pytest.fixture
def x64():
    """float64 on the device for one test."""
    import jax

    with jax.enable_x64(True):
        yield


REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published model's numbers; tests that need it are skipped where it is missing."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference numbers (../shared/reference) are not on this machine")
    return REFERENCE
