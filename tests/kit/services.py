"""The service in the process of the tests, on a real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace

from kit.in_process import start
from kit.waiting import patience

from credit_service import server
from credit_service.client import CreditClient
from credit_service.database.postgres import Address
from credit_service.ledger.transactions import WriterSettings
from credit_service.rpc.access import Authenticator
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms

TERMS = Terms(
    PriceList({"stem_separation": Price(10, "separation"), "render": Price(5, "render")}), 0
)


@dataclass
class Service:
    """A service that runs in this process, on a real socket."""

    port: int
    settings: server.Settings
    stop: asyncio.Event
    clients: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def client(self, **options: object) -> CreditClient:
        """A client that is closed with the service, and as patient as the machine is slow."""
        options.setdefault("deadline_seconds", patience(5))
        return await self.clients.enter_async_context(CreditClient(self.target, **options))


def writer_settings(service_url: str, **changes: object) -> WriterSettings:
    """Settings of the lanes, as an ordinary start has them."""
    return replace(
        WriterSettings(
            address=Address(service_url),
            terms=TERMS,
            adds_users=False,
            lanes=4,
            queue_limit=1000,
            batch_limit=500,
        ),
        **changes,
    )


def server_settings(service_url: str, **changes: object) -> server.Settings:
    """Settings of a server on any free port, as an ordinary start has them.

    The changes are fields of `server.Settings` and of its `WriterSettings`.
    """
    of_writers = {each.name for each in fields(WriterSettings)} & changes.keys()
    writers = writer_settings(service_url, **{name: changes.pop(name) for name in of_writers})
    return replace(
        server.Settings(
            listen="127.0.0.1:0",
            health_listen=None,
            writers=writers,
            authenticator=Authenticator(None),
            certificate=None,
            pool_size=4,
            calls_in_flight=4000,
            drain_seconds=patience(10),
            connection_age_seconds=600,
            share_port=False,
            metrics_port=None,
            metrics_host="127.0.0.1",
        ),
        **changes,
    )


@asynccontextmanager
async def running(settings: server.Settings) -> AsyncIterator[Service]:
    """Runs the service in this process for the length of the block, and drains it."""
    stop = asyncio.Event()
    port, task = await start(server.serve, settings, stop)
    service = Service(port, settings, stop)
    try:
        async with service.clients:
            yield service
    finally:
        stop.set()
        await task
