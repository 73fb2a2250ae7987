"""Identifies callers and decides which calls each may make. Denies by default.

A caller is known by the one URI or DNS name in the certificate of its TLS connection, or by a
bearer token, of which only the SHA-256 is kept. If a call carries a token, the token decides.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_log = structlog.get_logger()

NAME = re.compile("[ -~]{1,64}")


class Role(StrEnum):
    """The kind of a caller, which decides what it may call."""

    WORKER = "worker"
    GATEWAY = "gateway"
    WEB = "web"
    BRIDGE = "bridge"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    CONSUMER = "consumer"


class Right(Enum):
    """A right narrower than a call; its value completes "A caller may not ..."."""

    READ_HISTORY = "read the history"
    REPORT_ON_ALL_USERS = "report on all users"
    REFUND_WITHOUT_SPEND = "refund without naming a spend"
    PURCHASE_WITHOUT_PAYMENT = "purchase without a payment"
    REVOKE_ANY_GRANT = "revoke a grant that it did not purchase"


_EVERYBODY = frozenset(Role)
_READERS = frozenset({Role.GATEWAY, Role.WEB, Role.OPERATOR, Role.AUDITOR})
_HOLDERS = frozenset({Role.WORKER, Role.GATEWAY, Role.OPERATOR})
_WORKERS = frozenset({Role.WORKER, Role.OPERATOR})
_PAYMENTS = frozenset({Role.BRIDGE, Role.OPERATOR})
_REPORTS = frozenset({Role.OPERATOR, Role.AUDITOR})
_OPERATORS = frozenset({Role.OPERATOR})

# The roles that may make each call, by its name. If a call is missing, the service does not start.
CALLS: Mapping[str, frozenset[Role]] = {
    "GetUserCredit": _EVERYBODY,
    "ListPrices": _EVERYBODY,
    "QuoteCost": _EVERYBODY,
    "GetTransaction": _EVERYBODY,
    "GetTransactionHistory": _READERS,
    "SpendCredits": _WORKERS,
    "RefundCredits": _WORKERS,
    "PurchaseCredits": _PAYMENTS,
    "ReversePurchase": _PAYMENTS,
    "GetHold": _EVERYBODY,
    "ListHolds": _READERS,
    "HoldCredits": _HOLDERS,
    "ReleaseHold": _HOLDERS,
    "CaptureHold": _WORKERS,
    "ExtendHold": _WORKERS,
    "BatchSpendCredits": _WORKERS,
    "CallMany": _WORKERS,
    "WatchUserCredit": _READERS,
    "GetUsageReport": _REPORTS | {Role.WEB},
    "GetLiabilityReport": _REPORTS,
    "ListAccounts": _REPORTS,
    "StreamTransactions": _REPORTS | {Role.CONSUMER},
    "GrantCredits": _OPERATORS,
    "AdjustCredits": _OPERATORS,
    "RevokeGrant": _PAYMENTS,
    "ListGrants": _READERS,
    "ListTopUps": _PAYMENTS,
    "NoteTopUp": _PAYMENTS,
    "FailTopUp": _PAYMENTS,
    "SetAccountPolicy": _OPERATORS,
    # Reflection, which grpcurl uses to find the calls.
    "ServerReflectionInfo": _OPERATORS,
}

RIGHTS: Mapping[Right, frozenset[Role]] = {
    Right.READ_HISTORY: _READERS,
    Right.REPORT_ON_ALL_USERS: _REPORTS,
    Right.REFUND_WITHOUT_SPEND: _OPERATORS,
    Right.PURCHASE_WITHOUT_PAYMENT: _OPERATORS,
    Right.REVOKE_ANY_GRANT: _OPERATORS,
}

# Probes carry no credentials, and learn only whether the service is serving.
PUBLIC_SERVICE = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True)
class Caller:
    """A known caller; every entry it makes carries its name."""

    name: str
    role: Role

    def require_call(self, call: str) -> None:
        """Checks that the caller's role may make a call.

        Args:
            call: the call's name, such as SpendCredits.

        Raises:
            PermissionDenied: the role may not, or there is no such call.
        """
        if self.role not in CALLS.get(call, ()):
            raise PermissionDenied(self.role.value, f"call {call}")

    def may(self, right: Right) -> bool:
        """Tells whether the caller's role has the right."""
        return self.role in RIGHTS[right]

    def require(self, right: Right) -> None:
        """Checks that the caller's role has the right.

        Raises:
            PermissionDenied: the role lacks it.
        """
        if not self.may(right):
            raise PermissionDenied(self.role.value, right.value)


LOCAL_OPERATOR = Caller("local", Role.OPERATOR)

# The caller of the call that the running task answers.
CALLER: ContextVar[Caller] = ContextVar("caller")


