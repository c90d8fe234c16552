"""Files of frames, and runs without pictures."""

import pytest
from frames import copper

from leignn_jax.data.readers import write_hdf5
from leignn_jax.training import report


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder of train.h5 and test.h5, copper."""
    folder = tmp_path_factory.mktemp("data")
    write_hdf5(folder / "train.h5", copper(20, 0))
    write_hdf5(folder / "test.h5", copper(5, 1))
    return folder


@pytest.fixture
def without_pictures():
    """To draw takes longer than a small run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "save_figure", lambda _figure, _path: b"")
        yield
