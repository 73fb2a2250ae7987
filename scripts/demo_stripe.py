"""Plays a purchase, a refund, a won dispute and a top-up, from payment to balance, and shows it.

A fake Stripe and the bridge run as processes of their own beside a running service; no account at
Stripe is needed and nothing leaves this machine.
"""

import asyncio
import contextlib
import secrets
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from demo_programs import Service, StoryFailed, bridge, fake_stripe

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

_DELIVERY_SECONDS = 15
_PURCHASES = 2  # of the story: by the user, and by the top-up
_A_PERSON_MUST_ACT = 422
_PACKS = """
[[pack]]
id = "small"
name = "300 credits"
credits = 300
lookup_key = "credits_300"
amount_minor = 900
currency = "eur"
"""


@dataclass(frozen=True, slots=True)
class _Stage:
    """The user of the story, and the programs that take part."""

    client: CreditClient
    user_id: uuid.UUID
    stripe: httpx.AsyncClient
    bridge: httpx.AsyncClient
    token: str

    async def happens(self, action: str, **facts: object) -> dict[str, Any]:
        """Does something at Stripe, waits until its events are delivered, and shows the balance."""
        before = len((await self.stripe.get("/_fake/deliveries")).json())
        answer = await self.stripe.post(f"/_fake/{action}", json=facts)
        if answer.status_code != httpx.codes.OK:
            raise StoryFailed(f"The fake Stripe refuses {action}: {answer.text}")
        await self.delivered(before)
        return dict(answer.json())

    async def delivered(self, before: int = 0) -> None:
        """Waits until every event is delivered; shows them with their answers and the balance."""
        for _ in range(_DELIVERY_SECONDS):
            idle = (await self.stripe.get("/_fake/idle", params={"wait": 1})).json()["idle"]
            sent = await self.stripe.get("/_fake/deliveries", params={"since": before})
            attempts: list[dict[str, Any]] = sent.json()
            # A later try would get the same answer, so there is nothing to wait for.
            if idle or any(each["status"] == _A_PERSON_MUST_ACT for each in attempts):
                break
        if not idle:
            said = attempts[-1]["answer"] if attempts else "nothing"
            hint = ""
            if "user_not_found" in said:
                hint = (
                    "\nThis service does not add users: pass the id of an existing one with --user."
                )
            raise StoryFailed(f"The bridge refuses Stripe's events; it says: {said}{hint}")
        for attempt in attempts:
            milliseconds = round(attempt["seconds"] * 1000)
            print(f"   {attempt['type']:<33} {attempt['status']} after {milliseconds} ms")
        credit = await self.client.get_user_credit(self.user_id)
        print(f"   balance: {credit.balance} credits")


async def story(client: CreditClient, user_id: uuid.UUID, service: Service) -> None:
    """Buys a pack, refunds a part, wins a dispute over the rest, and tops up automatically.

    Raises:
        StoryFailed: a program does not start, or does not do what the story needs.
        CreditError: the credit service refuses.
    """
    # Called here so that a missing service is reported at once, and not by the bridge.
    await client.list_prices()
    secret, token = f"whsec_{secrets.token_hex(16)}", secrets.token_urlsafe(24)
    async with contextlib.AsyncExitStack() as stack:
        print("Starting a fake Stripe and the bridge ...")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        packs = directory / "packs.toml"
        packs.write_text(_PACKS)
        stripe_url = await stack.enter_async_context(fake_stripe())
        running = bridge(service, stripe=stripe_url, secret=secret, token=token, packs=packs)
        bridge_url = f"http://127.0.0.1:{await stack.enter_async_context(running)}"
        print(f"   fake Stripe: {stripe_url}\n   bridge: {bridge_url}")
        stage = _Stage(
            client,
            user_id,
            await stack.enter_async_context(httpx.AsyncClient(base_url=stripe_url, timeout=30)),
            await stack.enter_async_context(httpx.AsyncClient(base_url=bridge_url, timeout=30)),
            token,
        )
        price = {"unit_amount": 900, "currency": "eur", "lookup_key": "credits_300"}
        await stage.stripe.post("/_fake/price", json=price)
        endpoint = {"url": f"{bridge_url}/stripe/webhooks", "secret": secret}
        await stage.stripe.post("/_fake/endpoint", json=endpoint)
        try:
            await _get_back(stage, await _buy(stage))
            await _top_up(stage)
        except httpx.HTTPError as failure:
            gone = f"The bridge or the fake Stripe gives no answer: {failure!r}"
            raise StoryFailed(gone) from failure
        await _look_back(stage)


