"""The rules of holds: HELD -> CAPTURED, RELEASED or EXPIRED, once, and kept.

Expiry is a comparison, not an event: before a batch decides anything, the due holds of its accounts
are ended. A capture that comes later is a fresh spend.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.errors import (
    HoldExpired,
    HoldNotActive,
    HoldNotFound,
    InsufficientCredits,
    InvalidRequest,
    TooManyHolds,
)
from credit_service.rules import spending
from credit_service.rules.model import AMOUNT_MAX, Expire, Hold, Outcome, transaction_id

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from credit_service.rules.batch_state import Desk, Terms
    from credit_service.rules.model import (
        Account,
        Capture,
        Entry,
        Extend,
        MakeHold,
        Release,
    )

LIFE_MAX = timedelta(hours=72)

# Who stands on the entries that the service makes by itself.
SERVICE = "credit_service"


def at(hold: Hold, now: datetime) -> Hold:
    """Shows a hold as it is at a time: expired when that has passed, recorded or not."""
    return (
        hold._replace(state="expired") if hold.state == "held" and hold.expires_at <= now else hold
    )


def expire_due(desk: Desk, user_id: UUID) -> None:
    """Ends the account's holds whose time has passed; all its open holds must be on the desk."""
    account = desk.accounts[user_id]
    if account.next_hold_expiry is None or account.next_hold_expiry > desk.now:
        return
    command = Expire(user_id=user_id, caller=SERVICE)
    open_holds = sorted(
        (
            hold
            for (user, _), hold in desk.holds.items()
            if user == user_id and hold.state == "held"
        ),
        key=lambda hold: (hold.expires_at, hold.seq),
    )
    for hold in open_holds:
        if hold.expires_at > desk.now:
            break
        entry = desk.entry(
            command,
            kind="expire",
            amount=hold.amount,
            held_change=-hold.amount,
            operation=hold.operation,
            hold_seq=hold.seq,
        )
        desk.post(entry)
        _end(desk, hold, entry, "expired")
    later = [hold.expires_at for hold in open_holds if hold.expires_at > desk.now]
    desk.accounts[user_id] = desk.accounts[user_id]._replace(
        next_hold_expiry=min(later, default=None)
    )
    desk.touched.add(user_id)


def make(desk: Desk, command: MakeHold, terms: Terms) -> Outcome:
    """Sets credits aside."""
    account = desk.account(command.user_id)
    spending.require_not_frozen(account)
    priced = spending.price(command, terms)
    if account.open_holds >= terms.open_holds:
        soonest = account.next_hold_expiry or desk.now
        wait_ms = max(1, int((soonest - desk.now).total_seconds() * 1000))
        raise TooManyHolds(terms.open_holds, wait_ms)
    amount = priced["amount"]
    spending.require_within_limits(account, amount, desk.now)
    spending.require_affordable(account, amount, terms)
    entry = desk.entry(
        command,
        kind="hold",
        held_change=amount,
        requested_amount=command.amount,
        floor=terms.floor(account),
        **priced,
    )
    hold = Hold(
        user_id=command.user_id,
        # Its place is another's to take where this one is only validated.
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
        desk.post(entry, counted=amount, expires_at=hold.expires_at)
        desk.put_hold(hold)
    return Outcome(entry, desk.accounts[command.user_id], replayed=False, hold=hold)


def capture(desk: Desk, command: Capture, terms: Terms) -> Outcome:
    """Takes the credits of a hold; of one that has expired, as a fresh spend."""
    hold = _hold(desk, command.user_id, command.hold_seq)
    account = desk.accounts[command.user_id]
    if command.amount == 0:
        return _give_up(desk, command, hold)
    if hold.captured_seq is not None:
        raise HoldNotActive("CAPTURED")
    if hold.state == "released":
        raise HoldNotActive("RELEASED")
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
        spending.require_within_limits(account, over, desk.now)
        _require_payable(account, hold, amount, terms, late=late)
    entry = desk.entry(
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
    desk.post(entry, counted=over)
    if late:
        hold = hold._replace(captured=amount, captured_seq=entry.seq)
        desk.put_hold(hold)
    else:
        hold = _end(desk, hold, entry, "captured")
    return Outcome(entry, desk.accounts[command.user_id], replayed=False, hold=hold)


def release(desk: Desk, command: Release, _terms: Terms) -> Outcome:
    """Gives up a hold; one that has already ended without capture stays as it is."""
    return _give_up(desk, command, _hold(desk, command.user_id, command.hold_seq))


def extend(desk: Desk, command: Extend, _terms: Terms) -> Outcome:
    """Lets a hold end later, within its longest life."""
    hold = _hold(desk, command.user_id, command.hold_seq)
    if hold.state == "expired" and hold.captured_seq is None:
        raise HoldExpired
    if hold.state != "held":
        raise HoldNotActive("CAPTURED" if hold.captured_seq is not None else hold.state.upper())
    latest = hold.created_at + LIFE_MAX
    until = max(hold.expires_at, min(desk.now + command.ttl, latest))
    hold = hold._replace(expires_at=until)
    desk.put_hold(hold)
    return Outcome(None, desk.accounts[command.user_id], replayed=False, hold=hold)


def _hold(desk: Desk, user_id: UUID, seq: int) -> Hold:
    desk.account(user_id)
    hold = desk.holds.get((user_id, seq))
    if hold is None:
        raise HoldNotFound(transaction_id(user_id, seq))
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


def _require_payable(
    account: Account, hold: Hold, amount: int, terms: Terms, *, late: bool
) -> None:
    if not late:
        # What was held is the account's to pay with.
        account = account._replace(held=account.held - hold.amount)
    try:
        spending.require_affordable(account, amount, terms)
    except InsufficientCredits:
        if late:
            raise HoldExpired from None
        raise


def _give_up(desk: Desk, command: Release | Capture, hold: Hold) -> Outcome:
    if hold.captured_seq is not None:
        raise HoldNotActive("CAPTURED")
    account = desk.accounts[command.user_id]
    if hold.state != "held":
        return Outcome(desk.ended[hold.user_id, hold.seq], account, replayed=True, hold=hold)
    entry = desk.entry(
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
    desk.post(entry)
    hold = _end(desk, hold, entry, "released")
    return Outcome(entry, desk.accounts[command.user_id], replayed=False, hold=hold)


def _end(desk: Desk, hold: Hold, entry: Entry, state: str) -> Hold:
    hold = hold._replace(state=state, settled_seq=entry.seq)
    if state == "captured":
        hold = hold._replace(captured=entry.amount, captured_seq=entry.seq)
    desk.ended[hold.user_id, hold.seq] = entry
    desk.put_hold(hold)
    return hold
