"""Starts one of our servers in this process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def start(
    serve: Callable[[Any, asyncio.Event, Callable[[int], Awaitable[None]]], Any],
    settings: object,
    stop: asyncio.Event,
) -> tuple[int, asyncio.Task[Any]]:
    """Runs `serve` until `stop` is set; waits until it listens; returns its port and its task."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def started(port: int) -> None:
        ready.set_result(port)

    task = asyncio.create_task(serve(settings, stop, started))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        task.result()
        raise AssertionError("the server ended before it started")
    return ready.result(), task
