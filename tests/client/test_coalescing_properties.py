"""Calls sent together get the same answers, and leave the same ledger, as calls made one by one.

The same random calls are made through two clients. One coalesces, and makes all calls of a group at
once. The other makes the calls of a user one after another. Each client has users of its own.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.extent import extent, unless_long
from kit.services import running, server_settings
from kit.waiting import patience

from credit_service.client import CreditClient
from credit_service.errors import CreditError

USERS = 3
STRANGER, LEAVER = USERS, USERS + 1


@dataclass(frozen=True)
class Note:
    """A text that repeats itself a number of times."""

    times: int

    def __str__(self):
        return "a note. " * self.times


@dataclass(frozen=True)
class Step:
    """A call: its user, its key and its request.

    `target` numbers an earlier hold to capture. `leaves` is the number of turns of the event loop
    after which the caller is cancelled; None: the caller stays.
    """

    call: str
    user: int
    key: str
    fields: dict[str, object]
    target: int = 0
    leaves: int | None = None


def _steps():
    amounts = st.sampled_from([1, 1, 2, 3, 5, 30, 0, 10**13])
    common = {
        "metadata": st.sampled_from([None, None, {"job": "7"}]),
        # Once, twice, or so often that it is too long for the field, or for a call.
        "description": st.sampled_from([0, 0, 1, 2, 1_000, 10_000]).map(Note),
    }
    asked = st.one_of(
        st.fixed_dictionaries({"amount": amounts, **common}),
        st.fixed_dictionaries(
            {
                "operation": st.sampled_from(["render", "render", "mastering"]),
                "quantity": st.integers(0, 2),
                "expected_cost": st.sampled_from([None, None, 5]),
                **common,
            }
        ),
    )
    taken = st.fixed_dictionaries(
        {
            "amount": st.sampled_from([None, None, 0, 1, 6]),
            "allow_overage": st.booleans(),
            **common,
        }
    )
    users = st.sampled_from([*range(USERS)] * 3 + [STRANGER])
    keys = st.sampled_from("abcdefghijkl")
    stays = {"user": users, "key": keys}
    leaves = {
        "user": st.just(LEAVER),
        "key": st.uuids().map(str),
        "fields": st.just({"amount": 1}),
        "leaves": st.integers(0, 40),
    }
    return st.one_of(
        st.builds(Step, call=st.just("spend"), fields=asked, **stays),
        st.builds(Step, call=st.just("spend"), fields=asked, **stays),
        st.builds(Step, call=st.just("hold"), fields=asked, **stays),
        st.builds(Step, call=st.just("capture"), fields=taken, target=st.integers(0, 7), **stays),
        st.builds(Step, call=st.just("spend"), **leaves),
    )


# A number repeats the step that many places earlier, with its key.
GROUPS = st.lists(
    st.lists(st.one_of(*[_steps()] * 4, st.integers(1, 12)), min_size=1, max_size=40),
    min_size=1,
    max_size=4,
)


def with_repeats(groups):
    """Replaces each number by the step that it repeats."""
    earlier, found = [], []
    for group in groups:
        found.append([])
        for drawn in group:
            if isinstance(drawn, Step):
                earlier.append(drawn)
            elif earlier:
                earlier.append(earlier[-drawn % len(earlier)])
            else:
                continue
            found[-1].append(earlier[-1])
    return found


class Side:
    """A client, its users, and the holds that it has made."""

    def __init__(self, client, users, *, at_once):
        self.client, self.users = client, users
        self._at_once = at_once
        self._holds = {user: [] for user in range(len(users))}

    async def make(self, group):
        """Makes the calls of a group; returns the part of their answers that both sides share."""
        holds = {user: list(ids) for user, ids in self._holds.items()}
        if self._at_once:
            calls = [asyncio.create_task(self._leave_or_stay(step, holds)) for step in group]
            answers = await asyncio.gather(*calls)
        else:
            places = {user: [] for user in range(len(self.users))}
            for place, step in enumerate(group):
                places[step.user].append(place)
            answers = [None] * len(group)

            async def one_by_one(mine):
                for place in mine:
                    answers[place] = await self._leave_or_stay(group[place], holds)

            await asyncio.gather(*map(one_by_one, places.values()))
        for step, answer in zip(group, answers, strict=True):
            if step.call == "hold" and not isinstance(answer, CreditError):
                self._holds[step.user].append(answer.hold.id)
        return [self._without_ids(answer) for answer in answers]

    async def _leave_or_stay(self, step, holds):
        if step.leaves is None:
            return await self._call(step, holds)
        call = asyncio.create_task(self._call(step, holds))
        for _ in range(step.leaves):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        # Only a repeat with its key shows the outcome.
        answer = await self._call(step, holds)
        return answer.transaction.idempotency_key, answer.transaction.amount

    async def _call(self, step, holds):
        client, user = self.client, self.users[step.user]
        fields = {"idempotency_key": step.key, **step.fields}
        if "description" in fields:
            fields["description"] = str(fields["description"])
        try:
            match step.call:
                case "spend":
                    return await client.spend_credits(user, **fields)
                case "hold":
                    return await client.hold_credits(user, **fields)
                case _:
                    made = holds[step.user]
                    hold = made[step.target % len(made)] if made else f"{user}-7"
                    return await client.capture_hold(user, hold, **fields)
        except CreditError as error:
            return error

    def _without_ids(self, answer):
        """The part of an answer that both sides share: all but ids of users, and times."""
        if isinstance(answer, tuple):
            return answer
        if isinstance(answer, CreditError):
            said = (type(answer).__name__, str(answer), repr(vars(answer)))
        else:
            for message in (answer.transaction, getattr(answer, "hold", None)):
                for field in ("timestamp", "create_time", "expire_time"):
                    if message is not None and field in message.DESCRIPTOR.fields_by_name:
                        message.ClearField(field)
            # Calls made at once all show the account as the last of them leaves it.
            said = (str(answer.transaction), answer.replayed, str(getattr(answer, "hold", "")))
        return tuple(self._named(text) if isinstance(text, str) else text for text in said)

    def _named(self, text):
        for number, user in enumerate(self.users):
            text = text.replace(str(user), f"user {number}")
        return text

    async def ledger(self, database):
        """The accounts and entries, without ids and times; of LEAVER only the account."""
        found = []
        for number, user in enumerate(self.users):
            found.append(
                await database.fetch(
                    "SELECT balance, held, open_holds, seq FROM user_credits WHERE user_id = $1",
                    user,
                )
            )
            if number != LEAVER:
                found.append(
                    await database.fetch(
                        "SELECT seq, type, amount, balance_change, held_change, balance_after,"
                        " held_after, idempotency_key, description, reference, hold_seq, caller"
                        " FROM credit_transactions WHERE user_id = $1 ORDER BY seq",
                        user,
                    )
                )
        return [[tuple(row) for row in rows] for rows in found]


@pytest.fixture
async def served(database):
    """A database, by one connection, and a service on it: one of each for all examples."""
    await database.wait_longer_for_locks()
    async with (
        database.kept_open() as kept,
        running(server_settings(database.service_url)) as service,
    ):
        yield kept, service


async def both_agree(served, groups):
    database, service = served
    async with AsyncExitStack() as clients:
        sides = []
        for coalesce in (False, True):
            users = [await database.user(60) for _ in range(USERS)]
            users += [uuid4(), await database.user(10**6)]
            client = CreditClient(service.target, coalesce=coalesce, deadline_seconds=patience(60))
            await clients.enter_async_context(client)
            sides.append(Side(client, users, at_once=coalesce))
        for group in with_repeats(groups):
            singly, together = [await side.make(group) for side in sides]
            for step, one, other in zip(group, singly, together, strict=True):
                assert one == other, step
        singly, together = [await side.ledger(database) for side in sides]
        assert singly == together
    assert not await database.faults()


_AT_ONCE = settings(
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_AT_ONCE, derandomize=True, max_examples=unless_long(8, 30))
@given(groups=GROUPS)
async def test_calls_that_go_together_are_answered_as_calls_made_one_by_one(served, groups):
    await both_agree(served, groups)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(_AT_ONCE, max_examples=extent(40, 300))
@given(groups=GROUPS)
async def test_many_random_calls_are_answered_together_as_one_by_one(served, groups):
    await both_agree(served, groups)
