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


def test_known_bad_versions_of_jax_are_named():
    with pytest.warns(UserWarning, match=r"jax 0\.10\.2 gives wrong numbers"):
        leignn_jax._warn_of_known_bad("0.10.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leignn_jax._warn_of_known_bad("0.12.0")
