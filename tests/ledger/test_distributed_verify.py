"""`credit-service verify` on a book that is distributed over a Citus cluster."""

import asyncio
import re

from kit.citus import needs_citus
from kit.command_line import ran
from kit.requests import payment
from kit.services import running, server_settings

from credit_service.client import CreditClient
from credit_service.ledger import fault_store
from credit_service.ledger.statement_texts import SQL


def test_the_faults_that_compare_with_payments_are_recognised_by_their_beginning():
    parts = SQL["find_faults"].partition("\nSELECT\n")[2].split("\nUNION ALL\n")
    compared = {
        _sentence(part)
        for part in parts
        if re.search(r"\b(?:JOIN|FROM) (?:credit_purchases|credit_reversals|counted|gone)\b", part)
    }
    assert len(compared) == 4
    known = {_sentence(part) for part in parts if fault_store.OF_PAYMENTS.match(_sentence(part))}
    assert known == compared


def _sentence(part):
    """How a fault begins, with a 7 for each value."""
    parts = re.findall(r"'(.*?)'", part.partition(" AS fault")[0])
    return "7".join(parts)


@needs_citus
async def test_verify_finds_the_faults_of_a_distributed_book(database):
    users = [await database.user() for _ in range(6)]
    async with (
        running(server_settings(database.service_url)) as service,
        CreditClient(service.target) as client,
    ):
        for user_id in users:
            await client.purchase_credits(user_id, 100, payment=payment(f"pi_{user_id}"))
    assert (
        ran("verify", CREDIT_DATABASE_URL=database.service_url).stdout
        == "6 accounts verified, 0 with faults\n"
    )
    wrong, lost = users[:2]
    await database.execute("UPDATE user_credits SET balance = 101 WHERE user_id = $1", wrong)
    connection = await database.connect()
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL citus.propagate_set_commands = 'local'")
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(
                "DELETE FROM credit_purchases WHERE payment_ref = $1", f"pi_{lost}"
            )
    finally:
        await connection.close()
    done = ran("verify", CREDIT_DATABASE_URL=database.service_url)
    assert done.returncode == 1
    named = {line.partition(":")[0] for line in done.stdout.splitlines()[:-1]}
    assert named == {str(wrong), str(lost)}
    assert f"payment pi_{lost} of seq 1 is recorded otherwise" in done.stdout
    assert done.stdout.endswith("6 accounts verified, 2 with faults\n")
    assert ran("verify", str(users[2]), CREDIT_DATABASE_URL=database.service_url).returncode == 0


@needs_citus
async def test_payments_that_are_being_credited_are_no_faults(database):
    users = [await database.user() for _ in range(4)]
    done = asyncio.Event()

    async def buy(client, user_id):
        bought = 0
        while not done.is_set():
            bought += 1
            await client.purchase_credits(user_id, 1, payment=payment(f"pi_{user_id}_{bought}"))
        return bought

    async with (
        running(server_settings(database.service_url)) as service,
        CreditClient(service.target) as client,
    ):
        buying = [asyncio.create_task(buy(client, user_id)) for user_id in users]
        for _ in range(3):
            verified = await asyncio.to_thread(
                ran, "verify", CREDIT_DATABASE_URL=database.service_url
            )
            assert verified.returncode == 0, verified.stdout
        done.set()
        assert min(await asyncio.gather(*buying)) > 1
    assert await database.faults() == []
