"""The rules of holds: HELD -> CAPTURED, RELEASED or EXPIRED, once and for good.

Expiry is a comparison, not an event: before a batch decides anything about an account, all its due
holds are ended. A later capture is a fresh spend.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.errors import (
    HoldExpired,
    HoldNotActive,
    HoldNotFound,
    InvalidRequest,
    TooManyHolds,
)
from credit_service.fields import AMOUNT_MAX
from credit_service.rules import grants, limits, spending
from credit_service.rules.commands import SERVICE, Expire
from credit_service.rules.model import Hold, Outcome, transaction_id

if TYPE_CHECKING:
    from datetime import datetime

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Capture, Extend, MakeHold, Release
    from credit_service.rules.model import Account, Entry, HoldState
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

LIFE_MAX = timedelta(hours=72)


def at(hold: Hold, now: datetime) -> Hold:
    """Shows a hold as it is at a time: expired when that has passed, recorded or not."""
    return (
        hold._replace(state="expired") if hold.state == "held" and hold.expires_at <= now else hold
    )


def expire(user: UserState, hold: Hold) -> None:
    """Ends a hold whose time has passed."""
    command = Expire(user_id=user.account.user_id, caller=SERVICE)
    entry = user.entry(
        command,
        kind="expire",
        amount=hold.amount,
        held_change=-hold.amount,
        operation=hold.operation,
        hold_seq=hold.seq,
    )
    user.holds[hold.seq] = hold
    _give_back(user, hold, entry, hold.expires_at)
    _end(user, hold, entry, "expired")


def make(state: BatchState, command: MakeHold, terms: Terms) -> Outcome:
    """Holds credits."""
    user = state.user(command.user_id)
    account = user.account
    spending.require_not_frozen(account)
    priced = spending.price(command.charge, terms)
    if account.open_holds >= terms.open_holds:
        soonest = account.next_hold_expiry or state.now
        wait_ms = max(1, int((soonest - state.now).total_seconds() * 1000))
        raise TooManyHolds(terms.open_holds, wait_ms)
    amount = priced["amount"]
    limits.require_within_limits(account, amount, state.now)
    spending.require_affordable(account, amount, terms)
    entry = user.entry(
        command,
        kind="hold",
        held_change=amount,
        requested_amount=command.charge.amount,
        floor=terms.floor(account),
        **priced,
    )
    hold = Hold(
        user_id=command.user_id,
        # A hold that is only validated gets no seq; the next entry takes the number.
        seq=0 if command.validate_only else entry.seq,
        state="held",
        captured=0,
        created_at=entry.timestamp,
        expires_at=entry.timestamp + command.ttl,
        reference=command.reference,
        settled_seq=None,
        captured_seq=None,
        **priced,
    )
    if not command.validate_only:
        if account.in_grants:
            grants.pin(user, entry.seq, amount)
        user.post(entry, counted=amount)
        user.put_hold(hold)
    return Outcome(entry, user.account, replayed=False, hold=hold)


def capture(state: BatchState, command: Capture, terms: Terms) -> Outcome:
    """Takes the credits of a hold; of one that has expired, as a fresh spend."""
    user = state.user(command.user_id)
    hold = _hold(user, command.hold_seq)
    account = user.account
    if command.amount == 0:
        return _give_up(user, command, hold)
    if hold.captured_seq is not None:
        raise _not_active("captured")
    if hold.state == "released":
        raise _not_active("released")
    late = hold.state == "expired"
    amount, unit_cost = _captured_amount(command, hold)
    if amount > hold.amount and not command.allow_overage:
        raise InvalidRequest(
            "amount" if command.quantity is None else "quantity",
            f"takes {amount} credits and {hold.amount} were held; set allow_overage to take more.",
        )
    over = max(0, amount - hold.amount)
    if late or over:
        spending.require_not_frozen(account)
        if over:
            # The hold itself was counted when it was made, whatever the limits are now.
            limits.require_within_limits(account, over, state.now)
        _require_payable(account, hold, amount, terms)
    entry = user.entry(
        command,
        kind="capture",
        amount=amount,
        balance_change=-amount,
        held_change=0 if late else -hold.amount,
        requested_amount=command.amount,
        floor=terms.floor(account) if late or over else None,
        operation=hold.operation,
        quantity=command.quantity,
        unit_cost=unit_cost,
        price_version=hold.price_version if unit_cost is not None else None,
        hold_seq=hold.seq,
    )
    if command.validate_only:
        return Outcome(entry, account, replayed=False, hold=hold)
    if late:
        if account.in_grants:
            grants.draw(user, entry.seq, amount)
        user.post(entry, counted=over)
        hold = hold._replace(captured=amount, captured_seq=entry.seq)
        user.put_hold(hold)
        return Outcome(entry, user.account, replayed=False, hold=hold)
    if account.in_grants:
        unpinned = grants.capture(user, entry.seq, hold.seq, held=hold.amount, amount=amount)
        user.post(entry, counted=over)
        grants.settle(user, entry.seq, unpinned, user.time)
    else:
        user.post(entry, counted=over)
    hold = _end(user, hold, entry, "captured")
    return Outcome(entry, user.account, replayed=False, hold=hold)


def release(state: BatchState, command: Release, _terms: Terms) -> Outcome:
    """Releases a hold; one that has already ended without capture stays as it is."""
    user = state.user(command.user_id)
    return _give_up(user, command, _hold(user, command.hold_seq))


def extend(state: BatchState, command: Extend, _terms: Terms) -> Outcome:
    """Extends a hold, within its longest life."""
    user = state.user(command.user_id)
    hold = _hold(user, command.hold_seq)
    if hold.state == "expired" and hold.captured_seq is None:
        raise HoldExpired
    if hold.state != "held":
        raise _not_active("captured" if hold.captured_seq is not None else hold.state)
    latest = hold.created_at + LIFE_MAX
    until = max(hold.expires_at, min(state.now + command.ttl, latest))
    hold = hold._replace(expires_at=until)
    user.put_hold(hold)
    return Outcome(None, user.account, replayed=False, hold=hold)


def _hold(user: UserState, seq: int) -> Hold:
    hold = user.holds.get(seq)
    if hold is None:
        raise HoldNotFound(transaction_id(user.account.user_id, seq))
    return hold


def _captured_amount(command: Capture, hold: Hold) -> tuple[int, int | None]:
    """How many credits to take, and, for a capture by quantity, the price of a unit."""
    if command.quantity is None:
        return (hold.amount if command.amount is None else command.amount), None
    if hold.unit_cost is None:
        raise InvalidRequest("quantity", "needs a hold of an operation; this one is of an amount.")
    amount = command.quantity * hold.unit_cost
    if amount > AMOUNT_MAX:
        raise InvalidRequest(
            "quantity", f"would cost {amount} credits; the maximum is {AMOUNT_MAX}."
        )
    return amount, hold.unit_cost


def _require_payable(account: Account, hold: Hold, amount: int, terms: Terms) -> None:
    """Checks that an account can pay more than it has held for this.

    Raises:
        HoldExpired: the hold has expired, and not even its own credits are available.
        InsufficientCredits: its own credits are, or are still held, but the overage is not.
    """
    if hold.state == "held":
        # The account may pay with the credits that it holds.
        account = account._replace(held=account.held - hold.amount)
    elif terms.shortfall(account, min(amount, hold.amount)):
        raise HoldExpired
    spending.require_affordable(account, amount, terms)


def _give_up(user: UserState, command: Release | Capture, hold: Hold) -> Outcome:
    if hold.captured_seq is not None:
        raise _not_active("captured")
    account = user.account
    if hold.state != "held":
        ended = user.ended[hold.seq]
        user.keep_key(command, ended)
        return Outcome(ended, account, replayed=True, hold=hold)
    entry = user.entry(
        command,
        kind="release",
        amount=hold.amount,
        held_change=-hold.amount,
        requested_amount=0 if command.call == "CaptureHold" else None,
        operation=hold.operation,
        hold_seq=hold.seq,
    )
    if command.validate_only:
        return Outcome(entry, account, replayed=False, hold=hold)
    _give_back(user, hold, entry, user.time)
    hold = _end(user, hold, entry, "released")
    return Outcome(entry, user.account, replayed=False, hold=hold)


def _give_back(user: UserState, hold: Hold, entry: Entry, at: datetime) -> None:
    """Posts the end of a hold that takes no credits, and gives up what it has set aside."""
    unpinned = grants.unpin(user, entry.seq, hold.seq) if user.account.pinned else []
    user.post(entry)
    if unpinned:
        grants.settle(user, entry.seq, unpinned, at)


def _not_active(state: HoldState) -> HoldNotActive:
    # Callers know the state by the contract's name of it.
    return HoldNotActive(state.upper())


def _end(user: UserState, hold: Hold, entry: Entry, end: HoldState) -> Hold:
    hold = hold._replace(state=end, settled_seq=entry.seq)
    if end == "captured":
        hold = hold._replace(captured=entry.amount, captured_seq=entry.seq)
    user.ended[hold.seq] = entry
    user.put_hold(hold)
    return hold
