"""Writes purchases and reversals to the credit service, and maps its refusals to results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client import Payment
from credit_service.errors import (
    IdempotencyKeyReused,
    PaymentMismatch,
    PaymentNotFound,
    PaymentReused,
    Refusal,
    ReversalReused,
    UserDeleted,
)
from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge.model import Settled, Unresolved

if TYPE_CHECKING:
    from credit_service.client import CreditClient
    from stripe_bridge.model import Grant, Life, Notice, Reversal


class CreditWrites:
    """Writes purchases and reversals.

    Every method raises:
        Unresolved: the credit service refuses the call, and a person must act.
        CreditError: it gave no final answer, or does not accept the bridge's token.
    """

    def __init__(self, client: CreditClient, *, validate_only: bool) -> None:
        """Writes through `client`; with `validate_only` it checks everything instead."""
        self._client = client
        self._validate_only = validate_only

    async def purchase(self, grant: Grant) -> Settled:
        """Credits a purchase, once."""
        refs = (grant.payment_ref,)
        try:
            bought = await self._client.purchase_credits(
                grant.user_id,
                grant.credits,
                payment=Payment(
                    ref=grant.payment_ref,
                    amount_minor=grant.amount_minor,
                    currency=grant.currency,
                ),
                expire_time=grant.life.expire_time,
                valid_for=grant.life.valid_for,
                rollover=_rollover(grant.life),
                idempotency_key=grant.payment_ref,
                reference=grant.source,
                validate_only=self._validate_only,
            )
        except UserDeleted:
            return Settled("nothing", "user_deleted", refs)
        except (PaymentReused, IdempotencyKeyReused) as conflict:
            return Settled("conflict", conflict.reason.lower(), refs, alerts=True)
        except Refusal as refusal:
            raise _unresolved(refusal) from refusal
        return _written("purchase", refs, None, replayed=bought.replayed)

    async def reverse(self, reversal: Reversal) -> Settled | None:
        """Reverses the share of a refund or dispute, once; None: its payment has no purchase."""
        refs = (reversal.payment_ref, reversal.reversal_ref)
        try:
            done = await self._client.reverse_purchase(
                reversal.payment_ref,
                reversal_ref=reversal.reversal_ref,
                revision=reversal.revision,
                reversed_minor=reversal.reversed_minor,
                paid_minor=reversal.paid_minor,
                currency=reversal.currency,
                reason=reversal.reason,
                validate_only=self._validate_only,
            )
        except PaymentNotFound:
            return None
        except UserDeleted:
            return Settled("nothing", "user_deleted", refs)
        except (ReversalReused, PaymentMismatch) as conflict:
            return Settled("conflict", conflict.reason.lower(), refs, alerts=True)
        except Refusal as refusal:
            raise _unresolved(refusal) from refusal
        return _written("reversal", refs, reversal.notice, replayed=done.replayed)


def _rollover(life: Life) -> pb.Rollover | None:
    rollover = life.rollover
    return None if rollover is None else pb.Rollover(series=rollover.series, cap=rollover.cap)


def _written(
    reason: str, refs: tuple[str, ...], notice: Notice | None, *, replayed: bool
) -> Settled:
    if replayed:
        return Settled("replayed", notice or reason, refs)
    return Settled("committed", notice or reason, refs, alerts=notice is not None)


def _unresolved(refusal: Refusal) -> Unresolved:
    return Unresolved(refusal.reason.lower(), str(refusal))
