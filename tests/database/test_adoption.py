"""The same migrations adopt a database that holds the two given tables with data."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from kit.databases import add_api_roles
from kit.given_tables import GIVEN, OPENING, Given, at, shown
from kit.requests import payment
from kit.services import running, server_settings

from credit_service.database.migrations import MigrationError
from credit_service.errors import InsufficientCredits, RefundExceedsSpend, TransactionNotFound
from credit_service.v1 import credit_service_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def given(make_database):
    database = await make_database(empty=True)
    await database.execute(GIVEN)
    return Given(database)


async def test_a_history_that_adds_up_is_numbered_in_the_order_of_its_times(given):
    user_id = await given.user(
        85,
        [
            ("t3", "refund", 5, "sorry", at(3)),
            ("t1", "purchase", 100, "first", at(1)),
            ("t2", "spend", 20, "song.wav", at(2)),
        ],
        updated=at(3),
    )
    await given.adopt()
    assert await given.book(user_id) == [
        (1, "purchase", 100, 100, "first", shown(at(1)), "given:t1"),
        (2, "spend", -20, 80, "song.wav", shown(at(2)), "given:t2"),
        (3, "refund", 5, 85, "sorry", shown(at(3)), "given:t3"),
    ]
    assert await given.account(user_id) == (85, 0, 3, shown(at(3)))


@pytest.mark.parametrize(
    ("balance", "kind", "change"),
    [(130, "grant", 50), (30, "reversal", -50), (-20, "reversal", -100)],
)
async def test_an_opening_entry_makes_the_history_add_up(given, balance, kind, change):
    history = [("a", "purchase", 100, "x", at(1)), ("b", "spend", 20, "y", at(2))]
    user_id = await given.user(balance, history, updated=at(5))
    await given.adopt()
    assert await given.book(user_id) == [
        (1, kind, change, change, OPENING, shown(at(1)), None),
        (2, "purchase", 100, change + 100, "x", shown(at(1)), "given:a"),
        (3, "spend", -20, balance, "y", shown(at(2)), "given:b"),
    ]
    assert await given.account(user_id) == (balance, 0, 3, shown(at(5)))


async def test_a_balance_without_a_history_becomes_an_opening_entry(given):
    rich = await given.user(40, updated=at(7))
    debtor = await given.user(-3, updated=at(8))
    zero = await given.user(0, updated=at(9))
    await given.adopt()
    assert await given.book(rich) == [(1, "grant", 40, 40, OPENING, shown(at(7)), None)]
    assert await given.book(debtor) == [(1, "reversal", -3, -3, OPENING, shown(at(8)), None)]
    assert await given.book(zero) == []
    assert await given.account(zero) == (0, 0, 0, shown(at(9)))


async def test_a_history_without_a_balance_adds_up_to_zero(given):
    user_id = await given.user(history=[("a", "purchase", 100, "x", at(1))], account=False)
    await given.adopt()
    assert await given.book(user_id) == [
        (1, "reversal", -100, -100, OPENING, shown(at(1)), None),
        (2, "purchase", 100, 0, "x", shown(at(1)), "given:a"),
    ]
    assert await given.account(user_id) == (0, 0, 2, shown(at(1)))


async def test_a_user_without_rows_stays_without_an_account(given):
    user_id = await given.user(account=False)
    await given.adopt()
    assert await given.account(user_id) is None


async def test_zero_amounts_stay_in_the_history(given):
    history = [("a", "purchase", 0, "free", at(1)), ("b", "spend", 0, "try", at(2))]
    user_id = await given.user(0, history, updated=at(2))
    await given.adopt()
    assert [row[1:4] for row in await given.book(user_id)] == [
        ("purchase", 0, 0),
        ("spend", 0, 0),
    ]


async def test_a_spend_takes_credits_whichever_sign_it_was_written_with(given):
    history = [
        ("a", "purchase", 100, "", at(1)),
        ("b", "spend", -20, "", at(2)),
        ("c", "spend", 30, "", at(3)),
        ("d", "spend", -(2**31), "", at(4)),
    ]
    user_id = await given.user(50 - 2**31, history, updated=at(4))
    await given.adopt()
    rows = await given.book(user_id)
    assert [row[1:3] for row in rows] == [
        ("purchase", 100),
        ("spend", -20),
        ("spend", -30),
        ("spend", -(2**31)),
    ]
    assert (await given.account(user_id))[0] == 50 - 2**31


async def test_a_purchase_or_refund_below_zero_is_a_reversal(given):
    history = [
        ("a", "purchase", 100, "", at(1)),
        ("b", "purchase", -40, "charged back", at(2)),
        ("c", "refund", -10, "taken back", at(3)),
    ]
    user_id = await given.user(50, history, updated=at(3))
    await given.adopt()
    assert [row[1:3] for row in await given.book(user_id)] == [
        ("purchase", 100),
        ("reversal", -40),
        ("reversal", -10),
    ]


async def test_missing_values_are_read_as_nothing(given):
    user_id = await given.user(
        None,
        [
            ("late", "purchase", 30, None, at(5)),
            ("b", "spend", 20, None, None),
            ("a", "spend", 10, None, None),
        ],
    )
    nothing = await given.user(None)
    timeless = await given.user(5, [("c", "purchase", 5, None, None)])
    await given.adopt()
    # Entries without a time come before those with one, and get the earliest time that is known.
    assert await given.book(user_id) == [
        (1, "spend", -10, -10, "", shown(at(5)), "given:a"),
        (2, "spend", -20, -30, "", shown(at(5)), "given:b"),
        (3, "purchase", 30, 0, "", shown(at(5)), "given:late"),
    ]
    assert await given.account(user_id) == (0, 0, 3, shown(at(5)))
    assert await given.account(nothing) == (0, 0, 0, EPOCH)
    assert await given.book(timeless) == [(1, "purchase", 5, 5, "", EPOCH, "given:c")]


async def test_equal_times_are_numbered_by_id(given):
    history = [(each, "purchase", 1, "", at(1)) for each in ("c", "a", "d", "b")]
    user_id = await given.user(4, history, updated=at(1))
    await given.adopt()
    assert [row[6] for row in await given.book(user_id)] == [
        "given:a",
        "given:b",
        "given:c",
        "given:d",
    ]


async def test_a_future_time_is_read_as_now_and_keeps_its_place(given):
    hour_ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)
    history = [("b", "purchase", 5, "", at(1)), ("a", "purchase", 5, "", hour_ahead)]
    user_id = await given.user(10, history, updated=hour_ahead)
    await given.adopt()
    rows = await given.book(user_id)
    assert [row[6] for row in rows] == ["given:b", "given:a"]
    now = (await given.database.fetch("SELECT now()"))[0][0]
    assert rows[-1][5] <= now
    assert (await given.account(user_id))[3] <= now


async def test_the_times_are_utc_whatever_the_owners_zone(given):
    await given.database.execute(
        f"ALTER DATABASE {given.database.name} SET TimeZone = 'Asia/Tokyo'"
    )
    user_id = await given.user(1, [("a", "purchase", 1, "", at(1))], updated=at(1))
    await given.adopt()
    assert (await given.book(user_id))[0][5] == shown(at(1))


async def test_the_service_goes_on_where_the_history_ends(given):
    user_id = await given.user(
        80,
        [("buy", "purchase", 100, "bought", at(1)), ("job 7", "spend", 20, "song", at(2))],
        updated=at(2),
    )
    await given.adopt()
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        spend = await client.get_transaction(user_id, idempotency_key="given:job 7")
        assert (spend.type, spend.amount, spend.description) == (
            pb.TRANSACTION_TYPE_SPEND,
            20,
            "song",
        )
        assert spend.metadata["given_id"] == "job 7"
        refund = await client.refund_credits(user_id, spend.id, amount=15)
        assert refund.credit.balance == 95
        with pytest.raises(RefundExceedsSpend) as refusal:
            await client.refund_credits(user_id, spend.id, amount=6)
        assert refusal.value.refundable == 5
        await client.spend_credits(user_id, operation="render")
        await client.purchase_credits(user_id, 10, payment=payment())
        with pytest.raises(InsufficientCredits):
            await client.spend_credits(user_id, amount=101)
        history = [entry async for entry in client.get_transaction_history(user_id, page_size=2)]
        assert [entry.balance_after for entry in history] == [100, 90, 95, 80, 100]
        before = await client.get_user_credit(user_id, as_of=shown(at(1)))
        assert before.balance == 100
    assert await given.database.faults() == []


async def test_an_account_adopted_in_debt_pays_it_with_its_next_purchase(given):
    user_id = await given.user(-30, [("a", "purchase", 1, "", at(1))], updated=at(1))
    await given.adopt()
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        with pytest.raises(InsufficientCredits) as refusal:
            await client.spend_credits(user_id, amount=1)
        assert refusal.value.shortfall == 31
        bought = await client.purchase_credits(user_id, 100, payment=payment())
        assert bought.credit.balance == 70
        opening = [entry async for entry in client.get_transaction_history(user_id)][-1]
        assert opening.type == pb.TRANSACTION_TYPE_REVERSAL
        assert opening.description == OPENING
    assert await given.database.faults() == []


async def test_an_id_too_long_for_a_key_stays_in_the_metadata(given):
    longest, longer = "x" * 122, "y" * 123
    history = [(longest, "purchase", 1, "", at(1)), (longer, "purchase", 1, "", at(2))]
    user_id = await given.user(2, history, updated=at(2))
    await given.adopt()
    assert [row[6] for row in await given.book(user_id)] == [f"given:{longest}", None]
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        found = await client.get_transaction(user_id, idempotency_key=f"given:{longest}")
        assert found.seq == 1
        newest = (await client.get_user_credit(user_id, history_size=1)).transaction_history[0]
        assert newest.metadata["given_id"] == longer
        with pytest.raises(TransactionNotFound):
            await client.get_transaction(user_id, idempotency_key="given:z")


async def test_deleting_a_user_still_deletes_account_and_history(given):
    history = [("a", "purchase", 100, "", at(1)), ("b", "spend", 20, "", at(2))]
    gone = await given.user(80, history, updated=at(2))
    stays = await given.user(7, updated=at(2))
    await given.adopt()
    await given.database.execute("DELETE FROM auth.users WHERE id = $1", gone)
    left = await given.database.fetch(
        "SELECT user_id FROM user_credits UNION SELECT user_id FROM credit_transactions"
    )
    assert [row[0] for row in left] == [stays]


@pytest.mark.parametrize(
    "row",
    [
        ("NULL", "'spend'", "1"),
        ("(SELECT id FROM auth.users)", "NULL", "1"),
        ("(SELECT id FROM auth.users)", "'spend'", "NULL"),
        ("(SELECT id FROM auth.users)", "'bonus'", "1"),
    ],
    ids=["no user", "no type", "no amount", "unknown type"],
)
async def test_incomplete_rows_are_refused_and_nothing_changes(given, row):
    await given.user(10, [("fine", "purchase", 10, "", at(1))], updated=at(1))
    user_id, kind, amount = row
    await given.database.execute(
        "ALTER TABLE credit_transactions DROP CONSTRAINT credit_transactions_type_check;"
        "INSERT INTO credit_transactions (id, user_id, type, amount)"
        f" VALUES ('odd', {user_id}, {kind}, {amount})"
    )
    before = await contents(given.database)
    with pytest.raises(MigrationError) as refusal:
        await given.adopt()
    assert str(refusal.value) == (
        "0002_book cannot be applied and has changed nothing: 1 rows of credit_transactions have no"
        " user_id, no amount or no type that is known. Complete or delete them, then migrate again."
    )
    assert await contents(given.database) == before
    await given.database.execute("DELETE FROM credit_transactions WHERE id = 'odd'")
    await given.adopt()


@pytest.mark.parametrize("time", ["-infinity", "0044-03-15 12:00 BC", "0001-12-31 23:59:59 BC"])
async def test_a_time_before_the_year_1_is_named_and_nothing_is_changed(given, time):
    user_id = await given.user(10, [("fine", "purchase", 10, "", at(1))], updated=at(1))
    await given.database.execute(
        "INSERT INTO credit_transactions (id, user_id, type, amount, timestamp)"
        f" VALUES ('odd', '{user_id}', 'purchase', 10, '{time}')"
    )
    before = await contents(given.database)
    with pytest.raises(MigrationError) as refusal:
        await given.adopt()
    assert str(refusal.value) == (
        "0002_book cannot be applied and has changed nothing: 1 rows of credit_transactions have a"
        " time before the year 1. Correct their times or set them to null, then migrate again."
    )
    assert await contents(given.database) == before
    await given.database.execute("UPDATE credit_transactions SET timestamp = NULL WHERE id = 'odd'")
    await given.adopt()
    assert not await given.database.faults()


async def contents(database):
    """The rows and columns of the given tables as they are now."""
    rows = []
    for table in ("user_credits", "credit_transactions"):
        rows += await database.fetch(f"SELECT row::text FROM {table} AS row ORDER BY 1")
    columns = await database.fetch(
        "SELECT attrelid::regclass::text, attname::text, atttypid FROM pg_attribute"
        " INNER JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE relnamespace = 'public'::regnamespace AND relname <> 'credit_migrations'"
        " AND relname NOT LIKE 'credit_migrations%' AND attnum > 0 ORDER BY 1, 2"
    )
    return [tuple(row) for row in [*rows, *columns]]


@pytest.mark.parametrize(
    ("addition", "sentence"),
    [
        (
            "CREATE VIEW balances AS SELECT user_id, balance FROM user_credits",
            "view balances depends on table user_credits",
        ),
        (
            "CREATE TABLE invoices (entry text REFERENCES credit_transactions (id))",
            "constraint invoices_entry_fkey on table invoices depends on table credit_transactions",
        ),
        (
            "ALTER TABLE credit_transactions ADD job text; ALTER TABLE user_credits ADD plan text",
            "the new tables have no place for user_credits.plan, credit_transactions.job",
        ),
    ],
    ids=["a view", "a foreign key", "further columns"],
)
async def test_what_would_be_lost_is_named_and_nothing_changes(given, addition, sentence):
    await given.user(10, [("a", "purchase", 10, "", at(1))], updated=at(1))
    await given.database.execute(addition)
    before = await contents(given.database)
    with pytest.raises(MigrationError, match="0002_book cannot be applied") as refusal:
        await given.adopt()
    assert sentence in str(refusal.value)
    assert "given_" not in str(refusal.value)
    assert "migrate again" in str(refusal.value)
    assert await contents(given.database) == before


VARIATIONS = {
    "times with a zone": (
        "ALTER TABLE user_credits ALTER last_updated TYPE timestamptz USING last_updated AT TIME"
        " ZONE 'UTC';"
        "ALTER TABLE credit_transactions ALTER timestamp TYPE timestamptz USING timestamp AT TIME"
        " ZONE 'UTC'"
    ),
    "renamed constraints": (
        "ALTER TABLE user_credits RENAME CONSTRAINT user_credits_pkey TO pk_credits;"
        "ALTER TABLE credit_transactions RENAME CONSTRAINT credit_transactions_pkey TO pk_entries;"
        "ALTER TABLE credit_transactions RENAME CONSTRAINT credit_transactions_type_check TO kinds"
    ),
    "further indexes": (
        "CREATE INDEX by_time ON credit_transactions (timestamp);"
        "CREATE INDEX by_balance ON user_credits (balance) WHERE balance > 0"
    ),
    "a trigger": (
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.last_updated = now(); RETURN NEW; END';"
        "CREATE TRIGGER touched BEFORE UPDATE ON user_credits FOR EACH ROW EXECUTE FUNCTION touch()"
    ),
    "row-level security with a policy": (
        "ALTER TABLE user_credits ENABLE ROW LEVEL SECURITY;"
        "ALTER TABLE credit_transactions ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON user_credits FOR SELECT TO authenticated USING (user_id IS NOT NULL);"
        "CREATE POLICY own ON credit_transactions FOR SELECT USING (user_id IS NOT NULL);"
        "GRANT SELECT ON user_credits, credit_transactions TO anon, authenticated"
    ),
    "wider numbers": (
        "ALTER TABLE user_credits ALTER balance TYPE bigint;"
        "ALTER TABLE credit_transactions ALTER amount TYPE bigint"
    ),
}


@pytest.mark.parametrize("variation", VARIATIONS)
async def test_tables_that_grew_a_little_are_adopted_too(given, variation):
    await add_api_roles(given.database.owner_url)
    history = [("a", "purchase", 100, "x", at(1)), ("b", "spend", 20, "y", at(2))]
    user_id = await given.user(85, history, updated=at(3))
    await given.database.execute(VARIATIONS[variation])
    await given.adopt()
    assert [row[:6] for row in await given.book(user_id)] == [
        (1, "grant", 5, 5, OPENING, shown(at(1))),
        (2, "purchase", 100, 105, "x", shown(at(1))),
        (3, "spend", -20, 85, "y", shown(at(2))),
    ]
    assert await given.account(user_id) == (85, 0, 3, shown(at(3)))
    connection = await given.database.connect()
    await connection.execute("SET ROLE authenticated")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("SELECT balance FROM user_credits")
    await connection.close()
    async with running(server_settings(given.database.service_url)) as service:
        client = await service.client()
        assert (await client.spend_credits(user_id, amount=5)).credit.balance == 80


@pytest.mark.long
async def test_a_large_history_is_adopted(given):
    await given.database.execute(
        "INSERT INTO auth.users SELECT gen_random_uuid() FROM generate_series(1, 2000);"
        "INSERT INTO user_credits SELECT id, 50, now() FROM auth.users;"
        "INSERT INTO credit_transactions"
        " SELECT 't' || row_number() OVER (), id,"
        " (ARRAY['purchase', 'spend', 'refund'])[1 + n % 3], n, 'as given',"
        " timestamp '2024-05-01' + n * interval '1 minute'"
        " FROM auth.users, generate_series(1, 100) AS n"
    )
    await given.adopt()
    counts = await given.database.fetch(
        "SELECT count(*), sum(seq), min(balance), max(balance) FROM user_credits"
    )
    assert tuple(counts[0]) == (2000, 202_000, 50, 50)
