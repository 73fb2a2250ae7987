"""The events of a user stay in order, and wait for their time, at moments that are easily missed."""

import pytest
from kit.receivers import OK, answer, receiver
from kit.relays import endpoint, relaying, write_endpoints
from kit.services import running, server_settings
from kit.waiting import eventually

_PARKED = "SELECT user_id, number FROM credit_parked_events ORDER BY user_id, tx, kind, number"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "endpoints.toml"


async def test_dead_events_of_a_user_that_are_sent_again_and_fail_wait_for_their_time(
    database, file
):
    async with (
        running(server_settings(database.service_url)) as service,
        receiver() as hook,
    ):
        client = await service.client()
        poisoned, other = await database.user(), await database.user()
        await client.purchase_credits(poisoned, 100, payment=None)
        await client.spend_credits(poisoned, amount=1)
        await client.purchase_credits(other, 100, payment=None)

        async def reply(request):
            return answer(500) if request.user == str(poisoned) else OK

        hook.reply = reply
        write_endpoints(file, endpoint("one", hook.port))
        async with relaying(database, file, retry=600, retry_max=600):

            async def put_by():
                return len(await database.fetch(_PARKED)) == 2

            await eventually(put_by)
            # As after three days, and after an operator has asked for both of them.
            await database.execute(
                "UPDATE credit_parked_events SET tries = 7, next_try = clock_timestamp()"
            )

            async def failed():
                return await database.fetch(
                    "SELECT FROM credit_parked_events WHERE number = 1 AND tries = 8"
                )

            await eventually(failed)
            due = await database.fetch(
                "SELECT number FROM credit_parked_events WHERE next_try <= clock_timestamp()"
            )
            assert due == []
