"""CreditClient for workers, gateways and the bridge: deadlines, safe repeats, keys, typed refusals.

Needs grpcio, protobuf and googleapis-common-protos, and nothing else. Credits are money, so a
worker fails closed: without an answer it does no work.

    async with CreditClient("localhost:50051", token=token) as client:
        try:
            spend = await client.spend_credits(
                user_id, operation="stem_separation", idempotency_key=f"spend:{job}:1"
            )
        except InsufficientCredits as refusal:
            show(refusal.shortfall)
"""

from credit_service.client.credits import CreditCalls
from credit_service.client.feed import FeedCalls
from credit_service.client.grants import GrantCalls
from credit_service.client.held_work import HeldWorkCalls
from credit_service.client.top_ups import TopUpCalls


class CreditClient(CreditCalls, GrantCalls, TopUpCalls, HeldWorkCalls, FeedCalls):
    """A connection to the credit service; one per process is enough, and it may be shared.

    Every method raises a refusal as a class of `credit_service.errors`. A read that gets no answer
    raises `LedgerUnavailable`, and a write `OutcomeUnknown`. A client may be made before an event
    loop runs, and used by one loop after another, but not by two at the same time.
    """
