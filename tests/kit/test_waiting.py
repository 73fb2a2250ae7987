"""Deadlines of tests follow the machine's pace, also if its load comes after the start."""

import time

import pytest
from kit import waiting


@pytest.fixture
def machine(monkeypatch):
    """Fakes a machine that was measured at one pace and has another when it is measured again."""

    def make(at_the_start, now):
        monkeypatch.setenv("TEST_PACE", str(at_the_start))
        monkeypatch.setattr(waiting, "_pace", lambda: now)

    return make


def test_a_deadline_that_has_not_passed_measures_nothing(machine, monkeypatch):
    machine(2, now=2)
    monkeypatch.setattr(waiting, "_pace", lambda: pytest.fail("measured without need"))
    assert not waiting.too_late(time.monotonic(), 1000)


def test_a_deadline_has_passed_when_the_machine_is_as_fast_as_before(machine):
    machine(2, now=2)
    assert waiting.too_late(time.monotonic() - 21, 10)


def test_a_machine_that_became_busier_gets_more_time_and_keeps_it(machine):
    machine(2, now=5)
    began = time.monotonic() - 21
    assert not waiting.too_late(began, 10)
    assert waiting.patience(10) == 50
    machine(waiting.patience(1), now=2)
    assert not waiting.too_late(began, 10)
    assert waiting.patience(10) == 50


async def test_a_busier_machine_waits_for_a_claim_past_the_first_deadline(machine):
    machine(0.001, now=30)
    looks = iter([False, False, True])
    assert await waiting.eventually(lambda: next(looks), seconds=1, every=0.01)


async def test_a_claim_that_never_comes_true_fails(machine):
    machine(0.001, now=0.001)
    with pytest.raises(AssertionError, match="never came true"):
        await waiting.eventually(lambda: False, seconds=1, every=0.01)