async def _buy(stage: _Stage) -> str:
    packs = (await stage.bridge.get("/credit-packs")).json()["packs"]
    offers = ", ".join(f"{each['name']} for {_money(each)}" for each in packs)
    print(f"\nOn sale: {offers}. The user {stage.user_id} buys a pack.")
    order = {
        "user_id": str(stage.user_id),
        "pack": packs[0]["id"],
        "success_url": "https://app.example.com/bought",
        "cancel_url": "https://app.example.com/shop",
        "idempotency_key": uuid.uuid4().hex,
        "save_card": True,
    }
    headers = {"Authorization": f"Bearer {stage.token}"}
    answer = await stage.bridge.post("/checkout-sessions", json=order, headers=headers)
    if answer.status_code != httpx.codes.OK:
        raise StoryFailed(f"The bridge makes no checkout session: {answer.text}")
    session = answer.json()
    print(f"   to pay at {session['url'][:64]}...")

    print("\nThe customer pays there, and Stripe sends the events to the bridge.")
    # Stripe's page answers with a redirect to success_url.
    await stage.stripe.post(session["url"])
    await stage.delivered()
    return str(session["id"])


async def _get_back(stage: _Stage, session_id: str) -> None:
    print("\nA third of the money is refunded, so a third of the credits is reversed.")
    await stage.happens("refund", payment=session_id, amount=300)

    print("\nThe customer disputes the rest at the bank, which withdraws it at once.")
    dispute = await stage.happens("dispute", payment=session_id, amount=600, reason="fraudulent")

    print("\nThe dispute is won, and the credits come back with the money.")
    await stage.happens("win", id=dispute["id"])


async def _top_up(stage: _Stage) -> None:
    print("\nBelow 50 credits the user wants another pack, charged to the saved card.")
    policy = pb.TopUp(below=50, pack="small", charges_per_month=3)
    await stage.client.set_account_policy(stage.user_id, top_up=policy)
    before = len((await stage.stripe.get("/_fake/deliveries")).json())
    credit = await stage.client.get_user_credit(stage.user_id)
    spent = max(1, credit.available - 40)
    print(f"   spends {spent} of {credit.available} credits")
    await stage.client.spend_credits(stage.user_id, amount=spent, idempotency_key=uuid.uuid4().hex)
    for _ in range(_DELIVERY_SECONDS * 5):
        async for top_up in stage.client.list_top_ups(stage.user_id, open_only=False):
            if top_up.state == pb.TOP_UP_STATE_SUCCEEDED:
                await stage.delivered(before)
                return
            break
        await asyncio.sleep(0.2)
    raise StoryFailed("The bridge does not charge the saved card.")


async def _look_back(stage: _Stage) -> None:
    print("\nThe history, newest first:")
    purchases = 0
    async for entry in stage.client.get_transaction_history(stage.user_id):
        kind = pb.TransactionType.Name(entry.type).removeprefix("TRANSACTION_TYPE_").lower()
        what = f"{entry.reference or entry.payment.ref}  {entry.description}".rstrip()
        moved = f"{entry.balance_change:+5}  -> {entry.balance_after:4}"
        print(f"   {entry.seq}  {kind:<9} {moved}  {what}")
        purchases += kind == "purchase"
        if purchases == _PURCHASES:
            break


def _money(pack: dict[str, Any]) -> str:
    # Correct for this pack only, because not every currency has hundredths.
    return f"{pack['amount_minor'] / 100:.2f} {pack['currency'].upper()}"
