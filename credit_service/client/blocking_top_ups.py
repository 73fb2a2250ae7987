"""The calls of top_ups.py, blocking; written by scripts/blocking_calls.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.blocking_connection import BlockingConnection

if TYPE_CHECKING:
    from collections.abc import Generator
    from uuid import UUID

    from credit_service.v1 import credit_service_pb2 as pb


class BlockingTopUpCalls(BlockingConnection):
    """Requests for top-ups, their payments and their failures."""

    def list_top_ups(
        self, user_id: UUID | str | None = None, *, open_only: bool = True, page_size: int = 0
    ) -> Generator[pb.TopUpRequest]:
        """Goes through requests for top-ups, reading a page when it is needed.

        Args:
            user_id: only those of this user, newest first; None: those of all users, in the order
                of the users, for which `open_only` must be set.
            open_only: only open requests.
            page_size: the maximum number of requests in a page; 0: 50.

        Raises:
            UserNotFound: the user is not known.
        """
        return self.iterate(
            self._client.list_top_ups(user_id, open_only=open_only, page_size=page_size)
        )

    def note_top_up(
        self, user_id: UUID | str, top_up_id: str, payment_ref: str
    ) -> pb.NoteTopUpResponse:
        """Notes the payment of a request before it is charged; a repeat changes nothing.

        Charge only if the answer's request is open and `needed` is true, and ask again before each
        later try.

        Args:
            user_id: whose request.
            top_up_id: the id of the request.
            payment_ref: the payment, as the purchase will name it.

        Raises:
            TopUpHasPayment: another payment was noted.
            TopUpNotOpen: the request was closed without a payment.
            PaymentReused: the payment is that of another request, or of another user's purchase.
            TopUpNotFound: the user has no such request.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        return self.run(self._client.note_top_up(user_id, top_up_id, payment_ref))

    def fail_top_up(
        self,
        user_id: UUID | str,
        top_up_id: str,
        try_number: int,
        *,
        reason: str,
        failure: pb.TopUpFailure.ValueType,
        link: str = "",
        payment_ref: str = "",
    ) -> pb.FailTopUpResponse:
        """Records that a try to charge a request failed, or that it is not needed.

        Args:
            user_id: whose request.
            top_up_id: the id of the request.
            try_number: counts the tries of the request from 1; not used if it is not needed.
            reason: for people.
            failure: whether it will be tried again, was given up, or is not needed.
            link: where the user can pay.
            payment_ref: the payment that was cancelled before, if the call closes the request.

        Raises:
            TopUpHasPayment: the call closes the request and does not name its payment.
            TopUpNotOpen: the request has ended in another way.
            InvalidRequest: the try is not the next one.
            TopUpNotFound: the user has no such request.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came; repeat the call, which does no harm.
        """
        return self.run(
            self._client.fail_top_up(
                user_id,
                top_up_id,
                try_number,
                reason=reason,
                failure=failure,
                link=link,
                payment_ref=payment_ref,
            )
        )
