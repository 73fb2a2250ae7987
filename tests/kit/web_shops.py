"""A service, a fake Stripe that sells a pack, and the bridge between them, for pages that buy."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from kit.bridges import Bridge, bridge_settings, running_bridge
from kit.databases import Database
from kit.programs import free_port
from kit.services import running, server_settings
from kit.stripe_fakes import FakeStripe, fake_stripe
from kit.web_pages import Site, running_site

from credit_service import gateway
from credit_service.client import CreditClient
from stripe_bridge import server

_TOKEN = "a token of the gateway"


@dataclass
class Shop:
    """The servers that a page needs to sell; the bridge runs only within `bridge()`."""

    database: Database
    client: CreditClient
    target: str
    fake: FakeStripe
    settings: server.Settings
    port: int

    def bridge(self) -> AbstractAsyncContextManager[Bridge]:
        """Runs the bridge for the length of the block."""
        return running_bridge(self.settings)

    def site(self, site: Site, *, portal: bool = False) -> AbstractAsyncContextManager[str]:
        """Serves the page for the length of the block, always on the same port.

        With `portal` it has the billing portal; then checkouts are on another host, as at Stripe.
        """
        host = self.fake.url.removeprefix("http://")
        url = f"http://127.0.0.1:{self.port}"
        selling = gateway.Bridge(
            f"http://{self.settings.listen}",
            token=_TOKEN,
            success_url=f"{url}/?checkout={{CHECKOUT_SESSION_ID}}",
            cancel_url=f"{url}/",
            checkout_hosts=("checkout.stripe.com" if portal else host,),
            portal_return_url=f"{url}/" if portal else None,
            portal_hosts=(host,),
        )
        return running_site(site, self.target, port=self.port, bridge=selling)


@asynccontextmanager
async def running_shop(database: Database) -> AsyncIterator[Shop]:
    """Runs the service and the fake Stripe for the length of the block."""
    async with (
        fake_stripe() as fake,
        running(server_settings(database.service_url, adds_users=True)) as service,
    ):
        await fake.price(900, id="price_starter", currency="eur")
        settings = bridge_settings(
            service.target,
            stripe_address=fake.url,
            checkout_token_sha256=hashlib.sha256(_TOKEN.encode()).hexdigest(),
            listen=f"127.0.0.1:{free_port()}",
        )
        await fake.deliver_to(f"http://{settings.listen}/stripe/webhooks")
        client = await service.client()
        yield Shop(database, client, service.target, fake, settings, free_port())
