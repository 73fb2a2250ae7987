"""The book's values as messages of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from credit_service.model import transaction_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from credit_service.model import Account, Entry

TYPES: dict[str, pb.TransactionType.ValueType] = {
    "purchase": pb.TRANSACTION_TYPE_PURCHASE,
    "spend": pb.TRANSACTION_TYPE_SPEND,
    "refund": pb.TRANSACTION_TYPE_REFUND,
    "grant": pb.TRANSACTION_TYPE_GRANT,
    "reversal": pb.TRANSACTION_TYPE_REVERSAL,
}
TYPE_NAMES = {value: name for name, value in TYPES.items()}


def timestamp(time: datetime) -> Timestamp:
    """Renders a time."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def user_credit(account: Account, min_balance: int, newest: Iterable[Entry] = ()) -> pb.UserCredit:
    """Renders an account with its floor and, where given, its newest entries."""
    return pb.UserCredit(
        user_id=str(account.user_id),
        balance=account.balance,
        held=account.held,
        available=account.available,
        min_balance=min_balance,
        last_updated=timestamp(account.last_updated) if account.last_updated else None,
        seq=account.seq,
        transaction_history=[transaction(entry) for entry in newest],
    )


def transaction(entry: Entry, *, written: bool = True) -> pb.CreditTransaction:
    """Renders an entry; one that was only validated has no id and no place in the book."""
    related, payment = entry.related_seq, entry.payment
    return pb.CreditTransaction(
        id=transaction_id(entry.user_id, entry.seq) if written else "",
        user_id=str(entry.user_id),
        seq=entry.seq if written else 0,
        type=TYPES[entry.type],
        amount=entry.amount,
        balance_change=entry.balance_change,
        held_change=entry.held_change,
        balance_after=entry.balance_after,
        held_after=entry.held_after,
        description=entry.description,
        timestamp=timestamp(entry.timestamp),
        operation=entry.operation or "",
        quantity=entry.quantity or 0,
        unit_cost=entry.unit_cost or 0,
        price_version=entry.price_version or "",
        reference=entry.reference,
        metadata=entry.metadata,
        related_transaction_id="" if related is None else transaction_id(entry.user_id, related),
        idempotency_key=entry.idempotency_key or "",
        caller=entry.caller,
        payment=None
        if payment is None
        else pb.Payment(
            ref=payment.ref, amount_minor=payment.amount_minor, currency=payment.currency
        ),
    )
