"""No fuzzed case ends in a wrong number, a crash, a hang, a raw exception, or a refusal of what is right."""

import os

import pytest

from fuzz.campaign import failures, run, table
from fuzz.cases import identities, targets


def assert_all_good(count: int, workers: int) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    cases = list(identities(int(os.environ.get("FUZZ_CASES", count)), targets()))
    found = run(cases, seed=seed, workers=workers)
    print(table(found))
    bad = failures(found)
    assert not bad, f"{len(bad)} of {len(cases)} cases (FUZZ_SEED={seed}):\n" + "\n".join(bad)


def test_two_hundred_cases():
    assert_all_good(200, workers=1)


@pytest.mark.slow
def test_five_thousand_cases():
    assert_all_good(5000, workers=max(1, (os.cpu_count() or 2) // 2))


def test_cases_are_the_same_again():
    known = targets()
    few, many = list(identities(50, known)), list(identities(5000, known))
    assert many[:50] == few
    assert len(set(many)) == 5000
    assert {case.split(":")[0] for case in many} == set(known)