class IdentitiesError(Exception):
    """The file of identities cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Identities:
    """The known callers, by the SHA-256 of their token and by the name in their certificate."""

    by_token: Mapping[str, Caller]
    by_certificate: Mapping[str, Caller]

    @classmethod
    def parse(cls, text: str) -> Identities:
        """Reads TOML: `[[identity]]` tables with name, role, and token_sha256 or certificate.

        Raises:
            IdentitiesError: not TOML, an unknown key or role, or a value that must be unique twice.
        """
        try:
            listed = tomllib.loads(text)
        except ValueError as error:
            raise IdentitiesError(f"is not TOML: {error}") from error
        entries = listed.pop("identity", [])
        if listed or not isinstance(entries, list) or not entries:
            raise IdentitiesError("must contain one or more [[identity]] tables and nothing else")
        by_token: dict[str, Caller] = {}
        by_certificate: dict[str, Caller] = {}
        names: set[str] = set()
        for place, entry in enumerate(entries, start=1):
            caller = _caller(place, entry)
            if caller.name in names:
                raise IdentitiesError(f"names {caller.name} twice")
            names.add(caller.name)
            for key, table in (("token_sha256", by_token), ("certificate", by_certificate)):
                value = entry.get(key)
                if value is None:
                    continue
                if value in table:
                    raise IdentitiesError(f"gives two identities the same {key}")
                table[value] = caller
        return cls(by_token, by_certificate)


def _caller(place: int, entry: object) -> Caller:
    where = f"identity {place}"
    if not isinstance(entry, dict):
        raise IdentitiesError(f"{where} is not a table; write [[identity]] above its lines")
    unknown = entry.keys() - {"name", "role", "token_sha256", "certificate"}
    if unknown:
        raise IdentitiesError(f"{where} has an unknown key {min(unknown)}")
    if not all(isinstance(value, str) and value for value in entry.values()):
        raise IdentitiesError(f"{where} has a value that is not a string")
    name, role = str(entry.get("name", "")), str(entry.get("role", ""))
    if not NAME.fullmatch(name):
        raise IdentitiesError(f"{where} needs a name of 1 to 64 printable ASCII characters")
    if role not in set(Role):
        raise IdentitiesError(f"{where} ({name}) needs a role: one of {', '.join(sorted(Role))}")
    if "token_sha256" not in entry and "certificate" not in entry:
        raise IdentitiesError(f"{where} ({name}) needs a token_sha256 or a certificate")
    if "token_sha256" in entry and not re.fullmatch("[0-9a-f]{64}", str(entry["token_sha256"])):
        raise IdentitiesError(f"{where} ({name}): token_sha256 is not 64 hex digits in lower case")
    return Caller(name, Role(role))


class Authenticator:
    """Knows who is calling; reads the file of identities again when it has changed."""

    def __init__(self, file: Path | None) -> None:
        """Reads the file; without one every caller is the operator named `local`.

        Raises:
            IdentitiesError: the file cannot be used.
        """
        self._file = file
        self._identities: Identities | None = None
        self._stamp: tuple[int, int] | None = None
        self._problem = ""
        if file is not None:
            self._identities, self._stamp = self._read(file)

    @staticmethod
    def _read(file: Path) -> tuple[Identities, tuple[int, int]]:
        try:
            status = file.stat()
            return Identities.parse(file.read_text()), (status.st_mtime_ns, status.st_ino)
        except (OSError, UnicodeDecodeError) as error:
            raise IdentitiesError(f"{file}: {error}") from error
        except IdentitiesError as error:
            raise IdentitiesError(f"{file} {error}") from error

    def reload(self) -> None:
        """Reads the file again if it changed; a file that cannot be used changes nothing."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            if (status.st_mtime_ns, status.st_ino) == self._stamp:
                return
            self._identities, self._stamp = self._read(self._file)
        except (OSError, IdentitiesError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("new identities are unusable, keeping the old ones", problem=str(error))
        else:
            self._problem = ""
            _log.info("identities reloaded", file=str(self._file))

    def identify(
        self,
        metadata: Callable[[], Iterable[tuple[str, str | bytes]] | None],
        auth_context: Callable[[], Mapping[str, Iterable[bytes]]],
    ) -> Caller:
        """Identifies the caller of a call.

        Args:
            metadata: returns the call's metadata, in which `authorization` may hold a bearer token
                (RFC 6750); not called without identities, because the metadata takes time to make.
            auth_context: returns the TLS properties of the peer.

        Raises:
            Unauthenticated: no credentials, or unknown ones.
        """
        if self._identities is None:
            return LOCAL_OPERATOR
        for key, value in metadata() or ():
            if key == "authorization":
                return self._by_token(value)
        peer = auth_context()
        names = [
            name.decode(errors="replace")
            for kind in ("peer_uri", "peer_dns")
            for name in peer.get(kind, ())
        ]
        if not names:
            raise Unauthenticated("Send `authorization: Bearer <token>` or a client certificate.")
        if len(names) > 1:
            raise Unauthenticated("The certificate must hold exactly one URI or DNS name.")
        caller = self._identities.by_certificate.get(names[0])
        if caller is None:
            raise Unauthenticated("The name in this certificate is not known here.")
        return caller

    def _by_token(self, value: str | bytes) -> Caller:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        scheme, _, token = text.strip().partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("The authorization must be `Bearer <token>`.")
        assert self._identities is not None  # noqa: S101  # identify checked
        caller = self._identities.by_token.get(hashlib.sha256(token.lstrip().encode()).hexdigest())
        if caller is None:
            raise Unauthenticated("This token is not known here.")
        return caller
