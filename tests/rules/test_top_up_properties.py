"""Random histories of an account with top-ups against a plain model of it.

Spends, holds, captures, purchases, notes, failures, reversals, policies and their repeats, with
months that end in between. After every command the account's top-ups equal the model's, and the
changes, replayed one after the other, lead to the state of the account.
"""

import random
from collections import Counter
from datetime import timedelta
from itertools import pairwise

from kit.extent import extent
from kit.top_up_tables import (
    ALICE,
    NOON,
    TERMS,
    account,
    capture,
    fail,
    hold,
    note,
    purchase,
    release,
    reverse,
    set_policy,
    spend,
    state,
    together,
)
from model.top_ups import TopUpModel

from credit_service.errors import Refusal
from credit_service.rules.decide import decide
from credit_service.rules.model import TopUp
from credit_service.rules.top_up_values import TopUpId

STEPS = 60
KINDS = (
    *("hold", "capture", "release", "together", "purchase", "reverse", "note", "fail", "only"),
    *("policy", "freeze", "reset"),
    # Often: spends, and what a bridge does about the newest request.
    *["spend"] * 5,
    *["note_newest"] * 4,
    *["fail_newest"] * 6,
    *["pay_newest"] * 4,
    "reverse_newest",
)
FAILURES = ("try_again", "try_again", "given_up", "not_needed")
# Seconds from one command to the next; months end in some histories.
PAUSES = (0, 0, 0, 1, 1, 60, 86_400, 10 * 86_400)


def drawn(draw, top_ups):  # noqa: PLR0911
    """A command; one about a request names an existing request, if there is any."""
    kind, amount, key = draw.choice(KINDS), draw.randint(1, 12), f"k{draw.randint(1, 40)}"
    ref, number, money = f"pi_{draw.randint(1, 8)}", draw.randint(1, 5), draw.choice((0, 30, 100))

    def named(wanted):
        return top_ups.requests.get(wanted) or TopUpId(ALICE, wanted, NOON)

    newest = named(max(top_ups.requests, default=1))
    paid_by = getattr(newest, "payment_ref", None) or "pi_other"
    match kind:
        case "spend":
            return spend(amount, f"spend:{key}")
        case "only":
            return spend(amount, f"only:{key}", only=True)
        case "hold":
            return hold(amount, f"hold:{key}")
        case "capture":
            return capture(draw.randint(1, 20), f"capture:{key}", draw.choice((None, 0, 1)))
        case "release":
            return release(draw.randint(1, 20), f"release:{key}")
        case "together":
            spends = [spend(draw.randint(1, 12), f"{key}:{place}") for place in range(number)]
            return together(*spends)
        case "purchase":
            return purchase(amount, ref, key=f"buy:{ref}:{amount}", only=draw.random() < 0.3)
        case "reverse":
            return reverse(ref, number, money)
        case "note":
            return note(named(number), ref)
        case "fail":
            return fail(named(number), draw.randint(1, 4), draw.choice(FAILURES), ref)
        case "policy":
            return set_policy(TopUp(draw.randint(1, 20), draw.choice(("small", "big")), number))
        case "freeze":
            return set_policy(frozen=draw.random() < 0.5)
        case "reset":
            return set_policy(reset=("top_up",))
        case "note_newest":
            return note(newest, f"pi_{draw.randint(9, 10_000)}")
        case "fail_newest":
            tries = getattr(newest, "tries", 0)
            return fail(newest, tries + 1, draw.choice(FAILURES), paid_by)
        case "pay_newest":
            return purchase(amount, paid_by)
        case _:
            return reverse(paid_by, number, money)


def shown(user):
    return [
        (each.pack, each.state, each.payment_ref, each.tries, each.seq)
        for _, each in sorted(user.top_ups.requests.items())
    ]


def expected(model):
    return [
        (each.pack, each.state, each.payment, each.tries, each.bought and each.bought.seq)
        for each in model.requests
    ]


def require_history(user):
    """The changes count from 1, and lead to the account's requests and the reason it is off."""
    changes = user.top_ups.changes
    assert [each.change for each in changes] == list(range(1, user.account.top_up_changes + 1))
    assert (changes[-1].off if changes else None) == user.top_ups.counts.off
    last = {each.request.number: each.request for each in changes if each.request is not None}
    assert last == user.top_ups.requests
    for before, after in pairwise(changes):
        assert before.changed_at <= after.changed_at
    states = [each.state for each in user.top_ups.requests.values()]
    assert states.count("open") <= 1


def live(draw, met):
    """Draws a history of one account, and compares the account with the model at every step."""
    decided = state(account(10))
    user = decided.users[ALICE]
    model = TopUpModel(available=10, policy=user.account.policy.top_up)
    for _ in range(STEPS):
        user.now = decided.now = decided.now + timedelta(seconds=draw.choice(PAUSES))
        command = drawn(draw, user.top_ups)
        before, posted = user.top_ups, len(user.posted)
        try:
            answer = decide(decided, command, TERMS)
        except Refusal as refusal:
            answer = refusal
        time = user.time
        model.follow(command, answer, time)
        assert shown(user) == expected(model), (command, answer)
        counts = user.top_ups.counts
        assert (counts.requests, counts.failures) == (len(model.requests), model.failures())
        assert (counts.off, counts.charges_in(time)) == (model.off(), model.charges(time))
        if getattr(answer, "replayed", False) or getattr(command, "validate_only", False):
            assert (user.top_ups, len(user.posted)) == (before, posted)
        if getattr(answer, "top_up", None) is not None:
            needed = answer.top_up.request.state == "open" and model.wants(time)
            assert answer.top_up.needed == needed, command
            met["needed" if needed else "not needed"] += 1
        require_history(user)
        if model.policy is not None and model.charges(time) >= model.policy.per_month:
            met["as often as a month takes"] += 1
    met[f"off for {model.off()}"] += 1
    met.update(each.state for each in model.requests)


def test_any_history_of_top_ups_is_that_of_the_plain_model():
    met = Counter()
    for seed in range(extent(400, 20_000)):
        try:
            live(random.Random(seed), met)
        except AssertionError as difference:
            raise AssertionError(f"in the history of seed {seed}") from difference
    rare = {"off for failures", "off for reversal", "as often as a month takes"}
    states = {"open", "succeeded", "failed", "not_needed"}
    assert all(met[each] >= 10 for each in rare | states | {"needed", "not needed"}), met
