"""A relay in the process of the tests, with short times, on a real database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kit.databases import Database
from kit.receivers import SECRET
from kit.waiting import patience

from credit_service.database.postgres import Address
from credit_service.relay.endpoints import EndpointsFile
from credit_service.relay.relay import Relay, RelaySettings
from credit_service.relay.timing import Timing

QUICK = Timing(
    lease=patience(2),
    look=0.02,
    save=0.02,
    attempt=patience(5),
    pause=0.05,
    pause_max=0.2,
    retry=0.05,
    retry_max=0.1,
)


def endpoint(name: str, port: int, types: str = '"*"', *, more: str = "", host: str = "") -> str:
    """An endpoint of the file, at a receiver on this machine, that gets the whole ledger."""
    return (
        f'[[endpoint]]\nname = "{name}"\nurl = "http://{host or "127.0.0.1"}:{port}/{name}"\n'
        f'secrets = ["{SECRET}"]\ntypes = [{types}]\nstart = "beginning"\n{more}\n'
    )


def write_endpoints(file: Path, *endpoints: str) -> None:
    """Writes the file as a new one, so that the relay sees a change regardless of the clock."""
    new = file.with_suffix(".new")
    new.write_text("\n".join(endpoints))
    new.replace(file)


def relay(database: Database, file: Path, **times: float) -> Relay:
    """Makes a relay that may reach this machine, with quick times or the given ones."""
    return Relay(
        RelaySettings(
            address=Address(database.service_url),
            endpoints=EndpointsFile(file, private=True),
            private=True,
            timing=replace(QUICK, **times),
        )
    )


@asynccontextmanager
async def relaying(database: Database, file: Path, **times: float) -> AsyncIterator[Relay]:
    """Runs a relay for the length of the block."""
    made = relay(database, file, **times)
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done()
    finally:
        made.stop()
        await task
