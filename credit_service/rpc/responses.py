"""Values of the ledger as messages of the contract."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from credit_service.ledger.grant_listing import CHANGES_MAX
from credit_service.rpc import validation
from credit_service.rules.feed_values import Advanced
from credit_service.rules.model import Entry, PolicyChange, transaction_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credit_service.ledger.feed import Value
    from credit_service.ledger.grant_listing import Dated, Expiring, Pools
    from credit_service.rules.grant_values import (
        Allowance,
        Grant,
        GrantChange,
    )
    from credit_service.rules.model import (
        Account,
        EntryType,
        Hold,
        HoldState,
        Outcome,
        Policy,
        TopUp,
        Usage,
    )
    from credit_service.rules.terms import Terms

TYPES: dict[EntryType, pb.TransactionType.ValueType] = {
    "purchase": pb.TRANSACTION_TYPE_PURCHASE,
    "spend": pb.TRANSACTION_TYPE_SPEND,
    "refund": pb.TRANSACTION_TYPE_REFUND,
    "grant": pb.TRANSACTION_TYPE_GRANT,
    "reversal": pb.TRANSACTION_TYPE_REVERSAL,
    "hold": pb.TRANSACTION_TYPE_HOLD,
    "capture": pb.TRANSACTION_TYPE_CAPTURE,
    "release": pb.TRANSACTION_TYPE_RELEASE,
    "expire": pb.TRANSACTION_TYPE_EXPIRE,
    "adjustment": pb.TRANSACTION_TYPE_ADJUSTMENT,
    "lapse": pb.TRANSACTION_TYPE_LAPSE,
    "revocation": pb.TRANSACTION_TYPE_REVOCATION,
}
HOLD_STATES: dict[HoldState, pb.HoldState.ValueType] = {
    "held": pb.HOLD_STATE_HELD,
    "captured": pb.HOLD_STATE_CAPTURED,
    "released": pb.HOLD_STATE_RELEASED,
    "expired": pb.HOLD_STATE_EXPIRED,
}
PERIODS = {name: value for value, name in validation.PERIODS.items()}
HOLD_STATE_NAMES = {value: name for name, value in HOLD_STATES.items()}
TYPE_NAMES = {value: name for name, value in TYPES.items()}

# The maximum length of the texts of an adopted entry, in characters. `fields` limits those of
# calls.
_ADOPTED_TEXT_MAX = 10_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_SECONDS = 24 * 60 * 60


def timestamp(time: datetime) -> Timestamp:
    """Renders a time."""
    message = Timestamp()
    _set_time(message, time)
    return message


def _set_time(message: Timestamp, time: datetime) -> None:
    # Takes a quarter of the time of Timestamp.FromDatetime, which is written in Python.
    since = time - _EPOCH
    message.seconds = since.days * _DAY_SECONDS + since.seconds
    message.nanos = since.microseconds * 1000


def user_credit(
    account: Account,
    terms: Terms,
    expiring: Iterable[Expiring] = (),
    into: pb.UserCredit | None = None,
) -> pb.UserCredit:
    """Renders an account with its floor and threshold, and with what lapses next.

    Args:
        account: what to render.
        terms: with the configured floor and threshold.
        expiring: times, and the credits that lapse then.
        into: an empty part of a response, which is filled and returned; None: a new message.
    """
    message = pb.UserCredit() if into is None else into
    message.user_id = str(account.user_id)
    message.balance = account.balance
    message.held = account.held
    message.available = account.available
    message.min_balance = terms.floor(account)
    if account.last_updated is not None:
        _set_time(message.last_updated, account.last_updated)
    message.seq = account.seq
    message.frozen = account.policy.frozen
    if (threshold := terms.threshold(account)) is not None:
        message.alert_below = threshold
    for time, amount in expiring:
        message.expiring.add(expire_time=timestamp(time), amount=amount)
    return message


def transaction(
    entry: Entry, *, written: bool = True, into: pb.CreditTransaction | None = None
) -> pb.CreditTransaction:
    """Renders an entry.

    Args:
        entry: what to render.
        written: False: it was only validated, so it has no id and no place in the book.
        into: an empty part of a response, which is filled and returned; None: a new message.
    """
    # A page has many of these. Setting fields one by one takes half as long as passing them to the
    # constructor, and even setting an empty value takes time.
    message = pb.CreditTransaction() if into is None else into
    user_id = str(entry.user_id)
    if written:
        message.id = transaction_id(user_id, entry.seq)
        message.seq = entry.seq
    message.user_id = user_id
    message.type = TYPES[entry.type]
    message.amount = entry.amount
    if entry.balance_change:
        message.balance_change = entry.balance_change
    if entry.held_change:
        message.held_change = entry.held_change
    message.balance_after = entry.balance_after
    if entry.held_after:
        message.held_after = entry.held_after
    _set_time(message.timestamp, entry.timestamp)
    if entry.reference:
        message.reference = entry.reference
    if entry.idempotency_key is not None:
        message.idempotency_key = entry.idempotency_key
    message.caller = entry.caller
    description, metadata = entry.description, entry.metadata
    if entry.call == "adopted":
        description = description[:_ADOPTED_TEXT_MAX]
        metadata = {name: text[:_ADOPTED_TEXT_MAX] for name, text in metadata.items()}
    if description:
        message.description = description
    if metadata:
        message.metadata.update(metadata)
    if entry.operation is not None:
        message.operation = entry.operation
    if entry.quantity is not None:
        message.quantity = entry.quantity
    if entry.unit_cost is not None:
        message.unit_cost = entry.unit_cost
    if entry.price_version is not None:
        message.price_version = entry.price_version
    if entry.related_seq is not None:
        message.related_transaction_id = transaction_id(user_id, entry.related_seq)
    if entry.hold_seq is not None and (written or entry.type != "hold"):
        message.hold_id = transaction_id(user_id, entry.hold_seq)
    if entry.payment is not None:
        message.payment.ref = entry.payment.ref
        message.payment.amount_minor = entry.payment.amount_minor
        message.payment.currency = entry.payment.currency
    if entry.grant_changes:
        shown = entry.grant_changes[:CHANGES_MAX]
        message.grant_changes.extend(_grant_change(change) for change in shown)
        message.more_grant_changes = len(entry.grant_changes) > CHANGES_MAX
    return message


def _grant_change(change: GrantChange) -> pb.GrantChange:
    hold = change.hold_seq
    return pb.GrantChange(
        grant_id=transaction_id(change.user_id, change.grant_seq),
        remaining_change=change.remaining_change,
        held_change=change.pinned_change,
        remaining_after=change.remaining_after,
        held_after=change.pinned_after,
        hold_id="" if hold is None else transaction_id(change.user_id, hold),
    )


def grant(value: Grant) -> pb.CreditGrant:
    """Renders a grant."""
    return pb.CreditGrant(
        id=transaction_id(value.user_id, value.seq),
        user_id=str(value.user_id),
        amount=value.amount,
        remaining=value.remaining,
        held=value.pinned,
        priority=value.priority,
        expire_time=timestamp(value.expire_time) if value.expire_time else None,
        category=pb.GRANT_CATEGORY_PAID if value.paid else pb.GRANT_CATEGORY_PROMOTIONAL,
        series=value.series or "",
        revoked=value.revoked,
    )


def liability(dated: Iterable[Dated], pools: Pools) -> pb.GetLiabilityReportResponse:
    """Renders a liability report."""
    return pb.GetLiabilityReportResponse(
        lines=[
            pb.LiabilityLine(month=line.month, paid=line.paid, promotional=line.promotional)
            for line in dated
        ],
        undated=pools.undated,
        debt=pools.debt,
        accounts_in_debt=pools.accounts_in_debt,
    )


def hold(value: Hold, *, written: bool = True) -> pb.Hold:
    """Renders a hold; one that was only validated has no id."""
    settled = value.settled_seq
    return pb.Hold(
        id=transaction_id(value.user_id, value.seq) if written else "",
        user_id=str(value.user_id),
        state=HOLD_STATES[value.state],
        amount=value.amount,
        captured_amount=value.captured,
        create_time=timestamp(value.created_at),
        expire_time=timestamp(value.expires_at),
        operation=value.operation or "",
        quantity=value.quantity or 0,
        unit_cost=value.unit_cost or 0,
        price_version=value.price_version or "",
        reference=value.reference,
        settled_transaction_id="" if settled is None else transaction_id(value.user_id, settled),
    )


def hold_of(outcome: Outcome, *, written: bool = True) -> pb.Hold | None:
    """Renders the hold of an outcome, if it has one, as `hold` does."""
    return None if outcome.hold is None else hold(outcome.hold, written=written)


def usage(line: Usage) -> pb.UsageLine:
    """Renders a line of a report."""
    return pb.UsageLine(
        day=line.day,
        operation=line.operation,
        spent=line.spent,
        refunded=line.refunded,
        held=line.held,
        spend_count=line.spend_count,
        refund_count=line.refund_count,
        hold_count=line.hold_count,
        lapsed=line.lapsed,
    )


def policy(own: Policy) -> pb.AccountPolicy:
    """Renders the policy of an account."""
    return pb.AccountPolicy(
        frozen=own.frozen,
        min_balance=own.min_balance,
        spend_limits=pb.SpendLimits(
            per_minute=own.limits.minute or 0,
            per_hour=own.limits.hour or 0,
            per_day=own.limits.day or 0,
        ),
        allowance=None if own.allowance is None else _allowance(own.allowance),
        top_up=None if own.top_up is None else top_up_policy(own.top_up),
        alert_below=own.alert_below,
    )


def top_up_policy(value: TopUp) -> pb.TopUp:
    """Renders the top-up policy of an account."""
    return pb.TopUp(below=value.below, pack=value.pack, charges_per_month=value.per_month)


def _allowance(value: Allowance) -> pb.Allowance:
    return pb.Allowance(
        amount=value.amount, period=PERIODS[value.period], carry_over=value.carry_over
    )


def feed_item(value: Value) -> pb.FeedItem:
    """Renders an item of the feed."""
    match value:
        case Entry():
            return pb.FeedItem(transaction=transaction(value))
        case PolicyChange():
            return pb.FeedItem(
                policy_change=pb.PolicyChange(
                    user_id=str(value.user_id),
                    change=value.change,
                    policy=policy(value.policy),
                    timestamp=timestamp(value.changed_at),
                    caller=value.caller,
                )
            )
        case Advanced():
            at = timestamp(value.advanced_at)
            return pb.FeedItem(advanced=pb.FeedAdvanced(timestamp=at, reason=value.reason))
        case _:
            raise TypeError(f"{type(value).__name__} is not an item of the feed")
