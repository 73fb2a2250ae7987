"""Several commands in one batch about an account with grants: each sees what those before did."""

from kit.grant_tables import DAY, HOUR, Story, at, grant, hold, purchase, reverse, revoke, spend
from kit.rule_tables import ALICE, TERMS

from credit_service.errors import BatchAborted, InsufficientCredits
from credit_service.rules.commands import SpendTogether
from credit_service.rules.decide import decide

# 10 credits of each: the pool is seq 1, and the grants are drawn on in the order of their seqs.
OPENED = [
    purchase(10, "pool"),
    grant(10, at(DAY), "first"),
    grant(10, at(2 * DAY), "second"),
]


def batch(story, *commands):
    """The answers to commands of one batch."""
    return [decide(story.state, command, TERMS) for command in commands]


def changes(story):
    return [(c.seq, c.grant_seq, c.remaining_change) for c in story.alice.grant_changes]


def test_a_refused_atomic_batch_undoes_what_it_changed_in_grants():
    story = Story(*OPENED)
    alice = story.alice
    batch(story, spend(4, "before"))
    kept = changes(story)
    before = repr(story.state)
    order = list(alice.burn_order())
    spends = spend(9, "one"), spend(5, "two"), spend(10**9, "too much")
    [answer] = batch(story, SpendTogether(user_id=ALICE, caller="test", spends=spends))
    assert [type(part) for part in answer.parts] == [
        BatchAborted,
        BatchAborted,
        InsufficientCredits,
    ]
    # The batch would write the same as before, and no more.
    assert changes(story) == kept == [(4, 2, -4)]
    assert alice.changed_grants == {2}
    assert [entry.seq for entry in alice.posted] == [4]
    assert {seq: grant.remaining for seq, grant in alice.grants.items()} == {2: 6, 3: 10}
    assert alice.burn_order() == order
    assert (alice.account.balance, alice.account.in_grants) == (26, 16)
    assert repr(story.state) == before
    # Later commands in the batch draw on what is left.
    batch(story, spend(8, "after"))
    assert changes(story) == [*kept, (5, 2, -6), (5, 3, -2)]
    story.check()


def test_undoing_a_batch_opens_its_used_up_grant_only_once():
    """The first spend uses up the grant, which closes it; undone, the grant is open again."""
    story = Story(*OPENED)
    spends = spend(10, "all of the first"), spend(10**9, "too much")
    batch(story, SpendTogether(user_id=ALICE, caller="test", spends=spends))
    assert story.alice.account.open_grants == 2
    batch(story, spend(1, "after"))
    assert changes(story) == [(4, 2, -1)]
    story.check()


def test_commands_of_one_batch_draw_on_what_those_before_them_left():
    story = Story(purchase(10, "pool"), purchase(10, "bought", "pi_1", life=at(DAY)))
    batch(
        story,
        grant(10, at(HOUR), "given in the batch"),
        spend(12, "both"),
        hold(5, "held", ttl=HOUR),
        reverse(1000),
        revoke(3, "used up"),
        spend(1, "from the pool"),
    )
    story.check()
    # The hold's 5 were pinned in the bought grant and moved to the pool by the reversal, which took
    # the 8 that were left of the grant and 2 of the pool.
    assert story.left().grants == {2: (0, 0), 3: (0, 0)}
    account = story.alice.account
    assert (account.balance, account.held, account.pinned) == (7, 5, 0)
