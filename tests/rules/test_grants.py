"""The rules of grants as a table: what movements leave of each grant and of the pool.

After every step the law is checked: a grant is the sum of its changes, an account the sum of its
grants, and debt remains only while no grant has credits left that no hold has pinned.
"""

from dataclasses import replace

import pytest
from kit.grant_tables import (
    DAY,
    HOUR,
    Left,
    Story,
    at,
    capture,
    grant,
    hold,
    purchase,
    refund,
    release,
    reverse,
    revoke,
    spend,
)
from kit.rule_tables import ALICE, PRICES, row

from credit_service.errors import (
    BatchAborted,
    GrantNotFound,
    InsufficientCredits,
    InvalidRequest,
    TooManyGrants,
)
from credit_service.rules.commands import Rollover, SpendTogether
from credit_service.rules.grants import OPEN_GRANTS_MAX
from credit_service.rules.model import Account, transaction_id
from credit_service.rules.terms import Terms

ON_CREDIT = Terms(PRICES, -100)
# Ten credits of each kind. BURNING has the order in which they are used.
LADDER = [
    purchase(10, "pool"),
    grant(10, at(9 * DAY, 60), "late"),
    grant(10, at(2 * DAY), "older"),
    grant(10, at(2 * DAY), "newer"),
    grant(10, at(2 * DAY), "paid", paid=True),
    grant(10, at(DAY), "soon"),
    grant(10, at(None, 10), "early"),
]


def dated(amount, days, key, ref=None, *, series=None, cap=0):
    """A purchase of credits that expire after a number of days."""
    rollover = None if series is None else Rollover(series, cap)
    return purchase(amount, key, ref, life=at(days * DAY), rollover=rollover)


BURNING = [
    row("priority first", 10, {7: 0}),
    row("then the earliest expiry", 20, {7: 0, 6: 0}),
    row("then promotional before paid, older before newer", 30, {7: 0, 6: 0, 3: 0}),
    row("the newer one after it", 40, {7: 0, 6: 0, 3: 0, 4: 0}),
    row("then the paid one", 50, {7: 0, 6: 0, 3: 0, 4: 0, 5: 0}),
    row("then the pool", 60, {7: 0, 6: 0, 3: 0, 4: 0, 5: 0, "pool": 0}),
    row("then a later priority", 65, {7: 0, 6: 0, 3: 0, 4: 0, 5: 0, "pool": 0, 2: 5}),
    row("debt last", 75, {7: 0, 6: 0, 3: 0, 4: 0, 5: 0, "pool": -5, 2: 0}),
]


@pytest.mark.parametrize(("amount", "left"), BURNING)
def test_credits_are_spent_in_burn_order(amount, left):
    story = Story(*LADDER, spend(amount), terms=ON_CREDIT)
    shown = story.left()
    assert shown.pool == left.get("pool", 10)
    assert shown.grants == {seq: (left.get(seq, 10), 0) for seq in range(2, 8)}


@pytest.mark.parametrize(("amount", "left"), BURNING)
def test_credits_are_held_and_captured_in_burn_order(amount, left):
    story = Story(*LADDER, hold(amount), terms=ON_CREDIT)
    assert story.left().grants == {seq: (10, 10 - left.get(seq, 10)) for seq in range(2, 8)}
    story.do(capture(8))
    assert story.left().grants == {seq: (left.get(seq, 10), 0) for seq in range(2, 8)}
    assert story.left().pool == left.get("pool", 10)


