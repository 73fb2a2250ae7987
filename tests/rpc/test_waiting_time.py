"""The estimate of how long a call waits, and the calls it refuses, by a clock of the test's own."""

import pytest

from credit_service.errors import Overloaded
from credit_service.rpc.waiting_time import FEW_CALLS, WaitingTime

QUEUE = 4 * FEW_CALLS


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def waiting_time(clock):
    return WaitingTime(clock)


def answer(waiting_time, clock, count, a_second, waiting=QUEUE):
    for _ in range(count):
        clock.now += 1 / a_second
        waiting_time.answered(waiting)


def test_a_call_is_refused_when_the_queue_takes_more_than_half_of_its_time(waiting_time, clock):
    answer(waiting_time, clock, 500, a_second=100)
    waiting_time.require(200, 4.1)
    with pytest.raises(Overloaded) as refusal:
        waiting_time.require(200, 3.9)
    assert refusal.value.retry_ms == pytest.approx(2000, rel=0.01)


def test_a_call_without_a_deadline_may_wait_five_seconds(waiting_time, clock):
    answer(waiting_time, clock, 500, a_second=100)
    waiting_time.require(490, None)
    with pytest.raises(Overloaded):
        waiting_time.require(510, None)


@pytest.mark.parametrize(("a_second", "retry_ms"), [(10_000, 200), (500, 400), (10, 2000)])
def test_a_refused_caller_comes_back_when_those_before_it_are_answered(
    waiting_time, clock, a_second, retry_ms
):
    answer(waiting_time, clock, 1000, a_second)
    with pytest.raises(Overloaded) as refusal:
        waiting_time.require(200, 0.0)
    assert refusal.value.retry_ms == pytest.approx(retry_ms, abs=2)


def test_a_service_with_little_to_do_is_not_taken_for_a_slow_one(waiting_time, clock):
    answer(waiting_time, clock, 1000, a_second=1, waiting=FEW_CALLS - 1)
    waiting_time.require(10 * QUEUE, 0.1)


def test_without_an_estimate_calls_are_refused_once_no_call_has_moved_for_long(waiting_time, clock):
    waiting_time.require(FEW_CALLS - 1, 5.0)
    clock.now += 2.4
    waiting_time.require(QUEUE, 5.0)
    clock.now += 0.2
    with pytest.raises(Overloaded):
        waiting_time.require(QUEUE, 5.0)
    waiting_time.answered(QUEUE)
    waiting_time.require(QUEUE, 5.0)


def test_a_few_calls_that_do_not_move_keep_no_others_out(waiting_time, clock):
    waiting_time.require(FEW_CALLS - 1, 5.0)
    clock.now += 100
    waiting_time.require(FEW_CALLS - 1, 0.1)


@pytest.mark.parametrize(("before", "after"), [(50, 2000), (2000, 50)])
def test_the_estimate_follows_a_service_that_becomes_faster_or_slower(
    waiting_time, clock, before, after
):
    answer(waiting_time, clock, 10 * before, before)
    answer(waiting_time, clock, 10 * after, after)
    wait = 100 / after
    waiting_time.require(100, 2.4 * wait)
    with pytest.raises(Overloaded):
        waiting_time.require(100, 1.6 * wait)


def test_answers_that_come_in_bursts_are_not_taken_for_a_standstill(waiting_time, clock):
    for _ in range(20):
        clock.now += 0.5
        for _ in range(500):
            waiting_time.answered(1000)
    waiting_time.require(1000, 3.0)
