"""The errors of the gateway as a browser sees them: one table, in the form of RFC 9457.

Every error of `credit_service.errors`, every reason of the bridge and every refusal by the gateway
itself has one row. A row lists the figures that a user may see; nothing else is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

import orjson
from starlette.responses import Response

from credit_service.errors import CreditError, LimitReached

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"

Source = Literal["service", "bridge", "gateway"]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one error.

    Attributes:
        status: of HTTP.
        reason: its name for programs.
        detail: a sentence for people; None: the error's own; empty: none.
        figures: fields of the error that are sent with it.
        retry_after: seconds after which to ask again; None: asking again does not help.
        alerts: whether an operator has to act.
    """

    status: int
    reason: str
    detail: str | None = None
    figures: tuple[str, ...] = ()
    retry_after: int | None = None
    alerts: bool = False


_AGAIN = "The credit service does not answer; ask again in a moment."
_NO_CHECKOUT_NOW = "Payments cannot be started at the moment; ask again shortly."
_OURS = Row(503, "MISCONFIGURED", _AGAIN, retry_after=30, alerts=True)
_OURS_AT_THE_BRIDGE = Row(503, "MISCONFIGURED", _NO_CHECKOUT_NOW, retry_after=30, alerts=True)
_FAULT = Row(500, "INTERNAL", "", alerts=True)

