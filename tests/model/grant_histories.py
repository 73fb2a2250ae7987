"""Histories of accounts with grants, each with the end that it must have, worked out by hand.

A step is a request at a time in minutes; it refers to an earlier step by that step's place.
"""

from dataclasses import dataclass, field

HOUR = 60
DAY = 24 * HOUR
# As configured by default.
GRACE_DAYS = 7


@dataclass(frozen=True)
class Step:
    """A request; `of` in its fields is the place of an earlier step. A look only lets time pass."""

    minute: int
    call: str
    fields: dict[str, object] = field(default_factory=dict)

    @property
    def seconds(self):
        return self.minute * 60

    def asked(self, seqs):
        """The fields of the request in seconds, with the seqs of the earlier steps' entries."""
        fields = {
            name: value * 60 if name in {"expire", "ttl"} else value
            for name, value in self.fields.items()
        }
        if "of" in fields:
            named = {"refund": "line", "revoke": "grant"}.get(self.call, "hold")
            fields[named] = seqs[fields.pop("of")]
        return fields


@dataclass(frozen=True)
class End:
    """An account's end: its pool, and the rest of each grant, in the order they were made."""

    pool: int
    grants: tuple[int, ...] = ()
    held: int = 0


@dataclass(frozen=True)
class History:
    """Steps from an empty account, with the end that they must have.

    `refused` are the reasons of the steps that are refused, by their places.
    """

    steps: list[Step]
    end: End
    floor: int = 0
    refused: dict[int, str] = field(default_factory=dict)


def purchase(minute, amount, payment=None, **life):
    return Step(minute, "purchase", {"amount": amount, "payment": payment, **life})


def grant(minute, amount, **life):
    return Step(minute, "grant", {"amount": amount, **life})


def spend(minute, amount):
    return Step(minute, "spend", {"amount": amount})


def adjust(minute, amount, *, allow_debt=False):
    return Step(minute, "adjust", {"amount": amount, "allow_debt": allow_debt})


def hold(minute, amount, ttl):
    return Step(minute, "hold", {"amount": amount, "ttl": ttl})


def capture(minute, of, amount=None, *, overage=False):
    return Step(minute, "capture", {"of": of, "amount": amount, "overage": overage})


def release(minute, of):
    return Step(minute, "release", {"of": of})


def refund(minute, of, amount=None):
    return Step(minute, "refund", {"of": of, "amount": amount})


def reverse(minute, payment, minor, *, reversal="re_1", revision=1):
    paid = 1000
    return Step(
        minute,
        "reverse",
        {
            "payment": payment,
            "reversal": reversal,
            "revision": revision,
            "minor": minor,
            "paid": paid,
        },
    )


def revoke(minute, of):
    return Step(minute, "revoke", {"of": of})


def look(minute):
    return Step(minute, "look")


def _two_holds_and_a_debt(*looks):
    steps = [
        purchase(0, 60, "pi_1"),
        spend(1, 60),
        grant(2, 60, expire=30 * DAY),
        hold(3, 60, HOUR - 3),
        grant(4, 60, expire=75),
        hold(5, 60, 85),
        reverse(6, "pi_1", 1000),
    ]
    return [*steps, *(look(minute) for minute in looks), look(125)]


