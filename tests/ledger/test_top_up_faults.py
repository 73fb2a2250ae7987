"""verify names what does not add up in top-ups: each fault is planted in its own account."""

from uuid import uuid4

from kit.commands import ask, lanes, purchase, spend
from kit.top_up_tables import POLICY, fail_of, note_of, policy_of

from credit_service.ledger import verify

TABLES = ("user_credits", "credit_top_ups", "credit_top_up_counts", "credit_top_up_changes")


async def open_top_up(database, user_id):
    (row,) = await database.fetch(
        "SELECT number, created_at FROM credit_top_ups WHERE user_id = $1 AND state = 'open'",
        user_id,
    )
    return tuple(row)


async def lively(database, clerk):
    """An account with a top-up that succeeded, one that failed, and an open one with a payment."""
    user_id = await database.user(30)
    await ask(clerk, policy_of(user_id, POLICY), spend(user_id, 15))
    ref = uuid4().hex
    await ask(clerk, note_of(user_id, await open_top_up(database, user_id), ref))
    await ask(clerk, purchase(user_id, 1, ref=ref), spend(user_id, 1))
    await ask(clerk, fail_of(user_id, await open_top_up(database, user_id), 1, "given_up"))
    await ask(clerk, spend(user_id, 1))
    await ask(clerk, note_of(user_id, await open_top_up(database, user_id), uuid4().hex))
    return user_id


async def damage(database, user_id, sql):
    """Makes a change by hand that triggers and constraints would refuse."""
    connection = await database.connect()
    try:
        for row in await connection.fetch(
            "SELECT conrelid::regclass::text AS tab, conname FROM pg_constraint"
            " WHERE contype IN ('c', 'x') AND conrelid::regclass::text = ANY($1::text[])",
            TABLES,
        ):
            await connection.execute(f"ALTER TABLE {row[0]} DROP CONSTRAINT {row[1]}")
        await connection.execute("SET session_replication_role = replica")
        head, where, condition = sql.partition(" WHERE ")
        mine = f"{head} WHERE user_id = '{user_id}'" + (f" AND {condition}" if where else "")
        assert not (await connection.execute(mine)).endswith(" 0"), mine
    finally:
        await connection.close()


DAMAGES = [
    ("UPDATE user_credits SET top_up_changes = top_up_changes + 1", "changes of top-ups; there"),
    ("DELETE FROM credit_top_up_changes WHERE change = 1", "changes of top-ups; there are"),
    ("DELETE FROM credit_top_up_counts", "top-up is off for nothing; the last"),
    ("UPDATE credit_top_up_counts SET off = 'reversal'", "top-up is off for reversal; the last"),
    ("UPDATE credit_top_up_counts SET requests = 9", "made 9 requests for top-ups; there are 3"),
    ("UPDATE credit_top_up_counts SET charges = 2", "says 2 top-ups in the month of"),
    (
        "UPDATE credit_top_up_counts SET month = month - interval '1 month'",
        "says 1 top-ups in the month of",
    ),
    ("DELETE FROM credit_top_ups WHERE number = 2", "made 3 requests for top-ups; there are 2"),
    ("UPDATE credit_top_ups SET state = 'not_needed' WHERE number = 2", "2 for a top-up is not_n"),
    ("UPDATE credit_top_ups SET tries = 2 WHERE number = 2", "2 for a top-up is failed, which"),
    ("UPDATE credit_top_ups SET payment_ref = NULL WHERE number = 3", "3 for a top-up is open, "),
    ("UPDATE credit_top_ups SET seq = 1 WHERE number = 1", "purchased by seq 3, and it says 1"),
    (
        "UPDATE credit_top_ups SET state = 'open', seq = NULL WHERE number = 1",
        "purchased by seq 3, and it says none",
    ),
]


async def test_every_planted_fault_of_top_ups_is_found_and_its_account_named(database):
    async with lanes(database.service_url) as clerk:
        whole = await lively(database, clerk)
        users = [await lively(database, clerk) for _ in DAMAGES]
    connection = await database.connect()
    try:
        assert await verify.verify(connection, None, print, print) == (len(users) + 1, 0)
        for (sql, _), user_id in zip(DAMAGES, users, strict=True):
            await damage(database, user_id, sql)
        said = []
        found = await verify.verify(connection, None, said.append, print)
    finally:
        await connection.close()
    assert found == (len(users) + 1, len(users)), said
    assert not any(str(whole) in line for line in said)
    for (sql, fault), user_id in zip(DAMAGES, users, strict=True):
        named = [line for line in said if line.startswith(f"{user_id}: ")]
        assert any(fault in line for line in named), (sql, named)
