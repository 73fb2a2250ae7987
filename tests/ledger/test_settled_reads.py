"""Reads add up what is due in one statement: it is what the rules then settle, one by one.

Random histories run through the lanes, time passes, and everything is read before what is due is
recorded and after. Every ordinary run draws the same histories (derandomized).
"""

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from kit.clock import move_clock
from kit.commands import (
    ask,
    grant,
    hold,
    keyed,
    lanes,
    purchase,
    reading,
    refund,
    reverse,
    spend,
)
from kit.extent import extent
from kit.rule_tables import TERMS
from model.drawn_grants import AMOUNTS, LENGTHS, PAID_MINOR, Step, histories

from credit_service.errors import CreditError, Refusal
from credit_service.rules.commands import (
    Adjust,
    Capture,
    Expire,
    Extend,
    Life,
    Release,
    RevokeGrant,
    Rollover,
)
from credit_service.rules.terms import Terms

MINUTE = 60


class History:
    """Tells a history to a lane, a minute for each of its seconds."""

    def __init__(self, database, clerk, user):
        self.database = database
        self.clerk = clerk
        self.user = user
        self.made = {"hold": [], "spent": [], "grant": [], "payment": []}

    async def tell(self, step):
        if step.seconds:
            await move_clock(self.database, self.user, step.seconds * MINUTE)
        command = self._command(step)
        if command is None:
            return
        [answer] = await ask(self.clerk, command)
        if isinstance(answer, CreditError):
            assert isinstance(answer, Refusal), answer
        elif not isinstance(answer, BaseException):
            self._remember(step, answer.entry)
        else:
            raise answer

    def _remember(self, step, entry):
        if entry is None:
            return
        if step.call == "hold":
            self.made["hold"].append(entry.seq)
        elif entry.type in {"spend", "capture"}:
            self.made["spent"].append(entry.seq)
        elif step.call in {"purchase", "grant"}:
            self.made["grant"].append(entry.seq)
            if step.fields.get("payment"):
                self.made["payment"].append(self._ref(step.fields["payment"]))

    def _ref(self, payment):
        return f"{self.user} {payment}"

    def _of(self, kind, step):
        made = self.made[kind]
        return made[-1 - step.of % min(len(made), 4)] if made else None

    def _command(self, step):
        user, fields = self.user, step.fields
        amount = fields.get("amount")
        named = {
            **dict.fromkeys(("capture", "release", "extend"), "hold"),
            "refund": "spent",
            "revoke": "grant",
            "reverse": "payment",
        }.get(step.call)
        of = named and self._of(named, step)
        if named and of is None:
            return None
        payment, rollover = fields.get("payment"), fields.get("rollover")
        making = {
            "purchase": lambda: purchase(
                user,
                amount,
                ref=payment and self._ref(payment),
                life=_life(fields, dated=rollover is not None),
                rollover=rollover and Rollover(*rollover),
            ),
            "grant": lambda: grant(
                user, amount, life=_life(fields), paid=fields.get("paid", False)
            ),
            "spend": lambda: spend(user, amount),
            "adjust": lambda: keyed(
                Adjust, user, amount=amount, allow_debt=fields["allow_debt"], description="test"
            ),
            "hold": lambda: hold(user, amount, _seconds(fields["ttl"])),
            "capture": lambda: keyed(
                Capture,
                user,
                hold_seq=of,
                amount=amount,
                quantity=None,
                allow_overage=fields["overage"],
            ),
            "release": lambda: keyed(Release, user, hold_seq=of),
            "extend": lambda: Extend(
                user_id=user,
                caller="test",
                hold_seq=of,
                ttl=timedelta(seconds=_seconds(fields["ttl"])),
            ),
            "refund": lambda: refund(user, of, amount),
            "revoke": lambda: keyed(RevokeGrant, user, grant_seq=of),
            "reverse": lambda: reverse(
                user,
                of,
                f"{of} {fields['reversal']}",
                fields["revision"],
                fields["minor"],
                paid_minor=PAID_MINOR,
            ),
            "look": lambda: None,
        }
        return making[step.call]()


def _seconds(length):
    """The seconds of a length of a history; its longest is a day, which is an hour here."""
    return min(length, MINUTE) * MINUTE


def _life(fields, *, dated=False):
    lasts = fields.get("lasts", MINUTE if dated else None)
    if lasts is not None and lasts <= 0:
        lasts = 1
    valid_for = None if lasts is None else timedelta(seconds=_seconds(lasts))
    return Life(valid_for=valid_for, priority=fields.get("priority", 50))


async def everything_read(reads, user, moments):
    """What an account shows now, and what it and the report show of moments."""
    account, _, expiring, _ = await reads.account_with_entries(user, 0)
    shared = await reads.account(user)
    now = (account.balance, account.held, account.in_grants, account.pinned, account.open_grants)
    assert now == (shared.balance, shared.held, shared.in_grants, shared.pinned, shared.open_grants)
    past = []
    for moment in moments:
        then, _, lapsing = await reads.account_at(user, moment, 0)
        dated, pools = await reads.grants.liability(moment)
        past.append((then.balance, then.held, lapsing, dated, pools))
    return now, expiring, past


