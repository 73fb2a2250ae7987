"""Rows of the feed: how fast a reader catches up, and how late it gets a new entry at full load."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

from benchmark import measuring
from benchmark.lines import Line, at_least, below, busy
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmark.testbed import Testbed

_PAGE_SIZE = 1000
_TURN_SECONDS = 20.0
_MESSAGE_BYTES_MAX = 8 * 1024 * 1024


def feed(testbed: Testbed) -> list[Line]:
    """Measures one reader: alone from the first entry on, and up to date while others spend."""
    target = testbed.service.target
    load = testbed.load(testbed.service, "spend", 100)
    load(testbed.extent.seconds)  # so that there is something to catch up with
    # The first turn reads to the end, however long the feed of this run has become.
    entries, seconds, cursor = asyncio.run(_catch_up(target))
    rates = [entries / seconds]
    testbed.say(f"turn 1 of {testbed.extent.turns}: read: {rates[-1]:,.0f}/s")
    for turn in range(1, testbed.extent.turns):
        read, seconds, _ = asyncio.run(_catch_up(target, _TURN_SECONDS))
        rates.append(read / seconds)
        testbed.say(f"turn {turn + 1} of {testbed.extent.turns}: read: {rates[-1]:,.0f}/s")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, testbed.extent.seconds)
        waited = asyncio.run(_follow(target, cursor, loading.done))
        sample = loading.result()
    return [
        Line(
            row="feed",
            measured="entries read by one reader that catches up",
            value=statistics.median(rates),
            unit="/s",
            target=at_least(20_000),
            note=f"{entries:,} entries; turns {min(rates):,.0f} to {max(rates):,.0f}",
        ),
        Line(
            row="feed",
            measured="from an entry's time to its reader while others spend at full load, p99",
            value=measuring.quantile_ms(waited, 0.99),
            unit="ms",
            target=below(250),
            note=f"{len(waited):,} entries; {busy([sample])}",
            failed=measuring.failures({"spends": [sample]}),
        ),
    ]


async def _catch_up(target: str, seconds_max: float = math.inf) -> tuple[int, float, str]:
    """Reads from the first item and returns the count of items, the seconds and the cursor.

    It ends at the last item, or with the first page after `seconds_max`.
    """
    items, started = 0, time.perf_counter()
    async for response in _responses(target, ""):
        items += len(response.items)
        seconds = time.perf_counter() - started
        if response.caught_up or seconds > seconds_max:
            return items, seconds, response.cursor
    raise AssertionError("the stream has ended")


async def _follow(target: str, cursor: str, done: Callable[[], bool]) -> list[int]:
    """Reads until the load is done; returns the delay of each entry in microseconds."""
    waited = []
    async for response in _responses(target, cursor):
        now = time.time()
        for item in response.items:
            written = item.transaction.timestamp
            waited.append(round((now - written.seconds) * 1_000_000 - written.nanos / 1000))
        if response.caught_up and done():
            break
    return waited


async def _responses(target: str, cursor: str) -> AsyncIterator[pb.StreamTransactionsResponse]:
    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)]
    request = pb.StreamTransactionsRequest(cursor=cursor, page_size=_PAGE_SIZE)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        async for response in pb_grpc.CreditServiceStub(channel).StreamTransactions(request):
            yield response
