"""The rules of automatic top-ups: when an account asks for one, and how the request ends.

The service only asks and keeps count. The bridge charges: it notes the payment of a request first,
confirms that very payment, and purchases the credits, which closes the request. A spend, hold or
capture asks if it leaves fewer credits available than the policy says, or is refused while there
are fewer. Without the second case, an account that is already below would never ask again once its
jobs cost more than it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from credit_service.errors import (
    InvalidRequest,
    PaymentReused,
    TopUpHasPayment,
    TopUpNotFound,
    TopUpNotOpen,
    UserDeleted,
)
from credit_service.rules.model import Outcome
from credit_service.rules.top_up_values import Decided, TopUpChange, TopUpRequest

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import FailTopUp, NoteTopUp
    from credit_service.rules.model import Account, Entry, TopUp
    from credit_service.rules.terms import Terms
    from credit_service.rules.top_up_values import TopUpChangeKind, TopUpCounts, TopUpId
    from credit_service.rules.user_state import UserState

# This many failures in a row switch top-up off.
FAILURES_MAX = 3


class TopUpStatus(NamedTuple):
    """The top-ups of an account at a moment.

    Attributes:
        policy: the account's; None if it was reset.
        counts: failures, and why it is off.
        charges: how many top-ups were purchased in the present month of UTC.
        open: the open request; None if there is none.
    """

    policy: TopUp | None
    counts: TopUpCounts
    charges: int
    open: TopUpRequest | None


def ask(user: UserState, caller: str) -> None:
    """Asks for a top-up if the account wants one and no request is open."""
    wanted = user.account.policy.top_up
    if wanted is None or not _wants(user) or user.top_ups.open is not None:
        return
    counts, time = user.top_ups.counts, user.time
    number = counts.requests + 1
    request = TopUpRequest(
        user_id=user.account.user_id,
        number=number,
        pack=wanted.pack,
        state="open",
        payment_ref=None,
        tries=0,
        reason="",
        link="",
        created_at=time,
        changed_at=time,
        seq=None,
    )
    _record(user, "requested", caller, counts._replace(requests=number), request)


def follow_purchase(user: UserState, entry: Entry) -> None:
    """Closes the request whose payment a new purchase entry credits.

    A purchase that is not a top-up is the customer's own: failures no longer count. An open request
    is left to the bridge, which asks whether it is still needed before it charges.
    """
    payment = entry.payment
    request = None if payment is None else user.top_ups.of_payment(payment.ref)
    if request is not None:
        _succeed(user, entry.caller, request, entry)
    else:
        turn_on(user, entry.caller)


def follow_reversal(user: UserState, payment_ref: str, caller: str) -> None:
    """Switches top-up off if money of a top-up's payment went back."""
    request, counts = user.top_ups.of_payment(payment_ref), user.top_ups.counts
    if request is not None and request.seq is not None and counts.off != "reversal":
        request = _changed(user, request)
        _record(user, "turned_off", caller, counts._replace(off="reversal"), request)


def turn_on(user: UserState, caller: str) -> None:
    """Resets the count of failures to zero, and switches top-up on if it was off."""
    counts = user.top_ups.counts
    if counts.off is not None or counts.failures:
        _record(user, "turned_on", caller, counts._replace(off=None, failures=0))


def note(state: BatchState, command: NoteTopUp, _terms: Terms) -> Outcome:
    """Notes the payment of a request, and closes the request if the payment is credited already."""
    user = state.user(command.user_id)
    request, ref = _request(user, command.top_up), command.payment_ref
    if request.payment_ref == ref:
        return _outcome(user, request, replayed=True)
    if request.payment_ref is not None:
        raise TopUpHasPayment(request.payment_ref)
    if request.state != "open":
        raise _not_open(request)
    if ref in user.top_ups.taken or user.top_ups.of_payment(ref) is not None:
        raise PaymentReused(ref, "top_up_id")
    bought = state.purchases.get(ref)
    if bought is not None and bought.entry is None:
        raise UserDeleted(ref)
    if bought is not None and bought.user_id != command.user_id:
        raise PaymentReused(ref, "user_id")
    request = _changed(user, request, payment_ref=ref)
    _record(user, "noted", command.caller, user.top_ups.counts, request)
    if bought is not None and bought.entry is not None:
        request = _succeed(user, command.caller, request, bought.entry)
        returned = state.returned.get(ref)
        if returned is not None and returned.reversed_minor > 0:
            follow_reversal(user, ref, command.caller)
    return _outcome(user, request)


