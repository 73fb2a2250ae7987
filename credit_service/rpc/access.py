"""Who is calling, and what they may call. Deny by default.

A caller is known by the one URI or DNS name in the certificate of its TLS connection, or by a
bearer token, of which only the SHA-256 is kept. Where a call carries a token, the token decides.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_log = structlog.get_logger()

ROLES = frozenset({"worker", "gateway", "web", "bridge", "operator", "auditor"})

_SERVICE = "/credit_service.v1.CreditService/"

NAME = re.compile("[ -~]{1,64}")

# Rights narrower than a call, as the servicer asks for them.
HISTORY = "read the history"
REPORT_ON_ALL_USERS = "report on all users"
REFUND_WITHOUT_SPEND = "refund without naming a spend"
PURCHASE_WITHOUT_PAYMENT = "purchase without a payment"

RIGHTS: Mapping[str, frozenset[str]] = {
    _SERVICE + "GetUserCredit": ROLES,
    _SERVICE + "ListPrices": ROLES,
    _SERVICE + "QuoteCost": ROLES,
    _SERVICE + "GetTransaction": ROLES,
    _SERVICE + "GetTransactionHistory": frozenset({"gateway", "web", "operator", "auditor"}),
    _SERVICE + "SpendCredits": frozenset({"worker", "operator"}),
    _SERVICE + "RefundCredits": frozenset({"worker", "operator"}),
    _SERVICE + "PurchaseCredits": frozenset({"bridge", "operator"}),
    _SERVICE + "ReversePurchase": frozenset({"bridge", "operator"}),
    _SERVICE + "GetHold": ROLES,
    _SERVICE + "ListHolds": frozenset({"gateway", "web", "operator", "auditor"}),
    _SERVICE + "HoldCredits": frozenset({"worker", "gateway", "operator"}),
    _SERVICE + "ReleaseHold": frozenset({"worker", "gateway", "operator"}),
    _SERVICE + "CaptureHold": frozenset({"worker", "operator"}),
    _SERVICE + "ExtendHold": frozenset({"worker", "operator"}),
    _SERVICE + "BatchSpendCredits": frozenset({"worker", "operator"}),
    _SERVICE + "WatchUserCredit": frozenset({"gateway", "web", "operator", "auditor"}),
    _SERVICE + "GetUsageReport": frozenset({"web", "operator", "auditor"}),
    _SERVICE + "GrantCredits": frozenset({"operator"}),
    _SERVICE + "SetAccountPolicy": frozenset({"operator"}),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": frozenset({"operator"}),
    HISTORY: frozenset({"gateway", "web", "operator", "auditor"}),
    REPORT_ON_ALL_USERS: frozenset({"operator", "auditor"}),
    REFUND_WITHOUT_SPEND: frozenset({"operator"}),
    PURCHASE_WITHOUT_PAYMENT: frozenset({"operator"}),
}

# Probes come without credentials, and learn nothing but whether the service serves.
PUBLIC = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A known caller; its name stands on every entry it makes."""

    name: str
    role: str

    def require(self, right: str) -> None:
        """Lets the caller go on if its role has the right.

        Raises:
            PermissionDenied: it does not, or nobody knows such a right.
        """
        if self.role not in RIGHTS.get(right, ()):
            action = f"call {right.rpartition('/')[2]}" if right.startswith("/") else right
            raise PermissionDenied(self.role, action)


LOCAL_OPERATOR = Caller("local", "operator")

# The caller of the call that the running task answers.
CALLER: ContextVar[Caller] = ContextVar("caller")


class IdentitiesError(Exception):
    """The file of identities cannot be used; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Identities:
    """The known callers, by the SHA-256 of their token and by the name in their certificate."""

    by_token: Mapping[str, Caller]
    by_certificate: Mapping[str, Caller]

    @classmethod
    def parse(cls, text: str) -> Identities:
        """Reads TOML: `[[identity]]` tables with name, role, and token_sha256 or certificate.

        Raises:
            IdentitiesError: not TOML, an unknown key or role, or the same thing twice.
        """
        try:
            listed = tomllib.loads(text)
        except ValueError as error:
            raise IdentitiesError(f"is not TOML: {error}") from error
        entries = listed.pop("identity", [])
        if listed or not isinstance(entries, list) or not entries:
            raise IdentitiesError("must hold [[identity]] tables, one or more, and nothing else")
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
        raise IdentitiesError(f"{where} is no table; write [[identity]] above its lines")
    unknown = entry.keys() - {"name", "role", "token_sha256", "certificate"}
    if unknown:
        raise IdentitiesError(f"{where} has an unknown key {min(unknown)}")
    if not all(isinstance(value, str) and value for value in entry.values()):
        raise IdentitiesError(f"{where} has a value that is not a text")
    name, role = str(entry.get("name", "")), str(entry.get("role", ""))
    if not NAME.fullmatch(name):
        raise IdentitiesError(f"{where} needs a name of 1 to 64 printable ASCII characters")
    if role not in ROLES:
        raise IdentitiesError(f"{where} ({name}) needs a role: one of {', '.join(sorted(ROLES))}")
    if "token_sha256" not in entry and "certificate" not in entry:
        raise IdentitiesError(f"{where} ({name}) needs a token_sha256 or a certificate")
    if "token_sha256" in entry and not re.fullmatch("[0-9a-f]{64}", str(entry["token_sha256"])):
        raise IdentitiesError(f"{where} ({name}): token_sha256 is not 64 hex digits in lower case")
    return Caller(name, role)


class Doorkeeper:
    """Tells who is calling; reads the file of identities again when it has changed."""

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
        metadata: Iterable[tuple[str, str | bytes]],
        auth_context: Callable[[], Mapping[str, Iterable[bytes]]],
    ) -> Caller:
        """Tells who makes a call.

        Args:
            metadata: the call's metadata; `authorization` may hold a bearer token (RFC 6750).
            auth_context: asks TLS what it knows of the peer.

        Raises:
            Unauthenticated: no credentials, or none that are known.
        """
        if self._identities is None:
            return LOCAL_OPERATOR
        for key, value in metadata:
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
        assert self._identities is not None  # noqa: S101  # identify asked
        caller = self._identities.by_token.get(hashlib.sha256(token.lstrip().encode()).hexdigest())
        if caller is None:
            raise Unauthenticated("This token is not known here.")
        return caller
