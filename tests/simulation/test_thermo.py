"""The log of a simulation: units in its header, numbers that come back exactly, rows that survive a kill."""

import errno
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leignn_jax.errors import FileFormatError, SimulationError
from leignn_jax.simulation.thermo import ThermoLog, read_thermo


def rows(steps):
    steps = np.asarray(steps)
    return {
        "step": steps,
        "time": steps * 0.1,
        "temperature": (steps / 3).astype(np.float32),
        "pressure": -steps / 7,
        "bias": steps**2,
    }


def assert_rows(path, steps):
    found, expected = read_thermo(path), rows(steps)
    assert list(found) == ["step", "time_fs", "temperature_K", "pressure_GPa", "bias"]
    assert found["step"].dtype == np.int64
    for name, values in zip(found, expected.values(), strict=True):
        np.testing.assert_array_equal(found[name].astype(values.dtype), values)


def test_round_trip_and_header(tmp_path):
    path = tmp_path / "run" / "thermo.csv"
    log = ThermoLog(path)
    log.append(rows(range(0, 30, 10)))
    assert_rows(path, range(0, 30, 10))
    log.append(rows([30]))
    assert_rows(path, range(0, 40, 10))
    lines = path.read_text().splitlines()
    assert lines[0] == "step,time_fs,temperature_K,pressure_GPa,bias"
    assert lines[2] == "10,1.0,3.3333333,-1.4285714285714286,100"
    assert len(lines) == 5


@given(cut=st.integers(0, 300), state=st.integers(-1, 12))
@settings(deadline=None, max_examples=40)
def test_a_torn_end_is_dropped_and_the_run_goes_on(tmp_path_factory, cut, state):
    path = tmp_path_factory.mktemp("log") / "thermo.csv"
    ThermoLog(path).append(rows(range(10)))
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    left = max(0, whole[:cut].count(b"\n") - 1)
    if whole[:cut].count(b"\n") > 0:
        assert_rows(path, range(left))
    log = ThermoLog(path, resume_step=state)
    start = min(left, state + 1)
    log.append(rows(range(start, 15)))
    assert_rows(path, range(15))


def test_zeros_after_a_power_cut_are_no_rows(tmp_path):
    path = tmp_path / "thermo.csv"
    ThermoLog(path).append(rows(range(5)))
    with open(path, "ab") as file:
        file.write(bytes(1000))
    assert_rows(path, range(5))
    ThermoLog(path, resume_step=4).append(rows([5]))
    assert_rows(path, range(6))
    assert b"\0" not in path.read_bytes()


def test_numbers_that_are_none(tmp_path):
    path = tmp_path / "thermo.csv"
    ThermoLog(path).append({"step": [0, 1, 2], "pressure": [np.nan, -np.inf, 1e300]})
    np.testing.assert_array_equal(read_thermo(path)["pressure_GPa"], [np.nan, -np.inf, 1e300])


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "thermo.csv"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_thermo(path)
    log = ThermoLog(path)
    with pytest.raises(SimulationError, match="needs the quantity 'step'; given are time_fs"):
        log.append({"time": [0.0]})
    log.append(rows([0, 1]))
    with pytest.raises(SimulationError, match="there is a log already"):
        ThermoLog(path)
    log = ThermoLog(path, resume_step=1)
    with pytest.raises(SimulationError, match="after step 1 come"):
        log.append(rows([1]))
    with pytest.raises(SimulationError, match="bias must be in all"):
        log.append({name: values for name, values in rows([2]).items() if name != "bias"})
    with pytest.raises(SimulationError, match=r"time_fs has shape \(2,\); step has \(1,\)"):
        log.append({**rows([2]), "time": [0.0, 1.0]})
    log.append(rows([]))
    assert_rows(path, [0, 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("\n1,", "\nx,"), r"line 3: not a row .*'x'"),
        (lambda text: text.replace("\n1,", "\n1,1,"), r"line 3: not a row .*6 values for 5 columns"),
        (lambda text: text.replace("step,", "stop,"), "first column is 'stop'"),
    ],
)
def test_damage_is_told(tmp_path, damage, message):
    path = tmp_path / "thermo.csv"
    ThermoLog(path).append(rows(range(3)))
    path.write_text(damage(path.read_text()))
    with pytest.raises(FileFormatError, match=message):
        read_thermo(path)
    with pytest.raises(FileFormatError, match=message):
        ThermoLog(path, resume_step=3)


def test_a_full_disk_is_told_and_leaves_no_half_row(tmp_path, monkeypatch):
    path = tmp_path / "thermo.csv"
    log = ThermoLog(path)
    log.append(rows(range(10)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(SimulationError, match=r"size of files is reached.* step 9 are safe"):
            log.append(rows(range(10, 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes().endswith(b"\n")
    log.append(rows(range(10, 20)))
    assert_rows(path, range(20))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log.append(rows([20]))
    log.flush()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SimulationError, match=r"disk is full.* Then resume the run"):
        log.flush()
    assert_rows(path, range(21))
