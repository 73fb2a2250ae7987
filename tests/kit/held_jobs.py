"""Helpers for the tests of held work: a body that fails, an account, a hold that gets lost."""

from datetime import timedelta

from kit.waiting import eventually, patience

from credit_service.v1 import credit_service_pb2 as pb

# Two seconds on an idle machine; a heartbeat that is late on a slow one must not lose the hold.
SHORT = timedelta(seconds=min(patience(1), 6))


class WorkFailedError(Exception):
    """The failure in the body."""


async def account(client, user_id):
    credit = await client.get_user_credit(user_id)
    return credit.balance, credit.held


async def lose(database, client, user_id, work):
    """Stops the heartbeat, like a machine that sleeps, until the hold has expired."""
    work._heartbeat.cancel()

    async def expired():
        hold = await client.get_hold(user_id, work.hold.id)
        return hold.state == pb.HOLD_STATE_EXPIRED

    await eventually(expired)
