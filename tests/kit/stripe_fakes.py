"""The fake Stripe and the bridge as separate processes, and the fake's controls."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import stripe
from kit.http_clients import http_client
from kit.paths import ROOT
from kit.programs import Process
from kit.waiting import patience

SECRET = "whsec_of_the_tests"
KEY = "sk_test_of_the_tests"


class Program(Process):
    """A Python module as a separate process, with these environment variables and few others."""

    def __init__(
        self, module: str, arguments: tuple[str, ...], environment: dict[str, str]
    ) -> None:
        ours = ("CREDIT_", "STRIPE_BRIDGE_")
        clean = {name: each for name, each in os.environ.items() if not name.startswith(ours)}
        self._start_module(module, arguments, {**clean, **environment})


class FakeStripe:
    """The actions of customers and banks, through the fake's control routes.

    Objects come back as the account's API version shows them. `payment` is the id of a session,
    payment intent, invoice or charge.
    """

    def __init__(self, url: str, process: Program, http: httpx.AsyncClient) -> None:
        self.url = url
        self.process = process
        self._http = http
        self._connections: list[stripe.HTTPXClient] = []

    def sdk(self, key: str = KEY, **options: object) -> stripe.StripeClient:
        """Stripe's own client of this fake; it is closed with the fake."""
        settings = {"max_network_retries": 0, **options}
        http = settings.setdefault(
            "http_client", stripe.HTTPXClient(timeout=patience(5), verify_ssl_certs=False)
        )
        self._connections.append(http)
        return stripe.StripeClient(key, base_addresses={"api": self.url}, **settings)

    async def close(self) -> None:
        """Closes the SDK's connections."""
        for http in self._connections:
            await http.close_async()

    async def do(self, action: str, **body: object) -> dict:
        """Does one action of `fake_stripe.control`; an AssertionError says why it failed."""
        answer = await self._http.post(f"/_fake/{action}", json=body)
        assert answer.status_code == 200, f"{action}: {answer.text}"
        return answer.json()

    async def batch(self, *actions: tuple[str, dict]) -> list[dict]:
        """Does many actions in one request, so that their events come together."""
        return await self.do(
            "batch", actions=[{"action": name, "body": body} for name, body in actions]
        )

    async def price(self, unit_amount: int = 900, **fields: object) -> dict:
        return await self.do("price", unit_amount=unit_amount, **fields)

    async def session(
        self, user_id: object = None, credits_: int = 100, amount: int = 900, **fields: object
    ) -> dict:
        """An open session as our checkout makes it; `fields` override the API's parameters."""
        return await self.do("session", **bought(user_id, credits_, amount, **fields))

    async def pay_session(self, id_: str, when: str = "now") -> dict:
        return await self.do("pay_session", id=id_, when=when)

    async def settle_session(self, id_: str, *, succeeds: bool = True) -> dict:
        return await self.do("settle_session", id=id_, succeeds=succeeds)

    async def purchase(
        self, user_id: object = None, credits_: int = 100, amount: int = 900, **fields: object
    ) -> str:
        """Makes a session and pays it; returns the id of the payment intent."""
        made = await self.do("purchase", **bought(user_id, credits_, amount, **fields))
        return made["payment_intent"]

    async def refund(
        self, payment: str, amount: int | None = None, status: str = "succeeded"
    ) -> dict:
        return await self.do("refund", payment=payment, amount=amount, status=status)

    async def change_refund(self, id_: str, status: str) -> dict:
        return await self.do("change_refund", id=id_, status=status)

    async def dispute(
        self, payment: str, amount: int | None = None, *, withdraw: bool = True
    ) -> dict:
        return await self.do("dispute", payment=payment, amount=amount, withdraw=withdraw)

    async def win(self, dispute_id: str) -> dict:
        return await self.do("win", id=dispute_id)

    async def lose_dispute(self, dispute_id: str, returned: int = 0) -> dict:
        return await self.do("lose", id=dispute_id, returned=returned)

    async def invoice(self, lines: list[dict], **fields: object) -> dict:
        return await self.do("invoice", lines=lines, **fields)

    async def event(self, kind: str, about: object, **fields: object) -> str:
        """Sends an event of any type about an object (id or whole); returns its id."""
        return (await self.do("event", type=kind, object=about, **fields))["id"]

    async def generation_failure(self, object_id: str, kind: str) -> str:
        """Informs thin destinations that no event of this kind was made; returns the event's id."""
        impact = {"event_type": kind, "related_object_id": object_id}
        failure = "v2.core.health.event_generation_failure.resolved"
        return await self.event(failure, {"impact": impact})

    async def deliver_to(self, url: str, secret: str = SECRET, **fields: object) -> dict:
        """Adds a webhook endpoint, or with `thin=True` a thin destination."""
        return await self.do("endpoint", url=url, secret=secret, **fields)

    async def delete_endpoint(self, id_: str) -> None:
        """Deletes an endpoint; events still on their way to it are given up."""
        await self.do("delete_endpoint", id=id_)

    async def settings(self, **changes: object) -> dict:
        """Sets the pace of deliveries: mode, retry_seconds, timeout_seconds, concurrency, ..."""
        return await self.do("settings", **changes)

    async def hold(self) -> None:
        """Keeps events back until `deliver_all`."""
        await self.settings(mode="hold")

    async def lose(self) -> None:
        """Forgets events for good, until `deliver_all`."""
        await self.settings(mode="lose")

    async def deliver_all(self, seconds: float = 30) -> dict:
        """Sends held events and waits until all are delivered; returns the counts."""
        await self.do("release")
        await self.do("hurry")
        return await self.idle(seconds)

    async def idle(self, seconds: float = 30, most: int = 0) -> dict:
        """Waits until at most `most` events are on their way, or fails with the last answers."""
        wait = patience(seconds)
        params = {"wait": wait, "most": most}
        answer = await self._http.get("/_fake/idle", params=params, timeout=wait + 10)
        counts = answer.json()
        if not counts["idle"]:
            raise AssertionError(f"{counts}\n{(await self.deliveries())[-5:]}")
        return counts

    async def counts(self) -> dict:
        return await self.do("counts")

    async def deliveries(self, **chosen: object) -> list[dict]:
        """The attempts so far, noise left out; `object=` or `since=` choose."""
        attempts = await self.do("deliveries", **chosen)
        return [each for each in attempts if not each["noise"]]

    async def events(self, **chosen: object) -> list[dict]:
        return await self.do("events", **chosen)

    async def faults(self, seed: int = 1, **shares: float) -> None:
        """Sets how often deliveries fail; without any, all succeed again."""
        await self.do("faults", seed=seed, **shares)

    async def api_faults(self, *faults: dict) -> None:
        """Sets how requests to the API fail; without any, all succeed again."""
        await self.do("api_faults", faults=list(faults))


