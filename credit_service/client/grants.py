"""The calls of CreditClient that grant credits, revoke, list and add up grants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.client.connection import REPORT_SECONDS, Connection, expire, key, timestamp
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from datetime import datetime, timedelta
    from uuid import UUID


class GrantCalls(Connection):
    """Grants of credits, with and without an expiry, and what is owed to all users."""

    async def grant_credits(
        self,
        user_id: UUID | str,
        amount: int,
        *,
        reason: str,
        expire_time: datetime | None = None,
        valid_for: timedelta | None = None,
        priority: int | None = None,
        category: pb.GrantCategory.ValueType = pb.GRANT_CATEGORY_PROMOTIONAL,
        idempotency_key: str | None = None,
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.GrantCreditsResponse:
        """Grants credits without a payment; only an operator may.

        Args:
            user_id: who gets them.
            amount: credits, 1 to 10^12.
            reason: for people.
            expire_time: when what is left of the credits lapses (aware); None: see `valid_for`.
            valid_for: how long after the grant it lapses, at most 3,653 days; None, and no
                `expire_time`: never.
            priority: when the credits are used, 0 first, 100 last; None: 50.
            category: whether finance counts them as promotional or as paid.
            idempotency_key: the caller's key; None: one is made for this call.
            reference: the caller's own reference.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            TooManyGrants: the account has the maximum number of open grants.
            UserNotFound: the user is not known.
            OutcomeUnknown: no final answer came.
        """
        request = pb.GrantCreditsRequest(
            user_id=str(user_id),
            amount=amount,
            reason=reason,
            priority=priority,
            category=category,
            idempotency_key=key(idempotency_key),
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        expire(request, expire_time, valid_for)
        return await self.write(self.stub.GrantCredits, request)

    async def revoke_grant(
        self,
        user_id: UUID | str,
        grant_id: str,
        *,
        reason: str,
        idempotency_key: str | None = None,
        reference: str = "",
        metadata: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> pb.RevokeGrantResponse:
        """Revokes a grant: takes, for good, what is left of it and is not held.

        Args:
            user_id: whose grant.
            grant_id: the id of the grant, which is that of the entry that made it.
            reason: for people.
            idempotency_key: the caller's key; None: one is made for this call.
            reference: the caller's own reference.
            metadata: the caller's own facts.
            validate_only: check everything, write nothing.

        Raises:
            GrantNotFound: the user has no such grant.
            PermissionDenied: only an operator may revoke a grant that another caller made.
            OutcomeUnknown: no final answer came.
        """
        request = pb.RevokeGrantRequest(
            user_id=str(user_id),
            grant_id=grant_id,
            reason=reason,
            idempotency_key=key(idempotency_key),
            reference=reference,
            metadata=metadata,
            validate_only=validate_only,
        )
        return await self.write(self.stub.RevokeGrant, request)

    async def list_grants(
        self, user_id: UUID | str, *, include_closed: bool = False, page_size: int = 0
    ) -> AsyncGenerator[pb.CreditGrant]:
        """Goes through the grants of a user, newest first, reading a page when it is needed.

        Args:
            user_id: whose grants.
            include_closed: also those of which nothing is left.
            page_size: the maximum number of grants in a page; 0: 50.

        Raises:
            UserNotFound: the user is not known.
        """
        request = pb.ListGrantsRequest(
            user_id=str(user_id), include_closed=include_closed, page_size=page_size
        )
        while True:
            page = await self.read(self.stub.ListGrants, request)
            for grant in page.grants:
                yield grant
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_liability_report(
        self, as_of: datetime | None = None
    ) -> pb.GetLiabilityReportResponse:
        """Adds up what all accounts have, by the month in which it lapses.

        Args:
            as_of: the moment to report on (aware); None: now.

        Raises:
            InvalidRequest: the moment is still to come.
            LedgerUnavailable: the database does not answer, or the report takes over a minute.
        """
        request = pb.GetLiabilityReportRequest(as_of=timestamp(as_of))
        return await self.read(self.stub.GetLiabilityReport, request, REPORT_SECONDS)
