"""The handlers of SIGTERM in a program that several gateways are mounted in."""

import asyncio
import signal

import pytest

from credit_service.gateway.stop_signals import StopSignals


@pytest.fixture
def programs_own():
    """The signals that reached the program's own handler."""
    reached = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda number, _: reached.append(number))
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_gateway_that_was_closed_keeps_no_signal_from_the_program(programs_own):
    stopped, loop = [], asyncio.get_running_loop()
    first, second = StopSignals(), StopSignals()
    first.chain(loop, lambda: stopped.append("first"))
    second.chain(loop, lambda: stopped.append("second"))
    # The handler of the second calls that of the first, which cannot be removed under it.
    first.release()
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert programs_own == [signal.SIGTERM]
    assert "second" in stopped
    second.release()
