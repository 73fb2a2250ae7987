"""The load of watchers: many listen, each to a user of its own; the delay of changes is timed."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import grpc

from benchmark.calls import DEADLINE_SECONDS, SERVICE, key
from benchmark.numbering import user_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from benchmark.plan import Outcome, Plan

_ALL_LISTEN_SECONDS = 30.0


async def watch(channel: grpc.aio.Channel, plan: Plan, outcome: Outcome) -> None:
    """Listens to every user of the plan, and spends for one after another at the plan's rate.

    A change is timed from the sending of the spend to its arrival at the listener. The seconds of
    the plan begin when all listen.
    """
    await _Watch(channel, plan, outcome).run()


class _Watch:
    def __init__(self, channel: grpc.aio.Channel, plan: Plan, outcome: Outcome) -> None:
        self._listening: grpc.aio.UnaryStreamMultiCallable[Any, Any] = channel.unary_stream(
            SERVICE + "WatchUserCredit",
            response_deserializer=pb.WatchUserCreditResponse.FromString,
        )
        self._spending: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
            SERVICE + "SpendCredits"
        )
        self._plan, self._outcome = plan, outcome
        users = range(plan.first_user, plan.first_user + plan.users)
        self._quiet = [user_id(number) for number in users]
        self._silent = set(self._quiet)
        self._all_listen = asyncio.Event()
        self._sent: dict[str, float] = {}
        self._all_outcome = asyncio.Event()

    async def run(self) -> None:
        listeners = [asyncio.create_task(self._listen(user)) for user in self._quiet]
        try:
            async with asyncio.timeout(_ALL_LISTEN_SECONDS):
                await self._all_listen.wait()
            await self._change()
        except TimeoutError:
            self._outcome.failed["not seen in time"] = len(self._silent) + len(self._sent)
        finally:
            for listener in listeners:
                listener.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)

    async def _change(self) -> None:
        assert self._plan.rate is not None  # noqa: S101  # changes come at a rate
        end = time.monotonic() + self._plan.seconds
        async with asyncio.TaskGroup() as spends:
            while time.monotonic() < end and self._quiet:
                user = self._quiet.pop(random.randrange(len(self._quiet)))  # noqa: S311
                self._sent[user] = time.monotonic()
                self._outcome.begun += 1
                spends.create_task(self._spend(user))
                await asyncio.sleep(1 / self._plan.rate)
        self._all_outcome.clear()
        if self._sent:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await self._all_outcome.wait()

    async def _spend(self, user: str) -> None:
        request = pb.SpendCreditsRequest(user_id=user, amount=1, idempotency_key=key())
        try:
            await self._spending(request.SerializeToString(), timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            name = error.code().name
            self._outcome.failed[name] = self._outcome.failed.get(name, 0) + 1
            self._sent.pop(user, None)

    async def _listen(self, user: str) -> None:
        asked = pb.WatchUserCreditRequest(user_id=user).SerializeToString()
        async for _ in self._listening(asked):
            if user in self._silent:
                self._silent.discard(user)
                if not self._silent:
                    self._all_listen.set()
            elif (sent := self._sent.pop(user, None)) is not None:
                self._outcome.answered += 1
                self._outcome.waited_us.append(round((time.monotonic() - sent) * 1_000_000))
                self._quiet.append(user)
                if not self._sent:
                    self._all_outcome.set()