ROWS: Mapping[tuple[Source, str], Row] = {
    ("service", "INVALID_REQUEST"): Row(400, "INVALID_REQUEST", figures=("field",)),
    ("service", "INSUFFICIENT_CREDITS"): Row(
        402, "INSUFFICIENT_CREDITS", figures=("required", "available", "held", "shortfall")
    ),
    ("service", "ACCOUNT_FROZEN"): Row(
        403, "ACCOUNT_FROZEN", "This account is frozen; ask support to unfreeze it."
    ),
    ("service", "USER_NOT_FOUND"): Row(404, "USER_NOT_FOUND", "There is no such user."),
    ("service", "USER_DELETED"): Row(404, "USER_DELETED", "The user was deleted."),
    ("service", "PAYMENT_NOT_FOUND"): Row(404, "PAYMENT_NOT_FOUND", "There is no such payment."),
    ("service", "TRANSACTION_NOT_FOUND"): Row(
        404, "TRANSACTION_NOT_FOUND", "There is no such transaction."
    ),
    ("service", "HOLD_NOT_FOUND"): Row(404, "HOLD_NOT_FOUND", "There is no such hold."),
    ("service", "GRANT_NOT_FOUND"): Row(404, "GRANT_NOT_FOUND", "There is no such grant."),
    ("service", "TOP_UP_NOT_FOUND"): Row(404, "TOP_UP_NOT_FOUND", "There is no such top-up."),
    ("service", "PRICE_CHANGED"): Row(409, "PRICE_CHANGED", figures=("cost", "price_version")),
    ("service", "HOLD_NOT_ACTIVE"): Row(409, "HOLD_NOT_ACTIVE", figures=("state",)),
    ("service", "TOP_UP_NOT_OPEN"): Row(409, "TOP_UP_NOT_OPEN", figures=("state",)),
    ("service", "HOLD_EXPIRED"): Row(409, "HOLD_EXPIRED"),
    ("service", "REFUND_EXCEEDS_SPEND"): Row(409, "REFUND_EXCEEDS_SPEND", figures=("refundable",)),
    ("service", "BALANCE_LIMIT_EXCEEDED"): Row(
        409, "BALANCE_LIMIT_EXCEEDED", figures=("balance", "limit")
    ),
    ("service", "ABOVE_SPEND_LIMIT"): Row(
        409, "ABOVE_SPEND_LIMIT", figures=("required", "window", "limit")
    ),
    ("service", "TOO_MANY_GRANTS"): Row(
        409, "TOO_MANY_GRANTS", "This account has the maximum number of grants.", ("limit",)
    ),
    ("service", "IDEMPOTENCY_KEY_REUSED"): Row(
        409, "IDEMPOTENCY_KEY_REUSED", "This key belongs to another request; take a new one."
    ),
    ("service", "PAYMENT_REUSED"): Row(
        409, "PAYMENT_REUSED", "This payment was credited differently; ask support."
    ),
    ("service", "TOP_UP_HAS_PAYMENT"): Row(
        409, "TOP_UP_HAS_PAYMENT", "This top-up has another payment; ask support."
    ),
    ("service", "REVERSAL_REUSED"): Row(
        409, "REVERSAL_REUSED", "This reversal was recorded differently; ask support."
    ),
    ("service", "PAYMENT_MISMATCH"): Row(
        409, "PAYMENT_MISMATCH", "This payment was recorded differently; ask support."
    ),
    ("service", "BATCH_ABORTED"): Row(409, "BATCH_ABORTED"),
    ("service", "FEED_NOT_OFFERED"): Row(501, "FEED_NOT_OFFERED"),
    ("service", "ALREADY_PAID"): Row(409, "ALREADY_PAID", "This job was paid before."),
    ("service", "SPEND_LIMIT_EXCEEDED"): Row(
        429, "SPEND_LIMIT_EXCEEDED", figures=("window", "limit", "spent"), retry_after=60
    ),
    ("service", "TOO_MANY_HOLDS"): Row(
        429, "TOO_MANY_HOLDS", "Too many jobs of this account are running.", ("limit",), 60
    ),
    ("service", "OVERLOADED"): Row(503, "OVERLOADED", _AGAIN, retry_after=1),
    ("service", "LEDGER_UNAVAILABLE"): Row(503, "LEDGER_UNAVAILABLE", _AGAIN, retry_after=2),
    ("service", "OUTCOME_UNKNOWN"): Row(
        503,
        "OUTCOME_UNKNOWN",
        "It is not known yet whether this happened; ask again with the same key.",
        retry_after=2,
    ),
    # The gateway's own credentials are wrong, and no user can change that.
    ("service", "UNAUTHENTICATED"): _OURS,
    ("service", "PERMISSION_DENIED"): _OURS,
    ("service", "INTERNAL"): _FAULT,
    ("bridge", "invalid_request"): Row(400, "INVALID_REQUEST", figures=("field",)),
    ("bridge", "unknown_pack"): Row(404, "UNKNOWN_PACK", "There is no such pack."),
    ("bridge", "too_many_credits"): Row(
        400, "TOO_MANY_CREDITS", "One purchase cannot give so many credits; choose a smaller one."
    ),
    ("bridge", "idempotency_key_reused"): Row(
        409, "IDEMPOTENCY_KEY_REUSED", "This key belongs to another purchase; take a new one."
    ),
    ("bridge", "unknown_checkout"): Row(404, "UNKNOWN_CHECKOUT", "There is no such checkout."),
    ("bridge", "no_customer"): Row(
        404, "NO_CUSTOMER", "There is nothing to manage yet: no purchase was made."
    ),
    ("bridge", "too_many_reads"): Row(
        429, "TOO_MANY_REQUESTS", "Too many requests; ask again shortly.", retry_after=2
    ),
    ("bridge", "stripe_away"): Row(503, "BRIDGE_UNAVAILABLE", _NO_CHECKOUT_NOW, retry_after=2),
    ("bridge", "credit_service_away"): Row(503, "LEDGER_UNAVAILABLE", _AGAIN, retry_after=2),
    ("bridge", "too_slow"): Row(503, "BRIDGE_UNAVAILABLE", _NO_CHECKOUT_NOW, retry_after=2),
    ("bridge", "too_large"): _OURS_AT_THE_BRIDGE,
    ("bridge", "unauthenticated"): _OURS_AT_THE_BRIDGE,
    ("bridge", "not_found"): _OURS_AT_THE_BRIDGE,
    ("bridge", "method_not_allowed"): _OURS_AT_THE_BRIDGE,
    ("bridge", "refused"): _OURS_AT_THE_BRIDGE,
    ("bridge", "stripe_refuses"): _OURS_AT_THE_BRIDGE,
    ("bridge", "failed"): _OURS_AT_THE_BRIDGE,
    ("gateway", "INVALID_REQUEST"): Row(400, "INVALID_REQUEST", figures=("field",)),
    ("gateway", "UNAUTHENTICATED"): Row(
        401, "UNAUTHENTICATED", "Sign in: no valid token of a user came with this request."
    ),
    ("gateway", "CROSS_ORIGIN"): Row(
        403, "CROSS_ORIGIN", "A page of this origin may not ask without an Authorization header."
    ),
    ("gateway", "DEVELOPMENT_ONLY"): Row(
        403, "DEVELOPMENT_ONLY", "Development users exist only on the machine itself."
    ),
    ("gateway", "ANONYMOUS_USER"): Row(
        403, "ANONYMOUS_USER", "Anonymous users have no credits here; sign in with an account."
    ),
    ("gateway", "NOT_FOUND"): Row(404, "NOT_FOUND", "There is nothing at this address."),
    ("gateway", "UNKNOWN_CHECKOUT"): Row(404, "UNKNOWN_CHECKOUT", "There is no such checkout."),
    ("gateway", "NOT_SOLD_HERE"): Row(404, "NOT_SOLD_HERE", "Nothing is sold here."),
    ("gateway", "METHOD_NOT_ALLOWED"): Row(
        405, "METHOD_NOT_ALLOWED", "This address does not take that method."
    ),
    ("gateway", "TOO_SLOW"): Row(408, "TOO_SLOW", "The body did not come in time."),
    ("gateway", "TOO_LARGE"): Row(413, "TOO_LARGE", "The body is too large.", ("bytes_max",)),
    ("gateway", "UNSUPPORTED_MEDIA_TYPE"): Row(
        415, "UNSUPPORTED_MEDIA_TYPE", "Send `Content-Type: application/json`."
    ),
    ("gateway", "TOO_MANY_REQUESTS"): Row(
        429, "TOO_MANY_REQUESTS", "Too many requests; ask again shortly.", retry_after=1
    ),
    ("gateway", "INTERNAL"): _FAULT,
    ("gateway", "TOO_MANY_STREAMS"): Row(
        503, "TOO_MANY_STREAMS", "Too many pages are open; ask again shortly.", retry_after=5
    ),
    ("gateway", "STOPPING"): Row(503, "STOPPING", "Ask again in a moment.", retry_after=1),
    ("gateway", "ISSUER_UNAVAILABLE"): Row(
        503, "ISSUER_UNAVAILABLE", "Tokens cannot be verified at the moment.", retry_after=5
    ),
    ("gateway", "BRIDGE_UNAVAILABLE"): Row(
        503, "BRIDGE_UNAVAILABLE", _NO_CHECKOUT_NOW, retry_after=2
    ),
    ("gateway", "MISCONFIGURED"): _OURS_AT_THE_BRIDGE,
}

