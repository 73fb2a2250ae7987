"""The frozen values of top-ups; see `model` for what such values are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from credit_service.fields import BALANCE_MAX, uuid_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

TopUpState = Literal["open", "succeeded", "failed", "not_needed"]
TopUpOff = Literal["failures", "reversal"]
TopUpChangeKind = Literal[
    "requested", "noted", "failed", "succeeded", "not_needed", "turned_off", "turned_on"
]
# The result of a failed try: the request stays open, was given up, or is no longer needed.
TopUpFailure = Literal["try_again", "given_up", "not_needed"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class TopUpId(NamedTuple):
    """The identity of a request for a top-up.

    Attributes:
        number: counts the requests of the user from 1.
        created_at: when it was made. A user who is deleted and created again counts from 1 once
            more, and the time tells the two apart.
    """

    user_id: UUID
    number: int
    created_at: datetime

    def __str__(self) -> str:
        """The public id, which names a payment at its provider and is never used again."""
        return f"{self.user_id}-t{self.number}-{(self.created_at - _EPOCH) // _MICROSECOND}"


def parse_top_up_id(text: str) -> TopUpId | None:
    """Turns a public id of a request for a top-up back into its identity; None for all else."""
    head, _, created = text.rpartition("-")
    user, _, number = head.rpartition("-t")
    user_id = uuid_or_none(user)
    longest = len(str(BALANCE_MAX))
    if user_id is None or not (_is_number(number, longest) and _is_number(created, longest + 2)):
        return None
    try:
        found = TopUpId(user_id, int(number), _EPOCH + int(created) * _MICROSECOND)
    except OverflowError:
        return None
    return found if str(found) == text else None


def _is_number(text: str, longest: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= longest


class TopUpRequest(NamedTuple):
    """A request for a top-up in its present state.

    Attributes:
        number: counts the requests of the user from 1.
        pack: what to buy, a name in the bridge's catalogue.
        payment_ref: the payment; None before it is noted.
        tries: how many failed tries were recorded.
        reason: why the last try failed, or why the request is not needed; empty before that.
        link: where the user can pay, as given with the reason; may be empty.
        seq: the seq of its purchase; None unless it has succeeded.
    """

    user_id: UUID
    number: int
    pack: str
    state: TopUpState
    payment_ref: str | None
    tries: int
    reason: str
    link: str
    created_at: datetime
    changed_at: datetime
    seq: int | None

    @property
    def id(self) -> TopUpId:
        """The identity of the request."""
        return TopUpId(self.user_id, self.number, self.created_at)


class TopUpCounts(NamedTuple):
    """The counts that decide whether an account may ask for a top-up, beside balance and policy.

    Attributes:
        requests: how many requests it ever made.
        failures: failed tries since the last success, other purchase or change of the policy.
        off: why top-up is off; None: it is on.
        month: the beginning of the month of UTC that `charges` counts; None before any.
        charges: how many top-ups were purchased in that month.
    """

    requests: int = 0
    failures: int = 0
    off: TopUpOff | None = None
    month: datetime | None = None
    charges: int = 0

    def charges_in(self, time: datetime) -> int:
        """How many top-ups were purchased in the month of UTC that a time lies in."""
        return self.charges if self.month == month_of(time) else 0

    def charged_at(self, time: datetime) -> TopUpCounts:
        """Counts a top-up purchased at a time, unless in a month before the counted one."""
        month = month_of(time)
        if self.month is not None and month < self.month:
            return self
        return self._replace(month=month, charges=self.charges_in(time) + 1)


class Decided(NamedTuple):
    """A command's decision about a request for a top-up.

    Attributes:
        request: as the command left it.
        needed: whether to charge it now.
        off: why top-up is off for the account; None: it is on.
    """

    request: TopUpRequest
    needed: bool
    off: TopUpOff | None


class TopUpChange(NamedTuple):
    """A change of the top-ups of an account.

    Attributes:
        change: counts the changes of the user from 1.
        caller: who caused it.
        off: why top-up is off after it; None: it is on.
        request: the request as the change left it; None for `turned_on`.
    """

    user_id: UUID
    change: int
    kind: TopUpChangeKind
    changed_at: datetime
    caller: str
    off: TopUpOff | None
    request: TopUpRequest | None


class TopUps(NamedTuple):
    """The top-ups of an account as a batch knows them. A change makes a new value.

    Attributes:
        counts: as they are now.
        requests: by number, the open request and those that commands refer to.
        taken: the payments named by commands that belong to other users' requests.
        changes: the changes of the batch, in order.
    """

    counts: TopUpCounts = TopUpCounts()
    requests: Mapping[int, TopUpRequest] = MappingProxyType({})
    taken: frozenset[str] = frozenset()
    changes: tuple[TopUpChange, ...] = ()

    @property
    def open(self) -> TopUpRequest | None:
        """The open request; None if there is none."""
        return next((each for each in self.requests.values() if each.state == "open"), None)

    def of_payment(self, payment_ref: str) -> TopUpRequest | None:
        """The request for which a payment was noted; None if there is none."""
        found = (each for each in self.requests.values() if each.payment_ref == payment_ref)
        return next(found, None)


NO_TOP_UPS = TopUps()


def month_of(time: datetime) -> datetime:
    """The beginning of the month of UTC that a time lies in."""
    return time.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
