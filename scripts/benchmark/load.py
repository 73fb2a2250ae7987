"""The load generator, in a process of its own: reads plans, writes outcomes.

Each plan and each outcome is a line. The process ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import grpc
import uvloop

from benchmark import client_calls, flooding, watching
from benchmark.calls import CALLS, ItemRefusedError, Users
from benchmark.plan import Outcome, Plan
from credit_service import status
from credit_service.errors import CreditError

if TYPE_CHECKING:
    from benchmark.calls import Call

_MESSAGE_BYTES_MAX = 2 * 1024 * 1024

# gRPC refuses calls of a crowd without a reason or a time to come back.
_CANCELLED_SECONDS = 0.2


class Generator:
    """Carries out plans one after another, over connections that it keeps."""

    def __init__(self) -> None:
        self._channels: dict[tuple[str, int], list[grpc.aio.Channel]] = {}
        self._clients = client_calls.Clients()
        self._users: dict[tuple[int, int], Users] = {}

    async def carry_out(self, plan: Plan) -> Outcome:
        """Carries out a plan to the answer of its last call."""
        outcome = Outcome()
        if plan.call == "watch":
            channels = await self._connected(plan)
            carried_out = watching.watch(channels[0], plan, outcome)
        elif plan.call == "flood":
            carried_out = flooding.flood(plan, self._drawn_from(plan), outcome)
        else:
            users = self._drawn_from(plan)
            if plan.call in client_calls.NAMES:
                calls = [self._clients.call(plan.target, plan.call, users)]
            else:
                calls = [CALLS[plan.call](each, users) for each in await self._connected(plan)]
            loop = _closed_loop if plan.rate is None else _open_loop
            carried_out = loop(plan, calls, outcome)
        await asyncio.sleep(plan.start_at - time.monotonic())
        cpu, started = time.process_time(), time.monotonic()
        await carried_out
        outcome.cpu_seconds = time.process_time() - cpu
        outcome.seconds = time.monotonic() - started
        return outcome

    def _drawn_from(self, plan: Plan) -> Users:
        chosen = (plan.first_user, plan.users)
        if chosen not in self._users:
            self._users[chosen] = Users(*chosen)
        return self._users[chosen]

    async def _connected(self, plan: Plan) -> list[grpc.aio.Channel]:
        place = (plan.target, plan.connections)
        if place not in self._channels:
            self._channels[place] = [
                grpc.aio.insecure_channel(
                    plan.target,
                    options=(
                        # A connection of its own, for several server processes to share.
                        ("grpc.use_local_subchannel_pool", 1),
                        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                    ),
                )
                for _ in range(plan.connections)
            ]
        for channel in self._channels[place]:
            await channel.channel_ready()
        return self._channels[place]

    async def close(self) -> None:
        """Closes all connections."""
        await self._clients.close()
        for channels in self._channels.values():
            for channel in channels:
                await channel.close()


async def _one(call: Call, due: float, end: float, outcome: Outcome) -> float:
    """Makes a call; returns for how many seconds its refusal asks to wait."""
    outcome.begun += 1
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        refusal = status.parse(error)
        name = error.code().name + ("" if refusal is None else f" {refusal.reason}")
        outcome.failed[name] = outcome.failed.get(name, 0) + 1
        unseen = error.code() is grpc.StatusCode.CANCELLED
        return status.retry_seconds(error) or (_CANCELLED_SECONDS if unseen else 0.0)
    except CreditError as error:
        outcome.failed[error.reason] = outcome.failed.get(error.reason, 0) + 1
        return 0.0
    except ItemRefusedError:
        outcome.failed["an item"] = outcome.failed.get("an item", 0) + 1
        return 0.0
    now = time.monotonic()
    outcome.answered += now <= end
    outcome.waited_us.append(round((now - due) * 1_000_000))
    return 0.0


async def _closed_loop(plan: Plan, calls: list[Call], outcome: Outcome) -> None:
    end = plan.start_at + plan.seconds

    async def caller(call: Call) -> None:
        while (now := time.monotonic()) < end:
            if pause := await _one(call, now, end, outcome):
                # With jitter, so that those refused together do not come back together.
                await asyncio.sleep(pause * random.uniform(1.0, 1.2))  # noqa: S311

    await asyncio.gather(*(caller(calls[number % len(calls)]) for number in range(plan.in_flight)))


async def _open_loop(plan: Plan, calls: list[Call], outcome: Outcome) -> None:
    assert plan.rate is not None  # noqa: S101  # the caller chose by it
    end = plan.start_at + plan.seconds
    due = plan.start_at
    async with asyncio.TaskGroup() as running:
        while (due := due + random.expovariate(plan.rate)) < end:
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            running.create_task(_one(random.choice(calls), due, end, outcome))  # noqa: S311


def main() -> None:
    """Carries out the plans of the input."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        generator = Generator()
        for line in sys.stdin:
            outcome = runner.run(generator.carry_out(Plan(**json.loads(line))))
            print(json.dumps(asdict(outcome)), flush=True)
        runner.run(generator.close())


if __name__ == "__main__":
    main()
