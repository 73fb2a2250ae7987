"""The parts of the model of an account with grants: each credit with an expiry is an object."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN_PRIORITY = 50
NEVER = float("inf")
FREE, DRAWN, LAPSED, TAKEN = "free", "drawn", "lapsed", "taken"

# A credit of the pool, in lists of credits.
POOL = None


@dataclass(eq=False)
class Grant:
    """Credits with an expiry; `seq` is that of the entry that made the grant."""

    seq: int
    priority: int
    expire: float
    paid: bool
    series: str | None
    revoked: bool = False
    # Revoked, and nothing has come back since.
    closed: bool = False
    credits: list["Credit"] = field(default_factory=list)
    purchase: "Purchase | None" = None

    @property
    def amount(self):
        return len(self.credits)

    @property
    def free(self):
        return [credit for credit in self.credits if credit.place == FREE]

    @property
    def pinned(self):
        return [credit for credit in self.credits if isinstance(credit.place, Hold)]

    @property
    def remaining(self):
        return len(self.free) + len(self.pinned)

    @property
    def lapsed(self):
        return sum(credit.place == LAPSED for credit in self.credits)

    @property
    def burns(self):
        return self.priority, self.expire, self.paid, self.seq


@dataclass(eq=False)
class Credit:
    """One credit of a grant; `place` is FREE, DRAWN, LAPSED, TAKEN or the hold that pins it."""

    grant: Grant
    place: "str | Hold" = FREE


@dataclass(eq=False)
class Hold:
    """Reserved credits, each of a grant or of the pool, in the order in which they were drawn."""

    seq: int
    made: float
    until: float
    credits: list[Credit | None] = field(default_factory=list)
    state: str = "held"
    captured: int = 0

    @property
    def pins(self):
        return [credit for credit in self.credits if credit is not POOL]


@dataclass(eq=False)
class Purchase:
    """The credits that a payment bought, and those that its reversals took.

    `own` are the credits that they took from its own grant, `counted` those that had lapsed or were
    revoked, `elsewhere` those that they took from others.
    """

    payment: str
    seq: int
    amount: int
    grant: Grant | None
    paid_minor: int = 0
    revisions: dict[tuple[str, int], int] = field(default_factory=dict)
    own: list[Credit] = field(default_factory=list)
    counted: int = 0
    elsewhere: list[Credit | None] = field(default_factory=list)

    @property
    def reversed_credits(self):
        """The number of credits that all its reversals together take."""
        if not self.revisions:
            return 0
        latest = {reversal: minor for (reversal, _), minor in sorted(self.revisions.items())}
        total = sum(latest.values())
        return self.amount * min(total, self.paid_minor) // self.paid_minor


@dataclass(eq=False)
class Line:
    """An entry: its changes, and which credits of grants it drew, in order."""

    seq: int
    type: str
    amount: int
    balance_change: int
    held_change: int
    drawn: list[Credit] = field(default_factory=list)
    # The credit that a refund of it returns next is the last.
    back: list[Credit | None] = field(default_factory=list)


class Refused(Exception):
    """A refusal by its reason."""

    @property
    def reason(self):
        return self.args[0]


def burns(credit):
    """The rank of a credit in burn order; the pool comes after every grant of priority 50."""
    return (PLAIN_PRIORITY, NEVER, True, NEVER) if credit is POOL else credit.grant.burns


def take_last(taken):
    """Removes from a list the credit that goes back next: first the pool's, then the last taken."""
    if POOL in taken:
        taken.remove(POOL)
        return POOL
    return taken.pop()


def period_end(now, period):
    """The end of the period in UTC that contains a time."""
    time = SINCE + timedelta(seconds=now)
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        end = day + timedelta(days=1)
    elif period == "week":
        end = day + timedelta(days=7 - day.weekday())
    else:
        end = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (end - SINCE).total_seconds()
