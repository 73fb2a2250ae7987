"""Callers that buy, spend and refund without pause, and compare every answer with the book.

Each caller keeps one call in flight and remembers its requests and answers. Afterwards `settle`
repeats, with the same key, each call without a final answer, and `check` compares the memory with
the book: nothing acknowledged is missing, nothing happened twice, nothing happened unasked.
"""

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import grpc
from google.protobuf.duration_pb2 import Duration
from kit.databases import Database
from kit.refusals import refused
from kit.waiting import patience

from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

NO_FINAL_ANSWER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
_EXPECTED_REFUSALS = {
    "INSUFFICIENT_CREDITS",
    "REFUND_EXCEEDS_SPEND",
    "HOLD_NOT_ACTIVE",
    "HOLD_EXPIRED",
    "TOO_MANY_HOLDS",
}

# For a caller with a connection of its own that reconnects quickly when the service is away.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 300),
)

_METHODS = {
    pb.ReversePurchaseRequest: "ReversePurchase",
    pb.PurchaseCreditsRequest: "PurchaseCredits",
    pb.SpendCreditsRequest: "SpendCredits",
    pb.RefundCreditsRequest: "RefundCredits",
    pb.HoldCreditsRequest: "HoldCredits",
    pb.CaptureHoldRequest: "CaptureHold",
    pb.RevokeGrantRequest: "RevokeGrant",
}


@asynccontextmanager
async def connected(target):
    """A bare stub: no retries, exactly one answer per call."""
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        yield pb_grpc.CreditServiceStub(channel)


async def call(stub, request, seconds=None):
    """Sends a write; returns its response, or the failure as an `AioRpcError`."""
    try:
        return await getattr(stub, _METHODS[type(request)])(
            request, timeout=patience(10) if seconds is None else seconds
        )
    except grpc.aio.AioRpcError as failure:
        return failure


@dataclass
class _Asked:
    """One key: its requests, its answers, and whether an answer is missing."""

    request: object
    answers: list = field(default_factory=list)
    open: bool = False


