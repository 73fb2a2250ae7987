"""Keeps up with the cluster: reads the map of the shards again every minute."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import LedgerUnavailable
from credit_service.ledger.read_connections import repeated

if TYPE_CHECKING:
    from credit_service.database.shard_map import Shards
    from credit_service.ledger.read_connections import ReadPool

_log = structlog.get_logger()

_EVERY_SECONDS = 60.0


async def follow_shards(
    pool: ReadPool, shards: Shards, *, every_seconds: float = _EVERY_SECONDS
) -> None:
    """Reads the map of the shards again and again; runs until it is cancelled.

    Meanwhile lanes of the former node serve a shard that has moved. After a split a batch is
    refused, and its lane reads the map at once.

    Args:
        pool: lends a connection.
        shards: takes the map.
        every_seconds: how long it pauses, give or take a tenth, so that replicas take turns.
    """

    @repeated
    async def read() -> None:
        async with pool.lend() as connection:
            if await shards.read(connection):
                _log.info(
                    "the map of the shards has changed",
                    shards=len(shards.map.starts),
                    nodes=shards.map.node_count,
                )

    while True:
        await asyncio.sleep(every_seconds * random.uniform(0.9, 1.1))  # noqa: S311
        try:
            await read()
        except LedgerUnavailable:
            # Health and the log report it. The last map is still right, or a little old.
            pass
        except Exception:
            # This loop must outlive any failure.
            _log.exception("the map of the shards could not be read")
