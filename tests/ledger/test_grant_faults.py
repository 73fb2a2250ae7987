"""verify names what does not add up in grants: each fault is planted in its own account."""

from uuid import uuid4

from kit.commands import LATER, ask, grant, hold, keyed, lanes, purchase, refund, reverse, spend

from credit_service.ledger import verify
from credit_service.rules.commands import RevokeGrant


async def lively(database, clerk):
    """An account whose grants have seen every call; seq 1 and 2 made grants, seq 4 a hold."""
    user_id = await database.user()
    ref = uuid4().hex
    await ask(
        clerk,
        purchase(user_id, 100, ref=ref, life=LATER),
        grant(user_id, 50, life=LATER),
        spend(user_id, 70),
        hold(user_id, 30, 3600),
    )
    await ask(clerk, refund(user_id, 3, 5))
    await ask(clerk, keyed(RevokeGrant, user_id, grant_seq=1))
    await ask(clerk, keyed(RevokeGrant, user_id, grant_seq=1))  # nothing is left to revoke
    await ask(clerk, reverse(user_id, ref, f"re_{user_id}", reversed_minor=500))
    await ask(clerk, grant(user_id, 10, life=LATER))
    return user_id


async def damage(database, user_id, sql):
    """Makes a change by hand that triggers and constraints would refuse."""
    connection = await database.connect()
    try:
        for row in await connection.fetch(
            "SELECT conrelid::regclass::text AS tab, conname FROM pg_constraint WHERE contype = 'c'"
            " AND conrelid::regclass::text IN"
            " ('user_credits', 'credit_grants', 'credit_grant_changes', 'credit_reversals',"
            " 'credit_holds')"
        ):
            await connection.execute(f"ALTER TABLE {row[0]} DROP CONSTRAINT {row[1]}")
        await connection.execute("SET session_replication_role = replica")
        head, where, condition = sql.partition(" WHERE ")
        mine = f"{head} WHERE user_id = '{user_id}'" + (f" AND {condition}" if where else "")
        assert not (await connection.execute(mine)).endswith(" 0"), mine
    finally:
        await connection.close()


DAMAGES = [
    ("UPDATE user_credits SET in_grants = in_grants + 1", "the account says"),
    ("UPDATE user_credits SET pinned = pinned - 1", "the account says"),
    ("UPDATE user_credits SET open_grants = 9", "open of 3; the grants say"),
    ("UPDATE user_credits SET grants_made = 4", "of 4; the grants say"),
    ("UPDATE user_credits SET next_lapse = NULL", "lapses before the account expects"),
    (
        "UPDATE user_credits SET next_lapse = next_lapse + interval '1 year'",
        "lapses before the account expects",
    ),
    (
        "UPDATE credit_grants SET remaining = remaining + 1 WHERE seq = 2",
        "changes say otherwise",
    ),
    ("UPDATE credit_grants SET pinned = pinned + 1 WHERE seq = 1", "changes say otherwise"),
    ("UPDATE credit_grants SET lapsed = lapsed + 1 WHERE seq = 1", "changes say otherwise"),
    ("UPDATE credit_grants SET expire_time = now() WHERE seq = 2", "changes say otherwise"),
    ("UPDATE credit_grants SET amount = 51 WHERE seq = 2", "was not made by its entry"),
    ("DELETE FROM credit_grants WHERE seq = 2", "the grants say"),
    ("DELETE FROM credit_grant_changes WHERE seq = 3", "changes say otherwise"),
    ("UPDATE credit_grant_changes SET remaining_after = 7 WHERE seq = 3", "not the sum of the"),
    (
        "UPDATE credit_grant_changes SET pinned_after = 7 WHERE seq = 4",
        "not the sum of the",
    ),
    ("UPDATE credit_grant_changes SET seq = 99 WHERE seq = 3", "by seq 99, which is missing"),
    ("UPDATE credit_grant_changes SET hold_seq = 3 WHERE seq = 4", "and is missing"),
    ("UPDATE credit_holds SET state = 'released' WHERE seq = 4", "and is released"),
    ("UPDATE credit_holds SET amount = 1 WHERE seq = 4", "hold 4 of 1 pins 30"),
    (
        "UPDATE credit_grants SET reversed = reversed + 1 WHERE seq = 1",
        "that reversals returned",
    ),
    (
        "UPDATE credit_grants SET counted = counted + 1 WHERE seq = 1",
        "that reversals returned",
    ),
    ("UPDATE credit_reversals SET counted = counted + 1", "that had lapsed"),
    ("UPDATE credit_kept_keys SET seq = 3", "of RevokeGrant was answered with seq 3, which does"),
]


async def test_every_planted_fault_of_grants_is_found_and_its_account_named(database):
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
    assert found == (len(users) + 1, len(users))
    assert not any(str(whole) in line for line in said)
    for (sql, fault), user_id in zip(DAMAGES, users, strict=True):
        named = [line for line in said if line.startswith(f"{user_id}: ")]
        assert any(fault in line for line in named), (sql, named)
