"""Work under a hold: credits are held before it, and captured after it or released."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from credit_service.client.accounts import AccountCalls
from credit_service.client.holds import HoldCalls
from credit_service.client.retries import Pauses
from credit_service.errors import (
    AlreadyPaid,
    CreditError,
    HoldExpired,
    HoldNotActive,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    OutcomeUnknown,
    Refusal,
    TransactionNotFound,
    Unavailable,
)
from credit_service.fields import KEY_LENGTH_MAX
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from uuid import UUID

# How long a capture is repeated while the service gives no final answer.
CAPTURE_SECONDS = 120.0

_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 5.0


# A hold is extended three times in its ttl, so that two extensions may fail.
_EXTENSIONS_PER_TTL = 3


class HeldWorkCalls(HoldCalls, AccountCalls):
    """Puts a hold around a piece of work."""

    def hold(
        self,
        user_id: UUID | str,
        operation: str | None = None,
        *,
        job: str,
        quantity: int = 1,
        amount: int | None = None,
        ttl: timedelta = timedelta(minutes=5),
        expected_cost: int | None = None,
        attempt: int = 1,
    ) -> HeldWork:
        """Holds credits around a piece of work: `async with client.hold(...) as held:`.

        Holds before the body runs, extends the hold while it runs, captures the hold when the body
        ends and releases it when the body fails or is cancelled. See `HeldWork`.

        Args:
            user_id: who pays.
            operation: an operation of the price list.
            job: the job, from which the keys are made; a job that is delivered twice pays once.
            quantity: units of the operation.
            amount: credits, if no operation is named.
            ttl: how long the credits stay held after this process dies.
            expected_cost: refuse any other cost than this.
            attempt: 1; to run and pay for the job again after a refund: 2, then 3.
        """
        return HeldWork(
            self,
            user_id,
            operation=operation,
            quantity=quantity,
            amount=amount,
            ttl=ttl,
            expected_cost=expected_cost,
            job=job,
            attempt=attempt,
        )


class HeldWork:
    """A hold around a piece of work, as `CreditClient.hold` makes it.

    Entering raises what `hold_credits` raises, before any work is done, and `AlreadyPaid` if an
    earlier delivery of the job has paid. Leaving captures the whole hold, unless the body called
    `capture`; it raises `HoldExpired` if the hold expired and the credits are gone, `AlreadyPaid`
    if it expired and another delivery has paid, `HoldNotActive` if another caller released it, and
    `OutcomeUnknown` if the service gave no final answer. A body that fails or is cancelled releases
    the hold. If the release fails too, or if entering is cancelled, the hold expires.

    Attributes:
        hold: the hold, once entered.
        attempt: the attempt that made the hold: the one asked for, or a later one if that one was
            released or expired.
        captured: the answer to the capture, once made.
    """

    hold: pb.Hold

    def __init__(
        self,
        client: HeldWorkCalls,
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
        self._first_attempt = self.attempt = attempt
        # One key for all attempts that follow automatically: a delivery that was cut off while its
        # hold expired, and the delivery after it, must not both pay.
        self._capture_key = _capture_key(job, attempt)
        self.captured: pb.CaptureHoldResponse | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        # Whether the body, or its caller, will still end the hold. If not, the hold is not
        # extended.
        self.is_owned: Callable[[], object] = _always

    async def __aenter__(self) -> Self:
        while True:
            # The key of the capture is longer than that of the hold; a job must not turn out to be
            # too long only when the work is done.
            longest = len(self._key("release"))
            if longest > KEY_LENGTH_MAX:
                raise InvalidRequest(
                    "job", f"makes keys of {longest} characters; the maximum is {KEY_LENGTH_MAX}."
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
                if not await self._paid_by_an_earlier_run():
                    raise AlreadyPaid(self._job, self.hold.id)
            elif self.hold.state == pb.HOLD_STATE_HELD and (
                not answer.replayed or await self._still_held()
            ):
                break
            # This attempt was released, or expired, or belongs to a run that was paid before.
            self.attempt += 1
        self._heartbeat = asyncio.create_task(self._extend())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            # This comes before anything that waits, because a body that is closed like a generator
            # runs no further.
            self._stop_heartbeat()
        try:
            if isinstance(error, OutcomeUnknown) and error.key == self._capture_key:
                # The work is done: asking again with the key may still pay for it.
                return
            if kind is not None:
                await self._release()
            elif self.captured is None:
                await self.capture()
        finally:
            self._stop_heartbeat()

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    async def _still_held(self) -> bool:
        """Extends a hold that an earlier delivery made; False: it has ended since."""
        try:
            self.hold = await self._client.extend_hold(self._user_id, self.hold.id, ttl=self._ttl)
        except (HoldExpired, HoldNotActive):
            return False
        return True

    async def _paid_by_an_earlier_run(self) -> bool:
        """Whether the hold was captured with the key of a lower `attempt` than was asked for.

        A run whose first tries were released takes the attempt numbers after its own, and the next
        run begins to look at those numbers.
        """
        for attempt in range(self._first_attempt - 1, 0, -1):
            try:
                entry = await self._client.get_transaction(
                    self._user_id, idempotency_key=_capture_key(self._job, attempt)
                )
            except TransactionNotFound:
                continue
            if entry.hold_id == self.hold.id:
                return True
        return False

    async def capture(
        self,
        amount: int | None = None,
        *,
        quantity: int | None = None,
        allow_overage: bool = False,
    ) -> pb.CaptureHoldResponse:
        """Takes the credits of the hold; may be called once, when the cost is known.

        Repeats the call with the same key while no final answer comes, for up to two minutes.

        Args:
            amount: credits; None: all that is held. 0 releases the hold, as if the body had failed,
                and another delivery runs the job again.
            quantity: units at the hold's price, instead of an amount.
            allow_overage: take more than is held, if the account can pay it.

        Raises:
            HoldExpired: the hold expired and the credits are gone.
            AlreadyPaid: another delivery of the job has paid; this hold is released.
            InsufficientCredits: the account cannot pay the overage.
            OutcomeUnknown: the service gave no final answer; ask again with the key.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CAPTURE_SECONDS
        pauses = Pauses(_PAUSE_SECONDS, _PAUSE_SECONDS_MAX)
        while True:
            try:
                self.captured = await self._try_to_capture(amount, quantity, allow_overage)
            except OutcomeUnknown:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(pauses.next())
            else:
                return self.captured

    async def _try_to_capture(
        self, amount: int | None, quantity: int | None, allow_overage: bool
    ) -> pb.CaptureHoldResponse:
        # The key of the capture is for paying only: a later delivery may still need it.
        takes_nothing = 0 in (amount, quantity)
        while True:
            try:
                return await self._client.capture_hold(
                    self._user_id,
                    self.hold.id,
                    amount=amount,
                    quantity=quantity,
                    allow_overage=allow_overage,
                    idempotency_key=self._key("release") if takes_nothing else self._capture_key,
                    reference=self._job,
                )
            except IdempotencyKeyReused as reused:
                if takes_nothing:
                    raise
                await self._give_way(reused)

    async def _give_way(self, reused: IdempotencyKeyReused) -> None:
        """Releases the hold if another delivery has paid; else takes a key that can still pay."""
        try:
            entry = await self._client.get_transaction(
                self._user_id, transaction_id=reused.transaction_id
            )
        except (Unavailable, InternalError) as error:
            raise OutcomeUnknown(self._capture_key) from error
        if entry.type == pb.TRANSACTION_TYPE_RELEASE and self._capture_key != self._spare_key:
            # Earlier versions of this client used the key for `capture(0)`, which pays nothing.
            self._capture_key = self._spare_key
            return
        await self._release()
        if entry.type != pb.TRANSACTION_TYPE_CAPTURE:
            raise reused
        raise AlreadyPaid(self._job, entry.hold_id) from None

    @property
    def _spare_key(self) -> str:
        return f"paid:{self._job}:{self._first_attempt}"

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
            # The body's own error matters more, and the hold expires.
            return

    async def _extend(self) -> None:
        pause = self._ttl.total_seconds() / _EXTENSIONS_PER_TTL
        while True:
            await asyncio.sleep(pause)
            if not self.is_owned():
                await self._release()
                return
            try:
                await self._client.extend_hold(self._user_id, self.hold.id, ttl=self._ttl)
            except Refusal:
                # The capture will show why: it is late if the credits are still available.
                return
            except CreditError:
                continue

    def _key(self, what: str) -> str:
        return f"{what}:{self._job}:{self.attempt}"


def _capture_key(job: str, attempt: int) -> str:
    return f"capture:{job}:{attempt}"


def _always() -> bool:
    return True
