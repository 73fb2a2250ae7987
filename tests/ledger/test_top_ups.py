"""Top-ups through lanes on a real database: what a batch loads and writes, and long histories."""

import random
from datetime import UTC, datetime

import pytest
from kit.commands import answers, ask, hold, lanes, purchase, refund, reverse, spend, submit
from kit.extent import extent
from kit.fault_proxy import COMMIT, Kind
from kit.feed import reading, reads_so_many
from kit.top_up_tables import POLICY, fail_of, note_of, policy_of
from model.top_ups import TopUpModel

from credit_service.errors import Refusal
from credit_service.ledger import top_up_store
from credit_service.rules.feed_values import KIND_TOP_UP
from credit_service.rules.model import Outcome, TopUp


class Statements:
    """Counts the statements about top-ups."""

    def __init__(self, monkeypatch):
        self.loaded = 0
        load = top_up_store.load_top_ups

        async def counted(*arguments):
            self.loaded += 1
            return await load(*arguments)

        monkeypatch.setattr(top_up_store, "load_top_ups", counted)


async def requests_of(database, user_id):
    rows = await database.fetch(
        "SELECT pack, state, payment_ref, tries, seq FROM credit_top_ups WHERE user_id = $1"
        " ORDER BY number",
        user_id,
    )
    return [tuple(row) for row in rows]


async def open_top_up(database, user_id):
    rows = await database.fetch(
        "SELECT number, created_at FROM credit_top_ups WHERE user_id = $1 ORDER BY number DESC",
        user_id,
    )
    return tuple(rows[0]) if rows else None


async def test_accounts_without_top_ups_load_nothing_about_them(database, monkeypatch):
    statements = Statements(monkeypatch)
    plain, quiet, topped = [await database.user(100) for _ in range(3)]
    async with lanes(database.service_url) as clerk:
        await ask(clerk, spend(plain, 90), purchase(plain, 10, ref="pi_plain"), hold(plain, 5, 60))
        await ask(clerk, reverse(plain, "pi_plain"), refund(plain, 2))
        await ask(clerk, policy_of(quiet, POLICY), spend(quiet, 1))
        assert statements.loaded == 0
        await ask(clerk, policy_of(topped, POLICY), spend(topped, 90))
        assert (statements.loaded, len(await requests_of(database, topped))) == (0, 1)
        await ask(clerk, refund(topped, 2, 1))
        assert statements.loaded == 0
        await ask(clerk, spend(topped, 1), spend(plain, 1))
        assert statements.loaded == 1
    assert not await database.faults()


async def test_a_batch_that_closes_a_request_can_open_the_next_one(database):
    user_id = await database.user(30)
    async with lanes(database.service_url) as clerk:
        await ask(clerk, policy_of(user_id, POLICY), spend(user_id, 15))
        request = await open_top_up(database, user_id)
        given = await ask(
            clerk,
            note_of(user_id, request, "pi_1"),
            purchase(user_id, 1, ref="pi_1"),
            spend(user_id, 1),
        )
        assert {type(each) for each in given} == {Outcome}
        # One batch makes and closes the second request, which it did not load.
        shown = await requests_of(database, user_id)
    assert [each[1] for each in shown] == ["succeeded", "open"]
    assert not await database.faults()


async def test_two_accounts_that_note_one_payment_at_once_get_it_once(database):
    users = [await database.user(30) for _ in range(2)]
    async with lanes(database.service_url) as clerk:
        for user_id in users:
            await ask(clerk, policy_of(user_id, POLICY), spend(user_id, 15))
        requests = [await open_top_up(database, user_id) for user_id in users]
        given = await ask(
            clerk,
            *(note_of(*place, "pi_1") for place in zip(users, requests, strict=True)),
        )
    kinds = sorted(type(each).__name__ for each in given)
    assert kinds == ["Outcome", "PaymentReused"]
    noted = [each[2] for user_id in users for each in await requests_of(database, user_id)]
    assert sorted(noted, key=str) == [None, "pi_1"]


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER])
async def test_a_lost_commit_asks_notes_and_closes_once(database, proxy, kind):
    user_id = await database.user(30)
    async with lanes(proxy.url) as clerk:
        await ask(clerk, policy_of(user_id, POLICY))
        for command in (
            lambda _: spend(user_id, 15, "k"),
            lambda request: note_of(user_id, request, "pi_1"),
            lambda request: fail_of(user_id, request, 1),
            lambda _: purchase(user_id, 100, "p", ref="pi_1"),
        ):
            made = command(await open_top_up(database, user_id))
            proxy.on(COMMIT, kind)
            (answer,) = await ask(clerk, made)
            assert isinstance(answer, Outcome), answer
            proxy.forget()
    assert [each[1:4] for each in await requests_of(database, user_id)] == [
        ("succeeded", "pi_1", 1)
    ]
    changes = await database.fetch(
        "SELECT kind, tx FROM credit_top_up_changes WHERE user_id = $1 ORDER BY change", user_id
    )
    assert [row["kind"] for row in changes] == ["requested", "noted", "failed", "succeeded"]
    numbers = [row["tx"] for row in changes]
    assert numbers == sorted(numbers)
    assert not await database.faults()


