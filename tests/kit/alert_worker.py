"""A process that makes alerts whenever it has the lease, until it is killed."""

import asyncio
import contextlib
import sys
from datetime import timedelta

from kit.alerts import LOW_TERMS, WORKER_LEASE_SECONDS, making

from credit_service.database.postgres import Address
from credit_service.ledger.read_connections import ReadPool
from credit_service.relay.lease import Lease, LeaseLostError


async def main(url: str, cool_down: timedelta) -> None:
    """Takes the lease again and again, as every replica does."""
    pool = ReadPool(Address(url), 3)
    await pool.open()
    while True:
        lease = await Lease.take(pool, "worker", WORKER_LEASE_SECONDS)
        if lease is None:
            await asyncio.sleep(0.05)
            continue
        async with making(pool, lease, LOW_TERMS, cool_down) as alerts:
            print("makes alerts", flush=True)
            keeping = asyncio.create_task(lease.keep())
            await asyncio.wait({keeping, alerts}, return_when=asyncio.FIRST_COMPLETED)
            keeping.cancel()
            for task in (keeping, alerts):
                with contextlib.suppress(asyncio.CancelledError, LeaseLostError):
                    if task.done():
                        task.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], timedelta(seconds=float(sys.argv[2]))))
