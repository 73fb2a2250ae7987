"""Settles again everything that Stripe has of a time, so that no lost event loses a payment.

Stripe can fail to make an event at all ("Handle irrecoverable events"), so the objects are listed
and not the events. A second run at once, or webhooks that come meanwhile, do no harm.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import structlog

from stripe_bridge.model import Settled
from stripe_bridge.reversals import of_capture
from stripe_bridge.stripe_api import StripeAway, StripeRefuses
from stripe_bridge.walk import Finding, walk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from datetime import datetime

    from stripe_bridge.fields import Object
    from stripe_bridge.settle import Settler
    from stripe_bridge.stripe_api import StripeReads

_log = structlog.get_logger()

RETRY_SECONDS = (0.5, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class Summary:
    """What a reconcile found.

    Attributes:
        seen: objects looked at.
        already_there: whose effect the credit service had.
        repaired: whose effect it has only now (or would have, where nothing may be written). Each
            is an event that was lost or is still on its way.
        nothing: that ask for nothing: unpaid, or not ours.
        noticed: that are settled and a person should look at all the same.
        conflicts: of which the credit service has other figures, which stand; a person must look.
        unresolved: that could not be settled.
    """

    seen: int = 0
    already_there: int = 0
    repaired: int = 0
    nothing: int = 0
    noticed: list[Finding] = field(default_factory=list)
    conflicts: list[Finding] = field(default_factory=list)
    unresolved: list[Finding] = field(default_factory=list)

    def add(self, name: str, found: Settled | Finding) -> None:
        """Counts one object."""
        self.seen += 1
        if isinstance(found, Finding):
            self.unresolved.append(found)
            return
        finding = Finding(name, found.reason, ", ".join(found.refs))
        match found.outcome:
            case "replayed":
                self.already_there += 1
            case "committed":
                self.repaired += 1
            case "nothing":
                self.nothing += 1
            case "conflict":
                self.conflicts.append(finding)
        if found.alerts and found.outcome != "conflict":
            self.noticed.append(finding)


class _After(TypedDict, total=False):
    starting_after: str


async def reconcile(
    stripe: StripeReads,
    settler: Settler,
    *,
    since: datetime,
    disputes_since: datetime,
    progress: Callable[[str, Summary], None],
    retry_seconds: Sequence[float] = RETRY_SECONDS,
) -> Summary:
    """Settles completed sessions, paid invoices, payment intents, refunds and disputes.

    Nothing that goes wrong with one object or one list stops it: what could not be settled is in
    the summary.

    Args:
        stripe: lists the objects.
        settler: settles them; one made with `validate_only` writes nothing.
        since: the earliest creation of an object; 35 days back covers delayed payments.
        disputes_since: the same for disputes, which live for months.
        progress: is told what is walked and the summary so far, after every few objects.
        retry_seconds: the pause before each further try, for a failure that may pass.
    """
    created = int(since.timestamp())
    disputed = int(disputes_since.timestamp())
    summary = Summary()
    settled: set[object] = set()

    async def settle_all(
        name: str,
        listing: Callable[[_After], AsyncIterator[Object]],
        settle: Callable[[Object], Awaitable[Settled]],
    ) -> None:
        progress(name, summary)
        listed = _unless(_whole(listing, retry_seconds), settled)
        try:
            async for group in walk(listed, settle, retry_seconds=retry_seconds):
                for obj, found in group:
                    summary.add(str(obj.get("id")), found)
                    if isinstance(found, Finding) or found.outcome != "nothing":
                        settled.add(obj.get("payment_intent"))
                    if isinstance(found, Settled) and found.outcome == "committed":
                        _log.info("repaired", object=obj["id"], refs=found.refs)
                progress(name, summary)
        except (StripeAway, StripeRefuses) as problem:
            incomplete = Finding(name, "list_incomplete", str(problem), passing=True)
            summary.unresolved.append(incomplete)

    await settle_all(
        "sessions",
        lambda after: stripe.sessions(created={"gte": created}, status="complete", **after),
        settler.purchases.session,
    )
    await settle_all(
        "invoices",
        lambda after: stripe.invoices(created={"gte": created}, status="paid", **after),
        settler.purchases.invoice,
    )
    # What the sessions did not settle, for an intent may carry our metadata and have no session.
    await settle_all(
        "payment intents",
        lambda after: stripe.payment_intents(created={"gte": created}, **after),
        settler.payment_intent,
    )
    await settle_all(
        "refunds",
        lambda after: stripe.refunds(created={"gte": created}, **after),
        settler.money_back.refund,
    )
    await settle_all(
        "disputes",
        lambda after: stripe.disputes(created={"gte": disputed}, **after),
        settler.money_back.dispute,
    )
    return summary


async def _whole(
    listing: Callable[[_After], AsyncIterator[Object]], retry_seconds: Sequence[float]
) -> AsyncIterator[Object]:
    """Lists everything; a list that breaks off is taken up where it did."""
    after: _After = {}
    pauses = iter(retry_seconds)
    while True:
        try:
            async for obj in listing(after):
                yield obj
                after = {"starting_after": obj["id"]}
                pauses = iter(retry_seconds)
        except StripeAway:
            pause = next(pauses, None)
            if pause is None:
                raise
            await asyncio.sleep(pause)
        else:
            return


async def _unless(listed: AsyncIterator[Object], settled: set[object]) -> AsyncIterator[Object]:
    async for obj in listed:
        # What its session settled may not be all: less may have been received than was asked for.
        if obj["id"] not in settled or of_capture(obj) is not None:
            yield obj