def bought(user_id: object, credits_: int, amount: int, **fields: object) -> dict:
    """The parameters of a session that sells credits to a user, or of one that is not ours."""
    metadata = {}
    if user_id is not None:
        metadata = {"credit_user_id": str(user_id), "credits": str(credits_), "credits_v": "1"}
    price = {"currency": "eur", "unit_amount": amount, "product_data": {"name": "Credits"}}
    return {
        "line_items": [{"price_data": price, "quantity": 1}],
        "metadata": metadata,
        "payment_intent_data": {"metadata": metadata},
        "success_url": "https://app.example.com/bought",
        **fields,
    }


def fake_stripe_process(*arguments: str) -> Program:
    """Starts the fake Stripe, which is in scripts/."""
    paths = (os.environ.get("PYTHONPATH"), str(ROOT / "scripts"))
    return Program("fake_stripe", arguments, {"PYTHONPATH": os.pathsep.join(filter(None, paths))})


@asynccontextmanager
async def fake_stripe(*arguments: str, deliver_to: str | None = None) -> AsyncIterator[FakeStripe]:
    """Runs a fake Stripe in a separate process for the length of the block."""
    if deliver_to is not None:
        arguments = (*arguments, "--deliver-to", deliver_to, "--secret", SECRET)
    process = fake_stripe_process(*arguments)
    try:
        url = process.wait_for(r"fake stripe on (\S+)").group(1)
        async with http_client(base_url=url, timeout=patience(30)) as http:
            fake = FakeStripe(url, process, http)
            try:
                yield fake
            finally:
                await fake.close()
    finally:
        process.close()


@contextmanager
def bridge_process(
    fake_url: str, credit_target: str, *arguments: str, port: int = 0, **settings: str
) -> Iterator[Program]:
    """Runs `stripe-bridge serve`, or another of its commands, in a separate process.

    Args:
        fake_url: the address of the fake Stripe.
        credit_target: host:port of the credit service.
        arguments: of the command line, `serve` where there are none.
        port: to listen on; 0 takes any free one.
        settings: further ones, by their names without the prefix (`catalog="packs.toml"`).

    Yields:
        The process; `webhook_url(process)` waits until it listens.
    """
    variables = {
        "listen": f"127.0.0.1:{port}",
        "credit_target": credit_target,
        "stripe_address": fake_url,
        "stripe_key": KEY,
        "webhook_secrets": f"test:{SECRET}",
        "poll_seconds": "0",
        "unready_seconds": "0",
        "log_format": "json",
        **settings,
    }
    environment = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in variables.items()}
    process = Program("stripe_bridge", arguments or ("serve",), environment)
    try:
        yield process
    finally:
        process.close()


def bridge_url(process: Program) -> str:
    """Waits until the bridge listens and returns its address."""
    return f"http://127.0.0.1:{process.wait_until_listening()}"


def webhook_url(process: Program) -> str:
    """Waits until the bridge listens and returns the address for events."""
    return f"{bridge_url(process)}/stripe/webhooks"
