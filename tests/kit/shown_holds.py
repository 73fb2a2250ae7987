"""Holds for the tests of their calls: the states, shown and in the book."""

from datetime import timedelta

from credit_service.v1 import credit_service_pb2 as pb

HELD, CAPTURED = pb.HOLD_STATE_HELD, pb.HOLD_STATE_CAPTURED
RELEASED, EXPIRED = pb.HOLD_STATE_RELEASED, pb.HOLD_STATE_EXPIRED
SECOND = timedelta(seconds=1)
INSTANT = timedelta(microseconds=1)


async def recorded(database, user_id):
    """The states of the user's holds in the ledger, in the order they were made."""
    rows = await database.fetch(
        "SELECT state FROM credit_holds WHERE user_id = $1 ORDER BY seq", user_id
    )
    return [row[0] for row in rows]


async def shows(client, user_id, hold_id, state):
    return (await client.get_hold(user_id, hold_id)).state == state


def figures(credit):
    return credit.balance, credit.held, credit.available
