"""Everything that can happen between Stripe and two bridges on one book."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from kit.bridges import Bridge, bridge_settings, event_of, running_bridge
from kit.databases import Database
from kit.services import Service
from kit.stripe_fakes import KEY, FakeStripe

from stripe_bridge.catalog import Policy
from stripe_bridge.reconcile import reconcile
from stripe_bridge.settle import Settler
from stripe_bridge.stripe_api import StripeReads, stripe_client


@dataclass
class Postmen:
    """Two bridges on one book, and everything that can happen between Stripe and them."""

    fake: FakeStripe
    database: Database
    bridges: list[Bridge]
    reads: StripeReads
    settler: Settler
    policy: Policy

    async def deliver(self, events, lots, *, drops):
        """Delivers each event once or more, to either bridge, in any order, several at once."""
        copies = [event for event in events for _ in range(lots.choice([1, 1, 2, 3]))]
        if drops:
            objects = sorted(set(map(object_of, events)))
            lost = {id_ for id_ in objects if lots.random() < 0.6}
            copies = [event for event in copies if object_of(event) not in lost]
        lots.shuffle(copies)
        while copies:
            wave = [copies.pop() for _ in range(min(len(copies), lots.randint(1, 12)))]
            sent = [thin(event) if lots.random() < 0.2 else event for event in wave]
            answers = await asyncio.gather(
                *(lots.choice(self.bridges).deliver(event) for event in sent)
            )
            assert {each.status_code for each in answers} == {200}, [each.text for each in answers]

    async def reconcile(self, since):
        summary = await reconcile(
            self.reads,
            self.settler,
            since=since,
            disputes_since=since,
            progress=lambda _name, _summary: None,
        )
        assert (summary.conflicts, summary.unresolved) == ([], [])
        return summary

    async def balances(self, users):
        rows = await self.database.fetch(
            "SELECT user_id, balance FROM user_credits WHERE user_id = ANY($1::uuid[])", users
        )
        found = {row["user_id"]: row["balance"] for row in rows}
        return [found.get(user, 0) for user in users]


def object_of(event):
    return event["data"]["object"]["id"]


def thin(event):
    """The same event as a thin destination gets it."""
    related = event["data"]["object"]
    return event_of(
        {},
        f"v1.{event['type']}",
        object="v2.core.event",
        created=datetime.fromtimestamp(event["created"], UTC).isoformat(),
        data={},
        related_object={"id": related["id"], "type": related["object"], "url": "/v1/unused"},
    )


@asynccontextmanager
async def hired(
    fake: FakeStripe, database: Database, service: Service, policy: Policy
) -> AsyncIterator[Postmen]:
    """Runs two bridges with this policy for the length of the block."""
    async with AsyncExitStack() as stack:
        reads = StripeReads(await stack.enter_async_context(stripe_client(KEY, address=fake.url)))
        settler = Settler(reads, await service.client(), policy)
        sides = bridge_settings(service.target, stripe_address=fake.url, policy=policy)
        bridges = [await stack.enter_async_context(running_bridge(sides)) for _ in range(2)]
        yield Postmen(fake, database, bridges, reads, settler, policy)