TABLE = [
    row(
        "a purchase with a life makes a grant",
        [dated(100, 30, "k")],
        Left(0, {1: (100, 0)}),
    ),
    row("priority 50 without an expiry is the pool", [grant(5, at(), "k")], Left(5, {})),
    row("a priority alone makes a grant", [grant(5, at(None, 49), "k")], Left(0, {1: (5, 0)})),
    row(
        "a grant pays debt first",
        [hold(50, "h"), capture(1), dated(80, 30, "k")],
        Left(0, {3: (30, 0)}),
    ),
    row(
        "held credits of the pool are not spent while a grant is left",
        [purchase(100, "p"), hold(100), grant(50, at(None, 60), "g"), spend(50)],
        Left(100, {3: (0, 0)}),
    ),
    row(
        "captured below zero, the grant pays before it lapses",
        [hold(50), dated(40, 1, "p"), capture(1), DAY],
        Left(-10, {2: (0, 0)}),
    ),
    row(
        "a capture of a part gives up the rest",
        [dated(100, 1, "p"), hold(60), capture(2, 40)],
        Left(0, {1: (60, 0)}),
    ),
    row(
        "expiry does not touch what is pinned",
        [dated(100, 1, "p"), hold(60, ttl=2 * DAY), DAY],
        Left(0, {1: (60, 60)}),
    ),
    row(
        "and the rest after a capture lapses at once",
        [dated(100, 1, "p"), hold(60, ttl=2 * DAY), DAY, capture(2, 40)],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "released after its time, a grant lapses at once",
        [dated(100, 1, "p"), hold(60, ttl=2 * DAY), DAY, release(2)],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "as it does when a hold expires after its time",
        [dated(100, 1, "p"), hold(60, ttl=2 * DAY), 3 * DAY],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "overage is drawn in burn order",
        [dated(20, 1, "p"), hold(15), purchase(10, "q"), capture(2, 25, overage=True)],
        Left(5, {1: (0, 0)}),
    ),
    row(
        "a late capture is drawn in burn order",
        [dated(20, 1, "p"), hold(15), HOUR, dated(10, 0.5, "q"), capture(2)],
        Left(0, {1: (15, 0), 4: (0, 0)}),
    ),
    row(
        "a refund goes back the way it came, the last drawn first",
        [
            purchase(10, "p"),
            grant(10, at(DAY), "g"),
            spend(15),
            refund(3, 7),
        ],
        Left(10, {2: (2, 0)}),
    ),
    row(
        "and a second part goes on from there",
        [purchase(10, "p"), grant(10, at(DAY), "g"), spend(15), refund(3, 7), refund(3, 8, "r2")],
        Left(10, {2: (10, 0)}),
    ),
    row(
        "a lapsed grant opens again and lapses after the grace",
        [dated(100, 1, "p", "pi_1"), spend(100), 2 * DAY, refund(2), 7 * DAY],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "but not before",
        [dated(100, 1, "p", "pi_1"), spend(100), 2 * DAY, refund(2), 7 * DAY - HOUR],
        Left(0, {1: (100, 0)}),
    ),
    row(
        "refunded, lapsed unused and the money back: nothing is owed",
        [dated(100, 1, "p", "pi_1"), spend(100), 2 * DAY, refund(2), 8 * DAY, reverse(1000)],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "a refund pays debt before anything else",
        [grant(30, at(DAY), "g"), spend(30), spend(20, "on credit"), refund(2)],
        Left(0, {1: (10, 0)}),
    ),
    row(
        "a reversal takes the purchase's grant whole, and pins move to other credits",
        [purchase(500, "p"), dated(100, 1, "q", "pi_1"), hold(60, ttl=2 * DAY), reverse(1000), DAY],
        Left(500, {2: (0, 0)}),
    ),
    row(
        "pins move in burn order",
        [
            dated(100, 1, "q", "pi_1"),
            hold(60, ttl=2 * DAY),
            grant(20, at(3 * DAY), "g"),
            purchase(50, "p"),
            reverse(1000),
        ],
        Left(50, {1: (0, 0), 3: (20, 20)}),
    ),
    row(
        "for credits already spent, others are taken in burn order, then debt",
        [
            dated(100, 9, "q", "pi_1"),
            spend(100),
            grant(20, at(DAY), "g"),
            purchase(50, "p"),
            reverse(1000),
        ],
        Left(-30, {1: (0, 0), 3: (0, 0)}),
    ),
    row(
        "what lapsed is counted once, and a refund that fails leaves nothing behind",
        [
            dated(100, 1, "p", "pi_1"),
            spend(40),
            reverse(500),
            DAY,
            reverse(500, reversal="re_2"),
            reverse(0, 2, reversal="re_2"),
        ],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "a purchase without a life is taken from the pool first",
        [purchase(100, "p", "pi_1"), grant(20, at(DAY), "g"), reverse(1000)],
        Left(0, {2: (20, 0)}),
    ),
    row(
        "a dispute won after the work was refunded",
        [
            purchase(500, "pool"),
            dated(100, 9, "p", "pi_1"),
            spend(100),
            reverse(1000),
            reverse(0, 2),
            refund(3),
        ],
        Left(500, {2: (100, 0)}),
    ),
    row(
        "what is revoked is gone, and what holds have pinned when they give it up",
        [grant(100, at(DAY), "g"), hold(60), revoke(1), capture(2, 40)],
        Left(0, {1: (0, 0)}),
    ),
    row(
        "a revoked grant opens again when its work is refunded",
        [grant(100, at(DAY), "g"), spend(60), revoke(1), refund(2), 6 * DAY],
        Left(0, {1: (60, 0)}),
    ),
    row(
        "a grant that never expires after one that does",
        [grant(10, at(None, 49), "a"), grant(10, at(DAY, 49), "b"), spend(10)],
        Left(0, {1: (10, 0), 2: (0, 0)}),
    ),
    row(
        "an older paid grant after a newer promotional one",
        [grant(10, at(DAY), "a", paid=True), grant(10, at(DAY), "b"), spend(10)],
        Left(0, {1: (10, 0), 2: (0, 0)}),
    ),
    row(
        "a capture takes what the hold has of the pool before later priorities",
        [purchase(10, "p"), grant(10, at(DAY, 60), "g"), hold(20), capture(3, 5)],
        Left(5, {2: (10, 0)}),
    ),
    row(
        "of two grants the last drawn comes back first",
        [grant(10, at(DAY), "a"), grant(10, at(2 * DAY), "b"), spend(20), refund(3, 7)],
        Left(0, {1: (0, 0), 2: (7, 0)}),
    ),
    row(
        "credits that an earlier revision counted are not counted again",
        [dated(100, 1, "p", "pi_1"), spend(60), DAY, reverse(500), reverse(1000, 2)],
        Left(-60, {1: (0, 0)}),
    ),
    row(
        "a refund restores what the reversal of its grant took elsewhere",
        [purchase(100, "o"), dated(100, 9, "p", "pi_1"), spend(100), reverse(1000), refund(3)],
        Left(100, {2: (0, 0)}),
    ),
    row(
        "and a dispute won after that gives the grant back",
        [
            purchase(100, "o"),
            dated(100, 9, "p", "pi_1"),
            spend(100),
            reverse(1000),
            refund(3),
            reverse(0, 2),
        ],
        Left(100, {2: (100, 0)}),
    ),
    row(
        "what rolls over is capped, the earliest lapses first",
        [
            dated(100, 30, "m1", "pi_1", series="plan", cap=50),
            spend(80),
            dated(100, 60, "m2", "pi_2", series="plan", cap=50),
            dated(100, 90, "m3", "pi_3", series="plan", cap=50),
        ],
        Left(0, {1: (0, 0), 3: (50, 0), 4: (100, 0)}),
    ),
]


