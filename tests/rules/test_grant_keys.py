"""Keys of calls that add credits with a life, which is compared as asked unless money was paid."""

from datetime import timedelta

import pytest
from kit.grant_tables import DAY, Story, at, grant, purchase, refund, spend
from kit.rule_tables import NOON, row

from credit_service.errors import IdempotencyKeyReused
from credit_service.rules.commands import Life

FOR_A_DAY = Life(valid_for=DAY)

SAME = [
    row("by time", grant(5, at(DAY), "k"), grant(5, at(DAY), "k")),
    row("by duration, although the time is another", grant(5, FOR_A_DAY, "k"), None),
    row("50 said or unsaid", grant(5, Life(), "k"), grant(5, Life(priority=50), "k")),
    row("of a purchase without a payment", purchase(5, "k", life=at(DAY)), None),
    row(
        "another life of a payment: the first one stays",
        purchase(5, "k", "pi_1", life=at(DAY)),
        purchase(5, "k", "pi_1", life=at(2 * DAY, 9)),
    ),
    row(
        "another life of a payment under another key",
        purchase(5, "k", "pi_1", life=at(DAY)),
        purchase(5, "k2", "pi_1", life=at(None, 9)),
    ),
    row(
        "the category of credits without a life, which the pool does not keep",
        grant(5, Life(), "k"),
        grant(5, Life(), "k", paid=True),
    ),
]


@pytest.mark.parametrize(("first", "again"), SAME)
def test_the_same_request_is_replayed(first, again):
    story = Story(first)
    before = dict(story.alice.grants)
    story.do(timedelta(minutes=5))
    outcome = story.do(again or first)
    assert (outcome.replayed, outcome.entry.seq) == (True, 1)
    assert story.alice.grants == before


DIFFERENT = [
    row("expiry", grant(5, at(DAY), "k"), grant(5, at(2 * DAY), "k"), "expire_time"),
    row("no expiry", grant(5, at(DAY, 9), "k"), grant(5, at(None, 9), "k"), "expire_time"),
    row("an expiry at last", grant(5, at(), "k"), grant(5, at(DAY), "k"), "expire_time"),
    row(
        "duration",
        grant(5, FOR_A_DAY, "k"),
        grant(5, Life(valid_for=2 * DAY), "k"),
        "valid_for",
    ),
    row(
        "the time that a duration came to",
        grant(5, FOR_A_DAY, "k"),
        grant(5, Life(NOON + DAY), "k"),
        "expire_time",
    ),
    row("priority", grant(5, at(DAY, 9), "k"), grant(5, at(DAY, 8), "k"), "priority"),
    row("category", grant(5, at(DAY), "k"), grant(5, at(DAY), "k", paid=True), "category"),
    row(
        "of a purchase without a payment",
        purchase(5, "k", life=at(DAY)),
        purchase(5, "k", life=at(DAY, 9)),
        "priority",
    ),
]


@pytest.mark.parametrize(("first", "again", "field"), DIFFERENT)
def test_another_request_is_refused(first, again, field):
    refusal = Story(first).refused(again)
    assert isinstance(refusal, IdempotencyKeyReused)
    assert refusal.field == field


def test_the_time_that_was_asked_for_is_compared_after_a_refund_moved_it():
    story = Story(grant(5, at(DAY), "k"), spend(5), 2 * DAY, refund(2))
    assert story.alice.grants[1].expire_time > NOON + DAY
    assert story.do(grant(5, at(DAY), "k")).replayed
