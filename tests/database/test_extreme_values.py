"""Every value that PostgreSQL can hold in the tables of the book can be answered, extremes too."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kit.given_tables import GIVEN, Given
from kit.services import running, server_settings

from credit_service.database import migrations
from credit_service.v1 import credit_service_pb2 as pb

FIRST = datetime(1, 1, 1, tzinfo=UTC)
LONG = 1_500_000

# Times as PostgreSQL writes them, and as the service shows them; None: the time of the migration.
TIMES = [
    ("-infinity", FIRST),
    ("4713-01-01 00:00:00 BC", FIRST),
    ("0001-12-31 23:59:59.999999 BC", FIRST),
    ("0001-01-01 00:00:00", FIRST),
    ("0001-01-01 00:00:00.000001", FIRST + timedelta(microseconds=1)),
    ("1969-12-31 23:59:59.999999", datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ("2024-02-29 12:00:00", datetime(2024, 2, 29, 12, tzinfo=UTC)),
    ("9999-12-31 23:59:59.999999", None),
    ("10000-01-01 00:00:00", None),
    ("294276-12-31 23:59:59.999999", None),
    ("infinity", None),
    (None, None),
]

# The metadata of an entry whose time was moved.
KEPT = {
    "-infinity": {"given_time": "-infinity"},
    "4713-01-01 00:00:00 BC": {"given_time": "4713-01-01 00:00:00+00 BC"},
    "0001-12-31 23:59:59.999999 BC": {"given_time": "0001-12-31 23:59:59.999999+00 BC"},
}

# (id, type, amount, description)
TEXTS = [
    ("", "purchase", 1, ""),
    ("k" * 122, "purchase", 1, None),
    ("k" * 123, "purchase", 1, "a\x01b\x7f\n\t"),
    ("".join(uuid4().hex for _ in range(80)), "purchase", 1, "the longest id that an index takes"),
    ("'; DROP TABLE", "refund", 1, "😀 e\u0301 \u202e \ufffd \U0010ffff"),
    ("\u0391", "spend", 1, "😀" * LONG),
    ("zero", "purchase", 0, "x" * LONG),
    ("all", "purchase", 2**31 - 1, "y" * LONG),
    ("none", "purchase", -(2**31) + 1, "taken"),
    ("spent", "spend", -(2**31) + 1, "either sign"),
]


@pytest.fixture
async def given(make_database):
    database = await make_database(empty=True)
    await database.execute(GIVEN)
    return Given(database)


async def add(given, user_id, rows):
    connection = await given.database.connect()
    await connection.executemany(
        "INSERT INTO credit_transactions (user_id, id, type, amount, description, timestamp)"
        " VALUES ($1, $2, $3, $4, $5, $6::text::timestamp)",
        [(user_id, *row) for row in rows],
    )
    await connection.close()


async def everything(client, user_id):
    """Asks for all that there is about a user; returns the history, newest first."""
    credit = await client.get_user_credit(user_id, history_size=1000)
    history = [entry async for entry in client.get_transaction_history(user_id, page_size=3)]
    assert [entry.id for entry in history][:1] == [e.id for e in credit.transaction_history][:1]
    for entry in history:
        assert await client.get_transaction(user_id, transaction_id=entry.id) == entry
        key = entry.idempotency_key
        # An adopted id may hold what no key of a call may.
        if key and key.isascii() and key.isprintable():
            assert await client.get_transaction(user_id, idempotency_key=key) == entry
        time = entry.timestamp.ToDatetime(UTC)
        past = await client.get_user_credit(user_id, as_of=time, history_size=3)
        assert past.seq >= entry.seq
        since = [e.seq async for e in client.get_transaction_history(user_id, start_time=time)]
        assert entry.seq in since
    assert [hold async for hold in client.list_holds(user_id)] == []
    stream = client.watch_user_credit(user_id)
    assert (await anext(stream)).seq == credit.seq
    await stream.aclose()
    now = datetime.now(UTC)
    await client.get_usage_report(now - timedelta(days=30), now, user_id=user_id)
    await client.get_usage_report(now - timedelta(days=30), now)
    await client.get_usage_report(FIRST, FIRST + timedelta(days=1), user_id=user_id)
    return history


async def adopt_by_an_earlier_release(given):
    """Adopts the tables as releases that accepted any time did, and then migrates to this one."""
    unchecked = [replace(file, check="") for file in migrations.migrations()]
    await migrations.migrate(given.database.owner_url, "credit_service", print, unchecked)


@pytest.mark.parametrize(("given_time", "shown"), TIMES)
async def test_an_adopted_entry_of_any_time_is_answered(given, given_time, shown):
    user_id = await given.user(5)
    await add(given, user_id, [("old", "purchase", 5, "old", given_time)])
    before = datetime.now(UTC)
    await adopt_by_an_earlier_release(given)
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        (entry,) = await everything(client, user_id)
        time = entry.timestamp.ToDatetime(UTC)
        if shown is not None:
            assert time == shown
        elif given_time is not None:
            assert before <= time <= datetime.now(UTC)
        assert dict(entry.metadata) == {"given_id": "old"} | KEPT.get(given_time, {})
        spent = await client.spend_credits(user_id, amount=2)
        assert (spent.credit.balance, spent.transaction.seq) == (3, 2)
    assert await given.database.faults() == []


async def test_times_before_all_time_keep_their_order(given):
    user_id = await given.user(len(TIMES))
    rows = [(f"{n:02}", "purchase", 1, "", time) for n, (time, _) in enumerate(TIMES)]
    await add(given, user_id, reversed(rows))
    await adopt_by_an_earlier_release(given)
    async with running(server_settings(given.database.service_url)) as service:
        history = await everything(await service.client(), user_id)
    dated = [entry.metadata["given_id"] for entry in history if entry.metadata["given_id"] != "11"]
    assert dated == [f"{n:02}" for n in reversed(range(11))]


async def test_adopted_texts_and_amounts_of_any_size_are_answered(given):
    user_id = await given.user(7)
    await add(given, user_id, [(*row, f"2024-01-01 00:00:{n:02}") for n, row in enumerate(TEXTS)])
    await given.adopt()
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        every_type = [value for value in pb.TransactionType.values() if value]
        history = [
            entry
            async for entry in client.get_transaction_history(
                user_id, page_size=1000, types=every_type
            )
        ]
        assert len(history) == len(TEXTS) + 1
        assert all(len(entry.description) <= 10_000 for entry in history)
        by_id = {entry.metadata["given_id"][:10_000]: entry for entry in history if entry.metadata}
        for given_id, _, _, description in TEXTS:
            entry = by_id[given_id[:10_000]]
            assert entry.description == (description or "")[:10_000]
        await everything(client, user_id)
        assert (await client.get_user_credit(user_id)).balance == 7


async def test_figures_at_their_bounds_are_answered(database, client):
    """The limits of the constraints, set by the owner: largest balance, floor, limits and hold."""
    user_id = await database.user(10)
    held = await client.hold_credits(user_id, amount=1, ttl=timedelta(hours=24))
    for balance in (10**15, -(10**15)):
        await database.execute(
            "UPDATE user_credits SET balance = $1, min_balance = $2, limit_per_minute = $3,"
            " limit_per_hour = $3, limit_per_day = $3, policy_changes = $3, spent_this_day = $3,"
            " held = $4, open_holds = $3, last_updated = '0001-01-01 00:00:00+00'",
            balance,
            balance // 1000,
            2**63 - 1,
            2**62,
        )
        await database.execute(
            "UPDATE credit_holds SET amount = 10 ^ 12, quantity = $1, unit_cost = $1,"
            " price_version = $2, operation = $2, reference = $2,"
            " created_at = '0001-01-01 00:00:00+00', expires_at = '0001-01-01 00:00:00+00'",
            2**63 - 1,
            "😀" * 1000,
        )
        credit = await client.get_user_credit(user_id)
        assert (credit.balance, credit.held) == (balance, 2**62)
        assert credit.last_updated.ToDatetime(UTC) == FIRST
        (listed,) = [hold async for hold in client.list_holds(user_id)]
        assert listed == await client.get_hold(user_id, held.hold.id)
        assert (listed.amount, listed.quantity) == (10**12, 2**63 - 1)
        await client.quote_cost({"render": 1}, user_id=user_id)
        stream = client.watch_user_credit(user_id)
        assert (await anext(stream)).balance == balance
        await stream.aclose()
