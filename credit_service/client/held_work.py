"""Work under a hold: credits are set aside before it and taken after it, or given back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from credit_service.errors import (
    AlreadyPaid,
    CreditError,
    HoldExpired,
    HoldNotActive,
    IdempotencyKeyReused,
    InvalidRequest,
    OutcomeUnknown,
    Refusal,
)
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType
    from uuid import UUID

    from credit_service.client.holds import HoldCalls

# How long a capture is repeated while the service gives no final answer.
CAPTURE_SECONDS = 120.0

_PAUSE_SECONDS = 0.5

# What the contract allows. The key of the capture is longer than that of the hold, and a job must
# not turn out to be too long for it when the work is done.
_KEY_LENGTH_MAX = 128

# A hold is extended three times in its ttl, so that two extensions may fail.
_EXTENSIONS_PER_TTL = 3


class HeldWork:
    """A hold around a piece of work, as `CreditClient.hold` makes it.

    Entering raises what `hold_credits` raises, before any work is done, and `AlreadyPaid` where an
    earlier delivery of the job has paid. Leaving captures the whole hold, unless the body called
    `capture`; it raises `HoldExpired` where the hold was lost and the credits are gone,
    `AlreadyPaid` where it was lost and another delivery has paid, `HoldNotActive` where somebody
    else released it, and `OutcomeUnknown` where the service stayed away. A body that fails or is
    cancelled releases the hold; where even that fails, or who waits to enter is cancelled, the
    hold ends by itself.

    Attributes:
        hold: the hold, once entered.
        attempt: the attempt that made the hold.
        captured: the answer to the capture, once made.
    """

    hold: pb.Hold

    def __init__(
        self,
        client: HoldCalls,
        user_id: UUID | str,
        *,
        operation: str | None,
        quantity: int,
        amount: int | None,
        ttl: timedelta,
        expected_cost: int | None,
        job: str,
        attempt: int,
    ) -> None:
        self._client = client
        self._user_id = user_id
        self._operation = operation
        self._quantity = quantity
        self._amount = amount
        self._ttl = ttl
        self._expected_cost = expected_cost
        self._job = job
        self.attempt = attempt
        # One key for all attempts that follow by themselves: a delivery that was cut off while its
        # hold expired, and the one that came after it, must not both pay.
        self._capture_key = f"capture:{job}:{attempt}"
        self.captured: pb.CaptureHoldResponse | None = None
        self._heartbeat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        while True:
            longest = len(self._key("release"))
            if longest > _KEY_LENGTH_MAX:
                raise InvalidRequest(
                    "job", f"makes keys of {longest} characters; the maximum is {_KEY_LENGTH_MAX}."
                )
            answer = await self._client.hold_credits(
                self._user_id,
                operation=self._operation,
                quantity=self._quantity,
                amount=self._amount,
                ttl=self._ttl,
                expected_cost=self._expected_cost,
                idempotency_key=self._key("hold"),
                reference=self._job,
            )
            self.hold = answer.hold
            if self.hold.captured_amount > 0:
                raise AlreadyPaid(self._job, self.hold.id)
            if self.hold.state != pb.HOLD_STATE_HELD:
                # This attempt was released or expired: the job runs anew and pays anew.
                self.attempt += 1
            elif not answer.replayed or await self._still_held():
                break
        self._heartbeat = asyncio.create_task(self._extend())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, OutcomeUnknown) and error.key == self._capture_key:
                # The work is done: whoever asks again with the key may still pay for it.
                return
            if kind is not None:
                await self._release()
            elif self.captured is None:
                await self.capture()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.cancel()

    async def _still_held(self) -> bool:
        """Renews the time of a hold that an earlier delivery made; False: it ended meanwhile."""
        try:
            self.hold = await self._client.extend_hold(self._user_id, self.hold.id, ttl=self._ttl)
        except (HoldExpired, HoldNotActive):
            return False
        return True

    async def capture(
        self,
        amount: int | None = None,
        *,
        quantity: int | None = None,
        allow_overage: bool = False,
    ) -> pb.CaptureHoldResponse:
        """Takes the credits of the hold; may be called once, when the cost is known.

        Repeats the call with the same key while no final answer comes, for two minutes at most.

        Args:
            amount: credits, 0 gives the hold up; None: all that is held.
            quantity: units at the hold's price, instead of an amount.
            allow_overage: take more than is held, if the account can pay it.

        Raises:
            HoldExpired: the hold was lost and the credits are gone.
            AlreadyPaid: another delivery of the job has paid; this hold is released.
            InsufficientCredits: the account cannot pay the overage.
            OutcomeUnknown: the service stayed away; ask again with the key.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CAPTURE_SECONDS
        while True:
            try:
                self.captured = await self._client.capture_hold(
                    self._user_id,
                    self.hold.id,
                    amount=amount,
                    quantity=quantity,
                    allow_overage=allow_overage,
                    idempotency_key=self._capture_key,
                    reference=self._job,
                )
            except IdempotencyKeyReused as reused:
                await self._release()
                paid = await self._client.read(
                    self._client.stub.GetTransaction,
                    pb.GetTransactionRequest(
                        user_id=str(self._user_id), transaction_id=reused.transaction_id
                    ),
                )
                raise AlreadyPaid(self._job, paid.transaction.hold_id) from None
            except OutcomeUnknown:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return self.captured

    async def _release(self) -> None:
        if self.captured is not None:
            return
        try:
            await self._client.release_hold(
                self._user_id,
                self.hold.id,
                idempotency_key=self._key("release"),
                reference=self._job,
            )
        except CreditError:
            # The body's own error matters more, and the hold ends by itself.
            return

    async def _extend(self) -> None:
        pause = self._ttl.total_seconds() / _EXTENSIONS_PER_TTL
        while True:
            await asyncio.sleep(pause)
            try:
                await self._client.extend_hold(self._user_id, self.hold.id, ttl=self._ttl)
            except Refusal:
                # The capture will tell: late if the credits are still there.
                return
            except CreditError:
                continue

    def _key(self, what: str) -> str:
        return f"{what}:{self._job}:{self.attempt}"
