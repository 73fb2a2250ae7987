"""`credit-service verify` adds up the ledger and names every account that does not fit."""

import asyncio
import os
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from kit import citus
from kit.programs import run_module
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service.ledger import verify
from credit_service.ledger.store import SQL
from credit_service.v1 import credit_service_pb2 as pb


async def run(url, *arguments):
    """Runs the command; returns its exit code, its lines, and its error lines."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CREDIT_")}
    variables = {**clean, "CREDIT_DATABASE_URL": url}
    ended = await asyncio.to_thread(
        run_module, "credit_service", "verify", *arguments, environment=variables
    )
    return ended.returncode, ended.stdout.splitlines(), ended.stderr.splitlines()


async def lively(database, client):
    """An account that has seen every call, seq 1 to 14."""
    user_id = await database.user()
    bought = payment(uuid4().hex)
    await client.purchase_credits(user_id, 100, payment=bought)
    spend = await client.spend_credits(user_id, amount=10)
    await client.refund_credits(user_id, transaction_id=spend.transaction.id, amount=3)
    await client.refund_credits(user_id, transaction_id=spend.transaction.id, amount=2)
    await client.grant_credits(user_id, 5, reason="a gift")
    captured = await client.hold_credits(user_id, amount=20)
    await client.capture_hold(user_id, captured.hold.id, amount=15)
    released = await client.hold_credits(user_id, amount=4)
    await client.release_hold(user_id, released.hold.id)
    await client.release_hold(user_id, released.hold.id)
    await client.hold_credits(user_id, amount=6, ttl=timedelta(hours=1))
    await client.hold_credits(user_id, amount=7, ttl=timedelta(hours=2))
    for ref, revision, reversed_minor in (("re", 1, 333), ("du", 1, 999), ("du", 2, 0)):
        await client.reverse_purchase(
            bought.ref,
            reversal_ref=f"{ref}_{user_id}",
            revision=revision,
            reversed_minor=reversed_minor,
            paid_minor=999,
            currency="eur",
            reason="the money went back",
        )
    await client.set_account_policy(user_id, frozen=True)
    return user_id


@asynccontextmanager
async def unprotected(database):
    """A connection to the database without the triggers and constraints of the ledger."""
    async with database.kept_open() as kept:
        constraints = await kept.fetch(
            "SELECT conrelid::regclass::text AS tab, conname FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid::regclass::text IN"
            " ('user_credits', 'credit_transactions', 'credit_holds', 'credit_refunds')"
        )
        for constraint in constraints:
            await kept.execute(
                f'ALTER TABLE {constraint["tab"]} DROP CONSTRAINT "{constraint["conname"]}"'
            )
        await kept.execute("SET session_replication_role = replica")
        yield kept


async def damage(unprotected_database, sql, *arguments):
    """Changes rows by hand; there must be some to change."""
    tag = await unprotected_database.execute(sql, *arguments)
    assert not tag.endswith(" 0"), tag


async def test_a_book_that_adds_up_ends_with_zero(database, client):
    users = [await lively(database, client) for _ in range(2)]
    code, lines, complaints = await run(database.service_url)
    assert (code, lines, complaints) == (0, ["2 accounts verified, 0 with faults"], [])
    code, lines, _ = await run(database.service_url, users[0])
    assert (code, lines) == (0, ["1 accounts verified, 0 with faults"])


async def test_the_first_and_the_last_possible_user_are_verified(database):
    ends = [UUID(int=0), UUID(int=2**128 - 1)]
    for user_id in ends:
        await database.make_anew(user_id, 1)
    async with unprotected(database) as open_database:
        await damage(open_database, "UPDATE user_credits SET balance = balance + 1")
    code, lines, _ = await run(database.service_url)
    assert code == 1
    assert [line.partition(":")[0] for line in lines[:2]] == [str(user_id) for user_id in ends]
    assert lines[2:] == ["2 accounts verified, 2 with faults"]


async def test_an_empty_book_adds_up(database):
    code, lines, _ = await run(database.service_url)
    assert (code, lines) == (0, ["0 accounts verified, 0 with faults"])


DAMAGES = [
    ("UPDATE user_credits SET balance = balance + 1", "the account says balance"),
    ("UPDATE user_credits SET held = held + 1", "the account says held 14 by 2 open holds"),
    ("UPDATE user_credits SET open_holds = 1", "the account says held 13 by 1 open holds"),
    ("UPDATE user_credits SET seq = seq + 1", "the account says balance"),
    (
        "UPDATE user_credits SET next_hold_expiry = next_hold_expiry + interval '90 minutes'",
        "an open hold ends before",
    ),
    ("UPDATE user_credits SET next_hold_expiry = NULL", "an open hold ends before"),
    (
        "UPDATE credit_transactions SET tx = 0 WHERE seq = 6",
        "seq 6 has tx 0, below",
    ),
    ("UPDATE user_credits SET tx = tx - 1", "of what was written last"),
    ("UPDATE credit_policy_changes SET tx = tx + 1", "of what was written last"),
    ("DELETE FROM credit_transactions", "the entries say 0, 0, 0"),
    ("DELETE FROM credit_transactions WHERE seq = 5", "a gap or a double at seq 6"),
    ("DELETE FROM credit_transactions WHERE seq = 11", "the account says balance"),
    ("UPDATE credit_transactions SET seq = 99 WHERE seq = 5", "a gap or a double at seq 6"),
    (
        "UPDATE credit_transactions SET balance_after = 7 WHERE seq = 2",
        "balance_after of seq 2 is not the sum",
    ),
    (
        "UPDATE credit_transactions SET held_after = 7 WHERE seq = 6",
        "held_after of seq 6 is not the sum",
    ),
    (
        (
            "UPDATE credit_transactions SET held_after = 14,"
            " held_change = held_change + CASE seq WHEN 11 THEN 1 ELSE 0 END WHERE seq >= 11"
        ),
        "held 13, seq 14; the entries say 52, 14, 14",
    ),
    (
        "UPDATE credit_transactions SET balance_change = -11 WHERE seq = 2",
        "balance_after of seq 2 is not the sum",
    ),
    (
        "UPDATE credit_transactions SET timestamp = timestamp - interval '1 day' WHERE seq = 4",
        "the time of seq 4 is before",
    ),
    (
        "UPDATE credit_transactions SET timestamp = '-infinity' WHERE seq = 1",
        "the time of seq 1 is not between the years 1 and 9999",
    ),
    (
        "UPDATE credit_transactions SET timestamp = '0044-03-15 BC' WHERE seq = 1",
        "the time of seq 1 is not between the years 1 and 9999",
    ),
    (
        "UPDATE credit_transactions SET timestamp = 'infinity' WHERE seq = 14",
        "the time of seq 14 is not between the years 1 and 9999",
    ),
    (
        "UPDATE credit_holds SET state = 'captured' WHERE seq = 8",
        "hold 8 is captured, which its entries do not say",
    ),
    (
        "UPDATE credit_holds SET state = 'held', settled_seq = NULL WHERE seq = 8",
        "the account says held",
    ),
    (
        (
            "UPDATE credit_holds SET state = 'captured', captured = 15, settled_seq = 7,"
            " captured_seq = 7 WHERE seq = 8"
        ),
        "hold 8 is captured, which its entries do not say",
    ),
    (
        (
            "UPDATE credit_holds SET state = 'expired', captured = 0, captured_seq = NULL"
            " WHERE seq = 6"
        ),
        "the capture of seq 7 is not what hold 6 says",
    ),
    (
        "UPDATE credit_holds SET captured = 15, captured_seq = 7 WHERE seq = 8",
        "hold 8 of 4, captured 15, has other entries",
    ),
    ("UPDATE credit_holds SET amount = 8 WHERE seq = 11", "hold 11 of 8"),
    ("UPDATE credit_transactions SET type = 'grant' WHERE seq = 11", "hold 11 of 7"),
    ("UPDATE credit_holds SET captured = 16 WHERE seq = 6", "hold 6 of 20, captured 16"),
    ("DELETE FROM credit_holds WHERE seq = 8", "the hold of seq 8 is missing"),
    ("DELETE FROM credit_holds WHERE seq = 11", "the account says held"),
    ("DELETE FROM credit_holds", "the holds say 0 by 0"),
    ("UPDATE credit_refunds SET refunded = 4", "the refunds of seq 2 add up to 5"),
    ("DELETE FROM credit_refunds", "the refunds of seq 2 add up to 5"),
    ("UPDATE credit_refunds SET spend_seq = 7", "seq 7 is recorded as refunded"),
    (
        "UPDATE credit_transactions SET amount = 4 WHERE seq = 2",
        "the refunds of seq 2 add up to 5, its record says 5 of 4",
    ),
    ("DELETE FROM credit_reversals", "took 33 credits; its refunds and disputes say 0"),
    (
        "DELETE FROM credit_reversals WHERE revision = 2",
        "the reversals of seq 1 took 33 credits; its refunds and disputes say 100",
    ),
    (
        "UPDATE credit_reversals SET reversed_minor = 666 WHERE reversal_ref LIKE 're%'",
        "the reversals of seq 1 took 33 credits; its refunds and disputes say 66",
    ),
    (
        "UPDATE credit_transactions SET related_seq = NULL WHERE seq = 12",
        "the reversals of seq 1 took 0 credits; its refunds and disputes say 33",
    ),
    (
        "UPDATE credit_transactions SET type = 'grant' WHERE seq = 2",
        "the refunds of seq 2 add up to 5",
    ),
    ("DELETE FROM credit_purchases", "payment"),
    ("UPDATE credit_purchases SET user_id = gen_random_uuid()", "is recorded otherwise"),
    ("UPDATE credit_purchases SET amount = 99", "is recorded otherwise"),
    (
        (
            "UPDATE credit_transactions SET (payment_ref, payment_amount_minor, payment_currency) ="
            " (SELECT payment_ref, 1, 'eur' FROM credit_purchases) WHERE seq = 5"
        ),
        "of seq 5 is recorded otherwise",
    ),
    (
        (
            "UPDATE credit_transactions SET"
            " (amount, payment_ref, payment_amount_minor, payment_currency) ="
            " (SELECT amount, payment_ref, 1, 'eur' FROM credit_purchases) WHERE seq = 5"
        ),
        "of seq 5 is recorded otherwise",
    ),
    (
        (
            "INSERT INTO credit_reversals SELECT 're_' || user_id, 2, 'pi_other', user_id, NULL, 0,"
            " 1, 'eur', 'test', now(), 'test' FROM user_credits"
        ),
        "is also recorded for payment pi_other",
    ),
    ("UPDATE credit_kept_keys SET seq = 99", "which does not answer it"),
    ("UPDATE credit_kept_keys SET seq = 1", "of ReleaseHold was answered with seq 1, which does"),
    (
        "UPDATE credit_kept_keys SET call = 'PurchaseCredits'",
        "of PurchaseCredits was answered with seq 9, which does not answer it",
    ),
    (
        (
            "UPDATE credit_kept_keys AS kept SET key ="
            " (SELECT idempotency_key FROM credit_transactions WHERE seq = 2)"
        ),
        "is also that of seq 2",
    ),
]


# test_distributed_verify.py damages a book on a cluster.
@pytest.mark.skipif(citus.URL in os.environ, reason="a Citus cluster refuses to do these damages")
async def test_every_damage_is_found_and_its_account_named(make_database):
    """All damages are in one database, each to a different account."""
    database = await make_database()
    async with running(server_settings(database.service_url)) as service:
        client = await service.client()
        whole = await lively(database, client)
        # Concurrently, so that many of their calls share transactions.
        users = await asyncio.gather(*(lively(database, client) for _ in DAMAGES))
    async with unprotected(database) as open_database:
        for (sql, _), user_id in zip(DAMAGES, users, strict=True):
            head, where, condition = sql.partition(" WHERE ")
            mine = f" WHERE user_id = '{user_id}'"
            head = head.replace("FROM credit_purchases)", f"FROM credit_purchases{mine})")
            await damage(open_database, head + mine + (f" AND {condition}" if where else ""))
    code, lines, _ = await run(database.service_url)
    assert code == 1
    assert lines[-1] == f"{len(users) + 1} accounts verified, {len(users)} with faults"
    for (sql, fault), user_id in zip(DAMAGES, users, strict=True):
        named = [line for line in lines if line.startswith(f"{user_id}: ")]
        assert any(fault in line for line in named), (sql, named)
    assert not any(str(whole) in line for line in lines)
    code, lines, _ = await run(database.service_url, users[0])
    assert code == 1
    assert lines[-1] == "1 accounts verified, 1 with faults"
    code, lines, _ = await run(database.service_url, whole)
    assert (code, lines) == (0, ["1 accounts verified, 0 with faults"])


async def test_accounts_beyond_the_first_chunk_are_verified_too(database, monkeypatch):
    users = sorted([await database.user(5) for _ in range(12)])
    monkeypatch.setattr(verify, "_ACCOUNTS_AT_ONCE", 5)
    async with unprotected(database) as open_database:
        for user_id in (users[4], users[5], users[11]):
            await damage(
                open_database, "UPDATE user_credits SET balance = 6 WHERE user_id = $1", user_id
            )
    connection = await database.connect()
    said, progress = [], []
    try:
        found = await verify.verify(connection, None, said.append, progress.append)
    finally:
        await connection.close()
    assert found == (12, 3)
    assert [line.split(":")[0] for line in said] == [str(users[n]) for n in (4, 5, 11)]
    # On a cluster, each shard is asked for that many.
    assert progress == ([12] if citus.URL in os.environ else [5, 10, 12])


async def test_accounts_that_take_too_long_together_are_verified_in_halves(database, monkeypatch):
    users = sorted([await database.user(5) for _ in range(5)])
    async with unprotected(database) as open_database:
        await damage(
            open_database, "UPDATE user_credits SET balance = 6 WHERE user_id = $1", users[3]
        )
    # Every statement over more than one account is cancelled by the server.
    await database.execute(
        """
        CREATE FUNCTION wait_for_more(accounts uuid[]) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF cardinality(accounts) > 1 THEN PERFORM pg_sleep(60); END IF;
            RETURN true;
        END $$
        """
    )
    # A condition without a column is checked once, before the first row.
    slow = f"SELECT * FROM ({SQL['find_faults']}) AS found WHERE wait_for_more($1::uuid[])"
    monkeypatch.setitem(SQL, "find_faults", slow)
    monkeypatch.setattr(verify, "_SECONDS_TOGETHER", 0.05)
    connection = await database.connect()
    said, progress = [], []
    try:
        found = await verify.verify(connection, None, said.append, progress.append)
    finally:
        await connection.close()
    assert found == (5, 1)
    assert [line.split(":")[0] for line in said] == [str(users[3])]
    assert progress == [5]


async def test_a_user_without_an_account_is_reported_as_missing(database):
    known = await database.user()
    for user_id in (known, uuid4()):
        code, lines, complaints = await run(database.service_url, user_id)
        assert (code, lines) == (2, [])
        assert complaints == [f"credit-service: there is no account for {user_id}; check the id"]


async def test_a_database_that_is_away_ends_with_two_and_one_line(database, tmp_path):
    code, lines, complaints = await run(f"postgresql://nobody@/nothing?host={tmp_path}")
    assert (code, lines, len(complaints)) == (2, [], 1)
    assert complaints[0].startswith("credit-service: the database cannot be reached")


async def test_a_database_without_the_tables_ends_with_two_and_one_line(make_database):
    empty = await make_database(empty=True)
    code, lines, complaints = await run(empty.service_url)
    assert (code, lines, len(complaints)) == (2, [], 1)
    assert "migrate" in complaints[0]


async def test_verifying_changes_nothing_and_needs_no_pause(database, client):
    user_id = await lively(database, client)
    await client.set_account_policy(user_id, frozen=False)
    before = await database.book()
    assert (await run(database.service_url))[0] == 0
    assert await database.book() == before
    verifying = asyncio.create_task(run(database.service_url))
    while not verifying.done():
        await client.spend_credits(user_id, amount=1)
        await client.grant_credits(user_id, 1, reason="again")
    code, lines, _ = await verifying
    assert (code, lines) == (0, ["1 accounts verified, 0 with faults"])


async def test_an_expired_hold_that_is_not_recorded_yet_is_no_fault(database, client):
    user_id = await database.user(10)
    made = await client.hold_credits(user_id, amount=4, ttl=timedelta(seconds=1))

    async def is_shown_as_expired():
        return (await client.get_hold(user_id, made.hold.id)).state == pb.HOLD_STATE_EXPIRED

    await eventually(is_shown_as_expired)
    assert (await run(database.service_url, user_id))[0] == 0