@pytest.mark.parametrize(("steps", "left"), TABLE)
def test_movements_leave(steps, left):
    assert Story(*steps, terms=ON_CREDIT).left() == left


def test_one_entry_takes_all_grants_due_at_an_instant():
    story = Story(grant(5, at(DAY), "a"), grant(6, at(DAY), "b"), grant(7, at(DAY + HOUR), "c"))
    story.do(2 * DAY)
    assert story.entries()[3:] == [("lapse", -11, 0), ("lapse", -7, 0)]
    rows = [c for c in story.alice.grant_changes if c.lapsed_at]
    assert [c.lapsed_at for c in rows] == [g.expire_time for g in story.alice.grants.values()]


@pytest.mark.parametrize("looks", [[], [HOUR], [HOUR, HOUR / 4, HOUR / 4]])
def test_looks_in_between_make_no_difference(looks):
    story = Story(
        spend(60, "on credit"),
        grant(120, at(9 * DAY), "pays 60, then is pinned"),
        hold(60, "h1", ttl=HOUR),
        grant(60, at(HOUR * 1.25), "is pinned until after its time"),
        hold(60, "h2", ttl=HOUR * 1.5),
        spend(60, "in debt again"),
        terms=Terms(PRICES, -1000),
    )
    assert story.left() == Left(-60, {2: (60, 60), 4: (60, 60)})
    for look in looks:
        story.do(look)
    story.do(HOUR * 2 - sum(looks, HOUR * 0))
    assert story.left() == Left(0, {2: (0, 0), 4: (0, 0)})