class Storm:
    """Callers against one or several servers."""

    def __init__(self, targets: list[str], users: list[UUID], *, callers: int = 12, seed: int = 1):
        self.seed = seed
        self._targets = targets
        self._users = [str(user_id) for user_id in users]
        self._lots = random.Random(seed)
        self._asked: dict[str, _Asked] = {}
        self._spends: list[pb.CreditTransaction] = []
        self._holds: list[pb.CreditTransaction] = []
        self._grants: list[pb.CreditTransaction] = []
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._callers = callers
        self.acknowledged = 0
        self.codes = Counter()
        self.seconds = 5.0

    def __str__(self):
        return f"storm with seed {self.seed}: {dict(self.codes)}"

    async def __aenter__(self):
        print(self)  # pytest shows it when the test fails
        self._tasks = [
            asyncio.create_task(self._caller(self._targets[n % len(self._targets)]))
            for n in range(self._callers)
        ]
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def stop(self):
        """Lets every caller finish its call, and ends."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        print(self)

    async def more(self, count, seconds=60.0):
        """Waits for `count` further acknowledged writes."""
        goal = self.acknowledged + count
        async with asyncio.timeout(patience(seconds)):
            while self.acknowledged < goal:
                await asyncio.sleep(0.01)
                for task in self._tasks:
                    if task.done():
                        task.result()

    async def _caller(self, target):
        async with connected(target) as stub:
            while not self._stopping.is_set():
                asked = self._next()
                if await self._send(stub, asked, self.seconds) in NO_FINAL_ANSWER:
                    await asyncio.sleep(0.1)

    def _next(self):
        """Mostly a new request; now and then an earlier one, answered or not."""
        lots = self._lots
        if self._asked and lots.random() < 0.15:
            return lots.choice(list(self._asked.values()))
        key = f"{self.seed}:{len(self._asked)}"
        request = self._request(key, lots.choice(self._users))
        request.idempotency_key = key
        self._asked[key] = asked = _Asked(request)
        return asked

    def _request(self, key, user_id):
        lots = self._lots
        match lots.random():
            case draw if draw < 0.15:
                paid = pb.Payment(ref=key, amount_minor=100, currency="eur")
                return pb.PurchaseCreditsRequest(
                    user_id=user_id, amount=lots.randint(1, 30), payment=paid
                )
            case draw if draw < 0.35 and self._spends:
                spend = lots.choice(self._spends)
                request = pb.RefundCreditsRequest(user_id=spend.user_id, transaction_id=spend.id)
                if lots.random() < 0.7:
                    request.amount = lots.randint(1, spend.amount)
                return request
            case _:
                return pb.SpendCreditsRequest(user_id=user_id, amount=lots.randint(1, 10))

    async def _send(self, stub, asked, seconds):
        answer = await call(stub, asked.request, seconds)
        if isinstance(answer, grpc.aio.AioRpcError):
            code = answer.code()
            self.codes[code.name] += 1
            if code in NO_FINAL_ANSWER:
                asked.open = True
            else:
                assert refused(answer).reason in _EXPECTED_REFUSALS, (answer, asked)
            return code
        self.codes["OK"] += 1
        self.acknowledged += 1
        asked.answers.append(answer)
        if not answer.replayed:
            self._remember(answer.transaction)
        return grpc.StatusCode.OK

    def _remember(self, entry):
        """Keeps the entries that later requests may refer to."""
        if entry.type in {pb.TRANSACTION_TYPE_SPEND, pb.TRANSACTION_TYPE_CAPTURE}:
            self._spends.append(entry)
        elif entry.type == pb.TRANSACTION_TYPE_HOLD:
            self._holds.append(entry)
        elif entry.type == pb.TRANSACTION_TYPE_PURCHASE and entry.grant_changes:
            self._grants.append(entry)

    async def settle(self, target=None, seconds=60.0):
        """Repeats each call without a final answer until it has one, which all get in the end."""
        unanswered = [asked for asked in self._asked.values() if asked.open]

        async def ask_again(stub):
            while unanswered:
                asked = unanswered.pop()
                if await self._send(stub, asked, 5.0) in NO_FINAL_ANSWER:
                    unanswered.append(asked)
                    await asyncio.sleep(0.05)

        async with (
            asyncio.timeout(patience(seconds)),
            connected(target or self._targets[0]) as stub,
        ):
            await asyncio.gather(*(ask_again(stub) for _ in range(8)))

    async def check(self, database: Database):
        """Compares the book with the answers, and the answers with each other."""
        rows = await database.fetch(
            "SELECT id, idempotency_key, type, amount, balance_after FROM credit_transactions"
            " WHERE idempotency_key <> 'opened by the test'"
        )
        book = {row["idempotency_key"]: row for row in rows}
        assert len(book) == len(rows), "a key has two entries"
        # Revoking a grant with nothing left writes no entry: the answer is the entry that made it.
        happened = {
            key
            for key, asked in self._asked.items()
            if asked.answers and asked.answers[0].transaction.idempotency_key == key
        }
        assert happened - book.keys() == set(), "acknowledged and not in the book"
        assert book.keys() - happened == set(), "in the book and not acknowledged"
        for key in happened:
            asked, row = self._asked[key], book[key]
            for answer in asked.answers:
                entry = answer.transaction
                assert (entry.id, entry.amount, entry.balance_after) == (
                    row["id"],
                    row["amount"],
                    row["balance_after"],
                )
            fresh = [answer for answer in asked.answers if not answer.replayed]
            assert len(fresh) <= 1, f"{key} was answered as done twice"
            assert fresh or asked.open, f"{key} was only answered as a repeat"
        assert not await database.faults()


class GrantStorm(Storm):
    """Callers of accounts whose credits lapse while they are spent, held, refunded and revoked."""

    def _request(self, key, user_id):
        lots = self._lots
        match lots.random():
            case draw if draw < 0.25:
                paid = pb.Payment(ref=key, amount_minor=100, currency="eur")
                return pb.PurchaseCreditsRequest(
                    user_id=user_id,
                    amount=lots.randint(1, 30),
                    payment=paid,
                    valid_for=Duration(seconds=lots.randint(1, 3)),
                )
            case draw if draw < 0.45:
                return pb.HoldCreditsRequest(
                    user_id=user_id,
                    amount=lots.randint(1, 8),
                    ttl=Duration(seconds=lots.randint(1, 2)),
                )
            case draw if draw < 0.6 and self._holds:
                hold = lots.choice(self._holds[-20:])
                return pb.CaptureHoldRequest(
                    user_id=hold.user_id, hold_id=hold.id, amount=lots.randint(1, hold.amount)
                )
            case draw if draw < 0.65 and self._grants:
                made = lots.choice(self._grants[-20:])
                return pb.RevokeGrantRequest(
                    user_id=made.user_id, grant_id=made.id, reason="withdrawn"
                )
            case _:
                return super()._request(key, user_id)
