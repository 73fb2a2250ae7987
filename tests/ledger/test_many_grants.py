"""An account with very many grants is served like any other."""

from datetime import timedelta

import pytest
from kit.commands import LATER, ask, grant, hold, keyed, lanes, purchase, reverse, spend

from credit_service.errors import TooManyGrants
from credit_service.ledger import verify
from credit_service.rules.commands import Capture, RevokeGrant
from credit_service.rules.grants import OPEN_GRANTS_MAX
from credit_service.rules.model import Outcome

_GRANTS = 10_000


@pytest.mark.timeout(300)
async def test_an_account_of_ten_thousand_grants_is_spent_held_and_reversed(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        for first in range(0, _GRANTS, 500):
            bought = [
                purchase(user_id, 10, ref=f"pi_{n}", life=LATER) for n in range(first, first + 500)
            ]
            assert all(isinstance(answer, Outcome) for answer in await ask(clerk, *bought))
        (refused,) = await ask(clerk, grant(user_id, 1, life=LATER))
        assert isinstance(refused, TooManyGrants)
        assert refused.limit == OPEN_GRANTS_MAX
        # Each of these touches thousands of them.
        (spent,) = await ask(clerk, spend(user_id, 20_005))
        (held,) = await ask(clerk, hold(user_id, 30_000, timedelta(hours=1).total_seconds()))
        assert len(spent.entry.grant_changes) == 2_001
        (taken,) = await ask(
            clerk,
            keyed(
                Capture,
                user_id,
                hold_seq=held.entry.seq,
                amount=10_000,
                quantity=None,
                allow_overage=False,
            ),
        )
        await ask(clerk, keyed(RevokeGrant, user_id, grant_seq=_GRANTS))
        (back,) = await ask(clerk, reverse(user_id, "pi_9000", "re_9000"))
    assert taken.account.balance == 10 * _GRANTS - 30_005
    assert back.account.balance == taken.account.balance - 20
    connection = await database.connect()
    try:
        assert await verify.verify(connection, None, print, print) == (1, 0)
    finally:
        await connection.close()
