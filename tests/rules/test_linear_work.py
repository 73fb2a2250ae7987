"""Deciding twice as much takes twice as much work, counted in lines of Python and not in time."""

from datetime import timedelta
from uuid import UUID

import pytest
from kit.commands import reverse
from kit.hold_tables import hold
from kit.rule_tables import ALICE, NOON, TERMS, purchase, refund, spend
from kit.work import lines_executed

from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import SpendTogether
from credit_service.rules.decide import decide
from credit_service.rules.due import settle
from credit_service.rules.model import Account, Hold

MANY = 200


def users(count):
    return [UUID(int=number + 1) for number in range(count)]


def decided(state, *commands):
    for command in commands:
        decide(state, command, TERMS)
    return state


def with_purchase(*commands):
    """Alice with 1000 credits that were bought by pi_1."""
    return decided(BatchState.of(NOON, Account(ALICE)), purchase(1000, "b", "pi_1"), *commands)


def spends(count):
    state = BatchState.of(NOON, *(Account(user, 10) for user in users(count)))
    return lambda: decided(state, *(spend(1, user=user) for user in users(count)))


def spends_of_one_user(count):
    state = BatchState.of(NOON, Account(ALICE, 10**6))
    return lambda: decided(state, *(spend(1, f"s{n}") for n in range(count)))


def refunds_of_one_spend(count):
    state = decided(BatchState.of(NOON, Account(ALICE, 10**6)), spend(10**5, "s"))
    return lambda: decided(state, *(refund(1, 1, f"r{n}") for n in range(count)))


def reversals_of_one_payment(count):
    state = with_purchase()
    return lambda: decided(
        state, *(reverse(ALICE, "pi_1", f"re_{n}", 1, n % 3) for n in range(count))
    )


def revisions_of_one_reversal(count):
    state = with_purchase()
    return lambda: decided(
        state, *(reverse(ALICE, "pi_1", "re_1", n + 1, n % 3) for n in range(count))
    )


def repeated_reversals(count):
    calls = [reverse(ALICE, "pi_1", f"re_{n}", 1, n % 3) for n in range(count)]
    state = with_purchase(*calls)
    return lambda: decided(state, *calls)


def atomic_batches_of_one_user(count):
    state = BatchState.of(NOON, Account(ALICE, 10**6))
    batches = [
        SpendTogether(user_id=ALICE, caller="test", spends=(spend(1, f"s{n}"),))
        for n in range(count)
    ]
    return lambda: decided(state, *batches)


def a_refused_atomic_batch(count):
    state = BatchState.of(NOON, Account(ALICE, count - 1))
    together = tuple(spend(1, f"s{n}") for n in range(count))
    return lambda: decided(state, SpendTogether(user_id=ALICE, caller="test", spends=together))


def due(user, count):
    """Holds of a user that were made half an hour before the batch and have expired."""
    made = decided(
        BatchState.of(NOON - timedelta(minutes=30), Account(user, 10 * count)),
        *(hold(1, f"h{n}", user=user) for n in range(min(count, 100))),
    ).users[user]
    first = made.holds[1]
    account = made.account._replace(held=count, open_holds=count)
    return account, [first._replace(seq=n + 1) for n in range(count)]


def expiries_of_one_user(count):
    account, ended = due(ALICE, count)
    user = BatchState.of(NOON, account).users[ALICE]
    return lambda: settle(user, ended, (), TERMS, next_end=None, next_lapse=None)


def expiries_of_many_users(count):
    accounts: list[Account] = []
    ended: dict[UUID, list[Hold]] = {}
    for user in users(count):
        account, ended[user] = due(user, 1)
        accounts.append(account)
    state = BatchState.of(NOON, *accounts)

    def expire():
        for user, part in ended.items():
            settle(state.users[user], part, (), TERMS, next_end=None, next_lapse=None)

    return expire


@pytest.mark.parametrize(
    "work",
    [
        spends,
        spends_of_one_user,
        refunds_of_one_spend,
        reversals_of_one_payment,
        revisions_of_one_reversal,
        repeated_reversals,
        atomic_batches_of_one_user,
        a_refused_atomic_batch,
        expiries_of_one_user,
        expiries_of_many_users,
    ],
)
def test_twice_as_much_is_twice_the_work(work):
    once, twice = lines_executed(work(MANY)), lines_executed(work(2 * MANY))
    assert once > MANY
    assert twice < 2.1 * once + 1000
