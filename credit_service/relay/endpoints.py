"""The file of endpoints: where events are sent, signed with which secrets; read again on a change.

It is TOML, an `[[endpoint]]` table each:

    [[endpoint]]
    name = "billing"
    url = "https://billing.example.com/credits"
    secrets = [{ env = "BILLING_WEBHOOK_SECRET" }]
    types = ["entry.purchase", "balance.*"]
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import structlog
from standardwebhooks import Webhook

from credit_service.relay.event_types import UnknownTypeError, matching

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger()

ENDPOINTS_MAX = 50
SECRETS_MAX = 5
URL_MAX = 2_048

# The size of a secret that the specification asks for, in bytes.
SECRET_MIN, SECRET_MAX = 24, 64

_NAME = re.compile("[a-z0-9][a-z0-9_-]{0,63}")
_SECRET = re.compile(r"whsec_([A-Za-z0-9+/]+={0,2})")
_KEYS = {"name", "url", "secrets", "types", "start", "ca"}
_STARTS = ("now", "beginning")


class EndpointsError(Exception):
    """The file of endpoints cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint: where events are sent.

    Attributes:
        name: the key of its place in the feed, so the place stays when the URL changes.
        url: the URL.
        types: the types of events that it gets.
        secrets: each request is signed with all of them; receivers accept any one, so that a new
            secret can be added before the old one goes.
        from_beginning: whether a new endpoint also gets what is already in the ledger.
        ca: further authorities that may sign its certificate; None: only those of the system.
    """

    name: str
    url: SplitResult
    types: frozenset[str]
    secrets: tuple[Webhook, ...]
    from_beginning: bool = False
    ca: Path | None = None

    @property
    def shown_url(self) -> str:
        """The URL as logs may show it: without path and query, which may be a credential."""
        return f"{self.url.scheme}://{self.url.netloc}"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The contents of a file of endpoints.

    Attributes:
        by_name: the endpoints.
        files: the file and all that it refers to, each with a mark that changes with its version.
        written: the secrets as written, which decide whether an endpoint has changed.
    """

    by_name: dict[str, Endpoint]
    files: dict[Path, tuple[int, int] | None]
    written: dict[str, object]