def fail(state: BatchState, command: FailTopUp, _terms: Terms) -> Outcome:
    """Records a failed try, or that the request is not needed any more."""
    user = state.user(command.user_id)
    request = _request(user, command.top_up)
    if _is_recorded(request, command):
        return _outcome(user, request, replayed=True)
    if request.state != "open":
        raise _not_open(request)
    counts, number, kind = user.top_ups.counts, command.try_number, command.failure
    if kind != "try_again" and request.payment_ref not in {None, command.payment_ref}:
        raise TopUpHasPayment(request.payment_ref or "")
    request = _changed(user, request, reason=command.reason, link=command.link)
    if kind == "not_needed":
        request = request._replace(state="not_needed")
        _record(user, "not_needed", command.caller, counts, request)
        return _outcome(user, request)
    if number != request.tries + 1:
        raise InvalidRequest(
            "try_number", f"is {number}; the next try of this request is {request.tries + 1}."
        )
    counts = counts._replace(failures=counts.failures + 1)
    if counts.off is None and counts.failures >= FAILURES_MAX:
        counts = counts._replace(off="failures")
    request = request._replace(tries=number, state="open" if kind == "try_again" else "failed")
    _record(user, "failed", command.caller, counts, request)
    return _outcome(user, request)


def status(
    account: Account, counts: TopUpCounts, request: TopUpRequest | None, now: datetime
) -> TopUpStatus:
    """The top-ups of an account at a time, with its open request."""
    return TopUpStatus(account.policy.top_up, counts, counts.charges_in(now), request)


def _wants(user: UserState) -> bool:
    """Whether the account may be charged for a top-up now and its credits are low enough."""
    account, counts = user.account, user.top_ups.counts
    wanted = account.policy.top_up
    return (
        wanted is not None
        and account.available < wanted.below
        and not account.policy.frozen
        and counts.off is None
        and counts.charges_in(user.time) < wanted.per_month
    )


def _request(user: UserState, top_up: TopUpId) -> TopUpRequest:
    found = user.top_ups.requests.get(top_up.number)
    if found is None or found.id != top_up:
        raise TopUpNotFound(str(top_up))
    return found


def _is_recorded(request: TopUpRequest, command: FailTopUp) -> bool:
    """Whether an earlier call recorded the try, or that the request is not needed."""
    if command.failure == "not_needed":
        return request.state == "not_needed"
    if command.failure == "given_up" and request.state == "open":
        # The call that recorded the try did not give up the request.
        return False
    return command.try_number <= request.tries


def _not_open(request: TopUpRequest) -> TopUpNotOpen:
    # Callers know the state by the contract's name of it.
    return TopUpNotOpen(request.state.upper())


def _succeed(user: UserState, caller: str, request: TopUpRequest, entry: Entry) -> TopUpRequest:
    """Closes a request with its purchase, even one that was given up: the ledger is the truth."""
    counts = user.top_ups.counts.charged_at(entry.timestamp)._replace(failures=0)
    if counts.off == "failures":
        counts = counts._replace(off=None)
    request = _changed(user, request, state="succeeded", seq=entry.seq)
    _record(user, "succeeded", caller, counts, request)
    return request


def _changed(user: UserState, request: TopUpRequest, **changes: Any) -> TopUpRequest:
    return request._replace(changed_at=user.time, **changes)


def _record(
    user: UserState,
    kind: TopUpChangeKind,
    caller: str,
    counts: TopUpCounts,
    request: TopUpRequest | None = None,
) -> None:
    """Records a change; the account numbers them."""
    account, time, top_ups = user.account, user.time, user.top_ups
    number = account.top_up_changes + 1
    user.account = account._replace(last_updated=time, top_up_changes=number, tx=user.tx)
    change = TopUpChange(account.user_id, number, kind, time, caller, counts.off, request)
    requests = top_ups.requests
    if request is not None:
        requests = {**requests, request.number: request}
    user.top_ups = top_ups._replace(
        counts=counts, requests=requests, changes=(*top_ups.changes, change)
    )


def _outcome(user: UserState, request: TopUpRequest, *, replayed: bool = False) -> Outcome:
    needed = request.state == "open" and _wants(user)
    decided = Decided(request, needed, user.top_ups.counts.off)
    return Outcome(None, user.account, replayed=replayed, top_up=decided)
