"""Settles every object that Stripe created since a time, so that a lost event loses no payment.

Stripe can fail to make an event at all ("Handle irrecoverable events"), so objects are listed and
not events. A second run at the same time does no harm, and neither do webhooks during a run.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import structlog

from stripe_bridge.model import Settled
from stripe_bridge.refund_rules import of_capture
from stripe_bridge.settle_many import Finding, settle_many
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

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
    """The findings of a reconcile.

    Attributes:
        seen: objects settled or tried.
        already_there: objects whose effect was recorded before.
        repaired: objects whose effect is recorded only now (in a dry run: would be). Each is an
            event that was lost or is still on its way.
        nothing: objects without an effect: unpaid, or not ours.
        noticed: settled objects that a person should look at.
        conflicts: objects of which the credit service has other figures; a person must look.
        unresolved: objects that could not be settled.
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

    A failure of one object or one list does not stop it; the summary lists the objects that were
    not settled.

    Args:
        stripe: lists the objects.
        settler: settles them; with `validate_only` it writes nothing.
        since: the earliest creation of an object; 35 days back covers delayed payments.
        disputes_since: the earliest creation of a dispute, which may take months to end.
        progress: called after every few objects with the name of the list and the summary so far.
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
            async for group in settle_many(listed, settle, retry_seconds=retry_seconds):
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
        settler.invoice,
    )
    # An intent may carry our metadata without having a session.
    await settle_all(
        "payment intents",
        lambda after: stripe.payment_intents(created={"gte": created}, **after),
        settler.payment_intent,
    )
    await settle_all(
        "refunds",
        lambda after: stripe.refunds(created={"gte": created}, **after),
        settler.reversals.refund,
    )
    await settle_all(
        "disputes",
        lambda after: stripe.disputes(created={"gte": disputed}, **after),
        settler.reversals.dispute,
    )
    return summary


async def _whole(
    listing: Callable[[_After], AsyncIterator[Object]], retry_seconds: Sequence[float]
) -> AsyncIterator[Object]:
    """Lists everything; a list that breaks off is continued from there."""
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
        # Its session may have credited more than was received.
        if obj["id"] not in settled or of_capture(obj) is not None:
            yield obj
