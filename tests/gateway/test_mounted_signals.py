"""The handlers of SIGTERM in a program with several mounted gateways."""

import asyncio
import signal

import pytest

from credit_service.gateway.mounted_signals import MountedSignals


@pytest.fixture
def programs_own():
    """The signals that reached the program's own handler."""
    reached = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda number, _: reached.append(number))
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_closed_gateway_keeps_no_signal_from_the_program(programs_own):
    stopped, loop = [], asyncio.get_running_loop()
    first, second = MountedSignals(), MountedSignals()
    first.chain(loop, lambda: stopped.append("first"))
    second.chain(loop, lambda: stopped.append("second"))
    # The second gateway's handler calls the first one's, which therefore cannot be removed.
    first.release()
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert programs_own == [signal.SIGTERM]
    assert "second" in stopped
    second.release()