async def recorded(clerk, database, user):
    """Records what is due until nothing is."""
    due = (
        "SELECT FROM user_credits WHERE user_id = $1"
        " AND (next_hold_expiry <= now() OR next_lapse <= now())"
    )
    while await database.fetch(due, user):
        await ask(clerk, Expire(user_id=user, caller="test"))


async def moments_of(database, user):
    """The present, the times of holds and grants that have passed, and times between them."""
    rows = await database.fetch(
        """
        WITH times AS (
            SELECT expires_at AS time FROM credit_holds WHERE user_id = $1
            UNION SELECT expire_time FROM credit_grants WHERE user_id = $1
            UNION SELECT last_updated FROM user_credits WHERE user_id = $1
            UNION SELECT now()
        )
        SELECT time FROM times
        WHERE time BETWEEN (SELECT last_updated FROM user_credits WHERE user_id = $1) AND now()
        ORDER BY time
        """,
        user,
    )
    times = [row[0] for row in rows]
    between = [one + (two - one) / 2 for one, two in pairwise(times)]
    return [*times, *between]


async def reads_show_what_is_then_recorded(database, floor, steps, minutes):
    user = await database.user()
    terms = Terms(TERMS.prices, floor)
    async with (
        database.kept_open() as kept,
        lanes(database.service_url, terms=terms) as clerk,
        reading(database.service_url, terms) as reads,
    ):
        history = History(kept, clerk, user)
        for step in steps:
            await history.tell(step)
        await move_clock(kept, user, minutes * MINUTE)
        moments = await moments_of(kept, user)
        before = await everything_read(reads, user, moments)
        [account] = await kept.fetch("SELECT * FROM user_credits WHERE user_id = $1", user) or [{}]
        await recorded(clerk, kept, user)
        assert await everything_read(reads, user, moments) == before
        lines = await kept.fetch(
            "SELECT call FROM credit_transactions WHERE user_id = $1 AND seq > $2",
            user,
            account.get("seq", 0),
        )
        for call in {row[0] for row in lines}:
            event(call)
        if lines and account["balance"] < account["in_grants"]:
            event("with a debt")
    assert not await database.faults()


_HISTORIES = settings(
    database=None,
    # A smaller history would take minutes to find.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _at_once(call, **fields):
    return st.builds(Step, st.just(0), st.just(call), st.fixed_dictionaries(fields), st.just(0))


# What is done last and is all due later: credits, holds that set them aside, and debt.
_LAST = st.lists(
    st.one_of(
        _at_once("grant", amount=AMOUNTS, lasts=LENGTHS),
        _at_once("grant", amount=AMOUNTS, lasts=LENGTHS, priority=st.just(60)),
        *[_at_once("hold", amount=AMOUNTS, ttl=LENGTHS)] * 3,
        _at_once("revoke"),
        _at_once("adjust", amount=AMOUNTS.map(lambda n: -n), allow_debt=st.just(True)),
    ),
    min_size=4,
    max_size=12,
)
_DRAWN = {
    "floor": st.sampled_from([0, -5]),
    "steps": st.builds(list.__add__, histories(shortest=2, longest=15), _LAST),
    "minutes": st.sampled_from([1, 2, 3, 5, 8, 13, 90]),
}

# Two holds end, and the credits of the first pay the whole debt.
_IN_DEBT = [
    Step(0, "purchase", {"amount": 6, "payment": "pi_1"}),
    Step(0, "spend", {"amount": 6}),
    Step(0, "grant", {"amount": 6, "lasts": MINUTE}),
    Step(0, "hold", {"amount": 6, "ttl": 6}),
    Step(0, "grant", {"amount": 6, "lasts": 7}),
    Step(0, "hold", {"amount": 6, "ttl": 8}),
    Step(0, "reverse", {"reversal": "re_1", "revision": 1, "minor": PAID_MINOR}),
]


@example(floor=0, steps=_IN_DEBT, minutes=7)
@example(floor=0, steps=_IN_DEBT, minutes=9)
@settings(_HISTORIES, derandomize=True, max_examples=extent(15, 15))
@given(**_DRAWN)
async def test_a_read_shows_what_is_due_as_it_is_then_recorded(database, floor, steps, minutes):
    await reads_show_what_is_then_recorded(database, floor, steps, minutes)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_HISTORIES, max_examples=extent(100, 500))
@given(**_DRAWN)
async def test_many_reads_show_what_is_due_as_it_is_then_recorded(database, floor, steps, minutes):
    await reads_show_what_is_then_recorded(database, floor, steps, minutes)
