"""What ``import leignn_jax`` does and does not do."""

import subprocess
import sys
import warnings

import pytest

import leignn_jax


def test_import_is_light_and_names_are_found():
    code = "import leignn_jax, sys; assert 'jax' not in sys.modules; assert leignn_jax.Graph and 'jax' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in leignn_jax.__all__:
        assert getattr(leignn_jax, name) is not None
        assert name in dir(leignn_jax)
    with pytest.raises(AttributeError, match="no attribute 'Grph'"):
        leignn_jax.__getattr__("Grph")


PACKAGES = ("", ".analysis", ".properties", ".simulation")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_fresh_session_finds_every_room_and_lists_public_names_only(package):
    # What is listed does not depend on what was imported before, and all of it is there without another import.
    code = f"""
import leignn_jax
package = leignn_jax{package}
before = dir(package)
assert before == sorted({{*package.__all__}} | ({{'__version__'}} if {not package} else set())), before
for name in package.__all__:
    assert getattr(package, name) is not None, name
assert dir(package) == before
assert leignn_jax.analysis.soft_rdf.smooth_rdf and leignn_jax.simulation.simple_models.IdealGas
assert not {{'TYPE_CHECKING', 'Any', 'importlib', 'annotations', 'warnings'}} & set(before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_known_bad_versions_of_jax_are_named():
    with pytest.warns(UserWarning, match=r"jax 0\.10\.2 gives wrong numbers"):
        leignn_jax._warn_of_known_bad("0.10.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leignn_jax._warn_of_known_bad("0.12.0")