def test_movements_without_grants_leave_the_fields_of_grants_unchanged():
    story = Story(purchase(100, "p", "pi_1"), hold(10), capture(2), spend(5), refund(4))
    story.do(reverse(500))
    made = Account._fields.index("in_grants")
    assert story.alice.account[made:] == Account(ALICE)[made:]
    assert story.alice.drawn == {}


def test_a_refused_batch_of_spends_draws_nothing():
    story = Story(grant(10, at(DAY), "g"), grant(10, at(2 * DAY), "h"))
    before = repr(story.alice)
    parts = (spend(15, "a"), spend(6, "b"))
    together = SpendTogether(user_id=ALICE, caller="worker", spends=parts)
    outcome = story.do(together)
    assert [type(part) for part in outcome.parts] == [BatchAborted, InsufficientCredits]
    assert repr(story.alice) == before
    story.do(spend(12, "c"))
    assert story.left() == Left(0, {1: (0, 0), 2: (8, 0)})


@pytest.mark.parametrize(
    "command",
    [
        grant(5, at(DAY), "new"),
        dated(5, 1, "new", "pi_2", series="plan"),
        spend(5),
        hold(5, "new"),
        capture(3),
        release(3),
        refund(2),
        reverse(500),
        revoke(1),
    ],
    ids=lambda command: command.call,
)
def test_a_validated_call_changes_no_grant(command):
    story = Story(dated(100, 9, "p", "pi_1"), spend(50, "s"), hold(20))
    before = repr(story.state)
    story.do(replace(command, validate_only=True))
    assert repr(story.alice) in before


def test_a_grant_is_revoked_once():
    story = Story(grant(100, at(DAY), "g"), spend(30))
    first = story.do(revoke(1, "r1"))
    assert (first.entry.type, first.entry.amount, first.replayed) == ("revocation", 70, False)
    again = story.do(revoke(1, "r1"))
    assert (again.entry, again.replayed) == (first.entry, True)
    other = story.do(revoke(1, "r2"))
    assert (other.entry.seq, other.replayed) == (1, True)
    assert story.do(revoke(1, "r2")).replayed
    assert story.entries() == [("grant", 100, 0), ("spend", -30, 0), ("revocation", -70, 0)]


def test_a_grant_that_holds_have_pinned_whole_is_revoked_without_an_entry():
    story = Story(grant(50, at(DAY), "g"), hold(50))
    assert story.do(revoke(1)).replayed
    story.do(release(2))
    assert story.entries()[2:] == [("release", 0, -50), ("revocation", -50, 0)]


def test_credits_of_the_pool_are_no_grant_to_revoke():
    story = Story(purchase(10, "p"))
    refusal = story.refused(revoke(1))
    assert isinstance(refusal, GrantNotFound)
    assert refusal.grant_id == transaction_id(ALICE, 1)


@pytest.mark.parametrize("time", [-HOUR, 0 * HOUR, 3654 * DAY])
def test_credits_expire_in_the_future_and_within_ten_years(time):
    story = Story()
    refusal = story.refused(grant(10, at(time), "g"))
    assert isinstance(refusal, InvalidRequest)
    assert refusal.field == "expire_time"


def test_a_paid_purchase_whose_expiry_has_passed_lasts_for_the_grace():
    story = Story(purchase(10, "p", "pi_1", life=at(-DAY)))
    assert story.alice.grants[1].expire_time == story.alice.now + story.terms.refund_grace


def test_grants_are_refused_beyond_a_bound_and_purchases_are_not():
    story = Story(grant(1, at(DAY), "first"))
    account = story.alice.account._replace(open_grants=OPEN_GRANTS_MAX)
    story.alice.account = account
    assert isinstance(story.refused(grant(1, at(DAY), "g")), TooManyGrants)
    story.alice.account = account._replace(open_grants=1)
    for number in range(3):
        story.do(grant(1, at(), f"pool {number}"))
    story.do(dated(1, 1, "p"))