# A refusal of a newer service or of a proxy, whose words are not for users.
_UNKNOWN_REFUSAL = Row(409, "REFUSED", "The credit service refuses this.")


class Problem(Exception):
    """A refusal by the gateway itself, or by the bridge.

    Attributes:
        row: the answer.
        figures: those that are sent with it.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        source: Source = "gateway",
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **figures: object,
    ) -> None:
        """Names the row of `reason`; `detail` is used if the row has no sentence of its own."""
        super().__init__(detail or reason)
        self.row = ROWS[source, reason]
        self.detail = detail if self.row.detail is None else self.row.detail
        self.retry_after = self.row.retry_after if retry_after is None else retry_after
        self.headers = headers or {}
        self.figures = {name: figures[name] for name in self.row.figures if name in figures}


def invalid(field: str, problem: str) -> Problem:
    """Makes the refusal of a request whose `field` cannot be used."""
    return Problem("INVALID_REQUEST", f"{field}: {problem}", field=field)


def row_of(error: CreditError) -> Row:
    """Finds the row of an error of the service; an unknown one is a plain refusal."""
    return ROWS.get(("service", error.reason), _UNKNOWN_REFUSAL)


def problem_response(error: CreditError | Problem) -> Response:
    """Renders an error as `application/problem+json`, in an app's own routes too.

    Args:
        error: what the credit client raised, such as InsufficientCredits.

    Returns:
        The response: status, reason, a sentence, and the figures as numbers. 402 means that credits
        are missing, 409 that something changed, 503 with Retry-After that a later try may succeed.
    """
    if isinstance(error, Problem):
        return _rendered(error.row, error.detail, error.figures, error.retry_after, error.headers)
    row = row_of(error)
    figures = {name: getattr(error, name) for name in row.figures if hasattr(error, name)}
    retry_after: float | None = row.retry_after
    if isinstance(error, LimitReached):
        retry_after = error.retry_ms / 1000
    return _rendered(row, str(error) if row.detail is None else row.detail, figures, retry_after)


def _rendered(
    row: Row,
    detail: str,
    figures: Mapping[str, object],
    retry_after: float | None,
    further: Mapping[str, str] | None = None,
) -> Response:
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(row.status).phrase,
        "status": row.status,
        "reason": row.reason,
    }
    if detail:
        body["detail"] = detail
    headers = {"Cache-Control": "no-store, no-transform", **(further or {})}
    if row.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return Response(orjson.dumps(body | dict(figures)), row.status, headers, media_type=MEDIA_TYPE)
