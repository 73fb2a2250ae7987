"""The rival of the service, in a process of its own: the same kind of server, bare.

`Empty` answers at once. `Spend` is the obvious way to write such a service: a transaction per call
that locks the account, updates it and inserts the entry. It has no access control, log, metrics or
idempotency.
It ends with its input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import uvloop

from benchmark.calls import RIVAL
from credit_service.rpc.grpc_server import server_options
from credit_service.rpc.responses import timestamp
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from datetime import datetime

    Context = grpc.aio.ServicerContext[Any, Any]

_CONNECTIONS = 16
_FLOOR = 0
# The default of the service.
_CONNECTION_AGE_SECONDS = 600
_CALLS_MAX = 4_000

# Its transactions queue for a hot row, for longer than the service's role may.
_PATIENCE = {"lock_timeout": "0", "statement_timeout": "0"}

_LOCK = "SELECT balance, held, seq FROM user_credits WHERE user_id = $1::uuid FOR UPDATE"
_UPDATE = (
    "UPDATE user_credits SET balance = balance - $2, seq = seq + 1, tx = tx + 1,"
    " last_updated = greatest(clock_timestamp(), last_updated)"
    " WHERE user_id = $1::uuid RETURNING last_updated, tx"
)
_INSERT = (
    "INSERT INTO credit_transactions (user_id, seq, type, call, amount, requested_amount,"
    " balance_change, held_change, balance_after, held_after, floor, description, timestamp,"
    " reference, idempotency_key, caller, tx)"
    " VALUES ($1::uuid, $2, 'spend', 'Rival', $3, $3, -$3::bigint, 0, $4, $5, $6, '', $7, '', $8,"
    " 'rival', $9)"
)


class Rival:
    """The two calls."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def empty(
        self, _request: pb.SpendCreditsRequest, _context: Context
    ) -> pb.SpendCreditsResponse:
        """Answers at once."""
        return pb.SpendCreditsResponse()

    async def spend(
        self, request: pb.SpendCreditsRequest, context: Context
    ) -> pb.SpendCreditsResponse:
        """Takes credits in a transaction of its own."""
        user, amount = request.user_id, request.amount
        async with self._pool.acquire() as connection, connection.transaction():
            account = await connection.fetchrow(_LOCK, user)
            if account is None:
                await context.abort(grpc.StatusCode.NOT_FOUND)
            balance, held, seq = account["balance"] - amount, account["held"], account["seq"] + 1
            if balance - held < _FLOOR:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION)
            time: datetime
            [[time, tx]] = await connection.fetch(_UPDATE, user, amount)
            entry = (user, seq, amount, balance, held, _FLOOR, time, request.idempotency_key, tx)
            await connection.execute(_INSERT, *entry)
        return pb.SpendCreditsResponse(
            transaction=pb.CreditTransaction(
                id=f"{user}-{seq}",
                user_id=user,
                seq=seq,
                type=pb.TRANSACTION_TYPE_SPEND,
                amount=amount,
                balance_change=-amount,
                balance_after=balance,
                held_after=held,
                timestamp=timestamp(time),
                idempotency_key=request.idempotency_key,
                caller="rival",
            ),
            credit=pb.UserCredit(
                user_id=user,
                balance=balance,
                held=held,
                available=balance - held,
                min_balance=_FLOOR,
                last_updated=timestamp(time),
                seq=seq,
            ),
        )


async def _serve(database_url: str) -> None:
    pool = await asyncpg.create_pool(
        database_url,
        min_size=_CONNECTIONS,
        max_size=_CONNECTIONS,
        server_settings=_PATIENCE,
    )
    rival = Rival(pool)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=pb.SpendCreditsRequest.FromString,
            response_serializer=pb.SpendCreditsResponse.SerializeToString,
        )
        for name, behaviour in (("Empty", rival.empty), ("Spend", rival.spend))
    }
    server = grpc.aio.server(
        options=server_options(
            share_port=False, connection_age_seconds=_CONNECTION_AGE_SECONDS, calls_max=_CALLS_MAX
        )
    )
    service = grpc.method_handlers_generic_handler(RIVAL.strip("/"), handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"rival listens on 127.0.0.1:{port}", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    await over.wait()
    await server.stop(1)
    await pool.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
