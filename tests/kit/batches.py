"""Items of a batch, and the answers to a batch."""

from uuid import uuid4

import pytest

from credit_service.client import item_error
from credit_service.errors import InvalidRequest
from credit_service.v1 import credit_service_pb2 as pb

ATOMIC, INDEPENDENT = pb.BATCH_MODE_ATOMIC, pb.BATCH_MODE_INDEPENDENT
MODES = pytest.mark.parametrize("mode", [ATOMIC, INDEPENDENT], ids=["atomic", "independent"])


def item(user_id, amount=1, key=None, **changes):
    return pb.BatchSpendItem(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex, **changes
    )


def errors(results):
    """The type of each item's error; None for an item that is OK."""
    return [None if (error := item_error(r)) is None else type(error) for r in results]


async def refusal(client, items, mode=INDEPENDENT):
    """The refusal of the call itself."""
    with pytest.raises(InvalidRequest) as failure:
        await client.batch_spend_credits(items, mode=mode)
    return failure.value
