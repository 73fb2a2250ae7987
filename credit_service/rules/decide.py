"""What each command does to an account. Pure functions; nothing here waits.

Two rules always hold: `held >= 0`, and after any spend or hold `balance - held >= min_balance`. The
floor is checked when a spend or hold is made; an account may still be below it, for example in
debt. Every entry is two numbers, a change of balance and a change of held:

    purchase n, grant n                     +n  0
    spend n                                 -n  0
    refund n                                +n  0
    hold n                                   0 +n
    capture m of a hold of n                -m -n
    release or expire a hold of n            0 -n
    reverse m (m < 0 gives back)            -m  0
    adjust by n (n < 0 takes)               +n  0

A command is decided in this order, which is part of the contract: its idempotency key, the state of
what it refers to, price and expected cost, limits, the balance. So the repeat of a paid spend
succeeds on an empty account. A refusal is raised and changes nothing, except that one for lack of
credits may ask for a top-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from credit_service.errors import (
    BatchAborted,
    CreditError,
    HoldExpired,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    PaymentReused,
    RefundExceedsSpend,
    Refusal,
    SpendLimitExceeded,
    TransactionNotFound,
    UserDeleted,
)
from credit_service.rules import grants, holds, limits, returns, reversals, spending, top_ups
from credit_service.rules.commands import (
    Adjust,
    Capture,
    Command,
    Expire,
    Extend,
    FailTopUp,
    GiveCredits,
    Keyed,
    MakeHold,
    NoteTopUp,
    Purchase,
    Refund,
    Release,
    Reverse,
    RevokeGrant,
    SetPolicy,
    Spend,
    SpendTogether,
)
from credit_service.rules.model import (
    Entry,
    Outcome,
    Policy,
    RequestIdentity,
    SpendLimits,
    transaction_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.grant_values import Grant
    from credit_service.rules.model import Account, EntryType
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

REFUNDABLE_TYPES: tuple[EntryType, ...] = ("spend", "capture")

# The commands that ask for a top-up if they leave few credits or are refused for lack of them.
_ASKING = (Spend, MakeHold, Capture)


def decide(state: BatchState, command: Command, terms: Terms) -> Outcome:
    """Decides one command and, unless it only validates, posts its entry in the state of the batch.

    Returns:
        The entry, the account after it, the hold it concerns, and whether it is a replay.

    Raises:
        Refusal: what the contract lists for the call; the state of the batch is unchanged, except
            that a refusal for lack of credits may ask for a top-up.
    """
    if isinstance(command, Keyed):
        user = state.users.get(command.user_id)
        if user is not None:
            earlier = user.by_key.get(command.idempotency_key)
            if earlier is not None:
                return _replay(user, command, earlier)
    if not isinstance(command, _ASKING) or command.validate_only:
        return _RULES[type(command)](state, command, terms)
    try:
        outcome = _RULES[type(command)](state, command, terms)
    except (InsufficientCredits, HoldExpired):
        # Both mean that the credits for the work are missing.
        top_ups.ask(state.user(command.user_id), command.caller)
        raise
    if outcome.entry is not None and not outcome.replayed and outcome.entry.type != "release":
        top_ups.ask(state.user(command.user_id), command.caller)
    return outcome


def _replay(user: UserState, command: Keyed, earlier: Entry) -> Outcome:
    _require_same_request(user, command, earlier)
    hold = None if earlier.hold_seq is None else user.holds[earlier.hold_seq]
    return Outcome(earlier, user.account, replayed=True, hold=hold)


def _require_same_request(user: UserState, command: Keyed, earlier: Entry) -> None:
    kept_call = user.kept_calls.get(command.idempotency_key)
    recorded = earlier.request() if kept_call is None else earlier.answers(kept_call)
    asked = command.request()
    if kept_call is None and earlier.payment is None and earlier.type in {"purchase", "grant"}:
        recorded = _with_life(recorded, user.grants.get(earlier.seq), asked)
    if asked == recorded:
        return
    for name, new, old in zip(RequestIdentity._fields, asked, recorded, strict=True):
        if new != old:
            raise IdempotencyKeyReused(name, transaction_id(earlier.user_id, earlier.seq))


def _with_life(
    recorded: RequestIdentity, made: Grant | None, asked: RequestIdentity
) -> RequestIdentity:
    """Adds the terms of use of an earlier request for credits, which their grant keeps."""
    if made is None:
        # Whether credits of the pool are paid is not kept.
        return recorded._replace(category=asked.category)
    return recorded._replace(
        expire_time=made.asked_time,
        valid_for=made.valid_for,
        priority=made.priority,
        category=made.paid if recorded.call == "GrantCredits" else None,
    )


def _purchase(state: BatchState, command: Purchase, terms: Terms) -> Outcome:
    payment = command.payment
    earlier = state.purchases.get(payment.ref) if payment is not None else None
    if payment is not None and earlier is not None:
        if earlier.entry is None:
            raise UserDeleted(payment.ref)
        if earlier.user_id != command.user_id:
            raise PaymentReused(payment.ref, "user_id")
        if earlier.amount != command.amount:
            raise PaymentReused(payment.ref, "amount")
        user = state.user(command.user_id)
        user.keep_key(command, earlier.entry)
        return Outcome(earlier.entry, user.account, replayed=True)
    user = state.user(command.user_id)
    expire_time = grants.expiry(user, command.life, terms, with_payment=payment is not None)
    entry = user.entry(
        command,
        kind="purchase",
        amount=command.amount,
        requested_amount=command.amount,
        balance_change=command.amount,
        payment=payment,
    )
    if command.validate_only:
        return Outcome(entry, user.account, replayed=False)
    user.post(entry)
    rollover = command.rollover
    if grants.has_own_life(command.life):
        series = rollover.series if rollover else None
        grants.make(user, entry, command.life, expire_time, paid=True, series=series)
        if rollover is not None:
            grants.roll_over(user, entry.seq, rollover)
    if payment is not None:
        state.put_purchase(payment.ref, entry)
    top_ups.follow_purchase(user, entry)
    return Outcome(entry, user.account, replayed=False)


def _grant(state: BatchState, command: GiveCredits, terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    own_life = grants.has_own_life(command.life)
    expire_time = grants.expiry(user, command.life, terms, with_payment=False)
    if own_life:
        grants.require_room(user.account)
    entry = user.entry(
        command,
        kind="grant",
        amount=command.amount,
        requested_amount=command.amount,
        balance_change=command.amount,
    )
    if not command.validate_only:
        user.post(entry)
        if own_life:
            grants.make(user, entry, command.life, expire_time, paid=command.paid)
    return Outcome(entry, user.account, replayed=False)


def _adjust(state: BatchState, command: Adjust, terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    floor = None
    if command.amount < 0 and not command.allow_debt:
        spending.require_affordable(user.account, -command.amount, terms)
        floor = terms.floor(user.account)
    entry = user.entry(
        command,
        kind="adjustment",
        amount=abs(command.amount),
        requested_amount=command.amount,
        balance_change=command.amount,
        floor=floor,
    )
    return _posted(user, command, entry)


def _spend(state: BatchState, command: Spend, terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    account = user.account
    spending.require_not_frozen(account)
    priced = spending.price(command.charge, terms)
    cost = priced["amount"]
    limits.require_within_limits(account, cost, state.now)
    spending.require_affordable(account, cost, terms)
    entry = user.entry(
        command,
        kind="spend",
        balance_change=-cost,
        requested_amount=command.charge.amount,
        floor=terms.floor(account),
        **priced,
    )
    return _posted(user, command, entry, counted=cost)


def _spend_together(state: BatchState, command: SpendTogether, terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    before, mark = user.account, user.mark()
    parts: list[Outcome | CreditError] = []
    if command.refused:
        parts = [_paid_before(user, spend) or BatchAborted() for spend in command.spends]
        return Outcome(None, before, replayed=False, parts=tuple(parts))
    for spend in command.spends:
        try:
            parts.append(decide(state, spend, terms))
        except Refusal as refusal:
            # Without its frames, which lead to these parts.
            culprit = _final(user, before, spend, refusal.with_traceback(None), terms)
            user.undo(mark)
            parts = [
                culprit if other is spend else _paid_before(user, other) or BatchAborted()
                for other in command.spends
            ]
            break
    return Outcome(None, user.account, replayed=False, parts=tuple(parts))


def _final(
    user: UserState, before: Account, spend: Spend, refusal: Refusal, terms: Terms
) -> Refusal:
    """Says whether the spends of a batch pass a limit together, so that waiting does not help."""
    if not isinstance(refusal, SpendLimitExceeded):
        return refusal
    cost = spending.price(spend.charge, terms)["amount"]
    together = before.balance - user.account.balance + cost
    return limits.above_limit(before, together) or refusal


def _paid_before(user: UserState, spend: Spend) -> Outcome | None:
    """The answer to an item of a refused batch that an earlier call had paid for."""
    earlier = user.by_key.get(spend.idempotency_key)
    try:
        return earlier and _replay(user, spend, earlier)
    except IdempotencyKeyReused:
        return None


def _refund(state: BatchState, command: Refund, terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    spent, operation = None, None
    amount = command.amount
    if command.spend_seq is not None:
        spent = user.spends.get(command.spend_seq)
        if spent is None:
            raise TransactionNotFound(transaction_id(command.user_id, command.spend_seq))
        if spent.entry.type not in REFUNDABLE_TYPES:
            kind = spent.entry.type
            article = "an" if kind[0] in "aeiou" else "a"
            raise InvalidRequest(
                "transaction_id",
                f"names {article} {kind}; only a spend or a capture can be refunded.",
            )
        refundable = spent.entry.amount - spent.refunded
        if amount is None:
            amount = refundable
        if amount > refundable or refundable == 0:
            raise RefundExceedsSpend(refundable)
        operation = spent.entry.operation
    assert amount is not None  # noqa: S101  # the shape was checked: a spend or an amount
    entry = user.entry(
        command,
        kind="refund",
        amount=amount,
        requested_amount=command.amount,
        balance_change=amount,
        operation=operation,
        related_seq=command.spend_seq,
    )
    if not command.validate_only:
        user.post(entry)
        if spent is not None:
            returns.refund(user, entry.seq, spent, amount, terms.refund_grace)
            user.put_refunded(spent._replace(refunded=spent.refunded + amount))
    return Outcome(entry, user.account, replayed=False)


def _set_policy(state: BatchState, command: SetPolicy, _terms: Terms) -> Outcome:
    user = state.user(command.user_id)
    policy = user.account.policy
    # A policy of defaults is the same as none ever set.
    policy = policy._replace(**{part: getattr(Policy(), part) for part in command.reset})
    if command.frozen is not None:
        policy = policy._replace(frozen=command.frozen)
    if command.min_balance is not None:
        policy = policy._replace(min_balance=command.min_balance)
    if command.allowance is not None:
        policy = policy._replace(allowance=command.allowance)
    if command.alert_below is not None:
        policy = policy._replace(alert_below=command.alert_below)
    if command.limits is not None:
        policy = policy._replace(limits=SpendLimits(*(limit or None for limit in command.limits)))
    if command.top_up is not None:
        policy = policy._replace(top_up=command.top_up)
        top_ups.turn_on(user, command.caller)
    user.put_policy(policy, command.caller)
    return Outcome(None, user.account, replayed=False)


def _posted(user: UserState, command: Keyed, entry: Entry, *, counted: int = 0) -> Outcome:
    """Posts an entry; credits that come go into the pool, others are drawn in burn order."""
    if not command.validate_only:
        if entry.balance_change < 0 and user.account.in_grants:
            grants.draw(user, entry.seq, -entry.balance_change)
        user.post(entry, counted=counted)
    return Outcome(entry, user.account, replayed=False)


def _expire(state: BatchState, command: Expire, _terms: Terms) -> Outcome:
    # What is due was ended before the batch decided anything.
    return Outcome(None, state.user(command.user_id).account, replayed=False)


_RULES: dict[type[Command], Callable[[BatchState, Any, Terms], Outcome]] = {
    Purchase: _purchase,
    Spend: _spend,
    Refund: _refund,
    GiveCredits: _grant,
    Adjust: _adjust,
    RevokeGrant: grants.revoke,
    Reverse: reversals.reverse,
    MakeHold: holds.make,
    Capture: holds.capture,
    Release: holds.release,
    Extend: holds.extend,
    SetPolicy: _set_policy,
    NoteTopUp: top_ups.note,
    FailTopUp: top_ups.fail,
    SpendTogether: _spend_together,
    Expire: _expire,
}
