"""CreditClient for blocking workers: threads, process pools, Celery and the like.

One event loop in a thread of its own runs the asynchronous client, so there is one implementation
of the rules. Make the first client after a fork, not before it, because gRPC does not survive a
fork. It does not run beside gevent or eventlet either.

    with BlockingCreditClient("localhost:50051", token=token) as client:
        with client.hold(user_id, "stem_separation", job=job) as held:
            separate(song)
"""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import TYPE_CHECKING

from credit_service.client.blocking_accounts import BlockingAccountCalls
from credit_service.client.blocking_credits import BlockingCreditCalls
from credit_service.client.blocking_feed import BlockingFeedCalls
from credit_service.client.blocking_grants import BlockingGrantCalls
from credit_service.client.blocking_holds import BlockingHoldCalls
from credit_service.client.blocking_top_ups import BlockingTopUpCalls

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from credit_service.client.held_work import HeldWork
    from credit_service.v1 import credit_service_pb2 as pb


class BlockingCreditClient(
    BlockingCreditCalls,
    BlockingGrantCalls,
    BlockingAccountCalls,
    BlockingHoldCalls,
    BlockingFeedCalls,
    BlockingTopUpCalls,
):
    """Has every method of `CreditClient`, blocking; may be shared by threads.

    Asynchronous generators there are ordinary generators here.
    """

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
    ) -> BlockingHeldWork:
        """Holds credits around a piece of work: `with client.hold(...) as held:`.

        Holds before the body runs, extends the hold while it runs, captures the hold when the body
        ends and releases it when the body fails or is interrupted. See `HeldWork`.

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
        work = self._client.hold(
            user_id,
            operation,
            job=job,
            quantity=quantity,
            amount=amount,
            ttl=ttl,
            expected_cost=expected_cost,
            attempt=attempt,
        )
        return BlockingHeldWork(self, work)


class BlockingHold:
    """A hold around a piece of blocking work that runs.

    Attributes:
        hold: the hold.
        attempt: the attempt that made the hold.
    """

    def __init__(self, client: BlockingCreditClient, work: HeldWork) -> None:
        self._client = client
        self._work = work
        self.hold = work.hold
        self.attempt = work.attempt

    @property
    def captured(self) -> pb.CaptureHoldResponse | None:
        """The answer to the capture, once made."""
        return self._work.captured

    def capture(
        self,
        amount: int | None = None,
        *,
        quantity: int | None = None,
        allow_overage: bool = False,
    ) -> pb.CaptureHoldResponse:
        """Takes the credits of the hold, as `HeldWork.capture` does."""
        return self._client.run(
            self._work.capture(amount, quantity=quantity, allow_overage=allow_overage)
        )


class BlockingHeldWork:
    """Puts a hold around the body of a `with` statement, as `HeldWork` does.

    The exception of a time limit, or of Ctrl-C, can strike between any two steps of the thread. So
    the hold does not depend on a task that must be ended. It is extended as long as this object
    exists, to which only the `with` statement refers, and until the statement is left or fails to
    enter. After that the hold is released or expires.
    """

    def __init__(self, client: BlockingCreditClient, work: HeldWork) -> None:
        self._client = client
        self._work = work
        work.is_owned = weakref.ref(self)

    def __enter__(self) -> BlockingHold:
        try:
            self._client.run(self._work.__aenter__())
            return BlockingHold(self._client, self._work)
        except BaseException:
            # This comes first and is not a call, so nothing can strike before it.
            self._work.is_owned = _never
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._client.run(self._work.__aexit__(kind, error, trace))
        finally:
            self._work.is_owned = _never


def _never() -> bool:
    return False