HISTORIES = {
    "a capture below zero is paid by the grant before it lapses": History(
        [hold(0, 50, 30), purchase(1, 40, expire=DAY), capture(2, 0), look(DAY)],
        End(pool=-10, grants=(0,)),
        floor=-100,
    ),
    "a pool that is all held is not spent while a later grant is free": History(
        [purchase(0, 100), hold(1, 100, 30), grant(2, 50, priority=60), spend(3, 50)],
        End(pool=100, grants=(0,), held=100),
    ),
    "expiries and lapses, each looked at in time": History(
        _two_holds_and_a_debt(60, 75, 90), End(pool=0, grants=(0, 0))
    ),
    "expiries and lapses, all looked at together": History(
        _two_holds_and_a_debt(), End(pool=0, grants=(0, 0))
    ),
    "a purchase whose refunded work lapsed is reversed for nothing": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            spend(1, 100),
            refund(2 * DAY, 1),
            look((2 + GRACE_DAYS) * DAY),
            reverse(20 * DAY, "pi_1", 1000),
        ],
        End(pool=0, grants=(0,)),
    ),
    "refunded work comes back for the grace": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            spend(1, 100),
            refund(2 * DAY, 1),
            look((2 + GRACE_DAYS) * DAY - 1),
        ],
        End(pool=0, grants=(100,)),
    ),
    "a pinned grant is reversed and its hold released after its time": History(
        [
            purchase(0, 500),
            purchase(1, 100, "pi_1", expire=DAY),
            hold(2, 60, 2 * DAY),
            reverse(3, "pi_1", 1000),
            release(DAY + 1, 2),
        ],
        End(pool=500, grants=(0,)),
    ),
    "a pinned grant is reversed after its hold was released": History(
        [
            purchase(0, 500),
            purchase(1, 100, "pi_1", expire=DAY),
            hold(2, 60, 2 * DAY),
            release(3, 2),
            reverse(4, "pi_1", 1000),
        ],
        End(pool=500, grants=(0,)),
    ),
    "a reversal that fails is as if it had never been, with a lapse between": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            spend(1, 40),
            reverse(2, "pi_1", 500),
            look(DAY),
            reverse(DAY + 1, "pi_1", 500, reversal="re_2"),
            reverse(DAY + 2, "pi_1", 0, reversal="re_2", revision=2),
        ],
        End(pool=0, grants=(0,)),
    ),
    "a whole reversal counts lapsed credits": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            spend(1, 40),
            reverse(2, "pi_1", 500),
            look(DAY),
            reverse(DAY + 1, "pi_1", 500, reversal="re_2"),
        ],
        End(pool=-40, grants=(0,)),
    ),
    "work is refunded after the dispute about its grant was won": History(
        [
            purchase(0, 100),
            purchase(1, 100, "pi_1", expire=30 * DAY),
            spend(2, 100),
            reverse(3, "pi_1", 1000),
            reverse(4, "pi_1", 0, revision=2),
            refund(5, 2),
        ],
        End(pool=100, grants=(100,)),
    ),
    "work is refunded before the dispute about its grant is won": History(
        [
            purchase(0, 100),
            purchase(1, 100, "pi_1", expire=30 * DAY),
            spend(2, 100),
            reverse(3, "pi_1", 1000),
            refund(4, 2),
            reverse(5, "pi_1", 0, revision=2),
        ],
        End(pool=100, grants=(100,)),
    ),
    "work is refunded while the dispute about its grant is lost": History(
        [
            purchase(0, 100),
            purchase(1, 100, "pi_1", expire=30 * DAY),
            spend(2, 100),
            reverse(3, "pi_1", 1000),
            refund(4, 2),
            look(40 * DAY),
        ],
        End(pool=100, grants=(0,)),
    ),
    "a dispute is won after the lapse": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            reverse(1, "pi_1", 1000),
            reverse(2 * DAY, "pi_1", 0, revision=2),
        ],
        End(pool=0, grants=(100,)),
    ),
    "a dispute about lapsed credits is won for nothing": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            reverse(DAY, "pi_1", 1000),
            reverse(2 * DAY, "pi_1", 0, revision=2),
        ],
        End(pool=0, grants=(0,)),
    ),
    "a grant pays the debt before it can lapse": History(
        [
            purchase(0, 100, "pi_1"),
            spend(1, 100),
            reverse(2, "pi_1", 1000),
            grant(3, 40, expire=DAY),
            look(DAY),
        ],
        End(pool=-60, grants=(0,)),
    ),
    "a purchase half lapsed and half spent is charged back with a hold open": History(
        [
            purchase(0, 100, "pi_1", expire=DAY),
            spend(1, 30),
            hold(2, 20, 2 * DAY),
            reverse(DAY + 1, "pi_1", 1000),
            capture(DAY + 2, 2),
        ],
        End(pool=-50, grants=(0,)),
    ),
    "credits expire at the instant of the spend": History(
        [grant(0, 50, expire=DAY), spend(DAY, 50)],
        End(pool=0, grants=(0,)),
        refused={1: "INSUFFICIENT_CREDITS"},
    ),
    "credits are spent at the last instant": History(
        [grant(0, 50, expire=DAY), spend(DAY - 1, 50), refund(DAY - 1, 1, 20), look(DAY)],
        End(pool=0, grants=(0,)),
    ),
    "pinned credits are captured at the instant of their expiry": History(
        [grant(0, 50, expire=DAY), hold(1, 30, 2 * DAY), capture(DAY, 1, 20)],
        End(pool=0, grants=(0,)),
    ),
    "work is refunded at the instant of its grant's expiry": History(
        [grant(0, 50, expire=DAY), spend(1, 50), refund(DAY, 1, 20)],
        End(pool=0, grants=(20,)),
    ),
    "work that three grants paid is refunded after each has ended in its own way": History(
        [
            purchase(0, 100),
            grant(1, 10, expire=DAY),
            grant(2, 10, expire=30 * DAY),
            purchase(3, 10, "pi_1", expire=40 * DAY),
            spend(4, 30),
            revoke(5, 2),
            reverse(6, "pi_1", 1000),
            refund(2 * DAY, 4),
        ],
        End(pool=100, grants=(10, 10, 0)),
    ),
    "a revoked grant gives up its pins when the hold ends": History(
        [
            grant(0, 50, expire=DAY),
            hold(1, 30, 40),
            revoke(2, 0),
            capture(3, 1, 10),
        ],
        End(pool=0, grants=(0,)),
    ),
    "overage is drawn from the pool before a later grant": History(
        [
            purchase(0, 100),
            grant(1, 50, priority=10, expire=DAY),
            hold(2, 50, 30),
            grant(3, 50, priority=60),
            capture(4, 2, 150, overage=True),
        ],
        End(pool=0, grants=(0, 50)),
    ),
    "a hold below zero is captured while a grant is free": History(
        [
            grant(0, 20, expire=DAY),
            hold(1, 50, 30),
            grant(2, 20, expire=2 * DAY),
            capture(3, 1, 40),
            refund(4, 3, 30),
        ],
        End(pool=0, grants=(10, 20)),
        floor=-100,
    ),
    "refunded work of a revoked grant comes back for the grace": History(
        [grant(0, 20, expire=DAY), spend(1, 10), revoke(2, 0), refund(3, 1), look(DAY + 1)],
        End(pool=0, grants=(10,)),
    ),
    "a dispute that is won pays the debt first": History(
        [
            purchase(0, 50, "pi_1", expire=30 * DAY),
            reverse(1, "pi_1", 1000),
            purchase(2, 40, "pi_2"),
            spend(3, 40),
            reverse(4, "pi_2", 1000, reversal="re_2"),
            reverse(5, "pi_1", 0, revision=2),
        ],
        End(pool=0, grants=(10,)),
    ),
    "a dispute that is half won gives back the credits that it took last": History(
        [
            purchase(0, 20, "pi_1", priority=10, expire=DAY),
            spend(1, 20),
            grant(2, 10, expire=10 * DAY),
            grant(3, 10, expire=20 * DAY),
            reverse(4, "pi_1", 1000),
            reverse(5, "pi_1", 500, revision=2),
        ],
        End(pool=0, grants=(0, 0, 10)),
    ),
    "a hold never keeps more of a reversed grant than there is": History(
        [
            purchase(0, 30),
            purchase(1, 60, "pi_1", expire=DAY),
            hold(2, 40, 100),
            hold(3, 20, 100),
            grant(4, 50, priority=60),
            reverse(5, "pi_1", 1000),
            capture(6, 2),
            refund(7, 6),
            capture(8, 3),
            refund(9, 8),
        ],
        End(pool=30, grants=(0, 50)),
    ),
    "an adjustment takes credits that no hold has reserved, then makes debt": History(
        [
            purchase(0, 10),
            grant(1, 10, expire=DAY),
            hold(2, 5, 30),
            adjust(3, -18),
            adjust(4, -18, allow_debt=True),
            adjust(5, 2),
            release(6, 2),
        ],
        End(pool=0, grants=(4,)),
        refused={3: "INSUFFICIENT_CREDITS"},
    ),
    "the last drawn comes back first": History(
        [
            purchase(0, 10),
            grant(1, 10, expire=DAY),
            grant(2, 10, expire=2 * DAY),
            spend(3, 25),
            refund(4, 3, 7),
            refund(5, 3, 9),
        ],
        End(pool=10, grants=(1, 10)),
    ),
    "credits that return to one reversed purchase restore those it took from another": History(
        [
            purchase(0, 100),
            purchase(1, 100, "pi_2", expire=DAY),
            spend(2, 100),
            purchase(3, 100, "pi_1", expire=2 * DAY),
            reverse(4, "pi_2", 1000, reversal="re_2"),
            reverse(5, "pi_1", 1000),
            reverse(6, "pi_2", 0, reversal="re_2", revision=2),
            look(3 * DAY),
        ],
        End(pool=100, grants=(0, 0)),
    ),
}
