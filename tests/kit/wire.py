"""Calls as bytes, which generated code would refuse to send."""

from datetime import timedelta
from uuid import UUID

import grpc
from google.protobuf.message import Message
from kit.databases import Database
from kit.requests import payment
from kit.waiting import patience

from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["CreditService"]
METHODS = sorted(m.name for m in SERVICE.methods if not m.server_streaming)

INT64_MAX, INT64_MIN = 2**63 - 1, -(2**63)
INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)


def request_of(method: str) -> type[Message]:
    return getattr(pb, SERVICE.methods_by_name[method].input_type.name)


class Wire:
    """Sends bytes as calls, which generated code would refuse to send."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def send(self, method: str, request: bytes, **options: object) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        return await call(request, timeout=patience(20), **options)

    async def ask(self, method: str, request: Message) -> bytes:
        return await self.send(method, request.SerializeToString())


async def user_with_a_spend(client: CreditClient, database: Database) -> UUID:
    """A user with 102 credits.

    The spend of 10 is in place 2, the hold of 5 in 3, the purchase of 5 in 4, the grant of 7 in 5.
    """
    user_id = await database.user(100)
    await client.spend_credits(user_id, amount=10, idempotency_key="spent")
    await client.hold_credits(user_id, amount=5, idempotency_key="held")
    await client.purchase_credits(
        user_id, 5, payment=payment(f"sold:{user_id}"), idempotency_key="sold"
    )
    await client.grant_credits(
        user_id, 7, reason="gift", valid_for=timedelta(days=1), idempotency_key="gift"
    )
    return user_id