class EndpointsFile:
    """Reads the file of endpoints, and again when it, or a file of a secret, has changed."""

    def __init__(self, file: Path, *, private: bool) -> None:
        """Reads the file.

        Args:
            file: where it is.
            private: whether addresses that are not globally routable, and so http, are allowed.

        Raises:
            EndpointsError: the file cannot be used.
        """
        self._file = file
        self._private = private
        self._problem = ""
        self._read = _read(file, private=private)

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints by name, of the last usable version of the file."""
        return self._read.by_name

    def reload(self) -> set[str]:
        """Reads the file again if it changed; a file that cannot be used changes nothing.

        Returns:
            The names of endpoints that were added, changed or removed.
        """
        if all(_stamp(file) == stamp for file, stamp in self._read.files.items()):
            self._problem = ""
            return set()
        try:
            read = _read(self._file, private=self._private)
        except EndpointsError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("new endpoints are unusable, keeping the old ones", problem=str(error))
            return set()
        self._problem = ""
        before, self._read = self._read, read
        changed = {
            name
            for name in before.written.keys() | read.written.keys()
            if before.written.get(name) != read.written.get(name)
        }
        _log.info("endpoints reloaded", file=str(self._file), changed=sorted(changed))
        return changed


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _read(file: Path, *, private: bool) -> Endpoints:
    files = {file: _stamp(file)}
    try:
        text = file.read_text()
        listed = tomllib.loads(text)
    except OSError as error:
        raise EndpointsError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise EndpointsError(f"{file} is not TOML: {error}") from error
    entries = listed.pop("endpoint", [])
    if listed or not isinstance(entries, list):
        raise EndpointsError(f"{file} must hold [[endpoint]] tables and nothing else")
    if len(entries) > ENDPOINTS_MAX:
        raise EndpointsError(f"{file} has more than {ENDPOINTS_MAX} endpoints")
    by_name: dict[str, Endpoint] = {}
    written: dict[str, object] = {}
    for place, entry in enumerate(entries, start=1):
        try:
            endpoint, secrets = _endpoint(entry, file.parent, files, private=private)
        except EndpointsError as error:
            name = entry.get("name") if isinstance(entry, dict) else None
            where = f"endpoint {place}" + (f" ({name})" if isinstance(name, str) else "")
            raise EndpointsError(f"{file}: {where} {error}") from error
        if endpoint.name in by_name:
            raise EndpointsError(f"{file} names {endpoint.name} twice")
        by_name[endpoint.name] = endpoint
        ca = None if endpoint.ca is None else files.get(endpoint.ca)
        written[endpoint.name] = (entry, secrets, ca)
    return Endpoints(by_name, files, written)


def _endpoint(
    entry: object, folder: Path, files: dict[Path, tuple[int, int] | None], *, private: bool
) -> tuple[Endpoint, list[str]]:
    if not isinstance(entry, dict):
        raise EndpointsError("is not a table; write [[endpoint]] above its lines")
    unknown = entry.keys() - _KEYS
    if unknown:
        raise EndpointsError(f"has an unknown key {min(unknown)}")
    for key in ("name", "url", "secrets", "types"):
        if key not in entry:
            raise EndpointsError(f"lacks {key}")
    name, start, ca = entry["name"], entry.get("start", "now"), entry.get("ca")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise EndpointsError(
            "needs a name of 1 to 64 lower-case letters, digits, - and _, such as billing"
        )
    if start not in _STARTS:
        raise EndpointsError(f"has a start that is neither {' nor '.join(_STARTS)}")
    authority = None
    if ca is not None:
        if not isinstance(ca, str) or not (folder / ca).is_file():
            raise EndpointsError("has a ca that is not a file of authorities (PEM)")
        authority = folder / ca
        files[authority] = _stamp(authority)
    try:
        types = matching(_texts(entry["types"], "types"))
    except UnknownTypeError as error:
        raise EndpointsError(f"has types of which {error}") from error
    url = _url(entry["url"], private=private)
    secrets = _secrets(entry["secrets"], folder, files)
    made = Endpoint(name, url, types, tuple(map(Webhook, secrets)), start == "beginning", authority)
    return made, secrets


def _texts(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise EndpointsError(f"needs {key}: a list of texts, one or more")
    return value


def _url(text: object, *, private: bool) -> SplitResult:
    schemes = ("https", "http") if private else ("https",)
    try:
        if not isinstance(text, str) or not re.fullmatch("[!-~]+", text) or len(text) > URL_MAX:
            raise ValueError
        url = urlsplit(text)
        usable = url.hostname and url.port != 0 and not url.username and not url.fragment
        url.hostname.encode("idna") if url.hostname else None
    except ValueError:
        usable = False
    if not usable or url.password is not None:
        raise EndpointsError(
            "needs a url such as https://example.com/hook, in ASCII, without a user and a #"
        )
    if url.scheme not in schemes:
        raise EndpointsError(
            "has a url that is not https; with CREDIT_WEBHOOKS_PRIVATE=true it may be http, to a"
            " private address"
        )
    return url


def _secrets(listed: object, folder: Path, files: dict[Path, tuple[int, int] | None]) -> list[str]:
    if not isinstance(listed, list) or not 1 <= len(listed) <= SECRETS_MAX:
        raise EndpointsError(f"needs secrets: a list of 1 to {SECRETS_MAX}")
    return [_secret(one, folder, files) for one in listed]


def _secret(value: object, folder: Path, files: dict[Path, tuple[int, int] | None]) -> str:
    where = "a secret"
    if isinstance(value, dict) and value.keys() in ({"env"}, {"file"}):
        ((kind, name),) = value.items()
        where = f"the secret of {kind} {name}"
        if kind == "env":
            text = os.environ.get(str(name))
            if text is None:
                raise EndpointsError(f"has {where}, which is not set")
        else:
            file = folder / str(name)
            files[file] = _stamp(file)
            try:
                text = file.read_text()
            except (OSError, ValueError) as error:
                raise EndpointsError(f"has {where}, which cannot be read: {error}") from error
        value = text.strip()
    match = _SECRET.fullmatch(value) if isinstance(value, str) else None
    try:
        size = len(base64.b64decode(match[1], validate=True)) if match else 0
    except binascii.Error:
        size = 0
    if match is None or not SECRET_MIN <= size <= SECRET_MAX:
        raise EndpointsError(
            f"has {where} that is not whsec_ and {SECRET_MIN} to {SECRET_MAX} bytes in Base64;"
            ' make one with: echo "whsec_$(openssl rand -base64 32)"'
        )
    return match[0]