def drawn(draw, user_id, request):
    """A command about a user; some are about the newest request, which may have ended."""
    amount, ref = draw.randint(1, 12), f"pi_{draw.randint(1, 30)}_{user_id}"
    kind = draw.choice(("spend",) * 4 + ("buy", "note", "note", "fail", "fail", "pay", "reverse"))
    number = draw.randint(1, 3)
    if kind == "spend":
        return spend(user_id, amount, f"spend:{draw.randint(1, 60)}:{amount}")
    if kind == "reverse":
        return reverse(user_id, ref, f"re_{ref}", number, draw.choice((0, 300, 999)))
    if kind == "buy" or request is None:
        return purchase(user_id, amount, f"buy:{ref}:{amount}", ref=ref)
    if kind == "pay":
        return purchase(user_id, amount, f"pay:{request[0]}", ref=f"pi_own_{request[0]}_{user_id}")
    if kind == "note":
        return note_of(user_id, request, f"pi_own_{request[0]}_{user_id}")
    failure = draw.choice(("try_again", "try_again", "given_up", "not_needed"))
    return fail_of(user_id, request, number, failure, f"pi_own_{request[0]}_{user_id}")


async def test_random_batches_leave_the_requests_of_the_plain_model(database):
    """A batch loads enough for any mix of commands; no month ends meanwhile."""
    draw, users = random.Random(7), [await database.user(30) for _ in range(3)]
    policy = TopUp(20, "small", 1000)
    models = {user_id: TopUpModel(available=30, policy=policy) for user_id in users}
    async with lanes(database.service_url) as clerk:
        await ask(clerk, *(policy_of(user_id, policy) for user_id in users))
        for _ in range(extent(60, 600)):
            newest = {user_id: await open_top_up(database, user_id) for user_id in users}
            batch = [
                drawn(draw, user_id, newest[user_id])
                for user_id in draw.choices(users, k=draw.randint(1, 12))
            ]
            for command, answer in zip(batch, await answers(submit(clerk, *batch)), strict=True):
                assert isinstance(answer, (Outcome, Refusal)), (command, answer)
                models[command.user_id].follow(command, answer, datetime.now(UTC))
            for user_id, model in models.items():
                expected = [
                    (
                        each.pack,
                        each.state,
                        each.payment,
                        each.tries,
                        each.bought and each.bought.seq,
                    )
                    for each in model.requests
                ]
                assert await requests_of(database, user_id) == expected, batch
    assert not await database.faults()
    assert sum(len(model.requests) for model in models.values()) > 10


async def test_the_feed_has_every_change_after_the_entries_of_its_transaction(database):
    user_id = await database.user(30)
    async with lanes(database.service_url) as clerk, reading(database.service_url) as feed:
        await ask(clerk, policy_of(user_id, POLICY), spend(user_id, 15))
        request = await open_top_up(database, user_id)
        await ask(clerk, fail_of(user_id, request, 1), note_of(user_id, request, "pi_1"))
        await ask(clerk, purchase(user_id, 100, ref="pi_1"))
        await ask(clerk, reverse(user_id, "pi_1"))
        await ask(clerk, policy_of(user_id, POLICY))
        items = await reads_so_many(feed, 12)
    places = [item.place for item in items]
    assert places == sorted(places)
    changes = [item.value for item in items if item.place.kind == KIND_TOP_UP]
    assert [(each.change, each.kind, each.off) for each in changes] == [
        (1, "requested", None),
        (2, "failed", None),
        (3, "noted", None),
        (4, "succeeded", None),
        (5, "turned_off", "reversal"),
        (6, "turned_on", None),
    ]
    assert [each.request and (each.request.state, each.request.seq) for each in changes] == [
        ("open", None),
        ("open", None),
        ("open", None),
        ("succeeded", 3),
        ("succeeded", 3),
        None,
    ]
    # A change of the policy comes between the entries of a transaction and its top-ups.
    kinds = [item.place.kind for item in items]
    assert kinds == [0, 0, 1, 2, 2, 2, 0, 2, 0, 2, 1, 2]
    assert changes[4].request.changed_at == changes[4].changed_at
